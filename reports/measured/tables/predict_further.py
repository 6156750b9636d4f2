"""Write `reports/validation/further_runs.md`: published runs that no stack was fitted to, beside their predictions.

    python reports/measured/tables/predict_further.py

Each run is predicted by the stack of its software, else by `generic`, as `calibrate --check` does.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from estimator.api.calibration import table_stacks
from estimator.calibrate.assess import Assessed, Assessment, assess
from estimator.calibrate.batches import batched
from estimator.runs.read import read_runs
from estimator.stack.stack import load_stack
from hardware.catalog import load_catalog
from hardware.units import GIB

TABLES = Path(__file__).parent
RAW = TABLES / "measured_runs_2026_11.csv"
RUNS = TABLES.parent / "further" / RAW.name
REPORT = TABLES.parents[1] / "validation" / "further_runs.md"

_STAGES = re.compile(r"stage (\d): ([\d.]+)/([\d.]+)")

HEAD = """# Runs that no stack was fitted to
Written by `make further-runs`. {rows} published runs of {sources} sources ([the
table](../measured/tables/README.md)); {told} say enough to be predicted, each by the stack of its software, or else
by `generic`. No stack was fitted to any of them, and none saw their sources. What a row leaves open is predicted as
all that it may be, so its interval is wide; what is wrong with a row's speed ("doubt") leaves it out of the summary
of seconds. Memory is held against what the source read: reserved, allocated, either, or what `nvidia-smi` shows.
"""

WHY = """
## What is behind the errors

- **The loss**: some software cuts it into chunks, some does not: Qwen3-0.6B on rows of 16,384 held 12.5 GiB under a
  policy's step and 52.8 in plain fine-tuning, and both are predicted at 22.5. Intervals have room for either.
- **Rows of 65,536** tokens took half of the predicted seconds, those of 16,384 what is predicted: as where several
  texts lie in a row, and attention does not cross between them.
- **Software on MI250X**: LUMI's rows are of 2023, the catalog's best rate, 147 of 191.5 TFLOP/s, is of ROCm 6.2. At
  the 115 that were the best before, with the seconds of products in proportion, the median error falls from 22 % to
  some 16 %. Frontier's three runs on 512 devices are one configuration: 95, 77 and 61 s by software alone, and its
  FSDP gathers nearly every module by itself.
- **Reserved bytes on LUMI** lie 9 to 11 GiB above the allocated ones, at every stage and every data-parallel
  degree: no term has that.
- **MI100** has no fused attention, which `generic` takes for granted.
"""


def assessed() -> Assessment:
    """Return the runs beside their predictions."""
    return assess(read_runs([RUNS], load_catalog()).runs, [load_stack(name) for name in table_stacks()])


def raw() -> list[dict[str, str]]:
    """Return the rows as they came."""
    with RAW.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def stages() -> Iterator[tuple[str, int, float, float, float]]:
    """Yield run, stage, and bytes of a device of it: allocated, reserved, and as counted, where the notes tell them."""
    notes = {row["id"]: row["notes"] for row in raw()}
    told = [run for run in read_runs([RUNS], load_catalog()).runs if _STAGES.search(notes[run.name])]
    for stack in {run.trainer: load_stack(run.trainer) for run in told}.values():
        own = [run for run in told if run.trainer == stack.trainer]
        for batch in batched(own, stack.habits):
            efficiencies = stack.efficiencies(*batch.labels)
            for k, place in enumerate(batch.rows):
                name = own[place].name
                for stage, allocated, reserved in _STAGES.findall(notes[name]):
                    counted = np.broadcast_to(batch.counted_bytes(int(stage), efficiencies), batch.rows.shape)[k]
                    yield name, int(stage), float(allocated) * GIB, float(reserved) * GIB, float(counted)


def _of_source(frame: pd.DataFrame, measures: tuple[str, ...]) -> str:
    """Return median and 90th percentile of the errors of measures together, and how many of them are inside."""
    columns = {"step": "step_s", "memory": "reserved_bytes", "other_memory": "other_bytes"}
    own = [frame[frame[f"{m}_error"].notna() & ((frame["unhealthy"] == "") | (m != "step"))] for m in measures]
    errors = pd.concat([rows[f"{m}_error"].abs() for rows, m in zip(own, measures, strict=True)])
    if errors.empty:
        return "- | -"
    inside = pd.concat(
        [
            rows[columns[m]].between(rows[f"predicted_{columns[m]}_low"], rows[f"predicted_{columns[m]}_high"])
            for rows, m in zip(own, measures, strict=True)
        ]
    )
    return f"{errors.median():.1%}, {errors.quantile(0.9):.1%} of {len(errors)} | {inside.mean():.0%}"


def _summary(frame: pd.DataFrame) -> Iterator[str]:
    yield "| source | predicted | seconds: median, 90 % below | inside | memory: median, 90 % below | inside |"
    yield "|---|---|---|---|---|---|"
    numbers = Counter(row["source"] for row in raw())
    for source, count in [*numbers.items(), ("all", sum(numbers.values()))]:
        own = frame if source == "all" else frame[frame["source"] == source]
        cells = f"{_of_source(own, ('step',))} | {_of_source(own, ('memory', 'other_memory'))}"
        yield f"| {source} | {len(own)} of {count} | {cells} |"


def _ladder() -> Iterator[str]:
    found = list(stages())
    errors = [abs(counted / allocated - 1) for _, _, allocated, _, counted in found]
    yield (
        f"GPT-175B on LUMI, 8 stages of a pipeline, data parallel 2 to 32: allocated bytes of each of {len(found)} "
        f"stages as counted, with no fitted correction: {np.median(errors):.1%} off at the median, {max(errors):.1%} "
        "at most. Reserved ones are not counted so well: see below.\n"
    )
    yield "| run | stage | GiB allocated | counted | error | GiB reserved |"
    yield "|---|---|---|---|---|---|"
    for name, stage, allocated, reserved, counted in found:
        numbers = f"{allocated / GIB:.2f} | {counted / GIB:.2f} | {counted / allocated - 1:+.1%} | {reserved / GIB:.2f}"
        yield f"| {name} | {stage} | {numbers} |"


def _each(rows: tuple[Assessed, ...]) -> Iterator[str]:
    yield "| run | model, devices | stack | seconds (90 %) | measured | GiB (90 %) | measured |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        run = row.run
        read, predicted = run.reserved_bytes or run.other_bytes, row.reserved_bytes
        if not run.reserved_bytes and row.other_bytes:
            predicted = row.other_bytes
        step = f"{run.step_s:.3g}{' (doubt)' * bool(run.why_unhealthy)}" if run.step_s else "-"
        held = f"{read / GIB:.1f}" if read else {False: "out of memory"}.get(bool(run.fits), "-")
        of_step = repr(row.step_s) if run.step_s else "-"
        what = f"{run.model}, {run.machine.num_devices} {run.machine.accelerator.id}"
        yield f"| {run.name} | {what} | {row.stack} | {of_step} | {step} | {predicted.times(1 / GIB)!r} | {held} |"


def write() -> None:
    """Write the report."""
    found, rows = assessed(), raw()
    head = HEAD.format(rows=len(rows), sources=len({row["source"] for row in rows}), told=len(found.rows))
    parts = (
        [head],
        _summary(found.to_frame()),
        ["\n## Memory of each stage\n"],
        _ladder(),
        [WHY],
        ["## Each run\n"],
        _each(found.rows),
    )
    REPORT.write_text("\n".join(line for part in parts for line in part) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
