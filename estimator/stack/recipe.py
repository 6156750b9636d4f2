"""How a model is trained, whatever the plan: precision, optimizer, adapters, quantized base weights."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from estimator.stack.habits import Habits
from estimator.stack.optimizers import OPTIMIZERS, STATES, state_bytes_each
from estimator.stack.stack import Stack
from estimator.work.shape import TARGETS, Shape
from hardware.errors import unknown_name
from hardware.models import MatmulPrecision


class Precision(NamedTuple):
    """Bytes per number, and the unit that multiplies matrices."""

    weight: float
    master: float
    """Of the copy that the optimizer updates; 0 where it updates the weights themselves."""
    gradient: float
    moment: float
    """Of each of the optimizer's moments."""
    activation: int
    matmul: MatmulPrecision
    """Which peak of an accelerator products run at."""


PRECISIONS = {
    "bf16-mixed": Precision(2, 4, 2, 4, 2, "bf16"),
    "fp16-mixed": Precision(2, 4, 2, 4, 2, "fp16"),
    "bf16": Precision(2, 0, 2, 2, 2, "bf16"),
    "fp32": Precision(4, 0, 4, 4, 4, "fp32"),
    "fp8-mixed": Precision(2, 4, 2, 4, 2, "fp8"),
    "bf16-optimizer": Precision(2, 4, 6, 4, 2, "bf16"),
}
"""Mixed: 32-bit master weights and moments (Micikevicius et al. 2018, arXiv:1710.03740, section 3.1).

"bf16-optimizer" is DeepSpeed's BF16_Optimizer: beside gradients in 16 bits it adds them up in 32 bits.
In fp8, weights and activations are kept in 16 bits and cast at each product (Micikevicius et al. 2022,
arXiv:2209.05433, section 3).
"""

QUANTIZED_BYTES = {"8": 1 + 4 / 4096, "4": 0.5 + 0.127 / 8}
"""Bytes per frozen weight: 8 bits with a 32-bit scale per row; NF4 with double quantization, 0.127 bits of constants.

paper: Dettmers et al. 2023, arXiv:2305.14314, section 3 (4 bits). documented: bitsandbytes 0.50, nn/modules.py,
`Int8Params.SCB`, a number per output; assumed: rows of 4,096.
"""

LOSSES = ("whole", "chunked", "fused")
"""All logits at once; so many at a time, whose gradient takes their place; or one kernel with the projection."""

CHUNKED_LOGITS = 2**28
"""Of a loss in chunks.  # documented: trainer/parallel/loss.py"""

