"""A plan: how the work is laid over the devices; why a plan cannot run; the platform's space of plans."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from estimator.workload import Workload
from hardware.errors import shown
from hardware.models import Flavor

RECOMPUTATIONS = ("none", "selective", "full")
"""Kept activations: all; all but attention scores; only each layer's input. Arrays hold the index."""

SCHEDULES = ("gpipe", "1f1b")
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
    recomputation: str = "none"
    zero_stage: int = 3
    schedule: str = "1f1b"
    virtual_stages: int = 1

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
            f"distribute_param={str(self.distribute_param).lower()}"
        )
        for name, value, default in (
            ("cp", self.cp, 1),
            ("zero_stage", self.zero_stage, 3 if self.distribute_param else 0),
            ("schedule", self.schedule, "1f1b"),
            ("virtual_stages", self.virtual_stages, 1),
        ):
            text += f",{name}={value}" if value != default else ""
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
            f"{pipeline}, {tensor}, recomputation : {recomputation}, "
            f"distribute_param : {str(self.distribute_param).lower()}"
        )


_DEGREES = ("num_stages", "num_micro_batches", "batch_per_device", "tp", "cp", "virtual_stages")


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
                f"plan: distribute_param={str(distribute).lower()} contradicts zero_stage={zero_stage}; "
                "distribute_param=true is zero_stage=3"
            )
    return Plan(**values)


def _plan_value(key: str, text: str) -> Any:
    if key in _DEGREES:
        if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < MAX_DEGREE and len(text) < 12):
            raise ValueError(f"plan: {key}={shown(text)} is not a positive integer below 2**31")
        return int(text)
    choices: dict[str, dict[str, Any]] = {
        "recomputation": {name: name for name in RECOMPUTATIONS} | {"false": "none", "true": "full"},
        "schedule": {name: name for name in SCHEDULES},
        "distribute_param": {"true": True, "false": False},
        "zero_stage": {str(stage): stage for stage in range(4)},
    }
    if key not in choices:
        known = ", ".join((*_DEGREES, *choices))
        raise ValueError(f"plan: unknown key {shown(key)}; use one of {known}")
    if text not in choices[key]:
        raise ValueError(f"plan: {key}={shown(text)} is not one of {', '.join(choices[key])}")
    return choices[key][text]


Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plans:
    """Many plans, one array per field; `recomputation` and `schedule` hold indices of their tuples of names."""

    num_stages: Ints
    num_micro_batches: Ints
    batch_per_device: Ints
    tp: Ints
    cp: Ints
    recomputation: Ints
    zero_stage: Ints
    schedule: Ints
    virtual_stages: Ints

    @classmethod
    def of(cls, plans: Iterable[Plan]) -> Self:
        """Return the arrays of a sequence of plans."""
        rows = [asdict(plan) for plan in plans]
        for row in rows:
            row["recomputation"] = RECOMPUTATIONS.index(row["recomputation"])
            row["schedule"] = SCHEDULES.index(row["schedule"])
        return cls(**{f.name: np.array([row[f.name] for row in rows], dtype=np.int64) for f in fields(cls)})

    def __len__(self) -> int:
        """Return the number of plans."""
        return len(self.num_stages)

    def __getitem__(self, index: int) -> Plan:
        """Return one plan."""
        row: dict[str, Any] = {f.name: int(getattr(self, f.name)[index]) for f in fields(self)}
        row["recomputation"] = RECOMPUTATIONS[row["recomputation"]]
        row["schedule"] = SCHEDULES[row["schedule"]]
        return Plan(**row)

    def data_parallel(self, num_devices: int) -> Ints:
        """Data-parallel degree, dp = devices / (stages tp cp); 0 where that does not divide."""
        degree = np.full(len(self), num_devices, dtype=np.int64)
        for ways in (self.num_stages, self.tp, self.cp):  # one by one: their product may not fit 64 bits
            degree = np.where(degree % ways == 0, degree // ways, 0)
        return degree


def reasons(plans: Plans, workload: Workload, num_devices: int) -> list[str]:
    """Return why each plan cannot run on this many devices: "" where it can."""
    shape, batch = workload.shape, workload.global_batch
    dp = plans.data_parallel(num_devices)
    rows = dp * plans.num_micro_batches * plans.batch_per_device.astype(object)  # of any size
    model = shown(shape.name).replace("{", "{{").replace("}", "}}")  # it stands in a template
    rules: Sequence[tuple[npt.NDArray[np.bool_], str]] = (
        (plans.cp > 1, "cp={cp} is not modelled; use cp=1"),
        (plans.virtual_stages > 1, "virtual_stages={virtual_stages} is not modelled; use virtual_stages=1"),
        (
            dp == 0,
            f"num_stages * tp = {{num_stages}} * {{tp}} does not divide {num_devices} devices; use divisors of it",
        ),
        (
            rows != batch,
            (
                f"data_parallel * num_micro_batches * batch_per_device = {{dp}} * {{num_micro_batches}} * "
                f"{{batch_per_device}} = {{rows}} is not the global batch {batch}; change one of them"
            ),
        ),
        (
            shape.num_layers % plans.num_stages != 0,
            (
                f"num_stages={{num_stages}} does not divide num_layers={shape.num_layers} of {model}; "
                f"use one of {_divisors(shape.num_layers)}"
            ),
        ),
        (
            shape.num_kv_heads % plans.tp != 0,
            (
                f"tp={{tp}} does not divide num_kv_heads={shape.num_kv_heads} of {model}; "
                f"use one of {_divisors(shape.num_kv_heads)}"
            ),
        ),
        (
            shape.ffn_size % plans.tp != 0,
            f"tp={{tp}} does not divide ffn_size={shape.ffn_size} of {model}; use one of {_divisors(shape.ffn_size)}",
        ),
        (
            workload.seq_len % plans.tp != 0,
            f"tp={{tp}} does not divide the {workload.seq_len} tokens of a row; use a divisor of it",
        ),
        (
            (plans.schedule == SCHEDULES.index("1f1b")) & (plans.num_micro_batches < plans.num_stages),
            "num_micro_batches={num_micro_batches} is fewer than num_stages={num_stages}; 1f1b needs at least as many",
        ),
    )
    found = [""] * len(plans)
    for broken, template in reversed(rules):  # the first rule of the list has the last word
        for i in np.flatnonzero(broken):
            found[i] = template.format(**asdict(plans[int(i)]), dp=dp[i], rows=rows[i])
    return found


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, min(number, 1024) + 1) if number % d == 0]


