"""A plan: how the work is laid over the devices; as text, and many as arrays."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hardware.errors import shown

RECOMPUTATIONS = ("none", "selective", "full")
"""Kept activations: all; all but attention scores; only each layer's input. Arrays hold the index."""

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")
"""GPipe, 1F1B and interleaved 1F1B as in arXiv:2104.04473; zero bubble is ZB-H1 of arXiv:2401.10241."""

MAX_DEGREE = 2**31


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to lay the work over the devices; the data-parallel degree follows from their number."""

    num_stages: int = 1
    num_micro_batches: int = 1
    batch_per_device: int = 1
    """Rows of one micro-batch on one data-parallel rank."""
    tp: int = 1
    cp: int = 1
    ep: int = 1
    """Ranks that share a layer's experts; they are data-parallel ranks otherwise."""
    recomputation: str = "none"
    recomputed_layers: int = 0
    """Layers of each stage that full recomputation repeats; 0 for all of them."""
    zero_stage: int = 3
    shard_within_node: bool = False
    """ZeRO shards over the replicas of a node, and the nodes hold copies (hybrid sharding)."""
    schedule: str = "1f1b"
    virtual_stages: int = 1
    """Chunks of each stage under the interleaved schedule."""
    first_layers: int = 0
    """Layers of the first stage of an uneven split; 0 where all stages have the same."""
    last_layers: int = 0
    sequence_parallel: bool = True
    """Tensor-parallel ranks split along the sequence what they would all hold whole."""
    offload_optimizer: bool = False
    """Master weights and optimizer state live in host memory, and the host updates them."""

    @property
    def distribute_param(self) -> bool:
        """Parameters and gradients are sharded over the data-parallel devices (ZeRO-3)."""
        return self.zero_stage == 3

    def __str__(self) -> str:
        """Return the text that `parse_plan` reads back.

        >>> parse_plan(str(Plan(num_stages=2, num_micro_batches=16))) == Plan(num_stages=2, num_micro_batches=16)
        True
        """
        text = (
            f"num_stages={self.num_stages},num_micro_batches={self.num_micro_batches},"
            f"batch_per_device={self.batch_per_device},tp={self.tp},recomputation={self.recomputation},"
            f"distribute_param={_text(self.distribute_param)}"
        )
        usual = asdict(Plan(zero_stage=3 if self.distribute_param else 0))
        for name in _UNUSUAL:
            value = getattr(self, name)
            text += f",{name}={_text(value)}" if value != usual[name] else ""
        return text

    def platform_line(self) -> str:
        """Return the plan as the MoAI platform prints it.

        >>> Plan(num_stages=2, num_micro_batches=16).platform_line()
        'num_stages : 2, num_micro_batches : 16, batch_per_device : 1, No TP, recomputation : false, distribute_param : true'
        """  # noqa: E501 - one line of a log
        pipeline = (
            f"num_stages : {self.num_stages}, num_micro_batches : {self.num_micro_batches}, "
            f"batch_per_device : {self.batch_per_device}"
            if self.num_stages > 1
            else f"No PP, num_micro_batches : {self.num_micro_batches}, batch_per_device : {self.batch_per_device}"
        )
        tensor = f"TP : {self.tp}" if self.tp > 1 else "No TP"
        recomputation = {"none": "false", "full": "true"}.get(self.recomputation, self.recomputation)
        return (
            f"{pipeline}, {tensor}, recomputation : {recomputation}, distribute_param : {_text(self.distribute_param)}"
        )


_COUNTS = (
    "num_stages",
    "num_micro_batches",
    "batch_per_device",
    "tp",
    "cp",
    "ep",
    "recomputed_layers",
    "virtual_stages",
    "first_layers",
    "last_layers",
)
_FLAGS = ("shard_within_node", "sequence_parallel", "offload_optimizer")
_UNUSUAL = (
    "cp",
    "ep",
    "recomputed_layers",
    "zero_stage",
    "shard_within_node",
    "schedule",
    "virtual_stages",
    "first_layers",
    "last_layers",
    "sequence_parallel",
    "offload_optimizer",
)
"""Fields that a plan's text names only where they are not as usual."""


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_plan(text: str) -> Plan:
    """Return the plan that a text such as `num_stages=2,num_micro_batches=16,recomputation=none` describes.

    Raises:
        ValueError: a key is unknown or given twice, or a value is not of its kind.
    """
    values: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key in values:
            rule = "is given twice" if key in values else "is not key=value"
            raise ValueError(f"plan: {shown(item)} {rule}; write for example num_stages=2,num_micro_batches=16")
        values[key] = _plan_value(key, value)
    distribute = values.pop("distribute_param", None)
    if distribute is not None:
        zero_stage = values.setdefault("zero_stage", 3 if distribute else 0)
        if distribute != (zero_stage == 3):
            raise ValueError(
                f"plan: distribute_param={_text(distribute)} contradicts zero_stage={zero_stage}; "
                "distribute_param=true is zero_stage=3"
            )
    return Plan(**values)


