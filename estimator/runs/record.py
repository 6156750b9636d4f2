"""The run record: what a run trained, how and on what. The first line of a `steps.jsonl`; for another log, a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from estimator.formulas.machine import Machine
from estimator.stack.optimizers import OPTIMIZERS
from estimator.stack.recipe import MOST_RANK, PRECISIONS, QUANTIZED_BYTES, Recipe
from estimator.work.plan import MAX_DEGREE, TOLD, Plan, plan_from_document
from estimator.work.shape import TARGETS, Shape, load_shape, shape_from_config
from estimator.work.workload import MAX_COUNT, Workload
from hardware.catalog import Catalog
from hardware.errors import first_error, shown, unknown_name
from hardware.files import read_regular_file
from hardware.models import MOST_DEVICES

Degree = Annotated[int, Field(strict=True, ge=1, lt=MAX_DEGREE)]
Devices = Annotated[int, Field(strict=True, ge=1, le=MOST_DEVICES)]
Count = Annotated[int, Field(strict=True, ge=1, lt=MAX_COUNT)]
Label = Annotated[str, Field(max_length=200)]
Bytes = Annotated[float, Field(strict=True, ge=1, le=1e15)]
Rank = Annotated[int, Field(strict=True, ge=0, le=MOST_RANK)]
Minutes = Annotated[float, Field(strict=True, ge=0.1, le=1e7)]

MOST_RECORD_BYTES = 2**20


PLAN_KEYS = frozenset({*(name for own in TOLD for name in (own.name, own.key) if name), "data_parallel", "text"})
"""Keys of a plan's document; its text is for people."""

UNREAD_KEYS = frozenset(
    {"device_name", "threads_per_device", "global_batch", "packing", "documents", "lora_alpha", "lora_dropout"}
)
"""What the first line of a `steps.jsonl` says beyond a run record."""


NEEDED = {
    "model": "a built-in name, the path of a config.json, or a Hugging Face config",
    "accelerator": "the id of an accelerator in the catalog, such as 'h100-sxm-80gb'",
    "num_devices": "how many devices trained",
    "num_nodes": "on how many nodes they were",
    "tokens_per_step": "tokens of an optimizer step, over all devices",
    "precision": f"one of {', '.join(PRECISIONS)}",
}
"""Keys that a run record must have, and what each is."""

NEEDED_OF_PLAN = {
    "num_stages": "the pipeline's stages, 1 without one",
    "num_micro_batches": "micro-batches of a step on each data-parallel rank",
    "batch_per_device": "rows of a micro-batch",
    "zero_stage": "what is sharded: 3 with FSDP, 2, 1, or 0 for nothing",
}
"""Keys that a plan must have there, and what each is."""


