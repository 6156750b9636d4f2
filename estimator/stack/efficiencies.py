"""The parameters of a stack: what they are called, and their values as numbers or arrays."""

from typing import NamedTuple

from estimator.arrays import Num
from hardware.models import Accelerator

PARAMETERS = (
    "matmul_efficiency",
    "memory_efficiency",
    "exposed_communication",
    "launch_s_per_layer",
    "launch_s_per_step",
    "memory_ratio",
)
"""What every stack has, in the order of its file."""

FURTHER_PARAMETERS = (
    "launch_s_per_split_layer",
    "launch_s_per_stalled_rank",
    "launch_s_per_routed_layer",
    "attention_efficiency",
    "fp8_efficiency",
    "expert_efficiency",
    "tensor_exposure",
    "sharded_exposure",
    "message_exposure",
    "host_fill",
    "hop_s",
    "workspace_bytes",
    "gathered_bytes",
    "flight_bytes",
    "base_bytes",
    "processor_s_per_step",
    "processor_memory_ratio",
    "processor_bytes",
)
"""What a stack has where its premises have a prior of it; else it has the value that changes nothing."""


def are_parameters(names: tuple[str, ...]) -> bool:
    """Whether names are those of a stack's parameters, in their order."""
    further = names[len(PARAMETERS) :]
    return names[: len(PARAMETERS)] == PARAMETERS and further == tuple(n for n in FURTHER_PARAMETERS if n in further)


class Efficiencies(NamedTuple):
    """The parameters of a stack, as numbers, or as arrays that broadcast against those of the plans."""

    matmul_efficiency: Num
    """Sustained 16-bit matrix rate of large products, over the device's best measured rate."""
    memory_efficiency: Num
    """Sustained memory bandwidth of element-wise ops, over the device's best measured bandwidth."""
    exposed_communication: Num
    """Part of the seconds of data-parallel collectives and stage transfers that no computation hides."""
    launch_s_per_layer: Num
    """Host seconds to launch one layer's forward and backward pass of one micro-batch."""
    launch_s_per_step: Num
    """Host seconds per step whatever its size."""
    memory_ratio: Num
    """Bytes that devices hold, over the bytes counted: allocator, runtime, and what the count misses."""
    launch_s_per_split_layer: Num = 0.0
    """Further host seconds per layer of a micro-batch whose tensor-parallel collectives it launches."""
    launch_s_per_stalled_rank: Num = 0.0
    """Further host seconds per split layer of a micro-batch for each tensor-parallel rank, where collectives stall."""
    launch_s_per_routed_layer: Num = 0.0
    """Further host seconds per layer of a micro-batch whose tokens are routed to experts."""
    attention_efficiency: Num = 1.0
    """Rate of fused attention over that of its kernel, or of passes over scores over those of eager ops."""
    fp8_efficiency: Num = 1.0
    """Part of the peak that 8-bit products reach over the part that 16-bit ones do, casts apart."""
    expert_efficiency: Num = 1.0
    """Rate of products with the weights of experts over that of others of their shapes: grouped, of unequal loads."""
    tensor_exposure: Num = 1.0
    """Part of the seconds of tensor-parallel collectives that no computation hides."""
    sharded_exposure: Num = 1.0
    """Exposed part of data-parallel collectives where something is sharded, over that where nothing is."""
    message_exposure: Num = 1.0
    """Exposed part of the latencies of data-parallel collectives over that of their bytes."""
    host_fill: Num = 1.0
    """Part of the waits for the host while a pipeline fills and drains that it does not spend launching ahead."""
    hop_s: Num = 0.0
    """Further seconds of each hop of a tensor-parallel ring that leaves the node."""
    workspace_bytes: Num = 0.0
    """Bytes per token and unit of the hidden size that the layer in work holds on every tensor-parallel rank."""
    gathered_bytes: Num = 0.0
    """Bytes per token and unit of the hidden size that a layer keeps of what it gathered from tensor-parallel ranks."""
    flight_bytes: Num = 0.0
    """Bytes per token and unit of the hidden size that every tensor-parallel rank of a stage keeps of a micro-batch."""
    base_bytes: Num = 0.0
    """Bytes per device whatever it trains: context, libraries, communicators."""
    loss_ratio: Num = 1.0
    """Bytes that the loss holds over those counted. No fit finds it: it is moved where the software is unknown."""
    processor_s_per_step: Num = 0.0
    """Further host seconds per step where the device is the host's own processor."""
    processor_memory_ratio: Num = 1.0
    """Bytes held over bytes counted where the memory is the host's, over those of an accelerator's allocator."""
    processor_bytes: Num = 0.0
    """Further bytes per device where the memory is the host's: the program's own."""
    family_factor: Num = 1.0
    """Device seconds of this model family over those of the population."""

    def on(self, accelerator: Accelerator) -> "Efficiencies":
        """Return them as they hold on a device, what holds on processors alone in its place."""
        if not accelerator.is_processor:
            return self
        return self._replace(
            launch_s_per_step=self.launch_s_per_step + self.processor_s_per_step,
            memory_ratio=self.memory_ratio * self.processor_memory_ratio,
            base_bytes=self.base_bytes + self.processor_bytes,
            processor_s_per_step=0.0,
            processor_memory_ratio=1.0,
            processor_bytes=0.0,
        )