def _plan_value(key: str, text: str) -> Any:
    if key in _COUNTS:
        if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < MAX_DEGREE and len(text) < 12):
            raise ValueError(f"plan: {key}={shown(text)} is not a positive integer below 2**31")
        return int(text)
    flag = {"true": True, "false": False}
    choices: dict[str, dict[str, Any]] = {
        "recomputation": {name: name for name in RECOMPUTATIONS} | {"false": "none", "true": "full"},
        "schedule": {name: name for name in SCHEDULES},
        "distribute_param": flag,
        "zero_stage": {str(stage): stage for stage in range(4)},
        **dict.fromkeys(_FLAGS, flag),
    }
    if key not in choices:
        known = ", ".join((*_COUNTS, *choices))
        raise ValueError(f"plan: unknown key {shown(key)}; use one of {known}")
    if text not in choices[key]:
        raise ValueError(f"plan: {key}={shown(text)} is not one of {', '.join(choices[key])}")
    return choices[key][text]


Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Plans:
    """Many plans, an array per field; the arrays broadcast against each other, so that a grid is a row and a column.

    `recomputation` and `schedule` hold indices of their tuples of names.
    """

    num_stages: Ints
    num_micro_batches: Ints
    batch_per_device: Ints
    tp: Ints
    cp: Ints
    ep: Ints
    recomputation: Ints
    recomputed_layers: Ints
    zero_stage: Ints
    shard_within_node: Flags
    schedule: Ints
    virtual_stages: Ints
    first_layers: Ints
    last_layers: Ints
    sequence_parallel: Flags
    offload_optimizer: Flags

    @classmethod
    def of(cls, plans: Iterable[Plan]) -> Self:
        """Return the arrays of a sequence of plans, shape (plans,)."""
        rows = [asdict(plan) for plan in plans]
        for row in rows:
            row["recomputation"] = RECOMPUTATIONS.index(row["recomputation"])
            row["schedule"] = SCHEDULES.index(row["schedule"])
        columns: dict[str, Any] = {
            f.name: np.array([row[f.name] for row in rows], dtype=np.bool_ if f.name in _FLAGS else np.int64)
            for f in fields(cls)
        }
        return cls(**columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that all fields have together."""
        return np.broadcast_shapes(*(getattr(self, name).shape for name in self.__slots__))

    def __len__(self) -> int:
        """Return the number of plans."""
        return int(np.prod(self.shape))

    def __getitem__(self, index: int) -> Plan:
        """Return one plan, counted along the last axis first."""
        return next(self.each(np.array([index])))

    def each(self, indices: Ints) -> Iterator[Plan]:
        """Yield the plans of indices, counted along the last axis first."""
        at = np.unravel_index(indices, self.shape)
        rows: dict[str, list[Any]] = {}
        for name in self.__slots__:
            column = getattr(self, name)  # where it has one row only, that row is all plans'
            rows[name] = column[
                tuple(i if size > 1 else 0 * i for i, size in zip(at, column.shape, strict=True))
            ].tolist()
        rows["recomputation"] = [RECOMPUTATIONS[i] for i in rows["recomputation"]]
        rows["schedule"] = [SCHEDULES[i] for i in rows["schedule"]]
        return (Plan(*values) for values in zip(*rows.values(), strict=True))

    def data_parallel(self, num_devices: int) -> Ints:
        """Data-parallel degree, dp = devices / (stages tp cp); 0 where that does not divide."""
        degree = np.full((1,) * len(self.shape), num_devices, dtype=np.int64)
        for ways in (self.num_stages, self.tp, self.cp):  # one by one: their product may not fit 64 bits
            degree = np.where(degree % ways == 0, degree // ways, 0)
        return degree
