"""Runs of `measured_runs.csv` and `measured_runs_partial.csv`: published runs of many sources.

A blank `vp` or `ep` is 1, as in its rows; a blank of another degree is unknown. What a rule infers, its docstring says.
torchtune's memory is of active bytes; SimuMax's agrees with counted tensors within 0.5 %, which a reserve does not.
"""

import re
from typing import NamedTuple

from raw import CATALOG, Row, data_parallel, machine_of, micro_batches, number, stated, whole

from estimator.formulas.counts import num_parameters
from estimator.runs.measured import Run
from estimator.stack.recipe import Recipe
from estimator.work.plan import Plan
from estimator.work.shape import Shape
from hardware.errors import shown
from hardware.models import Accelerator
from hardware.units import GIB

SPEED_TOLERANCE = 0.02
"""Step time and tokens per second of a row tell the same within this, or neither is believed."""

OF_TENSORS = ("torchtune", "SimuMax")
"""Beginnings of sources whose memory is what tensors held."""

_TRAINERS = (
    ("MosaicML llm-foundry", "llm-foundry"),
    ("llm-foundry", "llm-foundry"),
    ("vTrain", "megatron-deepspeed"),
    ("NVIDIA Megatron-Bridge", "megatron"),
    ("NVIDIA DGX Cloud", "megatron"),
    ("Megatron-LM", "megatron"),
    ("Narayanan", "megatron"),
    ("Korthikanti", "megatron"),
    ("SimuMax", "megatron"),
    ("AMD Primus", "megatron"),
    ("torchtune", "torchtune"),
    ("ROCm CVS", "torchtitan"),
)

_WITHOUT_SEQUENCE_PARALLELISM = ("vTrain", "Korthikanti", "Narayanan")
"""Sources whose tensor-parallel ranks hold norms whole, unless the row says otherwise: older than it, or its baseline
(arXiv:2205.05198)."""

SELDOM_RECOMPUTING = ("megatron", "mlperf-nvidia", "mlperf-amd")
"""Trainers whose published rows mostly leave open what is repeated, and mostly repeat nothing: where they say what, it
is nothing in 8 of 10 models, and their recipes turn it on where a plan would not fit else."""

UNSTATED_RECOMPUTATION = "none"

_LADDER = "torchtune README optimization ladder"

_NOT_MODELLED = (
    (r"\bMLA\b", "latent attention (MLA) is not modelled"),
    (r"\+\d+ shared|layers? dense", "shared experts and dense first layers are not modelled"),
    (r"alternating sliding window", "sliding windows in every other layer are not modelled"),
    (r"hybrid|[Mm]amba|linear.attention", "layers without softmax attention are not modelled"),
    (r"architecture not filled|arch not filled|arch proxy", "its architecture is not given"),
    (r"activation offloading to CPU", "offloaded activations are not modelled"),
)

_DOUBTS = ("suspicious", "NOT performance-tuned", "not restated", "unpacked", "WARNING", "not confirmed", "thrash")
"""Words of the tables' notes that call the row's own figure, or what it was measured on, into question."""


class _Family(NamedTuple):
    """What models of a name's beginning share."""

    pattern: str
    name: str
    gated: bool = True
    biases: bool = False
    """In every matrix; and learned positions."""
    norm_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    dropout: bool = False


_FAMILIES = (
    _Family(r"mpt", "gpt2", gated=False, biases=True, norm_bias=True, tied=True),
    _Family(r"gpt-?\d", "gpt2", gated=False, biases=True, norm_bias=True, tied=True, dropout=True),
    _Family(r"llama", "llama"),
    _Family(r"mistral", "mistral"),
    _Family(r"mixtral", "mixtral"),
    _Family(r"grok", "mixtral", tied=True),
    _Family(r"qwen3", "qwen3", qk_norm=True),
    _Family(r"qwen2", "qwen2", qkv_bias=True),
    _Family(r"nemotron4", "nemotron", gated=False, norm_bias=True),
)


def trainer_of(source: str, sharding: str, notes: str, accelerator: Accelerator) -> str:
    """Return the software that a source's runs were trained with; "other" where it is not one that is told apart."""
    if re.search(r"MaxText|Paxml", sharding + notes):
        return "other"
    if source.startswith("MLPerf"):
        return f"mlperf-{accelerator.vendor.casefold()}"
    if "torchtune" in notes:
        return "torchtune"
    return next((trainer for begin, trainer in _TRAINERS if source.startswith(begin)), "other")


