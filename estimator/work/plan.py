"""A plan: how the work is laid over the devices; as text, as a document, and many as arrays.

What a plan says is named once, in `PlanFields`, with its usual value and how it is told. Texts, documents, arrays, and
the layouts that the formulas take, follow from that.
"""

# ruff: noqa: RUF009 - what `_usually` returns is a dataclass's own `field`

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, create_model

from hardware.errors import shown

RECOMPUTATIONS = ("none", "selective", "full")
"""Kept activations: all; all but attention scores; only each layer's input. Arrays hold the index."""

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")
"""GPipe, 1F1B and interleaved 1F1B as in arXiv:2104.04473; zero bubble is ZB-H1 of arXiv:2401.10241."""

FLAG = (True, False)

MAX_DEGREE = 2**31

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
CountT = TypeVar("CountT")
NameT = TypeVar("NameT")
FlagT = TypeVar("FlagT")


@dataclass(frozen=True, slots=True)
class PlanField:
    """What a field of a plan may be, and how it is told; one without choices is a count, no less than usual."""

    name: str
    usual: int | str
    choices: tuple[int | str, ...] = ()
    further_words: Mapping[str, int | str] = field(default_factory=dict)
    """For its choices, in a text."""
    key: str = ""
    """Its name in documents, where that is another."""
    brief: str = ""
    """Its letters in a brief, before the value of what is no flag; "" where a word of several fields tells it."""
    always_told: bool = False
    """A plan's text has it even where it is as usual."""
    must_be_told: bool = False
    """A document that leaves it out is none of a plan."""
    saves_memory: bool = False
    """It says how memory is saved; else, where the work is."""
    late: int = 0
    """Its place among the keys that documents have after the others."""

    def told(self, value: object) -> str:
        """Return the field with a value, as the text of a plan has it."""
        return f"{self.name}={_word(value)}"

    def parsed(self, text: str) -> Any:
        """Return the value that a text tells.

        Raises:
            ValueError: it is not of the field's kind.
        """
        if not self.choices:
            if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < MAX_DEGREE and len(text) < 12):
                raise ValueError(f"plan: {self.name}={shown(text)} is not a positive integer below 2**31")
            return int(text)
        words = {**{_word(choice): choice for choice in self.choices}, **self.further_words}
        if text not in words:
            raise ValueError(f"plan: {self.name}={shown(text)} is not one of {', '.join(words)}")
        return words[text]

    def array(self, values: Iterable[Any]) -> npt.NDArray[Any]:
        """Return values as an array: names as their places among the choices."""
        numbers = map(self.choices.index, values) if isinstance(self.usual, str) else values
        return np.array(list(numbers), dtype=np.bool_ if isinstance(self.usual, bool) else np.int64)

    def value(self, number: Any) -> Any:
        """Return the value that a number of such an array stands for."""
        return self.choices[number] if isinstance(self.usual, str) else number

    def annotation(self) -> Any:
        """Return the type of its value in a document."""
        if isinstance(self.usual, str):
            return Literal[self.choices]
        if isinstance(self.usual, bool):
            return Annotated[bool, Field(strict=True)]
        bounds: dict[str, Any] = {"ge": self.usual, "lt": MAX_DEGREE}
        if self.choices:
            bounds = {"ge": self.choices[0], "le": self.choices[-1]}
        return Annotated[int, Field(strict=True, **bounds)]


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _usually(usual: int | str, choices: tuple[int | str, ...] = (), **how: Any) -> Any:
    """Return a field of a plan: what it is where nothing is said, and the rest of its `PlanField`."""
    choices = FLAG if isinstance(usual, bool) else choices
    return field(default=usual, metadata={"usual": usual, "choices": choices, **how})