MOST_RANK = 4096


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked of the training; None where the stack's own habit stays."""

    precision: str | None = None
    optimizer: str | None = None
    lora_rank: int = 0
    quantize: str | None = None
    overlaps: bool = True
    """Collectives run beside the computation, as the stack has them."""
    compiles: bool | None = field(default=None, repr=False)  # `Run.digest` counts it where it is told
    """Layers are compiled, or run operator by operator; None as the stack has it."""
    has_all_logits: bool = field(default=False, repr=False)
    """The loss had all logits at once, whatever the stack's has."""
    lora_targets: tuple[str, ...] = field(default=(), repr=False)
    """Matrices that the adapters lie beside, each with its own; () where `lora_modules` tells it."""
    lora_modules: tuple[str, ...] = field(default=(), repr=False)
    """Modules that they lie beside, as peft is told them (`work.modules`); () for all linear ones."""
    optimizer_in_backward: bool = field(default=False, repr=False)
    """Each weight is updated as soon as its gradient is there, which is then freed."""
    offload_activations: bool = field(default=False, repr=False)
    """What layers keep for the backward pass waits in the host's memory."""
    loss: str | None = field(default=None, repr=False)
    """One of `LOSSES`."""

    def __post_init__(self) -> None:
        """Refuse what is unknown or contradicts itself."""
        for name, given, known in (
            ("precision", self.precision, tuple(PRECISIONS)),
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("quantize", self.quantize, tuple(QUANTIZED_BYTES)),
            ("loss", self.loss, LOSSES),
        ):
            if given is not None and given not in known:
                raise ValueError(unknown_name(name, given, known))
        if unknown := [name for name in self.lora_targets if name not in TARGETS]:
            raise ValueError(unknown_name("lora_targets", unknown[0], TARGETS))
        if self.lora_targets and not self.lora_rank:
            raise ValueError("lora_targets: matrices are named, but no rank; give both")
        if self.lora_modules and (self.lora_targets or not self.lora_rank):
            beside = "matrices beside them" if self.lora_targets else "no rank"
            raise ValueError(f"lora_modules: modules are named, but {beside}; give modules and a rank")
        if not 0 <= self.lora_rank <= MOST_RANK:
            raise ValueError(f"lora: rank {self.lora_rank} is not from 1 to {MOST_RANK}; use for example --lora 16")
        if self.quantize and not self.lora_rank:
            raise ValueError(f"quantize: {self.quantize}-bit weights cannot be trained; freeze them with --lora RANK")

    @property
    def matmul_precision(self) -> MatmulPrecision:
        """Unit that matrices are multiplied in; where no precision is asked for, as most software: bfloat16's."""
        return PRECISIONS[self.precision].matmul if self.precision else "bf16"

    def shape(self, shape: Shape) -> Shape:
        """Return a shape with its adapters."""
        return replace(shape, lora_rank=self.lora_rank, lora_targets=self.lora_targets, lora_modules=self.lora_modules)

    def habits(self, habits: Habits, shape: Shape) -> Habits:
        """Return a stack's habits as the recipe changes them."""
        changes: dict[str, object] = {}
        moment = habits.optimizer_bytes / 2 or 4.0
        if self.precision:
            precision = PRECISIONS[self.precision]
            changes |= {
                "weight_bytes": precision.weight,
                "master_bytes": precision.master,
                "activation_bytes": precision.activation,
                "matmul_precision": precision.matmul,
            }
            own = (precision.weight, precision.master) == (habits.weight_bytes, habits.master_bytes)
            if not own or self.precision == "bf16-optimizer":
                # else the stack's own copies, and so its own way to add up gradients and to keep moments
                moment = precision.moment
                changes |= {"gradient_bytes": precision.gradient, "optimizer_bytes": 2 * moment}
            if precision.activation != habits.activation_bytes:
                changes["logit_bytes"] = precision.activation + 4.0  # beside them their 32-bit log-softmax
        changes |= self._of_optimizer(moment, shape)
        if self.quantize:
            changes["frozen_weight_bytes"] = QUANTIZED_BYTES[self.quantize]
        if self.compiles is not None:
            changes["execution"] = "compiled" if self.compiles else "eager"
        if not self.overlaps:
            changes["overlaps_communication"] = False
        if self.offload_activations:
            changes["offloads_activations"] = True
        if self.loss:
            chunked = (habits.chunked_logits or CHUNKED_LOGITS) if self.loss == "chunked" else 0
            changes |= {"chunked_logits": chunked, "fused_loss": self.loss == "fused"}
        if self.has_all_logits:
            changes["chunked_logits"] = 0
        return habits.model_copy(update=changes)

    def _of_optimizer(self, moment: float, shape: Shape) -> dict[str, object]:
        """Return the habits that the optimizer changes, its moments of so many bytes each."""
        changes: dict[str, object] = {"updates_in_backward": True} if self.optimizer_in_backward else {}
        if self.optimizer is None:
            return changes
        state = STATES[self.optimizer]
        if state.end_moments is not None:
            changes["end_optimizer_bytes"] = state.end_moments * moment
        return changes | {
            "optimizer_bytes": state_bytes_each(state, moment, shape.hidden_size),
            "pages_optimizer": state.is_paged,
            "orthogonalizes": state.is_orthogonal,
        }

    def stack(self, stack: Stack, shape: Shape) -> Stack:
        """Return a stack that trains by the recipe."""
        return stack.model_copy(update={"habits": self.habits(stack.habits, shape)})

    def __str__(self) -> str:
        """Return the recipe in words, "" where it is the stack's own."""
        where = " and ".join(self.lora_targets or self.lora_modules) or "every matrix"
        lora = f"LoRA of rank {self.lora_rank} on {where}" if self.lora_rank else ""
        frozen = f"{self.quantize}-bit frozen weights" if self.quantize else ""
        apart = "" if self.overlaps else "communication not overlapped"
        execution = {None: "", True: "compiled layers", False: "layers not compiled"}[self.compiles]
        inside = "optimizer in the backward pass" if self.optimizer_in_backward else ""
        loss = f"{self.loss} loss" if self.loss else ""
        away = "activations offloaded" if self.offload_activations else ""
        words = (lora, frozen, self.precision or "", self.optimizer or "", inside, away, loss, execution, apart)
        return ", ".join(word for word in words if word)
