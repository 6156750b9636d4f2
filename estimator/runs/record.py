"""The run record: what a run trained, how and on what. The first line of a `steps.jsonl`; for another log, a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from estimator.formulas.machine import Machine
from estimator.stack.recipe import MOST_RANK, PRECISIONS, Recipe
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
Minutes = Annotated[float, Field(strict=True, ge=0.1, le=1e7)]

MOST_RECORD_BYTES = 2**20


PLAN_KEYS = frozenset({*(name for own in TOLD for name in (own.name, own.key) if name), "data_parallel", "text"})
"""Keys of a plan's document; its text is for people."""

UNREAD_KEYS = frozenset({"device_name", "threads_per_device", "global_batch", "packing", "documents"})
"""What the first line of a `steps.jsonl` says beyond a run record."""


def plan_of(document: Mapping[str, Any]) -> Plan:
    """Return the plan of a document with the keys of `estimate --json`, or of `Plan`.

    Raises:
        ValueError: a value is missing, none of its kind, or contradicts another.
    """
    try:
        return plan_from_document(document)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


class Adapters(BaseModel):
    """Adapters beside frozen weights; keys that are not fields, such as their scale, are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rank: Annotated[int, Field(strict=True, ge=1, le=MOST_RANK)]
    targets: Annotated[list[Label], Field(min_length=1, max_length=len(TARGETS))]
    """Of `TARGETS`, under these names or those of modules (`q_proj`)."""

    @field_validator("targets")
    @classmethod
    def _targets_are_known(cls, names: list[str]) -> list[str]:
        targets = [name.removesuffix("_proj") for name in names]
        if unknown := [name for name in targets if name not in TARGETS]:
            raise ValueError(unknown_name("target", unknown[0], TARGETS))
        return [name for name in TARGETS if name in targets]

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """As a recipe has them: () for all."""
        return () if len(self.targets) == len(TARGETS) else tuple(self.targets)


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
    precision: Label
    lora: Adapters | None = None
    """Adapters that were trained, all else frozen; None where all was trained."""
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
        """Return the precision, None for bfloat16 mixed (the stack's own), adapters, and if layers are compiled."""
        if self.precision not in PRECISIONS:
            raise ValueError(unknown_name("precision", self.precision, PRECISIONS))
        precision = None if self.precision == "bf16-mixed" else self.precision
        if self.lora is None:
            return Recipe(precision, compiles=self.compiled)
        rank, targets = self.lora.rank, self.lora.lora_targets
        return Recipe(precision, compiles=self.compiled, lora_rank=rank, lora_targets=targets)

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
    found = parse_run_record(text, where)
    own = {field.alias or name for name, field in RunRecord.model_fields.items()}
    for keys, kind, known in ((json.loads(text), "key", own | UNREAD_KEYS), (found.plan, "key of plan", PLAN_KEYS)):
        if unknown := [key for key in keys if key not in known]:
            raise ValueError(f"{where}: {unknown_name(kind, unknown[0], sorted(known))}")
    return found
