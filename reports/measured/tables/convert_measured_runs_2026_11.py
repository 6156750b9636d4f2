"""Runs of `measured_runs_2026_11.csv`: published runs that no stack is fitted to.

What a row does not say is left open, as several values in a cell: recomputation, the rank and the targets of adapters,
ZeRO, degrees, the length of rows. What cannot be said of it at all is its reason to be left out.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from convert_measured_runs import SPEED_TOLERANCE
from models_2026_11 import shape_of
from raw import CATALOG, MOST_PER_SERVER, Row, number, stated, whole

from estimator.formulas.counts import adapter_matmuls
from estimator.runs.measured import Run
from estimator.runs.run_table import run_of as run_of_cells
from estimator.work.shape import TARGETS, Shape
from hardware.errors import shown
from hardware.units import GIB

_TRAINERS = (
    ("LUMI", "megatron-deepspeed"),
    ("BAAI FlagPerf", "megatron"),
    ("torchao low-bit", "torchtune"),
    ("torchao", "torchtitan"),
    ("torchtitan", "torchtitan"),
    ("PrimeIntellect", "prime-rl"),
    ("LitGPT", "litgpt"),
    ("HF PEFT", "transformers"),
    ("NVIDIA NeMo AutoModel", "nemo-automodel"),
)

_DEVICES = (
    (r"80GB class.*", ("a100-sxm-80gb", "h100-sxm-80gb")),
    (r"B200/GB200-class.*", ("b200-sxm-180gb", "gb200-186gb")),
)
"""Cells that name no device, and which they may be; others are ids of the catalog in their own spelling."""

_MATRICES = {f"{name}_proj": name for name in TARGETS}

_OPEN_TARGETS = f"q v/{' '.join(TARGETS)}"

_OPEN_RANK = "8/32"
"""Ranks between which those that are not stated lie: of LitGPT's recipes, these two.  # assumed of others"""

_LORA_KINDS = ("lora", "qlora", "rl-trainer lora")
_FULL_KINDS = ("pretrain", "sft full", "rl-trainer full", "full")

_PEFT_PARAMETERS = re.compile(r"([\d,]+) trainable")
_WHILE_TRAINING = re.compile(r"99th pct ([\d.]+)")
_MEAN_ROW = re.compile(r"mean (\d+) per row")
_FIRST_STAGE = re.compile(r"max allocated/max reserved GiB per stage: stage 0: ([\d.]+)/")
_UNEVEN = re.compile(r"as (\d+) x \d+ \+ (\d+)")


def software_of(source: str, notes: str, sharding: str, vendor: str) -> str:
    """Return the software of a row."""
    if source.startswith("MLPerf"):
        return "tinygrad" if "tinygrad" in notes else f"mlperf-{vendor.casefold()}"
    if source.startswith("Frontier"):
        return "torchtitan" if "torchtitan" in notes or "HSDP" in sharding else "fsdp"
    if source.startswith("ms-swift"):
        return "transformers" if "DeepSpeed" in sharding or "Ulysses" in sharding else "megatron"
    if "deepspeed" in notes or sharding.startswith("ZeRO"):
        return "deepspeed"
    return next((trainer for begin, trainer in _TRAINERS if source.startswith(begin)), "other")


def accelerators_of(gpu: str) -> tuple[str, ...]:
    """Return the ids that a cell may mean: the one in its spelling, or those that begin with it."""
    for pattern, ids in _DEVICES:
        if re.fullmatch(pattern, gpu):
            return ids
    slug = re.sub(r"[\s_]+", "-", gpu.partition(" (")[0].strip()).casefold()
    ids = [a.id for a in CATALOG.accelerators]
    family, _, size = slug.rpartition("-")
    found = [slug] if slug in ids else [i for i in ids if i.startswith(f"{slug}-")]
    found = found or [i for i in ids if size.endswith("gb") and i.startswith(f"{family}-") and i.endswith(f"-{size}")]
    if not found:
        raise ValueError(f"gpu: {shown(gpu)} has no record in the catalog")
    return tuple(found)


