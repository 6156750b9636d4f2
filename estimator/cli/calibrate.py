"""The command `calibrate`: parse, call, print."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from estimator.calibrate.assess import Assessment, assess
from estimator.calibrate.fit_logs import leave_one_out, stack_from_runs, try_run, with_runs
from estimator.calibrate.fit_stack import fit_stack_to_cases
from estimator.calibrate.hold_out import hold_outs, holdout_document
from estimator.calibrate.microbench import joined, microbench_document, read_timings
from estimator.calibrate.residual_study import prior_fit, study
from estimator.report import text_logs, text_logs_fit, text_microbench, text_runs
from estimator.report.page_logs_fit import write_runs_report
from estimator.report.page_runs_fit import write_report
from estimator.runs.inputs import Inputs, is_benchmark, is_run_table, read_inputs
from estimator.runs.logged import logged_startup
from estimator.runs.moai_runs import read_runs, refuse_impossible_speed
from estimator.stack.file import read_premises, stack_text, write_stack
from estimator.stack.stack import Stack, builtin_stacks, load_stack, read_stack_text, stack_path
from hardware.catalog import Catalog, load_catalog
from hardware.command import EXIT_DONE, open_console, print_json, run_command
from hardware.errors import shown

HOLD_OUTS = "holdout.json"
"""In a report's folder: what `calibrate ... --hold-out --json` printed, so that the report need not fit anew."""

LOG_STACK = "moai-24.2"

calibrate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def calibrate_main() -> None:
    """Run `calibrate`."""
    sys.exit(run_command(calibrate_app, "calibrate", sys.argv[1:]))


@calibrate_app.command()
def calibrate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="step logs, tables of published runs or of microbenchmarks, or one table of runs with logs beside it"
        ),
    ] = None,
    runs: Annotated[list[Path] | None, typer.Option(help="CSV table of published runs; may be repeated")] = None,
    stack: Annotated[
        str | None, typer.Option(help="name of the stack to fit or to predict with, or its TOML file")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="only predict, fit nothing")] = False,
    hold_out: Annotated[bool, typer.Option("--hold-out", help="predict runs by fits to the others")] = False,
    report: Annotated[
        Path | None, typer.Option(help="folder for a report of each stack that has runs here: Markdown and HTML")
    ] = None,
    write: Annotated[bool, typer.Option(help="write what was found into the stack's file")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    catalog: Annotated[list[Path] | None, typer.Option(help="TOML file of further hardware; may be repeated")] = None,
) -> int:
    """Hold predictions against measured runs, and fit a stack to them.

    What each file is, its content tells. Without --stack, each run is predicted by the stack of its own trainer. A log
    that does not say what was trained (any but the reference trainer's) needs a run record beside it, LOG.run.json.
    Tables of microbenchmarks tell the priors of efficiencies, and what shapes and links cost beyond their prediction.
    """
    given, hardware = files or [], catalog or []
    if not given and not runs:
        raise ValueError("files: nothing is given; give step logs, or tables of runs")
    asked = {"check": check, "hold-out": hold_out, "report": report is not None, "write": write}
    _refuse_pairs(asked, as_json=as_json)
    if _are_benchmarks((*given, *(runs or [])), {**asked, "stack": stack is not None}):
        return _hold_benchmarks((*given, *(runs or [])), load_catalog(hardware), as_json=as_json)
    if with_logs := [path for path in given if is_run_table(path)]:
        refused = {**asked, "json": as_json}
        others = [f"--{name}" for name, on in refused.items() if on and name not in ("write", "report")]
        if len(given) > 1 or runs or others:
            what = others[0] if others else "another file"
            raise ValueError(f"files: {shown(str(with_logs[0]))}, a table of runs with logs, is given beside {what}")
        return _fit_logs(
            given[0], LOG_STACK if stack is None else stack, load_catalog(hardware), write=write, report=report
        )
    if not any((check, hold_out, report)) and stack is None:
        raise ValueError("stack: a fit needs the stack that it is for; add --stack NAME, or --check to only predict")
    inputs = read_inputs(given, runs or [], hardware)
    if hold_out:
        return _hold_out(inputs, [stack] if stack else _table_stacks(), as_json=as_json)
    if report:
        return _report(inputs, [stack] if stack else _table_stacks(), report)
    if check:
        return _check(inputs, [load_stack(name) for name in ([stack] if stack else _table_stacks())], as_json=as_json)
    return _fit(inputs, stack or "", write=write, as_json=as_json)


def _refuse_pairs(asked: dict[str, bool], *, as_json: bool) -> None:
    """Refuse options that cannot be given together."""
    together = [f"--{name}" for name, on in asked.items() if on]
    if len(together) > 1:
        raise ValueError(f"{together[0][2:]}: {' and '.join(together)} are given together; give one")
    if asked["report"] and as_json:
        raise ValueError("report: --report is given beside --json; it writes files; leave one out")


