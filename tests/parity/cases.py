"""The plans that are held against the plain loop: each dimension alone, and combined."""

from dataclasses import dataclass
from typing import NamedTuple

from estimator.work.plan import Plan, parse_plan

GLOBAL_BATCH = 8
STEPS, QUICK_STEPS = 20, 3
"""Of the whole list, and of the part that the tests run."""
LR, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.1, 1.0


class Tolerance(NamedTuple):
    """Most that a plan may differ from the plain loop, at any step."""

    loss: float
    norm: float
    """Of the gradient, relative."""
    weight: float
    """Of any exported weight, in learning rates: Adam's first steps are one rate long however small the gradient, so
    that the last bit of one near 0 moves its weight by up to this."""


TOLERANCES = {"fp32": Tolerance(5e-6, 1e-5, 0.1), "bf16-mixed": Tolerance(5e-3, 1e-2, 10.0)}

ADAPTER_NORMS = {"fp32": 1e-4, "bf16-mixed": 5e-2}
"""Instead, of adapters: where all weights are trained, errors of single ones even out in the norm over all of them;
adapters are few, and the gradient of each goes through the other's rounding."""


@dataclass(frozen=True)
class Case:
    """A plan on a model."""

    world: int
    """Ranks."""
    text: str
    """The plan; its micro-batches have the rows that make up the global batch."""
    model: str = "mistral"
    packing: bool = False
    precision: str = "fp32"
    compiles: bool = False
    """Each layer."""
    adapters: bool = False
    """Adapters alone are trained."""
    per_node: int = 0
    """Ranks of a node; 0 for all."""
    quick: bool = False
    """Whether the tests run it too."""

    @property
    def plan(self) -> Plan:
        """Return the plan."""
        plan = parse_plan(self.text)
        dp = self.world // (plan.num_stages * plan.tp)
        return parse_plan(f"{self.text},batch_per_device={GLOBAL_BATCH // dp // plan.num_micro_batches}")

    @property
    def tolerance(self) -> Tolerance:
        """Return how far it may be from the plain loop."""
        usual = TOLERANCES[self.precision]
        return usual._replace(norm=ADAPTER_NORMS[self.precision]) if self.adapters else usual

    @property
    def name(self) -> str:
        """Return what tells it from the others."""
        parts = [
            f"{self.world} ranks",
            self.model,
            "packed" * self.packing,
            "compiled" * self.compiles,
            "adapters" * self.adapters,
            self.precision,
            self.text,
        ]
        if self.per_node:
            parts.insert(1, f"{self.per_node} per node")
        return "; ".join(part for part in parts if part)


_ONE = "num_micro_batches=2"
_PIPELINE = "num_stages=2,num_micro_batches=4"
_INTERLEAVED = f"{_PIPELINE},schedule=interleaved,virtual_stages=2"
_REPLICATED = "num_micro_batches=2,zero_stage=0"

