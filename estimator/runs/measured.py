"""A measured run of a published table, in the estimator's own terms; and what no run can be."""

from dataclasses import dataclass
from hashlib import sha256

from estimator.formulas.counts import model_flop
from estimator.formulas.machine import Machine
from estimator.work.plan import Plan, Plans
from estimator.stack.recipe import PRECISIONS, Recipe
from estimator.work.rules import Trainer, reasons
from estimator.work.shape import Shape
from estimator.work.workload import Workload


@dataclass(frozen=True, slots=True)
class Case:
    """A run: what it trained, with which software and plan, on what, and what was measured."""

    name: str
    """Id of its row, or its number where the table has none; a job that ran several plans has one id for all."""
    source: str
    """Whose measurement it is."""
    trainer: str
    """The software that trained."""
    model: str
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
    """Bytes that tensors held; in nanotron's table not at the peak but between steps, in others at the peak."""
    fits: bool | None
    """It ran, or it ran out of memory; None where it is not known, or not of this plan and recipe."""
    why_unhealthy: str
    """Why nothing is to be learned from the run; "" where something is."""
    reads_first_stage: bool = False
    """The memory was read on a device of the pipeline's first stage, else on the fullest."""
    assumes: str = ""
    """What of the run its table does not say, and as what it is taken; "" where it says all."""

    @property
    def digest(self) -> str:
        """Ten hexadecimal digits that tell the run from others: of what was trained how, and what was measured."""
        machine = (self.machine.accelerator.id, self.machine.num_devices, self.machine.num_nodes)
        identity = (self.source, self.shape, self.seq_len, *machine, self.plan, self.recipe)
        text = repr((*identity, self.step_s, self.reserved_bytes, self.allocated_bytes, self.fits))
        return sha256(text.encode()).hexdigest()[:10]

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


def refuse_impossible(case: Case) -> str:
    """Return why no such run can have been, "" where it can: its plan, its speed or its memory.

    The FLOP are the least that the model takes, as `model_flop` counts them.
    """
    workload = case.workload
    trainer = Trainer(
        divides_layers=case.trainer.startswith("nanotron"),
        underfills=True,
        counts_ends=case.trainer.startswith(("megatron", "mlperf")),
    )
    (reason,) = reasons(Plans.of([case.plan]), workload, case.machine.num_devices, trainer)
    if reason:
        return f"plan: {reason}"
    peak = case.peak_flop_per_s
    if case.step_s is not None:
        flop = float(model_flop(workload.tokens_per_step, case.seq_len, case.recipe.shape(case.shape)))
        if flop / case.step_s > peak:
            return f"step time: {case.step_s:g} s implies {flop / case.step_s / peak:.0%} of the devices' peak FLOP/s"
    for held in (case.reserved_bytes, case.allocated_bytes):
        most = case.machine.accelerator.hbm_bytes
        if held is not None and held > most:
            return f"peak memory: {held / 2**30:.1f} GiB is more than the {most / 2**30:.1f} GiB of a device"
    return ""