def moai_space(flavor: Flavor, global_batch: int) -> Plans:
    """Return the candidates that the MoAI platform, version 24.2, generates for a flavor and a batch.

    Stages s of 2, 4, 8 with s dividing the nodes; data parallel over the devices of a stage, which must divide the
    batch; micro-batches a power of two, 2 or more, that leaves at most 8 rows per device; each with recomputation off
    and on; no tensor parallelism; parameters distributed. This rule, inferred from the platform's logs, gives the
    count of candidates that 22 of 23 logs print. assumed: where it gives none (a flavor on one node), the platform
    runs without a pipeline, any power of two of micro-batches.

    >>> from hardware.catalog import load_catalog
    >>> len(moai_space(load_catalog().flavor("4xLarge.2048GB"), global_batch=256))
    16
    """
    staged = [
        plan
        for stages in (2, 4, 8)
        if flavor.num_nodes % stages == 0
        for plan in _moai_plans(stages, flavor.num_devices, global_batch, fewest=2)
    ]
    return Plans.of(staged or _moai_plans(1, flavor.num_devices, global_batch, fewest=1))


def nearest_batch(flavor: Flavor, global_batch: int) -> int | None:
    """Return the largest batch, no larger than the given one, that leaves the platform a candidate, if one is near."""
    near = range(global_batch, max(global_batch - 1024, 0), -1)
    return next((batch for batch in near if len(moai_space(flavor, batch))), None)


def _moai_plans(stages: int, num_devices: int, global_batch: int, fewest: int) -> list[Plan]:
    dp = num_devices // stages
    if num_devices % stages or global_batch % dp:
        return []
    rows = global_batch // dp
    counts = [m for m in (2**i for i in range(41)) if m >= fewest and rows % m == 0 and rows // m <= 8]
    return [
        Plan(stages, m, rows // m, recomputation=recomputation) for m in counts for recomputation in ("none", "full")
    ]
