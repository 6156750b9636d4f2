"""The command `calibrate`: parse, call, print."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from estimator.calibrate.assess import Assessment, assess, to_frame
from estimator.calibrate.fit_logs import MoaiRun, leave_one_out, stack_from_runs, try_run, with_runs
from estimator.calibrate.fit_stack import fit_stack_to_runs
from estimator.calibrate.hold_out import hold_outs, holdout_document
from estimator.calibrate.microbench import joined, microbench_document, read_timings
from estimator.calibrate.residual_study import Study, gains, prior_fit, study
from estimator.report import text_logs, text_microbench, text_runs
from estimator.report.page_runs import write_report
from estimator.runs.logged import logged_startup
from estimator.runs.read import RunsRead, is_timings, read_runs
from estimator.stack.file import refuse_unwritable, write_fit
from estimator.stack.stack import Stack, builtin_stacks, fit_path, load_premises, load_stack
from hardware.catalog import Catalog, load_catalog
from hardware.command import EXIT_DONE, open_console, print_json, run_command
from hardware.errors import shown

HOLD_OUTS = "holdout.json"
"""In a report's folder: what `calibrate ... --hold-out --json` printed, so that the report need not fit anew."""

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
    write: Annotated[bool, typer.Option(help="write what was found beside the stack's premises")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    catalog: Annotated[list[Path] | None, typer.Option(help="TOML file of further hardware; may be repeated")] = None,
) -> int:
    """Hold predictions against measured runs, and fit a stack to them.

    What each file is, its content tells; docs/calibrate.md describes the tables. Without --stack, each run is predicted
    by the stack of its own trainer. A log that does not say what was trained (any but the reference trainer's) needs a
    run record beside it, LOG.run.json. Tables of microbenchmarks tell the priors of efficiencies, and what shapes and
    links cost beyond their prediction.
    """
    given, hardware = files or [], load_catalog(catalog or [])
    if not given:
        raise ValueError("files: nothing is given; give tables of runs, or step logs")
    asked = {"check": check, "hold-out": hold_out, "report": report is not None, "write": write}
    _refuse_pairs(asked, as_json=as_json)
    if _are_benchmarks(given, {**asked, "stack": stack is not None}):
        return _hold_benchmarks(given, hardware, as_json=as_json)
    if not any((check, hold_out, report)) and stack is None:
        raise ValueError("stack: a fit needs the stack that it is for; add --stack NAME, or --check to only predict")
    found = read_runs(given, hardware)
    if hold_out:
        return _hold_out(found, [stack] if stack else _table_stacks(), as_json=as_json)
    if stack and not check and not load_premises(stack).trainer:
        if as_json:
            raise ValueError("json: a fit to logs is not printed as JSON; add --check")
        return _fit_logs(found, stack, hardware, write=write, report=report)
    if report:
        return _report(found, [stack] if stack else _table_stacks(), report)
    if check:
        return _check(found, [load_stack(name) for name in ([stack] if stack else _table_stacks())], as_json=as_json)
    return _fit(found, stack or "", write=write, as_json=as_json)


def _refuse_pairs(asked: dict[str, bool], *, as_json: bool) -> None:
    """Refuse options that cannot be given together."""
    together = [f"--{name}" for name, on in asked.items() if on]
    if len(together) > 1:
        raise ValueError(f"{together[0][2:]}: {' and '.join(together)} are given together; give one")
    if asked["report"] and as_json:
        raise ValueError("report: --report is given beside --json; it writes files; leave one out")


def _are_benchmarks(paths: Sequence[Path], asked: dict[str, bool]) -> bool:
    """Whether files are tables of microbenchmarks; they are given beside nothing else."""
    tables = [path for path in paths if is_timings(path)]
    beside = [f"--{name}" for name, on in asked.items() if on] + ["another file"] * (len(tables) < len(paths))
    if tables and beside:
        which = shown(str(tables[0]), 200)
        raise ValueError(f"files: {which}, a table of microbenchmarks, is given beside {beside[0]}; leave one out")
    return bool(tables)


def _table_stacks() -> list[str]:
    """Return the built-in stacks that tables have runs of."""
    return [name for name in builtin_stacks() if load_premises(name).trainer]


