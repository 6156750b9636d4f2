"""What others measured: tables of published runs and step logs, as runs and as a pandas frame."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimator.api.options import PathLike
from estimator.work.plan import PLAN_NAMES
from hardware.catalog import load_catalog

if TYPE_CHECKING:
    import pandas as pd

    from estimator.runs.csv_rows import Skipped
    from estimator.runs.measured import Run


@dataclass(frozen=True, slots=True)
class RunsRead:
    """What files hold: runs, and the rows and logs that are none."""

    runs: "tuple[Run, ...]"
    skipped: "tuple[Skipped, ...]"
    """Of each the name, and why."""

    def __repr__(self) -> str:
        """Return how many runs there are, of which trainers."""
        trainers = sorted({run.trainer for run in self.runs})
        return f"{counted(self.runs, 'run')} of {', '.join(trainers) or 'no trainer'}; {len(self.skipped)} skipped"

    def to_frame(self) -> "pd.DataFrame":
        """Return a row a run: what was trained, on what, with which plan, and what was measured; nan where it was not.

        Columns of the plan bear the names of its fields, so that a frame of some of them can go to `evaluate_plans`.
        """
        import pandas as pd  # noqa: PLC0415 - slow to import, and only a frame needs it

        return pd.DataFrame([run_row(run) for run in self.runs])


def counted(things: Sequence[object], name: str) -> str:
    """Return how many things of a name there are.

    >>> counted([1], "run"), counted([], "run")
    ('1 run', '0 runs')
    """
    return f"{len(things):,} {name}{'s' if len(things) != 1 else ''}"


def run_row(run: "Run") -> dict[str, Any]:
    """Return the columns of one run."""
    return {
        "run": run.name,
        "source": run.source,
        "trainer": run.trainer,
        "model": run.model,
        "seq_len": run.seq_len,
        "global_batch": run.workload.global_batch,
        "recipe": str(run.recipe),
        "accelerator": run.machine.accelerator.id,
        "num_devices": run.machine.num_devices,
        "num_nodes": run.machine.num_nodes,
        "data_parallel": run.dp,
        **{name: getattr(run.plan, name) for name in PLAN_NAMES},
        "step_s": run.step_s,
        "tokens_per_s": run.tokens_per_s,
        "reserved_bytes": run.reserved_bytes,
        "allocated_bytes": run.allocated_bytes,
        "fits": run.fits,
        "unhealthy": run.why_unhealthy,
        "assumes": run.assumes,
    }


def as_paths(paths: PathLike | Iterable[PathLike]) -> Sequence[Path]:
    """Return one path, or several, as a sequence of them."""
    return [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]


def read_runs(paths: PathLike | Iterable[PathLike], *, catalog: PathLike | Iterable[PathLike] = ()) -> RunsRead:
    """Read tables of published runs and step logs, told apart by their content.

    Args:
        paths: one file, or several; a log that does not say what was trained needs LOG.run.json beside it.
        catalog: TOML files of further hardware.

    Raises:
        ValueError: a file cannot be read, or is of no known form.
    """
    from estimator.runs.read import read_runs as read  # noqa: PLC0415 - the readers take time to import

    found = read(as_paths(paths), load_catalog(as_paths(catalog)))
    return RunsRead(found.runs, found.skipped)
