"""Configurations of other software, as options of `estimate`: what is read of them, and what is not.

Of torchtitan (TOML), Axolotl and LLaMA-Factory (YAML), and of the training arguments of transformers and TRL (JSON, or
YAML). A key that changes what is estimated and cannot be told by an option is listed as not used, as is every other
that is not known here: nothing is passed over in silence.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from estimator.api.options import Options, PathLike, load_hardware, names_all
from hardware.errors import shown_path
from hardware.files import read_regular_file
from hardware.models import Flavor

MOST_BYTES = 2**20
"""Of a configuration."""


@dataclass(slots=True)
class Configuration:
    """What a configuration says, as options of `estimate`."""

    software: str
    model: str | None = None
    options: Options = field(default_factory=Options)
    plan: dict[str, str] = field(default_factory=dict)
    """Fields of the plan that it fixes, as texts."""
    rows_per_rank: int | None = None
    """Rows of a step on each data-parallel rank, where the batch over all devices is not stated."""
    used: list[str] = field(default_factory=list)
    """Its keys that were read, with their values."""
    unused: list[str] = field(default_factory=list)
    """Those that were not."""

    def on(self, num_devices: int) -> Options:
        """Return the options on so many devices: the batch over all of them follows from the rows of each rank."""
        found = Options(**self.options)
        if self.rows_per_rank is not None:
            ways = [int(self.plan.get(name, "1")) for name in ("num_stages", "tp", "cp")]
            ranks = num_devices // (ways[0] * ways[1] * ways[2])
            if ranks * ways[0] * ways[1] * ways[2] != num_devices:
                given = " * ".join(map(str, ways))
                raise ValueError(f"from: num_stages * tp * cp = {given} does not divide {num_devices} devices")
            found["batch"] = self.rows_per_rank * ranks
        if self.plan:
            found["plan"] = ",".join(f"{name}={value}" for name, value in self.plan.items())
        return found


def read_configuration(path: PathLike) -> Configuration:
    """Return what a configuration of another software says; its content tells whose it is.

    Raises:
        ValueError: it cannot be read, is of no known form, or a value is none that its software takes.
    """
    where = f"from {shown_path(Path(path))}"
    document = _document(Path(path), where)
    reader = next((read for keys, read in _READERS if any(key in document for key in keys)), None)
    if reader is None:
        raise ValueError(
            f"{where}: is no configuration of torchtitan, Axolotl, LLaMA-Factory or transformers; it has none of "
            f"{', '.join(key for keys, _ in _READERS for key in keys)}"
        )
    return reader(_Taken(document, where))


def num_devices_of(where: Flavor | str | list[str] | None, options: Options) -> int:
    """Return how many devices a question is about.

    Raises:
        ValueError: it is about several flavors, or none is named.
    """
    devices = options.get("devices")
    if where is None and devices is not None:
        return devices
    if isinstance(where, Flavor):
        return where.num_devices
    if not isinstance(where, str) or names_all(where):
        raise ValueError(
            "from: the rows of a step depend on the devices; give one flavor, or --accelerator and --devices"
        )
    return load_hardware(options.get("catalog", ())).flavor(where).num_devices


def _document(path: Path, where: str) -> dict[str, Any]:
    try:
        text = read_regular_file(path, MOST_BYTES).decode("utf-8-sig")
    except UnicodeError as error:
        raise ValueError(f"{where}: is not text in UTF-8; save it so") from error
    except OSError as error:
        raise ValueError(f"{where}: cannot be read; check the path") from error
    except ValueError as error:
        raise ValueError(f"from {error}") from error
    try:
        found = tomllib.loads(text) if path.suffix == ".toml" else _json_or_yaml(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: is no TOML, JSON or YAML that can be read; correct it there") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{where}: holds no keys and values; give a configuration")
    return found


def _json_or_yaml(text: str) -> Any:
    if text.lstrip().startswith("{"):
        return json.loads(text)
    import yaml  # type: ignore[import-untyped] # noqa: PLC0415 - only such files need it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


class _Taken:
    """A configuration whose keys are taken one by one; what was not taken is told."""

    def __init__(self, document: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._values = dict(_flat(document))
        self._used: list[str] = []

    def take(self, *keys: str) -> Any:
        """Return the value of the first key that is there and says something, else None."""
        for key in keys:
            value = self._values.pop(key, None)
            if value is not None and value != "":
                self._used.append(f"{key} = {value}")
                return value
        return None

    def count(self, *keys: str) -> int | None:
        """Return a positive whole number, None where none is told."""
        value = self.take(*keys)
        if value is None:
            return None
        if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
            raise ValueError(f"{self.where}: {keys[0]} = {value!r} is not a positive whole number; correct it there")
        return int(value)

    def told(self, software: str, **found: Any) -> Configuration:
        """Return what was taken, and what was left."""
        told = {name: value for name, value in found.pop("options", {}).items() if value is not None}
        options = cast("Options", told)
        plan = {name: str(value) for name, value in found.pop("plan", {}).items() if value is not None}
        left = [f"{key} = {value}" for key, value in self._values.items() if value not in (None, "", False, [], {})]
        return Configuration(software, options=options, plan=plan, used=self._used, unused=left, **found)


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested tables under dotted keys."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{before}{key}.")
        else:
            pairs.append((f"{before}{key}", value))
    return pairs


# --- torchtitan -------------------------------------------------------------------------------------------------------

TORCHTITAN_MODELS = {
    ("llama3", "8b"): "meta-llama/Meta-Llama-3-8B",
    ("llama3", "70b"): "meta-llama/Llama-3.1-70B",
    ("llama3", "405b"): "meta-llama/Llama-3.1-405B",
}
"""Of `model.name` and `model.flavor`.  # documented: torchtitan/models/llama3; the shape of 8B is that of Llama 3"""

