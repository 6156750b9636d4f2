"""What is asked, as the options of a call say it: read, checked, and their files loaded."""

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from estimator.formulas.failures import DEVICE_MTBF_S
from estimator.search.choice import parse_duration
from estimator.search.planner import offers
from estimator.stack.recipe import Recipe
from estimator.stack.stack import Stack, load_stack
from estimator.work.defaults import SEED_BATCH, SEED_EPOCHS, SEED_ROWS, SEED_SEQ_LEN, SEED_STACK
from estimator.work.lengths import packed_rows, read_lengths, useful_fraction
from estimator.work.plan import Plan, parse_plan
from estimator.work.shape import Shape, load_shape
from estimator.work.workload import Padding, Workload, num_steps
from hardware.catalog import Catalog, load_catalog
from hardware.errors import shown
from hardware.models import Flavor, MatmulPrecision
from hardware.smi.selection import current_flavor

PathLike = str | Path
Model = str | Path | Shape
"""A built-in name, a directory, a config.json, or the shape itself."""
OneFlavor = str | Flavor | None
"""A name, or the flavor itself; None for the current one."""
Flavors = OneFlavor | list[str] | list[Flavor] | tuple[str | Flavor, ...]
"""One, several, or "all"."""
Hardware = Catalog | PathLike | Sequence[PathLike]
"""TOML files of further hardware, or a catalog to use instead of the packaged one."""


class SubjectOptions(TypedDict, total=False):
    """Options of what is trained, how, with which software and on which hardware; as `subject` takes them."""

    seq_len: int
    batch: int
    rows: int | None
    epochs: int | None
    steps: int | None
    lengths: PathLike | None
    stack: PathLike | Stack
    accelerator: str | None
    devices: int | None
    catalog: Hardware
    precision: str | None
    optimizer: str | None
    lora: int
    quantize: str | int | None
    compiles: bool | None
    failures: bool
    device_mtbf: str | None


class Options(SubjectOptions, total=False):
    """Options of `estimate`."""

    plan: str | Plan
    space: str
    objective: str
    deadline: str | None
    budget: float | None
    why: str | Plan | None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is trained, how, with which software, and on which flavors."""

    workload: Workload
    stack: Stack
    """As the recipe has it."""
    catalog: Catalog
    flavors: tuple[Flavor, ...]
    device_mtbf_s: float | None
    """None where failures are not asked for."""


def subject(
    model: Model,
    flavor: Flavors,
    *,
    seq_len: int = SEED_SEQ_LEN,
    batch: int = SEED_BATCH,
    rows: int | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    lengths: PathLike | None = None,
    stack: PathLike | Stack = SEED_STACK,
    accelerator: str | None = None,
    devices: int | None = None,
    catalog: Hardware = (),
    precision: str | None = None,
    optimizer: str | None = None,
    lora: int = 0,
    quantize: str | int | None = None,
    compiles: bool | None = None,
    failures: bool = False,
    device_mtbf: str | None = None,
) -> Subject:
    """Return what the options describe; `estimate` says what each is.

    Raises:
        ValueError: one is unknown or out of range, two contradict each other, or a file cannot be read.
    """
    hardware = load_hardware(catalog)
    recipe = Recipe(
        precision, optimizer, _whole("lora", lora), None if quantize is None else str(quantize), compiles=compiles
    )
    shape = recipe.shape(model if isinstance(model, Shape) else load_shape(str(model)))
    seq_len, batch = _whole("seq-len", seq_len), _whole("batch", batch)
    asked = {"rows": rows, "epochs": epochs, "steps": steps}
    given = {name: _whole(name, value) for name, value in asked.items() if value is not None}
    count, padding = _steps(seq_len, batch, given, lengths)
    workload = Workload(shape, seq_len, batch, count, str(recipe), padding)
    software = recipe.stack(stack if isinstance(stack, Stack) else load_stack(str(stack)), shape)
    return Subject(
        workload,
        software,
        hardware,
        _flavors(hardware, flavor, accelerator, devices, software.habits.matmul_precision),
        _device_mtbf_s(device_mtbf, failures=failures),
    )


def load_hardware(catalog: Hardware) -> Catalog:
    """Return the packaged catalog with further files, or the one that is given."""
    if isinstance(catalog, Catalog):
        return catalog
    return load_catalog([Path(path) for path in ([catalog] if isinstance(catalog, str | Path) else catalog)])


def as_plan(plan: str | Plan) -> Plan:
    """Return a plan as it is, or the one that a text describes."""
    return plan if isinstance(plan, Plan) else parse_plan(plan)


def names_every(flavor: Flavors) -> bool:
    """Whether every flavor is asked for.

    >>> names_every("All"), names_every(["all"])
    (True, False)
    """
    return isinstance(flavor, str) and flavor.casefold() == "all"


def _whole(name: str, value: Any) -> int:
    """Return a whole number of any kind as Python's."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name}: {shown(value)} is not a whole number; give one") from error


def _steps(seq_len: int, batch: int, given: dict[str, int], lengths: PathLike | None) -> tuple[int, Padding | None]:
    """Return the number of steps, and what is padding of them where the lengths of the rows are known."""
    if "steps" in given and len(given) > 1:
        raise ValueError(f"steps: --steps {given['steps']} is given beside --rows or --epochs; give one or the other")
    if lengths is not None and ("steps" in given or "rows" in given):
        raise ValueError("lengths: --lengths is given beside --rows or --steps; its file has the number of rows")
    found = read_lengths(Path(lengths)) if lengths is not None else None
    rows = found.num_rows if found else given.get("rows", SEED_ROWS)
    epochs = given.get("epochs", SEED_EPOCHS)
    count = given["steps"] if "steps" in given else num_steps(rows, epochs, batch)
    if found is None:
        return count, None
    packed = packed_rows(found, seq_len)
    return count, Padding(useful_fraction(found, seq_len), packed, max(packed // batch * epochs, 1))


def _device_mtbf_s(text: str | None, *, failures: bool) -> float | None:
    if text is not None and not failures:
        raise ValueError(f"device-mtbf: {shown(text)} is given without --failures; add it")
    if text is not None:
        return parse_duration("device-mtbf", text)
    return DEVICE_MTBF_S if failures else None


def _flavors(
    hardware: Catalog, flavor: Flavors, accelerator: str | None, devices: int | None, precision: MatmulPrecision
) -> tuple[Flavor, ...]:
    """Return the flavors that are asked for: those named, the devices of an accelerator, or the current one."""
    if accelerator is not None or devices is not None:
        if flavor is not None:
            raise ValueError(
                f"flavor: {shown(flavor)} is given beside --accelerator or --devices; give one or the other"
            )
        if accelerator is None or devices is None:
            raise ValueError("accelerator: --accelerator ID and --devices N go together; give both")
        return (hardware.flavor_of(accelerator, devices),)
    if names_every(flavor):
        return offers(hardware, precision)
    if isinstance(flavor, list | tuple):
        if not flavor:
            raise ValueError("flavor: none is given; name at least one, or 'all'")
        return tuple(_flavor(hardware, one) for one in flavor)
    return (_flavor(hardware, flavor),)


def _flavor(hardware: Catalog, flavor: OneFlavor) -> Flavor:
    if isinstance(flavor, Flavor):
        return flavor
    if flavor is not None:
        return hardware.flavor(flavor)
    current = current_flavor()
    if current.problem:
        warnings.warn(current.problem, stacklevel=2)
    return current.record(hardware)
