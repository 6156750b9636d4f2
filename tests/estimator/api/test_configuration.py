import json
import os
from pathlib import Path

import pytest

from estimator import estimate, read_configuration
from estimator.work.plan import parse_fields
from tests.support.commands import estimate as call

TORCHTITAN = """
[model]
name = "llama3"
flavor = "8B"
[training]
local_batch_size = 2
seq_len = 8192
steps = 1000
dataset = "c4"
[parallelism]
data_parallel_shard_degree = -1
tensor_parallel_degree = 2
[activation_checkpoint]
mode = "full"
[compile]
enable = true
"""

AXOLOTL = """
base_model: meta-llama/Llama-2-70b-hf
load_in_4bit: true
adapter: qlora
lora_r: 32
sequence_len: 512
gradient_accumulation_steps: 4
micro_batch_size: 1
num_epochs: 4
optimizer: adamw_torch_fused
bf16: auto
gradient_checkpointing: true
deepspeed:
learning_rate: 0.00001
fsdp:
  - full_shard
  - auto_wrap
fsdp_config:
  fsdp_offload_params: false
  fsdp_sharding_strategy: FULL_SHARD
"""

LLAMA_FACTORY = """
model_name_or_path: mistralai/Mistral-7B-v0.1
stage: sft
finetuning_type: lora
lora_rank: 8
cutoff_len: 1024
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
num_train_epochs: 3.0
bf16: true
deepspeed: examples/deepspeed/ds_z2_config.json
"""

TRANSFORMERS = {
    "output_dir": "out",
    "model_name_or_path": "mistralai/Mistral-7B-v0.1",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 50,
    "max_length": 1024,
    "fp16": True,
    "optim": "adamw_bnb_8bit",
    "fsdp": ["shard_grad_op"],
}


def written(folder: Path, name: str, text: str) -> Path:
    """Return a file that holds a text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_torchtitan(tmp_path: Path) -> None:
    """Degrees, rows and recomputation become a plan; rows of all devices follow from their number."""
    found = read_configuration(written(tmp_path, "c.toml", TORCHTITAN))
    told = found.on(8)
    assert (found.software, found.model) == ("torchtitan", "meta-llama/Meta-Llama-3-8B")
    assert (told["batch"], told["seq_len"], told["steps"], told["compiles"]) == (8, 8192, 1000, True)
    fields = {"tp": 2, "recomputation": "full", "zero_stage": 3, "batch_per_device": 2}
    assert parse_fields(str(told["plan"])) == fields
    assert found.unused == ["training.dataset = c4"]
    with pytest.raises(ValueError, match=r"^from: num_stages \* tp \* cp = 1 \* 2 \* 1 does not divide 7 devices$"):
        found.on(7)
    answer = estimate(found.model, accelerator="h100-sxm-80gb", devices=8, **told)
    assert answer.best is not None
    assert {name: getattr(answer.best.plan, name) for name in fields} == fields


def test_selective_recomputation_is_refused_not_guessed(tmp_path: Path) -> None:
    """Torchtitan's keeps some operators' results, which is not what a plan means by selective."""
    text = TORCHTITAN.replace('"full"', '"selective"')
    with pytest.raises(ValueError, match=r"is not modelled; set none or full: the truth lies between them$"):
        read_configuration(written(tmp_path, "c.toml", text))


def test_axolotl(tmp_path: Path) -> None:
    """Adapters, quantization, shards and accumulation are read; what changes no estimate is told as not used."""
    found = read_configuration(written(tmp_path, "c.yaml", AXOLOTL))
    told = found.on(2)
    assert (found.software, found.model) == ("Axolotl", "meta-llama/Llama-2-70b-hf")
    assert (told["lora"], told["quantize"], told["batch"], told["epochs"]) == (32, "4", 8, 4)
    assert (told["optimizer"], told["precision"]) == ("adamw", "bf16-mixed")
    assert parse_fields(str(told["plan"]))["zero_stage"] == 3
    assert found.unused == ["learning_rate = 1e-05"]
    offloaded = AXOLOTL.replace("fsdp_offload_params: false", "fsdp_offload_params: true")
    with pytest.raises(ValueError, match="fsdp_offload_params keeps the parameters in host memory, which is not"):
        read_configuration(written(tmp_path, "o.yaml", offloaded))


def test_llama_factory(tmp_path: Path) -> None:
    """Its recomputation is on unless disabled; DeepSpeed's stage stands in the name of its file."""
    told = read_configuration(written(tmp_path, "c.yaml", LLAMA_FACTORY)).on(4)
    fields = parse_fields(str(told["plan"]))
    assert (told["lora"], told["seq_len"], told["batch"], told["epochs"]) == (8, 1024, 32, 3)
    assert (fields["recomputation"], fields["zero_stage"], fields["num_micro_batches"]) == ("full", 2, 8)


