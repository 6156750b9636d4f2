"""The optimizer of a rank's parameters: AdamW, its learning rate over the steps, and the norm that clips gradients.

Every parameter of a sharded or tensor-parallel stage is a DTensor; a norm counts each element of the model once,
however many ranks hold it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Placement

from trainer.parallel.adamw import CompiledAdamW, local_part, scale_in_place

DECAYS = ("constant", "cosine")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate; the defaults are the seed run's, constant and without decay or clipping.

    Raises:
        ValueError: a value is out of its range.
    """

    lr: float = 2e-6
    warmup_steps: int = 0
    decay: str = "constant"
    """How the rate goes from `lr` after the warm-up: it stays, or falls to a tenth by the last step."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.0
    """Most that the norm of the gradient may be; 0 does not clip."""

    def __post_init__(self) -> None:
        """Refuse what no run has."""
        for name, value, low, high in (
            ("lr", self.lr, 0.0, 1e3),
            ("weight-decay", self.weight_decay, 0.0, 1.0),
            ("beta1", self.beta1, 0.0, 1.0),
            ("beta2", self.beta2, 0.0, 1.0),
            ("clip-norm", self.clip_norm, 0.0, 1e6),
        ):
            if not low <= value < high:
                raise ValueError(f"{name}: {value} is not from {low:g} to below {high:g}; give a value in that range")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup-steps: {self.warmup_steps} is negative; give 0 or more")
        if self.decay not in DECAYS:
            raise ValueError(f"decay: {self.decay!r} is not one of {', '.join(DECAYS)}")


LEAST_RATE = 0.1
"""Of `lr`, at the end of a cosine.  # paper: Hoffmann et al. 2022, arXiv:2203.15556, section 3 and appendix B"""


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Return the rate of a step, counted from 1.

    Linear from lr / warmup to lr; then constant, or lr (c + (1 - c) (1 + cos(pi t)) / 2), c = `LEAST_RATE` and t from 0
    to 1 over the rest.

    >>> config = OptimizerConfig(lr=1.0, warmup_steps=2, decay="cosine")
    >>> [round(learning_rate(step, 6, config), 3) for step in (1, 2, 4, 6)]
    [0.5, 1.0, 0.55, 0.1]
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
    return config.lr * (LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def trained(stage: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are not frozen."""
    return [parameter for parameter in stage.parameters() if parameter.requires_grad]


def make_optimizers(
    stages: Sequence[nn.Module], config: OptimizerConfig, *, compiles: bool = False
) -> list[torch.optim.AdamW]:
    """Return an optimizer per chunk, so that its state is saved under the chunk's parameter names.

    Frozen parameters have none. Compiled, or torch's fused one: no temporary copy of the parameters.
    """
    kind = CompiledAdamW if compiles else partial(torch.optim.AdamW, fused=True)
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    return [kind(trained(stage), lr=config.lr, betas=betas, weight_decay=decay) for stage in stages]


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of the next step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], most: float, optimizers: Sequence[torch.optim.Optimizer] = ()
) -> Tensor:
    """Return the norm of the whole model's gradient, shape (), and scale gradients down to a norm of at most `most`.

    All ranks call it: |g|^2 = sum over ranks of sum over their elements of g_i^2 / copies_i.

    Args:
        parameters: of this rank.
        most: 0 does not scale.
        optimizers: theirs. Compiled ones scale gradients as they read them, and are told by how much.
    """
    settled = [settle(p) for p in parameters if p.grad is not None]
    local = [local_part(g) for g in settled]
    device = local[0].device if local else torch.device("cpu")
    square = torch.zeros((), dtype=torch.float32, device=device)
    if local:
        norms = torch.stack(torch._foreach_norm(local, 2.0, torch.float32))  # noqa: SLF001 - as clip_grad_norm_ does
        copies = torch.tensor([num_copies(g) for g in settled], dtype=torch.float32, device=device)
        square += (norms.square() / copies).sum()
    dist.all_reduce(square)
    norm = square.sqrt()
    if most and local:
        scale = torch.clamp(most / (norm + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_
        folding = [optimizer for optimizer in optimizers if isinstance(optimizer, CompiledAdamW)]
        for optimizer in folding:
            optimizer.scale = scale
        if not folding:
            scale_in_place(local, scale)
    return norm


def settle(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient, summed over the ranks that each hold a part of the sum."""
    gradient = parameter.grad
    assert gradient is not None
    if isinstance(gradient, DTensor) and isinstance(parameter, DTensor):
        wanted: tuple[Placement, ...] = parameter.placements
        if gradient.placements != wanted:
            gradient = gradient.redistribute(placements=wanted)
            parameter.grad = gradient
    return gradient


def num_copies(tensor: Tensor) -> int:
    """Return how many ranks of its mesh hold each element of a tensor."""
    if not isinstance(tensor, DTensor):
        return 1
    mesh = tensor.device_mesh
    return math.prod(mesh.size(i) for i, where in enumerate(tensor.placements) if isinstance(where, Replicate))
