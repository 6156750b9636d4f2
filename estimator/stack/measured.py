"""What a stack was measured on: kinds of model, precision and device, and how many runs of each."""

from typing import Annotated

from pydantic import Field

from estimator.stack.fit import RunCount, StackRecord
from estimator.work.shape import Shape
from hardware.models import MatmulPrecision

Ends = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
"""Least and most."""


class MeasuredKind(StackRecord):
    """Runs of one kind: on one accelerator, dense models or mixtures of experts, in one precision."""

    accelerator: str
    experts: bool
    precision: MatmulPrecision
    """What the products of a layer's weights ran in."""
    adapters: bool
    """Adapters were trained, all else frozen."""
    families: tuple[str, ...]
    runs: RunCount
    num_devices: Ends
    hidden_size: Ends

    def __str__(self) -> str:
        """Return it in words.

        >>> ends = {"num_devices": (8, 512), "hidden_size": (4096, 8192)}
        >>> kind = {"accelerator": "mi300x", "experts": False, "precision": "fp8", "adapters": True}
        >>> str(MeasuredKind(**kind, **ends, families=("llama",), runs=5))
        '5 runs of adapters on dense models in fp8 on 8 to 512 mi300x'
        """
        what = "mixtures of experts" if self.experts else "dense models"
        least, most = self.num_devices
        devices = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return (
            f"{self.runs:,} run{'s' * (self.runs != 1)} of {'adapters on ' * self.adapters}{what} in {self.precision} "
            f"on {devices} {self.accelerator}"
        )

    def is_like(self, shape: Shape, precision: MatmulPrecision) -> bool:
        """Whether a question is of this kind, whatever its size and device."""
        return (self.experts, self.precision, self.adapters) == (
            shape.num_experts > 0,
            precision,
            shape.lora_rank > 0,
        )
