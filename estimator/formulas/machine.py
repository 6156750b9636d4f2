"""The devices that a plan runs on, and the nodes that carry them."""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from hardware.catalog import Catalog
from hardware.models import Accelerator, Flavor, Node

SHARED_PROCESSOR_LOG_SD = 0.12
"""Spread of a step's time on a processor from one run to the next, whatever runs: that of who else uses it.

assumed: virtual processors are shared, and the speed of one drifts by tens of percent between runs
(reports/measured/cpu); an accelerator's owner has it alone
"""


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

    @property
    def drift_log_sd(self) -> float:
        """Spread of a step's time, in logarithms, from one run to the next that is the same."""
        return SHARED_PROCESSOR_LOG_SD if self.accelerator.is_processor else 0.0
