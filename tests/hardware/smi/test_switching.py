import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from hardware.catalog import load_catalog
from hardware.smi import jobs, switching
from hardware.smi.jobs import publish, running_jobs
from hardware.smi.selection import (
    ChosenAccelerator,
    Selection,
    load_selection,
    save_selection,
    selection_lock,
    selection_path,
)
from hardware.smi.switching import add_accelerator, make_current, remove_accelerator, switch_flavor
from tests.support.terminal import PATIENCE_S
from tests.support.trainers import job, running_rank

pytestmark = pytest.mark.usefixtures("home")
CATALOG = load_catalog()
SMALL, LARGE = CATALOG.flavor("small"), CATALOG.flavor("large")


def shown() -> tuple[int, dict[int, str]]:
    """Return the current device, and the flavor of each."""
    selection = load_selection().selection
    return selection.current, {chosen.device: chosen.flavor for chosen in selection.accelerators}


def test_switching_changes_the_current_one_alone() -> None:
    """The current accelerator gets the flavor, the others keep theirs."""
    switch_flavor(SMALL)
    assert shown() == (0, {0: "Small.64GB"})
    add_accelerator(SMALL)
    make_current(1)
    switch_flavor(LARGE)
    assert shown() == (1, {0: "Small.64GB", 1: "Large.256GB"})


def test_up_to_five() -> None:
    """Five accelerators are held and no sixth; a removed one's number is the next to be given."""
    for _ in range(4):
        add_accelerator(SMALL)
    with pytest.raises(
        ValueError, match=r"^5 accelerators are there, as many as an environment holds; remove one: smi dev"
    ):
        add_accelerator(SMALL)
    remove_accelerator(2)
    assert sorted(shown()[1]) == [0, 1, 3, 4]
    add_accelerator(LARGE)
    assert shown()[1][2] == "Large.256GB"


def test_removing_the_current_one() -> None:
    """The lowest that is left becomes current; the last one stays; one that is not there is told."""
    add_accelerator(SMALL)
    make_current(1)
    assert remove_accelerator(1).current == 0
    with pytest.raises(ValueError, match=r"^device 0: it is the only accelerator; switch its flavor: switch-model$"):
        remove_accelerator(0)
    for change in (remove_accelerator, make_current):
        with pytest.raises(ValueError, match=r"^device 4: there is none; use one of 0$"):
            change(4)


def test_a_run_keeps_its_accelerator() -> None:
    """While a run uses an accelerator neither its flavor changes nor is it removed; others may; afterwards it may."""
    with running_rank() as rank:
        told = rf"^device 0: job 'j' \(PID {rank.pid}, step 1 of 9\) uses it; wait for its end, .* stop: smi -r -i 0$"
        for refused in (lambda: switch_flavor(SMALL), lambda: remove_accelerator(0)):
            with pytest.raises(ValueError, match=told):
                refused()
        assert shown() == (0, {0: "4xLarge.2048GB"})
        add_accelerator(SMALL)
        make_current(1)
        switch_flavor(LARGE)
    make_current(0)
    switch_flavor(LARGE)
    assert shown() == (0, {0: "Large.256GB", 1: "Large.256GB"})


def test_a_run_that_starts_meanwhile_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that starts between the look for runs and the change publishes after it, so neither is overlooked."""
    monkeypatch.setattr(jobs, "_LOCK_TIMEOUT_S", PATIENCE_S)
    refuse = switching.refuse_in_use
    with ThreadPoolExecutor() as pool:
        started = []

        def look_then_let_one_start(device: int) -> None:
            refuse(device)
            started.append(pool.submit(publish, job()))
            with pytest.raises(TimeoutError):
                started[0].result(timeout=0.2)

        monkeypatch.setattr(switching, "refuse_in_use", look_then_let_one_start)
        switch_flavor(SMALL)
        with started[0].result():
            assert len(running_jobs().jobs) == 1


@pytest.mark.parametrize("change", [lambda: switch_flavor(SMALL), lambda: make_current(0)])
def test_where_the_environment_decides(change: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment names a flavor, switching would have no effect, and is refused."""
    monkeypatch.setenv("ACCELERATOR_FLAVOR", "mi300x8")
    assert callable(change)
    with pytest.raises(
        ValueError, match=r"^ACCELERATOR_FLAVOR='mi300x8' decides in this environment; unset it to switch$"
    ):
        change()
    assert not selection_path().exists()


def test_a_newer_file_is_not_replaced() -> None:
    """What a newer version wrote stays as it is."""
    selection_path().parent.mkdir()
    selection_path().write_text('{"schema": "selection/9"}')
    with pytest.raises(
        ValueError, match=r"has schema 'selection/9', not 'selection/1'; update this package, or remove"
    ):
        switch_flavor(SMALL)
    assert selection_path().read_text() == '{"schema": "selection/9"}'


def test_concurrent_switchers_lose_nothing() -> None:
    """Two switchers, each with an accelerator of its own, and a reader: none sees a torn file or a lost change."""
    assert contend(operations=100) >= 100


def contend(operations: int) -> int:
    """Let two processes switch and a third read until each switcher has done its part; return the readings."""
    with selection_lock():
        save_selection(
            Selection(accelerators=tuple(ChosenAccelerator(device=device, flavor=SMALL.id) for device in (0, 1)))
        )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool, context.Manager() as manager:
        done = manager.Event()
        readings = pool.submit(_read_until, done)
        switchers = [pool.submit(_switch_many, device, operations) for device in (0, 1)]
        try:
            last = [switcher.result() for switcher in switchers]
        finally:
            done.set()
        assert shown()[1] == dict(enumerate(last))
        return readings.result()


def _switch_many(device: int, operations: int) -> str:
    """Give one accelerator one flavor after another, and find each there although another process changes its own."""
    switching.selection_lock = partial(selection_lock, PATIENCE_S)  # type: ignore[assignment]
    chance = random.Random(device)  # noqa: S311
    flavor = SMALL
    for _ in range(operations):
        found = load_selection()
        assert (found.problem, found.selection.flavor(device)) == ("", flavor.id)
        flavor = chance.choice(CATALOG.flavors)
        switching._change(lambda old, new=flavor: _with_flavor_of(old, device, new.id))  # noqa: SLF001
    return flavor.id


def _with_flavor_of(selection: Selection, device: int, flavor: str) -> Selection:
    return Selection(
        current=selection.current,
        accelerators=tuple(
            ChosenAccelerator(device=device, flavor=flavor) if chosen.device == device else chosen
            for chosen in selection.accelerators
        ),
    )


def _read_until(done: object) -> int:
    readings = 0
    while not done.is_set():  # type: ignore[attr-defined]
        for _ in range(100):
            found = load_selection()
            assert found.problem == ""
            assert [chosen.device for chosen in found.selection.accelerators] == [0, 1]
            readings += 1
    return readings


def test_no_draft_is_left(home: Path) -> None:
    """After a change the state directory holds the choice and its lock alone."""
    switch_flavor(SMALL)
    assert {path.name for path in (home / "XDG_STATE_HOME" / "foretrain").iterdir()} == {
        "selection.json",
        "selection.lock",
    }
