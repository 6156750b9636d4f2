"""The template of a run record: what a log says of its run filled in, the rest null, to be filled in by hand."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from estimator.runs.logged import trainer_of
from estimator.runs.logs.read import Log, read_log
from estimator.runs.logs.setup import BESIDE, Told, setup_of
from estimator.runs.logs.text import LogText, split_lines
from estimator.runs.record import NEEDED, NEEDED_OF_PLAN, record_path
from hardware.catalog import Catalog
from hardware.errors import shown
from hardware.files import told as told_by

FURTHER = (
    "optimizer",
    "lora_rank",
    "lora_targets",
    "quantize",
    "compiled",
    "loss",
    "attention",
    "seq_len",
    "num_steps",
)
"""Keys that may stay null: the software's own habit, or not known."""

FURTHER_OF_PLAN = ("tensor_parallel", "context_parallel", "expert_parallel", "recomputation", "schedule")
"""Keys that may stay null: 1, none, and 1F1B."""


class Template(NamedTuple):
    """A run record that was begun."""

    path: Path
    """Where it is."""
    told: tuple[str, ...]
    """Keys that the log filled in."""
    empty: dict[str, str]
    """Keys that are to be filled in, and what each is."""


def write_template(log: Path, catalog: Catalog) -> Template:
    """Write the run record of a log beside it, as far as the log tells it.

    Args:
        log: a step log that does not say itself what was trained.
        catalog: of hardware, in which the log's devices are looked for.

    Raises:
        ValueError: the log cannot be read, or says itself what was trained, or there is a record beside it.
    """
    found, path = read_log(log), record_path(log)
    if found.record:
        raise ValueError(f"template: {found.name} says itself what was trained; it needs no run record")
    told = setup_of(split_lines(LogText(log).texts()), catalog, _of_steps(found))
    document = _document(told, found.form)
    where = f"template: {shown(str(path), 200)}"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_text(document))
    except FileExistsError as error:
        raise ValueError(f"{where} is there already, and is not replaced; move it away first") from error
    except OSError as error:
        raise ValueError(f"{where} cannot be written ({told_by(error)}); check its folder") from error
    plan = {f"plan.{key}": what for key, what in NEEDED_OF_PLAN.items()}
    empty = {key: what for key, what in (NEEDED | plan).items() if key not in told}
    return Template(path, tuple(key for key in told if key not in BESIDE), empty)


def _of_steps(log: Log) -> Told:
    """Return the rows and tokens of a step, where all steps that tell them tell as many."""
    told: Told = {}
    for key, name in (("rows", "rows"), ("tokens_per_step", "tokens")):
        counts = {getattr(one, name) for one in log.records} - {None}
        if len(counts) == 1:
            told[key] = int(counts.pop())
    return told


def _document(told: Told, form: str) -> dict[str, Any]:
    rest = {key: value for key, value in told.items() if not key.startswith("plan.") and key not in BESIDE}
    of_plan = {key.removeprefix("plan."): value for key, value in told.items() if key.startswith("plan.")}
    return {
        "record": "run",
        "schema": "steps/1",
        **dict.fromkeys(NEEDED),
        "plan": {**dict.fromkeys((*NEEDED_OF_PLAN, *FURTHER_OF_PLAN)), **of_plan},
        **dict.fromkeys(FURTHER),
        "trainer": trainer_of(form),
        **rest,
    }


def _text(document: dict[str, Any]) -> str:
    """Return JSON, a key a line."""
    return json.dumps(document, indent=1) + "\n"
