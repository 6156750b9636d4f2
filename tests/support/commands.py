"""The commands `estimate` and `calibrate`, called in this process."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import typer

from estimator.cli.calibrate import calibrate_app
from estimator.cli.estimate import estimate_app
from hardware.command import run_command


def estimate(*arguments: str, app: typer.Typer = estimate_app) -> tuple[int, str, str]:
    """Run `estimate`: exit status, standard output, standard error."""
    return _call(app, "estimate", arguments)


def calibrate(*arguments: str) -> tuple[int, str, str]:
    """Run `calibrate`: exit status, standard output, standard error."""
    return _call(calibrate_app, "calibrate", arguments)


def _call(app: typer.Typer, name: str, arguments: tuple[str, ...]) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run_command(app, name, arguments)
    return status, out.getvalue(), err.getvalue()
