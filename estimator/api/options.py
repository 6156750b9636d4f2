"""What is asked, as the options of a call say it: read, checked, and their files loaded."""

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from estimator.formulas.adapters import modules_told
from estimator.formulas.failures import DEVICE_MTBF_S
from estimator.search.choice import parse_duration
from estimator.search.planner import offers
from estimator.stack.choice import choose_stack
from estimator.stack.recipe import Recipe
from estimator.stack.stack import Stack, builtin_stacks, load_stack
from estimator.work.defaults import SEED_BATCH, SEED_EPOCHS, SEED_ROWS, SEED_SEQ_LEN
from estimator.work.lengths import packed_rows, read_lengths, useful_fraction
from estimator.work.plan import Plan, is_whole, parse_fields, parse_plan
from estimator.work.shape import Shape, load_shape
from estimator.work.workload import Padding, Workload, num_steps
from hardware.catalog import Catalog, load_catalog
from hardware.errors import shown
from hardware.models import Flavor, MatmulPrecision
from hardware.smi.selection import current_flavor

MOST_USD_PER_H = 1e6
"""Of a device.  # assumed: a thousand times the dearest"""

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
    stack: PathLike | Stack | None
    accelerator: str | None
    devices: int | None
    catalog: Hardware
    precision: str | None
    optimizer: str | None
    optimizer_in_backward: bool
    lora: int
    lora_targets: str | Sequence[str] | None
    quantize: str | int | None
    offload_activations: bool
    loss: str | None
    compiles: bool | None
    failures: bool
    device_mtbf: str | None
    price: float | None


class Options(SubjectOptions, total=False):
    """Options of `estimate`."""

    plan: str | Plan
    space: str | None
    objective: str
    deadline: str | None
    budget: float | None
    why: str | Plan | None


class On(NamedTuple):
    """Devices and the software that they are trained with."""

    flavor: Flavor
    stack: Stack
    """As the recipe has it."""
    why: str
    """Why this stack, where none is asked for."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is trained, how, and on which devices with which software."""

    workload: Workload
    catalog: Catalog
    on: tuple[On, ...]
    device_mtbf_s: float | None
    """None where failures are not asked for."""
    usd_per_device_h: float | None = None
    """None where the catalog's prices are taken."""


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
    stack: PathLike | Stack | None = None,
    accelerator: str | None = None,
    devices: int | None = None,
    catalog: Hardware = (),
    precision: str | None = None,
    optimizer: str | None = None,
    optimizer_in_backward: bool = False,
    lora: int = 0,
    lora_targets: str | Sequence[str] | None = None,
    quantize: str | int | None = None,
    offload_activations: bool = False,
    loss: str | None = None,
    compiles: bool | None = None,
    failures: bool = False,
    device_mtbf: str | None = None,
    price: float | None = None,
) -> Subject:
    """Return what the options describe; `estimate` says what each is.

    Raises:
        ValueError: one is unknown or out of range, two contradict each other, or a file cannot be read.
    """
    hardware = load_hardware(catalog)
    shape = model if isinstance(model, Shape) else load_shape(str(model))
    recipe = Recipe(
        precision,
        optimizer,
        _whole("lora", lora),
        None if quantize is None else str(quantize),
        compiles=compiles,
        lora_modules=_lora_modules(shape, lora, lora_targets),
        optimizer_in_backward=optimizer_in_backward,
        offload_activations=offload_activations,
        loss=loss,
    )
    shape = recipe.shape(shape)
    seq_len, batch = _whole("seq-len", seq_len), _whole("batch", batch)
    asked = {"rows": rows, "epochs": epochs, "steps": steps}
    given = {name: _whole(name, value) for name, value in asked.items() if value is not None}
    count, padding = _steps(seq_len, batch, given, lengths)
    workload = Workload(shape, seq_len, batch, count, str(recipe), padding)
    flavors = _flavors(hardware, flavor, accelerator, devices, recipe.matmul_precision)
    on = (
        _with_every_stack(flavors, hardware, recipe, shape)
        if names_all(stack)
        else _with_stacks(flavors, hardware, recipe, shape, stack)
    )
    _refuse_unknown_hosts(on, hardware)
    if price is not None and not 0 <= price < MOST_USD_PER_H:
        raise ValueError(f"price: {shown(price)} is not USD per device and hour; give for example 1.10")
    return Subject(workload, hardware, on, _device_mtbf_s(device_mtbf, failures=failures), price)


