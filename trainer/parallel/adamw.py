"""AdamW that goes over a large weight in one compiled kernel, which reads and writes each value once, and clips too.

Torch's fused kernel goes over many tensors at once, at 2.7 of the 4.2 TB/s that an H200's copies reach in 16 bits
(reports/measured/h200), and wants gradients scaled before.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

WIDTH = 1024
"""Weights are seen as rows of so many elements, so that one kernel, compiled for any number of rows, loads 16 bytes at
a time; others go through torch's kernel."""

LEAST = 2**22
"""Elements of a large weight.

measured: a call takes the host 45 us (200 small weights, torch 2.11 and 2.13 on an x86-64 processor), in which an H200
passes over 13 million weights of 16 bits. The host comes to the optimizer ahead of the device; of a third of that size,
the matrices of a model of 7 billion parameters, it stays there.
"""


def update(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    scale: Tensor,
    rate: Tensor,
    root: Tensor,
    kept: Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """Step a weight and its moments in place, in 32 bits between the reads and the writes.

    theta <- (1 - lr lambda) theta - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + epsilon)
    (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, their eta_t alpha written lr)

    Args:
        weight: theta.
        gradient: before its scale.
        mean: m.
        square: v.
        scale: of the gradient; shape (), as the three that follow.
        rate: lr / (1 - beta1^t).
        root: sqrt(1 - beta2^t).
        kept: 1 - lr lambda.
        beta1: of m.
        beta2: of v.
        epsilon: beside the root.
    """
    g = gradient.float() * scale
    m = beta1 * mean.float() + (1.0 - beta1) * g
    v = beta2 * square.float() + (1.0 - beta2) * g * g
    weight.copy_(kept * weight.float() - rate * m / (v.sqrt() / root + epsilon))
    mean.copy_(m)
    square.copy_(v)


class CompiledAdamW(torch.optim.AdamW):
    """The same steps and the same state as torch's; the count of steps is one tensor that all weights share."""

    def __init__(self, parameters: Iterable[nn.Parameter], **options: Any) -> None:
        """Take the arguments of torch's."""
        super().__init__(parameters, fused=True, **options)
        self.scale: Tensor | None = None
        """Of the gradients of the next step, where they are clipped; shape ()."""
        self._update: Callable[..., None] = torch.compile(update, fullgraph=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step all weights that have gradients, which are left as they are or scaled."""
        assert closure is None
        for group in self.param_groups:
            stepped = [p for p in group["params"] if p.grad is not None]
            if stepped:
                self._step_group(group, stepped, self._count(stepped))
        self.scale = None

    def _count(self, stepped: list[nn.Parameter]) -> Tensor:
        """Return the number of the step, shape (), in the state of every weight, which is made where there is none."""
        first = self.state[stepped[0]]
        count: Tensor = first.get("step", torch.zeros((), device=stepped[0].device)) + 1.0
        for parameter in stepped:
            state = self.state[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                if name not in state:
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["step"] = count
        return count

    def _step_group(self, group: dict[str, Any], stepped: list[nn.Parameter], count: Tensor) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        one, wide = torch.ones((), device=count.device), count.double()
        scale = one if self.scale is None else self.scale
        rate, root = (lr / (1.0 - beta1**wide)).float(), (1.0 - beta2**wide).sqrt().float()
        kept = one * (1.0 - lr * group["weight_decay"])
        rest = []
        for parameter in stepped:
            state = self.state[parameter]
            gradient = parameter.grad
            assert gradient is not None
            own = [local_part(x) for x in (parameter, gradient, state["exp_avg"], state["exp_avg_sq"])]
            if own[0].numel() < LEAST or own[0].numel() % WIDTH or not all(x.is_contiguous() for x in own):
                rest.append(own)
                continue
            rows = (x.view(-1, WIDTH) for x in own)
            self._update(*rows, scale, rate, root, kept, beta1, beta2, group["eps"])
        if rest:
            self._step_rest(group, rest, count)

    def _step_rest(self, group: dict[str, Any], rest: list[list[Tensor]], count: Tensor) -> None:
        weights, gradients, means, squares = (list(each) for each in zip(*rest, strict=True))
        if self.scale is not None:
            scale_in_place(gradients, self.scale)
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            gradients,
            means,
            squares,
            [],
            list((count - 1.0).repeat(len(rest)).unbind()),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def scale_in_place(gradients: Sequence[Tensor], scale: Tensor) -> None:
    """Multiply gradients by a number, shape (), in their own types: by one of another, each element would be cast."""
    for dtype in {gradient.dtype for gradient in gradients}:
        torch._foreach_mul_([gradient for gradient in gradients if gradient.dtype == dtype], scale.to(dtype))


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
