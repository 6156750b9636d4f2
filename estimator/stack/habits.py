"""What software keeps in memory, in which precision, and how it launches and overlaps its work: a person writes it."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from estimator.arrays import Array, Num
from estimator.stack.fit import LogSd, StackRecord
from estimator.work.shape import Shape
from hardware.models import MatmulPrecision

BytesEach = Annotated[float, Field(ge=0, le=64)]
PositiveBytesEach = Annotated[float, Field(gt=0, le=64)]


class Evidence(StackRecord):
    """Why a table of the file says what it says."""

    kind: Literal["documented", "measured", "assumed"]
    text: str


class Habits(StackRecord):
    """What the stack keeps in memory, in which precision, and how it launches and overlaps its work."""

    weight_bytes: PositiveBytesEach
    """Bytes per parameter of the copy that the devices compute with."""
    master_bytes: BytesEach
    """Bytes per parameter of the copy that the optimizer updates; 0 without one."""
    optimizer_bytes: BytesEach
    """Bytes per parameter of the optimizer's state."""
    gradient_bytes: PositiveBytesEach
    activation_bytes: int = Field(ge=1, le=4)
    logit_bytes: PositiveBytesEach
    """Bytes per logit that the loss holds at once, of a loss that has all of them."""
    loss_log_sd: LogSd = 0.0
    """Spread between software of the logarithm of those bytes; 0 of software that is one."""
    chunked_logits: int = Field(default=0, ge=0)
    """Logits that the loss has in memory at most, their gradient taking their place; 0 where it has all."""
    fused_attention: Literal["always"] | tuple[str, ...]
    """Model families whose attention runs in one kernel that never writes the scores; the others write them."""
    score_workspace_bytes: float = 16.0
    """Bytes per score that the backward pass of one layer's materialized attention holds at once.

    As torch's own softmax in 32 bits has it: gradient of the probabilities in 16 and in 32 bits, probabilities and
    gradient of the scores in 32 bits, and the latter in 16: 2 + 4 + 4 + 4 + 2. A fused softmax in 16 bits has less.
    """
    keeps_weights_gathered: bool
    """With parameters sharded (ZeRO-3), a stage still holds all of its compute copy for the whole step."""
    reduces_every_micro_batch: bool
    """Gradients are reduced after each micro-batch, since only their shard is kept; else once per step."""
    single_controller: bool
    """One process launches the work of all stages, before the devices run it; else each device's host, meanwhile."""
    usable_memory_fraction: float = Field(gt=0, le=1)
    """Part of a device's memory that a plan may fill."""
    ranks_by: Literal["device", "step"]
    """What the stack's own planner compares: seconds of the devices, or of the whole step, launch of work included."""
    frozen_weight_bytes: BytesEach | None = None
    """Bytes per parameter that is not trained, where they differ from `weight_bytes`."""
    reduction_bytes: BytesEach = 0.0
    """Bytes per parameter held for reducing its gradient, where there are replicas."""
    fuses_activation: bool = False
    """The activation function of a gated block is fused with its gate: its own output is not kept."""
    fuses_accumulation: bool = False
    """Gradients of micro-batches are added up by the products that make them; else by a pass of their own."""
    pipeline_keeps_whole: bool = False
    """A pipeline keeps weights gathered, and gradients whole, over all its micro-batches, whatever is sharded."""
    balances_stages: bool = False
    """The trainer itself divides the layers over the stages, by cost; else as the plan says."""
    overlaps_communication: bool = True
    """Collectives run beside the computation, as far as they can; else all of their seconds are exposed."""
    keeps_gradients: bool = True
    """Gradients have buffers that last; else each comes to be in the backward pass, and goes with the update."""
    keeps_gathered: bool = False
    """With sequence parallelism each rank keeps whole what it gathered for a block's products; else only its part."""
    selective_keeps_products: bool = False
    """Selective recomputation keeps what products and attention give, and repeats what lies between; else it drops the
    scores of attention that writes them, and does nothing where a kernel does not.
    """
    norm_copy_bytes: BytesEach = 4.0
    """Bytes per element of the copy in 32 bits that a norm keeps of its input; 0 where its kernel makes none."""
    execution: Literal["kernels", "eager", "compiled"] = "kernels"
    """What runs between a layer's products: kernels written for it, each operator by itself, or what a compiler makes
    of these.
    """
    attention_kernel: Literal["published", "torch"] = "published"
    """Whose speed fused attention has: as published beside products, or of the kernel that torch chooses."""
    matmul_precision: MatmulPrecision = "bf16"
    """Which of an accelerator's peaks the products of a layer's weights run at."""
    fully_shards: bool = False
    """Parameters are gathered, freed and reduced unit by unit as FSDP2 does (`formulas.fully_sharded`)."""
    reduced_bytes: BytesEach = 4.0
    """Of such units: bytes per parameter of a gradient as it is reduced, and while it waits for that."""
    end_optimizer_bytes: BytesEach | None = None
    """Bytes of state per parameter of the embedding and the projection, where they differ from `optimizer_bytes`."""
    pages_optimizer: bool = False
    """State lies in memory that moves to the host where the device has too little: none of it has to stay."""
    orthogonalizes: bool = False
    """The update of each matrix is made orthogonal (Muon)."""
    offloads_activations: bool = False
    """What layers keep for the backward pass waits in the host's memory."""
    fused_loss: bool = False
    """The loss and the vocabulary projection are one, a few rows at a time (`formulas.fused_loss`)."""
    updates_in_backward: bool = False
    """Weights are updated as their gradients come, which are then freed: there is one micro-batch."""
    evidence: dict[str, Evidence]

    @property
    def bytes_of_frozen(self) -> float:
        """Bytes per parameter that is not trained."""
        return self.weight_bytes if self.frozen_weight_bytes is None else self.frozen_weight_bytes

    def gathers_once(self, num_stages: Num) -> Array:
        """Whether sharded weights are gathered once per step and kept until its end."""
        return np.asarray(self.keeps_weights_gathered | (self.pipeline_keeps_whole & (np.asarray(num_stages) > 1)))

    def reduces_often(self, num_stages: Num) -> Array:
        """Whether gradients are reduced after each micro-batch."""
        once = self.pipeline_keeps_whole & (np.asarray(num_stages) > 1)
        return np.asarray(self.reduces_every_micro_batch & ~once)

    def fuses_attention(self, shape: Shape) -> bool:
        """Whether the model's attention runs fused on this stack."""
        return self.fused_attention == "always" or shape.family in self.fused_attention
