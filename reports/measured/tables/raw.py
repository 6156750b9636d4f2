"""What the conversions of published tables share: cells as numbers, and arithmetic between columns."""

from collections.abc import Mapping

from estimator.formulas.machine import Machine
from hardware.catalog import Catalog, load_catalog
from hardware.models import Accelerator

CATALOG: Catalog = load_catalog()

MOST_PER_SERVER = 16
"""A node of the catalog with more devices is a rack that one link joins."""

Row = Mapping[str, str]


def whole(row: Row, column: str) -> int | None:
    """Return the whole number of a cell, None where it is blank."""
    return int(float(row[column])) if row[column] else None


def number(row: Row, column: str) -> float | None:
    """Return the number of a cell, None where it is blank."""
    return float(row[column]) if row[column] else None


def stated(row: Row, column: str) -> int:
    """Return the whole number of a cell, which is not blank."""
    value = whole(row, column)
    if value is None:
        raise ValueError(f"{column}: not stated")
    return value


def data_parallel(devices: int, **ways: int) -> int:
    """Return the data-parallel degree of devices that divide so many ways."""
    rest = devices
    for name, way in ways.items():
        if rest % way:
            raise ValueError(f"{name}: {'*'.join(map(str, ways.values()))} ways do not divide {devices} devices")
        rest //= way
    return rest


def micro_batches(batch: int, dp: int, rows: int) -> int:
    """Return the micro-batches of so many rows that a global batch makes on each data-parallel rank."""
    if batch % (dp * rows):
        raise ValueError(f"global batch: {batch} rows are no whole micro-batches of {rows} on {dp} ranks")
    return batch // (dp * rows)


def machine_of(accelerator: Accelerator, num_devices: int, devices_per_node: int | None) -> Machine:
    """Return the devices in nodes of so many each; None where the row does not say: full nodes.

    A rack of the catalog counts as one node, however many servers it has.
    """
    node = CATALOG.node_of(accelerator.id)
    told = devices_per_node if devices_per_node and node.num_devices <= MOST_PER_SERVER else node.num_devices
    return Machine(accelerator, node, num_devices, -(-num_devices // min(told, node.num_devices)))
