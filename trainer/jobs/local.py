"""The flavor that a run is on: given and held against what is here, or found here."""

import torch

from hardware.catalog import Catalog
from hardware.models import Accelerator, Flavor
from hardware.toml_text import catalog_text
from trainer.jobs.cpu import cpu_id, measure_cpu
from trainer.parallel.mesh import World

LIKE_UNITS = 0.9
"""A device with fewer of its accelerator's compute units is a part of one.

assumed: drivers keep back a few units at most; the largest part that vendors offer of a device is a half.
"""


def num_accelerators() -> int:
    """Return the accelerators that this process can use here, CUDA and ROCm alike; 0 where there is none."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def local_machine(world: World, catalog: Catalog, flavor: str | None, device: torch.device) -> tuple[Catalog, Flavor]:
    """Return the flavor that a run is on, and a catalog that has its hardware.

    A processor is measured (about a second), unless the catalog has its record from an earlier measurement.

    Args:
        world: the ranks of the run.
        catalog: the hardware that is known.
        flavor: name of the flavor that must be here; None takes what is here.
        device: that of this rank.

    Raises:
        ValueError: the flavor is not what is here, or what is here is in no catalog.
    """
    asked = None if flavor is None else catalog.flavor(flavor)
    if device.type == "cuda":
        name = _accelerator_here(world, catalog).id
    else:
        name = cpu_id(world.local_size)
        if asked is not None and catalog.node(asked.node).accelerator != name:
            raise ValueError(
                f"flavor: {asked.id} is of {catalog.node(asked.node).accelerator}, but no accelerator is here; "
                "leave out --flavor, or look ahead with --dry-run or --emit"
            )
        if name not in {record.id for record in catalog.accelerators}:
            for record in measure_cpu(world.local_size):
                catalog = catalog.adding(record)
    if asked is not None:
        _refuse_another(asked, catalog, name, world)
        return catalog, asked
    found = catalog.flavor_of(name, world.size)
    return catalog, found.model_copy(update={"num_nodes": world.num_nodes})  # which need not be full


def machine_text(catalog: Catalog, flavor: Flavor) -> str:
    """Return the hardware of a flavor as a catalog file, where it was measured on the spot; "" where all have it.

    The texts of several machines, one after another, are one file.
    """
    node = catalog.node(flavor.node)
    accelerator = catalog.accelerator(node.accelerator)
    measured = any(source.url.startswith("measured:") for source in accelerator.sources)
    return catalog_text([accelerator, node]) if measured else ""


def _accelerator_here(world: World, catalog: Catalog) -> Accelerator:
    """Return what the accelerators of this machine's ranks are, all of one kind and whole."""
    here = num_accelerators()
    if world.local_size > here:
        raise ValueError(
            f"nproc: {world.local_size} ranks on this machine, but it has {here} accelerators; start at most {here}"
        )
    every = [torch.cuda.get_device_properties(index) for index in range(world.local_size)]
    names = sorted({properties.name for properties in every})
    if len(names) > 1:
        raise ValueError(f"device: {' and '.join(names)} are both here; choose equal ones with CUDA_VISIBLE_DEVICES")
    accelerator = catalog.accelerator_named(names[0])
    units = min(properties.multi_processor_count for properties in every)
    if units < LIKE_UNITS * accelerator.num_compute_units:
        raise ValueError(
            f"device: {names[0]} shows {units} of {accelerator.num_compute_units} compute units; it is partitioned, "
            "use whole devices, or describe the part in a --catalog FILE"
        )
    return accelerator


def _refuse_another(flavor: Flavor, catalog: Catalog, accelerator: str, world: World) -> None:
    """Refuse a flavor that is not what a run is on."""
    wanted = catalog.node(flavor.node).accelerator
    if wanted != accelerator:
        raise ValueError(f"flavor: {flavor.id} is of {wanted}, but {accelerator} is here; leave out --flavor")
    for what, has, run in (
        ("devices", flavor.num_devices, world.size),
        ("nodes", flavor.num_nodes, world.num_nodes),
    ):
        if has != run:
            raise ValueError(
                f"flavor: {flavor.id} has {has} {what}, but this run has {run}; start one rank for each of its "
                f"{flavor.num_devices} devices on {flavor.num_nodes} nodes, or leave out --flavor"
            )
