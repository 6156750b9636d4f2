"""Laws of physics and of arithmetic that every record of the packaged catalog keeps, and figures that sheets print."""

import re
import tomllib
from itertools import groupby
from typing import Any

import pytest

from hardware.catalog import load_catalog
from hardware.models import Accelerator, Node
from hardware.units import MIB
from tests.support.paths import GOLDEN

CATALOG = load_catalog()
PRINTED = tomllib.loads((GOLDEN / "hardware.toml").read_text(encoding="utf-8"))
PROCESSORS = {"epyc-7763"}
EACH_ACCELERATOR = pytest.mark.parametrize("device", CATALOG.accelerators, ids=[a.id for a in CATALOG.accelerators])
EACH_NODE = pytest.mark.parametrize("node", CATALOG.nodes, ids=[node.id for node in CATALOG.nodes])


def printed(device: Accelerator) -> dict[str, Any]:
    """Return a device's figures in the units of the golden file."""
    peaks = {name: peak / 1e12 for name, peak in device.peaks.items() if peak}
    rest = {"bandwidth": device.hbm_bytes_per_s / 1e9, "memory": device.hbm_bytes / MIB, "watts": device.tdp_w}
    return peaks | rest | {"units": device.num_compute_units}


# Figures of sheets


@pytest.mark.parametrize("name", PRINTED["device"])
def test_a_device_is_as_its_sheet_prints_it(name: str) -> None:
    """Peaks, bandwidth, memory, compute units and power are those of the sheet, up to what it rounds."""
    found, told = printed(CATALOG.accelerator(name)), PRINTED["device"][name]
    assert told.pop("source")
    for figure, value in told.items():
        assert found[figure] == pytest.approx(value, rel=0.005), figure
    if "bf16" not in told:
        assert "bf16" not in found


@pytest.mark.parametrize("name", PRINTED["package"])
def test_a_device_is_half_of_its_package(name: str) -> None:
    """Frameworks see a GCD: two of it are the package that its sheet describes."""
    found, told = printed(CATALOG.accelerator(name)), PRINTED["package"][name]
    assert told.pop("source")
    assert {figure: 2 * found[figure] for figure in told} == pytest.approx(told, rel=0.002)


@pytest.mark.parametrize("name", PRINTED["link"])
def test_links_of_a_node_are_as_its_sheet_prints_them(name: str) -> None:
    """What a device sends to all the others at once is the sum that the sheet gives, per direction."""
    link = CATALOG.node(name).links[-1]
    peers = link.span - 1 if link.topology == "mesh" else 1
    assert peers * link.bytes_per_s / 1e9 == pytest.approx(PRINTED["link"][name])


@pytest.mark.parametrize("name", PRINTED["machine"])
def test_a_cloud_machine_is_as_its_cloud_states_it(name: str) -> None:
    """A machine's devices and network are those that its cloud states."""
    flavor, told = CATALOG.flavor(name), PRINTED["machine"][name]
    node = CATALOG.node(flavor.node)
    found = {"accelerator": node.accelerator, "devices": flavor.num_devices}
    assert found | {"network": node.network.bytes_per_s * 8 / 1e9} == told


# Laws


@EACH_ACCELERATOR
def test_peaks_are_dense_and_in_order(device: Accelerator) -> None:
    """8 bits are at most twice as fast as 16, which sparse ones would not be; 16 bits are faster than 32."""
    bf16, fp16, fp8 = device.bf16_flop_per_s, device.fp16_flop_per_s, device.fp8_flop_per_s
    assert device.usual_flop_per_s >= device.fp32_flop_per_s
    assert device.usual_flop_per_s <= 40 * device.fp32_flop_per_s
    if bf16:
        assert fp16
        assert fp16 <= bf16 * (2 if "gfx908" in device.architecture else 1)  # CDNA 1 has bfloat16 at half the rate
    if fp8:
        assert bf16
        assert 1 <= fp8 / bf16 <= 2.03


def test_devices_of_an_architecture_multiply_alike() -> None:
    """Per compute unit, devices of one architecture differ in clock alone, by a third at most.

    Of 32-bit sums of 16-bit products, GeForce devices and the A10G do half of what their architecture does otherwise,
    and the H20 is cut down to a quarter.
    """

    def kind(device: Accelerator) -> tuple[str, bool]:
        return device.architecture, device.id == "a10g" or "GeForce" in device.name

    for _, devices in groupby(sorted(CATALOG.accelerators, key=kind), kind):
        per_unit = [d.usual_flop_per_s / d.num_compute_units for d in devices if d.id != "h20-96gb"]
        assert max(per_unit) <= 1.34 * min(per_unit)


