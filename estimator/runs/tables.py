"""The forms of published tables of runs, a model per form: a field per column that is used, and the run of a row."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from estimator.runs import vocabulary as words
from estimator.runs.measured import Run
from estimator.work.plan import Plan
from estimator.stack.recipe import Recipe
from estimator.work.shape import Shape
from estimator.runs.csv_rows import Form
from hardware.catalog import Catalog
from hardware.errors import shown
from hardware.models import MOST_DEVICES
from hardware.units import GIB

_NUMBER = re.compile(r"\d{1,20}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,2})?", re.ASCII)
_WHOLE = re.compile(r"(\d{1,20})(?:\.0{0,9})?", re.ASCII)

SPEED_TOLERANCE = 0.02
"""Step time and tokens per second of a row tell the same within this, or neither is believed."""


def _blank(cell: Any) -> Any:
    return None if cell == "" else cell


def _number(cell: Any) -> Any:
    if isinstance(cell, str) and cell and not _NUMBER.fullmatch(cell.strip()):
        raise ValueError(f"{shown(cell)} is not a plain positive number")
    return _blank(cell)


def _whole(cell: Any) -> Any:
    found = _WHOLE.fullmatch(cell.strip()) if isinstance(cell, str) else None
    if isinstance(cell, str) and cell and not found:
        raise ValueError(f"{shown(cell)} is not a whole number")
    return int(found[1]) if found else _blank(cell)


Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\x20-\x7e]+$")]
Text = Annotated[str, Field(max_length=10_000)]
Count = Annotated[Annotated[int, Field(ge=1, lt=2**31)], BeforeValidator(_whole)]
Devices = Annotated[Annotated[int, Field(ge=1, le=MOST_DEVICES)], BeforeValidator(_whole)]
Amount = Annotated[Annotated[float, Field(ge=1e-9, le=1e15)], BeforeValidator(_number)]
MaybeCount = Annotated[Annotated[int, Field(ge=1, lt=2**31)] | None, BeforeValidator(_whole)]
MaybeAmount = Annotated[Annotated[float, Field(ge=1e-9, le=1e15)] | None, BeforeValidator(_number)]
Flag = Literal["True", "False"]


class Row(Form, frozen=True):
    """A row of a table of runs."""

    def run(self, number: int, catalog: Catalog) -> Run:
        """Return the run of a row of this number; a ValueError says why it is none."""
        raise NotImplementedError


def _degree(devices: int, **ways: int) -> int:
    """Return the data-parallel degree of devices that divide so many ways."""
    rest = devices
    for name, way in ways.items():
        if rest % way:
            raise ValueError(f"{name}: {'*'.join(map(str, ways.values()))} ways do not divide {devices} devices")
        rest //= way
    return rest


def _micro_batches(batch: int, dp: int, rows: int) -> int:
    if batch % (dp * rows):
        raise ValueError(f"global batch: {batch} rows are no whole micro-batches of {rows} on {dp} ranks")
    return batch // (dp * rows)


def _schedule(stages: int, chunks: int) -> str:
    return "interleaved" if stages > 1 and chunks > 1 else "1f1b"


class MeasuredRow(Row):
    """A row of `measured_runs.csv`. A blank `vp` or `ep` is 1, as in its rows; a blank of another degree is unknown."""

    mark: ClassVar[str] = "gpu_unit"

    id: Label
    source: Label
    model: Label
    n_params: MaybeAmount
    layers: MaybeCount
    hidden: MaybeCount
    heads: MaybeCount
    kv_heads: MaybeCount
    ffn: MaybeCount
    vocab: MaybeCount
    seq_len: MaybeCount
    global_batch_seqs: MaybeCount
    micro_batch: MaybeCount
    grad_accum_or_microbatches: MaybeCount
    gpu: Text
    gpus: Annotated[Annotated[int, Field(ge=1, le=MOST_DEVICES)] | None, BeforeValidator(_whole)]
    gpus_per_node: MaybeCount
    tp: MaybeCount
    pp: MaybeCount
    vp: MaybeCount
    cp: MaybeCount
    ep: MaybeCount
    dp: MaybeCount
    zero_or_fsdp: Text
    recompute: Text
    precision: Text
    optimizer: Text
    tokens_per_s_total: MaybeAmount
    tokens_per_s_per_gpu: MaybeAmount
    step_time_s: MaybeAmount
    peak_mem_gib_per_gpu: MaybeAmount
    notes: Text
    confidence: Text
    gpu_unit: Text
    train_kind: Text

    def run(self, number: int, catalog: Catalog) -> Run:  # noqa: ARG002 - its rows have ids
        """Return the run of a row; a ValueError says why it is none."""
        accelerator = words.accelerator_of(self.gpu, self.gpu_unit, self.source, catalog)
        seq_len, devices = self._stated("seq_len"), self._stated("gpus")
        sizes = {name: getattr(self, name) for name in ("hidden", "layers", "heads", "kv_heads", "ffn", "vocab")}
        shape = words.shape_of(sizes, self.n_params, self.model, self.notes, seq_len)
        machine = words.machine_of(accelerator, devices, self.gpus_per_node, catalog)
        trainer = words.trainer_of(self.source, self.zero_or_fsdp, self.notes, accelerator)
        plan = self._plan(shape, trainer, devices, machine.devices_per_node)
        recipe = words.recipe_of(self.precision, self.train_kind, self.optimizer, self.notes)
        step_s = self._step_s(devices, self._stated("global_batch_seqs") * seq_len)
        held = self.peak_mem_gib_per_gpu * GIB if self.peak_mem_gib_per_gpu else None
        if step_s is None and held is None:
            raise ValueError("step_time_s: neither a time nor a rate nor memory was measured")
        # torchtune prints active bytes; SimuMax's agree with counted tensors within 0.5 %, which a reserve does not
        of_tensors = self.source.startswith(("torchtune", "SimuMax"))
        # of frozen weights in 8-bit training it is not said whether they are kept in 8 or in 16 bits
        is_known = "OOM" not in self.notes and not (recipe.lora_rank and recipe.precision == "fp8-mixed")
        assumes = "" if self.recompute else f"recompute: not stated, taken as {words.UNSTATED_RECOMPUTATION}"
        return Run(
            name=self.id,
            source=self.source,
            trainer=trainer,
            model=self.model,
            shape=shape,
            seq_len=seq_len,
            machine=machine,
            plan=plan,
            recipe=recipe,
            step_s=step_s,
            reserved_bytes=None if of_tensors else held,
            allocated_bytes=held if of_tensors else None,
            fits=True if is_known and not assumes else None,
            why_unhealthy=words.doubt_of(self.notes, self.confidence),
            assumes=assumes,
        )

    def _stated(self, column: str) -> int:
        value: int | None = getattr(self, column)
        if value is None:
            raise ValueError(f"{column}: not stated")
        return value

    def _plan(self, shape: Shape, trainer: str, devices: int, devices_per_node: int) -> Plan:
        tp, pp, cp = self._stated("tp"), self._stated("pp"), self._stated("cp")
        rows, ep, chunks = self._stated("micro_batch"), self.ep or 1, self.vp or 1
        if shape.num_experts and self.ep is None:
            raise ValueError("ep: not stated of a mixture")
        if pp > 1 and self.vp is None and re.search(r"VP (?:set|and|not)|and VP", self.notes):
            raise ValueError("vp: not stated")
        dp = _degree(devices, tp=tp, pp=pp, cp=cp)
        micro_batches = _micro_batches(self._stated("global_batch_seqs"), dp, rows)
        for column, implied in (("dp", dp), ("grad_accum_or_microbatches", micro_batches)):
            if getattr(self, column) not in (None, implied):
                raise ValueError(f"{column}: {getattr(self, column)} is stated, {implied} follows from the rest")
        recompute = self.recompute or (words.UNSTATED_RECOMPUTATION if trainer in words.SELDOM_RECOMPUTING else "")
        name, repeated = words.recomputation_of(recompute, trainer, shape.num_layers, pp)
        in_node = max(min(devices_per_node // tp, dp * cp), 1)
        zero = words.sharding_of(self.zero_or_fsdp, self.optimizer, trainer, dp * cp, in_node)
        return Plan(
            num_stages=pp,
            num_micro_batches=micro_batches,
            batch_per_device=rows,
            tp=tp,
            cp=cp,
            ep=ep,
            recomputation=name,
            recomputed_layers=repeated,
            zero_stage=zero.zero_stage,
            shard_within_node=zero.shard_within_node,
            schedule=_schedule(pp, chunks),
            virtual_stages=chunks if pp > 1 else 1,
            sequence_parallel=words.splits_sequence(self.source, self.recompute),
            offload_optimizer=zero.offload_optimizer,
        )

    def _step_s(self, devices: int, tokens: int) -> float | None:
        """Return the step's seconds, of which all that the row says of them agrees."""
        rate = self.tokens_per_s_per_gpu and self.tokens_per_s_per_gpu * devices
        told = [t for t in (self.step_time_s, *(r and tokens / r for r in (self.tokens_per_s_total, rate))) if t]
        if told and max(told) > (1 + SPEED_TOLERANCE) * min(told):
            raise ValueError(f"step_time_s: time and rates tell steps of {min(told):g} s and of {max(told):g} s")
        return told[0] if told else None


