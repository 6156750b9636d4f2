"""The devices that a plan runs on, and the nodes that carry them."""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from hardware.catalog import Catalog
from hardware.models import Accelerator, Flavor, Node


class Fabric(NamedTuple):
    """What was measured of a machine's collectives before it trained: numbers, or arrays over plans."""

    hop_s: float | npt.NDArray[np.float64]
    """Seconds that each hop of a ring between nodes adds to a message."""
    stalls: bool | npt.NDArray[np.bool_]
    """Small collectives wait: within a node they are slower than an idle machine's."""


class Machine(NamedTuple):
    """Devices and the nodes that carry them."""

    accelerator: Accelerator
    node: Node
    num_devices: int
    num_nodes: int
    fabric: Fabric | None = None
    """None where only the catalog tells of its links."""

    @classmethod
    def of(cls, catalog: Catalog, flavor: Flavor) -> Self:
        """Return the devices of a flavor."""
        node = catalog.node(flavor.node)
        return cls(catalog.accelerator(node.accelerator), node, flavor.num_devices, flavor.num_nodes)

    @property
    def devices_per_node(self) -> int:
        """Devices of the fullest node."""
        return -(-self.num_devices // self.num_nodes)
