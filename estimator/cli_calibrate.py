"""The command `calibrate`: parse, call, print."""

import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from estimator import report_calibration, report_cases
from estimator.assessment import Assessment, assess
from estimator.calibrate import leave_one_out, stack_from_runs, try_run, with_runs
from estimator.case_stack import fit_stack_to_cases
from estimator.cases import Case, Left, read_cases
from estimator.holdout import SPLITS, holdout_document
from estimator.holdout import hold_out as held_out
from estimator.measurement import read_runs, refuse_impossible_speed
from estimator.stack import Stack, builtin_stacks, load_stack, read_stack_text, stack_path
from estimator.stack_file import read_premises, stack_text, write_stack
from hardware.catalog import load_catalog
from hardware.command import EXIT_DONE, open_console, print_json, run_command

LOG_STACK = "moai-24.2"

calibrate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def calibrate_main() -> None:
    """Run `calibrate`."""
    sys.exit(run_command(calibrate_app, "calibrate", sys.argv[1:]))


@calibrate_app.command()
def calibrate(
    logs: Annotated[Path | None, typer.Argument(help="CSV table of runs whose logs lie beside it")] = None,
    runs: Annotated[list[Path] | None, typer.Option(help="CSV table of published runs; may be repeated")] = None,
    stack: Annotated[
        str | None, typer.Option(help="name of the stack to fit or to predict with, or its TOML file")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="with --runs: only predict, fit nothing")] = False,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="with --runs: predict runs by fits to the others")
    ] = False,
    write: Annotated[bool, typer.Option(help="write what was found into the stack's file")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="with --runs: print one JSON object and nothing else")
    ] = False,
) -> int:
    """Hold predictions against measured runs, and fit a stack to them.

    With --runs and without --stack, each run is predicted by the stack of its own trainer.
    """
    if (logs is None) == (not runs):
        raise ValueError("runs: give either a table of runs with logs, or --runs with a table of published runs")
    if logs is not None:
        for name, given in (("check", check), ("hold-out", hold_out), ("json", as_json)):
            if given:
                raise ValueError(f"{name}: --{name} is given without --runs; add --runs, or leave it out")
        return _fit_logs(logs, LOG_STACK if stack is None else stack, write=write)
    if check + hold_out + write > 1:
        names = [name for name, on in (("check", check), ("hold-out", hold_out), ("write", write)) if on]
        raise ValueError(f"{names[0]}: --{' and --'.join(names)} are given together; give one")
    if not check and not hold_out and stack is None:
        raise ValueError("stack: a fit needs the stack that it is for; add --stack NAME, or --check to only predict")
    tables = _tables(runs or [])
    if hold_out:
        return _hold_out(tables, [stack] if stack else _table_stacks(), as_json=as_json)
    if check:
        return _check(tables, [load_stack(name) for name in ([stack] if stack else _table_stacks())], as_json=as_json)
    return _fit_tables(tables, stack or "", write=write, as_json=as_json)


class _Tables:
    """What tables of published runs hold, all together, and what they were."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.left: list[Left] = []
        self.origin: dict[str, tuple[str, Sequence[str]]] = {}


def _tables(paths: Sequence[Path]) -> _Tables:
    hardware, found = load_catalog(), _Tables()
    for path in paths:
        read = read_cases(path, hardware)
        found.cases += read.cases
        found.left += read.left
        found.origin[path.name] = (sha256(path.read_bytes()).hexdigest(), [case.digest for case in read.cases])
    return found


def _table_stacks() -> list[str]:
    """Return the built-in stacks that tables have runs of."""
    return [name for name in builtin_stacks() if read_premises(read_stack_text(name), name).trainer]


def _check(tables: _Tables, stacks: Sequence[Stack], *, as_json: bool) -> int:
    found = assess(tables.cases, stacks)
    _show(Assessment(found.rows, (*tables.left, *found.left)), as_json=as_json)
    return EXIT_DONE


def _hold_out(tables: _Tables, names: Sequence[str], *, as_json: bool) -> int:
    premises = {name: read_premises(read_stack_text(name), name) for name in names}
    found = {
        name: {split: held_out(one, tables.cases, split) for split in SPLITS}
        for name, one in premises.items()
        if any(one.is_of(case.trainer) for case in tables.cases)
    }
    document = holdout_document(found)
    if as_json:
        print_json(document)
    else:
        report_cases.print_holdout(open_console(), document)
    return EXIT_DONE


def _show(assessment: Assessment, *, as_json: bool) -> None:
    if as_json:
        print_json(report_cases.assessment_document(assessment))
    else:
        report_cases.print_assessment(report_cases.wide_console(), assessment)


def _fit_tables(tables: _Tables, name: str, *, write: bool, as_json: bool) -> int:
    text = read_stack_text(name)
    found = fit_stack_to_cases(read_premises(text, name), tables.cases, tables.origin)
    own = [case for case in tables.cases if found.is_of(case.trainer)]
    if not as_json:
        report_cases.print_fit(open_console(), found)
    _show(assess(own, [found]), as_json=as_json)
    if write:
        write_stack(stack_path(name), stack_text(text, found))
    return EXIT_DONE


def _fit_logs(logs: Path, stack: str, *, write: bool) -> int:
    """Fit a stack to runs with logs, and show how far off it is on each run when that run is left out."""
    hardware = load_catalog()
    text = read_stack_text(stack)
    premises = read_premises(text, stack)
    measured = read_runs(logs)
    found = stack_from_runs(premises, measured, hardware)
    trials = leave_one_out(premises, measured, hardware)
    console = open_console()
    report_calibration.print_stack(console, found)
    for run in measured:
        flavor = hardware.flavor(run.flavor)
        peak = hardware.accelerator(hardware.node(flavor.node).accelerator).bf16_flop_per_s * flavor.num_devices
        for line in (*run.log.refused, refuse_impossible_speed(run, peak)):
            if line:
                console.print(f"refused: {line}", style="dim")
    console.print("\nin sample: fitted to all runs")
    report_calibration.print_trials(console, [try_run(run, found, hardware) for run in measured])
    console.print("\nout of sample: each run predicted by a fit to the others")
    report_calibration.print_trials(console, trials)
    if write:
        write_stack(stack_path(stack), stack_text(text, with_runs(found, trials)))
    return EXIT_DONE
