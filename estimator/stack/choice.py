"""Which stack answers a question: the one that was measured on what comes nearest to it."""

from functools import cache
from typing import NamedTuple

from pydantic import TypeAdapter
from pydantic_core import from_json

from estimator.stack.measured import MeasuredKind
from estimator.stack.stack import MOST_FILE_BYTES, builtin_stacks, fit_path
from estimator.work.defaults import SEED_STACK
from estimator.work.shape import Shape
from hardware.files import read_regular_file
from hardware.models import Flavor, MatmulPrecision

FACTOR_OF_SIZE = 2.0
"""Hidden sizes within this factor of measured ones count as of their size.  # assumed: a doubling, as of features"""

_KINDS = TypeAdapter(tuple[MeasuredKind, ...])


class Known(NamedTuple):
    """What a built-in stack was measured on."""

    stack: str
    measured: tuple[MeasuredKind, ...]
    num_sources: int
    """Whose measurements they are, so many."""

    @property
    def num_runs(self) -> int:
        """Timed runs that it was fitted to."""
        return sum(kind.runs for kind in self.measured)


class StackChoice(NamedTuple):
    """A stack, and why it was chosen."""

    stack: str
    reason: str


@cache
def known_stacks() -> tuple[Known, ...]:
    """Return what each built-in stack was measured on, by its name."""
    return tuple(map(_known, builtin_stacks()))


def _known(name: str) -> Known:
    # only what is asked for is validated: a whole fit takes 50 times as long to load
    document = from_json(read_regular_file(fit_path(name), MOST_FILE_BYTES))
    return Known(name, _KINDS.validate_python(document.get("measured", ())), len(document["fit"].get("sources", ())))


def choose_stack(flavor: Flavor, accelerator: str, shape: Shape, precision: MatmulPrecision) -> StackChoice:
    """Return the built-in stack that was measured on what comes nearest to a question.

    The MoAI platform's own flavors run its stack. Else, of the stacks measured on the accelerator, those that were with
    models of the kind (dense, or experts), in the precision, with or without adapters, of the family, and of the size,
    in this order; of several, the one whose runs come from most sources, since the asker's software is not known; then
    the one of most runs. Where none was measured on the accelerator, likewise of all.

    Args:
        flavor: the devices.
        accelerator: its id.
        shape: the model, with adapters if any.
        precision: of matrix products.
    """
    if flavor.menu_index is not None:
        return StackChoice(SEED_STACK, f"the stack of the MoAI platform, which offers {flavor.id}")
    known = [one for one in known_stacks() if one.stack != SEED_STACK or _runs_on(one, accelerator)]
    best = max(known, key=lambda one: _nearness(one, accelerator, shape, precision))
    return StackChoice(best.stack, _reason(best, known, accelerator, shape, precision))


def _runs_on(one: Known, accelerator: str) -> bool:
    return any(kind.accelerator == accelerator for kind in one.measured)


def _there(one: Known, accelerator: str) -> list[MeasuredKind]:
    """Return the runs on the accelerator, if any ran there, else all."""
    return [kind for kind in one.measured if kind.accelerator == accelerator] or list(one.measured)


def _like(one: Known, accelerator: str, shape: Shape, precision: MatmulPrecision) -> list[MeasuredKind]:
    """Return those of them that are of the question's kind."""
    return [kind for kind in _there(one, accelerator) if kind.is_like(shape, precision)]


def _nearness(one: Known, accelerator: str, shape: Shape, precision: MatmulPrecision) -> tuple[float, ...]:
    there, like = _there(one, accelerator), _like(one, accelerator, shape, precision)
    experts, adapters = shape.num_experts > 0, shape.lora_rank > 0
    of_kind = [kind for kind in there if kind.experts == experts]
    in_precision = [kind for kind in of_kind if kind.precision == precision]
    own_size = [
        kind
        for kind in like or in_precision
        if kind.hidden_size[0] / FACTOR_OF_SIZE <= shape.hidden_size <= kind.hidden_size[1] * FACTOR_OF_SIZE
    ]
    return (
        _runs_on(one, accelerator),
        len(of_kind) > 0,
        len(in_precision) > 0,
        any(kind.adapters == adapters for kind in in_precision),
        len(own_size) > 0,
        one.num_sources,
        any(shape.family in kind.families for kind in own_size),
        one.num_runs,
    )


def _reason(best: Known, known: list[Known], accelerator: str, shape: Shape, precision: MatmulPrecision) -> str:
    """Return why a stack is the nearest of all."""
    if not _runs_on(best, accelerator):
        return f"no stack was measured on {accelerator}; that of most sources, {best.num_sources}"
    what = f"{'adapters on ' * (shape.lora_rank > 0)}{'mixtures of experts' if shape.num_experts else 'dense models'}"
    there = [one for one in known if _runs_on(one, accelerator)]
    like = [one for one in there if _like(one, accelerator, shape, precision)]
    kind = f"measured on {accelerator} with {what} in {precision}"
    if not like:
        own = next(kind for kind in best.measured if kind.accelerator == accelerator)
        return f"none was {kind}; this one was with {own}"
    return f"the one {kind}" if len(like) == 1 else f"of {len(like)} {kind}, that of most sources, {best.num_sources}"
