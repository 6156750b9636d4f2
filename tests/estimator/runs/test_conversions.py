"""The committed tables and run records are what the scripts beside the raw ones make of them."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from estimator.runs.measured import Run
from estimator.runs.read import read_runs
from estimator.work.plan import Plan
from hardware.catalog import load_catalog
from hardware.units import GIB
from tests.support.paths import MEASURED, TABLES
from tests.support.tables import rows_of

RAW = MEASURED / "tables"
CATALOG = load_catalog()


def script(path: Path) -> ModuleType:
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder that the conversion wrote."""
    folder, before = tmp_path_factory.mktemp("measured"), dict(sys.modules)
    sys.path.insert(0, str(RAW))
    try:
        script(RAW / "convert_all.py").write(folder)
        yield folder
    finally:
        sys.path.remove(str(RAW))
        for name in sys.modules.keys() - before.keys():
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == RAW:
                del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["tables/skipped.csv"]
    + [
        f"{kind}/{path.name}"
        for kind in ("runs", "further", "timings")
        for path in sorted((MEASURED / kind).glob("*.csv"))
    ],
)
def test_a_committed_table_is_what_its_script_writes(written: Path, name: str) -> None:
    """Run again, the conversion writes the committed file to the letter."""
    assert (written / name).read_bytes() == (MEASURED / name).read_bytes()


def test_no_row_is_lost() -> None:
    """Each row of a raw table is a row of a converted one, or is skipped with its reason."""

    def rows(path: Path) -> list[dict[str, str]]:
        return rows_of(path.read_text(encoding="utf-8"))

    skipped = rows(RAW / "skipped.csv")
    for kind in ("runs", "further", "timings"):
        for path in (MEASURED / kind).glob("*.csv"):
            left_out = sum(row["table"] == path.stem for row in skipped)
            assert len(rows(path)) + left_out == len(rows(RAW / path.name))
    assert all(row["why"].isprintable() and ": " in row["why"] for row in skipped)


def test_operations_on_an_h200(tmp_path: Path) -> None:
    """The committed table of what was timed on an H200 is what its script writes."""
    script(MEASURED / "h200" / "convert_timings.py").write(tmp_path / "timings.csv")
    assert (tmp_path / "timings.csv").read_bytes() == (MEASURED / "h200" / "timings.csv").read_bytes()


def test_run_records_of_the_moai_logs() -> None:
    """The records beside the logs are what the script makes of their table."""
    for log, record in script(MEASURED / "moai" / "convert_runs.py").records().items():
        assert json.loads((MEASURED / "moai" / f"{log}.run.json").read_text(encoding="utf-8")) == record


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """Return the runs of the committed tables, of several of one name the last."""
    found = read_runs(sorted(TABLES.glob("*.csv")), CATALOG)
    assert not found.skipped
    assert len(found.runs) == 3079
    return {run.name: run for run in found.runs}


def test_what_published_rows_say(runs: dict[str, Run]) -> None:
    """Rows whose source was read again: plan, recipe, memory and machine are as it says."""
    foundry = runs["LLMF-001"]
    assert foundry.plan == Plan(recomputation="full", batch_per_device=8)
    assert (foundry.trainer, foundry.machine.num_nodes, foundry.step_s) == ("llm-foundry", 64, 16.26847)
    assert runs["LLMF-164"].recipe.precision == "bf16"
    korthikanti = runs["KORT-003"].plan
    assert (korthikanti.num_stages, korthikanti.virtual_stages, korthikanti.tp) == (8, 3, 8)
    assert (korthikanti.schedule, korthikanti.sequence_parallel) == ("interleaved", False)
    simumax = runs["SMAX-041"]
    assert (simumax.plan.cp, simumax.recipe.overlaps, simumax.reserved_bytes) == (4, False, None)
    assert simumax.allocated_bytes == pytest.approx(112.67 * GIB)
    adapters = runs["MLPF-051"]
    assert (adapters.recipe.lora_rank, adapters.plan.recomputed_layers, adapters.fits) == (16, 21, None)
    assert runs["DGXC-002"].assumes == "recompute: not stated, taken as none"
    ultrascale = runs["13436292"]
    assert ultrascale.step_s == pytest.approx(256 * 4096 / (39273.41 * 8))
    assert ultrascale.reserved_bytes == pytest.approx(36.67 * GIB)
    assert ultrascale.machine.fabric == (5e-6, False)
    assert runs["row 1"].plan == Plan(
        num_stages=2, num_micro_batches=2, batch_per_device=4, recomputation="full", zero_stage=0,
        sequence_parallel=False,
    )  # fmt: skip


def test_faults_are_named(runs: dict[str, Run]) -> None:
    """Runs of the broken pipeline engine and of degraded nodes are there, and tell no speed."""
    faults = {run.why_unhealthy.partition(":")[0] for run in runs.values()}
    assert {"broken pipeline engine", "degraded node", "the table calls it partial"} <= faults
    assert not any(run.tells_speed for run in runs.values() if run.why_unhealthy)
