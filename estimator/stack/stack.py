"""A software stack: its habits and efficiencies, with their uncertainty.

A stack is two files: its premises, habits and priors with their evidence, which a person writes (TOML), and
its findings, what a fit to runs found, which `calibrate --write` writes (JSON, `file.write_fit`).
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from pydantic_core import from_json

from estimator.arrays import Array
from estimator.stack.efficiencies import FURTHER_PARAMETERS, PARAMETERS, Efficiencies, are_parameters
from estimator.stack.fit import MOST_LOG_SD, ROUNDING, Fit, Places, RunCount, StackRecord, covariance_root
from estimator.stack.habits import Evidence, Habits
from estimator.stack.measured import MeasuredKind
from hardware.errors import first_error, shown
from hardware.files import read_regular_file

Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=1e6)]

MOST_FILE_BYTES = 2**24
"""Of a stack's file; the largest of the package has some 50 KiB."""


class LogHabits(StackRecord):
    """What the stack's log times, and the seconds that no fit finds."""

    times: Literal["launch", "step"]
    """The clock covers only the launch of the work, or the whole step."""
    load_s: Seconds
    """Imports, and the checkpoint into host memory, before the accelerator is asked for."""
    evidence: dict[Literal["times", "load_s"], Evidence] = Field(min_length=2)


class Window(StackRecord):
    """What the stack's log times, and the two paces of its host."""

    times: Literal["launch", "step"]
    """The clock covers only the launch of the work, or the whole step."""
    slow_fraction: Fraction
    """Part of the steps in which the host launches at its slow pace."""
    slow_ratio: float = Field(ge=1, lt=100)
    """Launch time at the slow pace over that at the fast pace."""
    evidence: str


class Startup(StackRecord):
    """One-off seconds of a run."""

    load_s: Seconds
    """Imports, and the checkpoint into host memory, before the accelerator is asked for."""
    request_s: Seconds
    """From asking for the accelerator until it is ready."""
    search_s_per_candidate: Seconds
    """Compiling and costing one candidate plan."""
    first_step_excess_s: Seconds
    """Of the first step, once its plan is chosen, beyond another: lazy compilation, weights to the devices."""
    evidence: str


class Prior(StackRecord):
    """A log-normal belief about a parameter before any run was measured."""

    median: float = Field(ge=1e-20, le=1e20)
    log_sd: float = Field(ge=1e-6, le=MOST_LOG_SD)
    unit: str
    evidence: str


ANY_TRAINER = "any"


class MeasuredTable(StackRecord):
    """A table of runs, or a log, that the stack was fitted to."""

    name: str
    sha256: str
    rows: RunCount
    """Rows of it that the fit took."""
    digests: str = Field(pattern=r"^([0-9a-f]{10}( |$))*$")
    """`Run.digest` of each: a run predicted by this stack is in sample where its own is among them."""


class Premises(StackRecord, populate_by_name=True):
    """What a person writes of a stack: habits and priors, with their evidence."""

    schema_: Literal["stack/1"] = Field(alias="schema")
    name: str
    about: str
    trainer: str = ""
    """What tables of runs call the software; `ANY_TRAINER`: all without a stack; "": none has runs of it."""
    unlike: tuple[str, ...] = ()
    """Of `ANY_TRAINER`, those that work too differently to be fitted along."""
    not_modelled: tuple[str, ...]
    habits: Habits
    log: LogHabits
    priors: dict[str, Prior]

    def is_of(self, trainer: str) -> bool:
        """Whether the stack is fitted to runs of a trainer."""
        return trainer not in self.unlike and self.trainer in (trainer, ANY_TRAINER)

    @model_validator(mode="after")
    def _has_every_prior(self) -> Self:
        if not are_parameters(tuple(self.priors)):
            raise ValueError(
                f"priors are {', '.join(self.priors)}; they must be {', '.join(PARAMETERS)}, then any of "
                f"{', '.join(FURTHER_PARAMETERS)} in this order"
            )
        return self


