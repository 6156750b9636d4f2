"""What machines are: units, frozen records, catalog data with its sources."""

from hardware.catalog import Catalog, load_catalog
from hardware.models import Accelerator, Flavor, Host, Instance, Link, Measured, Network, Node, Price, Source
from hardware.units import GIB, MIB

__all__ = [
    "GIB",
    "MIB",
    "Accelerator",
    "Catalog",
    "Flavor",
    "Host",
    "Instance",
    "Link",
    "Measured",
    "Network",
    "Node",
    "Price",
    "Source",
    "load_catalog",
]