@dataclass(frozen=True, slots=True)
class PlanFields(Generic[CountT, NameT, FlagT]):
    """What a plan says: of one plan as values, of many as arrays."""

    num_stages: CountT = _usually(1, always_told=True, must_be_told=True)
    num_micro_batches: CountT = _usually(1, always_told=True, must_be_told=True)
    batch_per_device: CountT = _usually(1, always_told=True, must_be_told=True)
    """Sequences of one micro-batch on one data-parallel rank."""
    tp: CountT = _usually(1, key="tensor_parallel", brief="tp", always_told=True)
    cp: CountT = _usually(1, key="context_parallel", brief="cp")
    ep: CountT = _usually(1, key="expert_parallel", brief="ep", late=1)
    """Ranks that share a layer's experts; they are data-parallel ranks otherwise."""
    recomputation: NameT = _usually(
        "none", RECOMPUTATIONS, further_words={"false": "none", "true": "full"}, always_told=True, saves_memory=True
    )
    recomputed_layers: CountT = _usually(0, saves_memory=True, late=3)
    """Layers of each stage that full recomputation repeats; 0 for all of them."""
    zero_stage: CountT = _usually(3, (0, 1, 2, 3), saves_memory=True)
    shard_within_node: FlagT = _usually(False, saves_memory=True, late=4)
    """ZeRO shards over the replicas of a node, and the nodes hold copies (hybrid sharding)."""
    schedule: NameT = _usually("1f1b", SCHEDULES)
    virtual_stages: CountT = _usually(1)
    """Chunks of each stage under the interleaved schedule."""
    first_layers: CountT = _usually(0)
    """Layers of the first stage of an uneven split; 0 where all stages have the same."""
    last_layers: CountT = _usually(0)
    sequence_parallel: FlagT = _usually(True, brief="no-sp", saves_memory=True, late=2)
    """Tensor-parallel ranks split along the sequence what they would all hold whole."""
    offload_optimizer: FlagT = _usually(False, brief="offload", saves_memory=True, late=5)
    """Master weights and optimizer state live in host memory, and the host updates them."""


PLAN_FIELDS = tuple(PlanField(f.name, **f.metadata) for f in fields(PlanFields))
PLAN_NAMES = tuple(own.name for own in PLAN_FIELDS)

_DISTRIBUTE_PARAM = PlanField("distribute_param", usual=True, choices=FLAG, always_told=True)
"""Another way to tell `zero_stage`: 3, or 0."""

TOLD = tuple(told for own in PLAN_FIELDS for told in ((_DISTRIBUTE_PARAM, own) if own.name == "zero_stage" else (own,)))
"""What texts and documents tell."""

_KEYS = {told.name: told for told in sorted(TOLD, key=lambda f: (f.choices != (), not isinstance(f.usual, str)))}
"""What a text may tell: counts, then names, then the rest."""


