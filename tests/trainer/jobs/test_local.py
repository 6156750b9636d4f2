from types import SimpleNamespace

import pytest
import torch

from hardware.catalog import Catalog, load_catalog
from hardware.models import Flavor
from trainer.jobs import cpu, local
from trainer.jobs.cpu import Rates, cpu_id
from trainer.jobs.local import local_machine, machine_text, num_accelerators
from trainer.parallel.mesh import World

CATALOG = load_catalog()
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MI300X, H100 = ("AMD Instinct MI300X", 304), ("NVIDIA H100 80GB HBM3", 132)
RATES = Rates(1e10, 1e10, 1e-4, 1e9)


def have(monkeypatch: pytest.MonkeyPatch, *devices: tuple[str, int]) -> None:
    """Let torch see devices of these names and compute units."""
    found = [SimpleNamespace(name=name, multi_processor_count=units) for name, units in devices]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(found))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found[index])


def one_node(size: int) -> World:
    """Return the ranks of a run on one machine."""
    return World(size=size, local_size=size)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the list of measurements that were made, each with the same result."""
    made: list[object] = []
    monkeypatch.setattr(cpu, "measure", lambda *given: made.append(given) or RATES)
    return made


def test_accelerators_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many as torch sees, and none where torch has no driver."""
    have(monkeypatch)
    assert num_accelerators() == 0
    have(monkeypatch, MI300X, MI300X)
    assert num_accelerators() == 2


@pytest.mark.parametrize(
    ("world", "num_devices", "num_nodes"),
    [
        (one_node(1), 1, 1),
        (one_node(8), 8, 1),
        (World(size=16, local_size=8), 16, 2),
        (World(size=8, local_size=4), 8, 2),
    ],
)
def test_what_is_here_is_found(monkeypatch: pytest.MonkeyPatch, world: World, num_devices: int, num_nodes: int) -> None:
    """Without a flavor, the run's is made of its ranks, on the nodes that they really are on, full or not."""
    have(monkeypatch, *[MI300X] * 8)
    catalog, flavor = local_machine(world, CATALOG, None, CUDA)
    assert catalog is CATALOG
    assert (flavor.node, flavor.num_devices, flavor.num_nodes) == ("mi300x-x8", num_devices, num_nodes)


def test_a_flavor_that_is_here_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flavor is given back as the catalog has it, also by another spelling, where it is what is here."""
    have(monkeypatch, *[MI300X] * 8)
    assert local_machine(one_node(8), CATALOG, "MI300x8", CUDA) == (CATALOG, CATALOG.flavor("mi300x8"))
    have(monkeypatch, *[("AMD Instinct MI250X / MI250", 104)] * 8)
    world = World(rank=9, size=32, local_rank=1, local_size=8)
    assert local_machine(world, CATALOG, "4xlarge", CUDA)[1] == CATALOG.flavor("4xLarge.2048GB")


@pytest.mark.parametrize(
    ("devices", "world", "flavor", "message"),
    [
        ([MI300X] * 8, one_node(4), "mi300x8", r"^flavor: mi300x8 has 8 devices, but this run has 4; start one rank"),
        ([MI300X] * 8, World(size=8, local_size=4), "mi300x8", r"^flavor: mi300x8 has 1 nodes, but this run has 2; "),
        ([H100] * 8, one_node(8), "mi300x8", r"^flavor: mi300x8 is of mi300x, but h100-sxm-80gb is here; leave out"),
        (
            [H100] * 2,
            one_node(4),
            None,
            r"^nproc: 4 ranks on this machine, but it has 2 accelerators; start at most 2$",
        ),
        ([H100, MI300X], one_node(2), None, r"^device: AMD Instinct MI300X and NVIDIA H100 80GB HBM3 are both here; "),
        (
            [("Chip 1", 9)],
            one_node(1),
            None,
            r"^device 'Chip 1': no accelerator .* in driver_names to a --catalog FILE$",
        ),
        (
            [("AMD Instinct MI300X", 38)],
            one_node(1),
            None,
            r"^device: AMD .* shows 38 of 304 compute units; it is part",
        ),
    ],
)
def test_what_is_not_here_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    devices: list[tuple[str, int]],
    world: World,
    flavor: str | None,
    message: str,
) -> None:
    """Each mismatch of ranks, devices and flavor is one line that says both sides and the mend."""
    have(monkeypatch, *devices)
    with pytest.raises(ValueError, match=message) as caught:
        local_machine(world, CATALOG, flavor, CUDA)
    assert str(caught.value).isprintable()


def test_drivers_may_keep_back_a_few_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with a few compute units less than the catalog has is still that device."""
    have(monkeypatch, ("NVIDIA H100 80GB HBM3", 130))
    assert local_machine(one_node(1), CATALOG, None, CUDA)[1].node == "h100-x8"