def recomputation_of(text: str, layers: int) -> dict[str, str]:
    """Return the cells of what is repeated: by op and by what is offloaded, it lies between nothing and all."""
    if not text:
        return {"recomputation": "none/selective/full", "assumes": "recomputation: not stated"}
    if text.startswith("full"):
        offloads = "offload" in text
        return {"recomputation": "full"} | ({"assumes": "activations: not offloaded"} if offloads else {})
    if text == "selective per-op":
        return {"recomputation": "none/full", "assumes": "recomputation: some ops of each layer"}
    if every := re.match(r"selective every (\d+)", text):
        return {"recomputation": "full", "recomputed_layers": str(layers // int(every[1]))}
    if text in ("none", "selective"):
        return {"recomputation": text}
    raise ValueError(f"recompute: {shown(text)} is not modelled")


def precision_of(text: str, kind: str) -> dict[str, str]:
    """Return the cells of precision and of quantized weights."""
    if re.search(r"(?:mx|nv)?fp4\b", text) and "fp8" not in text:
        raise ValueError(f"precision: {shown(text)}: products in 4 bits are not modelled")
    cells = {"quantize": "4"} if "nf4" in text else {}
    if re.search(r"fp8|float8", text):
        return cells | {"precision": "fp8-mixed"}
    if text == "fp32":
        return cells | {"precision": "fp32"}
    if "BF16_Optimizer" in text:
        return cells | {"precision": "bf16-optimizer"}
    if text == "bf16 flag F":
        return cells | {"precision": "fp32/bf16-mixed", "assumes": "precision: what the flag says is not explained"}
    if re.match(r"bf16-true|bf16 throughout|bfloat16", text) and kind not in _LORA_KINDS:
        return cells | {"precision": "bf16"}
    if re.match(r"bf16|bfloat16|amp|default", text):
        return cells
    raise ValueError(f"precision: {shown(text)} is not known")


def adapters_of(text: str, kind: str, notes: str, shape: Shape) -> dict[str, str]:
    """Return the cells of adapters; those of other kinds are taken as low-rank ones of about as many parameters."""
    if kind in _FULL_KINDS:
        return {}
    targets = " ".join(name for word, name in _MATRICES.items() if word in text)
    rank = re.search(r"\br(\d+)\b", text)
    if kind in _LORA_KINDS:
        if re.search(r"\*_proj|all-linear", text):
            targets = " ".join(TARGETS)
        told = {"lora_rank": rank[1] if rank else _OPEN_RANK, "lora_targets": targets or _OPEN_TARGETS}
        return told if rank and targets else told | {"assumes": "adapters: rank or targets not stated"}
    trainable = _PEFT_PARAMETERS.search(notes)
    targets = targets or " ".join(TARGETS)
    if not trainable:
        raise ValueError(f"train_kind: {shown(kind)} is not modelled")
    one = replace(shape, lora_rank=1, lora_targets=tuple(targets.split()))
    each = shape.num_layers * sum(m.in_size * m.out_size for m in adapter_matmuls(one))
    nearest = min(max(round(int(trainable[1].replace(",", "")) / each), 1), 1024)
    doubt = f"adapters: {kind} is no LoRA, taken as LoRA of rank {nearest}"
    return {"lora_rank": str(nearest), "lora_targets": targets, "doubt": doubt}


def sharding_of(text: str, software: str, replicas: int) -> dict[str, str]:
    """Return the cells of what ZeRO shards; where that is not stated, of what software of its kind does."""
    if "offload" in text:
        raise ValueError(f"zero_or_fsdp: {shown(text)} is not modelled")
    if replicas == 1 or text in ("none", "DDP"):
        return {"zero_stage": "0"}
    if text.startswith("HSDP"):
        return {"zero_stage": "3", "shard_within_node": "false/true", "assumes": f"sharding: {text}"}
    if re.search(r"FSDP|ZeRO-3", text):
        return {"zero_stage": "3"}
    if found := re.search(r"ZeRO-(\d)", text):
        return {"zero_stage": found[1]}
    usual = "1" if software.startswith("mlperf") else "0/1" if software == "megatron" else "0/1/3"
    return {"zero_stage": usual, "assumes": "sharding: not stated"}


def memory_of(row: Row) -> dict[str, str]:
    """Return the cells of memory, as whatever its source read."""
    notes, held = row["notes"], number(row, "peak_mem_gib_per_gpu")
    if "evaluation/generation" in notes:  # the peak is the evaluation's; what training reserved is stated beside it
        found = _WHILE_TRAINING.search(notes)
        return {"reserved_bytes": str(float(found[1]) * GIB)} if found else {}
    if not held:
        return {}
    if "allocated, not reserved" in notes:
        kind = "allocated_bytes"
    elif "nvidia-smi" in notes:
        kind = "used_bytes"
    elif re.search(r"max(?:_memory)?[_ ]reserved|peak reserved", notes) and "which of them" not in notes:
        kind = "reserved_bytes"
    else:
        kind = "held_bytes"
    of_tensors = _FIRST_STAGE.search(notes)  # beside the reserved
    told = {"allocated_bytes": str(float(of_tensors[1]) * GIB)} if of_tensors else {}
    return told | {kind: str(held * GIB)}


def time_of(row: Row) -> dict[str, str]:
    """Return the cell of seconds or of a rate, of which all that the row says agree."""
    devices, step_s = stated(row, "gpus"), number(row, "step_time_s")
    each, total = number(row, "tokens_per_s_per_gpu"), number(row, "tokens_per_s_total")
    rate = total or (each and each * devices)
    if each and total and not 1 / (1 + SPEED_TOLERANCE) < each * devices / total < 1 + SPEED_TOLERANCE:
        raise ValueError(f"tokens_per_s: {total:g} are not {devices} times {each:g}")
    if step_s and not (rate and "step_time_s" in row["derived"]):
        return {"step_s": str(step_s)}
    return {"tokens_per_s": str(rate)} if rate else {}


def plan_cells(row: Row, software: str, shape: Shape) -> dict[str, str]:
    """Return the cells of degrees, batch and schedule; what is not stated is left open."""
    devices, told = stated(row, "gpus"), []
    degree = {name: row[name] or ("1" if devices == 1 or name != "tp" else "1/2/4/8") for name in ("tp", "pp", "cp")}
    if "/" in degree["tp"]:
        told.append("degrees")
    if "SP 8" in row["zero_or_fsdp"]:
        degree |= {"tp": "1", "cp": "8"}
    cells = {"num_stages": degree["pp"], "tp": degree["tp"], "cp": degree["cp"]}
    if shape.num_experts:
        known = row["ep"] or ("1" if devices == 1 or "EP1" in row["notes"] else "")
        cells["ep"] = known or f"1/{min(devices, 8)}"
        told += [] if known else ["expert parallelism"]
    cells["batch_per_device"] = row["micro_batch"] or "1/2"
    if row["global_batch_seqs"]:
        cells["global_batch"] = row["global_batch_seqs"]
    else:
        cells["num_micro_batches"] = row["grad_accum_or_microbatches"] or "1/8/64"
    if not (row["micro_batch"] and (row["global_batch_seqs"] or row["grad_accum_or_microbatches"])):
        told.append("batch")
    chunks = whole(row, "vp") or 1
    if chunks > 1 and stated(row, "pp") > 1:
        cells |= {"schedule": "interleaved", "virtual_stages": str(chunks)}
    if uneven := _UNEVEN.search(row["notes"]):
        cells |= {"first_layers": uneven[1], "last_layers": uneven[2]}
    if software == "megatron-deepspeed":
        cells["sequence_parallel"] = "false"  # older than it
    return cells | ({"assumes": f"{', '.join(told)}: not stated"} if told else {})


def doubt_of(row: Row) -> str:
    """Return what the row itself says against learning from its speed."""
    if "power limited" in row["gpu"]:
        return "its devices were power limited, to what is not printed"
    if "lag" in row["notes"] and row["train_kind"].startswith("rl-trainer"):
        return "its step is a policy's: log-probabilities and a loss over up to 4 adapters"
    if row["source"].startswith("HF PEFT"):
        return "rows are padded to the longest of each batch, and their mean is that of unpadded ones"
    return ""


def cells_of(row: Row) -> Mapping[str, str]:
    """Return the cells of a row in the format `runs/1`; a ValueError says why it is no run."""
    source, notes, kind = row["source"], row["notes"], row["train_kind"]
    accelerators = accelerators_of(row["gpu"])
    device = CATALOG.accelerator(accelerators[0])
    if "Muon" in row["optimizer"] or "4-bit" in row["optimizer"]:
        raise ValueError(f"optimizer: {shown(row['optimizer'])} is not modelled")
    shape, of_shape = shape_of(row)
    software = software_of(source, notes, row["zero_or_fsdp"], device.vendor)
    devices, litgpt = stated(row, "gpus"), source.startswith("LitGPT")
    if litgpt:
        devices = 1  # its rows of four devices ran on one, as they say
    per_node = min(whole(row, "gpus_per_node") or MOST_PER_SERVER, CATALOG.node_of(device.id).num_devices)
    row = {**row, "gpus": str(devices), "recompute": row["recompute"] or ("none" if litgpt else "")}
    replicas = devices // (whole(row, "tp") or 1) // (whole(row, "pp") or 1)
    parts = (
        {"id": row["id"], "source": source, "software": software, "notes": row["url_or_path"]},
        of_shape,
        {"accelerator": "/".join(accelerators), "num_devices": str(devices), "num_nodes": str(-(-devices // per_node))},
        rows_of(row, shape),
        plan_cells(row, software, shape),
        recomputation_of(row["recompute"], shape.num_layers),
        sharding_of(row["zero_or_fsdp"], software, replicas),
        precision_of(row["precision"], kind),
        adapters_of(row["precision"], kind, notes, shape),
        {"compiles": "true"} if re.search(r"\+ compile|torch\.compile", row["precision"] + notes) else {},
        {"compiles": "false"}
        if re.search(r"(?m)eager$|nocompile|compile False", f"{row['precision']}\n{notes}")
        else {},
        {} if "OOM" in notes else time_of(row) | memory_of(row),
        {"fits": "false" if "OOM" in notes else "true"},
        {"doubt": doubt_of(row)},
    )
    return _joined(parts)


def rows_of(row: Row, shape: Shape) -> dict[str, str]:
    """Return the cells of the length of rows; where they are ragged, that of the longest is stated."""
    longest = row["seq_len"]
    if not longest:  # the context that models of one time were trained with, or half of it
        usual = "4096/8192" if shape.vocab_size > 100_000 else "2048/4096"
        return {"seq_len": usual, "assumes": "length of rows: not stated"}
    if "batch not printed" in row["notes"]:
        return {"seq_len": f"{longest}/{2 * int(longest)}", "assumes": "length of rows: not printed"}
    if mean := _MEAN_ROW.search(row["notes"]):
        return {"seq_len": mean[1], "longest_row": longest}
    if "ragged" in row["notes"] and time_of(row):
        told = f"mean length of rows: not stated, from an eighth of {longest}"
        return {"seq_len": f"{longest}/{int(longest) // 8}", "longest_row": longest, "assumes": told}
    return {"seq_len": longest}


def _joined(parts: tuple[Mapping[str, str], ...]) -> dict[str, str]:
    """Return cells together; of doubts and of what is assumed all are told."""
    cells: dict[str, str] = {}
    for part in parts:
        for name, cell in part.items():
            both = name in ("assumes", "doubt") and cells.get(name) and cell
            cells[name] = f"{cells[name]}; {cell}" if both else cell or cells.get(name, "")
    return cells


def run_of(row: Row, number_of_row: int) -> Run:  # noqa: ARG001 - its rows have ids
    """Return the run of a row; a ValueError says why it is none."""
    return run_of_cells(cells_of(row), row["id"], CATALOG)
