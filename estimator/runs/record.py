"""The run record: what a run trained, how and on what. The first line of a `steps.jsonl`; for another log, a file."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError, model_validator

from estimator.formulas.machine import Machine
from estimator.work.plan import MAX_DEGREE, Plan, plan_from_document
from estimator.stack.recipe import PRECISIONS, Recipe
from estimator.work.shape import Shape, shape_from_config
from estimator.work.workload import MAX_COUNT, Workload
from hardware.catalog import Catalog
from hardware.errors import first_error, shown, unknown_name
from hardware.models import MOST_DEVICES

Degree = Annotated[int, Field(strict=True, ge=1, lt=MAX_DEGREE)]
Devices = Annotated[int, Field(strict=True, ge=1, le=MOST_DEVICES)]
Count = Annotated[int, Field(strict=True, ge=1, lt=MAX_COUNT)]
Label = Annotated[str, Field(max_length=200)]

MOST_RECORD_BYTES = 2**20


class PlanRecord(BaseModel):
    """A plan under the keys of `estimate --json`, or of `Plan`; keys that are not fields are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    plan: InstanceOf[Plan]
    data_parallel: Degree | None = None
    """As stated; it follows from the plan and the devices."""

    @model_validator(mode="before")
    @classmethod
    def _reads_a_plan(cls, document: Any) -> dict[str, Any]:
        plan = plan_from_document(document)
        return {**document, "plan": plan}


class RunRecord(BaseModel):
    """What a run trained, with which plan, on what; keys that are not fields are not read."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    schema_: Literal["steps/1"] = Field(alias="schema")
    model: dict[str, Any]
    """A Hugging Face config."""
    plan: PlanRecord
    accelerator: Label
    num_devices: Devices
    num_nodes: Devices
    tokens_per_step: Count
    seq_len: Count | None = None
    precision: Label
    attention: Label = ""
    trainer: Label = ""
    versions: dict[str, Any] = {}
    started: Label = ""

    def shape(self) -> Shape:
        """Return the model's shape."""
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
        """Return the precision; None in it for mixed precision in bfloat16, the stack's own."""
        if self.precision not in PRECISIONS:
            raise ValueError(unknown_name("precision", self.precision, PRECISIONS))
        return Recipe(None if self.precision == "bf16-mixed" else self.precision)

    def workload(self) -> Workload:
        """Return one step, whose rows are as long as makes its tokens.

        Raises:
            ValueError: the plan does not divide the devices, or its rows do not make the tokens of a step.
        """
        plan = self.plan.plan
        ways = plan.num_stages * plan.tp * plan.cp
        if self.num_devices % ways:
            raise ValueError(f"plan: num_stages * tp * cp = {ways} does not divide num_devices = {self.num_devices}")
        dp = self.num_devices // ways
        if self.plan.data_parallel not in (None, dp):
            raise ValueError(f"plan: data_parallel = {self.plan.data_parallel} is stated, {dp} follows from the rest")
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
    """Return the run record that a JSON text describes.

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
    """Return the run record that lies beside a log.

    Raises:
        ValueError: there is none, or it breaks a rule.
    """
    path = record_path(log)
    where = f"run record {shown(str(path), 200)}"
    try:
        with path.open("rb") as file:
            text = file.read(MOST_RECORD_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{where}: cannot be read; the log does not say what was trained: write there a line such as begins a "
            'steps.jsonl, {"record": "run", ...}'
        ) from error
    return parse_run_record(text, where)
