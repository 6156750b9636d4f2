import json
import os
import signal
import subprocess
import sys

import pytest

from hardware.catalog import load_catalog
from hardware.smi.cli import smi_app
from hardware.smi.jobs import publish
from hardware.smi.processes import resident_bytes
from hardware.smi.selection import load_selection, selection_path
from hardware.units import MIB
from tests.support.terminal import PATIENCE_S, at_pipe, at_terminal
from tests.support.trainers import job, running_rank

pytestmark = pytest.mark.usefixtures("home")
CATALOG = load_catalog()
SCRIPT = "import sys; from hardware.smi.cli import smi_main; sys.argv = ['smi', *{}]; smi_main()"
OFTEN = "import hardware.smi.cli; hardware.smi.cli.WATCH_S = 0.1\n"
"""Goes before the script of a command that looks again and again."""


def call(*arguments: str, typed: str = "") -> tuple[int, str, str]:
    """Run the command, a pipe its input: exit status, standard output, standard error."""
    return at_pipe(smi_app, "smi", arguments, typed)


def devices() -> dict[int, str]:
    """Return the flavor of each accelerator."""
    return {chosen.device: chosen.flavor for chosen in load_selection().selection.accelerators}


def test_idle() -> None:
    """While nothing trains there is one table, with the current flavor and dashes."""
    status, out, err = call()
    assert (status, err) == (0, "")
    assert (
        "|  * 0     |   MoAI Accelerator  |  4xLarge.2048GB  |  -             |  -             |  -            |\n"
        in out
    )
    assert "Processes" not in out


def test_beside_a_run_of_two_processes() -> None:
    """With a run of two processes each one's memory is shown within 2 % of its own, and after SIGKILL it is gone."""
    with running_rank(0, 60_000_000) as first, running_rank(1, 120_000_000) as second:
        _, out, _ = call()
        shown = {
            int(cells[3]): float(cells[5].removesuffix(" MiB"))
            for cells in ([cell.strip() for cell in line.split("|")] for line in out.splitlines())
            if len(cells) == 7 and cells[2] == "j"
        }
        own = {process.pid: resident_bytes(process.pid) or 0 for process in (first, second)}
        assert shown == pytest.approx({pid: held / MIB for pid, held in own.items()}, rel=0.02)
        first.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        _, out, _ = call()
        assert str(second.pid) in out
        assert str(first.pid) not in out


def test_json() -> None:
    """With --json there is one object and nothing else; with -i it holds that device alone."""
    with publish(job()):
        call("device", "--add", "3")
        whole = json.loads(call("--json")[1])
        only = json.loads(call("--json", "-i", "1")[1])
    assert [a["device"] for a in whole["accelerators"]] == [0, 1]
    assert [p["pid"] for p in whole["processes"]] == [os.getpid()]
    assert ([a["flavor"] for a in only["accelerators"]], only["processes"]) == (["Large.256GB"], [])
    assert json.loads(call("-p", "--json")[1])["schema"] == "smi-devices/1"


def test_this_machines_devices() -> None:
    """With -p each device of this machine has a line, with the ranks on it."""
    with publish(job()):
        status, out, _ = call("-p")
    assert status == 0
    assert "Location" in out
    assert len(out.splitlines()) >= 6


def test_a_run_is_asked_to_stop() -> None:
    """With -r the run of the device is asked, ends by itself, and its accelerator is idle; then none is asked."""
    with running_rank() as rank:
        status, out, _ = call("-r")
        assert status == 0
        assert out.startswith(f"Device 0: job 'j' is asked to write a checkpoint and stop (PID {rank.pid}).\n")
        assert rank.wait(timeout=PATIENCE_S) == 0
    assert "Processes" not in call()[1]
    assert call("-r") == (2, "", "device 0: no training run uses it; there is nothing to stop\n")
    assert call("-r", "-i", "3")[2] == "device 3: no training run uses it; there is nothing to stop\n"


def test_devices_are_added_switched_and_removed() -> None:
    """The device options change what they say, by number or by name, and show what is there now."""
    assert call("device", "--list")[1].startswith("1. Small.64GB\n2. Medium.128GB\n")
    status, out, _ = call("device", "--add", "10")
    assert status == 0
    assert out.endswith("Create device success.\n")
    assert "|  * 0     |   MoAI Accelerator  |  4xLarge.2048GB  |\n|    1     |" in out
    assert call("device", "--add", "mi300x8")[0] == 0
    assert devices() == {0: "4xLarge.2048GB", 1: "8xLarge.4096GB", 2: "mi300x8"}
    assert call("device", "--switch", "2")[1].endswith("Switch current device success.\n")
    assert "|  * 2     |" in call()[1]
    assert call("device", "--rm", "1")[1].endswith("Remove device success.\n")
    assert devices() == {0: "4xLarge.2048GB", 2: "mi300x8"}


