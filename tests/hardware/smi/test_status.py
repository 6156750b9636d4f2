import os
import signal
import time
from collections.abc import Callable

import pytest

from hardware.catalog import load_catalog
from hardware.smi import status
from hardware.smi.devices import MachineDevice
from hardware.smi.jobs import publish, request_stop
from hardware.smi.processes import resident_bytes
from hardware.smi.selection import ChosenAccelerator, Selection, save_selection, selection_lock, selection_path
from hardware.smi.status import AcceleratorStatus, RunStatus, read_machine, read_status
from hardware.smi.switching import add_accelerator, make_current
from hardware.units import GIB, MIB
from tests.support.trainers import job, running_rank

pytestmark = pytest.mark.usefixtures("home")
CATALOG = load_catalog()


def gpu(busy: float | None, **process_bytes: float | None) -> MachineDevice:
    """Return a device of this machine; its processes are named p7 for PID 7."""
    found = {int(name[1:]): value for name, value in process_bytes.items()}
    return MachineDevice("GPU", "", 20 * GIB, 80 * GIB, busy, None, None, None, found)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what gives this machine its devices."""
    return lambda *devices: monkeypatch.setattr(status, "machine_devices", lambda: devices)


def test_idle() -> None:
    """While nothing trains there is the flavor in use, and nothing else is known."""
    found = read_status(CATALOG)
    assert found.accelerators == (AcceleratorStatus(0, True, "4xLarge.2048GB", None, None, None),)
    assert (found.processes, found.runs, found.problems) == ((), (), ())


def test_two_processes_on_the_processor() -> None:
    """Each rank's memory is what its process holds, within 2 %; the accelerator has their sum of the flavor's."""
    with running_rank(0, 40_000_000) as first, running_rank(1, 90_000_000) as second:
        found = read_status(CATALOG)
        own = [resident_bytes(process.pid) for process in (first, second)]
    assert [(p.rank, p.pid) for p in found.processes] == [(0, first.pid), (1, second.pid)]
    assert [p.memory_bytes for p in found.processes] == pytest.approx(own, rel=0.02)
    [accelerator] = found.accelerators
    assert accelerator.memory_bytes == sum(p.memory_bytes or 0 for p in found.processes)
    assert (accelerator.flavor, accelerator.total_bytes) == ("Small.64GB", 65_520 * MIB)
    assert accelerator.utilization is not None
    assert 0 <= accelerator.utilization <= 1


def test_after_a_kill_the_next_look_is_right() -> None:
    """After SIGKILL of one rank the next look shows the other alone; after that of both, an idle accelerator."""
    with running_rank(0) as first, running_rank(1) as second:
        assert len(read_status(CATALOG).processes) == 2
        first.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        assert [p.pid for p in read_status(CATALOG).processes] == [second.pid]
        second.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, second.pid, os.WEXITED | os.WNOWAIT)
        assert read_status(CATALOG).accelerators == (AcceleratorStatus(0, True, "4xLarge.2048GB", None, None, None),)


def test_a_rank_that_ends_while_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that ends between the two looks at its processor time is not shown."""
    with running_rank() as process:

        def end(pids: list[int], _: float) -> dict[int, float]:
            process.kill()
            process.wait()
            return dict.fromkeys(pids, 0.0)

        monkeypatch.setattr(status, "busy_fractions", end)
        found = read_status(CATALOG)
        assert (found.processes, found.runs) == ((), ())


@pytest.mark.parametrize(
    ("counted", "expected"), [({f"p{os.getpid()}": 3e9}, 3e9), ({f"p{os.getpid()}": None}, 1e9), ({}, 1e9)]
)
def test_memory_on_a_device(counted: dict[str, float | None], expected: float, machine: Callable[..., None]) -> None:
    """On a device the vendor's count goes first; where it hides the process, or its memory, the trainer's own does."""
    machine(gpu(0.8, **counted))
    with publish(job(local_device=0)) as published:
        published.update(step=1, step_s=1.0, memory_bytes=1e9)
        found = read_status(CATALOG)
    assert found.processes[0].memory_bytes == found.accelerators[0].memory_bytes == expected
    assert found.accelerators[0].utilization == 0.8


def test_utilization_is_that_of_its_devices(machine: Callable[..., None]) -> None:
    """Devices that the run does not use do not count; one that does not tell leaves it unknown."""
    with publish(job(local_device=1)):
        machine(gpu(0.1), gpu(0.9))
        assert read_status(CATALOG).accelerators[0].utilization == 0.9
        machine(gpu(0.1), gpu(None))
        assert read_status(CATALOG).accelerators[0].utilization is None
        machine()
        assert read_status(CATALOG).accelerators[0].utilization is None


