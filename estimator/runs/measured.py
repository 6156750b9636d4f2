"""A measured run in the estimator's own terms, whoever measured it; and what no run can be."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from estimator.formulas.counts import model_flop
from estimator.formulas.machine import Machine
from estimator.runs.logs.read import Log
from estimator.runs.pace import Pace
from estimator.stack.recipe import PRECISIONS, Recipe
from estimator.work.plan import Plan, Plans
from estimator.work.rules import Trainer, reasons
from estimator.work.shape import Shape
from estimator.work.workload import Workload

ANY_SOFTWARE = Trainer(divides_layers=True, underfills=True, counts_ends=True)
"""What runs of any software may do: what was measured did run, whatever torch's schedules ask of a plan."""


class Startup(NamedTuple):
    """One-off seconds of a run; None where its log does not tell them."""

    request_s: float | None = None
    """From asking for the accelerators until they are ready."""
    search_s_per_candidate: float | None = None
    """Compiling and costing one candidate plan."""
    first_step_s: float | None = None
    """The whole first step, once its plan is chosen."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run: what it trained, with which software and plan, on what, and what was measured."""

    name: str
    """Id of its row, or its number where the table has none; a job that ran several plans has one id for all."""
    source: str
    """Whose measurement it is."""
    trainer: str
    """The software that trained."""
    shape: Shape
    """Without adapters: `recipe.shape(shape)` has them."""
    seq_len: int
    machine: Machine
    plan: Plan
    recipe: Recipe
    """Its precision is None where the trainer's usual mixed precision in 16 bits was used, bfloat16 or float16."""
    step_s: float | None
    """Seconds of one optimizer step; None where none was completed or timed."""
    reserved_bytes: float | None
    """Peak that decides an out-of-memory error [bytes per device]."""
    allocated_bytes: float | None
    """Bytes that tensors held, at the peak or between steps, as the source has it [bytes per device]."""
    fits: bool | None
    """It ran, or it ran out of memory; None where it is not known, or not of this plan and recipe."""
    why_unhealthy: str
    """Why nothing is to be learned of its speed; "" where something is."""
    reads_first_stage: bool = False
    """The memory was read on a device of the pipeline's first stage, else on the fullest."""
    assumes: str = ""
    """What of the run its source does not say, and as what it is taken; "" where it says all."""
    step_log_se: float = 0.0
    """Standard error of the logarithm of `step_s`."""
    steps_per_read: int = 1
    """Steps between two reads of the loss, at each of which the host waits for the devices."""
    launch_windows_s: tuple[float, ...] = ()
    """Seconds of single steps that the host took to launch the work, where a log times just that."""
    total_bytes: float | None = None
    """Bytes that all devices together held, where that was read."""
    held_bytes: float | None = None
    """Peak of which it is not said whether it was reserved or held by tensors [bytes per device]."""
    used_bytes: float | None = None
    """What the driver's tool showed: reserved, and contexts and libraries beside [bytes per device]."""
    longest_row: int | None = None
    """Tokens of the longest row, which memory is of, where rows differ and `seq_len` is their mean."""
    alternatives: tuple["Run", ...] = field(default=(), repr=False, compare=False)
    """What else the run may have been, where its source leaves that open."""
    startup: Startup | None = None
    """One-off seconds, where a log tells them."""
    log: Log | None = field(default=None, repr=False, compare=False)
    """What its log says of it, without the lines that contradict it; None of a row of a table."""
    pace: Pace | None = field(default=None, repr=False, compare=False)
    """Of the log's steps."""

    @property
    def model(self) -> str:
        """Name of what was trained."""
        return self.shape.name

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits that tell the run from others: of what was trained how, and what was measured."""
        machine = (self.machine.accelerator.id, self.machine.num_devices, self.machine.num_nodes)
        compiles = () if self.recipe.compiles is None else (self.recipe.compiles,)
        inside = "in backward" if self.recipe.optimizer_in_backward else ""
        away = "offloaded" if self.recipe.offload_activations else ""
        further = (word for word in (inside, away, self.recipe.loss) if word)
        told = (*compiles, *self.recipe.lora_targets, *self.recipe.lora_modules, *further)
        identity = (self.source, self.shape, self.seq_len, *machine, self.plan, self.recipe, *told)
        read = tuple(value for value in (self.held_bytes, self.used_bytes, self.longest_row) if value)
        step_s = self.step_s and float(f"{self.step_s:.9g}")  # the last digits depend on the version of NumPy
        text = repr((*identity, step_s, self.reserved_bytes, self.allocated_bytes, self.fits, *read))
        return sha256(text.encode()).hexdigest()[:10]

    @property
    def all_it_may_be(self) -> tuple["Run", ...]:
        """The run, and what else it may have been."""
        return (self, *self.alternatives)

    @property
    def other_bytes(self) -> float | None:
        """Peak per device that was read otherwise than as reserved."""
        return self.allocated_bytes or self.held_bytes or self.used_bytes

    @property
    def tells_speed(self) -> bool:
        """Whether it was timed, and something is to be learned from that."""
        return self.step_s is not None and not self.why_unhealthy

    @property
    def dp(self) -> int:
        """Data-parallel degree: devices / (stages tp cp)."""
        return self.machine.num_devices // (self.plan.num_stages * self.plan.tp * self.plan.cp)

    @property
    def workload(self) -> Workload:
        """One step of the run, the shape without adapters."""
        rows = self.dp * self.plan.num_micro_batches * self.plan.batch_per_device
        return Workload(self.shape, self.seq_len, rows, num_steps=1)

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens that all devices trained on in a second."""
        return None if self.step_s is None else self.workload.tokens_per_step / self.step_s

    @property
    def peak_flop_per_s(self) -> float:
        """Peak rate of all devices in the run's precision [FLOP/s]."""
        unit = PRECISIONS[self.recipe.precision].matmul if self.recipe.precision else "bf16"
        return self.machine.num_devices * self.machine.accelerator.matmul_flop_per_s(unit)