CASES = (
    # one rank: micro-batches, recomputation, packing, families
    Case(1, "num_micro_batches=1"),
    Case(1, "num_micro_batches=4"),
    Case(1, f"{_ONE},recomputation=selective", quick=True),
    Case(1, f"{_ONE},recomputation=full", quick=True),
    Case(1, f"{_ONE},recomputation=full,recomputed_layers=1"),
    Case(1, _ONE, packing=True),
    Case(1, f"{_ONE},recomputation=selective", packing=True),
    Case(1, _ONE, "mistral, window"),
    Case(1, _ONE, "llama"),
    Case(1, _ONE, "qwen2"),
    Case(1, _ONE, "qwen2, window", packing=True),
    Case(1, _ONE, "qwen2, tied", quick=True),
    Case(1, _ONE, "qwen3"),
    # pipeline stages
    Case(2, f"{_PIPELINE},schedule=gpipe", quick=True),
    Case(2, f"{_PIPELINE},schedule=1f1b"),
    Case(2, _INTERLEAVED, quick=True),
    Case(2, f"{_PIPELINE},schedule=zero_bubble", quick=True),
    Case(2, f"{_PIPELINE},first_layers=1,last_layers=3", quick=True),
    Case(3, "num_stages=3,num_micro_batches=4,first_layers=1,last_layers=1"),
    Case(4, "num_stages=4,num_micro_batches=8,schedule=1f1b"),
    Case(2, f"{_PIPELINE},recomputation=full"),
    Case(2, f"{_INTERLEAVED},recomputation=full,recomputed_layers=1"),
    Case(2, f"{_PIPELINE},schedule=zero_bubble,recomputation=full"),
    Case(2, _PIPELINE, packing=True),
    Case(2, _PIPELINE, "qwen2, window"),
    Case(2, _INTERLEAVED, "qwen3"),
    # tensor parallelism
    Case(2, f"{_ONE},tp=2", quick=True),
    Case(2, f"{_ONE},tp=2,sequence_parallel=false", quick=True),
    Case(2, f"{_ONE},tp=2", packing=True),
    Case(2, f"{_ONE},tp=2,recomputation=full"),
    Case(2, f"{_ONE},tp=2,recomputation=selective"),
    Case(2, f"{_ONE},tp=2", "llama"),
    Case(2, f"{_ONE},tp=2", "qwen2"),
    Case(2, f"{_ONE},tp=2,sequence_parallel=false", "qwen2"),
    Case(2, f"{_ONE},tp=2", "qwen3", quick=True),
    Case(2, f"{_ONE},tp=2,sequence_parallel=false", "qwen3"),
    # data parallelism
    Case(2, _REPLICATED, quick=True),
    *(Case(2, f"{_ONE},zero_stage={stage}", quick=stage == 1) for stage in (1, 2, 3)),
    Case(4, "num_micro_batches=1,zero_stage=3"),
    *(Case(4, f"{_ONE},zero_stage={stage},shard_within_node=true", per_node=2) for stage in (1, 3)),
    Case(2, f"{_ONE},zero_stage=3", packing=True),
    Case(2, f"{_ONE},zero_stage=3", "qwen2, tied"),
    Case(2, f"{_ONE},zero_stage=3,recomputation=full"),
    Case(2, f"{_ONE},zero_stage=3", precision="bf16-mixed", quick=True),
    Case(2, f"{_PIPELINE}", precision="bf16-mixed"),
    Case(1, _ONE, precision="bf16-mixed"),
    # combined
    Case(4, f"{_PIPELINE},zero_stage=3", quick=True),
    Case(4, f"{_PIPELINE},zero_stage=0"),
    Case(4, f"{_PIPELINE},zero_stage=1,schedule=gpipe"),
    Case(4, f"{_PIPELINE},zero_stage=2,schedule=zero_bubble"),
    Case(4, f"{_INTERLEAVED},zero_stage=3"),
    Case(4, f"{_PIPELINE},zero_stage=3,recomputation=full,recomputed_layers=1", packing=True),
    Case(4, f"{_ONE},tp=2,zero_stage=3", quick=True),
    Case(4, f"{_REPLICATED},tp=2,sequence_parallel=false"),
    Case(4, f"{_ONE},tp=2,zero_stage=3,recomputation=full", packing=True),
    Case(4, f"{_PIPELINE},tp=2", packing=True, quick=True),
    Case(4, f"{_INTERLEAVED},tp=2"),
    Case(4, f"{_PIPELINE},tp=2,schedule=zero_bubble,sequence_parallel=false"),
    Case(4, f"{_PIPELINE},tp=2,recomputation=selective", "qwen3"),
    Case(4, f"{_PIPELINE},tp=2", "qwen2"),
    Case(4, f"{_PIPELINE},zero_stage=3", precision="bf16-mixed"),
    # adapters
    Case(1, _ONE, adapters=True, quick=True),
    Case(1, f"{_ONE},recomputation=full", adapters=True, quick=True),
    Case(1, f"{_ONE},recomputation=selective", packing=True, adapters=True),
    Case(1, _ONE, "llama", adapters=True),
    Case(1, _ONE, "qwen2, tied", adapters=True),
    Case(1, _ONE, precision="bf16-mixed", adapters=True),
    Case(2, f"{_PIPELINE},schedule=gpipe", adapters=True),
    Case(2, _PIPELINE, adapters=True, quick=True),
    Case(2, _INTERLEAVED, adapters=True),
    Case(2, f"{_PIPELINE},schedule=zero_bubble", adapters=True),
    Case(2, _REPLICATED, adapters=True, quick=True),
    *(Case(2, f"{_ONE},zero_stage={stage}", adapters=True, quick=stage == 3) for stage in (1, 2, 3)),
    Case(2, f"{_ONE},zero_stage=3,recomputation=full", precision="bf16-mixed", adapters=True),
    Case(2, f"{_ONE},tp=2", adapters=True, quick=True),
    Case(2, f"{_ONE},tp=2,sequence_parallel=false", "qwen2", adapters=True),
    Case(4, f"{_ONE},tp=2,zero_stage=3", "qwen3", adapters=True),
    Case(4, f"{_PIPELINE},tp=2", packing=True, adapters=True),
    Case(4, f"{_PIPELINE},zero_stage=3", precision="bf16-mixed", adapters=True),
    Case(1, f"{_ONE},recomputation=full", adapters=True, compiles=True),
    Case(2, f"{_ONE},zero_stage=3", adapters=True, compiles=True),
    Case(2, f"{_ONE},tp=2", adapters=True, compiles=True),
    # compiled
    *(Case(1, f"{_ONE},recomputation={which}", compiles=True) for which in ("none", "full")),
    Case(1, f"{_ONE},recomputation=selective", packing=True, compiles=True),
    Case(1, _ONE, "qwen2, window", packing=True, compiles=True),
    Case(1, _ONE, "qwen2, tied", precision="bf16-mixed", compiles=True),
    Case(2, f"{_PIPELINE},recomputation=selective", compiles=True),
    Case(2, f"{_ONE},zero_stage=3,recomputation=full", "qwen3", compiles=True),
    Case(2, f"{_ONE},tp=2", "llama", compiles=True),
    Case(4, f"{_PIPELINE},zero_stage=3", precision="bf16-mixed", compiles=True),
)