def _bits(value: Any) -> Any:
    """Return bits as text, however they are written; what is none of them is refused.

    >>> _bits(4), _bits("8")
    ('4', '8')
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text is not None and text not in QUANTIZED_BYTES:
        raise ValueError(f"{shown(value)} are no bits of frozen weights; use one of {', '.join(QUANTIZED_BYTES)}")
    return text


def _targets(value: Any) -> Any:
    """Return the matrices of a list, or of words with spaces between, as they are called here or by libraries.

    In the order of `TARGETS`; all of them are none told, as a recipe says it.

    >>> _targets("v q"), _targets(["q_proj", "down_proj"])
    (('q', 'v'), ('q', 'down'))
    """
    names = value.split() if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{shown(value)} is no list of matrices; use some of {', '.join(TARGETS)}")
    found = tuple(name.removesuffix("_proj") for name in names)
    if unknown := [name for name, own in zip(names, found, strict=True) if own not in TARGETS]:
        raise ValueError(unknown_name("matrix", unknown[0], TARGETS))
    return () if set(found) == set(TARGETS) else tuple(name for name in TARGETS if name in found)


def plan_of(document: Mapping[str, Any]) -> Plan:
    """Return the plan of a document with the keys of `estimate --json`, or of `Plan`.

    Raises:
        ValueError: a value is missing, none of its kind, or contradicts another.
    """
    try:
        return plan_from_document(document)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


class RunRecord(BaseModel):
    """What a run trained, with which plan, on what, and what was measured of it outside its log."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    schema_: Literal["steps/1"] = Field(alias="schema")
    record: Literal["run"] = "run"
    model: dict[str, Any] | str
    """A Hugging Face config, a built-in name, or the path of a config."""
    plan: dict[str, Any]
    accelerator: Label
    num_devices: Devices
    num_nodes: Devices
    tokens_per_step: Count
    seq_len: Count | None = None
    logged_tokens_per_step: Count | None = None
    """Tokens of a step as its log counts them in rates, where it leaves some out: masked, or padding."""
    precision: Label
    optimizer: Label | None = None
    """As `Recipe` has it; None for the software's own."""
    lora_rank: Rank = 0
    """Rank of adapters, all else frozen; 0 where everything was trained."""
    lora_targets: Annotated[tuple[str, ...], BeforeValidator(_targets)] = ()
    """Matrices that the adapters lie beside; () for all of them."""
    quantize: Annotated[str | None, BeforeValidator(_bits)] = None
    """Bits of the frozen weights, where they are quantized."""
    overlaps: bool = True
    """Collectives ran beside the computation, as far as the software has it so."""
    attention: Label = ""
    compiled: bool | None = None
    """Its layers were compiled, or not; None where that is not told."""
    loss: Literal["whole", "chunked"] | None = None
    """Whether the loss had all logits at once, or some at a time; None where that is not told."""
    trainer: Label = ""
    versions: dict[str, Any] = {}
    started: Label = ""
    num_steps: Count | None = None
    """Optimizer steps of the whole run."""
    num_candidates: Count | None = None
    """Plans that the software compared before it trained."""
    num_possible: Count | None = None
    """Of these, those that it could have run."""
    total_bytes: Bytes | None = None
    """That all devices together held."""
    stated_minutes: Minutes | None = None
    """Training time of all its steps, as its source states it: a second measurement beside the log's."""

    @field_validator("model", mode="plain")
    @classmethod
    def _model_is_named_or_told(cls, model: Any) -> dict[str, Any] | str:
        if not isinstance(model, dict | str):
            raise ValueError(f"{shown(model)} is neither a Hugging Face config nor a name")
        return model

    @field_validator("plan")
    @classmethod
    def _plan_is_one(cls, document: dict[str, Any]) -> dict[str, Any]:
        plan_of(document)
        return document

    @model_validator(mode="after")
    def _minutes_are_of_steps(self) -> Self:
        if self.stated_minutes is not None and self.num_steps is None:
            raise ValueError("num_steps is missing, of which stated_minutes is the time; add it")
        return self

    def shape(self) -> Shape:
        """Return the model's shape."""
        if isinstance(self.model, str):
            return load_shape(self.model)
        name = self.model.get("_name_or_path") or self.model.get("name")
        plain = isinstance(name, str) and name.isascii() and name.isprintable() and 0 < len(name.strip()) <= 200
        return shape_from_config(self.model, str(name) if plain else str(self.model.get("model_type")))

    def machine(self, catalog: Catalog) -> Machine:
        """Return the devices.

        Raises:
            ValueError: the accelerator is not in the catalog, or there are more nodes than devices.
        """
        if self.num_nodes > self.num_devices:
            raise ValueError(f"num_nodes: {self.num_nodes} is more than num_devices = {self.num_devices}")
        accelerator = catalog.accelerator(self.accelerator)
        return Machine(accelerator, catalog.node_of(accelerator.id), self.num_devices, self.num_nodes)

    def recipe(self) -> Recipe:
        """Return how it was trained; its precision is None for bfloat16 mixed, the stack's own.

        Raises:
            ValueError: a name is unknown, or the parts contradict each other.
        """
        for name, given, known in (
            ("precision", self.precision, PRECISIONS),
            ("optimizer", self.optimizer, OPTIMIZERS),
        ):
            if given is not None and given not in known:
                raise ValueError(unknown_name(name, given, known))
        return Recipe(
            precision=None if self.precision == "bf16-mixed" else self.precision,
            optimizer=self.optimizer,
            lora_rank=self.lora_rank,
            quantize=self.quantize,
            overlaps=self.overlaps,
            compiles=self.compiled,
            lora_targets=self.lora_targets,
        )

    def workload(self) -> Workload:
        """Return one step, whose rows are as long as makes its tokens.

        Raises:
            ValueError: the plan does not divide the devices, or its rows do not make the tokens of a step.
        """
        plan = plan_of(self.plan)
        ways = plan.num_stages * plan.tp * plan.cp
        if self.num_devices % ways:
            raise ValueError(f"plan: num_stages * tp * cp = {ways} does not divide num_devices = {self.num_devices}")
        dp = self.num_devices // ways
        told = self.plan.get("data_parallel")
        if told not in (None, dp):
            raise ValueError(f"plan: data_parallel = {told} is stated, {dp} follows from the rest")
        rows = dp * plan.num_micro_batches * plan.batch_per_device
        if self.tokens_per_step % rows:
            raise ValueError(
                f"tokens_per_step: {self.tokens_per_step} is not a whole number of tokens in each of {rows} rows "
                f"({dp} data parallel * {plan.num_micro_batches} micro-batches * {plan.batch_per_device})"
            )
        seq_len = self.tokens_per_step // rows
        if self.seq_len not in (None, seq_len):
            raise ValueError(f"seq_len: {self.seq_len} is stated, {seq_len} follows from tokens_per_step and the plan")
        return Workload(self.shape(), seq_len, rows, num_steps=1)

    def is_same_run(self, other: "RunRecord") -> bool:
        """Whether another record is of this run, begun again."""
        left_out = {"started", "versions"}
        return self.model_dump(exclude=left_out) == other.model_dump(exclude=left_out)