def test_transformers_arguments(tmp_path: Path) -> None:
    """Arguments as a Trainer saves them, in JSON: no recomputation unless asked for, FSDP's strategy a ZeRO stage."""
    told = read_configuration(written(tmp_path, "args.json", json.dumps(TRANSFORMERS))).on(4)
    fields = parse_fields(str(told["plan"]))
    assert (told["batch"], told["steps"], told["precision"]) == (32, 50, "fp16-mixed")
    assert (told["optimizer"], fields["zero_stage"], fields["recomputation"]) == ("adamw-8bit", 2, "none")


def test_targets_of_adapters(tmp_path: Path) -> None:
    """Each software's own words for them are read; where none are told, it takes its own."""
    axolotl = "base_model: llama-2-7b\nadapter: lora\nlora_r: 8\n"
    for text, targets in (
        (axolotl + "lora_target_linear: true\n", "all-linear"),
        (axolotl + "lora_target_modules: [q_proj, v_proj]\n", "q_proj,v_proj"),
        (axolotl, "default"),
        ("model_name_or_path: m\nfinetuning_type: lora\ncutoff_len: 64\nlora_target: all\n", "all-linear"),
        (
            "model_name_or_path: m\nfinetuning_type: lora\ncutoff_len: 64\nlora_target: q_proj, o_proj\n",
            "q_proj,o_proj",
        ),
        ("model_name_or_path: m\noutput_dir: o\nuse_peft: true\nlora_r: 4\nlora_target_modules: [k_proj]\n", "k_proj"),
    ):
        assert read_configuration(written(tmp_path, "c.yaml", text)).on(1).get("lora_targets") == targets


def test_the_command_says_what_it_used(tmp_path: Path) -> None:
    """What is given beside the file goes before it; what was read and what was not is told beside the answer."""
    path = written(tmp_path, "c.yaml", LLAMA_FACTORY)
    asked = ("--from", str(path), "--accelerator", "h100-sxm-80gb", "--devices", "4", "--json")
    status, out, err = call(*asked, "--steps", "7", "--seq-len", "512")
    document = json.loads(out)
    assert status == 0
    assert (document["workload"]["steps"], document["workload"]["seq_len"]) == (7, 512)
    assert document["best"]["plan"]["zero_stage"] == 2
    assert "LLaMA-Factory, used: model_name_or_path = mistralai/Mistral-7B-v0.1" in err
    assert "LLaMA-Factory, not used: stage = sft" in err
    assert "the number of rows is not told" in call(*asked)[2]
    status, out, err = call("--from", str(path), "--flavor", "all")
    assert (status, out) == (2, "")
    assert "give one flavor" in err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "a = ", "is no TOML, JSON or YAML that can be read"),
        ("c.yaml", "- 1", "holds no keys and values"),
        ("c.yaml", "a: [", "is no TOML, JSON or YAML that can be read"),
        ("c.json", '{"a": 1}', "is no configuration of torchtitan, Axolotl, LLaMA-Factory or transformers"),
        ("c.yaml", AXOLOTL.replace("micro_batch_size: 1", "micro_batch_size: -1"), "is not a positive whole number"),
        ("c.yaml", AXOLOTL.replace("adamw_torch_fused", "lion_8bit"), "optimizer 'lion_8bit' is not modelled"),
        ("c.yaml", AXOLOTL.replace("deepspeed:", "deepspeed: mine.json"), "does not tell its stage"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    """A file that is no configuration, or holds a value that is not modelled, is refused in one line."""
    with pytest.raises(ValueError, match=r"^from ") as told:
        read_configuration(written(tmp_path, name, text))
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe or a missing file is one line."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"^from .*pipe: is a pipe, not a file"):
        read_configuration(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"^from .*none: cannot be read; check the path$"):
        read_configuration(tmp_path / "none")
