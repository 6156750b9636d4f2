"""Changing the accelerators of an environment, which a training run that uses them does not allow."""

from collections.abc import Callable

from hardware.errors import shown
from hardware.models import Flavor
from hardware.smi.jobs import RunningJob, running_jobs
from hardware.smi.selection import (
    MOST_ACCELERATORS,
    VARIABLE,
    ChosenAccelerator,
    Selection,
    environment_flavor,
    load_selection,
    save_selection,
    selection_lock,
)


def switch_flavor(flavor: Flavor) -> Selection:
    """Give the current accelerator another flavor.

    Raises:
        ValueError: a run uses it, the environment decides, or the choice cannot be kept; then nothing has changed.
    """
    refuse_environment()
    return _change(lambda selection: _with_flavor(selection, flavor.id))


def add_accelerator(flavor: Flavor) -> Selection:
    """Add an accelerator under the lowest free number; the current one stays.

    Raises:
        ValueError: there are as many as an environment holds, or the choice cannot be kept.
    """
    return _change(lambda selection: _with_another(selection, flavor.id))


def remove_accelerator(device: int) -> Selection:
    """Remove an accelerator; the others keep their numbers, and the lowest one becomes current if this one was.

    Raises:
        ValueError: there is none of this number, it is the only one, a run uses it, or the choice cannot be kept.
    """
    return _change(lambda selection: _without(selection, device))


def make_current(device: int) -> Selection:
    """Make an accelerator the current one, which the next run uses; a run on another one goes on.

    Raises:
        ValueError: there is none of this number, the environment decides, or the choice cannot be kept.
    """
    refuse_environment()
    return _change(lambda selection: _with_current(selection, device))


def refuse_environment() -> None:
    """Refuse to switch where it would have no effect.

    Raises:
        ValueError: the environment names a flavor, which decides.
    """
    if name := environment_flavor():
        raise ValueError(f"{VARIABLE}={shown(name)} decides in this environment; unset it to switch")


def refuse_in_use(device: int) -> None:
    """Refuse to change an accelerator that a training run uses.

    Raises:
        ValueError: a run of this user on this machine uses it.
    """
    for job in running_jobs().jobs:
        if job.device == device:
            raise ValueError(
                f"device {device}: {_name(job)} uses it; wait for its end, or ask it to stop: smi -r -i {device}"
            )


def _change(change: Callable[[Selection], Selection]) -> Selection:
    """Replace the choice by what follows from it, while no other process changes it and no trainer starts."""
    with selection_lock():
        loaded = load_selection()
        if loaded.is_newer:
            raise ValueError(loaded.problem)
        selection = change(loaded.selection)
        save_selection(selection)
        return selection


def _with_flavor(selection: Selection, flavor: str) -> Selection:
    refuse_in_use(selection.current)
    return _with_accelerators(
        selection,
        [
            ChosenAccelerator(device=chosen.device, flavor=flavor) if chosen.device == selection.current else chosen
            for chosen in selection.accelerators
        ],
    )


def _with_another(selection: Selection, flavor: str) -> Selection:
    taken = {chosen.device for chosen in selection.accelerators}
    free = next((device for device in range(MOST_ACCELERATORS) if device not in taken), None)
    if free is None:
        raise ValueError(
            f"{len(taken)} accelerators are there, as many as an environment holds; remove one: smi device --rm N"
        )
    added = [*selection.accelerators, ChosenAccelerator(device=free, flavor=flavor)]
    return _with_accelerators(selection, sorted(added, key=lambda chosen: chosen.device))


def _without(selection: Selection, device: int) -> Selection:
    selection.flavor(device)
    refuse_in_use(device)
    others = [chosen for chosen in selection.accelerators if chosen.device != device]
    if not others:
        raise ValueError(f"device {device}: it is the only accelerator; switch its flavor: switch-model")
    current = others[0].device if selection.current == device else selection.current
    return Selection(current=current, accelerators=tuple(others))


def _with_current(selection: Selection, device: int) -> Selection:
    selection.flavor(device)
    return Selection(current=device, accelerators=selection.accelerators)


def _with_accelerators(selection: Selection, accelerators: list[ChosenAccelerator]) -> Selection:
    return Selection(current=selection.current, accelerators=tuple(accelerators))


def _name(job: RunningJob) -> str:
    return f"job {shown(job.job.job_id)} (PID {job.pid}, step {job.step} of {job.job.total_steps})"
