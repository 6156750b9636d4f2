"""What a fit found: parameters and factors with their uncertainty, what the model leaves unexplained, and intervals."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Base64Bytes, BaseModel, BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from estimator.arrays import Array, Num
from estimator.stack.efficiencies import are_parameters
from hardware.errors import first_error

NORMAL_90 = 1.6448536269514722
"""Standard deviations either side of the mean that hold 90 % of a normal distribution."""

STUDENT_95 = {1: 6.313752, 2: 2.919986}
"""95 % quantiles of Student's t where the degrees of freedom are too few for an expansion."""

# Wide enough for any stack, and narrow enough that no exponential of a sum of them overflows.
MOST_LOG_SD = 10.0
MOST_COUNT = 10**6

NUM_FEATURES = 16
"""By which `residual` places runs."""

Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
LogValue = Annotated[float, Field(ge=-50, le=50)]
LogSd = Annotated[float, Field(ge=0, le=MOST_LOG_SD)]
Covariance = Annotated[float, Field(ge=-(MOST_LOG_SD**2), le=MOST_LOG_SD**2)]
RunCount = Annotated[int, Field(ge=1, le=MOST_COUNT)]

ROUNDING = 1e-5
"""More than the six digits of a fit's file round off."""


class StackRecord(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Base of the tables of a stack's files: immutable, and a misspelt key is an error."""


class Family(StackRecord):
    """A model family measured on the stack: its factor on device seconds."""

    log_factor: LogValue
    log_sd: LogSd
    runs: RunCount


class CodedPlaces(StackRecord):
    """Places as a fit's file holds them: few values of each feature, and for each place which of them it has."""

    values: tuple[tuple[Number, ...], ...] = Field(min_length=NUM_FEATURES, max_length=NUM_FEATURES)
    """Of each feature, increasing."""
    code_bytes: Literal[1, 2, 4]
    codes: Base64Bytes
    """Which of its feature's values each number is: little-endian, place by place."""

    def places(self) -> list[list[float]]:
        """Return the places, one a row."""
        if len(self.codes) % (NUM_FEATURES * self.code_bytes):
            raise ValueError(f"codes: {len(self.codes)} bytes are not {NUM_FEATURES} numbers a place; fit anew")
        codes = np.frombuffer(self.codes, f"<u{self.code_bytes}").reshape(-1, NUM_FEATURES)
        if (codes >= [len(values) for values in self.values]).any():
            raise ValueError("codes: one is of no value of its feature; fit anew")
        columns = (np.array(values)[column] for values, column in zip(self.values, codes.T, strict=True))
        found: list[list[float]] = np.stack(list(columns), axis=1).tolist()
        return found


def _decoded(places: object) -> object:
    if not isinstance(places, Mapping):
        return places
    try:
        return CodedPlaces.model_validate(places).places()
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def _coded(places: tuple[tuple[float, ...], ...]) -> dict[str, Any]:
    """Return the fields of `CodedPlaces`."""
    values, codes = zip(*(np.unique(column, return_inverse=True) for column in np.array(places).T), strict=True)
    code = np.min_scalar_type(max(map(len, values)) - 1).newbyteorder("<")
    text = b64encode(np.stack(codes, axis=1).astype(code).tobytes()).decode()
    return {"values": [one.tolist() for one in values], "code_bytes": code.itemsize, "codes": text}


Places = Annotated[
    tuple[tuple[Number, ...], ...],
    Field(min_length=1),
    BeforeValidator(_decoded),
    PlainSerializer(_coded, when_used="json"),
]
"""`residual.features` of runs."""


class ResidualModel(StackRecord):
    """What the model leaves unexplained (`residual`): where it was learned, and the weight of each place."""

    places: Places
    weights: tuple[Number, ...]
    noise: tuple[Annotated[float, Field(ge=1e-4, le=100)], ...]
    """Of each place, what no feature explains, in logarithms; large of an outlier."""
    lengths: tuple[Annotated[float, Field(ge=0.01, le=1000)], ...]
    """Distance along each feature over which errors stay alike."""
    scale: Annotated[float, Field(gt=0, le=1)]
    noise_of_one: Annotated[float, Field(gt=0, le=1)]
    """What no feature explains, on one device."""
    growth: Annotated[float, Field(ge=0, le=0.5)]
    """Of that, in logarithms per doubling of devices."""
    widened_by: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Errors of predictions that never saw the run, over the spreads stated, where 90 % of them are smaller."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        sizes = {len(place) for place in self.places} | {len(self.lengths)}
        if sizes != {NUM_FEATURES} or {len(self.weights), len(self.noise)} != {len(self.places)}:
            raise ValueError(
                f"places and lengths must have {NUM_FEATURES} numbers, and weights and noise one for each place; write "
                "them as the fit found them"
            )
        return self


Novelty = Literal["nodes", "size", "source"]
"""What a prediction may have that no measured run had: more nodes, another size of model, an unknown source."""


class Reach(StackRecord):
    """How far the runs of a fit reach, and how much less is known of what lies beyond them.

    The further spreads are found from runs of the fit that are of more nodes, other sizes or other sources than those
    they are predicted from: see `calibrate.reach`. Per doubling of nodes, or of the hidden size from the nearest one
    measured, the variance grows by as much, as a random walk's does.
    """

    most_nodes: RunCount
    hidden_sizes: tuple[RunCount, ...] = Field(min_length=1)
    step_log_sd: dict[Novelty, LogSd]
    memory_log_sd: dict[Novelty, LogSd]

    def beyond(self, num_nodes: int, hidden_size: int, *, knows_source: bool) -> dict[Novelty, float]:
        """Return how far a run lies beyond those measured: doublings of nodes and of size; 1 of an unknown source.

        >>> reach = Reach(most_nodes=8, hidden_sizes=(2048, 4096), step_log_sd={}, memory_log_sd={})
        >>> reach.beyond(32, 8192, knows_source=True)
        {'nodes': 2.0, 'size': 1.0, 'source': 0.0}
        """
        return {
            "nodes": max(float(np.log2(num_nodes / self.most_nodes)), 0.0),
            "size": float(np.abs(np.log2(hidden_size / np.array(self.hidden_sizes))).min()),
            "source": 0.0 if knows_source else 1.0,
        }


class Fit(StackRecord):
    """What the fit found: parameters and factors, in logarithms, with their joint covariance."""

    accelerators: tuple[str, ...]
    """The devices that runs were measured on; none of a stack that was fitted to nothing."""
    names: tuple[str, ...]
    """The stack's parameters, then the families and then the factors in their orders."""
    log_values: tuple[LogValue, ...]
    covariance: tuple[tuple[Covariance, ...], ...]
    families: dict[str, Family] = {}
    family_log_sd: LogSd
    """Spread of the factors between families."""
    factors: dict[str, Family] = {}
    """Factors on device seconds of accelerators, by their ids, and of sources of runs, by their names."""
    reach: Reach | None = None
    """None of a stack that was fitted to nothing."""
    step_log_sd: LogSd
    """Spread of a run's seconds per step around the model, in one number; intervals follow the residual, if any."""
    launch_log_sd: LogSd
    """Spread of a run's launch seconds around the model; of a stack whose logs do not tell them, as assumed."""
    memory_log_sd: LogSd
    """Spread of a run's memory around the model; likewise."""
    device_log_sd: LogSd
    """Further spread of device seconds on a device the stack was never measured on."""
    degrees_of_freedom: RunCount
    """Of the Student's t of the intervals: as heavy as the tails of errors."""

    usable_memory_fraction: float | None = Field(default=None, gt=0, le=1)
    """Part of a device's memory from which on runs ran out of it; None where too few did: then the habit stands."""
    step_residual: ResidualModel | None = None
    """Of seconds per step; None where too few runs were fitted to learn one."""
    memory_residual: ResidualModel | None = None
    """Of reserved bytes."""
    sources: tuple[str, ...] = ()
    """Whose measurements the fit took, where that is told apart."""

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        factors = (*self.families, *self.factors)
        parameters = self.names[: len(self.names) - len(factors)]
        expected = parameters + factors
        if self.names != expected or not are_parameters(parameters):
            what = "the parameters in their order, then the families in theirs, then the factors"
            raise ValueError(f"names are {', '.join(self.names)}; they must be {what}")
        n = len(expected)
        square = len(self.covariance) == n and all(len(row) == n for row in self.covariance)
        if len(self.log_values) != n or not square:
            raise ValueError(f"log_values and covariance must have {n} rows, as names has")
        covariance = np.array(self.covariance)
        least = -ROUNDING * np.trace(covariance)
        if (covariance - covariance.T).min() < least or np.linalg.eigvalsh(covariance)[0] < least:
            raise ValueError("covariance is not symmetric and positive semidefinite; write it as the fit found it")
        return self


def covariance_root(covariance: Array) -> Array:
    """Return independent 1-sigma moves, one per row: a matrix square root, even of a semidefinite covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))).T)


def interval_ratio(log_sd: Num, degrees_of_freedom: int) -> Array:
    """Ratio of the upper end of a quantity's 90 % interval to its median, its logarithm Student's t.

    From 3 degrees of freedom on, the quantile is the expansion of Cornish and Fisher in 1 / dof to the third order
    (Abramowitz and Stegun 1964, 26.7.5), within 0.5 %; of 1 and 2 degrees it is tabulated.

    >>> round(float(interval_ratio(np.log(2), degrees_of_freedom=10**6)), 3)
    3.127
    """
    if degrees_of_freedom in STUDENT_95:
        return np.exp(STUDENT_95[degrees_of_freedom] * np.asarray(log_sd))
    x, n = NORMAL_90, float(degrees_of_freedom)
    quantile = x + (x**3 + x) / (4 * n) + (5 * x**5 + 16 * x**3 + 3 * x) / (96 * n**2)
    quantile += (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / (384 * n**3)
    return np.exp(quantile * np.asarray(log_sd))