def parse_run_record(text: str, where: str) -> RunRecord:
    """Return the run record that a JSON text describes; keys that are not fields are not read.

    Raises:
        ValueError: it breaks a rule: which, and where.
    """
    try:
        return RunRecord.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"{where}: {first_error(error)}") from error


def record_path(log: Path) -> Path:
    """Return where the run record of a log lies that holds none."""
    return log.with_name(f"{log.name}.run.json")


def read_run_record(log: Path) -> RunRecord:
    """Return the run record that lies beside a log; written by hand, it has no key that is not known.

    Raises:
        ValueError: there is none, or it breaks a rule.
    """
    path = record_path(log)
    where = f"run record {shown(str(path), 200)}"
    try:
        text = read_regular_file(path, MOST_RECORD_BYTES).decode("utf-8-sig")
    except UnicodeError as error:
        raise ValueError(f"{where}: is not text in UTF-8; save it so") from error
    except ValueError as error:
        raise ValueError(f"run record {error}") from error
    except OSError as error:
        raise ValueError(
            f"{where}: cannot be read; the log does not say what was trained: write there a line such as begins a "
            'steps.jsonl, {"record": "run", ...}'
        ) from error
    return _by_hand(text, where)


def _by_hand(text: str, where: str) -> RunRecord:
    """Return the record of a text whose keys are all known; one that is null is not told."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return parse_run_record(text, where)  # which says what is wrong
    plan = document.get("plan") if isinstance(document, dict) else None
    if not isinstance(plan, dict):
        return parse_run_record(text, where)
    own = {field.alias or name for name, field in RunRecord.model_fields.items()}
    for keys, kind, known in ((document, "key", own | UNREAD_KEYS), (plan, "key of plan", PLAN_KEYS)):
        if unknown := [key for key in keys if key not in known]:
            raise ValueError(f"{where}: {unknown_name(kind, unknown[0], sorted(known))}")
    for needed, told, which in ((NEEDED, document, ""), (NEEDED_OF_PLAN, plan, "plan: ")):
        if empty := [key for key in needed if key in told and told[key] is None]:
            raise ValueError(f"{where}: {which}{empty[0]} is not filled in; write {needed[empty[0]]}")
    told = {key: value for key, value in document.items() if value is not None}
    told["plan"] = {key: value for key, value in plan.items() if value is not None}
    return parse_run_record(json.dumps(told), where)
