from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainer.look_ahead.meter import PURPOSES, Meter


@pytest.fixture
def fake_ranks() -> Iterator[None]:
    """Be the first of eight ranks that answer at once."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    dist.destroy_process_group()


def layers() -> nn.Sequential:
    """Return a few layers of different sizes."""
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64), nn.Linear(64, 1024))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take a training step."""
    model(torch.ones(32, 64)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def tracked(tracker: MemTracker) -> int:
    """Return the peak that one of torch's own trackers found."""
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return int(peak["Total"])


def test_the_peak_of_a_plain_model_is_that_of_torchs_own_tracker() -> None:
    """To the byte, for a step with its optimizer's state already there."""
    with FakeTensorMode():
        model = layers()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        step(model, optimizer)
        meter, tracker = Meter(), MemTracker()
        meter.mark("parameters", model.parameters())
        meter.mark("optimizer", [value for state in optimizer.state.values() for value in state.values()])
        tracker.track_external(model, optimizer)
        with meter:
            step(model, optimizer)
        with tracker:
            step(model, optimizer)
    assert sum(meter.peak().values()) == tracked(tracker) > 0


@pytest.mark.usefixtures("fake_ranks")
def test_the_peak_of_a_sharded_model_is_that_of_torchs_own_tracker() -> None:
    """To the byte, gathered parameters coming and going."""
    mesh = init_device_mesh("cpu", (8,))
    with FakeTensorMode():
        model = layers()
        for layer in model:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        step(model, optimizer)
        meter, tracker = Meter(), FSDPMemTracker(model, optimizer)
        meter.mark("parameters", model.parameters())
        meter.mark("optimizer", [value for state in optimizer.state.values() for value in state.values()])
        with meter:
            step(model, optimizer)
        with tracker:
            step(model, optimizer)
    assert sum(meter.peak().values()) == tracked(tracker) > 0


def test_a_peak_is_the_most_that_is_alive_at_once() -> None:
    """What is freed before counts no more, views count once, and an emptied storage counts nothing."""
    with Meter() as meter:
        first = torch.zeros(100)
        first = first.view(10, 10)[2:]
        del first
        second = torch.zeros(50)
        second.untyped_storage().resize_(0)
        third = torch.zeros(90)
    assert sum(meter.peak().values()) == 400
    del second, third


def test_what_a_tensor_turns_out_to_be_for_it_has_been_from_the_start() -> None:
    """A mark that comes after the peak still says what the peak was made of."""
    with Meter() as meter:
        kept = torch.zeros(25)
        _ = torch.zeros(10)
        meter.mark("gradients", [kept, None])
    assert meter.peak() == dict.fromkeys(PURPOSES, 0) | {"gradients": 100, "activations": 40}


def test_backward_passes_make_temporary_tensors_and_forward_passes_activations() -> None:
    """With a repeated forward pass, the peak of the backward pass holds activations again."""
    for use_checkpoint in (False, True):
        weight = torch.ones(64, 64, requires_grad=True)

        def layer(x: torch.Tensor, weight: torch.Tensor = weight) -> torch.Tensor:
            return (x @ weight).tanh().sin().cos()

        with Meter() as meter:
            x = torch.ones(64, 64)
            y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if use_checkpoint else layer(x)
            before = y.sum()
            del y
            meter.reset_peak()
            before.backward()
            peak = meter.peak()
        assert peak["temporary"] > 0
        assert peak["activations"] >= 3 * x.nbytes  # x, and what sin and cos keep


def test_resizing_is_followed_only_while_the_meter_is_on() -> None:
    """The method of storages is torch's own before and after."""
    plain = torch.UntypedStorage.resize_
    with Meter():
        assert torch.UntypedStorage.resize_ is not plain
    assert torch.UntypedStorage.resize_ is plain
