"""The command `train`: what it refuses, in one line with status 2, before any process or process group starts."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

import trainer.cli
from hardware.command import run_command
from tests.support.tiny import write_checkpoint
from trainer.jobs.lock import held


@pytest.fixture(scope="module")
def folder(folder: Path) -> Path:
    """Return a folder with a checkpoint and rows, and others that are no good."""
    write_checkpoint("llama", folder / "bare")
    (folder / "bare" / "model.safetensors").unlink()
    (folder / "empty.jsonl").touch()
    (folder / "run").mkdir()
    (folder / "run" / "steps.jsonl").write_text("a run\n")
    return folder


def command(folder: Path, **changes: Any) -> list[str]:
    """Return a command line that trains, with changes; None leaves an option out."""
    options: dict[str, Any] = {
        "model": folder / "checkpoint",
        "tokenizer": folder / "tokenizer",
        "dataset": folder / "rows.jsonl",
        "seq_len": 72,
        "batch": 8,
        "steps": 2,
        "plan": "num_micro_batches=1,batch_per_device=8",
        "stack": "moai-24.2",
        "nproc": 1,
        **changes,
    }
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    return [part for option, value in given.items() for part in ([option] if value is True else [option, str(value)])]


def run(arguments: list[str]) -> int:
    """Run the command."""
    return run_command(trainer.cli.train_app, "train", arguments)


def test_a_run_begins(folder: Path, tmp_path: Path, began: list[Any]) -> None:
    """The command line that the bad ones differ from begins a run, with the folder made."""
    assert run(command(folder, output=tmp_path / "run")) == 0
    (config,) = began
    assert (config.num_steps, config.global_batch, config.data.seq_len) == (2, 8, 72)
    assert (tmp_path / "run").is_dir()


def test_several_ranks_are_launched_with_the_plan_that_was_chosen(
    folder: Path, tmp_path: Path, began: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks get the chosen plan and folder after the options as given, so that all train the same."""
    arguments = command(folder, output=tmp_path / "run", nproc=2, plan="best")
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    assert run(arguments) == 0
    ((count, given),) = began
    assert count == 2
    assert given[: len(arguments)] == arguments
    more = dict(zip(given[len(arguments) :: 2], given[len(arguments) + 1 :: 2], strict=True))
    assert more["--output"] == str(tmp_path / "run")
    assert more["--plan"].startswith("num_stages=")


