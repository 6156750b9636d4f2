"""What torch's tracker counts beside what the formulas do, over a grid: `make memory-grid`.

Each row is a rank's peak in a dry run (`trainer.look_ahead.dry_run`). Rows come to the file as they are counted, those
that it has already are not counted again, and predictions are those of today's formulas: delete a row to count it anew.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import LlamaConfig

from estimator.formulas.inputs import StepInputs, step_inputs
from estimator.formulas.machine import Machine
from estimator.stack.recipe import Recipe
from estimator.stack.stack import load_premises
from estimator.work.plan import Plan, parse_plan
from estimator.work.shape import shape_from_config
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from hardware.units import MIB
from trainer.config import TrainConfig
from trainer.data.dataset import DataConfig
from trainer.look_ahead.dry_run import DryRun, dry_run
from trainer.look_ahead.meter import PURPOSES
from trainer.look_ahead.verify import Verified, verify

FOLDER = Path("reports/validation")
ROWS = FOLDER / "memory_grid.csv"
CASE = ("model", "plan", "precision", "seq_len", "compiled", "devices", "rank")
COLUMNS = (*CASE, "stage", "phase", *PURPOSES, "flop", "seconds")
PER_NODE = 8


def llama(hidden: int, ffn: int, heads: int, kv_heads: int, layers: int, vocab: int, *, ties: bool) -> LlamaConfig:
    """Return a model's config."""
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        vocab_size=vocab,
        max_position_embeddings=32768,
        tie_word_embeddings=ties,
    )


MODELS = {
    "100m": llama(640, 1792, 10, 10, 12, 32000, ties=False),
    "400m-tied": llama(1024, 2816, 16, 16, 24, 32000, ties=True),
    "500m-tied": llama(896, 4864, 14, 2, 24, 151936, ties=True),
    "1b": llama(2048, 8192, 32, 8, 16, 128256, ties=False),
    "1b-tied": llama(2048, 8192, 32, 8, 16, 128256, ties=True),
    "3b": llama(3072, 8192, 24, 8, 28, 128256, ties=False),
    "7b-mha": llama(4096, 11008, 32, 32, 32, 32000, ties=False),
    "7b": llama(4096, 14336, 32, 8, 32, 32000, ties=False),
    "8b": llama(4096, 14336, 32, 8, 32, 128256, ties=False),
    "13b-mha": llama(5120, 13824, 40, 40, 40, 32000, ties=False),
    "34b": llama(8192, 22016, 64, 8, 48, 32000, ties=False),
    "70b": llama(8192, 28672, 64, 8, 80, 128256, ties=False),
}
"""By parameters; `mha`: a key and a value for each query head."""


@dataclass(frozen=True)
class Case:
    """A rank of a run."""

    model: str
    plan: str
    precision: str = "bf16-mixed"
    seq_len: int = 2048
    compiled: bool = False
    devices: int = 8
    rank: int = 0

    @property
    def parsed(self) -> Plan:
        """Return the plan."""
        return parse_plan(self.plan)

    @property
    def config(self) -> TrainConfig:
        """Return the run."""
        data = DataConfig(seq_len=self.seq_len)
        return TrainConfig(plan=self.parsed, data=data, precision=self.precision, compiles=self.compiled)

    @property
    def key(self) -> tuple[str, ...]:
        """Return what tells the row from others."""
        return tuple(str(getattr(self, name)) for name in CASE)

    @property
    def inputs(self) -> StepInputs:
        """Return what the rank is predicted from."""
        catalog = load_catalog()
        machine = Machine.of(catalog, catalog.flavor_of("h100-sxm-80gb", self.devices))
        shape = shape_from_config(MODELS[self.model].to_dict(), self.model)
        recipe = Recipe(precision=self.precision, compiles=self.compiled)
        workload = Workload(shape, self.seq_len, self.parsed.batch_per_device * self.devices, 1)
        return step_inputs(self.parsed, workload, machine, recipe.habits(load_premises("reference").habits, shape))


