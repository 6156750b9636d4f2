"""Records of the catalog: accelerators, nodes, flavors, cloud instances and prices, each with its sources.

A device is what a scheduler and a process see: one GCD of an MI250, one MI300X, one CPU socket. A quantity has the
bounds of what any device of the next years could have, so that a slip of a prefix is refused: NVIDIA's Rubin and AMD's
MI455X, announced for 2026, have 4 and 5 PFLOP/s in 16 bits, 22 and 23 TB/s, and 288 and 432 GB.
"""

import re
from datetime import date
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from hardware.errors import shown
from hardware.units import BANDWIDTH, COMPUTE, POWER, SIZE, TIME

MOST_DEVICES = 1_000_000
"""No cluster has more devices; a larger count is a mistake."""

Id = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
FlavorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$", max_length=80)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST_DEVICES)]
Day = Annotated[date, Field(strict=True)]
UsdPerHour = Annotated[float, Field(strict=True, ge=1e-3, le=1e3)]  # assumed: nobody asks less, or more, for a device

# assumed: each upper bound is 5 to 20 times what the devices announced for 2026 have, each lower one a small computer's
Rate16 = Annotated[float, BeforeValidator(COMPUTE.between("100 MFLOP/s", "30 PFLOP/s").parse)]
Rate32 = Annotated[float, BeforeValidator(COMPUTE.between("100 MFLOP/s", "3 PFLOP/s").parse)]
Rate8 = Annotated[float, BeforeValidator(COMPUTE.between("100 MFLOP/s", "120 PFLOP/s").parse)]
DeviceBytes = Annotated[float, BeforeValidator(SIZE.between("16 MB", "16 TB").parse)]
DeviceBytesPerS = Annotated[float, BeforeValidator(BANDWIDTH.between("10 MB/s", "200 TB/s").parse)]
DeviceWatts = Annotated[float, BeforeValidator(POWER.between("0.1 W", "10 kW").parse)]
LinkBytesPerS = Annotated[float, BeforeValidator(BANDWIDTH.between("1 MB/s", "20 TB/s").parse)]
HopSeconds = Annotated[float, BeforeValidator(TIME.between("10 ns", "1 s").parse)]
NodeBytesPerS = Annotated[float, BeforeValidator(BANDWIDTH.between("1 MB/s", "200 TB/s").parse)]
HostBytes = Annotated[float, BeforeValidator(SIZE.between("16 MB", "1 PB").parse)]
ComputeUnits = Annotated[int, Field(strict=True, ge=1, le=4096)]
DevicesPerNode = Annotated[int, Field(strict=True, ge=1, le=16_384)]  # assumed: more than a pod of TPUs has

Evidence = Literal["datasheet", "measured", "assumed"]
MatmulPrecision = Literal["bf16", "fp16", "fp32", "fp8"]


