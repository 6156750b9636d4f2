"""One step of any rank of a plan at full size, without its devices and without memory: what the rank would hold.

The trainer's own code runs, on tensors that have a shape and no values (`FakeTensorMode`), in a process group that
answers at once. Tensors are counted as the program holds them; what the allocator rounds and fragments, the libraries'
own workspaces and the context of the device come on top.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.pipelining._utils import InferenceMode
from torch.distributed.pipelining.schedules import _PipelineSchedule
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedConfig

from estimator.work.plan import Plan
from trainer.build import build_stages
from trainer.config import TrainConfig
from trainer.look_ahead.meter import Meter
from trainer.parallel.mesh import Place, make_place
from trainer.parallel.model import Stage
from trainer.parallel.optimizer import clip_gradients, make_optimizers
from trainer.parallel.parallelize import compute_dtype
from trainer.parallel.pipeline import Passes, Rows

DEVICE = torch.device("cpu")
"""Of the fake tensors: torch fakes no accelerator that it was not built for, and sizes do not depend on it."""

KERNELS = ("sdpa", "eager")
"""Attention that runs on fake tensors."""


@dataclass(frozen=True)
class DryRun:
    """What one rank holds at the fullest moment of a step."""

    rank: int
    stage: int
    num_stages: int
    num_bytes: dict[str, int]
    """By purpose (`meter.PURPOSES`)."""
    seconds: float
    """That the dry run took."""
    resident_bytes: int
    """Memory of the process that it took."""

    @property
    def total_bytes(self) -> int:
        """Bytes at the peak."""
        return sum(self.num_bytes.values())


def stage_ranks(plan: Plan, world_size: int) -> list[int]:
    """Return a rank of the first, the second and the last stage, which differ in what they hold; the fullest shards.

    >>> stage_ranks(Plan(num_stages=4), world_size=32)
    [0, 8, 24]
    """
    each = world_size // plan.num_stages
    return [stage * each for stage in sorted({0, min(1, plan.num_stages - 1), plan.num_stages - 1})]


def check_dry_run(config: TrainConfig, world_size: int, rank: int | None) -> None:
    """Refuse what fake tensors cannot stand for.

    Raises:
        ValueError: the rank is none of the run's, or the attention's kernel takes no fake tensors.
    """
    if rank is not None and not 0 <= rank < world_size:
        raise ValueError(f"rank: {rank} is none of {world_size} ranks; give one from 0 to {world_size - 1}")
    if config.attention not in KERNELS:
        raise ValueError(
            f"attention: {config.attention} cannot be run dry, its kernel takes only tensors of a device; give "
            "--attention sdpa, which keeps the same bytes where it runs fused"
        )


def dry_runs(
    config: TrainConfig,
    model: PreTrainedConfig,
    *,
    world_size: int,
    local_size: int,
    ranks: Sequence[int],
    processes: int = 2,
) -> list[DryRun]:
    """Run ranks dry, each in a process of its own, a few at a time, forked from one that has imported all of this."""
    run = partial(dry_run, config, model, world_size=world_size, local_size=local_size)
    count = min(processes, len(ranks))
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(count, mp_context=context, max_tasks_per_child=1) as pool:
        return [future.result() for future in [pool.submit(run, rank=rank) for rank in ranks]]


def dry_run(config: TrainConfig, model: PreTrainedConfig, *, world_size: int, local_size: int, rank: int) -> DryRun:
    """Return what a rank of a plan holds at the peak of its second step, as every later one.

    Layers run as they are written; compiled ones may keep less. The process is in no process group before and after.

    Args:
        config: the run.
        model: the whole model's config.
        world_size: ranks of the run.
        local_size: ranks per node.
        rank: which one to be.
    """
    started = time.perf_counter()
    check_dry_run(config, world_size, rank)
    config = replace(config, compiles=False)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        place = make_place(config.plan, world_size, local_size, DEVICE.type)
        stages = build_stages(model, config, place)
        meter = Meter()
        with FakeTensorMode(allow_non_fake_inputs=True), meter, _static_shapes(), _gradients_marked(meter):
            for stage in stages:
                stage.materialize(DEVICE)
            step = _Step(config, stages, place, meter)
            step.take(_shortest(config.plan))  # DTensor finds shapes on whole tensors once; optimizers get their state
            meter.reset_peak()
            step.take(config.plan)
    finally:
        dist.destroy_process_group()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - started
    return DryRun(rank, place.stage, config.plan.num_stages, meter.peak(), seconds, resident)


class _Step:
    """A step as the loop takes it, with what its tensors are for."""

    def __init__(self, config: TrainConfig, stages: Sequence[Stage], place: Place, meter: Meter) -> None:
        self.config, self.stages, self.place, self.meter = config, stages, place, meter
        self.parameters = [parameter for stage in stages for parameter in stage.parameters()]
        self.optimizers = make_optimizers(stages, config.optimizer)
        meter.mark("parameters", [*self.parameters, *(buffer for stage in stages for buffer in stage.buffers())])

    def take(self, plan: Plan) -> None:
        meter, length = self.meter, self.config.data.seq_len
        dtype = compute_dtype(self.config.precision)
        passes = Passes(self.stages, plan, self.place, seq_len=length, dtype=dtype, device=DEVICE)
        passes.train(_rows(plan, length), num_targets=1)
        meter.mark("gathered_parameters", _gathered(self.stages))
        meter.mark("gradients", [parameter.grad for parameter in self.parameters])
        clip_gradients(self.parameters, self.config.optimizer.clip_norm)
        meter.mark("gradients", [parameter.grad for parameter in self.parameters])  # tensor-parallel sums are new ones
        for optimizer in self.optimizers:
            with meter.optimizer_step():
                optimizer.step()
            meter.mark("optimizer", [value for state in optimizer.state.values() for value in state.values()])
            optimizer.zero_grad(set_to_none=True)


def _rows(plan: Plan, seq_len: int) -> Rows:
    count = plan.num_micro_batches * plan.batch_per_device
    ids = torch.zeros(count, seq_len, dtype=torch.long, device=DEVICE)
    return Rows(ids, torch.zeros_like(ids), torch.arange(seq_len, device=DEVICE).repeat(count, 1))


def _shortest(plan: Plan) -> Plan:
    """Return a plan of as few micro-batches as every schedule takes."""
    return replace(plan, num_micro_batches=min(plan.num_micro_batches, plan.num_stages))


# --- what FSDP2 and the pipeline keep to themselves -------------------------------------------------------------------


def _sharded(stages: Sequence[Stage]) -> Iterator[Any]:
    """Yield FSDP2's record of each parameter."""
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, FSDPModule):
                group = module._get_fsdp_state()._fsdp_param_group  # noqa: SLF001 - as torch's own FSDPMemTracker
                yield from group.fsdp_params if group is not None else ()