def cases() -> Iterator[Case]:  # noqa: C901, PLR0912 - a list, told in loops
    """Yield the grid, what tells most first; tensor parallelism runs all layers, and so few."""
    one = "num_micro_batches=1"
    two = "num_micro_batches=2"
    for precision in ("bf16-mixed", "bf16", "fp32"):
        yield Case("7b", one, precision)
    for compiled in (True, False):
        yield Case("1b", one, compiled=compiled)
        yield Case("1b", f"{two},recomputation=full", compiled=compiled)
    for zero in (0, 1, 2, 3):
        for text in (one, two):
            yield Case("7b", f"{text},zero_stage={zero},recomputation=full")
            yield Case("1b", f"{text},zero_stage={zero}")
    for rank in (0, 4, 12):
        yield Case("7b", "num_stages=4,num_micro_batches=4", devices=16, rank=rank)
    for rank in (0, 4):
        yield Case("8b", "num_stages=2,num_micro_batches=3,recomputation=full", rank=rank)
        yield Case("1b", "num_stages=2,num_micro_batches=4,schedule=gpipe", rank=rank)
        yield Case("1b", "num_stages=2,num_micro_batches=4,schedule=interleaved,virtual_stages=2", rank=rank)
        yield Case("1b", "num_stages=2,num_micro_batches=4,schedule=zero_bubble", rank=rank)
        yield Case("1b", "num_stages=2,num_micro_batches=4,zero_stage=1", rank=rank)
        yield Case("1b", "num_stages=2,num_micro_batches=4", compiled=True, rank=rank)
    for tp in (2, 4, 8):
        yield Case("100m" if tp == 2 else "1b", f"{one},tp={tp}", devices=16)
        yield Case("1b", f"{two},tp={tp},recomputation=full", devices=16)
        yield Case("1b", f"{one},tp={tp},sequence_parallel=false", devices=16)
    for precision in ("bf16", "fp32"):
        yield Case("1b", one, precision, compiled=True)
        yield Case("1b", f"{one},recomputation=full", precision)
        yield Case("1b", f"{two}", precision)
        yield Case("1b", "num_stages=2,num_micro_batches=3", precision, rank=0)
        yield Case("1b", "num_stages=2,num_micro_batches=3", precision, rank=4)
    for name in ("100m", "400m-tied", "500m-tied", "1b-tied", "3b", "7b-mha", "13b-mha"):
        yield Case(name, one)
        yield Case(name, f"{two},recomputation=full")
    for name in ("100m", "500m-tied", "7b-mha", "8b"):
        yield Case(name, one, compiled=True)
    for seq_len in (512, 1024, 4096, 8192, 16384, 32768):
        yield Case("1b", one, seq_len=seq_len)
        yield Case("8b", f"{one},recomputation=full", seq_len=seq_len, devices=32)
    for rows in (4, 16):
        yield Case("1b", f"{one},batch_per_device={rows}", seq_len=1024)
        yield Case("7b", f"{one},batch_per_device={rows},recomputation=full", compiled=True)
    for name in ("34b", "70b"):
        yield Case(name, f"{one},recomputation=full", devices=64)
        yield Case(name, one, devices=64)
        yield Case(name, "num_stages=8,num_micro_batches=8,recomputation=full", devices=64, rank=0)
        yield Case(name, "num_stages=8,num_micro_batches=8,recomputation=full", devices=64, rank=24)
        yield Case(name, "num_stages=8,num_micro_batches=8,recomputation=full", devices=64, rank=56)
    for rank in (0, 8, 24):
        yield Case("1b", "num_stages=4,num_micro_batches=8,tp=4", devices=32, rank=rank)
        yield Case("1b", "num_stages=4,num_micro_batches=4,tp=2,recomputation=full", devices=32, rank=rank)
    yield from pipelines()
    yield Case("1b", f"{one},tp=2", "bf16")
    yield Case("1b", f"{one},tp=2", "fp32")
    yield Case("1b", f"{one},tp=2", compiled=True)
    yield Case("1b", f"{one},tp=8", seq_len=8192)
    yield Case("100m", f"{one},tp=2,zero_stage=1")
    yield Case("8b", f"{two},recomputation=full,recomputed_layers=8")
    yield Case("7b", f"{one},shard_within_node=true", devices=32)
    yield Case("1b", one, devices=1)
    yield Case("1b", one, "bf16", devices=1)
    yield Case("1b", f"{two},recomputation=full", "fp32", devices=1)
    for name in ("1b", "7b"):
        yield Case(name, f"{one},recomputation=selective")
        yield Case(name, f"{two},recomputation=selective,zero_stage=2")


def pipelines() -> Iterator[Case]:
    """Yield pipelines of four stages: the first, the second, the last; and of two that tensor parallelism splits."""
    for chunks, batches in ((2, 8), (4, 4), (4, 8)):
        text = f"num_stages=4,num_micro_batches={batches},schedule=interleaved,virtual_stages={chunks}"
        for rank in (0, 2, 6):
            yield Case("1b", text, rank=rank)
    for rank in (0, 2, 6):
        yield Case("7b", "num_stages=4,num_micro_batches=8,schedule=interleaved,virtual_stages=8", rank=rank)
        yield Case("1b", "num_stages=4,num_micro_batches=8,schedule=zero_bubble", rank=rank)
        yield Case("1b", "num_stages=4,num_micro_batches=4,schedule=zero_bubble", rank=rank)
        yield Case("7b", "num_stages=4,num_micro_batches=8,schedule=zero_bubble", rank=rank)
        yield Case("1b", "num_stages=4,num_micro_batches=8", rank=rank)
        yield Case("1b", "num_stages=4,num_micro_batches=8,schedule=gpipe", rank=rank)
        yield Case("1b", "num_stages=4,num_micro_batches=8,recomputation=selective", rank=rank)
        yield Case("1b", "num_stages=4,num_micro_batches=8", compiled=True, rank=rank)
    for name, text, ranks in (
        ("1b", "num_stages=2,num_micro_batches=8,tp=8", (0, 16)),
        ("7b", "num_stages=2,num_micro_batches=8,tp=4", (0, 8)),
        ("1b", "num_stages=4,num_micro_batches=8,schedule=gpipe,tp=2", (0, 24)),
        ("1b", "num_stages=4,num_micro_batches=8,schedule=interleaved,virtual_stages=2,tp=2", (0, 8, 24)),
    ):
        for rank in ranks:
            yield Case(name, text, devices=32, rank=rank)