def accelerator_of(gpu: str, gpu_unit: str, source: str) -> Accelerator:
    """Return the device of a cell: the catalog's one whose id is the cell in its spelling, or begins with it.

    A package of two is not the device that a plan counts. torchtune's ladder leaves "A100" open; its rungs are one
    machine, and the first held 51 GiB: the 80 GB device (its form, SXM, is assumed).
    """
    if gpu_unit not in ("device", "GCD", ""):
        raise ValueError(f"gpu_unit: {shown(gpu_unit)}: what is counted is no device of the catalog")
    slug = re.sub(r"[\s_]+", "-", gpu.strip()).casefold()
    if slug == "a100" and source == _LADDER:
        slug = "a100-sxm-80gb"
    ids = [a.id for a in CATALOG.accelerators]
    found = [slug] if slug in ids else [i for i in ids if slug and i.startswith(f"{slug}-")]
    if len(found) != 1:
        what = f"may be {' or '.join(found)}" if found else "is no accelerator of the catalog"
        raise ValueError(f"gpu: {shown(gpu)} {what}")
    return CATALOG.accelerator(found[0])


def shape_of(sizes: dict[str, int | None], n_params: float | None, model: str, notes: str, seq_len: int) -> Shape:
    """Return the model of a row's sizes, by the columns' names.

    Gates, biases, positions and tied embeddings follow from the family that the model's name begins with, or from the
    notes; there are as many learned positions as tokens in a row. Where the row states its parameters, the shape has
    as many within 5 %.
    """
    for pattern, reason in _NOT_MODELLED:
        if re.search(pattern, notes):
            raise ValueError(f"model: {reason}")
    missing = [name for name, size in sizes.items() if size is None]
    if missing:
        raise ValueError(f"model: its {missing[0]} is not given")
    name = model.rpartition("/")[2].casefold()
    family = next((f for f in _FAMILIES if re.match(f.pattern, name)), None)
    if family is None:
        raise ValueError("model: of no known family, so gates, biases and norms are not known")
    size = {key: value or 0 for key, value in sizes.items()}
    width = re.search(r"head_dim ([1-9]\d{0,5})", notes)
    experts = re.search(r"MoE (\d{1,6}) experts top-(\d{1,6})", notes)
    if size["heads"] % size["kv_heads"] or (not width and size["hidden"] % size["heads"]):
        raise ValueError("model: its heads are no whole parts of its width, or of each other")
    if family.name == "mixtral" and not experts:
        raise ValueError("model: the experts of the mixture are not given")
    if experts and not 0 < int(experts[2]) <= int(experts[1]):
        raise ValueError("model: a token meets more experts than there are, or none")
    shape = Shape(
        name=model,
        family=family.name,
        hidden_size=size["hidden"],
        num_layers=size["layers"],
        num_heads=size["heads"],
        num_kv_heads=size["kv_heads"],
        head_dim=int(width[1]) if width else size["hidden"] // size["heads"],
        ffn_size=size["ffn"],
        vocab_size=size["vocab"],
        gated_ffn=family.gated and "ungated" not in notes,
        tied_embeddings=family.tied or "tied embeddings" in notes,
        qkv_bias=family.biases or family.qkv_bias,
        out_bias=family.biases,
        ffn_bias=family.biases,
        norm_bias=family.norm_bias,
        qk_norm=family.qk_norm,
        num_positions=seq_len if family.biases else 0,
        num_experts=int(experts[1]) if experts else 0,
        num_experts_per_token=int(experts[2]) if experts else 0,
        residual_dropout=family.dropout,
    )
    if n_params is not None and abs(num_parameters(shape) / n_params - 1) > 0.05:
        raise ValueError(f"model: its sizes make {num_parameters(shape):.4g} parameters, not {n_params:.4g}")
    return shape


def recomputation_of(text: str, trainer: str, layers: int, stages: int) -> tuple[str, int]:
    """Return what is repeated, and in how many layers of a stage (0: all).

    "selective" alone is the attention's core in Megatron, as in arXiv:2205.05198; elsewhere it is not said what.
    """
    if not text:
        raise ValueError("recompute: not stated")
    if text == "none" or text.startswith("none "):
        return "none", 0
    if text in ("full", "full (per transformer block)", "full AC", "full uniform (1 layer)"):
        return "full", 0
    if text in ("selective core_attn", "selective + sequence parallel") or (text, trainer) == ("selective", "megatron"):
        return "selective", 0
    block = re.fullmatch(r"block: full recompute of (\d{1,6}) of (\d{1,6}) layers|full block, (\d{1,6}) layers", text)
    if block and stages == 1:
        repeated, whole = int(block[1] or block[3]), int(block[2] or layers)
        if 0 < repeated <= layers == whole:
            return "full", repeated if repeated < layers else 0
    raise ValueError(f"recompute: {shown(text)} is not modelled")