def refuse_impossible(run: Run) -> str:
    """Return why no such run can have been, "" where it can: its plan, its speed or its memory."""
    return impossible([run])[0]


def impossible(runs: Sequence[Run]) -> list[str]:
    """Return why no such run can have been, of each; "" where it can: its plan, its speed or its memory.

    A plan that divides the work as no software does; a speed beyond the devices' peak, the FLOP being the least that
    the model takes, as `model_flop` counts them; more memory than a device has.
    """
    found = [""] * len(runs)
    groups: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        try:
            workload = run.workload
        except ValueError as error:
            found[i] = str(error)
        else:
            groups[(workload, run.machine.num_devices)].append(i)
    for members in groups.values():
        first = runs[members[0]]
        plans = Plans.of([runs[i].plan for i in members])
        for i, reason in zip(
            members, reasons(plans, first.workload, first.machine.num_devices, ANY_SOFTWARE), strict=True
        ):
            found[i] = f"plan: {reason}" if reason else _impossible_figure(runs[i])
    return found


def _impossible_figure(run: Run) -> str:
    try:
        peak = run.peak_flop_per_s
    except ValueError as error:
        return str(error)
    if run.step_s is not None:
        tokens = run.workload.tokens_per_step
        flop = float(model_flop(tokens, run.seq_len, run.recipe.shape(run.shape)))
        if flop / run.step_s > peak:
            return f"step time: {run.step_s:g} s implies {flop / run.step_s / peak:.0%} of the devices' peak FLOP/s"
    most = run.machine.accelerator.hbm_bytes
    for held in (run.reserved_bytes, run.allocated_bytes, run.held_bytes, run.used_bytes):
        if held is not None and held > most:
            return f"peak memory: {held / 2**30:.1f} GiB is more than the {most / 2**30:.1f} GiB of a device"
    total = run.total_bytes
    if total is not None and total > run.machine.num_devices * most:
        return f"total memory: {total / 2**30:.1f} GiB is more than all devices have together"
    return ""
