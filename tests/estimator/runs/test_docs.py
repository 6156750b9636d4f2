"""docs/calibrate.md says what is read, and its examples are."""

import re
from pathlib import Path

from estimator.calibrate.assess import assess
from estimator.runs import run_table, timings
from estimator.runs.read import read_runs
from estimator.runs.record import parse_run_record, plan_of
from estimator.stack.stack import builtin_stacks, load_stack
from estimator.work.plan import Plan
from hardware.catalog import load_catalog
from tests.support.paths import ROOT

CATALOG = load_catalog()
PAGE = (ROOT / "docs" / "calibrate.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the text below a heading."""
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def columns_of(text: str) -> tuple[set[str], set[str]]:
    """Return the columns that a table's first cells name, and those of them that have no default."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(cells))), set(re.findall(r"`(\w+)`\*", " ".join(cells)))


def block(text: str, language: str) -> str:
    """Return the first block of code of a language."""
    return text.partition(f"```{language}\n")[2].partition("```")[0]


def test_the_columns_are_those_that_are_read() -> None:
    """Both formats name every column, and no other."""
    named, needed = columns_of(section("Tables of runs: `runs/1`"))
    assert named == run_table.COLUMNS.keys()
    assert needed == {"source", "software", "model", "seq_len", "accelerator", "num_devices"}
    named, needed = columns_of(section("Tables of microbenchmarks: `timings/1`"))
    assert named == timings.COLUMNS.keys()
    assert needed == {"source", "setting", "kind", "accelerator"}


def test_the_example_of_runs_works(tmp_path: Path) -> None:
    """Its rows are runs, and their stacks predict them within a factor of 1.5."""
    path = tmp_path / "runs.csv"
    path.write_text(block(section("Tables of runs: `runs/1`"), "csv"), encoding="utf-8")
    found = read_runs([path], CATALOG)
    assert [run.name for run in found.runs] == ["plain", "split"]
    rows = assess(found.runs, [load_stack(name) for name in builtin_stacks() if load_stack(name).trainer]).rows
    assert [row.stack for row in rows] == ["torchtune", "megatron"]
    assert all(abs(row.step_error or 1) < 0.5 for row in rows)


def test_the_example_of_a_run_record_works() -> None:
    """It is the seed's: 256 rows of 2,048 tokens, in the seed's plan."""
    record = parse_run_record(block(section("Step logs"), "json"), "docs")
    assert (record.workload().seq_len, record.workload().global_batch) == (2048, 256)
    assert plan_of(record.plan) == Plan(num_stages=2, num_micro_batches=16)