@dataclass(frozen=True, slots=True)
class Plan(PlanFields[int, str, bool]):
    """One way to lay the work over the devices; the data-parallel degree follows from their number."""

    @property
    def distribute_param(self) -> bool:
        """Parameters and gradients are sharded over the data-parallel devices (ZeRO-3)."""
        return self.zero_stage == 3

    def __str__(self) -> str:
        """Return the text that `parse_plan` reads back.

        >>> parse_plan(str(Plan(num_stages=2, num_micro_batches=16))) == Plan(num_stages=2, num_micro_batches=16)
        True
        """
        usual = Plan(zero_stage=3 if self.distribute_param else 0)
        always = [f for f in TOLD if f.always_told]
        unusual = [f for f in TOLD if not f.always_told and getattr(self, f.name) != getattr(usual, f.name)]
        return ",".join(f.told(getattr(self, f.name)) for f in always + unusual)

    def document(self, data_parallel: int) -> dict[str, Any]:
        """Return the plan under the keys of `estimate/1` and `steps/1`."""
        found: dict[str, Any] = {}
        for told in sorted(TOLD, key=lambda f: f.late):
            if told.name == "tp":
                found["data_parallel"] = data_parallel
            found[told.key or told.name] = getattr(self, told.name)
        return found | {"text": str(self)}

    def brief(self, data_parallel: int) -> str:
        """Return the plan in few letters: degrees, micro-batches x sequences, then what is not usual.

        >>> Plan(num_stages=2, num_micro_batches=16, tp=4, recomputation="full", offload_optimizer=True).brief(1)
        'pp2 tp4 dp1 16x1 1f1b full zero3 offload'
        """
        unusual = [f for f in PLAN_FIELDS if f.brief and getattr(self, f.name) != f.usual]
        split = f"({self.first_layers}-{self.last_layers})" if self.first_layers else ""
        partly = f"/{self.recomputed_layers}" if self.recomputed_layers else ""
        words = [
            f"pp{self.num_stages}{split}" if self.num_stages > 1 else "",
            *(f"{f.brief}{getattr(self, f.name)}" for f in unusual if not f.choices),
            f"dp{data_parallel}",
            f"{self.num_micro_batches}x{self.batch_per_device}",
            f"{self.schedule}{self.virtual_stages if self.virtual_stages > 1 else ''}" if self.num_stages > 1 else "",
            f"{self.recomputation}{partly}" if self.recomputation != "none" else "",
            f"zero{self.zero_stage}{'/node' if self.shard_within_node else ''}",
            *(f"{f.brief}{'' if f.choices == FLAG else getattr(self, f.name)}" for f in unusual if f.choices),
        ]
        return " ".join(word for word in words if word)

    def platform_line(self) -> str:
        """Return the plan as the MoAI platform prints it; where that line cannot tell all of it, its own text.

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
        line = (
            f"{pipeline}, {tensor}, recomputation : {recomputation}, distribute_param : {_word(self.distribute_param)}"
        )
        return line if parse_plan(line) == self else str(self)


def parse_plan(text: str) -> Plan:
    """Return the plan that a text such as `num_stages=2,num_micro_batches=16,recomputation=none` describes.

    What it does not tell is as usual.

    Raises:
        ValueError: as `parse_fields`.
    """
    return Plan(**parse_fields(text))


def is_whole(fields: Mapping[str, Any]) -> bool:
    """Whether they are a whole plan, what they leave out as usual: they have all that the text of a plan always has.

    >>> is_whole(parse_fields(str(Plan(cp=2)))), is_whole(parse_fields(Plan().platform_line())), is_whole({"tp": 8})
    (True, True, False)
    """
    return all(own.name in fields for own in PLAN_FIELDS if own.always_told) and "zero_stage" in fields


_AS_PRINTED = {"No PP": ("num_stages", "1"), "No TP": ("tp", "1")}
"""Items of the platform's line that are no key and value."""


def _told_of(item: str) -> tuple[str, str, str]:
    """Return the key of an item, what stands behind it, and its value, as a plan's text or the platform's has them."""
    if item.strip() in _AS_PRINTED:
        key, value = _AS_PRINTED[item.strip()]
        return key, "=", value
    key, equals, value = (part.strip() for part in item.partition("=" if "=" in item else ":"))
    return ("tp" if key == "TP" else key), equals, value


def parse_fields(text: str) -> dict[str, Any]:
    """Return the fields of a plan that a text tells, by name: those that it does not tell are left out.

    The platform's line, `num_stages : 2, No TP`, is such a text too.

    Raises:
        ValueError: a key is unknown or given twice, or a value is not of its kind.

    >>> parse_fields("zero_stage=3,tp=8") == parse_fields("distribute_param : true, TP : 8")
    True
    """
    values: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = _told_of(item)
        if not equals or key in values:
            rule = "is given twice" if key in values else "is not key=value"
            raise ValueError(f"plan: {shown(item)} {rule}; write for example num_stages=2,num_micro_batches=16")
        if key not in _KEYS:
            raise ValueError(f"plan: unknown key {shown(key)}; use one of {', '.join(_KEYS)}")
        values[key] = _KEYS[key].parsed(value)
    distribute = values.pop("distribute_param", None)
    if distribute is not None:
        zero_stage = values.setdefault("zero_stage", 3 if distribute else 0)
        if distribute != (zero_stage == 3):
            raise ValueError(
                f"plan: distribute_param={_word(distribute)} contradicts zero_stage={zero_stage}; "
                "distribute_param=true is zero_stage=3"
            )
    return values


