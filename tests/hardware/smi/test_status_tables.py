import json
from datetime import datetime
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from hardware.smi.devices import MachineDevice
from hardware.smi.selection import ChosenAccelerator, Selection
from hardware.smi.status import AcceleratorStatus, MachineStatus, ProcessStatus, RunStatus, Status
from hardware.smi.status_tables import machine_document, machine_table, selection_table, status_document, status_tables
from hardware.units import GIB, MIB

AT = datetime(2024, 4, 22, 1, 6, 31).timestamp()  # noqa: DTZ001 - the page's clock is the reader's
IDLE = Status(AT, (AcceleratorStatus(0, True, "4xLarge.2048GB", None, None, None),), (), (), ())
BUSY = Status(
    AT,
    (AcceleratorStatus(0, True, "4xLarge.2048GB", 1_138_546 * MIB, 2_096_640 * MIB, 1.0),),
    (ProcessStatus(0, "975688", 0, 4_130_720, "python tutorial/train_mistral.py", 1_138_546 * MIB),),
    (RunStatus(0, "975688", 12, 144, False, 20.84, 21.04, 35_580 * MIB, 40_187 * MIB, 2750.0),),
    (),
)
DEVICE = MachineDevice("GPU", "", 20 * GIB, 80 * GIB, 0.35, 0.0, 36.0, None, {7: 1.0})

PAGE_IDLE = """\
+-----------------------------------------------------------------------------------------------------+
|  Device  |        Name         |       Model      |  Memory Usage  |  Total Memory  |  Utilization  |
+=====================================================================================================+
|  * 0     |   MoAI Accelerator  |  4xLarge.2048GB  |  -             |  -             |  -            |
+-----------------------------------------------------------------------------------------------------+
"""
PAGE_BUSY = """\
|  * 0     |   MoAI Accelerator  |  4xLarge.2048GB  |  1138546 MiB   |  2096640 MiB   |  100 %        |
+-----------------------------------------------------------------------------------------------------+

Processes:
+---------------------------------------------------------------------------------------+
|  Device  |  Job ID  |    PID    |               Process              |  Memory Usage  |
+=======================================================================================+
|       0  |  975688  |  4130720  |  python tutorial/train_mistral.py  |  1138546 MiB   |
+---------------------------------------------------------------------------------------+
"""
"""From the tutorial page; its headers are centred by another rule, so spaces are not compared there."""


def printed(table: RenderableType, width: int = 120) -> str:
    """Return what a console of a width prints."""
    out = StringIO()
    Console(file=out, width=width, markup=False, highlight=False).print(table)
    return out.getvalue()


def screen(status: Status, width: int = 120) -> str:
    """Return a status as a console of a width prints it."""
    return printed(status_tables(Console(width=width), status), width)


def closed_up(text: str) -> list[str]:
    """Return lines without the spaces of their headers."""
    return [" ".join(line.split()) if "Device" in line else line for line in text.splitlines()]


@pytest.mark.parametrize(("status", "page"), [(IDLE, PAGE_IDLE), (BUSY, PAGE_BUSY)])
def test_the_tutorial_page(status: Status, page: str) -> None:
    """The tables are those of the tutorial page, to the character but for the place of a header in its column."""
    lines = closed_up(screen(status))
    assert lines[0] == "01:06:31 April 22, 2024"
    assert "Current Version: " in lines[2]
    wanted = closed_up(page)
    assert lines[lines.index(wanted[0], 2) :][: len(wanted)] == wanted


def test_measured_beside_predicted() -> None:
    """Of what trains, step time and memory stand beside what was predicted, and the minutes that are left."""
    assert "|       0  |  975688  |  12/144  |  20.8 (21) s            |  35580 (40187) MiB          |  45.8" in screen(
        BUSY
    )
    unknown = RunStatus(0, "j", 0, 9, True, None, None, None, None, None)
    assert "|  0/9, stopping  |  - (-) s " in screen(BUSY._replace(runs=(unknown,)))


