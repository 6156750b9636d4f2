"""The phases of a step: which layer's forward or backward pass is at work, told to a meter."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.look_ahead.meter import Meter
from trainer.parallel.model import Stage


class _Followed(nn.Module):
    """A layer that says when its passes begin; it keeps nothing alive."""

    def __init__(self, layer: nn.Module, meter: Meter, name: str, before: str) -> None:
        super().__init__()
        self.layer, self.meter, self.name, self.before = layer, meter, name, before

    def forward(self, h_BTD: Tensor, **others: Any) -> Tensor:
        self.meter.enter_phase(f"forward of {self.name}")
        if self.before and h_BTD.requires_grad:
            h_BTD.register_hook(lambda _: self.meter.enter_phase(self.before))
        output: Tensor = self.layer(h_BTD, **others)
        if torch.is_grad_enabled():
            output.register_hook(lambda _: self.meter.enter_phase(f"backward of {self.name}"))
        self.meter.enter_phase(f"after {self.name}")
        return output


def follow_phases(stages: Sequence[Stage], meter: Meter) -> None:
    """Let a meter know of the passes of the first, of the last and of the other layers of each chunk of a rank."""
    for number, stage in enumerate(stages):
        chunk = f" of chunk {number}" if len(stages) > 1 else ""
        layers = stage.model.layers
        for place, key in enumerate(layers.keys()):
            name = {0: "the first layer", len(layers) - 1: "the last layer"}.get(place, "a layer between") + chunk
            before = f"backward before the layers{chunk}" if place == 0 else ""
            layers[key] = _Followed(layers[key], meter, name, before)
