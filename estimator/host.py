"""The host: how long it issues work for the devices, at which paces, and what its log prints of that."""

from typing import NamedTuple

import numpy as np

from estimator.counts import Array, Num
from estimator.layout import Layout, StageLayers
from estimator.shape import Shape
from estimator.stack import Efficiencies, Habits, Window

FULL_ISSUE = 1 / 3
"""Issue work of repeating a layer's forward pass, over its forward and backward pass.  # assumed: as the FLOP"""

SELECTIVE_ISSUE = 1 / 9
"""Issue work of repeating attention, over a layer's forward and backward pass.  # assumed: a third of forward"""


def issue_seconds(shape: Shape, plan: Layout, habits: Habits, efficiencies: Efficiencies) -> Array:
    """Mean host seconds to issue a step: a + b * layers * micro-batches, a third more of b with full recomputation."""
    attention = plan.repeats_attention(fused=habits.fuses_attention(shape))
    each = np.where(plan.recomputes("full"), FULL_ISSUE, attention * SELECTIVE_ISSUE)
    issuers = 1 if habits.single_controller else np.asarray(plan.stages)
    layers = (shape.num_layers + each * num_repeated(shape, plan)) / issuers
    return np.asarray(efficiencies.issue_s_per_step + efficiencies.issue_s_per_layer * layers * plan.micro_batches)


def num_repeated(shape: Shape, plan: Layout) -> Array:
    """Layers of all stages that recomputation concerns."""
    return plan.over_stages(StageLayers(*map(plan.repeated_layers, plan.stage_layers(shape.num_layers))))


class Paces(NamedTuple):
    """A step at the two paces of the host."""

    fast_issue_s: Array
    slow_issue_s: Array


def paces(issue_s: Num, window: Window) -> Paces:
    """Split mean issue seconds into those at the fast and at the slow pace.

    mean = fast (1 + f (r - 1)), f the fraction of slow steps and r slow over fast.
    """
    fast = np.asarray(issue_s) / (1 + window.slow_fraction * (window.slow_ratio - 1))
    return Paces(fast, fast * window.slow_ratio)


def logged_tokens_per_s(tokens: Num, step_s: Num, issue_s: Num, window: Window) -> Array:
    """Mean of the tokens per second that the stack's log prints: tokens over its timed window, step by step."""
    if window.times == "step":
        return np.asarray(tokens / step_s)
    pace = paces(issue_s, window)
    slow = window.slow_fraction
    return np.asarray(tokens * ((1 - slow) / pace.fast_issue_s + slow / pace.slow_issue_s))