@pytest.mark.parametrize("width", [200, 120, 103, 102, 80])
@pytest.mark.parametrize("status", [IDLE, BUSY])
def test_any_width(width: int, status: Status) -> None:
    """On any console no line is longer than it is wide, each table is closed, and every value is there, whole."""
    text = screen(status, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert all(line.startswith(("+", "|")) == line.endswith(("+", "|")) for line in lines)
    wanted = ["* 0", "4xLarge.2048GB"]
    if status is BUSY:
        wanted += ["1138546 MiB", "2096640 MiB", "100 %", "4130720", "975688", "12/144", "20.8 (21) s", "45.8"]
    assert [word for word in wanted if word not in text] == []
    assert ("MoAI Accelerator" in text) == (width >= 93)


@pytest.mark.parametrize("width", [60, 40])
def test_nothing_is_cut_off(width: int) -> None:
    """On a console too narrow for the words they are folded, and no letter of them is lost."""
    text = screen(BUSY, width)
    assert "\u2026" not in text
    letters = "".join(sorted("4xLarge.2048GB1138546MiB"))
    assert [letter for letter in letters if letter not in text] == []


@given(name=st.text(min_size=1, max_size=200))
def test_a_trainers_word_cannot_steer_the_terminal(name: str) -> None:
    """Whatever a trainer calls itself, the tables hold no control character and keep their lines."""
    process = BUSY.processes[0]._replace(process=name, job_id=name)
    text = screen(BUSY._replace(processes=(process,)), 2000)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert len(text.splitlines()) == len(screen(BUSY, 2000).splitlines())


def test_the_choice_as_a_table() -> None:
    """The accelerators are listed by number, the current one with a star."""
    two = (ChosenAccelerator(device=0, flavor="Small.64GB"), ChosenAccelerator(device=3, flavor="Large.256GB"))
    lines = printed(selection_table(Console(width=120), Selection(current=3, accelerators=two))).splitlines()
    assert lines[3:5] == [
        "|    0     |   MoAI Accelerator  |  Small.64GB   |",
        "|  * 3     |   MoAI Accelerator  |  Large.256GB  |",
    ]


def test_this_machine_as_a_table() -> None:
    """A device shows its node and place, temperatures, loads, fullness and ranks; a dash stands for the unknown."""
    machine = MachineStatus(AT, ((DEVICE, (7, 8)), (DEVICE._replace(total_bytes=None), ())), ())
    lines = printed(machine_table(Console(width=120), machine)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:6]]
    assert cells[0][0] == "0"
    assert cells[0][1].endswith(":0")
    assert cells[0][2:] == ["36 C", "-", "35 %", "0 %", "25 %", "7, 8"]
    assert cells[1][6:] == ["-", "-"]


def test_json_says_the_same() -> None:
    """The object has each figure of the tables, with memory in MiB under names that say so."""
    document = json.loads(json.dumps(status_document(BUSY), allow_nan=False))
    assert document["schema"] == "smi/1"
    assert document["accelerators"] == [
        {
            "device": 0,
            "is_current": True,
            "flavor": "4xLarge.2048GB",
            "memory_mib": 1_138_546,
            "total_mib": 2_096_640,
            "utilization": 1.0,
        }
    ]
    assert document["processes"][0]["memory_mib"] == 1_138_546
    assert document["runs"][0]["predicted_memory_mib"] == 40_187
    assert (document["runs"][0]["left_s"], document["problems"]) == (2750.0, [])
    assert datetime.fromisoformat(document["time"]).timestamp() == AT
    assert status_document(IDLE)["accelerators"][0]["memory_mib"] is None


def test_json_of_this_machine() -> None:
    """The object has each device with its ranks; memory in MiB."""
    machine = MachineStatus(AT, ((DEVICE, (7,)),), ("a problem",))
    document = json.loads(json.dumps(machine_document(machine), allow_nan=False))
    assert (document["schema"], document["problems"]) == ("smi-devices/1", ["a problem"])
    [found] = document["devices"]
    assert (found["index"], found["used_mib"], found["total_mib"], found["pids"]) == (0, 20_480, 81_920, [7])
    assert "process_bytes" not in found
