import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalog import load_catalog
from hardware.smi.selection import (
    MOST_ACCELERATORS,
    SEED_FLAVOR,
    ChosenAccelerator,
    LoadedSelection,
    Selection,
    current_flavor,
    load_selection,
    save_selection,
    selection_lock,
    selection_path,
)

pytestmark = pytest.mark.usefixtures("home")
CATALOG = load_catalog()
FLAVORS = [flavor.id for flavor in CATALOG.flavors]

selections = st.dictionaries(st.integers(0, MOST_ACCELERATORS - 1), st.sampled_from(FLAVORS), min_size=1).flatmap(
    lambda flavors: st.builds(
        Selection,
        current=st.sampled_from(sorted(flavors)),
        accelerators=st.just(
            tuple(ChosenAccelerator(device=device, flavor=flavors[device]) for device in sorted(flavors))
        ),
    )
)


def test_the_seed_flavor_is_the_published_one() -> None:
    """Without a choice it is the flavor of the seed run that decides, and no file is made."""
    assert load_selection() == LoadedSelection(Selection())
    assert current_flavor().record(CATALOG).id == SEED_FLAVOR == "4xLarge.2048GB"
    assert not selection_path().exists()


@given(selection=selections)
def test_what_is_saved_is_loaded(selection: Selection) -> None:
    """Any choice comes back as it was saved, and decides."""
    with selection_lock():
        save_selection(selection)
    assert load_selection() == LoadedSelection(selection)
    assert current_flavor().name == selection.flavor(selection.current)


def test_the_file_is_the_users_alone() -> None:
    """The file lies in the state directory, and others cannot read it."""
    with selection_lock():
        save_selection(Selection())
    assert selection_path() == Path(os.environ["XDG_STATE_HOME"]) / "foretrain" / "selection.json"
    assert stat.S_IMODE(selection_path().stat().st_mode) == 0o600
    assert stat.S_IMODE(selection_path().parent.stat().st_mode) == 0o700


def test_the_environment_decides_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable goes before the choice, in any spelling; empty or blank it says nothing."""
    with selection_lock():
        save_selection(Selection(accelerators=(ChosenAccelerator(device=0, flavor="mi300x8"),)))
    monkeypatch.setenv("ACCELERATOR_FLAVOR", "4XLARGE")
    assert current_flavor().record(CATALOG).id == current_flavor().id_in(CATALOG) == "4xLarge.2048GB"
    monkeypatch.setenv("ACCELERATOR_FLAVOR", " ")
    assert current_flavor().name == "mi300x8"


def test_an_unknown_flavor_names_who_chose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flavor that the catalog does not know is an error that names the variable or the choice, never another's."""
    with selection_lock():
        save_selection(Selection(accelerators=(ChosenAccelerator(device=0, flavor="mine-7"),)))
    with pytest.raises(
        ValueError, match=r"^the flavor that switch-model chose: unknown flavor 'mine-7': use .*--catalog"
    ):
        current_flavor().record(CATALOG)
    assert current_flavor().id_in(CATALOG) == "mine-7"
    monkeypatch.setenv("ACCELERATOR_FLAVOR", "mi300")
    with pytest.raises(
        ValueError, match=r"^ACCELERATOR_FLAVOR: unknown flavor 'mi300': did you mean mi300x8 or mi300x-x8\?"
    ):
        current_flavor().record(CATALOG)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is damaged: 'Expecting value"),
        (" " * (2**20 + 1), "is larger than 1,048,576 bytes"),
        ("[" * 100_000, "is damaged: "),
        ("\xff", "is damaged: "),
        ("[]", "has schema None, not 'selection/1'"),
        ("{}", "has schema None, not 'selection/1'"),
        ('{"schema": "jobs/7"}', "has schema 'jobs/7', not 'selection/1'"),
        ('{"schema": "selection/1", "current": 1}', r"is damaged: current: device 1 is not among \[0\]; name one"),
        ('{"schema": "selection/1", "current": "0"}', "is damaged: current: '0' does not fit"),
        ('{"schema": "selection/1", "more": 1}', "is damaged: more: is not a field"),
        ('{"schema": "selection/1", "accelerators": []}', "is damaged: accelerators: "),
        (
            '{"schema": "selection/1", "accelerators": [{"device": 1, "flavor": "a"}, {"device": 0, "flavor": "a"}]}',
            r"is damaged: accelerators: devices \[1, 0\] do not increase; give each a number of its own",
        ),
    ],
)
def test_a_damaged_file_is_told_kept_and_replaced(text: str, what: str) -> None:
    """A file that is no choice is told in one line with the mend, the seed flavor is used; the next choice keeps it."""
    selection_path().parent.mkdir()
    selection_path().write_text(text, encoding="latin-1")
    with pytest.raises(
        ValueError, match=f"^{selection_path()}: {what}.*; switch-model writes it anew; {SEED_FLAVOR} is"
    ):
        raise ValueError(load_selection().problem)
    assert "\n" not in load_selection().problem
    assert current_flavor().name == SEED_FLAVOR
    assert current_flavor().problem == load_selection().problem
    with selection_lock():
        save_selection(Selection())
    assert load_selection() == LoadedSelection(Selection())
    assert selection_path().with_suffix(".damaged").read_text(encoding="latin-1") == text


