"""What a pass of one micro-batch takes on each stage of a plan's pipeline, op by op; `schedule` lays it out in time."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.attention import attention_passes
from estimator.formulas.collectives import transfer_seconds
from estimator.formulas.compute import Rates, sustained_rates
from estimator.formulas.inputs import StepInputs
from estimator.formulas.launch import stage_launch_seconds
from estimator.formulas.layout import StageLayers
from estimator.formulas.stages import fullest_rank
from estimator.formulas.step import (
    Layer,
    device_time,
    effective,
    elementwise_seconds,
    end_seconds,
    gradient_pass_seconds,
    layer_passes,
    layers_seconds,
)
from estimator.stack.efficiencies import Efficiencies


class StagePasses(NamedTuple):
    """Seconds of one micro-batch on each stage of one plan, by kind of op, each of shape (stages,)."""

    forward: dict[str, Array]
    repeated: dict[str, Array]
    """What recomputation repeats of it, before the backward pass."""
    backward: dict[str, Array]
    """The gradients of inputs and of weights."""
    weight_gradient: Array
    """Seconds of the backward matrix products that no other stage waits for."""
    waits_for_host: Array
    """Beyond all of these, until the host has launched them, where each device has its own."""
    transfer_s: float
    """Of what a micro-batch hands to the next stage, or back."""

    @property
    def busy_s(self) -> Array:
        """Seconds of all passes of a micro-batch, without waits."""
        return np.asarray(sum(sum(ops.values()) for ops in (self.forward, self.repeated, self.backward)))


def stage_passes(inputs: StepInputs, efficiencies: Efficiencies) -> StagePasses:
    """Return the seconds of each stage's passes, for inputs of one plan.

    They add up to what `step.device_time` says of a stage; an end's traffic is half forward, its loss and embedding
    too, and of the vocabulary projection's three passes one is forward.
    """
    shape, plan, habits = inputs.shape, inputs.plan, inputs.habits
    usual = effective(efficiencies, inputs)
    rates = sustained_rates(inputs.machine.accelerator, usual, habits.matmul_precision)
    num_stages, ends = int(plan.num_stages.item()), end_seconds(inputs, usual, rates)
    each = [
        (
            layer,
            forward_seconds(inputs._replace(shape=counts.kind), layer, rates),
            by_stage(counts.layers, num_stages),
            by_stage(counts.repeated, num_stages),
        )
        for layer, counts in layers_seconds(inputs, usual, rates)
    ]
    layers = np.zeros(num_stages)
    first, last = np.zeros_like(layers), np.zeros_like(layers)
    first[0] = last[-1] = 1.0
    factor = float(np.asarray(usual.family_factor))
    passes_of_head = 2.0 if shape.lora_rank else 3.0

    def scaled(seconds: Num) -> Array:
        return np.asarray(factor * seconds)

    names = each[0][0].usual
    forward = {name: scaled(sum(held * once[name] for _, once, held, _ in each)) for name in names}
    again = {name: scaled(sum(held * own.repeated[name] for own, _, _, held in each)) for name in names}
    backward = {
        name: scaled(sum(held * (own.usual[name] - once[name]) for own, once, held, _ in each)) for name in names
    }
    of_ends = (ends.embedding * first + ends.loss * last) / 2.0
    gradients = gradient_pass_seconds(inputs, fullest_rank(shape, plan, trained=True), rates)
    _add(forward, "matmul", scaled(ends.head * last / passes_of_head))
    _add(backward, "matmul", scaled(ends.head * last * (1.0 - 1.0 / passes_of_head)))
    _add(forward, "elementwise", scaled(of_ends))
    _add(backward, "elementwise", scaled(of_ends + gradients))
    _add(forward, "tensor_parallel", scaled(ends.reduced * first))
    _add(backward, "tensor_parallel", scaled(ends.reduced * last))
    found = StagePasses(
        forward,
        again,
        backward,
        np.zeros_like(layers),
        np.zeros_like(layers),
        float(transfer_seconds(inputs.passed_bytes / plan.tp, plan.replicas * plan.tp, inputs.machine).item()),
    )
    later = device_time(inputs, usual).weight_gradient * found.busy_s
    launched = by_stage(stage_launch_seconds(inputs, usual), len(layers))
    waits = 0.0 if habits.single_controller else np.maximum(launched - found.busy_s, 0.0)
    return found._replace(weight_gradient=np.asarray(later), waits_for_host=waits + np.zeros_like(layers))


def forward_seconds(inputs: StepInputs, layer: Layer, rates: Rates) -> dict[str, Array]:
    """Return the part of a layer's usual seconds that is its forward pass, by kind of op.

    Of the collectives between tensor-parallel ranks and of those to experts it is half, of a context-parallel ring one
    pass in three.
    """
    return {
        "matmul": np.asarray(sum(passes.forward for passes in layer_passes(inputs, rates))),
        "attention": attention_passes(inputs, rates)[0],
        "elementwise": elementwise_seconds(inputs, rates)[1],
        "tensor_parallel": layer.usual["tensor_parallel"] / 2.0,
        "context_parallel": layer.usual["context_parallel"] / 3.0,
        "expert_parallel": layer.usual["expert_parallel"] / 2.0,
    }


def by_stage(each: StageLayers, num_stages: int) -> Array:
    """Return a quantity of each of so many stages, shape (stages,)."""
    first, middle, last = (float(np.asarray(one).item()) for one in each)
    return np.array([first, *[middle] * (num_stages - 2), last] if num_stages > 1 else [first])


def _add(ops: dict[str, Array], name: str, seconds: Array) -> None:
    ops[name] = ops[name] + seconds