def test_measured_beside_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run shows its last step and its memory beside the prediction, and the minutes left from the typical step."""
    began = time.time()
    with publish(job(total_steps=100, predicted_step_s=21.0, predicted_memory_bytes=4e10)) as published:
        left_s = read_status(CATALOG).runs[0].left_s
        assert left_s is not None
        assert 2100 - (time.time() - began) <= left_s <= 2100
        for step, step_s in enumerate((66.0, 20.0, 24.0, 20.0), start=1):
            published.update(step=step, step_s=step_s, memory_bytes=3.5e10)
        [run] = read_status(CATALOG).runs
        assert run._replace(left_s=None) == RunStatus(0, "j", 4, 100, False, 20.0, 21.0, 3.5e10, 4e10, None)
        assert run.left_s is not None
        assert 96 * 20.0 - (time.time() - began) <= run.left_s <= 96 * 20.0
        now = time.time()
        monkeypatch.setattr(status.time, "time", lambda: now + 10_000)
        assert read_status(CATALOG).runs[0].left_s == 0


def test_a_run_is_as_far_as_its_slowest_rank() -> None:
    """Of two ranks the one with fewer steps, and the fuller one, speak for the run; a request to stop shows."""
    began = time.time()
    with running_rank(), publish(job()) as published:
        published.update(step=5, step_s=0.1, memory_bytes=1e9)
        [run] = read_status(CATALOG).runs
        assert (run.step, run.step_s, run.memory_bytes) == (1, 0.5, 1e9)
        assert run.left_s is not None
        assert 4 - (time.time() - began) <= run.left_s <= 4
        assert not run.is_stopping
        request_stop(0)
        assert read_status(CATALOG).runs[0].is_stopping


def test_without_any_prediction() -> None:
    """Where nothing was predicted and no step has ended, nothing is made up."""
    with publish(job()):
        assert read_status(CATALOG).runs == (RunStatus(0, "j", 0, 9, False, None, None, None, None, None),)


def test_each_accelerator_has_its_runs() -> None:
    """A run stays on the accelerator on which it began; one alone can be asked for; one that is not there is told."""
    with running_rank() as rank:
        add_accelerator(CATALOG.flavor("large"))
        make_current(1)
        with publish(job(job_id="k", flavor="Large.256GB")):
            found = read_status(CATALOG)
    assert [(a.device, a.is_current, a.flavor) for a in found.accelerators] == [
        (0, False, "Small.64GB"),
        (1, True, "Large.256GB"),
    ]
    assert [run.job_id for run in found.runs] == ["j", "k"]
    only = found.only(0)
    assert ([a.device for a in only.accelerators], [p.pid for p in only.processes]) == ([0], [rank.pid])
    assert [run.job_id for run in only.runs] == ["j"]
    with pytest.raises(ValueError, match=r"^device 2: there is none; use one of 0, 1$"):
        found.only(2)


def test_the_environments_flavor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current accelerator has the flavor that the environment names; one of a catalog not given has no total."""
    monkeypatch.setenv("ACCELERATOR_FLAVOR", "mi300X8")
    assert read_status(CATALOG).accelerators[0].flavor == "mi300x8"
    monkeypatch.setenv("ACCELERATOR_FLAVOR", "mine")
    with publish(job(flavor="mine")):
        [accelerator] = read_status(CATALOG).accelerators
    assert (accelerator.flavor, accelerator.total_bytes) == ("mine", None)


@pytest.mark.parametrize(
    ("flavor", "total_mib"), [("4xlarge", 2_096_640), ("mi250-12", 786_240), ("mi250-0", None), ("mine-7", None)]
)
def test_the_total_of_what_a_run_names(flavor: str, total_mib: int | None) -> None:
    """A run names a flavor, in any spelling, or devices of an accelerator; of anything else no total is known."""
    with publish(job(flavor=flavor)):
        [accelerator] = read_status(CATALOG).accelerators
    assert accelerator.total_bytes == (None if total_mib is None else total_mib * MIB)


def test_a_run_on_a_device_that_is_gone() -> None:
    """A run whose accelerator is not in the file any more is shown, since it uses one all the same."""
    with selection_lock():
        save_selection(Selection(current=2, accelerators=(ChosenAccelerator(device=2, flavor="small"),)))
    with publish(job()):
        selection_path().unlink()
        assert [(a.device, a.is_current) for a in read_status(CATALOG).accelerators] == [(0, True), (2, False)]


def test_problems_are_passed_on(home: os.PathLike[str]) -> None:
    """What could not be read, the choice or the runtime directory, is told in one line each."""
    selection_path().parent.mkdir()
    selection_path().write_text("?")
    (selection_path().parents[2] / "XDG_RUNTIME_DIR" / "foretrain").write_text("")
    first, second = read_status(CATALOG).problems
    assert first.startswith(f"{selection_path()}: is damaged")
    assert second.endswith("is a link or a file, not a directory; remove it")
    assert read_machine().problems == (second,)
    assert home


def test_this_machine(machine: Callable[..., None]) -> None:
    """A rank is on its device; on the processor alone, where there is no device; nowhere, where there are others."""
    with publish(job(local_device=1)):
        machine(gpu(0.1), gpu(0.9))
        assert [pids for _, pids in read_machine().devices] == [(), (os.getpid(),)]
    with publish(job()):
        assert [pids for _, pids in read_machine().devices] == [(), ()]
        machine()
        [(processor, pids)] = read_machine(0.01).devices
        assert (processor.name, pids) == ("CPU", (os.getpid(),))
