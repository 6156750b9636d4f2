"""One step of any rank of a plan at full size, without its devices and without memory: what the rank would hold.

The trainer's own code runs, on tensors that have a shape and no values (`FakeTensorMode`), in a process group that
answers at once. Tensors are counted as the program holds them; what the allocator rounds and fragments, the libraries'
own workspaces and the context of the device come on top.
"""

import copy
import gc
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
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedConfig

from estimator.work.plan import Plan
from trainer.build import build_stages
from trainer.config import TrainConfig
from trainer.look_ahead.compiled import counted_as_compiled
from trainer.look_ahead.meter import Meter
from trainer.look_ahead.phases import follow_phases
from trainer.look_ahead.sizes import Measured, Size, extrapolated, measured_sizes, size_of
from trainer.parallel.loss import take_loss
from trainer.parallel.mesh import Place, make_place
from trainer.parallel.model import Stage
from trainer.parallel.optimizer import clip_gradients, make_optimizers, trained
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
    phase: str
    """Of the step in which that is (`phases`)."""
    compiled: bool
    """Whether its layers were counted as compiled ones."""
    num_flop: int
    """Of the step, as torch counts: an attention kernel computes the masked scores too."""
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


def dry_run(
    config: TrainConfig,
    model: PreTrainedConfig,
    *,
    world_size: int,
    local_size: int,
    rank: int,
    in_full: bool = False,
) -> DryRun:
    """Return what a rank of a plan holds at the peak of a step whose optimizer has its state, as any but the first.

    Where layers are alike and many, a few of them and a few micro-batches are run (`sizes.measured_sizes`), and what
    the whole holds is exact all the same: in each phase of a step it is bilinear in both.

    Args:
        config: the run; layers run compiled where it compiles.
        model: the whole model's config.
        world_size: ranks of the run.
        local_size: ranks per node.
        rank: which one to be.
        in_full: run all layers and micro-batches, which takes minutes.
    """
    started = time.perf_counter()
    check_dry_run(config, world_size, rank)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    torch.compiler.reset()  # of the shapes of another run
    _clear_sharding_prop_cache()  # DTensor's, which knows process groups of another run by name
    gc.collect()
    gc.disable()  # as the loop does; what a tensor is counted by is its references alone
    try:
        place = make_place(config.plan, world_size, local_size, DEVICE.type)
        whole = size_of(config.plan, model, place.stage)
        alike = len(set(getattr(model, "layer_types", None) or ["the same"])) == 1
        measured = [whole] if in_full else measured_sizes(config.plan, whole, layers_are_alike=alike)
        phases, num_flop = extrapolated({size: _measure(config, model, place, size) for size in measured}, whole)
    finally:
        gc.enable()
        dist.destroy_process_group()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    fullest = max(phases, key=lambda name: sum(phases[name].values()))
    seconds = time.perf_counter() - started
    stages, compiled = config.plan.num_stages, config.compiles
    return DryRun(rank, place.stage, stages, phases[fullest], fullest, compiled, num_flop, seconds, resident)


def _measure(config: TrainConfig, model: PreTrainedConfig, place: Place, size: Size) -> Measured:
    """Run a step of so many layers in each chunk of the pipeline, and of so many micro-batches."""
    plan = replace(config.plan, num_micro_batches=size.micro_batches)
    model = copy.deepcopy(model)
    if size.layers != size_of(config.plan, model, place.stage).layers:
        plan = replace(plan, first_layers=0, last_layers=0)
        model.num_hidden_layers = size.layers * plan.num_stages * plan.virtual_stages
        if getattr(model, "layer_types", None):
            model.layer_types = [model.layer_types[0]] * model.num_hidden_layers
    config = replace(config, plan=plan)
    stages, meter = build_stages(model, replace(config, compiles=False), place), Meter()
    if config.compiles:
        for layer in (layer for stage in stages for _, layer in stage.layers):
            layer.compile(backend=counted_as_compiled)
        for stage in stages:
            if stage.chunks_loss:
                take_loss(stage.lm_head, compiles=True, backend=counted_as_compiled)
    marks = _gradients_marked(meter), _shapes_unseen(meter)
    with FakeTensorMode(allow_non_fake_inputs=True), meter, _static_shapes(), marks[0], marks[1]:
        for stage in stages:
            stage.materialize(DEVICE)
        follow_phases(stages, meter)
        step = _Step(config, stages, place, meter)
        step.give_optimizer_its_state()
        step.take()
    return Measured(meter.peaks(), meter.num_flop)


class _Step:
    """A step as the loop takes it, with what its tensors are for."""

    def __init__(self, config: TrainConfig, stages: Sequence[Stage], place: Place, meter: Meter) -> None:
        self.config, self.stages, self.place, self.meter = config, stages, place, meter
        self.parameters = [parameter for stage in stages for parameter in trained(stage)]
        self.optimizers = make_optimizers(stages, config.optimizer)
        for stage in stages:
            meter.mark("parameters", [*stage.parameters(), *stage.buffers()])

    def give_optimizer_its_state(self) -> None:
        """Take an optimizer's step, which makes its state, and measure from here on."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._update()
        gc.collect()
        self.meter.reset_peak()
        self.meter.num_flop = 0

    def take(self) -> None:
        meter, length, plan = self.meter, self.config.data.seq_len, self.config.plan
        dtype = compute_dtype(self.config.precision)
        passes = Passes(self.stages, plan, self.place, seq_len=length, dtype=dtype, device=DEVICE)
        passes.train(_rows(plan, length), num_targets=1)
        meter.mark("gathered_parameters", _gathered(self.stages))
        meter.mark("gradients", [parameter.grad for parameter in self.parameters])
        meter.enter_phase("clip")
        clip_gradients(self.parameters, self.config.optimizer.clip_norm)
        meter.mark("gradients", [parameter.grad for parameter in self.parameters])  # tensor-parallel sums are new ones
        self._update()

    def _update(self) -> None:
        self.meter.enter_phase("optimizer")
        for optimizer in self.optimizers:
            with self.meter.optimizer_step():
                optimizer.step()
            state = [value for state in optimizer.state.values() for value in state.values()]
            self.meter.mark("optimizer", state)
            optimizer.zero_grad(set_to_none=True)


def _rows(plan: Plan, seq_len: int) -> Rows:
    count = plan.num_micro_batches * plan.batch_per_device
    ids = torch.zeros(count, seq_len, dtype=torch.long, device=DEVICE)
    return Rows(ids, torch.zeros_like(ids), torch.arange(seq_len, device=DEVICE).repeat(count, 1))


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
def _shapes_unseen(meter: Meter) -> Iterator[None]:
    """Count nothing of the whole tensors without memory on which DTensor finds the shape of an operation's result."""
    plain = ShardingPropagator._propagate_tensor_meta_non_cached  # noqa: SLF001

    def unseen(propagator: ShardingPropagator, schema: Any) -> Any:
        with meter.looking_away():
            return plain(propagator, schema)

    ShardingPropagator._propagate_tensor_meta_non_cached = unseen  # type: ignore[method-assign,assignment] # noqa: SLF001
    try:
        yield
    finally:
        ShardingPropagator._propagate_tensor_meta_non_cached = plain  # type: ignore[method-assign] # noqa: SLF001


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