def test_devices_are_asked_for() -> None:
    """Without a number the menu or the devices are shown, and the number is asked for, again and again until q."""
    status, out, _ = call("device", "--add", typed="3\n1\nq\n")
    assert status == 0
    assert out.startswith("1. Small.64GB\n")
    assert devices() == {0: "4xLarge.2048GB", 1: "Large.256GB", 2: "Small.64GB"}
    assert "Selection (0-2, q, Q): " in call("device", "--switch", typed="1\n")[1]
    assert load_selection().selection.current == 1
    assert call("device", "--rm", typed="2\nq\n")[0] == 0
    assert devices() == {0: "4xLarge.2048GB", 1: "Large.256GB"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-i", "3"), "device 3: there is none; use one of 0"),
        (("-i", "x"), "device: 'x' is not a number; use one of those in the column Device"),
        (("-p", "-i", "0"), "idx: -i '0' is given beside -p, which shows the machine's devices; give one or the other"),
        (("-r", "-p"), "reset: -r is given beside -p, --watch or --json; give it alone, or with -i"),
        (("-r", "--json"), "reset: -r is given beside -p, --watch or --json; give it alone, or with -i"),
        (("device",), "device: give one of --list, --add, --rm and --switch"),
        (("device", "--add", "--rm", "1"), "device: give one of --list, --add, --rm and --switch"),
        (("device", "--list", "1"), "device: --list is given beside '1'; leave that out"),
        (("device", "--add", "14"), "selection: '14' is not on the menu; use 1-13, or a name"),
        (("device", "--rm", "0"), "device 0: it is the only accelerator; switch its flavor: switch-model"),
        (("device", "--switch", "4"), "device 4: there is none; use one of 0"),
        (("device", "--rm", "one"), "device: 'one' is not a number; use one of those in the column Device"),
        (
            ("device", "--rm", "0000000001"),
            "device: '0000000001' is not a number; use one of those in the column Device",
        ),
        (("other",), "No such command 'other'.; see smi --help"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], told: str) -> None:
    """What cannot be done is told in one line, with status 2, and nothing is written."""
    assert call(*arguments) == (2, "", f"{told}\n")
    assert not selection_path().exists()


def test_problems_are_told() -> None:
    """A choice that cannot be read is told in one line on standard error, and the seed flavor shown."""
    selection_path().parent.mkdir()
    selection_path().write_text('{"schema": "selection/2"}')
    status, out, err = call()
    assert status == 0
    assert err == (
        f"{selection_path()}: has schema 'selection/2', not 'selection/1'; update this package, or remove the file; "
        "4xLarge.2048GB is used\n"
    )
    assert "4xLarge.2048GB" in out


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_at_a_terminal(columns: int, environment: dict[str, str]) -> None:
    """At a terminal the tables fit its columns, without colours; 80 are enough for every figure."""
    with running_rank() as rank:
        status, screen = at_terminal(SCRIPT.format([]), columns=columns, environment=environment)
    assert status == 0
    assert "\x1b" not in screen
    assert max(map(len, screen.splitlines())) <= columns
    assert str(rank.pid) in screen
    assert "| 1/9 " in screen.replace("|  1/9", "| 1/9")


def test_watching_a_terminal_ends_with_ctrl_c() -> None:
    """At a terminal --watch takes the whole screen, and Ctrl-C ends it well and gives the screen back."""
    status, screen = at_terminal(SCRIPT.format(["--watch"]), ["\x03"], prompt="4xLarge.2048GB")
    assert status == 0
    assert "4xLarge.2048GB" in screen
    assert screen.index("\x1b[?1049h") < screen.index("\x1b[?1049l")
    assert "Traceback" not in screen


def test_watching_through_a_pipe() -> None:
    """Through a pipe --watch --json prints one object a line, as they come; Ctrl-C ends it well."""
    command = [sys.executable, "-c", OFTEN + SCRIPT.format(["--watch", "--json"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_S) == 0
    assert [look["schema"] for look in looks] == ["smi/1", "smi/1"]


def test_a_reader_that_has_seen_enough() -> None:
    """When the reader of a pipe goes away, --watch ends well."""
    command = [sys.executable, "-c", OFTEN + SCRIPT.format(["--watch"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=PATIENCE_S) == 0
        assert process.stderr.read() == ""


def test_it_starts_light() -> None:
    """The command imports neither torch nor the estimator, nor the vendors' packages while nothing trains."""
    script = "import sys; from hardware.smi.cli import smi_app; from hardware.command import run_command\n"
    script += (
        "run_command(smi_app, 'smi', []); print({'torch', 'estimator', 'numpy', 'pynvml', 'amdsmi'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    assert ended.stdout.endswith("set()\n")