@EACH_ACCELERATOR
def test_a_device_is_balanced(device: Accelerator) -> None:
    """A device does 30 to 500 FLOP per byte that it reads, reads its memory in 10 to 100 ms, and has 0.02 TFLOP/J."""
    if device.id not in PROCESSORS:
        assert 30 <= device.usual_flop_per_s / device.hbm_bytes_per_s <= 500
        assert 0.01 <= device.hbm_bytes / device.hbm_bytes_per_s <= 0.1
        assert 0.02e12 <= device.usual_flop_per_s / device.tdp_w <= 2.5e12


@EACH_ACCELERATOR
def test_memory_is_what_is_left_of_the_label(device: Accelerator) -> None:
    """A process sees less than the size on the label read in binary, and no less than nine tenths of it in decimal."""
    if label := re.search(r"-([0-9]+)gb$", device.id):
        size = int(label[1])
        assert 0.9e9 * size <= device.hbm_bytes <= 2**30 * size


def test_what_has_no_bf16_units() -> None:
    """Volta and Turing, and processors, have none, whatever their drivers emulate; everything since has them."""
    without = {device.id for device in CATALOG.accelerators if not device.bf16_flop_per_s}
    old = {device.id for device in CATALOG.accelerators if device.architecture.split()[0] in ("Volta", "Turing")}
    assert without == old | PROCESSORS
    assert len(old) == 3
    assert all(CATALOG.accelerator(name).fp16_flop_per_s for name in old)


@EACH_ACCELERATOR
def test_a_device_that_says_measured_was_measured(device: Accelerator) -> None:
    """A measured best rate says how much of what, and is of this device; an assumed one says why it is."""
    for share in (device.matmul_efficiency, device.hbm_efficiency):
        assert share.evidence in ("measured", "assumed")
        if share.evidence == "measured":
            assert re.search(r"[0-9]", share.note)
        else:
            assert share.note


@EACH_NODE
def test_a_group_of_more_devices_is_no_closer(node: Node) -> None:
    """A device sends at 1 GB/s to 2 TB/s to its group, with hops of 1 to 10 us; to a larger group no faster.

    But for the V100, where more devices share more of the links.
    """
    for link in node.links:
        assert 1e9 <= link.bytes_per_s * (link.span - 1 if link.topology == "mesh" else 1) <= 2e12
        assert 1e-6 <= link.latency_s <= 1e-5
    if not node.accelerator.startswith("v100"):
        rates = [link.bytes_per_s * link.efficiency.value for link in node.links if link.topology != "mesh"]
        assert rates == sorted(rates, reverse=True)


@EACH_NODE
def test_a_node_is_faster_inside_than_outside(node: Node) -> None:
    """A device has at most as much of the network as of its links, and of its memory far more than of both."""
    network = node.network.bytes_per_s / node.num_devices
    memory = CATALOG.accelerator(node.accelerator).hbm_bytes_per_s
    for link in node.links:
        inside = link.bytes_per_s * (link.span - 1 if link.topology == "mesh" else 1)
        assert network <= inside < memory
    if node.host:
        assert node.host.link_bytes_per_s < memory
        assert node.host.link_bytes_per_s <= node.host.bytes_per_s


def test_prices_are_of_days_before_they_were_read() -> None:
    """A price is dated no later than its page was read, and a spot price is below what the provider asks otherwise."""
    for price in CATALOG.prices:
        assert price.on <= max(source.checked for source in price.sources)
    for device in CATALOG.accelerators:
        asked = {(price.provider, price.market): price.usd_per_device_h for price in CATALOG.latest_prices(device.id)}
        for (provider, market), usd in asked.items():
            if market == "spot" and (provider, "on-demand") in asked:
                assert usd < asked[provider, "on-demand"]


def test_an_instance_is_of_one_who_rents() -> None:
    """The devices of an instance fit its node, and of whom prices are known they are known by the same name."""
    asking = {price.provider for price in CATALOG.prices}
    for instance in CATALOG.instances:
        assert instance.num_devices <= CATALOG.node(instance.node).num_devices
        assert instance.provider in asking | {"Google Cloud"}
        assert instance.host_memory_bytes >= 10e9
