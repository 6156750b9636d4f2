"""The devices that a plan runs on, and the nodes that carry them."""

from typing import NamedTuple, Self

from hardware.catalog import Catalog
from hardware.models import Accelerator, Flavor, Node


class Machine(NamedTuple):
    """Devices and the nodes that carry them."""

    accelerator: Accelerator
    node: Node
    num_devices: int
    num_nodes: int

    @classmethod
    def of(cls, catalog: Catalog, flavor: Flavor) -> Self:
        """Return the devices of a flavor."""
        node = catalog.node(flavor.node)
        return cls(catalog.accelerator(node.accelerator), node, flavor.num_devices, flavor.num_nodes)

    @property
    def devices_per_node(self) -> int:
        """Devices of the fullest node."""
        return -(-self.num_devices // self.num_nodes)
