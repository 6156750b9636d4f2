"""The physical devices of this machine as their vendor's library sees them: NVML, AMD SMI, or the processor alone.

The libraries come with the drivers; their Python packages (`nvidia-ml-py`, `amdsmi`) are optional, and where one is
missing its devices are not seen.
"""

import contextlib
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import psutil

from hardware.units import MIB


class MachineDevice(NamedTuple):
    """One device of this machine, now; None for what its library does not tell."""

    name: str
    uuid: str
    used_bytes: float | None
    total_bytes: float | None
    busy_fraction: float | None
    """Part of the last sampling period in which something ran on it."""

    memory_busy_fraction: float | None
    """Part of the last sampling period in which its memory was read or written."""

    temperature_c: float | None
    memory_temperature_c: float | None
    process_bytes: Mapping[int, float | None]
    """Memory of each process that computes on it [bytes], by PID."""


def machine_devices() -> tuple[MachineDevice, ...]:
    """Return the accelerators of this machine, in the order of their vendor's library."""
    return _nvidia_devices() or _amd_devices()


def processor_device(interval_s: float) -> MachineDevice:
    """Return this machine's processor and memory in the form of a device, watched for an interval."""
    memory = psutil.virtual_memory()
    return MachineDevice(
        name="CPU",
        uuid="",
        used_bytes=memory.total - memory.available,
        total_bytes=memory.total,
        busy_fraction=psutil.cpu_percent(interval_s) / 100,
        memory_busy_fraction=None,
        temperature_c=_processor_temperature_c(),
        memory_temperature_c=None,
        process_bytes={},
    )


def device_of(
    pid: int, local_device: int | None, visible_devices: str, devices: Sequence[MachineDevice]
) -> MachineDevice | None:
    """Return the device that a process computes on; None for the processor, or where it cannot be told.

    The library knows the process, unless a container hides its PID. Then it is the process's own index among the
    devices that its environment lets it see, which names them by number or by (the beginning of) a UUID.
    """
    if local_device is None:
        return None
    own = [device for device in devices if pid in device.process_bytes]
    if own:
        return own[min(local_device, len(own) - 1)]
    names = (
        [name.strip() for name in visible_devices.split(",")]
        if visible_devices
        else list(map(str, range(len(devices))))
    )
    name = names[local_device] if local_device < len(names) else ""
    if name.isdecimal():
        return devices[int(name)] if int(name) < len(devices) else None
    return next((device for device in devices if name and device.uuid.startswith(name)), None)


def _nvidia_devices() -> tuple[MachineDevice, ...]:
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return ()
    except nvml.NVMLError:  # no driver, or no device
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return tuple(_nvidia_device(nvml, handle) for handle in handles)
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def _nvidia_device(nvml: Any, handle: Any) -> MachineDevice:
    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except nvml.NVMLError:  # this device, or this user's rights, do not give it
            return None

    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    rates = ask(nvml.nvmlDeviceGetUtilizationRates)
    fields = ask(nvml.nvmlDeviceGetFieldValues, [nvml.NVML_FI_DEV_MEMORY_TEMP])
    known = fields and fields[0].nvmlReturn == nvml.NVML_SUCCESS and fields[0].value.uiVal  # 0 where there is no sensor
    return MachineDevice(
        name=_text(ask(nvml.nvmlDeviceGetName)),
        uuid=_text(ask(nvml.nvmlDeviceGetUUID)),
        used_bytes=memory.used if memory else None,
        total_bytes=memory.total if memory else None,
        busy_fraction=rates.gpu / 100 if rates else None,
        memory_busy_fraction=rates.memory / 100 if rates else None,
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        memory_temperature_c=fields[0].value.uiVal if known else None,
        process_bytes={
            process.pid: process.usedGpuMemory for process in ask(nvml.nvmlDeviceGetComputeRunningProcesses) or ()
        },
    )


def _amd_devices() -> tuple[MachineDevice, ...]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # without its library, the package prints
            amd = importlib.import_module("amdsmi")
    except (ImportError, KeyError, OSError):
        return ()
    try:
        amd.amdsmi_init()
    except amd.AmdSmiException:  # no driver
        return ()
    try:
        return tuple(_amd_device(amd, handle) for handle in amd.amdsmi_get_processor_handles())
    except amd.AmdSmiException:
        return ()
    finally:
        amd.amdsmi_shut_down()


def _amd_device(amd: Any, handle: Any) -> MachineDevice:
    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(handle, *arguments)
        except amd.AmdSmiException:
            return None

    memory = ask(amd.amdsmi_get_gpu_vram_usage) or {}
    activity = ask(amd.amdsmi_get_gpu_activity) or {}
    sensors, now = amd.AmdSmiTemperatureType, amd.AmdSmiTemperatureMetric.CURRENT
    return MachineDevice(
        name=_text((ask(amd.amdsmi_get_gpu_asic_info) or {}).get("market_name")),
        uuid=_text(ask(amd.amdsmi_get_gpu_device_uuid)),
        used_bytes=_number(memory.get("vram_used"), MIB),
        total_bytes=_number(memory.get("vram_total"), MIB),
        busy_fraction=_number(activity.get("gfx_activity"), 0.01),
        memory_busy_fraction=_number(activity.get("umc_activity"), 0.01),
        temperature_c=_number(ask(amd.amdsmi_get_temp_metric, sensors.HOTSPOT, now), 1),
        memory_temperature_c=_number(ask(amd.amdsmi_get_temp_metric, sensors.VRAM, now), 1),
        process_bytes={
            process["pid"]: process["memory_usage"]["vram_mem"]
            for process in ask(amd.amdsmi_get_gpu_process_list) or ()
        },
    )


def _number(value: Any, unit: float) -> float | None:
    """Return a value of AMD SMI times its unit; what it does not know is "N/A"."""
    return value * unit if isinstance(value, int | float) else None


def _text(value: Any) -> str:
    """Return a name of a library, which older ones give as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def _processor_temperature_c() -> float | None:
    sensors: dict[str, list[Any]] = getattr(psutil, "sensors_temperatures", dict)()  # Linux and FreeBSD alone
    found = [entry.current for entries in sensors.values() for entry in entries if entry.current]
    return max(found, default=None)