def _gathered(stages: Sequence[Stage]) -> list[Tensor]:
    """Return the gathered parameters; their storages are emptied and filled again, never replaced."""
    return [p._unsharded_param for p in _sharded(stages) if hasattr(p, "_unsharded_param")]  # noqa: SLF001


@contextmanager
def _gradients_marked(meter: Meter) -> Iterator[None]:
    """Mark whole gradients as such: they are gone when the step ends, or summed on in 32 bits."""
    plain = FSDPParamGroup.post_backward

    def post_backward(group: FSDPParamGroup, *unused: Any) -> None:
        def mark() -> None:
            for parameter in group.fsdp_params:
                whole = getattr(parameter, "_unsharded_param", None)
                meter.mark(
                    "gradients", [parameter.unsharded_accumulated_grad, whole.grad if whole is not None else None]
                )

        mark()
        plain(group, *unused)
        mark()

    FSDPParamGroup.post_backward = post_backward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        FSDPParamGroup.post_backward = plain  # type: ignore[method-assign]


@contextmanager
def _static_shapes() -> Iterator[None]:
    """Let stages take the shapes that they were given, without the vote over it, whose result no fake tensor holds."""
    plain = _PipelineSchedule._warmup_p2p  # noqa: SLF001

    def agree(_: _PipelineSchedule, stages: Sequence[Any], *__: Any) -> None:
        for stage in stages:
            stage._inference_mode = InferenceMode.STATIC  # noqa: SLF001

    _PipelineSchedule._warmup_p2p = agree  # type: ignore[method-assign,assignment] # noqa: SLF001
    try:
        yield
    finally:
        _PipelineSchedule._warmup_p2p = plain  # type: ignore[method-assign] # noqa: SLF001