class Record(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Base of every catalog record: immutable, and a misspelt key is an error."""


class Source(Record):
    """A page that was read for a figure, or a measurement made on the machine itself.

    As text: the day, the address, and what it says.

    >>> Source.model_validate("2026-01-15 https://example.com/a 8 x 400 Gb/s").note
    '8 x 400 Gb/s'
    """

    url: str = Field(pattern=r"^(https?://\S+|measured:[a-z_]+(\.[a-z_]+)*)$", max_length=2000)
    """The page's address; or `measured:` and the module of this project that measured, `measured:trainer.jobs.cpu`."""

    checked: Day
    """Day on which the page was read, or the measurement made."""

    note: str = ""
    """What the page says, where that is not plain."""

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = value.split(" ", 2)
        try:
            checked, url = date.fromisoformat(parts[0]), parts[1]
        except (IndexError, ValueError):
            example = "'2026-01-15 https://example.com/a what it says'"
            raise ValueError(f"{shown(value)} is not a day and an address; write for example {example}") from None
        return {"url": url, "checked": checked, "note": parts[2] if parts[2:] else ""}


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
    hbm_bytes: DeviceBytes
    """Memory that a process can see, per device [bytes]; of a CPU, its host memory."""

    hbm_bytes_per_s: DeviceBytesPerS
    """Peak memory bandwidth per device [bytes/s]."""

    bf16_flop_per_s: Rate16 | None = None
    """Peak dense matrix rate in bfloat16, summed in 32 bits, per device [FLOP/s]; None where it has no units for it.

    Emulated, bfloat16 is far slower than float32: a T4 does 2 TFLOP/s of it beside 43 in float16.
    """

    fp16_flop_per_s: Rate16 | None = None
    """Peak dense matrix rate in float16, summed in 32 bits, per device [FLOP/s]; None where it has no units for it."""

    fp32_flop_per_s: Rate32
    """Peak dense matrix rate in float32, not in TF32, per device [FLOP/s]: the vector rate where no unit is faster."""

    fp8_flop_per_s: Rate8 | None = None
    """Peak dense matrix rate in float8, per device [FLOP/s]; None where it has no units for it."""

    num_compute_units: ComputeUnits
    """Compute units, streaming multiprocessors, matrix engines or cores, per device."""

    tdp_w: DeviceWatts
    """Thermal design power per device [W]."""

    matmul_efficiency: Measured
    """Best published matrix product over `usual_flop_per_s`."""

    hbm_efficiency: Measured
    """Published streaming bandwidth over `hbm_bytes_per_s`."""

    note: str = ""
    sources: Sources

    @property
    def peaks(self) -> dict[MatmulPrecision, float | None]:
        """Peak dense matrix rates [FLOP/s]; None where it has no units."""
        return {
            "bf16": self.bf16_flop_per_s,
            "fp16": self.fp16_flop_per_s,
            "fp32": self.fp32_flop_per_s,
            "fp8": self.fp8_flop_per_s,
        }

    @property
    def usual_precision(self) -> MatmulPrecision:
        """bf16, else fp16, else fp32: the first that it has units for."""
        return "bf16" if self.bf16_flop_per_s else "fp16" if self.fp16_flop_per_s else "fp32"

    @property
    def usual_flop_per_s(self) -> float:
        """Peak dense matrix rate in the usual precision [FLOP/s]."""
        return self.matmul_flop_per_s(self.usual_precision)

    @property
    def is_processor(self) -> bool:
        """Whether it is a host's own processor: it has no units of its own for 16 bits."""
        return self.fp16_flop_per_s is None and self.bf16_flop_per_s in (None, self.fp32_flop_per_s)

    def matmul_flop_per_s(self, precision: MatmulPrecision) -> float:
        """Return the peak dense matrix rate in a precision [FLOP/s].

        Raises:
            ValueError: the device has no units for it.
        """
        if peak := self.peaks[precision]:
            return peak
        instead = "fp32" if self.usual_precision == "fp32" else f"{self.usual_precision}-mixed"
        raise ValueError(f"precision: {precision} needs matrix units that {self.id} lacks; use {instead}")


class Link(Record):
    """What connects a group of devices of one node."""

    span: int = Field(strict=True, ge=2, le=MOST_DEVICES)
    """Devices of the group."""

    topology: Literal["pair", "ring", "mesh", "switch"]
    bytes_per_s: LinkBytesPerS
    """Peak per direction [bytes/s]: of a device in a pair, ring or switch; of each pair of devices in a mesh."""

    evidence: Evidence
    """What stands behind `bytes_per_s`."""

    latency_s: HopSeconds
    """Seconds of one hop of a collective however small; an all-reduce over n devices is 2 (n - 1) hops."""

    latency_evidence: Evidence = "assumed"
    """What stands behind `latency_s`."""

    efficiency: Measured
    """Bandwidth that large messages reach over `bytes_per_s`."""


class Network(Record):
    """What connects the nodes."""

    bytes_per_s: NodeBytesPerS
    """Peak per node and direction, all adapters together [bytes/s]."""

    evidence: Evidence
    """What stands behind `bytes_per_s`."""

    latency_s: HopSeconds
    """Seconds of one hop of a collective however small."""

    latency_evidence: Evidence = "assumed"
    """What stands behind `latency_s`."""

    efficiency: Measured
    """Bandwidth that large messages reach over `bytes_per_s`."""


class Host(Record):
    """What a server's own processors offer to an optimizer that lives in their memory."""

    memory_bytes: HostBytes
    """Memory of the host [bytes]."""

    bytes_per_s: NodeBytesPerS
    """Bandwidth of the host's memory, all sockets together [bytes/s]."""

    link_bytes_per_s: LinkBytesPerS
    """Between the host and each device, per direction [bytes/s]."""

    evidence: Evidence
    note: Name
    """What it is, or why it is assumed."""


class Node(Record):
    """A server with equal devices."""

    id: Id
    accelerator: Id
    """Id of its accelerator."""

    num_devices: DevicesPerNode
    links: tuple[Link, ...] = ()
    """Innermost first; the last one spans the node."""

    network: Network
    host: Host | None = None
    """None where it is not known: then nothing can be offloaded to it."""

    counts_in_all: tuple[Count, ...] = ()
    """How many of these nodes, all in use, `--flavor all` compares beside the flavors; () leaves them out."""

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

    def part(self, num_devices: int) -> Self:
        """Return the node with its first so many devices, and the links between them."""
        links = [link for link in self.links if link.span < num_devices]
        if num_devices > 1:
            outer = next(link for link in self.links if link.span >= num_devices)
            links.append(outer.model_copy(update={"span": num_devices}))
        return self.model_copy(update={"num_devices": num_devices, "links": tuple(links)})

    def flavor(self, num_devices: int, name: str = "") -> "Flavor":
        """Return so many of its devices, on as few of such nodes as hold them, as a flavor of a name."""
        return Flavor(
            id=name or f"{self.accelerator}-{num_devices}",
            node=self.id,
            num_devices=num_devices,
            num_nodes=-(-num_devices // self.num_devices),
            sources=self.sources,
        )


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

    provider: Name | None = None
    """Who rents it out; None where it is nobody's in particular."""

    note: str = ""
    sources: Sources


class Instance(Record):
    """A machine that a cloud rents by a name: a node of the catalog or a part of one, on the cloud's own network."""

    id: FlavorName
    aliases: tuple[FlavorName, ...] = ()
    """Other spellings of the id."""

    provider: Name
    """Who rents it out, as prices name it."""

    node: Id
    """Id of the node whose devices and links it has."""

    num_devices: DevicesPerNode
    """Devices of it, the first ones of the node."""

    network_bytes_per_s: NodeBytesPerS
    """Peak of its network per direction, all adapters together that serve the devices [bytes/s]."""

    host_memory_bytes: HostBytes
    """Memory of its host [bytes]."""

    note: str = ""
    sources: Sources

    @property
    def node_id(self) -> str:
        """Id of the machine as a node."""
        return re.sub(r"[._]", "-", self.id).lower()

    def as_node(self, like: Node) -> Node:
        """Return the machine as a node: so many devices of one like it, with its own network and host memory."""
        network = like.network.model_copy(update={"bytes_per_s": self.network_bytes_per_s, "evidence": "datasheet"})
        host = like.host and like.host.model_copy(update={"memory_bytes": self.host_memory_bytes})
        told = {"note": self.note, "sources": (*self.sources, *like.sources)}
        own = {"id": self.node_id, "network": network, "host": host, "counts_in_all": ()}
        return like.part(self.num_devices).model_copy(update=own | told)

    def flavor(self, num_nodes: int, name: str) -> Flavor:
        """Return so many of the machine as a flavor of a name."""
        return Flavor(
            id=name,
            node=self.node_id,
            num_devices=num_nodes * self.num_devices,
            num_nodes=num_nodes,
            provider=self.provider,
            sources=self.sources,
        )


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
