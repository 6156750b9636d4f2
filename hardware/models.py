"""Records of the catalog: what is known of accelerators, nodes, flavors and prices, each with its sources.

A device is what a scheduler and a process see: one GCD of an MI250, one MI300X, one CPU socket.
"""

from datetime import date
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from hardware.units import Bytes, BytesPerSecond, FlopPerSecond, Seconds, Watts

MOST_DEVICES = 1_000_000
"""No cluster has more devices; a larger count is a mistake."""

Id = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
FlavorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+([.-][A-Za-z0-9]+)*$", max_length=80)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST_DEVICES)]
Day = Annotated[date, Field(strict=True)]
UsdPerHour = Annotated[float, Field(strict=True, ge=1e-6, le=1e6)]  # assumed: nobody asks less, or more, for a device


Evidence = Literal["datasheet", "measured", "assumed"]


class Record(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Base of every catalog record: immutable, and a misspelt key is an error."""


class Source(Record):
    """A page that was read for a figure, or a measurement made on the machine itself."""

    url: str = Field(pattern=r"^(https?://\S+|measured:[a-z_]+(\.[a-z_]+)*)$", max_length=2000)
    """The page's address; or `measured:` and the module of this project that measured, `measured:trainer.jobs.cpu`."""

    checked: Day
    """Day on which the page was read, or the measurement made."""

    note: str = ""
    """What the page says, where that is not plain."""


Sources = Annotated[tuple[Source, ...], Field(min_length=1)]


class Measured(Record):
    """A fraction of a peak, and what stands behind it."""

    value: float = Field(strict=True, ge=1e-3, le=1)
    """Less than a thousandth of a peak is no measurement of it."""

    evidence: Evidence
    note: Name
    """What was measured on what, or why it is assumed."""

    source: Source


class Accelerator(Record):
    """One device, with its peaks as the vendor states them."""

    id: Id
    name: Name
    vendor: Name
    architecture: Name
    driver_names: tuple[Name, ...] = ()
    """Names that the driver gives it, as `torch.cuda.get_device_name` returns them; () where none is known."""
    hbm_bytes: Bytes
    """Memory that a process can see, per device [bytes]; of a CPU, its host memory."""

    hbm_bytes_per_s: BytesPerSecond
    """Peak memory bandwidth per device [bytes/s]."""

    bf16_flop_per_s: FlopPerSecond
    """Peak dense matrix rate in bfloat16, per device [FLOP/s]."""

    fp32_flop_per_s: FlopPerSecond
    """Peak vector rate in float32, per device [FLOP/s]."""

    fp8_flop_per_s: FlopPerSecond | None = None
    """Peak dense matrix rate in float8, per device [FLOP/s]; None where there is none."""

    num_compute_units: Count
    """Compute units, streaming multiprocessors or cores, per device."""

    tdp_w: Watts
    """Thermal design power per device [W]."""

    matmul_efficiency: Measured
    """Best published bfloat16 matrix product over `bf16_flop_per_s`."""

    hbm_efficiency: Measured
    """Published streaming bandwidth over `hbm_bytes_per_s`."""

    note: str = ""
    sources: Sources


class Link(Record):
    """What connects a group of devices of one node."""

    span: int = Field(strict=True, ge=2, le=MOST_DEVICES)
    """Devices of the group."""

    topology: Literal["pair", "ring", "mesh", "switch"]
    bytes_per_s: BytesPerSecond
    """Peak per direction [bytes/s]: of a device in a pair, ring or switch; of each pair of devices in a mesh."""

    evidence: Evidence
    """What stands behind `bytes_per_s`."""

    latency_s: Seconds
    """Seconds of one hop of a collective however small; an all-reduce over n devices is 2 (n - 1) hops."""

    efficiency: Measured
    """Bandwidth that large messages reach over `bytes_per_s`."""


class Network(Record):
    """What connects the nodes."""

    bytes_per_s: BytesPerSecond
    """Peak per node and direction, all adapters together [bytes/s]."""

    evidence: Evidence
    """What stands behind `bytes_per_s`."""

    latency_s: Seconds
    """Seconds of one hop of a collective however small."""

    efficiency: Measured
    """Bandwidth that large messages reach over `bytes_per_s`."""


class Host(Record):
    """What a server's own processors offer to an optimizer that lives in their memory."""

    memory_bytes: Bytes
    """Memory of the host [bytes]."""

    bytes_per_s: BytesPerSecond
    """Bandwidth of the host's memory, all sockets together [bytes/s]."""

    link_bytes_per_s: BytesPerSecond
    """Between the host and each device, per direction [bytes/s]."""

    evidence: Literal["datasheet", "measured", "assumed"]
    note: Name
    """What it is, or why it is assumed."""


class Node(Record):
    """A server with equal devices."""

    id: Id
    accelerator: Id
    """Id of its accelerator."""

    num_devices: Count
    links: tuple[Link, ...] = ()
    """Innermost first; the last one spans the node."""

    network: Network
    host: Host | None = None
    """None where it is not known: then nothing can be offloaded to it."""

    note: str = ""
    sources: Sources

    @model_validator(mode="after")
    def _links_nest(self) -> Self:
        spans = [link.span for link in self.links]
        if any(inner >= outer for inner, outer in pairwise(spans)):
            raise ValueError(f"links: spans {spans} do not increase; list the innermost link first")
        if self.num_devices > 1 and spans[-1:] != [self.num_devices]:
            raise ValueError(f"links: none spans num_devices={self.num_devices}; end with a link of that span")
        if self.num_devices == 1 and spans:
            raise ValueError("links: a node of one device has none; remove them")
        return self


class Flavor(Record):
    """A named slice of a cluster."""

    id: FlavorName
    aliases: tuple[FlavorName, ...] = ()
    """Other spellings of the id."""

    node: Id
    """Id of its node."""

    num_devices: Count
    num_nodes: Count
    menu_index: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Place in the platform's menu; None where it is not on the menu."""

    note: str = ""
    sources: Sources


class Price(Record):
    """What a provider asked for one device on one day; a changed price is a new record."""

    accelerator: Id
    """Id of the accelerator."""

    provider: Name
    market: Literal["on-demand", "spot", "listing"]
    """A listing is another site's word for what a provider asks."""

    usd_per_device_h: UsdPerHour
    """USD per device and hour."""

    usd_per_device_h_high: UsdPerHour | None = None
    """The upper reading where the source leaves its unit unclear."""

    on: Day
    """Day on which the price was asked."""

    note: str = ""
    sources: Sources

    @model_validator(mode="after")
    def _readings_are_ordered(self) -> Self:
        high = self.usd_per_device_h_high
        if high is not None and high < self.usd_per_device_h:
            raise ValueError(
                f"usd_per_device_h_high: {high} is below usd_per_device_h={self.usd_per_device_h}; swap them"
            )
        return self