@cache
def _document_model() -> type[BaseModel]:
    """Return what a plan's document is checked by; of what it must tell in one of two ways, neither has a default."""
    told: dict[str, Any] = {}
    for f in TOLD:
        alias = AliasChoices(f.key, f.name) if f.key else None
        either = f.name in ("distribute_param", "zero_stage")
        default = ... if f.must_be_told else None if either else f.usual
        told[f.name] = (f.annotation() | None if either else f.annotation(), Field(default, validation_alias=alias))
    return create_model("PlanDocument", __config__=ConfigDict(extra="ignore"), **told)


def plan_from_document(document: object) -> Plan:
    """Return the plan that a document has under the keys of `Plan.document`, or of `Plan`; others are not read.

    Raises:
        ValueError: it contradicts itself; or it lacks a key, or a value is not of its kind: pydantic's, which tells the
            key.
    """
    values = dict(_document_model().model_validate(document))
    distribute, zero_stage = values.pop("distribute_param"), values["zero_stage"]
    if distribute is None and zero_stage is None:
        raise ValueError("zero_stage is missing, and distribute_param too; add one of them")
    if zero_stage is None:
        values["zero_stage"] = 3 if distribute else 0
    elif distribute not in (None, zero_stage == 3):
        raise ValueError(f"distribute_param = {distribute} contradicts zero_stage = {zero_stage}; true is stage 3")
    return Plan(**values)


@dataclass(frozen=True, slots=True, eq=False)
class Plans(PlanFields[Ints, Ints, Flags]):
    """Many plans, an array per field; the arrays broadcast against each other, so that a grid is a row and a column.

    Names are held as their places among the choices. What is left out is as usual.
    """

    def __post_init__(self) -> None:
        """Hold what was left out as arrays too."""
        for own in PLAN_FIELDS:
            if not isinstance(usual := getattr(self, own.name), np.ndarray):
                object.__setattr__(self, own.name, own.array([usual]))

    @classmethod
    def of(cls, plans: Iterable[Plan]) -> Self:
        """Return the arrays of a sequence of plans, shape (plans,)."""
        rows = list(plans)
        return cls(**{own.name: own.array([getattr(plan, own.name) for plan in rows]) for own in PLAN_FIELDS})

    @property
    def arrays(self) -> dict[str, Any]:
        """The array of each field."""
        return {own.name: getattr(self, own.name) for own in PLAN_FIELDS}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that all fields have together."""
        return np.broadcast_shapes(*(array.shape for array in self.arrays.values()))

    def __len__(self) -> int:
        """Return the number of plans."""
        return int(np.prod(self.shape))

    def __getitem__(self, index: int) -> Plan:
        """Return one plan, counted along the last axis first."""
        return next(self.each(np.array([index])))

    def each(self, indices: Ints) -> Iterator[Plan]:
        """Yield the plans of indices, counted along the last axis first."""
        at = np.unravel_index(indices, self.shape)
        columns = []
        for own in PLAN_FIELDS:
            array = getattr(self, own.name)  # where it has one row only, that row is all plans'
            place = (i if size > 1 else 0 * i for i, size in zip(at[-array.ndim :], array.shape, strict=True))
            columns.append([own.value(number) for number in array[tuple(place)].tolist()])
        return (Plan(*values) for values in zip(*columns, strict=True))

    def data_parallel(self, num_devices: int) -> Ints:
        """Data-parallel degree, dp = devices / (stages tp cp); 0 where that does not divide."""
        degree = np.full((1,) * len(self.shape), num_devices, dtype=np.int64)
        for ways in (self.num_stages, self.tp, self.cp):  # one by one: their product may not fit 64 bits
            degree = np.where(degree % ways == 0, degree // ways, 0)
        return degree