def recipe_of(precision: str, train_kind: str, optimizer: str, notes: str) -> Recipe:
    """Return the precision, adapters and overlap; in mixed precision of 16 bits, the trainer's own (None).

    The rank is all that is modelled of adapters: they lie beside every matrix, wherever the run had them.
    """
    if "in backward" in optimizer:
        raise ValueError("optimizer: steps within the backward pass are not modelled")
    kind, quantize = _precision_of(precision, notes), "4" if "nf4" in precision else None
    rank = 0
    if train_kind in ("lora", "qlora"):
        found = re.search(r"LoRA r(\d{1,4})\b", notes)
        if not found:
            raise ValueError("train_kind: the rank of its adapters is not given")
        rank = int(found[1])
    elif train_kind not in ("pretrain", "sft"):
        raise ValueError(f"train_kind: {shown(train_kind)} is not modelled")
    return Recipe(kind, "adamw-8bit" if "8bit" in optimizer else None, rank, quantize, "comm overlap OFF" not in notes)


def _precision_of(text: str, notes: str) -> str | None:
    if not text:
        raise ValueError("precision: not stated")
    if text == "bf16 (params, grads and states)" or (text == "bf16" and "precision PURE" in notes):
        return "bf16"
    if text in ("bf16", "fp16", "bf16 (amp)", "bf16 + nf4 base"):
        return None
    if re.match(r"(?:mx)?fp8\b|fp8_mx$", text) and "/" not in text:
        return "fp8-mixed"
    raise ValueError(f"precision: {shown(text)} is not modelled")


class Sharding(NamedTuple):
    """What ZeRO shards, and where."""

    zero_stage: int
    shard_within_node: bool = False
    offload_optimizer: bool = False


def sharding_of(text: str, optimizer: str, trainer: str, replicas: int, node_replicas: int) -> Sharding:
    """Return what is sharded, from the cell or else from the optimizer's.

    Megatron-DeepSpeed shards nothing unless it is said, and a single replica has nothing to shard.

    Args:
        text: the cell.
        optimizer: the optimizer's cell.
        trainer: the software.
        replicas: ranks that hold the same parameters.
        node_replicas: those of them in a node.
    """
    if not text:
        return _sharding_by_optimizer(optimizer, trainer, replicas)
    parts = re.search(r"(?:shard|^FSDP) (\d{1,6})\b", text)
    if parts and int(parts[1]) in (replicas, node_replicas):
        return Sharding(3, shard_within_node=int(parts[1]) != replicas)
    offloaded = re.search(r"CPU offload (\d{1,3})% of optimizer", text)
    share = int(offloaded[1]) if offloaded else 0
    if "istributed optimizer" in text and share in (0, 100):
        return Sharding(1, offload_optimizer=share == 100)
    full = "FULL_SHARD" in text or text in ("FSDP", "FSDP2", "FSDP (torchtune)")
    stage = 3 if full else 2 if "SHARD_GRAD_OP" in text else 0 if text == "DDP" else None
    if stage is None:
        raise ValueError(f"zero_or_fsdp: {shown(text)} is not modelled on {replicas} replicas, {node_replicas} a node")
    return Sharding(stage)


def _sharding_by_optimizer(optimizer: str, trainer: str, replicas: int) -> Sharding:
    if re.search(r"distributed (?:optimizer|Adam)", optimizer):
        return Sharding(1)
    if "no ZeRO" in optimizer or trainer == "megatron-deepspeed" or replicas == 1:
        return Sharding(0)
    raise ValueError("zero_or_fsdp: not stated")


def splits_sequence(source: str, recompute: str) -> bool:
    """Whether tensor-parallel ranks split the sequence between them."""
    return "sequence parallel" in recompute or not source.startswith(_WITHOUT_SEQUENCE_PARALLELISM)


def doubt_of(notes: str, confidence: str) -> str:
    """Return what the table itself says against learning from a row, "" where nothing."""
    words = next((f"its notes say {shown(word)}" for word in _DOUBTS if word in notes), "")
    return words or ("the table calls it partial" if confidence == "partial" else "")


