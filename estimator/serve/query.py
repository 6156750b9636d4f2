"""What a live page may be asked: the parameters of its address, each with its kind; none is the name of a file."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from estimator.api.options import names_all
from estimator.search.planner import SPACES
from estimator.stack.optimizers import OPTIMIZERS
from estimator.stack.recipe import PRECISIONS
from estimator.stack.stack import builtin_stacks
from estimator.work.shape import MAX_NAME, Shape, builtin_configs, builtin_shape, shape_from_config
from hardware.errors import shown, unknown_name

MOST_CHARACTERS = 300
"""Of a parameter's value; the text of a plan with all fields has some 250."""


class Parameter(NamedTuple):
    """What a parameter of a query is."""

    name: str
    kind: str
    """As JSON Schema has it: integer, number, boolean or string."""
    about: str
    choices: tuple[str, ...] = ()


PARAMETERS = {
    one.name: one
    for one in (
        Parameter("model", "string", "built-in name of a model; a config.json is posted instead"),
        Parameter("flavor", "string", "name of a flavor"),
        Parameter("accelerator", "string", "id of an accelerator, with devices, instead of a flavor"),
        Parameter("devices", "integer", "how many of that accelerator"),
        Parameter("seq_len", "integer", "tokens per row"),
        Parameter("batch", "integer", "rows per step, over all devices"),
        Parameter("rows", "integer", "rows of the data set"),
        Parameter("epochs", "integer", "passes over the rows"),
        Parameter("steps", "integer", "optimizer steps, instead of rows and epochs"),
        Parameter("plan", "string", "'best', or what is given of a plan, such as tp=8,zero_stage=3"),
        Parameter("space", "string", "set of plans to search; the stack's if left out", SPACES),
        Parameter("stack", "string", "name of a stack; the one measured nearest if left out", builtin_stacks()),
        Parameter("precision", "string", "the stack's if left out", tuple(PRECISIONS)),
        Parameter("optimizer", "string", "the stack's if left out", tuple(OPTIMIZERS)),
        Parameter("lora", "integer", "rank of adapters, all else frozen"),
        Parameter("quantize", "string", "bits of the frozen weights", ("8", "4")),
        Parameter("compiles", "boolean", "compile each layer; as the stack does if left out"),
        Parameter("deadline", "string", "time from start to end at most, such as 30m or 2.5h"),
        Parameter("budget", "number", "USD at most"),
        Parameter("failures", "boolean", "count checkpoints and failures"),
        Parameter("device_mtbf", "string", "mean time between failures of one device, such as 50000h"),
        Parameter("price", "number", "USD per device and hour, instead of what providers ask"),
        Parameter("everywhere", "boolean", "a page shows minutes against USD on all flavors, too; takes a second more"),
    )
}

PATTERNS = {"integer": r"-?[0-9]{1,12}", "number": r"-?[0-9]{1,12}(\.[0-9]{1,9})?", "boolean": "true|false"}
READ: dict[str, Callable[[str], Any]] = {"integer": int, "number": float, "boolean": lambda text: text == "true"}


class Query(NamedTuple):
    """A question as an address asks it; equal ones are answered once."""

    shape: Shape | None
    """None for the usual model."""
    options: tuple[tuple[str, Any], ...]
    """Of `estimate`, in the order of `PARAMETERS`."""
    everywhere: bool


def read_query(pairs: Iterable[tuple[str, str]], config: bytes | None = None) -> Query:
    """Return what a query asks; a parameter without a value is left out.

    Args:
        pairs: names and values, decoded.
        config: a config.json that was posted, for the model.

    Raises:
        ValueError: a name is unknown or given twice, a value is none of its kind, or the config is unusable.
    """
    given: dict[str, Any] = {}
    for name, text in pairs:
        if name not in PARAMETERS:
            raise ValueError(unknown_name("parameter", name, PARAMETERS))
        if name in given:
            raise ValueError(f"{name}: is given twice; give it once")
        if text:
            given[name] = _value(PARAMETERS[name], text)
    shape = _shape(given.pop("model", None), config)
    if names_all(given.get("flavor")) or "," in str(given.get("flavor", "")):
        raise ValueError(f"flavor: {shown(given['flavor'])} asks for several answers; ask for one at a time")
    everywhere = bool(given.pop("everywhere", False))
    return Query(shape, tuple((name, given[name]) for name in PARAMETERS if name in given), everywhere)


def _value(parameter: Parameter, text: str) -> Any:
    """Return a value as its kind has it."""
    name, kind = parameter.name, parameter.kind
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{name}: a text of {len(text):,} characters is too long; give {MOST_CHARACTERS} at most")
    if parameter.choices and text not in parameter.choices:
        raise ValueError(unknown_name(name, text, parameter.choices))
    if kind in PATTERNS and not re.fullmatch(PATTERNS[kind], text):
        raise ValueError(f"{name}: {shown(text)} is no {kind}; give {'true or false' if kind == 'boolean' else 'one'}")
    return READ[kind](text) if kind in READ else text


def _shape(model: str | None, config: bytes | None) -> Shape | None:
    """Return a built-in shape by its name, or that of a config; never one of a file that is named."""
    if config is not None:
        if model is not None:
            raise ValueError(f"model: {shown(model)} is given beside a posted config.json; give one or the other")
        return _posted(config)
    if model is None:
        return None
    if found := builtin_shape(model):
        return found
    raise ValueError(unknown_name("model", model, builtin_configs()))


def _posted(config: bytes) -> Shape:
    try:
        document = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise ValueError("model: what is posted is not valid JSON; post the model's config.json") from error
    name = document.get("_name_or_path") if isinstance(document, Mapping) else None
    if not isinstance(name, str) or not (name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME):
        name = "posted config.json"
    return shape_from_config(document, name)
