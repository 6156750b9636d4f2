"""The command `calibrate`: parse, call, print."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from estimator.api.calibrate import calibrate as hold
from estimator.api.calibrate import calibrate_timings, write_run_record
from estimator.api.calibration import Calibration, Microbench
from estimator.calibrate.assess import Assessment
from estimator.calibrate.hold_out import without_rows
from estimator.report import text_logs, text_microbench, text_runs
from estimator.runs.read import is_timings
from estimator.stack.file import place_of
from hardware.command import EXIT_DONE, open_console, print_json, run_command
from hardware.errors import shown, shown_path

calibrate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def calibrate_main() -> None:
    """Run `calibrate`."""
    sys.exit(run_command(calibrate_app, "calibrate", sys.argv[1:]))


@calibrate_app.command()
def calibrate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="tables of runs and step logs in any mix, or tables of microbenchmarks"),
    ] = None,
    stack: Annotated[
        str | None, typer.Option(help="name of the stack to fit or to predict with, or its TOML file")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="only predict, fit nothing")] = False,
    hold_out: Annotated[bool, typer.Option("--hold-out", help="predict runs by fits to the others")] = False,
    report: Annotated[
        Path | None, typer.Option(help="folder for a report of each stack that has runs here: Markdown and HTML")
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            help="JSON of each run as held out: written by --hold-out, read by --report, which then fits nothing"
        ),
    ] = None,
    write: Annotated[
        bool,
        typer.Option(
            "--write", help="write what was found: beside a stack's TOML file, or into a new NAME-own.toml of a name's"
        ),
    ] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="with --write, replace the package's own fit, in a checkout")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="with --write, replace what is there; it is kept as .bak")
    ] = False,
    template: Annotated[
        Path | None, typer.Option(help="a log, beside which its run record is begun: what it tells filled in")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    catalog: Annotated[list[Path] | None, typer.Option(help="TOML file of further hardware; may be repeated")] = None,
) -> int:
    """Hold predictions against measured runs, and fit a stack to them.

    What each file is, its content tells; docs/calibrate.md describes the tables. Without --stack, each run is predicted
    by the stack of its own trainer. A log that does not say what was trained (any but the reference trainer's) needs a
    run record beside it, LOG.run.json; --template LOG begins one. Tables of microbenchmarks tell the priors of
    efficiencies, and what shapes and links cost beyond their prediction.
    """
    given, hardware = files or [], catalog or []
    if report is not None and as_json:
        raise ValueError("report: --report is given beside --json; it writes files; leave one out")
    asked = {
        "check": check,
        "hold-out": hold_out,
        "report": report is not None,
        "write": write,
        "stack": stack is not None,
    }
    if template is not None:
        beside = [f"--{name}" for name, on in (asked | {"json": as_json}).items() if on] + ["files"] * bool(given)
        _show_template(template, hardware, beside)
        return EXIT_DONE
    if _are_benchmarks(given, asked):
        _show_benchmarks(calibrate_timings(given, catalog=hardware), as_json=as_json)
        return EXIT_DONE
    if write and stack is not None and not (replace or in_place or as_json):
        replace = _may_replace(stack)
    found = hold(
        given,
        stack,
        check=check,
        hold_out=hold_out,
        report=report,
        rows=rows,
        write=write,
        in_place=in_place,
        replace=replace,
        catalog=hardware,
    )
    _show(found, as_json=as_json)
    return EXIT_DONE


def _may_replace(stack: str) -> bool:
    """Ask on a terminal whether files of a stack that are there may be replaced."""
    there = place_of(stack).there
    if there is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{shown_path(there)} is there; replace it, and keep it as {there.name}.bak? [y/N] ", end="", file=sys.stderr)
    sys.stderr.flush()
    return sys.stdin.readline().strip().casefold() in ("y", "yes")


def _are_benchmarks(paths: Sequence[Path], asked: dict[str, bool]) -> bool:
    """Whether files are tables of microbenchmarks; they are given beside nothing else."""
    tables = [path for path in paths if is_timings(path)]
    beside = [f"--{name}" for name, on in asked.items() if on] + ["another file"] * (len(tables) < len(paths))
    if tables and beside:
        which = shown(str(tables[0]), 200)
        raise ValueError(f"files: {which}, a table of microbenchmarks, is given beside {beside[0]}; leave one out")
    return bool(tables)


def _show_template(log: Path, hardware: Sequence[Path], beside: Sequence[str]) -> None:
    if beside:
        raise ValueError(f"template: --template is given beside {beside[0]}; it writes a run record; leave one out")
    begun = write_run_record(log, catalog=hardware)
    print(shown_path(begun.path))
    print(f"from the log: {', '.join(begun.told) or 'nothing'}")
    for key, what in begun.empty.items():
        print(f"to fill in: {key}: {what}")
    print("what stays null beside these is the software's own habit, or not known")


def _show_benchmarks(found: Microbench, *, as_json: bool) -> None:
    if as_json:
        print_json(dict(found.document))
    else:
        text_microbench.print_microbench(open_console(), dict(found.document))


def _show(found: Calibration, *, as_json: bool) -> None:
    if found.pages:
        for page in found.pages:
            print(page)
    elif found.document:
        if as_json:
            print_json(without_rows(found.document))
        else:
            text_runs.print_holdout(open_console(), dict(found.document))
    else:
        _show_runs(found, as_json=as_json)


def _show_runs(found: Calibration, *, as_json: bool) -> None:
    assessment = Assessment(found.rows, found.skipped)
    if as_json:
        logs = {"logs": [text_logs.log_document(run) for run in found.logged]} if found.logged else {}
        print_json(text_runs.assessment_document(assessment) | logs)
        return
    if found.stack:
        text_runs.print_fit(open_console(), found.stack)
    console = text_runs.wide_console()
    if found.logged:
        text_logs.print_logs(console, found.logged)
    text_runs.print_assessment(console, assessment)
    for path in found.written:
        print(f"written: {shown_path(path)}")