def test_a_processor_is_measured(measurements: list[object]) -> None:
    """Without accelerators the machine is measured for its ranks, once per machine, and joins the catalog."""
    catalog, flavor = local_machine(World(size=4, local_size=2), CATALOG, None, CPU)
    assert len(measurements) == 1
    assert catalog.node(flavor.node).accelerator == cpu_id(2)
    assert (flavor.num_devices, flavor.num_nodes) == (4, 2)
    assert catalog.accelerator(cpu_id(2)).fp32_flop_per_s == RATES.flop_per_s


def test_a_processor_that_the_catalog_has_is_not_measured_again(measurements: list[object]) -> None:
    """With the record of an earlier measurement all ranks reckon with the same figures, and none spends a second."""
    catalog, flavor = local_machine(one_node(2), CATALOG, None, CPU)
    again, same = local_machine(one_node(2), catalog, None, CPU)
    assert (again, same) == (catalog, flavor)
    assert len(measurements) == 1


def test_a_flavor_of_accelerators_is_refused_on_a_processor(measurements: list[object]) -> None:
    """A run on a processor does not pass for one on a flavor, and is refused before anything is measured."""
    message = (
        r"^flavor: 4xLarge\.2048GB is of mi250, but no accelerator is here; "
        r"leave out --flavor, or look ahead with --dry-run or --emit$"
    )
    with pytest.raises(ValueError, match=message):
        local_machine(one_node(2), CATALOG, "4xlarge", CPU)
    assert measurements == []


def test_a_flavor_of_this_machine_is_taken(measurements: list[object]) -> None:
    """A flavor that a user's catalog makes of a measured machine is checked as any other."""
    catalog, found = local_machine(one_node(2), CATALOG, None, CPU)
    catalog = catalog.adding(found.model_copy(update={"id": "Here.2"}))
    assert local_machine(one_node(2), catalog, "here.2", CPU)[1].id == "Here.2"
    with pytest.raises(ValueError, match=r"^flavor: Here\.2 has 2 devices, but this run has 4; "):
        local_machine(World(size=4, local_size=2), catalog, "here.2", CPU)
    assert len(measurements) == 1


def test_one_file_holds_several_measured_machines(
    measurements: list[object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The texts of runs with one, two and four processes, one after another, are one catalog file."""
    machines: list[tuple[Catalog, Flavor]] = [local_machine(one_node(n), CATALOG, None, CPU) for n in (1, 2, 4)]
    file = tmp_path_factory.mktemp("runs") / "machine.toml"
    file.write_text("".join(machine_text(*machine) for machine in machines), encoding="utf-8")
    read = load_catalog([file])
    for catalog, flavor in machines:
        name = catalog.node(flavor.node).accelerator
        assert read.accelerator(name) == catalog.accelerator(name)
        assert read.node_of(name) == catalog.node_of(name)
    assert len(measurements) == len(machines)


def test_hardware_that_all_have_is_not_written() -> None:
    """What the packaged catalog holds needs no file, and would not load beside it."""
    assert machine_text(CATALOG, CATALOG.flavor("4xlarge")) == ""


def test_a_part_of_a_device_is_less_than_what_a_driver_keeps_back() -> None:
    """Half a device, the largest part there is, is below the bound; the MI250X die beside the MI250's is not."""
    assert 0.5 < local.LIKE_UNITS < 104 / 110
