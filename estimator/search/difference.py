"""Two answers held against each other, term by term: what of the question differs, memory by purpose, step by phase."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hardware.errors import first_error

if TYPE_CHECKING:
    import pandas as pd

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    """What is read of an answer; other keys are not."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Value(_Part):
    value: Finite


class _Memory(_Part):
    per_device_mib: _Value
    total_mib: _Value
    breakdown_mib: dict[str, Finite]


class _Step(_Part):
    seconds: _Value
    breakdown_s: dict[str, Finite]


class _Throughput(_Part):
    tokens_per_s: _Value


class _Wall(_Part):
    total_minutes: _Value


class _Cost(_Part):
    usd: _Value | None
    energy_kwh: Finite


class _PlanAnswer(_Part):
    plan: dict[str, Any]
    reason: str
    memory: _Memory
    step: _Step
    throughput: _Throughput
    wall: _Wall
    cost: _Cost


class Answer(_Part):
    """An answer of `estimate --json`: of its plans, the first."""

    schema_: Literal["estimate/1"] = Field(alias="schema")
    workload: dict[str, Any]
    flavor: dict[str, Any]
    stack: str
    plans: list[_PlanAnswer] = Field(min_length=1)

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked, by the name of its place in the document."""
        question = {f"workload.{name}": value for name, value in self.workload.items()}
        return question | {f"flavor.{name}": value for name, value in self.flavor.items()} | {"stack": self.stack}

    @property
    def headline(self) -> dict[str, float]:
        """The numbers that the terms add up to, and what follows from them; units in the names."""
        plan = self.plans[0]
        found = {
            "device_mib": plan.memory.per_device_mib.value,
            "total_mib": plan.memory.total_mib.value,
            "step_s": plan.step.seconds.value,
            "tokens_per_s": plan.throughput.tokens_per_s.value,
            "total_minutes": plan.wall.total_minutes.value,
            "energy_kwh": plan.cost.energy_kwh,
        }
        return found | ({"usd": plan.cost.usd.value} if plan.cost.usd else {})


def read_answer(document: object, where: str) -> Answer:
    """Return an answer from its document.

    Raises:
        ValueError: it is no object of `estimate/1`, or has no plan.
    """
    try:
        return Answer.model_validate(document)
    except ValidationError as error:
        raise ValueError(f"{where}: is no answer of estimate --json: {first_error(error)}") from error


class Pair(NamedTuple):
    """A number of both answers."""

    first: float
    second: float

    @property
    def change(self) -> float:
        """The second less the first."""
        return self.second - self.first


class Difference(NamedTuple):
    """What differs between two answers; of terms, all are there, and add up to the headline."""

    question: dict[str, tuple[Any, Any]]
    """Of the workload, the flavor and the stack, what is not the same."""
    plan: dict[str, tuple[Any, Any]]
    """The same of the plans."""
    headline: dict[str, Pair]
    memory_mib: dict[str, Pair]
    """Of the fullest device, by purpose; those of the largest change first."""
    step_s: dict[str, Pair]
    """By phase; those of the largest change first."""
    reasons: tuple[str, str] = ("", "")
    """Why each plan cannot run; "" where it can."""

    def __repr__(self) -> str:
        """Return the headline and what differs of question and plan, a line each."""
        told = (f"{name}: {a} -> {b}" for name, (a, b) in {**self.question, **self.plan}.items())
        numbers = (f"{name}: {pair.first:,.6g} -> {pair.second:,.6g}" for name, pair in self.headline.items())
        return "\n".join([*told, *numbers])

    def document(self) -> dict[str, Any]:
        """Return the object that `estimate --diff A B --json` prints, schema `difference/1`."""

        def pairs(of: Mapping[str, Pair]) -> dict[str, dict[str, float]]:
            return {name: {**pair._asdict(), "change": pair.change} for name, pair in of.items()}

        return {
            "schema": "difference/1",
            "question": {name: list(values) for name, values in self.question.items()},
            "plan": {name: list(values) for name, values in self.plan.items()},
            "headline": pairs(self.headline),
            "memory_mib": pairs(self.memory_mib),
            "step_s": pairs(self.step_s),
            "reasons": list(self.reasons),
        }

    def to_frame(self) -> "pd.DataFrame":
        """Return the terms as a pandas frame: a row a term, of `memory_mib` and `step_s`."""
        import pandas as pd  # noqa: PLC0415 - slow to import, and only a frame needs it

        rows = [
            (of, name, pair.first, pair.second, pair.change)
            for of, terms in (("memory_mib", self.memory_mib), ("step_s", self.step_s))
            for name, pair in terms.items()
        ]
        return pd.DataFrame(rows, columns=["of", "term", "first", "second", "change"])


def difference(first: Answer, second: Answer) -> Difference:
    """Return what differs between two answers, each of whose first plan is looked at."""
    a, b = first.plans[0], second.plans[0]
    return Difference(
        question=_unlike(first.asked, second.asked),
        plan=_unlike(a.plan, b.plan),
        headline=_pairs(first.headline, second.headline),
        memory_mib=_largest_first(_pairs(a.memory.breakdown_mib, b.memory.breakdown_mib)),
        step_s=_largest_first(_pairs(a.step.breakdown_s, b.step.breakdown_s)),
        reasons=(a.reason, b.reason),
    )


def _unlike(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*first, *second])
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _pairs(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, Pair]:
    return {name: Pair(first.get(name, 0.0), second.get(name, 0.0)) for name in dict.fromkeys([*first, *second])}


def _largest_first(pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    return dict(sorted(pairs.items(), key=lambda item: -abs(item[1].change)))
