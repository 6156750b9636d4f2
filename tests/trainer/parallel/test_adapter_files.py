import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from estimator.work.plan import parse_plan
from tests.support.ranks import Ranks, run_ranks
from tests.support.tiny import tiny_config, train_tiny, write_adapter
from trainer.config import TrainConfig
from trainer.measure import read_records
from trainer.parallel.adapter_files import CONFIG_FILE, WEIGHTS_FILE, config_document, read_adapter_config
from trainer.parallel.adapters import AdapterConfig
from trainer.parallel.checkpoint import read_state
from trainer.resume import refuse_other_adapters
from trainer.source import find_model

SHARDED = "num_micro_batches=2,batch_per_device=2,zero_stage=3"
PIPELINE = "num_stages=2,num_micro_batches=4,batch_per_device=2"
OF_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
"""Of transformers, at what peft calls."""
ADAPTERS = AdapterConfig(4, 8.0, ("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two sharded ranks, merged at its end, with a checkpoint in the middle."""
    output = tmp_path_factory.mktemp("whole")
    run_ranks(2, train_tiny, configured(folder, output, SHARDED, merges=True))
    return output


def configured(folder: Path, output: Path, plan: str, **changes: Any) -> TrainConfig:
    """Return a run of adapters with a checkpoint after four of its eight steps."""
    usual = {"adapters": ADAPTERS, "checkpoint_every": 4, "eval_rows": 6}
    return tiny_config(folder, output, plan=parse_plan(plan), **(usual | changes))


@OF_PEFT
@pytest.mark.slow
def test_peft_loads_what_was_trained(folder: Path, whole: Path) -> None:
    """Peft's model gives the logits of the merged one, and the base's no more."""
    from peft import PeftModel  # noqa: PLC0415 - slow to import

    ids = torch.arange(60).reshape(2, 30)
    base = AutoModelForCausalLM.from_pretrained(folder / "checkpoint")
    before = base(ids).logits
    theirs = PeftModel.from_pretrained(base, whole / "adapter")(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(whole / "model")(ids).logits
    torch.testing.assert_close(theirs, merged, atol=2e-6, rtol=1e-5)
    assert float((theirs - before).detach().abs().max()) > 1e-3


@pytest.mark.slow
def test_a_run_begins_where_an_adapter_ends(folder: Path, whole: Path, tmp_path: Path) -> None:
    """Adapters of a folder, with a rate of 0, have the held-out loss that they had; another plan writes them again."""
    folder_of = whole / "adapter"
    config = configured(folder, tmp_path, PIPELINE, adapters=read_adapter_config(folder_of), num_steps=1)
    still = type(config.optimizer)(lr=0.0)
    changed = type(config)(**{**vars(config), "start_adapter": str(folder_of), "optimizer": still})
    run_ranks(2, train_tiny, changed)
    losses = [read_records(output, "evaluation")[-1]["loss"] for output in (whole, tmp_path)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)
    before, after = (load_file(output / "adapter" / WEIGHTS_FILE) for output in (whole, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_checkpoint_holds_adapters_alone(whole: Path) -> None:
    """Their weights and moments lie in it, and which base they are of."""
    checkpoint = whole / "checkpoints" / "step-00000004"
    names = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    weights = [name for name in names if name.startswith("model.")]
    assert len(weights) == 2 * 3 * 4
    assert all(".lora_" in name for name in names if "layers" in name)
    assert sum(name.endswith(".exp_avg") for name in names) == len(weights)
    state = json.loads((checkpoint / "run.json").read_text())
    assert state["adapters"] == {"base": "checkpoint", **ADAPTERS.document()}


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "world", "most"), [(SHARDED, 2, 0.0), (PIPELINE, 2, 1e-5)])
def test_a_checkpoint_continues(folder: Path, whole: Path, tmp_path: Path, plan: str, world: int, most: float) -> None:
    """Under the same plan bit for bit, under another within rounding."""
    checkpoint = whole / "checkpoints" / "step-00000004"
    run_ranks(world, train_tiny, configured(folder, tmp_path, plan, resume=str(checkpoint)))
    again, first = ([step["loss"] for step in read_records(output, "step")] for output in (tmp_path, whole))
    assert len(again) == 4
    assert max(abs(a - b) for a, b in zip(again, first[4:], strict=True)) <= most


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"compiles": True}])
def test_dropout_leaves_out_the_same_when_repeated(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """With recomputation losses and gradients are those without; a continued run leaves out what the whole one did."""
    adapters = AdapterConfig(4, 8.0, dropout=0.3)
    runs = {}
    for name, plan in (("plain", "batch_per_device=8"), ("repeated", "batch_per_device=8,recomputation=full")):
        output = tmp_path / name
        run_ranks(1, train_tiny, configured(folder, output, plan, adapters=adapters, **changes))
        runs[name] = [(step["loss"], step["grad_norm"]) for step in read_records(output, "step")]
    off = [abs(a - b) for one, other in zip(*runs.values(), strict=True) for a, b in zip(one, other, strict=True)]
    assert max(off) < 1e-4
    resumed = tmp_path / "resumed"
    checkpoint = tmp_path / "plain" / "checkpoints" / "step-00000004"
    again = configured(folder, resumed, "batch_per_device=8", adapters=adapters, resume=str(checkpoint), **changes)
    run_ranks(1, train_tiny, again)
    assert [(step["loss"], step["grad_norm"]) for step in read_records(resumed, "step")] == runs["plain"][4:]


@pytest.mark.slow
def test_other_adapters_do_not_continue_a_checkpoint(folder: Path, whole: Path) -> None:
    """Of another rank, of another base or of none, a run is refused before it starts."""
    checkpoint = whole / "checkpoints" / "step-00000004"
    told = read_state(checkpoint)["adapters"]
    source = find_model(str(folder / "checkpoint"), 1)
    refuse_other_adapters(TrainConfig(adapters=ADAPTERS), source, checkpoint, told)
    for adapters, base, said in (
        (AdapterConfig(8, 8.0, ADAPTERS.targets), source, "has adapters of rank 4, not 8; give the same"),
        (None, source, "holds adapters; give its --lora, or start anew with another --output"),
        (ADAPTERS, find_model("", 1), "has adapters of base 'checkpoint', not 'tiny-mistral'; give the same"),
    ):
        with pytest.raises(ValueError, match=f"^resume: step-00000004 {said}$"):
            refuse_other_adapters(TrainConfig(adapters=adapters), base, checkpoint, told)


@pytest.mark.slow
def test_an_adapter_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    """Where a weight is missing or of another shape, its name is told."""
    write_adapter(folder / "checkpoint", tmp_path / "theirs")
    path = tmp_path / "theirs" / WEIGHTS_FILE
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    for weights, said in (
        ({name: torch.zeros(4, 32)}, rf"adapter: theirs has {name} in shape \[4, 32\], its config says \[4, 64\]"),
        ({name: None}, f"adapter: theirs has no weight {name}"),
    ):
        kept = load_file(path) | weights
        save_file({key: weight for key, weight in kept.items() if weight is not None}, path)
        config = configured(folder, tmp_path / "run", "batch_per_device=8")
        adapters = read_adapter_config(tmp_path / "theirs")
        changed = type(config)(**{**vars(config), "adapters": adapters, "start_adapter": str(tmp_path / "theirs")})
        (rank,) = Ranks(1, train_tiny, changed).end()
        with pytest.raises(ValueError, match=said):
            raise ValueError(rank.output)


def write_config(folder: Path, **changes: Any) -> Path:
    """Write the config of an adapter with other values, and weights that nobody reads."""
    folder.mkdir(exist_ok=True)
    document = config_document(ADAPTERS, "a base") | changes
    (folder / CONFIG_FILE).write_text(json.dumps(document), encoding="utf-8")
    (folder / WEIGHTS_FILE).touch()
    return folder


def test_a_config_is_read_as_it_was_written(tmp_path: Path) -> None:
    """What is written is read back, and by peft too; other keys may be there where they say no."""
    from peft import LoraConfig  # noqa: PLC0415 - slow to import

    assert read_adapter_config(write_config(tmp_path)) == ADAPTERS
    theirs = LoraConfig.from_pretrained(str(tmp_path))
    assert (theirs.r, theirs.lora_alpha, set(theirs.target_modules)) == (4, 8.0, set(ADAPTERS.targets))
    theirs.save_pretrained(str(tmp_path))
    assert read_adapter_config(tmp_path) == ADAPTERS
    assert read_adapter_config(write_config(tmp_path, target_modules="all-linear")) == AdapterConfig(4, 8.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "is of no LoRA adapter; give one with peft_type LORA"),
        ({"use_dora": True}, "has use_dora = True, which the trainer lacks; give a plain LoRA adapter"),
        ({"use_rslora": True}, "has use_rslora = True, which the trainer lacks; give a plain LoRA adapter"),
        ({"bias": "all"}, "has bias = 'all', which the trainer lacks; give a plain LoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save = \['lm_head'\], which the trainer lacks; .*"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights = 'pissa', which the trainer lacks; .*"),
        ({"of_tomorrow": 3}, "has of_tomorrow = 3, which the trainer lacks; give a plain LoRA adapter"),
        ({"target_modules": ".*q_proj"}, "has no list of target_modules; name the modules themselves, q_proj, .*"),
        ({"target_modules": ["lm_head"]}, ": unknown lora-targets 'lm_head': .*"),
        ({"r": "4"}, "has r = '4', which is no number; mend it"),
        ({"r": 4.5}, "has r = 4.5, which is no whole number; mend it"),
        ({"r": 0}, ": lora: rank 0 is not from 1 to 4096; .*"),
        ({"lora_alpha": float("nan")}, "has lora_alpha = nan, which is no number; mend it"),
        ({"lora_alpha": 0}, ": lora-alpha: 0.0 is not above 0 .*"),
    ],
)
def test_adapters_that_the_trainer_lacks_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """A key that changes what is computed, known or not, is told with its value."""
    with pytest.raises(ValueError, match=f"^adapter: '.*{CONFIG_FILE}' ?{said}$"):
        read_adapter_config(write_config(tmp_path, **changes))


def test_an_adapter_needs_its_weights(tmp_path: Path) -> None:
    """A folder without them, or without a config, is refused in one line."""
    with pytest.raises(ValueError, match=r"^adapter: '.*' cannot be read as JSON; give the folder of an adapter .*$"):
        read_adapter_config(tmp_path)
    (write_config(tmp_path) / WEIGHTS_FILE).unlink()
    with pytest.raises(
        ValueError, match=r"^adapter: '.*' holds no adapter_model\.safetensors; save the adapter as .*$"
    ):
        read_adapter_config(tmp_path)
