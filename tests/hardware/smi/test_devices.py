import ast
import importlib.util
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from hardware.smi import devices
from hardware.smi.devices import MachineDevice, device_of, machine_devices, processor_device
from hardware.units import GIB, MIB

NOTHING = MachineDevice("", "", None, None, None, None, None, None, {})


def device(uuid: str, *pids: int) -> MachineDevice:
    """Return a device of which only its processes are known."""
    return NOTHING._replace(uuid=uuid, process_bytes=dict.fromkeys(pids, 1.0))


class NVMLError(Exception):
    """What NVML raises."""


class AmdSmiException(Exception):  # noqa: N818 - its own name
    """What AMD SMI raises."""


class Sensor(Enum):
    """Sensors of AMD SMI."""

    HOTSPOT = 1
    VRAM = 2


def refuse(*_: object) -> None:
    """Do as NVML does where a device does not have something."""
    raise NVMLError("Not Supported")


def nvml(**changes: object) -> Any:
    """Return NVML on a machine with two devices, of which process 7 uses the second."""
    field = SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=55))
    functions = {
        "NVMLError": NVMLError,
        "NVML_SUCCESS": 0,
        "NVML_TEMPERATURE_GPU": 0,
        "NVML_FI_DEV_MEMORY_TEMP": 82,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _: b"NVIDIA H100",
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=3 * GIB, total=80 * GIB),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=100 * handle, memory=40),
        "nvmlDeviceGetFieldValues": lambda _, fields: [field] * len(fields),
        "nvmlDeviceGetTemperature": lambda _, sensor: 40 + sensor,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=7, usedGpuMemory=2 * GIB)][
            : int(handle)
        ],
    }
    return SimpleNamespace(**(functions | changes))


def amd(**changes: object) -> Any:
    """Return AMD SMI on a machine with one device, whose memory sensor it does not know."""

    def temperature(_: object, sensor: Sensor, metric: str) -> int:
        assert metric == "now"
        if sensor is Sensor.VRAM:
            raise AmdSmiException
        return 61

    functions = {
        "AmdSmiException": AmdSmiException,
        "AmdSmiTemperatureType": Sensor,
        "AmdSmiTemperatureMetric": SimpleNamespace(CURRENT="now"),
        "amdsmi_init": lambda: None,
        "amdsmi_shut_down": lambda: None,
        "amdsmi_get_processor_handles": lambda: [0],
        "amdsmi_get_gpu_asic_info": lambda _: {"market_name": "AMD Instinct MI250"},
        "amdsmi_get_gpu_device_uuid": lambda _: "aa-bb",
        "amdsmi_get_gpu_vram_usage": lambda _: {"vram_used": 35_580, "vram_total": 65_520},
        "amdsmi_get_gpu_activity": lambda _: {"gfx_activity": 100, "umc_activity": "N/A"},
        "amdsmi_get_temp_metric": temperature,
        "amdsmi_get_gpu_process_list": lambda _: [{"pid": 7, "memory_usage": {"vram_mem": GIB}}],
    }
    return SimpleNamespace(**(functions | changes))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Take both vendors' packages away; a test puts in what its machine has."""
    for name in ("pynvml", "amdsmi"):
        monkeypatch.setitem(sys.modules, name, None)
    return sys.modules  # type: ignore[return-value]


def test_nvidia(libraries: dict[str, Any]) -> None:
    """What NVML tells comes in bytes, fractions and degrees, with each process where it runs."""
    libraries["pynvml"] = nvml()
    first, second = machine_devices()
    assert first == MachineDevice("NVIDIA H100", "GPU-0", 3 * GIB, 80 * GIB, 0.0, 0.4, 40, 55, {})
    assert (second.busy_fraction, second.process_bytes) == (1.0, {7: 2 * GIB})


@pytest.mark.parametrize("function", [name for name in vars(nvml()) if name.startswith("nvmlDeviceGet")])
def test_what_a_device_lacks_is_not_known(function: str, libraries: dict[str, Any]) -> None:
    """Where NVML refuses one question, that is not known, and the rest is; without handles there are no devices."""
    libraries["pynvml"] = nvml()
    known = machine_devices()
    libraries["pynvml"] = nvml(**{function: refuse})
    found = machine_devices()
    if function in {"nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"}:
        assert found == ()
    else:
        assert found != known
        assert sum(a != b for a, b in zip(found[1], known[1], strict=True)) in {1, 2}


