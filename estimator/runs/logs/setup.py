"""What a log says of its run outside its step lines, for a run record's template: batch, devices, plan.

Of each trainer the lines are those that it prints before it trains, as its source has them: `_print_args` of
megatron/training/arguments.py (NVIDIA/Megatron-LM) and Megatron-DeepSpeed, a key and dots before each value; `Trainer`
of torchtitan/train.py (pytorch/torchtitan); `Trainer._inner_training_loop` of src/transformers/trainer.py
(huggingface/transformers); `DistributedTrainer.pre_training` of src/nanotron/trainer.py (huggingface/nanotron);
hyperparameters of composer/trainer/trainer.py (mosaicml/composer), and the configuration that llm-foundry prints
(`log_config` of llmfoundry/utils/config_utils.py); and the plan that the MoAI platform prints. A line that says nothing
of this is passed over.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from estimator.work.plan import parse_fields
from hardware.catalog import Catalog

Told = dict[str, Any]
"""Keys of a run record, those of its plan with `plan.` before them, and `BESIDE`."""

BESIDE = frozenset({"rows", "devices_per_node"})
"""Rows of a step, and devices of a node: of these the keys of a run record follow."""

_ARGUMENT = re.compile(r"(?:^|\s)(?P<key>[a-z][a-z0-9_]{1,60}) \.{2,60} ?(?P<value>[\w.+-]{1,80})\s*$", re.ASCII)
_COUNT = re.compile(r"[1-9]\d{0,8}", re.ASCII)

_ARGUMENTS = {
    "seq_length": "seq_len",
    "global_batch_size": "rows",
    "train_iters": "num_steps",
    "world_size": "num_devices",
    "micro_batch_size": "plan.batch_per_device",
    "pipeline_model_parallel_size": "plan.num_stages",
    "tensor_model_parallel_size": "plan.tensor_parallel",
    "context_parallel_size": "plan.context_parallel",
    "expert_model_parallel_size": "plan.expert_parallel",
}
"""Of Megatron-LM, and what each is here."""

_WORDS = {
    ("recompute_granularity", "full"): ("plan.recomputation", "full"),
    ("recompute_granularity", "selective"): ("plan.recomputation", "selective"),
    ("recompute_granularity", "None"): ("plan.recomputation", "none"),
    ("use_distributed_optimizer", "True"): ("plan.zero_stage", 1),
    ("use_distributed_optimizer", "False"): ("plan.zero_stage", 0),
    ("sequence_parallel", "True"): ("plan.sequence_parallel", True),
    ("sequence_parallel", "False"): ("plan.sequence_parallel", False),
    ("bf16", "True"): ("precision", "bf16-mixed"),
    ("fp16", "True"): ("precision", "fp16-mixed"),
    ("optimizer", "adam"): ("optimizer", "adamw"),
}

_LINES = (
    # Megatron-LM: "using world size: 16, data-parallel size: 4, ..., tensor-model-parallel size: 2, ..."
    (r"^\W*using world size: (\d{1,7}), ", ("num_devices",)),
    (r"\busing world size: .*\btensor-model-parallel size: (\d{1,6})\b", ("plan.tensor_parallel",)),
    (r"\busing world size: .*\bpipeline-model-parallel size: (\d{1,6})\b", ("plan.num_stages",)),
    (r"\| global batch size:\s{1,9}(\d{1,9}) \|", ("rows",)),
    # torchtitan: "... local batch size 8, global batch size 64, gradient accumulation steps 1, sequence length 2048,"
    (r"\bglobal batch size (\d{1,9}), ", ("rows",)),
    (r"\bgradient accumulation steps (\d{1,9}), sequence length (\d{1,9}), ", ("plan.num_micro_batches", "seq_len")),
    (r"\blocal batch size (\d{1,9}), global batch size \d{1,9}, ", ("plan.batch_per_device",)),
    (r"\bpp=(\d{1,6}), dp_replicate=\d{1,6}, .*\btp=(\d{1,6})\b", ("plan.num_stages", "plan.tensor_parallel")),
    # transformers
    (r"^\W*Instantaneous batch size per device = (\d{1,9})$", ("plan.batch_per_device",)),
    (r"\bTotal train batch size \(w\. parallel, distributed & accumulation\) = (\d{1,9})$", ("rows",)),
    (r"\bGradient Accumulation steps = (\d{1,9})$", ("plan.num_micro_batches",)),
    (r"\bTotal optimization steps = (\d{1,9})$", ("num_steps",)),
    # Composer and llm-foundry
    (r"^num_nodes: (\d{1,6})$", ("num_nodes",)),
    (r"^num_[a-z]{2,4}s_per_node: (\d{1,4})$", ("devices_per_node",)),
    (r"^global_train_batch_size: (\d{1,9})$", ("rows",)),
    (r"^max_seq_len: (\d{1,9})$", ("seq_len",)),
    (r"\bTrain trainer/device_train_microbatch_size: (\d{1,9})$", ("plan.batch_per_device",)),
    # nanotron
    (r"\bmbs: (\d{1,9}) \| grad_accum: (\d{1,9}) \|", ("plan.batch_per_device", "plan.num_micro_batches")),
    (r"\bsequence_length: (\d{1,9}) \| global_batch_size: (\d{1,9}) \|", ("seq_len", "rows")),
    (r"\bglobal_batch_size: \d{1,9} \| train_steps: (\d{1,9}) \|", ("num_steps",)),
)
_COMPILED = tuple((re.compile(pattern, re.ASCII), keys) for pattern, keys in _LINES)

_DEVICE = re.compile(r"\bCUDA capacity: (.{3,80}?) with \d{1,5}\.\d{1,3}GiB memory", re.ASCII)
_PLATFORM = re.compile(r"\[info\] ((?:num_stages : |No PP, )[\w :,]{1,300})$", re.ASCII)


def _of_argument(line: str) -> Told:
    found = _ARGUMENT.search(line)
    if found is None:
        return {}
    key, value = found["key"], found["value"]
    if (key, value) in _WORDS:
        name, told = _WORDS[key, value]
        return {name: told}
    if key in _ARGUMENTS and _COUNT.fullmatch(value):
        return {_ARGUMENTS[key]: int(value)}
    return {}


def _of_sentence(line: str) -> Told:
    told: Told = {}
    for pattern, keys in _COMPILED:
        if found := pattern.search(line):
            told |= {key: int(count) for key, count in zip(keys, found.groups(), strict=True) if int(count)}
    return told


def _of_platform(line: str) -> Told:
    if not (found := _PLATFORM.search(line)):
        return {}
    known = [item for item in found[1].split(", ") if not item.startswith("distribute_low_prec_param")]
    try:
        fields = parse_fields(", ".join(known))
    except ValueError:  # a word of a version that is not known
        return {}
    return {f"plan.{'tensor_parallel' if name == 'tp' else name}": value for name, value in fields.items()}


def setup_of(lines: Iterable[str], catalog: Catalog, known: Told | None = None) -> Told:
    """Return what the lines of a log say of its run; of two that differ the first counts, what is known before all.

    Args:
        lines: of the log.
        catalog: in which an accelerator is looked for by the name that its driver gives it.
        known: what its steps say.
    """
    told: Told = dict(known or {})
    readers: tuple[Callable[[str], Told], ...] = (_of_argument, _of_sentence, _of_platform)
    for line in lines:
        for read in readers:
            told = read(line) | told
        if "accelerator" not in told and (device := _DEVICE.search(line)):
            told |= _accelerator(device[1], catalog)
    if "num_nodes" in told and "devices_per_node" in told:
        told = {"num_devices": told["num_nodes"] * told["devices_per_node"]} | told
    return _followed(told) | told


def _accelerator(name: str, catalog: Catalog) -> Told:
    try:
        return {"accelerator": catalog.accelerator_named(name).id}
    except ValueError:
        return {}


def _followed(told: Mapping[str, Any]) -> Told:
    """Return what follows from the rest: tokens of a step, and how many micro-batches its rows are."""
    found: Told = {}
    rows, each = told.get("rows"), told.get("plan.batch_per_device")
    if rows and told.get("seq_len"):
        found["tokens_per_step"] = rows * told["seq_len"]
    ways = told.get("plan.num_stages", 1) * told.get("plan.tensor_parallel", 1) * told.get("plan.context_parallel", 1)
    devices, micro_batches = told.get("num_devices"), told.get("plan.num_micro_batches")
    if rows and each and devices and not micro_batches and devices % ways == 0:
        replicas = devices // ways
        if rows % (each * replicas) == 0:
            found["plan.num_micro_batches"] = rows // (each * replicas)
    return found
