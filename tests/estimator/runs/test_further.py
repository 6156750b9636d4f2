"""Published runs that no stack was fitted to, and what a row of a table may leave open."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from estimator.calibrate.assess import assess
from estimator.calibrate.batches import batched
from estimator.formulas.counts import trained_parameters
from estimator.runs.read import read_runs
from estimator.runs.run_table import read_run_table, write_run_table
from estimator.stack.stack import builtin_stacks, load_stack
from hardware.catalog import load_catalog
from hardware.units import GIB
from tests.support.paths import MEASURED

CATALOG = load_catalog()
TABLE = MEASURED / "further" / "measured_runs_2026_11.csv"
RAW = MEASURED / "tables" / "measured_runs_2026_11.csv"
RUNS = read_run_table(TABLE, CATALOG).items
HEADER = "id,source,software,model,seq_len,accelerator,num_devices,"
START = "one,us,torchtune,meta-llama/Meta-Llama-3-8B,4096,h100-sxm-80gb,8,"


def read_row(folder: Path, columns: str, cells: str) -> tuple[list[object], list[str]]:
    """Return the runs of a table of one row, and why it is none."""
    path = folder / "runs.csv"
    path.write_text(f"{HEADER}{columns}\n{START}{cells}\n", encoding="utf-8")
    read = read_run_table(path, CATALOG)
    return list(read.items), [skipped.why for skipped in read.skipped]


def test_most_of_the_table_is_expressed_and_fitted_by_none() -> None:
    """At least 180 of its 273 rows are runs, and no stack was fitted to any, nor to its source."""
    assert len(RUNS) >= 180
    known = {d for name in builtin_stacks() for table in load_stack(name).tables for d in table.digests.split()}
    sources = {source for name in builtin_stacks() for source in load_stack(name).fit.sources}
    assert not known & {run.digest for run in RUNS}
    assert not sources & {run.source for run in RUNS}


def test_it_reads_back_as_it_is(tmp_path: Path) -> None:
    """What rows leave open too."""
    write_run_table(tmp_path / "runs.csv", RUNS)
    again = read_run_table(tmp_path / "runs.csv", CATALOG).items
    assert [run.all_it_may_be for run in again] == [run.all_it_may_be for run in RUNS]
    assert (tmp_path / "runs.csv").read_bytes() == TABLE.read_bytes()


def test_memory_of_each_stage_is_counted() -> None:
    """GPT-175B on LUMI, 8 stages at four data-parallel degrees: 32 allocated peaks, each within 3 %, none fitted."""
    with RAW.open(encoding="utf-8", newline="") as file:
        notes = {row["id"]: row["notes"] for row in csv.DictReader(file)}
    stack, held = load_stack("megatron-deepspeed"), []
    for batch in batched([run for run in RUNS if run.model.startswith("GPT-175B (LUMI)")], stack.habits):
        names = [run.name for run in RUNS if run.model.startswith("GPT-175B (LUMI)")]
        for stage in range(8):
            counted = np.broadcast_to(batch.counted_bytes(stage, stack.efficiencies(*batch.labels)), batch.rows.shape)
            for k, row in enumerate(batch.rows):
                told = re.search(rf"stage {stage}: ([\d.]+)/", notes[names[row]])
                assert told
                held.append(counted[k] / GIB / float(told[1]) - 1)
    assert len(held) == 32
    assert np.abs(held).max() < 0.03


def test_a_cell_may_leave_open_which_of_several(tmp_path: Path) -> None:
    """The first is the run, all are what it may be, and micro-batches follow from the global batch."""
    columns = "global_batch,batch_per_device,recomputation,tokens_per_s"
    ((run,), why) = read_row(tmp_path, columns, "64,1/2,none/full,40000")
    assert why == []
    plans = [(p.plan.batch_per_device, p.plan.num_micro_batches, p.plan.recomputation) for p in run.all_it_may_be]
    assert plans == [(1, 8, "none"), (1, 8, "full"), (2, 4, "none"), (2, 4, "full")]
    assert run.step_s == pytest.approx(64 * 4096 / 40000)


def test_what_is_left_open_widens_the_interval(tmp_path: Path) -> None:
    """From the lowest end of all that it may be to the highest, and the value between those of the extremes."""
    ((run,), _) = read_row(tmp_path, "num_micro_batches,recomputation,step_s", "4,none/full,5")
    stack = load_stack("generic")
    (whole,) = assess([run], [stack]).rows
    none, full = (assess([replace(one, alternatives=())], [stack]).rows[0] for one in run.all_it_may_be)
    for name in ("step_s", "reserved_bytes"):
        got, parts = getattr(whole, name), [getattr(row, name) for row in (none, full)]
        assert got.low == pytest.approx(min(p.low for p in parts))
        assert got.high == pytest.approx(max(p.high for p in parts))
        assert min(p.value for p in parts) < got.value < max(p.value for p in parts)


def test_memory_is_of_the_longest_row(tmp_path: Path) -> None:
    """Seconds are those of rows of the mean, bytes those of rows as long as the longest."""
    ((ragged,), _) = read_row(tmp_path, "longest_row,step_s", "8192,5")
    stack = load_stack("generic")
    short, long = (replace(ragged, longest_row=None, seq_len=tokens) for tokens in (4096, 8192))
    whole, mean, longest = assess([ragged, short, long], [stack]).rows
    assert whole.step_s == mean.step_s
    assert whole.reserved_bytes.value == pytest.approx(longest.reserved_bytes.value)
    assert whole.reserved_bytes.low == mean.reserved_bytes.low


@pytest.mark.parametrize(
    ("columns", "cells", "why"),
    [
        ("recomputation,step_s", "none/some,5", "unknown recomputation 'some'"),
        ("precision,step_s", "bf16/int3,5", "unknown precision 'int3'"),
        ("global_batch,num_micro_batches,step_s", "64,3,5", "num_micro_batches: 3 are stated, 8 follow from the rest"),
        ("global_batch,step_s", "63,5", "global_batch: 63 rows are no whole micro-batches"),
        ("tokens_per_s,step_s", "1000,5", "tokens_per_s: is given beside step_s"),
        ("longest_row,step_s", "1024,5", "longest_row: 1024 tokens are fewer than seq_len = 4096"),
        ("lora_targets,step_s", "q v,5", "lora_targets: matrices are named, but no rank"),
        ("lora_rank,lora_targets,step_s", "8,q_proj,5", "unknown lora_targets 'q_proj'.*"),
        ("batch_per_device,num_micro_batches,recomputation,step_s",
         "/".join(map(str, range(1, 12))) + "," + "/".join(map(str, range(1, 12))) + ",none/selective/full,5",
         ".*leave open more than 256 runs; say more of it"),
    ],
)  # fmt: skip
def test_what_a_row_cannot_say(tmp_path: Path, columns: str, cells: str, why: str) -> None:
    """Each is a reason, not a guess."""
    found, told = read_row(tmp_path, columns, cells)
    assert found == []
    assert re.match(why, told[0])


def test_memory_is_held_against_what_was_read(tmp_path: Path) -> None:
    """Allocated, either, and what the driver's tool shows lie in that order, around what is reserved."""
    values = {}
    for column in ("allocated_bytes", "held_bytes", "used_bytes", "reserved_bytes"):
        ((run,), _) = read_row(tmp_path, column, "5e10")
        (row,) = assess([run], [load_stack("generic")]).rows
        assert (row.other_bytes is None) == (column == "reserved_bytes")
        values[column] = (row.other_bytes or row.reserved_bytes).value
    assert sorted(values["held_bytes"] - values[end] > 0 for end in ("allocated_bytes", "reserved_bytes")) == [
        False,
        True,
    ]
    assert values["used_bytes"] > values["reserved_bytes"]


def test_adapters_lie_beside_the_matrices_named() -> None:
    """PEFT's own count of what it trains: rank 32 on queries and values of Llama-3.2-3B."""
    (run,) = (run for run in RUNS if run.name == "PEFT-033")
    with RAW.open(encoding="utf-8", newline="") as file:
        notes = next(row["notes"] for row in csv.DictReader(file) if row["id"] == "PEFT-033")
    told = re.search(r"([\d,]+) trainable", notes)
    assert told
    assert trained_parameters(run.recipe.shape(run.shape)) == int(told[1].replace(",", ""))


def test_runs_of_any_software_are_told() -> None:
    """The kinds of table that the format is for."""
    assert {run.trainer for run in RUNS} >= {"litgpt", "torchtitan", "megatron-deepspeed", "transformers", "prime-rl"}
    assert sum(bool(run.alternatives) for run in RUNS) > 50
    assert read_runs([TABLE], CATALOG).runs == RUNS