_SCHEDULES = {"1f1b": "1f1b", "gpipe": "gpipe", "interleaved1f1b": "interleaved"}
"""Of `parallelism.pipeline_parallel_schedule`, which names classes of torch.distributed.pipelining."""


def _torchtitan(taken: _Taken) -> Configuration:
    """Return what a configuration of torchtitan says (torchtitan/config/job_config.py)."""
    name, flavor = taken.take("model.name"), str(taken.take("model.flavor")).casefold()
    stages = taken.count("parallelism.pipeline_parallel_degree", "experimental.pipeline_parallel_degree")
    rows = taken.count("training.local_batch_size", "training.batch_size") or 1
    whole = taken.take("training.global_batch_size")
    batch = whole if isinstance(whole, int) and whole > 0 else None
    shards = taken.take("parallelism.data_parallel_shard_degree", "training.data_parallel_shard_degree")
    copies = taken.take("parallelism.data_parallel_replicate_degree", "training.data_parallel_replicate_degree")
    plan = {
        "num_stages": stages,
        "tp": taken.count("parallelism.tensor_parallel_degree", "training.tensor_parallel_degree"),
        "cp": taken.count("parallelism.context_parallel_degree", "experimental.context_parallel_degree"),
        "ep": taken.count("parallelism.expert_parallel_degree"),
        "recomputation": _recomputation(taken),
        "zero_stage": 0 if shards == 1 else 3,
        "shard_within_node": "true" if isinstance(copies, int) and copies > 1 else None,
    }
    if stages in (None, 1):
        plan["batch_per_device"] = rows
    else:
        schedule = str(taken.take("parallelism.pipeline_parallel_schedule") or "1F1B").casefold()
        plan["schedule"] = _SCHEDULES.get(schedule)
    return taken.told(
        "torchtitan",
        model=TORCHTITAN_MODELS.get((name, flavor)),
        rows_per_rank=None if batch else rows,
        options={
            "seq_len": taken.count("training.seq_len"),
            "batch": batch,
            "steps": taken.count("training.steps"),
            "precision": "fp8-mixed" if "float8" in str(taken.take("model.converters")) else None,
            "compiles": taken.take("compile.enable", "training.compile"),
        },
        plan=plan,
    )


