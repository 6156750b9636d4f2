"""Predictions held against measured runs, and a stack fitted to them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from estimator.api.options import PathLike
from estimator.api.runs import as_paths
from hardware.catalog import load_catalog

if TYPE_CHECKING:
    from estimator.api.calibration import Calibration, Microbench
    from estimator.runs.template import Template


def calibrate(
    paths: PathLike | Iterable[PathLike],
    stack: PathLike | None = None,
    *,
    check: bool = False,
    hold_out: bool = False,
    report: PathLike | None = None,
    rows: PathLike | None = None,
    write: bool = False,
    in_place: bool = False,
    replace: bool = False,
    catalog: PathLike | Iterable[PathLike] = (),
) -> "Calibration":
    """Hold predictions against measured runs, and fit a stack to them.

    The options are those of the command `calibrate`, by their names.

    Args:
        paths: step logs and tables of published runs, one file or several.
        stack: name of the stack to fit or to predict with, or its TOML file; None, where nothing is fitted, for the
            stack of each run's own trainer.
        check: only predict, fit nothing.
        hold_out: predict runs by fits to the others.
        report: folder for a report of each stack that has runs here: Markdown and HTML.
        rows: JSON of each run as held out: written by `hold_out`, read by `report`, which then fits nothing.
        write: write what was found beside the premises of a stack of one's own; of one that comes with the package,
            into a new one, `NAME-own.toml` in the working folder.
        in_place: with `write`, replace the fit that comes with the package; in a checkout of the project.
        replace: with `write`, replace what was written before; it is kept, `.bak` behind its name.
        catalog: TOML files of further hardware.

    Returns:
        Each run beside its prediction; and the stack, where one was fitted.

    Raises:
        ValueError: a file cannot be read, or options contradict each other: what was given, the rule, and the mend.
    """
    from estimator.api import calibration as found  # noqa: PLC0415 - fits take time to import

    asked = {"check": check, "hold-out": hold_out, "report": report is not None, "write": write}
    together = [f"--{name}" for name, on in asked.items() if on]
    if len(together) > 1:
        raise ValueError(f"{together[0][2:]}: {' and '.join(together)} are given together; give one")
    if (in_place or replace) and not write:
        raise ValueError(f"{'in-place' if in_place else 'replace'}: says how --write writes; add --write")
    if rows is not None and not (hold_out or report is not None):
        raise ValueError("rows: are written by --hold-out and read by --report; give one of them")
    files, kept = as_paths(paths), None if rows is None else as_paths(rows)[0]
    if not files:
        raise ValueError("files: nothing is given; give tables of runs, or step logs")
    if stack is None and together in ([], ["--write"]):
        raise ValueError("stack: a fit needs the stack that it is for; add --stack NAME, or --check to only predict")
    hardware, name = load_catalog(as_paths(catalog)), None if stack is None else str(stack)
    if hold_out:
        return found.held_out(files, name, hardware, kept)
    if report is not None:
        return found.reported(files, name, hardware, as_paths(report)[0], kept)
    if check:
        return found.checked(files, name, hardware)
    return found.fitted(files, name or "", hardware, write=write, in_place=in_place, replace=replace)


def calibrate_timings(
    paths: PathLike | Iterable[PathLike], *, catalog: PathLike | Iterable[PathLike] = ()
) -> "Microbench":
    """Hold predictions against tables of microbenchmarks, and find the priors of efficiencies that they imply.

    What `calibrate` does with such tables on the command line.

    Args:
        paths: tables in `timings/1`, one or several.
        catalog: TOML files of further hardware.

    Raises:
        ValueError: a file cannot be read: which, and why.
    """
    from estimator.api.calibration import benchmarked  # noqa: PLC0415 - fits take time to import

    return benchmarked(as_paths(paths), load_catalog(as_paths(catalog)))


def write_run_record(log: PathLike, *, catalog: PathLike | Iterable[PathLike] = ()) -> "Template":
    """Begin the run record of a log, `LOG.run.json` beside it: what the log tells filled in, the rest null.

    What `calibrate --template LOG` does.

    Args:
        log: a step log that does not say itself what was trained.
        catalog: TOML files of further hardware.

    Returns:
        Where it is, what the log told, and what is to be filled in by hand.

    Raises:
        ValueError: the log cannot be read, says itself what was trained, or has a record, which is not replaced.
    """
    from estimator.runs.template import write_template  # noqa: PLC0415 - readers take time to import

    return write_template(as_paths(log)[0], load_catalog(as_paths(catalog)))
