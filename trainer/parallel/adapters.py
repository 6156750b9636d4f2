"""Low-rank adapters beside frozen products: W x + alpha / r B A x (Hu et al. 2021, arXiv:2106.09685, section 4.1).

The products are the trainer's own, so that every plan lays them out as it lays out the others; their names, their
random weights and their files (`adapter_files`) are peft's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from estimator.stack.recipe import MOST_RANK
from estimator.work.shape import TARGETS
from hardware.errors import unknown_name
from trainer.parallel.model import Stage

PROJECTIONS = tuple(f"{name}_proj" for name in TARGETS)
"""Linear modules of a layer, in order."""

ALL_LINEAR = "all-linear"
"""What stands for all of them."""

MOST_ALPHA = 1e6


@dataclass(frozen=True)
class AdapterConfig:
    """Adapters of a run.

    Raises:
        ValueError: a value breaks its rule.
    """

    rank: int
    alpha: float
    """The adapters' part is scaled by alpha / rank."""
    targets: tuple[str, ...] = PROJECTIONS
    """Which of `PROJECTIONS` have one."""
    dropout: float = 0.0
    """Share of an adapter's inputs that a step leaves out."""

    def __post_init__(self) -> None:
        """Refuse what no run has, and put the targets in order."""
        if not 1 <= self.rank <= MOST_RANK:
            raise ValueError(f"lora: rank {self.rank} is not from 1 to {MOST_RANK}; use for example --lora 16")
        if not 0 < self.alpha <= MOST_ALPHA:
            raise ValueError(f"lora-alpha: {self.alpha} is not above 0 and to {MOST_ALPHA:g}; usual is twice the rank")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora-dropout: {self.dropout} is not from 0 to below 1; give a share, usual are 0 to 0.1")
        if not self.targets:
            raise ValueError(f"lora-targets: none is named; give {ALL_LINEAR} or some of {', '.join(PROJECTIONS)}")
        for name in self.targets:
            if name not in PROJECTIONS:
                raise ValueError(unknown_name("lora-targets", name, (ALL_LINEAR, *PROJECTIONS)))
        object.__setattr__(self, "targets", tuple(name for name in PROJECTIONS if name in self.targets))

    @property
    def scale(self) -> float:
        """Of the adapters' part."""
        return self.alpha / self.rank

    @property
    def shape_targets(self) -> tuple[str, ...]:
        """The targets as the estimator's shapes name them: () for all."""
        return () if self.targets == PROJECTIONS else tuple(name.removesuffix("_proj") for name in self.targets)

    def document(self) -> dict[str, Any]:
        """Return what step logs and checkpoints say of them."""
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "dropout": self.dropout}


def parse_targets(text: str) -> tuple[str, ...]:
    """Return the targets that a command line names.

    >>> parse_targets("q_proj,v_proj"), parse_targets("all-linear") == PROJECTIONS
    (('q_proj', 'v_proj'), True)
    """
    return PROJECTIONS if text == ALL_LINEAR else tuple(name.strip() for name in text.split(",") if name.strip())


class AdaptedLinear(nn.Module):
    """A frozen linear module and its adapter; the children have the names that peft gives them."""

    def __init__(self, base: nn.Linear, config: AdapterConfig, dtype: torch.dtype) -> None:
        """Lie beside a module.

        Args:
            base: it is frozen, and keeps its dtype.
            config: of the adapter.
            dtype: of the adapter's weights.
        """
        super().__init__()
        self.base_layer = base.requires_grad_(requires_grad=False)
        own: dict[str, Any] = {"bias": False, "device": base.weight.device, "dtype": dtype}
        self.lora_A = nn.Linear(base.in_features, config.rank, **own)
        self.lora_B = nn.Linear(config.rank, base.out_features, **own)
        self.scale, self.dropout = config.scale, config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of both, of the shape of the base's.

        The adapter comes first: recomputation ends with the last tensor that a backward pass asks for, which of a
        layer's last module then is the frozen weight, whose large product is not repeated.
        """
        kept = dropout(x, self.dropout) if self.dropout and self.training else x
        added = self.lora_B(self.scale * self.lora_A(kept))
        out: Tensor = self.base_layer(x) + added
        return out


def adapt(stage: Stage, config: AdapterConfig, dtype: torch.dtype) -> None:
    """Freeze a stage, and lay adapters beside the targets in each of its layers.

    Args:
        stage: whole, not yet laid out.
        config: of the adapters.
        dtype: of their weights.
    """
    stage.requires_grad_(requires_grad=False)
    for _, layer in stage.layers:
        for parent in list(layer.children()):
            for name, module in list(parent.named_children()):
                if name in config.targets and isinstance(module, nn.Linear):
                    setattr(parent, name, AdaptedLinear(module, config, dtype))


def adapted(stage: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield the modules with adapters, each under its name in the whole model."""
    for name, module in stage.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


def whole_name(name: str) -> str:
    """Return the name of a weight in the whole model, where frozen ones are called as without adapters.

    >>> whole_name("model.layers.0.mlp.up_proj.base_layer.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    return name.replace(".base_layer.", ".")


def is_adapter(name: str) -> bool:
    """Whether a weight of that name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def bound(columns: int) -> float:
    """Return the bound of the uniform distribution of A: peft draws it by `kaiming_uniform_` with a = sqrt(5).

    sqrt(6 / ((1 + a^2) fan_in)) (He et al. 2015, arXiv:1502.01852, equation 10, uniform).

    >>> bound(64)
    0.125
    """
    return 1.0 / math.sqrt(columns)