def run_of(row: Row, number_of_row: int) -> Run:  # noqa: ARG001 - its rows have ids
    """Return the run of a row; a ValueError says why it is none."""
    source, notes, recompute = row["source"], row["notes"], row["recompute"]
    accelerator = accelerator_of(row["gpu"], row["gpu_unit"], source)
    seq_len, devices = stated(row, "seq_len"), stated(row, "gpus")
    sizes = {name: whole(row, name) for name in ("hidden", "layers", "heads", "kv_heads", "ffn", "vocab")}
    shape = shape_of(sizes, number(row, "n_params"), row["model"], notes, seq_len)
    machine = machine_of(accelerator, devices, whole(row, "gpus_per_node"))
    trainer = trainer_of(source, row["zero_or_fsdp"], notes, accelerator)
    plan = plan_of(row, shape, trainer, devices, machine.devices_per_node)
    recipe = recipe_of(row["precision"], row["train_kind"], row["optimizer"], notes)
    step_s = step_s_of(row, devices, stated(row, "global_batch_seqs") * seq_len)
    memory = number(row, "peak_mem_gib_per_gpu")
    held = memory * GIB if memory else None
    if step_s is None and held is None:
        raise ValueError("step_time_s: neither a time nor a rate nor memory was measured")
    of_tensors = source.startswith(OF_TENSORS)
    # of frozen weights in 8-bit training it is not said whether they are kept in 8 or in 16 bits
    is_known = "OOM" not in notes and not (recipe.lora_rank and recipe.precision == "fp8-mixed")
    assumes = "" if recompute else f"recompute: not stated, taken as {UNSTATED_RECOMPUTATION}"
    return Run(
        name=row["id"],
        source=source,
        trainer=trainer,
        shape=shape,
        seq_len=seq_len,
        machine=machine,
        plan=plan,
        recipe=recipe,
        step_s=step_s,
        reserved_bytes=None if of_tensors else held,
        allocated_bytes=held if of_tensors else None,
        fits=True if is_known and not assumes else None,
        why_unhealthy=doubt_of(notes, row["confidence"]),
        assumes=assumes,
    )


def plan_of(row: Row, shape: Shape, trainer: str, devices: int, devices_per_node: int) -> Plan:
    """Return the plan of a row, of which all degrees that it states agree."""
    tp, pp, cp = (stated(row, name) for name in ("tp", "pp", "cp"))
    rows, ep, chunks = stated(row, "micro_batch"), whole(row, "ep") or 1, whole(row, "vp") or 1
    if shape.num_experts and not row["ep"]:
        raise ValueError("ep: not stated of a mixture")
    if pp > 1 and not row["vp"] and re.search(r"VP (?:set|and|not)|and VP", row["notes"]):
        raise ValueError("vp: not stated")
    dp = data_parallel(devices, tp=tp, pp=pp, cp=cp)
    count = micro_batches(stated(row, "global_batch_seqs"), dp, rows)
    for column, implied in (("dp", dp), ("grad_accum_or_microbatches", count)):
        if whole(row, column) not in (None, implied):
            raise ValueError(f"{column}: {row[column]} is stated, {implied} follows from the rest")
    recompute = row["recompute"] or (UNSTATED_RECOMPUTATION if trainer in SELDOM_RECOMPUTING else "")
    name, repeated = recomputation_of(recompute, trainer, shape.num_layers, pp)
    in_node = max(min(devices_per_node // tp, dp * cp), 1)
    zero = sharding_of(row["zero_or_fsdp"], row["optimizer"], trainer, dp * cp, in_node)
    return Plan(
        num_stages=pp,
        num_micro_batches=count,
        batch_per_device=rows,
        tp=tp,
        cp=cp,
        ep=ep,
        recomputation=name,
        recomputed_layers=repeated,
        zero_stage=zero.zero_stage,
        shard_within_node=zero.shard_within_node,
        schedule="interleaved" if pp > 1 and chunks > 1 else "1f1b",
        virtual_stages=chunks if pp > 1 else 1,
        sequence_parallel=splits_sequence(row["source"], row["recompute"]),
        offload_optimizer=zero.offload_optimizer,
    )


def step_s_of(row: Row, devices: int, tokens: int) -> float | None:
    """Return the step's seconds, of which all that the row says of them agrees."""
    rate = number(row, "tokens_per_s_per_gpu")
    rates = (number(row, "tokens_per_s_total"), rate and rate * devices)
    told = [t for t in (number(row, "step_time_s"), *(r and tokens / r for r in rates)) if t]
    if told and max(told) > (1 + SPEED_TOLERANCE) * min(told):
        raise ValueError(f"step_time_s: time and rates tell steps of {min(told):g} s and of {max(told):g} s")
    return told[0] if told else None
