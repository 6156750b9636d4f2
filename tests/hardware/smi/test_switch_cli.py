from pathlib import Path

import pytest

from hardware.catalog import load_catalog
from hardware.smi.jobs import publish
from hardware.smi.selection import load_selection, selection_path
from hardware.smi.switch_cli import switch_app
from hardware.smi.switching import add_accelerator, make_current, switch_flavor
from tests.support.terminal import at_pipe, at_terminal
from tests.support.trainers import job

pytestmark = pytest.mark.usefixtures("home")
CATALOG = load_catalog()
SCRIPT = "from hardware.smi.switch_cli import switch_main; switch_main()"
CTRL_C, CTRL_D = "\x03", "\x04"

MENU = [
    "1. Small.64GB",
    "2. Medium.128GB",
    "3. Large.256GB",
    "4. xLarge.512GB",
    "5. 1.5xLarge.768GB",
    "6. 2xLarge.1024GB",
    "7. 3xLarge.1536GB",
    "8. 4xLarge.2048GB",
    "9. 6xLarge.3072GB",
    "10. 8xLarge.4096GB",
    "11. 12xLarge.6144GB",
    "12. 24xLarge.12288GB",
    "13. 48xLarge.24576GB",
]


def call(*arguments: str, typed: str = "") -> tuple[int, str, str]:
    """Run the command, a pipe its input: exit status, standard output, standard error."""
    return at_pipe(switch_app, "switch-model", arguments, typed)


def chosen() -> str:
    """Return the flavor of the current accelerator."""
    selection = load_selection().selection
    return selection.flavor(selection.current)


def page(current: str, *, others: bool = True) -> str:
    """Return the menu as the tutorial page shows it, and the flavors that come after it."""
    lines = [f"{line}  *" if line.endswith(f" {current}") else line for line in MENU]
    return "\n".join(lines + ["   mi210x32", "   mi300x8"] * others)


def test_the_dialogue_of_the_page() -> None:
    """The tutorial page's dialogue, typed at a terminal, shows what the page shows and leaves what it says."""
    switch_flavor(CATALOG.flavor("Small.64GB"))
    status, screen = at_terminal(SCRIPT, ["8\n", "q\n"])
    assert status == 0
    assert screen == (
        f"Current MoAI Accelerator: Small.64GB\n\n{page('Small.64GB')}\n\n"
        'Selection (1-13, q, Q): 8\nThe MoAI Accelerator model is successfully switched to  "4xLarge.2048GB".\n\n'
        f"{page('4xLarge.2048GB')}\n\nSelection (1-13, q, Q): q\n"
    )
    assert chosen() == "4xLarge.2048GB"


def test_a_wrong_selection_is_asked_again() -> None:
    """At a terminal what is not on the menu is told in one line, and asked again; nothing changes by it."""
    status, screen = at_terminal(SCRIPT, ["14\n", "\n", "5xLarge\n", "mi300x8\n", "Q\n"])
    assert status == 0
    assert "(1-13, q, Q): 14\nselection: '14' is not on the menu; use 1-13, or a name\nSelection" in screen
    assert "(1-13, q, Q): \nselection: '' is not on the menu; use 1-13, or a name\nSelection" in screen
    assert "unknown flavor '5xLarge': did you mean 4xLarge.2048GB or 6xLarge.3072GB?\nSelection" in screen
    assert "   mi300x8  *\n" in screen
    assert chosen() == "mi300x8"