def test_a_memory_without_a_sensor(libraries: dict[str, Any]) -> None:
    """A temperature of 0 is no temperature."""
    field = SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=0))
    libraries["pynvml"] = nvml(nvmlDeviceGetFieldValues=lambda *_: [field])
    assert machine_devices()[0].memory_temperature_c is None


def test_amd(libraries: dict[str, Any]) -> None:
    """What AMD SMI tells comes in bytes, fractions and degrees; what it does not know is not known here."""
    libraries["amdsmi"] = amd()
    [found] = machine_devices()
    assert found == MachineDevice(
        "AMD Instinct MI250", "aa-bb", 35_580 * MIB, 65_520 * MIB, 1.0, None, 61, None, {7: GIB}
    )


def test_no_library_no_devices(libraries: dict[str, Any]) -> None:
    """Without the packages, or without the driver under them, there are no devices, and nothing fails."""
    assert machine_devices() == ()

    def no_driver() -> None:
        raise AmdSmiException

    libraries["pynvml"], libraries["amdsmi"] = nvml(nvmlInit=refuse), amd(amdsmi_init=no_driver)
    assert machine_devices() == ()
    libraries["amdsmi"] = amd(amdsmi_get_processor_handles=no_driver)
    assert machine_devices() == ()


def test_a_package_without_its_library(
    tmp_path: Path, libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The package of AMD SMI prints and fails where ROCm is missing; neither is seen."""
    (tmp_path / "amdsmi.py").write_text('print("Unable to find libamd_smi.so")\n{}["libamd_smi.so"]\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    del libraries["amdsmi"]
    assert machine_devices() == ()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("library", "names"), [("nvml", vars(pynvml)), ("amd", None)])
def test_the_libraries_have_these_names(library: str, names: dict[str, object] | None) -> None:
    """Every function and constant that is asked for is one of the vendor's package."""
    tree = ast.parse(Path(devices.__file__).read_text(encoding="utf-8"))
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == library
    }
    assert len(asked) > 8
    if names is not None:
        assert asked <= set(names)
    else:  # without ROCm its package can be read, not imported
        spec = importlib.util.find_spec("amdsmi")
        assert spec
        assert spec.origin
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        given = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert asked <= given


def test_the_package_of_nvml_says_that_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, on a machine without a driver, finds no devices."""
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert isinstance(pynvml, ModuleType)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert machine_devices() == ()
    else:
        assert len(machine_devices()) == pynvml.nvmlDeviceGetCount()


def test_the_processor_as_a_device() -> None:
    """Without a library the machine's own memory and processor stand in, within what the machine has."""
    found = processor_device(0.05)
    assert found.total_bytes == psutil.virtual_memory().total
    assert found.used_bytes is not None
    assert 0 < found.used_bytes < psutil.virtual_memory().total
    assert found.busy_fraction is not None
    assert 0 <= found.busy_fraction <= 1


@pytest.mark.parametrize(
    ("local", "visible", "found"),
    [
        (0, "", 0),
        (2, "", 2),
        (3, "", None),
        (0, "2,1", 2),
        (1, " 2 , 1 ", 1),
        (2, "2,1", None),
        (0, "9", None),
        (0, "GPU-b", 1),
        (0, "GPU-", 0),
        (0, "GPU-x", None),
        (None, "", None),
    ],
)
def test_where_a_hidden_process_runs(local: int | None, visible: str, found: int | None) -> None:
    """A process that no library names is where its index among the visible devices says; else it is nowhere."""
    machine = [device("GPU-a"), device("GPU-b"), device("GPU-c")]
    assert device_of(7, local, visible, machine) is (None if found is None else machine[found])


def test_where_the_library_knows_it() -> None:
    """A process that the library names is there, whatever its environment says; of two, its index chooses."""
    machine = [device("GPU-a"), device("GPU-b", 7), device("GPU-c", 7, 8)]
    assert device_of(8, 0, "0", machine) is machine[2]
    assert device_of(7, 0, "0", machine) is machine[1]
    assert device_of(7, 1, "0", machine) is machine[2]