def read_rows() -> list[dict[str, str]]:
    """Return what was counted."""
    if not ROWS.exists():
        return []
    with ROWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def case_of(row: dict[str, str]) -> Case:
    """Return the case of a row."""
    numbers = {name: int(row[name]) for name in ("seq_len", "devices", "rank")}
    return Case(row["model"], row["plan"], row["precision"], compiled=row["compiled"] == "True", **numbers)


def count(case: Case) -> DryRun:
    """Return what a rank holds."""
    model = MODELS[case.model]
    return dry_run(case.config, model, world_size=case.devices, local_size=PER_NODE, rank=case.rank)


def count_missing() -> None:
    """Count the cases that the file lacks, and write each down at once."""
    known = {tuple(row[name] for name in CASE) for row in read_rows()}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ROWS.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not known:
            writer.writerow(COLUMNS)
        for case in cases():
            if case.key in known:
                continue
            known.add(case.key)
            run = count(case)
            held = (run.num_bytes[name] for name in PURPOSES)
            writer.writerow((*case.key, run.stage, run.phase, *held, run.num_flop, round(run.seconds, 1)))
            file.flush()


def accounts() -> list[tuple[Case, dict[str, str], Verified]]:
    """Return each row with its account: what was counted, and what is predicted today."""
    found = []
    for row in read_rows():
        case = case_of(row)
        held = {name: int(row[name]) for name in PURPOSES}
        plan = case.parsed
        run = DryRun(
            case.rank, int(row["stage"]), plan.num_stages, held, row["phase"], case.compiled, int(row["flop"]), 0.0, 0
        )
        found.append((case, row, verify([run], case.inputs)[0]))
    return found


def write_report() -> None:
    """Write what the rows say, and a picture."""
    found = accounts()
    off = np.array([each.total.off / each.total.counted for _, _, each in found])
    names = [term.name for term in found[0][2].terms]
    lines = [
        "# Memory: torch's tracker and the formulas",
        "",
        f"`make memory-grid`: {len(found)} ranks of steps on tensors without values, all that the trainer holds by",
        "torch's own count, beside what the stack `reference` counts, nothing fitted. % of the rank's peak.",
        "",
        "| part | median, % | 95th percentile, % | least, % | most, % |",
        "|---|---|---|---|---|",
        _line("in all", off),
    ]
    for i, name in enumerate(names):
        lines.append(_line(name.replace("_", " "), np.array([a.terms[i].off / a.total.counted for *_, a in found])))
    num_exact = sum(account.flop.off == 0 for *_, account in found)
    lines += ["", f"FLOP are equal to the last one in {num_exact} of {len(found)}.", "", "![errors](memory.svg)", ""]
    lines += ["| model | plan | precision | tokens | layers | rank of | counted, MiB | predicted, MiB | off, % |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for case, _, account in found:
        total, how = account.total, "compiled" if case.compiled else "eager"
        lines.append(
            f"| {case.model} | `{case.plan}` | {case.precision} | {case.seq_len} | {how} | "
            f"{case.rank} of {case.devices} | {total.counted / MIB:,.0f} | {total.predicted / MIB:,.0f} | "
            f"{total.off / total.counted:+.2%} |"
        )
    (FOLDER / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _draw(found, off)


def _line(name: str, off: np.ndarray) -> str:
    size = 100 * np.abs(off)
    least, most = 100 * off.min(), 100 * off.max()
    return f"| {name} | {np.median(size):.2f} | {np.percentile(size, 95):.2f} | {least:+.2f} | {most:+.2f} |"


def _draw(found: list[tuple[Case, dict[str, str], Verified]], off: np.ndarray) -> None:
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.rcParams["svg.hashsalt"] = "memory"
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    kinds = np.array(["tp" if "tp=" in c.plan else "pipeline" if "num_stages" in c.plan else "FSDP" for c, *_ in found])
    held = np.array([account.total.counted / 2**30 for *_, account in found])
    for kind in ("FSDP", "pipeline", "tp"):
        axes.semilogx(held[kinds == kind], 100 * off[kinds == kind], "o", label=kind, markersize=4)
    axes.set(xlabel="GiB counted by torch's tracker", ylabel="prediction off, %")
    axes.legend(frameon=False)
    figure.savefig(FOLDER / "memory.svg", metadata={"Date": None})


if __name__ == "__main__":
    count_missing()
    write_report()
