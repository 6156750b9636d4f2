"""Predictions held against measured runs, and a stack fitted to them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from estimator.api.options import PathLike
from estimator.api.runs import as_paths

if TYPE_CHECKING:
    from estimator.api.calibration import Calibration


def calibrate(
    paths: PathLike | Iterable[PathLike],
    stack: PathLike | None = None,
    *,
    check: bool = False,
    hold_out: bool = False,
    write: bool = False,
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
        write: write what was found into the stack's file.
        catalog: TOML files of further hardware.

    Returns:
        Each run beside its prediction; and the stack, where one was fitted.

    Raises:
        ValueError: a file cannot be read, or options contradict each other: what was given, the rule, and the mend.
    """
    from estimator.api.calibration import checked, fitted, held_out  # noqa: PLC0415 - fits take time to import

    together = [f"--{name}" for name, on in (("check", check), ("hold-out", hold_out), ("write", write)) if on]
    if len(together) > 1:
        raise ValueError(f"{together[0][2:]}: {' and '.join(together)} are given together; give one")
    files, hardware = as_paths(paths), as_paths(catalog)
    if check or hold_out:
        return (checked if check else held_out)(files, None if stack is None else str(stack), hardware)
    if stack is None:
        raise ValueError("stack: a fit needs the stack that it is for; add --stack NAME, or --check to only predict")
    return fitted(files, str(stack), hardware, write=write)