def _hold_benchmarks(tables: Sequence[Path], hardware: Catalog, *, as_json: bool) -> int:
    """Hold predictions against microbenchmarks, and the priors that they imply beside those of the stacks."""
    read = joined([read_timings(path, hardware) for path in tables])
    stacks = {name: load_premises(name).priors for name in builtin_stacks()}
    document = microbench_document(read, stacks)
    if as_json:
        print_json(document)
    else:
        text_microbench.print_microbench(open_console(), document)
    return EXIT_DONE


def _check(found: RunsRead, stacks: Sequence[Stack], *, as_json: bool) -> int:
    assessed = assess(found.runs, stacks)
    _show(Assessment(assessed.rows, (*found.skipped, *assessed.skipped)), found, as_json=as_json)
    return EXIT_DONE


def _report(found: RunsRead, names: Sequence[str], folder: Path) -> int:
    trainers = {run.trainer for run in found.runs}
    own = [name for name in names if any(map(load_premises(name).is_of, trainers))]
    if not own:
        raise ValueError(f"report: no run of a trainer of {', '.join(names)}; give the runs that a stack was fitted to")
    held_out = _held_out_in(folder)
    for stack in map(load_stack, own):
        for path in write_report(study(stack, found.runs, held_out.get(stack.name)), folder):
            print(path)
    return EXIT_DONE


def _held_out_in(folder: Path) -> dict[str, Any]:
    """Return the hold-outs of stacks that a report's folder has; none where it has no such file."""
    path = folder / HOLD_OUTS
    if not path.is_file():
        return {}
    where = f"report: {shown(str(path), 200)}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != "holdout/1":
            raise ValueError(f"{where}: its schema is {shown(document['schema'])}, not 'holdout/1'; make it anew")
        stacks: dict[str, Any] = document["stacks"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where}: is not what --hold-out --json prints; make it anew, or remove it") from error
    return stacks


def _hold_out(found: RunsRead, names: Sequence[str], *, as_json: bool) -> int:
    premises = {name: load_premises(name) for name in names}
    document = holdout_document(hold_outs(premises, found.runs))
    if as_json:
        print_json(document)
    else:
        text_runs.print_holdout(open_console(), document)
    return EXIT_DONE


def _show(assessment: Assessment, found: RunsRead, *, as_json: bool) -> None:
    if as_json:
        logs = {"logs": [text_logs.log_document(run) for run in found.logged]} if found.logged else {}
        print_json(text_runs.assessment_document(assessment) | logs)
        return
    console = text_runs.wide_console()
    if found.logged:
        text_logs.print_logs(console, found.logged)
    text_runs.print_assessment(console, assessment)


def _fit(found: RunsRead, name: str, *, write: bool, as_json: bool) -> int:
    premises = load_premises(name)
    if write:
        refuse_unwritable(name)
    stack = fit_stack_to_runs(premises, found.runs, found.origin)
    stack = stack.model_copy(update={"startup": logged_startup(stack.startup, found.logged)})
    own = [run for run in found.runs if stack.is_of(run.trainer)]
    if not as_json:
        text_runs.print_fit(open_console(), stack)
    _show(assess(own, [stack]), found, as_json=as_json)
    if write:
        write_fit(stack, fit_path(name))
    return EXIT_DONE


def _fit_logs(found: RunsRead, name: str, hardware: Catalog, *, write: bool, report: Path | None) -> int:
    """Fit a stack to runs with logs, and show how far off it is on each run when that run is left out."""
    premises = load_premises(name)
    if write:
        refuse_unwritable(name)
    measured = [MoaiRun.of(run) for run in found.runs]
    stack = stack_from_runs(premises, measured)
    left_out = leave_one_out(premises, measured, hardware)
    after = [try_run(run, stack, hardware, in_sample=True) for run in measured]
    console = text_runs.wide_console()
    if report:
        priors = stack.model_copy(update={"fit": prior_fit(stack)})
        before = [try_run(run, priors, hardware) for run in measured]
        held_out, least = {"each run": to_frame(left_out)}, tuple(gains(stack, [row.run for row in after]))
        for path in write_report(Study(stack, to_frame(before), to_frame(after), held_out, least), report):
            print(path)
        return EXIT_DONE
    text_runs.print_fit(console, stack)
    for run in measured:
        for line in run.log.refused:
            console.print(f"refused: {line}", style="dim")
    for how, rows in (("fitted to all runs", after), ("each run predicted by a fit to the others", left_out)):
        console.print(f"\n{how}")
        text_runs.print_assessment(console, Assessment(tuple(rows), ()))
    if write:
        write_fit(with_runs(stack, measured, left_out), fit_path(name))
    return EXIT_DONE