SLOWEST_HEALTHY_GB_PER_S = 300
"""All-reduce within a node of 8 H100 below which the node was degraded: such are near 45, the others near 425 GB/s."""


class UltrascaleRow(Row):
    """A row of `ultrascale_h100.csv`: nanotron, nothing recomputed, nodes of 8 H100.

    What the out-of-memory rows leave blank is inferred. The batch, of which they give the tokens and others the rows,
    agrees with the micro-batches. Where `num_kv_heads` is blank there are as many as heads, as in 867 of the 877 rows
    that give it; where `tie_word_embeddings` is blank they are tied below a width of 4096, as in all of those. Memory,
    printed in GB, is in GiB: before a step without sharding it is 18 bytes per parameter on one replica and 20 on
    several, of GiB alone.
    """

    mark: ClassVar[str] = "after_pp_fix"

    job_id: Label
    nodes: Annotated[Annotated[int, Field(ge=1, le=MOST_DEVICES // 8)], BeforeValidator(_whole)]
    seq_len: Count
    micro_batch: Count
    num_micro_batches: Count
    global_batch_seqs: Annotated[Annotated[int, Field(ge=1, lt=2**62)], BeforeValidator(_whole)]
    tokens_per_s_per_gpu: MaybeAmount
    all_gather_gb_per_s: MaybeAmount
    all_gather_intra_gb_per_s: MaybeAmount
    all_reduce_intra_gb_per_s: MaybeAmount
    peak_allocated_gb: MaybeAmount
    peak_reserved_gb: MaybeAmount
    dp: Count
    pp: Count
    tp: Count
    tp_mode: Literal["REDUCE_SCATTER", "ALL_REDUCE"]
    hidden_size: Count
    ffn: MaybeCount
    num_layers: Count
    num_heads: Count
    num_kv_heads: MaybeCount
    vocab_size: Count
    tie_word_embeddings: Annotated[Flag | None, BeforeValidator(_blank)]
    dtype: Text
    zero_stage: Annotated[Annotated[int, Field(ge=0, le=3)], BeforeValidator(_whole)]
    accumulate_grad_in_fp32: Annotated[Flag | None, BeforeValidator(_blank)]
    after_pp_fix: Flag
    status: Text

    def run(self, number: int, catalog: Catalog) -> Run:  # noqa: ARG002 - its rows have ids
        """Return the run of a row; a ValueError says why it is none."""
        if self.status not in ("Success", "OOM"):
            raise ValueError(f"status: {shown(self.status)} tells neither a time nor whether it fits")
        if self.dtype not in ("", "torch.bfloat16") or self.accumulate_grad_in_fp32 == "False":
            raise ValueError("dtype: not bfloat16 with gradients in 32 bits, which alone is modelled")
        devices, succeeded = 8 * self.nodes, self.status == "Success"
        if _degree(devices, tp=self.tp, pp=self.pp) != self.dp:
            raise ValueError(f"dp: {self.dp} is stated, {_degree(devices, tp=self.tp, pp=self.pp)} follows")
        batch = self.dp * self.micro_batch * self.num_micro_batches
        if self.global_batch_seqs not in (batch, batch * self.seq_len):
            raise ValueError(f"global_batch_seqs: {self.global_batch_seqs} is stated, {batch} follows")
        if succeeded and self.tokens_per_s_per_gpu is None:
            raise ValueError("tokens_per_s_per_gpu: not stated of a run that succeeded")
        shape = self._shape()
        machine = words.machine_of(catalog.accelerator("h100-sxm-80gb"), devices, 8, catalog)
        rate = (self.tokens_per_s_per_gpu or 0) * devices
        return Run(
            name=self.job_id,
            source="nanotron ultrascale",
            trainer="nanotron" if self.after_pp_fix == "True" else "nanotron-early",
            model=shape.name,
            shape=shape,
            seq_len=self.seq_len,
            machine=words.with_fabric(machine, self.all_gather_gb_per_s, self.all_gather_intra_gb_per_s),
            plan=Plan(
                num_stages=self.pp,
                num_micro_batches=self.num_micro_batches,
                batch_per_device=self.micro_batch,
                tp=self.tp,
                zero_stage=self.zero_stage,
                sequence_parallel=self.tp_mode == "REDUCE_SCATTER",
            ),
            recipe=Recipe(),
            step_s=batch * self.seq_len / rate if succeeded else None,
            reserved_bytes=self.peak_reserved_gb * GIB if succeeded and self.peak_reserved_gb else None,
            allocated_bytes=self.peak_allocated_gb * GIB if succeeded and self.peak_allocated_gb else None,
            fits=succeeded,
            why_unhealthy=self._why_unhealthy(),
            reads_first_stage=True,
        )

    def _shape(self) -> Shape:
        kv_heads = self.num_kv_heads or self.num_heads
        if self.ffn is None:
            raise ValueError("model: its ffn is not given")
        if self.num_heads % kv_heads or self.hidden_size % self.num_heads:
            raise ValueError("model: its heads are no whole parts of its width, or of each other")
        grouped = f"-kv{kv_heads}" if kv_heads != self.num_heads else ""
        tied = self.tie_word_embeddings == "True" if self.tie_word_embeddings else self.hidden_size < 4096
        return Shape(
            name=f"llama-{self.hidden_size}x{self.num_layers}{grouped}",
            family="llama",
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=kv_heads,
            head_dim=self.hidden_size // self.num_heads,
            ffn_size=self.ffn,
            vocab_size=self.vocab_size,
            gated_ffn=True,
            tied_embeddings=tied,
        )

    def _why_unhealthy(self) -> str:
        if self.pp > 1 and self.after_pp_fix == "False":
            return "broken pipeline engine: more than one stage, before its repair"
        rate = self.all_reduce_intra_gb_per_s
        if rate is not None and rate < SLOWEST_HEALTHY_GB_PER_S:
            return f"degraded node: all-reduce within it below {SLOWEST_HEALTHY_GB_PER_S} GB/s"
        return ""


class VtrainRow(Row):
    """A row of `vtrain_a100_single_node.csv`: Megatron-DeepSpeed on one node of 8 A100.

    As its notes say: full recomputation, an ungated block of 4 widths, and a vocabulary of 51,200, which is Megatron's
    usual. As its trainer does unless told: 1F1B, no ZeRO, no sequence parallelism, dropout, tied embeddings, biases.
    """

    mark: ClassVar[str] = "iteration time (ms)"

    devices: Annotated[Devices, Field(alias="# GPUs")]
    batch: Annotated[Count, Field(alias="global batch")]
    rows: Annotated[Count, Field(alias="micro batch")]
    hidden: Annotated[Count, Field(alias="hidden size")]
    heads: Annotated[Count, Field(alias="attention heads")]
    layers: Annotated[Count, Field(alias="# layers")]
    seq_len: Annotated[Count, Field(alias="sequence length")]
    tp: Annotated[Count, Field(alias="tensor parallelism")]
    dp: Annotated[Count, Field(alias="data parallelism")]
    pp: Annotated[Count, Field(alias="pipeline parallelism")]
    step_ms: Annotated[Amount, Field(alias="iteration time (ms)")]

    def run(self, number: int, catalog: Catalog) -> Run:
        """Return the run of a row; a ValueError says why it is none."""
        if _degree(self.devices, tp=self.tp, pp=self.pp) != self.dp:
            raise ValueError(f"dp: {self.dp} * {self.tp} * {self.pp} ranks are not {self.devices} devices")
        sizes: dict[str, int | None] = {
            "hidden": self.hidden,
            "layers": self.layers,
            "heads": self.heads,
            "kv_heads": self.heads,
            "ffn": 4 * self.hidden,
            "vocab": 51_200,
        }
        shape = words.shape_of(sizes, None, f"gpt-{self.hidden}x{self.layers}", "", self.seq_len)
        return Run(
            name=f"row {number}",
            source="vTrain single node",
            trainer="megatron-deepspeed",
            model=shape.name,
            shape=shape,
            seq_len=self.seq_len,
            machine=words.machine_of(catalog.accelerator("a100-sxm-80gb"), self.devices, 8, catalog),
            plan=Plan(
                num_stages=self.pp,
                num_micro_batches=_micro_batches(self.batch, self.dp, self.rows),
                batch_per_device=self.rows,
                tp=self.tp,
                recomputation="full",
                zero_stage=0,
                sequence_parallel=False,
            ),
            recipe=Recipe(),
            step_s=self.step_ms / 1e3,
            reserved_bytes=None,
            allocated_bytes=None,
            fits=True,
            why_unhealthy="",
        )


FORMS: tuple[type[Row], ...] = (MeasuredRow, UltrascaleRow, VtrainRow)
