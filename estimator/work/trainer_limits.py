"""What the reference trainer cannot run, though a plan may say it; the planner leaves these plans out for its stack."""

from collections.abc import Sequence

import numpy as np

from estimator.work.plan import RECOMPUTATIONS, SCHEDULES, Flags, Plan, Plans
from estimator.work.rules import Rule
from estimator.work.shape import Shape
from hardware.errors import shown

TRAINER = "reference"
"""What stacks of the trainer call it."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model families whose layers the trainer knows how to split."""


def limits(plans: Plans, shape: Shape) -> Sequence[Rule]:
    """Return the rules of the trainer beside those of the layout; masks broadcast as the plans do."""
    model, vocabulary = shown(shape.name), shape.vocab_size
    everywhere = np.ones((1,) * len(plans.shape), dtype=np.bool_)
    rounds = np.maximum(plans.num_micro_batches // plans.num_stages, 1)
    split = (plans.num_stages > 1) | (plans.tp > 1)
    return [
        Rule(
            everywhere & (shape.family not in FAMILIES),
            lambda *_: f"the trainer has no {shape.family} models such as {model}; use one of {', '.join(FAMILIES)}",
        ),
        Rule(plans.cp > 1, lambda plan, _: f"cp={plan.cp}: the trainer splits no sequences over devices; use cp=1"),
        Rule(plans.ep > 1, lambda plan, _: f"ep={plan.ep}: the trainer has no experts to share; use ep=1"),
        Rule(
            plans.offload_optimizer,
            lambda *_: "offload_optimizer=true: the trainer keeps its optimizer on the devices; leave it out",
        ),
        Rule(
            vocabulary % plans.tp != 0,
            lambda plan, _: f"tp={plan.tp} does not divide vocab_size={vocabulary} of {model}; use a divisor of it",
        ),
        Rule(
            split & shape.tied_embeddings,
            lambda *_: f"{model} ties its embeddings, which the trainer does not split; use num_stages=1 and tp=1",
        ),
        Rule(
            (plans.schedule == SCHEDULES.index("zero_bubble")) & (plans.num_micro_batches % rounds != 0),
            lambda plan, _: (
                f"num_micro_batches={plan.num_micro_batches} makes no equal rounds of num_stages={plan.num_stages}; "
                "schedule=zero_bubble needs a multiple of it"
            ),
        ),
        Rule(
            (plans.schedule == SCHEDULES.index("zero_bubble"))
            & (plans.recomputation == RECOMPUTATIONS.index("selective")),
            lambda *_: (
                "recomputation=selective: what it keeps is read once, and schedule=zero_bubble's two backward passes "
                "repeat a layer each; use full or none, or schedule=1f1b"
            ),
        ),
    ]


def are_trainable(plans: Plans, shape: Shape) -> Flags:
    """Whether the trainer can run each plan that keeps the layout's rules."""
    able = np.ones((1,) * len(plans.shape), dtype=np.bool_)
    for rule in limits(plans, shape):
        able = able & ~rule.broken
    return np.broadcast_to(able, plans.shape)


def untrainable_reason(plan: Plan, shape: Shape) -> str:
    """Return why the trainer cannot run a plan, "" where it can.

    >>> from estimator.work.shape import load_shape
    >>> untrainable_reason(Plan(cp=2), load_shape("mistralai/Mistral-7B-v0.1"))
    'cp=2: the trainer splits no sequences over devices; use cp=1'
    """
    return next((rule.told(plan, 0) for rule in limits(Plans.of([plan]), shape) if rule.broken.any()), "")