class Findings(StackRecord):
    """What a fit found of a stack, and the runs that it rests on."""

    startup: Startup
    window: Window
    fit: Fit
    measured: tuple[MeasuredKind, ...] = ()
    """What ran on which devices, of the runs that the fit took; those of most runs first."""
    places: Places | None = None
    """Of the runs that were timed, where nothing was learned of what the model leaves unexplained of their seconds."""
    tables: tuple[MeasuredTable, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the packages that the fit was made with."""


class FitFile(Findings):
    """The file of a fit."""

    schema_: Literal["fit/1"] = Field(alias="schema")


class Stack(Premises, Findings):
    """A software stack on accelerators: premises, and what a fit found with them."""

    @model_validator(mode="after")
    def _is_fitted_as_premised(self) -> Self:
        fitted = self.fit.names[: len(self.fit.names) - len(self.fit.families) - len(self.fit.factors)]
        if fitted != tuple(self.priors):
            raise ValueError(
                f"the fit found {', '.join(fitted)}, and the premises have priors of {', '.join(self.priors)}; fit it "
                f"again: calibrate RUNS --stack {self.name} --write"
            )
        return self

    def __repr__(self) -> str:
        """Return the name, what it was fitted to, and the spreads of seconds and bytes around it.

        >>> load_stack("moai-24.2").model_copy(update={"tables": ()})
        stack moai-24.2: fitted to no runs
        """
        count = sum(table.rows for table in self.tables)
        if not count:
            return f"stack {self.name}: fitted to no runs"
        where, fit = ", ".join(self.fit.accelerators), self.fit
        spreads = f"seconds spread by {fit.step_log_sd:.1%}, memory by {fit.memory_log_sd:.1%}"
        return f"stack {self.name}: fitted to {count} runs on {where}; {spreads}"

    def __str__(self) -> str:
        """Return the same, where a record would print all that it holds."""
        return repr(self)

    @property
    def usable_memory_fraction(self) -> float:
        """Part of a device's memory that a plan may fill: as found, else as premised."""
        return self.fit.usable_memory_fraction or self.habits.usable_memory_fraction

    def efficiencies(self, family: str, accelerator: str = "", source: str = "") -> Efficiencies:
        """Return the fitted parameters for a model family on an accelerator, as a source of runs has them.

        The factor of a family that was never measured is 1; of an accelerator or a source, the mean of those that were.
        """
        values = dict(zip(self.fit.names, self.fit.log_values, strict=True))
        factor = values.get(family, 0.0)
        factor += self._log_factor(accelerator, self.fit.accelerators) + self._log_factor(source, self.fit.sources)
        found = {name: float(np.exp(values[name])) for name in self.priors}
        return Efficiencies(**found, family_factor=float(np.exp(factor)))

    def _log_factor(self, label: str, measured: tuple[str, ...]) -> float:
        """Return the logarithm of a label's factor, or the mean of those measured, by their precision."""
        factors = self.fit.factors
        if label in factors:
            return factors[label].log_factor
        members = [factors[name] for name in measured if name in factors]
        weights = [1 / max(member.log_sd, ROUNDING) ** 2 for member in members]
        total = sum(weight * member.log_factor for weight, member in zip(weights, members, strict=True))
        return total / sum(weights) if members else 0.0

    @property
    def measured_places(self) -> tuple[tuple[float, ...], ...]:
        """`residual.features` of the timed runs that the stack was fitted to."""
        learned = self.fit.step_residual
        return learned.places if learned else self.places or ()

    def directions(self, family: str, *labels: str) -> Array:
        """Return independent 1-sigma moves of the log parameters, one per row: parameters, then the joint factor.

        The rows of a matrix square root of the covariance: a quantity's log variance is the sum over rows of its
        squared change. An unseen family's factor moves by the spread between families.
        """
        num_parameters = len(self.priors)
        root = covariance_root(np.array(self.fit.covariance))
        moves = np.zeros((len(root) + 1, num_parameters + 1))
        moves[:-1, :num_parameters] = root[:, :num_parameters]
        for label in (family, *labels):
            if label in self.fit.names:
                moves[:-1, -1] += root[:, self.fit.names.index(label)]
        if family not in self.fit.families:
            moves[-1, -1] = self.fit.family_log_sd
        return moves


def _folder(kind: Literal["stacks", "fits"]) -> Path:
    return Path(str(resources.files("estimator").joinpath(f"data/{kind}")))


def builtin_stacks() -> tuple[str, ...]:
    """Return the names of the stacks that come with the package."""
    return tuple(sorted(path.name.removesuffix(".toml") for path in _folder("stacks").glob("*.toml")))


def stack_path(name: str) -> Path:
    """Return the file of a stack's premises: of a built-in stack, or else the name as a path."""
    return _folder("stacks") / f"{name}.toml" if name in builtin_stacks() else Path(name)


def fit_path(name: str) -> Path:
    """Return the file of a stack's fit: of a built-in stack, or else the one beside its premises.

    >>> fit_path("folder/mine.toml").as_posix()
    'folder/mine.fit.json'
    """
    if name in builtin_stacks():
        return _folder("fits") / f"{name}.json"
    path = Path(name)
    return path.with_name(f"{path.name.removesuffix('.toml')}.fit.json")


def load_premises(name: str) -> Premises:
    """Return the premises of a built-in stack by name, or those that a TOML file holds.

    Raises:
        ValueError: there is no such stack, or the file breaks a rule: which one, and where.
    """
    try:
        text = read_regular_file(stack_path(name), MOST_FILE_BYTES).decode()
    except UnicodeError as error:
        raise ValueError(f"stack {shown(name, 200)}: is not text in UTF-8; save it so") from error
    except ValueError as error:
        raise ValueError(f"stack {error}") from error
    except OSError as error:
        known = ", ".join(builtin_stacks())
        raise ValueError(f"unknown stack {shown(name)}: use one of {known}, or a readable TOML file") from error
    return parse_premises(text, name)


def parse_premises(text: str, name: str) -> Premises:
    """Return the premises that a TOML document describes; `name` stands in errors."""
    where = f"stack {shown(name, 200)}"
    try:
        return Premises.model_validate(tomllib.loads(text))
    except RecursionError as error:
        raise ValueError(f"{where}: not valid TOML: nested too deep; correct it there") from error
    except ValidationError as error:
        raise ValueError(f"{where}: {first_error(error)}") from error
    except ValueError as error:
        raise ValueError(f"{where}: not valid TOML: {shown(str(error), 200)}; correct it there") from error


def load_stack(name: str) -> Stack:
    """Return a built-in stack by name, or the one whose premises a TOML file holds, with what was fitted.

    Raises:
        ValueError: there is no such stack, it was never fitted, or a file breaks a rule: which one, and where.
    """
    premises, path = load_premises(name), fit_path(name)
    try:
        content = read_regular_file(path, MOST_FILE_BYTES)
    except FileNotFoundError as error:
        raise ValueError(
            f"stack {shown(name, 200)}: was never fitted, there is no {shown(path.name, 200)} beside it; fit it: "
            "calibrate RUNS --stack STACK --write"
        ) from error
    except OSError as error:
        raise ValueError(f"fit {shown(str(path), 200)}: cannot be read; check the path") from error
    except ValueError as error:
        raise ValueError(f"fit {error}") from error
    return parse_fit(content, premises, str(path))


def parse_fit(text: bytes, premises: Premises, name: str) -> Stack:
    """Return the stack of these premises whose fit a JSON document describes; `name` stands in errors."""
    where = f"fit {shown(name, 200)}"
    try:
        found = FitFile.model_validate(from_json(text))
        fields = {field: getattr(found, field) for field in Findings.model_fields}
        return Stack.model_validate(dict(premises) | fields)
    except ValidationError as error:
        raise ValueError(f"{where}: {first_error(error)}") from error
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON: {shown(str(error), 200)}; fit it again") from error