BAD = {
    "nproc": ({"nproc": 0}, "nproc: 0 is no number of processes; give 1 or more"),
    "restarts": ({"max_restarts": -1}, "max-restarts: -1 is no number of times; give 0 or more"),
    "missing checkpoint": ({"model": "{}/none.json"}, "model: '{}/none.json' cannot be read as JSON; check the path"),
    "config without weights": (
        {"model": "{}/bare"},
        (
            r"model: '{}/bare' holds no \*.safetensors; convert the checkpoint to safetensors, or give the config.json "
            "itself to start from random weights"
        ),
    ),
    "missing dataset": ({"dataset": "{}/none.jsonl"}, "dataset '{}/none.jsonl': no such file; check the path"),
    "empty dataset": ({"dataset": "{}/empty.jsonl"}, "dataset '{}/empty.jsonl': has no rows; give at least one"),
    "row too long": (
        {"seq_len": 24},
        (
            r"dataset '{}/rows.jsonl': line \d+ has (\d+) tokens, more than seq-len 24, the longest of \d+ that do; "
            r"give --seq-len \1, or --truncate"
        ),
    ),
    "plan of another world": (
        {"plan": "num_stages=2,num_micro_batches=8"},
        r"plan: num_stages \* tp \* cp = 2 \* 1 \* 1 does not divide 1 devices; use divisors of it",
    ),
    "plan of another batch": (
        {"plan": "num_micro_batches=3"},
        (
            r"plan: data_parallel \* num_micro_batches \* batch_per_device = 1 \* 3 \* 1 = 3 "
            "is not the global batch 8; change one of them"
        ),
    ),
    "schedule": (
        {"plan": "num_micro_batches=8,schedule=dual"},
        "plan: schedule='dual' is not one of gpipe, 1f1b, interleaved, zero_bubble",
    ),
    "more stages than layers": (
        {"plan": "num_stages=8,num_micro_batches=8", "nproc": 8},
        "plan: num_stages=8 does not divide num_layers=4 of 'checkpoint'; use one of .*",
    ),
    "tensor parallel degree": (
        {"plan": "num_micro_batches=8,tp=4", "nproc": 4},
        "plan: tp=4 does not divide num_kv_heads=2 of 'checkpoint'; use one of .*",
    ),
    "context parallel": (
        {"plan": "num_micro_batches=8,cp=2", "nproc": 2},
        "plan: cp=2: the trainer splits no sequences over devices; use cp=1",
    ),
    "batch": ({"batch": 0}, r"batch: 0 is not from 1 to 2\*\*40 - 1; give a count in that range"),
    "rate": ({"lr": -1}, "lr: -1.0 is not from 0 to below 1000; give a value in that range"),
    "rate that is no number": (
        {"lr": "fast"},
        "Invalid value for '--lr': .*; see train --help",
    ),
    "precision": ({"precision": "fp8"}, "precision: 'fp8' is not one of bf16-mixed, bf16, fp32"),
    "evaluation": ({"eval_every": 2}, "eval-every: 2 steps, but no rows are held out; give --eval-rows too"),
    "held-out rows": (
        {"eval_rows": 64},
        "eval-rows: 64 of 64 rows leave none to train on; hold out fewer",
    ),
    "output that is a file": (
        {"output": "{}/rows.jsonl"},
        r"output: '{}/rows.jsonl' cannot be made \(File exists\); .*",
    ),
    "output under a file": (
        {"output": "{}/rows.jsonl/run"},
        r"output: '{}/rows.jsonl/run' cannot be made \(Not a directory\); give another",
    ),
    "output that holds a run": (
        {"output": "{}/run"},
        "output: '{}/run' holds a run; continue it with --resume auto, or give another --output",
    ),
    "checkpoint to continue": (
        {"resume": "{}/bare"},
        "resume: '{}/bare' is no checkpoint; give a folder step-..., or auto",
    ),
    "rank": ({"lora": -1}, "lora: rank -1 is not from 1 to 4096; use for example --lora 16"),
    "alpha": ({"lora": 4, "lora_alpha": 0}, "lora-alpha: 0.0 is not above 0 and to 1e\\+06; usual is twice the rank"),
    "alpha without a rank": (
        {"lora_alpha": 8},
        "lora-alpha: 8.0 is of adapters, but no rank is given; add --lora RANK",
    ),
    "targets": (
        {"lora": 4, "lora_targets": "q_proj,lm_head"},
        "unknown lora-targets 'lm_head': .*",
    ),
    "no targets": (
        {"lora": 4, "lora_targets": ","},
        "lora-targets: none is named; give all-linear or some of q_proj, .*",
    ),
    "adapters' dropout": (
        {"lora": 4, "lora_dropout": 1},
        "lora-dropout: 1.0 is not from 0 to below 1; give a share, usual are 0 to 0.1",
    ),
    "merge": ({"merge": True}, "merge: there are no adapters to add; give --lora RANK, or leave out --merge"),
    "adapter": (
        {"adapter": "{}/bare"},
        "adapter: '{}/bare/adapter_config.json' cannot be read as JSON; give the folder of an adapter that peft wrote",
    ),
    "adapter and rank": (
        {"adapter": "{}/bare", "lora": 4},
        "adapter: '{}/bare' says all of its adapters; leave out the options --lora...",
    ),
    "stack": ({"stack": "moai-1"}, "unknown stack 'moai-1': .*"),
    "flavor": ({"flavor": "5xLarge.2048GB"}, "unknown flavor '5xLarge.2048GB': .*"),
    "job file": ({"emit": "bash"}, "unknown kind of job file 'bash': use one of torchrun, slurm, kubernetes"),
}


@pytest.mark.parametrize(("changes", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    folder: Path,
    tmp_path: Path,
    began: list[Any],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    said: str,
) -> None:
    """Bad input ends with status 2 and one line on standard error; nothing began, nothing was written."""
    changes = {
        name: value.replace("{}", str(folder)) if isinstance(value, str) else value for name, value in changes.items()
    }
    output = tmp_path / "run"
    assert run(command(folder, **({"output": output} | changes))) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert re.fullmatch(said.replace("{}", re.escape(str(folder))) + "\n", written.err), written.err
    assert began == []
    assert not output.exists()


@pytest.mark.parametrize("changes", [{}, {"resume": "auto"}, {"nproc": 2, "plan": "best"}])
def test_a_folder_in_use_is_refused(
    folder: Path, tmp_path: Path, began: list[Any], capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    """Beside a run that is under way, no other begins in its folder, anew, continued, or of several ranks."""
    with held(tmp_path):
        before = sorted(tmp_path.iterdir())
        assert run(command(folder, output=tmp_path, **changes)) == 2
    said = (
        rf"output: '{re.escape(str(tmp_path))}' is in use by process {os.getpid()} on .* since .*; wait for its end, .*"
    )
    assert re.fullmatch(said + "\n", capsys.readouterr().err)
    assert (began, sorted(tmp_path.iterdir())) == ([], before)
    assert run(command(folder, output=tmp_path, **changes)) == 0


def test_fewer_rows_than_a_batch_is_bad_input(
    folder: Path, tmp_path: Path, began: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch of more rows than there are is refused before any process starts."""
    plan = "num_micro_batches=1,batch_per_device=1000"
    assert run(command(folder, output=tmp_path / "run", batch=1000, plan=plan)) == 2
    assert capsys.readouterr().err == "batch: 1000 rows are more than the 64 rows there are; lower it\n"
    assert began == []


@pytest.mark.parametrize("arguments", [["--verify"], ["--dry-run", "--json"]])
def test_a_verification_is_of_a_dry_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for alone, or its JSON without it, is refused in one line."""
    assert run([*arguments, "--flavor", "4xlarge"]) == 2
    assert "give --dry-run --verify" in capsys.readouterr().err