def test_a_pipe_is_not_waited_for() -> None:
    """Where a pipe is instead of the file, that is told, and the seed flavor is used."""
    selection_path().parent.mkdir()
    os.mkfifo(selection_path())
    assert load_selection().problem.startswith(f"{selection_path()}: is a pipe, not a file; ")
    assert current_flavor().name == SEED_FLAVOR


def test_a_newer_file_is_told() -> None:
    """A file of a newer version is told with its mend, is marked as not to be replaced, and the seed flavor is used."""
    selection_path().parent.mkdir()
    selection_path().write_text('{"schema": "selection/2", "flavour": "nine"}')
    found = load_selection()
    assert found.is_newer
    assert found.selection == Selection()
    assert found.problem == (
        f"{selection_path()}: has schema 'selection/2', not 'selection/1'; "
        f"update this package, or remove the file; {SEED_FLAVOR} is used"
    )


def test_a_file_that_is_a_directory_is_told() -> None:
    """What cannot be read at all is told, and the seed flavor is used."""
    selection_path().mkdir(parents=True)
    assert load_selection().problem.startswith(f"{selection_path()}: is a directory, not a file; ")
    assert current_flavor().name == SEED_FLAVOR


def test_an_unwritable_directory_is_told(home: Path) -> None:
    """Where the choice cannot be kept, the error says so and names two mends; the seed flavor is used."""
    (home / "XDG_STATE_HOME" / "foretrain").write_text("a file in the place of a directory")
    mend = "cannot be written: File exists; set XDG_STATE_HOME to a directory of yours, or choose with ACCELERATOR_FL"
    with pytest.raises(ValueError, match=mend), selection_lock():
        pass
    assert load_selection() == LoadedSelection(Selection())


def test_a_disk_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the new choice cannot be written, the error says so, and the old one stays."""
    old = Selection(accelerators=(ChosenAccelerator(device=0, flavor="mi300x8"),))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with selection_lock():
        save_selection(old)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ValueError, match="cannot be written: No space left on device; set XDG_STATE_HOME"):
            save_selection(Selection())
    assert load_selection() == LoadedSelection(old)


def test_one_holds_the_choice() -> None:
    """While one holds the choice another does not get it, and says so in time; afterwards it does."""
    with ThreadPoolExecutor() as pool:
        with selection_lock():
            waiting = pool.submit(_hold, 0.05)
            with pytest.raises(
                ValueError, match=r"another process has held it for 0.05 s; end that one, then try again$"
            ):
                waiting.result()
        pool.submit(_hold, 0.05).result()


def _hold(timeout_s: float) -> None:
    with selection_lock(timeout_s):
        pass


def test_an_unknown_device_is_told() -> None:
    """Asking for the flavor of a device that is not there names those that are."""
    with pytest.raises(ValueError, match=r"^device 3: there is none; use one of 0$"):
        Selection().flavor(3)


def test_reading_does_without_the_lock() -> None:
    """Who only reads imports no lock, and so starts sooner."""
    script = "import sys, hardware.smi.selection as s; s.current_flavor(); print('filelock' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    assert ended.stdout == "False\n"


def test_the_file_is_plain_json() -> None:
    """The file says which version wrote it, and can be read and mended by hand."""
    with selection_lock():
        save_selection(Selection())
    assert json.loads(selection_path().read_text()) == {
        "schema": "selection/1",
        "current": 0,
        "accelerators": [{"device": 0, "flavor": SEED_FLAVOR}],
    }
