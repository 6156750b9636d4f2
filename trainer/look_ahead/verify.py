"""The oracle: what torch holds and computes in a dry run against what is predicted, term by term and stage by stage.

Held against it is what the formulas count, with nothing that was fitted: allocator, libraries and the device's context
are on neither side.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from estimator.arrays import Num
from estimator.formulas.counts import (
    MatMul,
    adapter_matmuls,
    attention_backward_flop,
    attention_flop,
    head_matmul,
    layer_matmuls,
    matmul_flop,
    recomputed_layer_flop,
)
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout
from estimator.formulas.memory import stage_bytes
from estimator.formulas.stages import Stage, stage_at
from estimator.stack.efficiencies import PARAMETERS, Efficiencies
from estimator.work.shape import TARGETS, Shape
from trainer.look_ahead.dry_run import DryRun

COUNTED = Efficiencies(**dict.fromkeys(PARAMETERS, 1.0))
"""Nothing is fitted."""

TERMS = {
    "parameters": (("parameters", "gathered_parameters"), ("weights", "master_weights")),
    "gradients": (("gradients",), ("gradients",)),
    "optimizer": (("optimizer",), ("optimizer",)),
    "activations": (
        ("activations", "temporary"),
        ("activations", "recomputed_layer", "attention_workspace", "logits", "workspace"),
    ),
    "communication_buffers": (("communication_buffers",), ("communication_buffers",)),
}
"""What the tracker tells apart, and what the formulas do, under names that both know."""

MOST_OFF = 0.03
"""Of a stage's bytes: a total that is further off fails the verification, and so does any FLOP."""


@dataclass(frozen=True)
class Term:
    """Bytes of one purpose, or FLOP: as torch counts them, and as predicted."""

    name: str
    counted: float
    predicted: float

    @property
    def off(self) -> float:
        """Return by how much the prediction is above what torch counts."""
        return self.predicted - self.counted


@dataclass(frozen=True)
class Verified:
    """A stage's account."""

    run: DryRun
    terms: tuple[Term, ...]
    flop: Term

    @property
    def total(self) -> Term:
        """Bytes of all purposes."""
        return Term("total", sum(t.counted for t in self.terms), sum(t.predicted for t in self.terms))

    @property
    def furthest(self) -> Term:
        """The term that is off by most bytes."""
        return max(self.terms, key=lambda term: abs(term.off))

    @property
    def holds(self) -> bool:
        """Whether bytes are within `MOST_OFF`, and FLOP equal."""
        return abs(self.total.off) <= MOST_OFF * self.total.counted and self.flop.off == 0


def verify(runs: Iterable[DryRun], inputs: StepInputs) -> list[Verified]:
    """Hold dry runs of ranks of one plan against what its formulas say of their stages.

    Args:
        runs: of a rank each.
        inputs: the plan, alone, with model and habits.
    """
    found = []
    for run in runs:
        stage = stage_at(inputs, run.stage)
        predicted = {name: float(part.item()) for name, part in stage_bytes(inputs, COUNTED, stage).parts.items()}
        flop = Term("flop", run.num_flop, float(np.asarray(predicted_flop(inputs, stage)).item()))
        found.append(Verified(run, terms_of(run.num_bytes, predicted), flop))
    return found


def terms_of(counted: Mapping[str, float], predicted: Mapping[str, float]) -> tuple[Term, ...]:
    """Return bytes by purpose under names that both sides know; each side sums to its total.

    >>> terms_of({"optimizer": 8}, {"optimizer": 8.0, "logits": 4.0})[2:4]
    (Term(name='optimizer', counted=8, predicted=8.0), Term(name='activations', counted=0, predicted=4.0))
    """
    known = {part for sides in TERMS.values() for side in sides for part in side}
    assert known >= counted.keys() | predicted.keys()  # else a part would be left out
    return tuple(
        Term(name, sum(counted.get(part, 0) for part in ours), sum(predicted.get(part, 0.0) for part in theirs))
        for name, (ours, theirs) in TERMS.items()
    )


def predicted_flop(inputs: StepInputs, stage: Stage) -> np.ndarray:
    """FLOP of a step of one rank of a stage, as torch counts them: masked scores too, attention fused.

    A checkpointed layer is repeated up to its last product (`recomputed_layer_flop`), selectively nothing that counts
    but the B of adapters.
    Frozen weights have no gradients, and nothing below the model's first adapter asks for one (`_unasked_flop`).
    """
    plan, tokens, length = inputs.plan, inputs.tokens, inputs.seq_len
    shape = replace(inputs.shape, sliding_window=0)
    passes = 2.0 if shape.lora_rank else 3.0
    products = passes * sum(matmul_flop(tokens, m) for m in layer_matmuls(shape))
    beside = sum(matmul_flop(tokens, m) * ways for m, ways in _adapters(shape, inputs.plan))
    products += 3.0 * beside
    attention = attention_flop(tokens, length, shape, causal=False)
    layer = products + attention + attention_backward_flop(attention, keeps_scores=False)
    repeated = np.where(
        plan.recomputes("full"),
        recomputed_layer_flop(tokens, length, shape, causal=False) + _repeated_flop(inputs, shape, "ab"),
        np.where(plan.recomputes("selective"), _repeated_flop(inputs, shape, "b"), 0.0),
    )
    layers = stage.num_layers * layer + plan.repeated_layers(stage.num_layers) * repeated
    head = np.asarray(stage.has_head) * passes * matmul_flop(tokens, head_matmul(shape))
    unasked = np.asarray(stage.has_embedding) * _unasked_flop(tokens, length, shape, plan)
    return np.asarray((layers + head - unasked) / plan.tp * plan.num_micro_batches)


def _adapters(shape: Shape, plan: Layout) -> Iterator[tuple[MatMul, Num]]:
    """Yield the matrices of adapters of a layer, and how many tensor-parallel ranks each do the whole of it.

    The A beside a column-parallel product; the B beside a row-parallel one, unless sequences are split.
    """
    for matmul in adapter_matmuls(shape):
        if matmul.name.endswith(".a"):
            yield matmul, plan.tp if matmul.splits_output else 1
        else:
            yield matmul, 1 if matmul.splits_output else plan.tp / plan.sequence_ways


def _repeated_flop(inputs: StepInputs, shape: Shape, which: str) -> Num:
    """FLOP that recomputation repeats of a layer's adapters, their A and B or B alone; compiled, not the last one."""
    left_out = "down.b" if inputs.habits.execution == "compiled" else ""
    own = [(m, ways) for m, ways in _adapters(shape, inputs.plan) if m.name[-1] in which and m.name != left_out]
    return sum(matmul_flop(inputs.tokens, m) * ways for m, ways in own)


def _unasked_flop(tokens: Num, seq_len: Num, shape: Shape, plan: Layout) -> Num:
    """FLOP of the first layer's backward pass that nothing asks for: below its first adapter all is frozen."""
    if not shape.lora_rank:
        return 0.0
    targets = shape.lora_targets or TARGETS
    of = {m.name: matmul_flop(tokens, m) for m in layer_matmuls(shape)}
    of |= {m.name: matmul_flop(tokens, m) * ways for m, ways in _adapters(shape, plan)}
    unasked: Num = 0.0
    for group in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",)):
        unasked = unasked + sum(of[name] + of.get(f"{name}.a", 0.0) for name in group)  # gradients of inputs
        if any(name in targets for name in group):
            break
        if "v" in group:
            attention = attention_flop(tokens, seq_len, shape, causal=False)
            unasked = unasked + attention_backward_flop(attention, keeps_scores=False)
    return unasked