@pytest.mark.parametrize(("key", "status", "end"), [(CTRL_C, 2, "\ninterrupted\n"), (CTRL_D, 0, "\n")])
def test_leaving_by_a_key(key: str, status: int, end: str) -> None:
    """Ctrl-C and Ctrl-D leave the dialogue on a line of their own; what was switched before stays switched."""
    ended, screen = at_terminal(SCRIPT, ["3\n", key])
    assert ended == status
    assert screen.rpartition("Selection (1-13, q, Q): ")[2].removeprefix("^C") == end
    assert chosen() == "Large.256GB"


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
@pytest.mark.parametrize("columns", [80, 200])
def test_the_same_on_any_terminal(columns: int, environment: dict[str, str]) -> None:
    """The dialogue has no colours, and no line that 80 columns do not hold."""
    status, screen = at_terminal(SCRIPT, ["q\n"], columns, environment)
    assert status == 0
    assert "\x1b" not in screen
    assert max(map(len, screen.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [("-M", "8"), ("-M", "4xlarge"), ("8",), ("4xLarge.2048GB",), ("--model=8",)])
def test_without_a_dialogue(arguments: tuple[str, ...]) -> None:
    """A number or a name switches at once, and says so in one line."""
    switch_flavor(CATALOG.flavor("small"))
    assert call(*arguments) == (0, 'The MoAI Accelerator model is successfully switched to  "4xLarge.2048GB".\n', "")
    assert chosen() == "4xLarge.2048GB"


def test_from_a_pipe() -> None:
    """Selections come from a pipe as well; its end ends the dialogue; a wrong one ends it with status 2."""
    assert call(typed="3\nq\n")[0] == 0
    assert chosen() == "Large.256GB"
    assert call(typed="")[0] == 0
    status, out, err = call(typed="99\n1\n")
    assert (status, err) == (2, "selection: '99' is not on the menu; use 1-13, or a name\n")
    assert page("Large.256GB") in out
    assert chosen() == "Large.256GB"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-M", "14"), "selection: '14' is not on the menu; use 1-13, or a name"),
        (("5xLarge",), "unknown flavor '5xLarge': did you mean 4xLarge.2048GB or 6xLarge.3072GB?"),
        (("-M", "8", "9"), "model: -M '8' is given beside '9'; give one or the other"),
        (("--catalog", "nowhere.toml"), "nowhere.toml: no such file; check the path"),
        (("-M",), "Option '-M' requires an argument.; see switch-model --help"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], told: str) -> None:
    """What cannot be done is told in one line, with status 2, and nothing is written."""
    assert call(*arguments) == (2, "", f"{told}\n")
    assert not selection_path().exists()


def test_while_a_run_uses_it() -> None:
    """While a run uses the current accelerator the command shows what is, and refuses; another one can be switched."""
    with publish(job()):
        for arguments in ((), ("3",)):
            status, out, err = call(*arguments)
            assert (status, out.count("*")) == (2, 1 - len(arguments))
            assert err.startswith("device 0: job 'j' (PID ")
            assert err.endswith("step 0 of 9) uses it; wait for its end, or ask it to stop: smi -r -i 0\n")
        assert chosen() == "4xLarge.2048GB"
        add_accelerator(CATALOG.flavor("small"))
        make_current(1)
        assert call("3")[0] == 0
        assert chosen() == "Large.256GB"


def test_a_run_that_starts_during_the_dialogue() -> None:
    """A run that starts while the prompt waits is respected as well."""
    script = f"""
import builtins
from hardware.smi.jobs import publish
from tests.support.trainers import job
ask = builtins.input
def begin_training(prompt):
    global run
    run = publish(job())
    return ask(prompt)
builtins.input = begin_training
{SCRIPT}
"""
    status, screen = at_terminal(script, ["3\n"])
    assert status == 2
    assert screen.rstrip("\n").endswith("uses it; wait for its end, or ask it to stop: smi -r -i 0")
    assert chosen() == "4xLarge.2048GB"


def test_where_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an environment that names its flavor that one has the star, and switching is refused."""
    monkeypatch.setenv("ACCELERATOR_FLAVOR", "small")
    status, out, err = call()
    assert (status, err) == (2, "ACCELERATOR_FLAVOR='small' decides in this environment; unset it to switch\n")
    assert out == f"Current MoAI Accelerator: Small.64GB\n\n{page('Small.64GB')}\n\n"


def test_a_damaged_choice() -> None:
    """A damaged file is told in one line, the menu is shown with the seed flavor, and a switch mends it."""
    selection_path().parent.mkdir()
    selection_path().write_text("{")
    status, out, err = call(typed="2\n")
    assert status == 0
    assert err.startswith(f"{selection_path()}: is damaged: ")
    assert out.startswith("Current MoAI Accelerator: 4xLarge.2048GB\n")
    assert chosen() == "Medium.128GB"


def test_where_nothing_can_be_kept(home: Path) -> None:
    """Where the state directory cannot be written the command shows what is; asked to switch, it tells the mend."""
    (home / "XDG_STATE_HOME" / "foretrain").write_text("")
    assert call(typed="q\n")[0] == 0
    status, _, err = call("3")
    assert status == 2
    assert err.endswith(
        "cannot be written: File exists; set XDG_STATE_HOME to a directory of yours, or choose with "
        "ACCELERATOR_FLAVOR=NAME\n"
    )