def _lora_modules(shape: Shape, rank: int, told: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the modules that adapters lie beside; () for all linear ones, and without adapters."""
    if told is not None and not rank:
        raise ValueError(f"lora-targets: {shown(told)} is given without a rank; add for example --lora 16")
    return modules_told(shape, told) if rank else ()


def _refuse_unknown_hosts(on: tuple[On, ...], hardware: Catalog) -> None:
    """Refuse activations in the memory of a host that is not known."""
    for one in on:
        if one.stack.habits.offloads_activations and hardware.node(one.flavor.node).host is None:
            raise ValueError(
                f"offload-activations: the host of {one.flavor.id} is not known; leave it out, or add the host of node "
                f"{one.flavor.node} in a --catalog"
            )


def _with_stacks(
    flavors: tuple[Flavor, ...], hardware: Catalog, recipe: Recipe, shape: Shape, stack: PathLike | Stack | None
) -> tuple[On, ...]:
    """Return flavors with the stack that is asked for, or each with the one that was measured nearest to it."""
    loaded: dict[str, Stack] = {}

    def by_name(name: str) -> Stack:
        if name not in loaded:
            loaded[name] = recipe.stack(load_stack(name), shape)
        return loaded[name]

    if stack is not None:
        own = recipe.stack(stack, shape) if isinstance(stack, Stack) else by_name(str(stack))
        return tuple(On(flavor, own, "") for flavor in flavors)
    chosen = [
        choose_stack(flavor, hardware.node(flavor.node).accelerator, shape, recipe.matmul_precision)
        for flavor in flavors
    ]
    return tuple(On(flavor, by_name(one.stack), one.reason) for flavor, one in zip(flavors, chosen, strict=True))


def _with_every_stack(flavors: tuple[Flavor, ...], hardware: Catalog, recipe: Recipe, shape: Shape) -> tuple[On, ...]:
    """Return a flavor with each built-in stack, that of the answer without one first."""
    if len(flavors) > 1:
        raise ValueError("stack: --stack all is given beside several flavors; give one of them")
    (first,) = _with_stacks(flavors, hardware, recipe, shape, None)
    others = (recipe.stack(load_stack(name), shape) for name in builtin_stacks() if name != first.stack.name)
    return (first, *(On(first.flavor, other, "") for other in others))


def names_all(name: object) -> bool:
    """Whether a name asks for all that there is.

    >>> names_all("All"), names_all(["all"])
    (True, False)
    """
    return isinstance(name, str) and name.casefold() == "all"


def load_hardware(catalog: Hardware) -> Catalog:
    """Return the packaged catalog with further files, or the one that is given."""
    if isinstance(catalog, Catalog):
        return catalog
    return load_catalog([Path(path) for path in ([catalog] if isinstance(catalog, str | Path) else catalog)])


class PlanAsked(NamedTuple):
    """Which plans are asked for: one, those of which some fields are given, or all."""

    plan: Plan | None = None
    fixed: dict[str, Any] | None = None

    @property
    def is_given(self) -> bool:
        """Whether anything is."""
        return self.plan is not None or self.fixed is not None


def plan_asked(plan: str | Plan) -> PlanAsked:
    """Return what a plan asks for: "best", a whole plan, or some of its fields."""
    if isinstance(plan, Plan):
        return PlanAsked(plan)
    if plan == "best":
        return PlanAsked()
    fields = parse_fields(plan)
    if fields.get("recomputation") == "full":
        fields.setdefault("recomputed_layers", 0)  # of all layers, unless it is told of how many
    return PlanAsked(Plan(**fields)) if is_whole(fields) else PlanAsked(fixed=fields)


def as_plan(plan: str | Plan) -> Plan:
    """Return a plan as it is, or the one that a text describes."""
    return plan if isinstance(plan, Plan) else parse_plan(plan)


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
    if names_all(flavor):
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