def _are_benchmarks(paths: Sequence[Path], asked: dict[str, bool]) -> bool:
    """Whether files are tables of microbenchmarks; they are given beside nothing else."""
    tables = [path for path in paths if is_benchmark(path)]
    beside = [f"--{name}" for name, on in asked.items() if on] + ["another file"] * (len(tables) < len(paths))
    if tables and beside:
        which = shown(str(tables[0]), 200)
        raise ValueError(f"files: {which}, a table of microbenchmarks, is given beside {beside[0]}; leave one out")
    return bool(tables)


def _table_stacks() -> list[str]:
    """Return the built-in stacks that tables have runs of."""
    return [name for name in builtin_stacks() if read_premises(read_stack_text(name), name).trainer]


def _hold_benchmarks(tables: Sequence[Path], hardware: Catalog, *, as_json: bool) -> int:
    """Hold predictions against microbenchmarks, and the priors that they imply beside those of the stacks."""
    read = joined([read_timings(path, hardware) for path in tables])
    stacks = {name: read_premises(read_stack_text(name), name).priors for name in builtin_stacks()}
    document = microbench_document(read, stacks)
    if as_json:
        print_json(document)
    else:
        text_microbench.print_microbench(open_console(), document)
    return EXIT_DONE


def _check(inputs: Inputs, stacks: Sequence[Stack], *, as_json: bool) -> int:
    found = assess(inputs.cases, stacks)
    _show(Assessment(found.rows, (*inputs.left, *found.left)), inputs, as_json=as_json)
    return EXIT_DONE


def _report(inputs: Inputs, names: Sequence[str], folder: Path) -> int:
    stacks = [load_stack(name) for name in names]
    stacks = [stack for stack in stacks if any(stack.is_of(case.trainer) for case in inputs.cases)]
    if not stacks:
        raise ValueError(f"report: no run of a trainer of {', '.join(names)}; give the runs that a stack was fitted to")
    held_out = _held_out_in(folder)
    for stack in stacks:
        for path in write_report(study(stack, inputs.cases, held_out.get(stack.name)), folder):
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


def _hold_out(inputs: Inputs, names: Sequence[str], *, as_json: bool) -> int:
    premises = {name: read_premises(read_stack_text(name), name) for name in names}
    document = holdout_document(hold_outs(premises, inputs.cases))
    if as_json:
        print_json(document)
    else:
        text_runs.print_holdout(open_console(), document)
    return EXIT_DONE


def _show(assessment: Assessment, inputs: Inputs, *, as_json: bool) -> None:
    if as_json:
        logs = {"logs": [text_logs.log_document(run) for run in inputs.logged]} if inputs.logged else {}
        print_json(text_runs.assessment_document(assessment) | logs)
        return
    console = text_runs.wide_console()
    if inputs.logged:
        text_logs.print_logs(console, inputs.logged)
    text_runs.print_assessment(console, assessment)


def _fit(inputs: Inputs, name: str, *, write: bool, as_json: bool) -> int:
    text = read_stack_text(name)
    found = fit_stack_to_cases(read_premises(text, name), inputs.cases, inputs.origin)
    found = found.model_copy(update={"startup": logged_startup(found.startup, inputs.logged)})
    own = [case for case in inputs.cases if found.is_of(case.trainer)]
    if not as_json:
        text_runs.print_fit(open_console(), found)
    _show(assess(own, [found]), inputs, as_json=as_json)
    if write:
        write_stack(stack_path(name), stack_text(text, found))
    return EXIT_DONE


def _fit_logs(logs: Path, stack: str, hardware: Catalog, *, write: bool, report: Path | None) -> int:
    """Fit a stack to runs with logs, and show how far off it is on each run when that run is left out."""
    text = read_stack_text(stack)
    premises = read_premises(text, stack)
    measured = read_runs(logs)
    found = stack_from_runs(premises, measured, hardware)
    trials = leave_one_out(premises, measured, hardware)
    console = open_console()
    if report:
        priors = found.model_copy(update={"fit": prior_fit(found)})
        for path in write_runs_report(found, [try_run(run, priors, hardware) for run in measured], trials, report):
            print(path)
        return EXIT_DONE
    text_logs_fit.print_stack(console, found)
    for run in measured:
        flavor = hardware.flavor(run.flavor)
        peak = hardware.accelerator(hardware.node(flavor.node).accelerator).usual_flop_per_s * flavor.num_devices
        for line in (*run.log.refused, refuse_impossible_speed(run, peak)):
            if line:
                console.print(f"refused: {line}", style="dim")
    console.print("\nin sample: fitted to all runs")
    text_logs_fit.print_trials(console, [try_run(run, found, hardware) for run in measured])
    console.print("\nout of sample: each run predicted by a fit to the others")
    text_logs_fit.print_trials(console, trials)
    if write:
        write_stack(stack_path(stack), stack_text(text, with_runs(found, trials)))
    return EXIT_DONE
