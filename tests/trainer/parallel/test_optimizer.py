import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

from tests.support.ranks import run_ranks
from trainer.parallel.mesh import World, start_processes
from trainer.parallel.optimizer import (
    LEAST_RATE,
    OptimizerConfig,
    clip_gradients,
    learning_rate,
    make_optimizers,
    num_copies,
    set_rate,
)


@given(
    steps=st.integers(1, 200),
    warmup=st.integers(0, 250),
    decay=st.sampled_from(["constant", "cosine"]),
    lr=st.floats(1e-8, 1.0),
)
def test_rate_rises_then_never(steps: int, warmup: int, decay: str, lr: float) -> None:
    """The rate rises in a line to `lr`, and afterwards never rises again, nor falls below a tenth."""
    config = OptimizerConfig(lr=lr, warmup_steps=warmup, decay=decay)
    rates = [learning_rate(step, steps, config) for step in range(1, steps + 1)]
    rising, rest = rates[:warmup], rates[warmup:]
    assert rising == pytest.approx([lr * (i + 1) / warmup for i in range(len(rising))])
    assert all(a >= b for a, b in itertools.pairwise(rest))
    assert all(LEAST_RATE * lr * (1 - 1e-9) <= rate <= lr for rate in rest)


def test_cosine_is_torchs() -> None:
    """The cosine is that of torch's own scheduler, one step ahead: torch's first rate is of step 0."""
    config = OptimizerConfig(lr=0.5, decay="cosine")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.5 * LEAST_RATE)
    for step in range(1, 11):
        optimizer.step()
        scheduler.step()
        assert learning_rate(step, 10, config) == pytest.approx(scheduler.get_last_lr()[0])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr": -1.0}, "lr: -1.0 is not from 0 to below 1000; give a value in that range"),
        ({"lr": math.nan}, "lr: nan is not from 0 to below 1000; give a value in that range"),
        ({"weight_decay": 1.0}, "weight-decay: 1.0 is not from 0 to below 1; give a value in that range"),
        ({"beta1": 1.0}, "beta1: 1.0 is not from 0 to below 1; give a value in that range"),
        ({"beta2": -0.1}, "beta2: -0.1 is not from 0 to below 1; give a value in that range"),
        ({"clip_norm": math.inf}, r"clip-norm: inf is not from 0 to below 1e\+06; give a value in that range"),
        ({"warmup_steps": -1}, "warmup-steps: -1 is negative; give 0 or more"),
        ({"decay": "linear"}, "decay: 'linear' is not one of constant, cosine"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], said: str) -> None:
    """Each value has a range, and says it."""
    with pytest.raises(ValueError, match=f"^{said}$"):
        OptimizerConfig(**values)  # type: ignore[arg-type]


def test_optimizers_have_the_rate_that_is_set() -> None:
    """There is an optimizer per chunk, with the configured decay, and all take the rate of the step."""
    config = OptimizerConfig(lr=1.0, weight_decay=0.25, beta1=0.5, beta2=0.75)
    optimizers = make_optimizers([nn.Linear(2, 2), nn.Linear(3, 3)], config)
    set_rate(optimizers, 0.125)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert [(g["lr"], g["weight_decay"], g["betas"]) for g in groups] == [(0.125, 0.25, (0.5, 0.75))] * 2


def gradients() -> list[torch.Tensor]:
    """Return the gradients of a whole model, the same on all ranks."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)]


def clipped(most: float) -> tuple[float, float, list[torch.Tensor], list[torch.Tensor]]:
    """Return norm and gradients after clipping, as torch does for the whole model, and by ranks that share it."""
    start_processes(World.from_environment(), torch.device("cpu"))
    whole = [nn.Parameter(torch.zeros_like(g)) for g in gradients()]
    for parameter, gradient in zip(whole, gradients(), strict=True):
        parameter.grad = gradient.clone()
    expected = nn.utils.clip_grad_norm_(whole, most or math.inf)
    mesh = init_device_mesh("cpu", (2,))
    shared = []
    for gradient, placement in zip(gradients(), [Shard(1), Replicate()], strict=True):
        shared.append(nn.Parameter(distribute_tensor(torch.zeros_like(gradient), mesh, [placement])))
        shared[-1].grad = distribute_tensor(gradient, mesh, [placement])
    found = clip_gradients(shared, most)
    kept = [p.grad.full_tensor() for p in shared]  # type: ignore[union-attr]
    return float(expected), float(found), [p.grad for p in whole if p.grad is not None], kept


@pytest.mark.slow
@pytest.mark.parametrize("most", [0.0, 0.5, 100.0])
def test_clipping_is_torchs(most: float) -> None:
    """Norm and scale are those of `clip_grad_norm_` on the whole model; an element on several ranks counts once."""
    for expected, found, whole, shared in run_ranks(2, clipped, most):
        assert found == pytest.approx(expected, rel=1e-6)
        for a, b in zip(whole, shared, strict=True):
            torch.testing.assert_close(a, b)


def settled() -> tuple[float, int, int, int]:
    """Return the norm of a gradient that ranks hold parts of the sum of, and numbers of copies."""
    start_processes(World.from_environment(), torch.device("cpu"))
    mesh = init_device_mesh("cpu", (2,))
    ones = distribute_tensor(torch.ones(4), mesh, [Replicate()])
    parameter = nn.Parameter(ones)
    parameter.grad = ones.from_local(torch.ones(4), mesh, [Partial()], run_check=False)
    norm = float(clip_gradients([parameter], 0.0))
    sharded = distribute_tensor(torch.ones(4), mesh, [Shard(0)])
    return norm, num_copies(ones), num_copies(sharded), num_copies(torch.ones(4))


@pytest.mark.slow
def test_parts_of_a_sum_are_summed_first() -> None:
    """A gradient of which each rank holds a part is summed before its norm: ones of two ranks are twos."""
    assert run_ranks(2, settled) == [(4.0, 2, 1, 1)] * 2


@pytest.mark.slow
def test_no_gradients_have_no_norm() -> None:
    """A rank that has nothing to clip still takes part, with 0."""
    assert run_ranks(1, empty) == [0.0]


def empty() -> float:
    """Return the norm of nothing."""
    start_processes(World(), torch.device("cpu"))
    return float(clip_gradients([nn.Parameter(torch.zeros(2))], 1.0))