def _recomputation(taken: _Taken) -> str | None:
    mode = taken.take("activation_checkpoint.mode")
    if mode == "selective":
        which = taken.take("activation_checkpoint.selective_ac_option")
        raise ValueError(
            f"{taken.where}: activation_checkpoint.mode = selective (option {which or '2'}) keeps some operators' "
            "results, or every other layer's, which is not modelled; set none or full: the truth lies between them"
        )
    return mode if mode in ("none", "full") else None


# --- transformers and what stands on it -------------------------------------------------------------------------------

_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw-8bit",
    "adamw_bnb_8bit": "adamw-8bit",
    "adamw_torch_8bit": "adamw-8bit",
    "adamw_torch_4bit": "adamw-4bit",
    "paged_adamw_8bit": "paged-adamw-8bit",
    "muon": "muon",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
"""Of `optim`, as `transformers.training_args.OptimizerNames` spells them."""


def _optimizer(name: object, taken: _Taken) -> str | None:
    if name is None:
        return None
    found = _OPTIMIZERS.get(str(name).casefold())
    if found is None:
        raise ValueError(f"{taken.where}: optimizer {name!r} is not modelled; use one of {', '.join(_OPTIMIZERS)}")
    return found


def _zero_stage(taken: _Taken) -> int:
    """Return what is sharded: the stage in the name of DeepSpeed's file, or FSDP's strategy; 0 where none is told."""
    deepspeed = taken.take("deepspeed")
    if isinstance(deepspeed, str):
        found = re.search(r"z(?:ero)?_?([0-3])", Path(deepspeed).name)
        if found is None:
            raise ValueError(f"{taken.where}: deepspeed = {deepspeed} does not tell its stage; add --plan zero_stage=N")
        return int(found[1])
    fsdp = str(taken.take("fsdp") or "")
    version = taken.take("fsdp_version", "fsdp_config.fsdp_version")
    strategy = str(taken.take("fsdp_config.fsdp_sharding_strategy") or "").casefold()
    reshards = taken.take("fsdp_config.reshard_after_forward")
    if not fsdp.strip("[]") and version is None and not strategy:
        return 0
    return 2 if reshards is False or "shard_grad_op" in (strategy, *re.findall(r"\w+", fsdp)) else 3


def _refuse_offload(taken: _Taken) -> None:
    if taken.take("fsdp_config.fsdp_offload_params", "fsdp_config.offload_params") is True:
        raise ValueError(
            f"{taken.where}: fsdp_offload_params keeps the parameters in host memory, which is not modelled; set it to "
            "false (offload_optimizer=true in --plan keeps the optimizer there)"
        )


def _precision(taken: _Taken) -> str | None:
    bf16, fp16 = taken.take("bf16"), taken.take("fp16")
    return "bf16-mixed" if bf16 in (True, "auto", "full") else "fp16-mixed" if fp16 is True else None


def _common(taken: _Taken, batch_key: str, software: str, model: object, **options: Any) -> Configuration:
    """Return what is told alike by all that stands on transformers; rows of a device default to its 8, steps to 1."""
    rows, accumulated = taken.count(batch_key) or 8, taken.count("gradient_accumulation_steps") or 1
    limit, epochs = taken.take("max_steps"), taken.take("num_train_epochs", "num_epochs")
    steps = limit if isinstance(limit, int) and limit > 0 else None
    compiles = taken.take("torch_compile")
    _refuse_offload(taken)
    return taken.told(
        software,
        model=None if model is None else str(model),
        rows_per_rank=rows * accumulated,
        options={
            **options,
            "steps": steps,
            "epochs": max(round(float(epochs)), 1) if epochs is not None and steps is None else None,
            "precision": _precision(taken),
            "compiles": compiles if isinstance(compiles, bool) else None,
        },
        plan={
            "tp": taken.count("tensor_parallel_size"),
            "cp": taken.count("context_parallel_size"),
            "batch_per_device": rows,
            "num_micro_batches": accumulated,
            "recomputation": "full" if taken.take("gradient_checkpointing") in (True, "unsloth") else "none",
            "zero_stage": _zero_stage(taken),
        },
    )


def _loaded_bits(taken: _Taken) -> str | None:
    """Return in how many bits frozen weights are loaded, as Axolotl and TRL say it."""
    in_4, in_8 = taken.take("load_in_4bit") is True, taken.take("load_in_8bit") is True
    return "4" if in_4 else "8" if in_8 else None


def _targets(taken: _Taken, *keys: str, usual: str | None) -> str | None:
    """Return the modules that adapters lie beside, as a list or a text tells them; else what the software takes."""
    told = taken.take(*keys)
    if told is None:
        return usual
    names = told if isinstance(told, list) else str(told).split(",")
    text = ",".join(str(name).strip() for name in names)
    return "all-linear" if text == "all" else text


def _axolotl(taken: _Taken) -> Configuration:
    """Return what a configuration of Axolotl says (its docs/config reference)."""
    model, adapter = taken.take("base_model"), taken.take("adapter")
    rank = taken.count("lora_r") if adapter in ("lora", "qlora") else None
    quantized = _loaded_bits(taken)
    everywhere = "all-linear" if taken.take("lora_target_linear") is True else "default"
    return _common(
        taken,
        "micro_batch_size",
        "Axolotl",
        model,
        seq_len=taken.count("sequence_len"),
        lora=rank,
        lora_targets=_targets(taken, "lora_target_modules", usual=everywhere) if rank else None,
        quantize=quantized if rank else None,
        optimizer=_optimizer(taken.take("optimizer"), taken),
    )


def _llama_factory(taken: _Taken) -> Configuration:
    """Return what a configuration of LLaMA-Factory says (src/llamafactory/hparams)."""
    model, kind = taken.take("model_name_or_path"), taken.take("finetuning_type") or "lora"
    if kind not in ("full", "lora"):
        raise ValueError(f"{taken.where}: finetuning_type = {kind!r} is not modelled; use full or lora")
    bits = taken.take("quantization_bit")
    found = _common(
        taken,
        "per_device_train_batch_size",
        "LLaMA-Factory",
        model,
        seq_len=taken.count("cutoff_len") or 2048,
        lora=(taken.count("lora_rank") or 8) if kind == "lora" else None,
        lora_targets=_targets(taken, "lora_target", usual=None) if kind == "lora" else None,
        quantize=str(bits) if bits is not None else None,
        optimizer=_optimizer(taken.take("optim"), taken),
    )
    if taken.take("disable_gradient_checkpointing") is not True:
        found.plan["recomputation"] = "full"  # its default: hparams/model_args.py, disable_gradient_checkpointing
    return found


def _transformers(taken: _Taken) -> Configuration:
    """Return what arguments of transformers or TRL say (`TrainingArguments`, `SFTConfig`, `ModelConfig`)."""
    model = taken.take("model_name_or_path")
    rank = taken.count("lora_r") if taken.take("use_peft") is True else None
    quantized = _loaded_bits(taken)
    return _common(
        taken,
        "per_device_train_batch_size",
        "transformers",
        model,
        seq_len=taken.count("max_length", "max_seq_length", "model_max_length"),
        lora=rank,
        lora_targets=_targets(taken, "lora_target_modules", usual="default") if rank else None,
        quantize=quantized if rank else None,
        optimizer=_optimizer(taken.take("optim"), taken),
    )


_READERS = (
    (("parallelism", "activation_checkpoint"), _torchtitan),
    (("base_model",), _axolotl),
    (("finetuning_type", "cutoff_len"), _llama_factory),
    (("per_device_train_batch_size", "output_dir"), _transformers),
)
"""By keys of which a configuration of each has one."""
