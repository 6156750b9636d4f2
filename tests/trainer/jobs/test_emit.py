import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from estimator.formulas.failures import DEVICE_MTBF_S
from estimator.formulas.machine import Machine
from estimator.search.planner import run_endurance
from estimator.stack.stack import load_stack
from estimator.work.shape import load_shape
from estimator.work.workload import Workload
from hardware.catalog import Catalog, load_catalog
from hardware.models import Flavor
from tests.support.paths import GOLDEN as GOLDEN_FOLDER
from trainer.jobs.emit import EARLY_S, KINDS, NOTICE_S, RETRIES, SHUTDOWN_S
from trainer.jobs.emit import emit as emit_every
from trainer.jobs.interval import MOST_LOST_S, checkpoint_steps
from trainer.jobs.status import BAD_INPUT, DIVERGED, DONE, FAILED, HUNG, STOPPED

CATALOG = load_catalog()
GOLDEN = GOLDEN_FOLDER / "emit"
PLAN = ("--plan", "num_stages=2,num_micro_batches=16,tp=1,recomputation=none,distribute_param=true")
ARGUMENTS = ("--model", "mistralai/Mistral-7B-v0.1", "--dataset", "it's mine/$(rows).jsonl", "--packing", *PLAN)
BASH = "/bin/bash"

EVERY = 40
SRUN = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do shift; done\nexec "$@"\n'


def emit(kind: str, flavor: Flavor, catalog: Catalog, arguments: Sequence[str]) -> str:
    """Return a job file that writes a checkpoint every so many steps."""
    return emit_every(kind, flavor, catalog, arguments, checkpoint_every=EVERY)


words = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), max_size=6)
"""Arguments of a command; no system takes a NUL within one."""


def job(text: str) -> dict[str, Any]:
    """Return the Job of a Kubernetes file."""
    documents = list(yaml.safe_load_all(text))
    return next(document for document in documents if document["kind"] == "Job")


def container(text: str) -> dict[str, Any]:
    """Return the container of a Kubernetes file's pods."""
    (found,) = job(text)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def run_script(text: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Run a script whose commands write down how they were called; return the launcher's words and environment."""
    commands = {
        "python": '#!/bin/bash\nprintf "%s\\0" "$@" > "$SEEN/words"\nenv -0 > "$SEEN/environment"\n',
        "srun": SRUN,
        "scontrol": '#!/bin/bash\necho "node-7"; echo "node-8"\n',
    }
    for name, script in commands.items():
        (folder / name).write_text(script, encoding="utf-8")
        (folder / name).chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.defpath}",
        "SEEN": str(folder),
        "HEAD_NODE": "node-7",
        "RUN_ID": "first",
        "SLURM_JOB_ID": "41234",
        "SLURM_JOB_NODELIST": "node-[7-8]",
    }
    subprocess.run([BASH, "-c", text], check=True, env=environment, cwd=folder)  # noqa: S603 - the text under test
    seen = (folder / "environment").read_text(encoding="utf-8").split("\0")
    called = (folder / "words").read_bytes().decode().split("\0")[:-1]
    return called, dict(line.split("=", 1) for line in seen if line)


@pytest.mark.parametrize(
    ("file", "kind", "flavor"),
    [
        ("torchrun-4xlarge.sh", "torchrun", "4xlarge"),
        ("torchrun-mi300x8.sh", "torchrun", "mi300x8"),
        ("slurm-4xlarge.sh", "slurm", "4xlarge"),
        ("slurm-medium.sh", "slurm", "medium"),
        ("kubernetes-4xlarge.yaml", "kubernetes", "4xlarge"),
        ("kubernetes-mi300x8.yaml", "kubernetes", "mi300x8"),
    ],
)
def test_job_files_are_the_ones_that_were_read(file: str, kind: str, flavor: str) -> None:
    """A job file is, to the letter, the one that was reviewed."""
    assert emit(kind, CATALOG.flavor(flavor), CATALOG, ARGUMENTS) == (GOLDEN / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["torchrun", "slurm"])
@pytest.mark.parametrize("flavor", CATALOG.flavors, ids=[flavor.id for flavor in CATALOG.flavors])
def test_scripts_are_bash(kind: str, flavor: Flavor) -> None:
    """Bash reads the script of every flavor without complaint."""
    script = emit(kind, flavor, CATALOG, ARGUMENTS)
    done = subprocess.run([BASH, "-n"], input=script, text=True, capture_output=True, check=False)  # noqa: S603 - a constant
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("flavor", CATALOG.flavors, ids=[flavor.id for flavor in CATALOG.flavors])
def test_every_kind_starts_a_rank_per_device(flavor: Flavor, tmp_path: Path) -> None:
    """Nodes times ranks per node are the flavor's devices, in each kind, and each node is asked for as many devices."""
    for kind in ("torchrun", "slurm"):
        text = emit(kind, flavor, CATALOG, ARGUMENTS)
        called, _ = run_script(text, tmp_path)
        options = dict(word.split("=", 1) for word in called if word.startswith("--n"))
        assert int(options["--nnodes"]) == flavor.num_nodes
        assert int(options["--nnodes"]) * int(options["--nproc-per-node"]) == flavor.num_devices
        if kind == "slurm":
            assert f"#SBATCH --gpus-per-node={options['--nproc-per-node']}\n" in text
            assert f"#SBATCH --nodes={flavor.num_nodes}\n" in text
    text = emit("kubernetes", flavor, CATALOG, ARGUMENTS)
    spec, (count,) = job(text)["spec"], container(text)["resources"]["limits"].values()
    assert spec["completions"] == spec["parallelism"] == flavor.num_nodes
    assert spec["completions"] * count == flavor.num_devices
    assert f"--nproc-per-node={count}" in container(text)["command"]


@given(given_words=words)
def test_arguments_arrive_in_a_pod_as_they_were_given(given_words: list[str]) -> None:
    """Whatever the arguments hold, Kubernetes' own variables too, the command has them word by word."""
    command = container(emit("kubernetes", CATALOG.flavor("mi300x8"), CATALOG, given_words))["command"]
    start = command.index("trainer") + 1
    assert [word.replace("$$", "$") for word in command[start : start + len(given_words)]] == given_words


@settings(max_examples=25)  # each is a few processes
@given(kind=st.sampled_from(["torchrun", "slurm"]), given_words=words)
@example(kind="torchrun", given_words=["--dataset", 'it\'s $HOME `pwd` $(id) \\ "two"\nlines  *', "", "--lr", "-1e-3"])
def test_arguments_arrive_at_a_rank_as_they_were_given(
    tmp_path_factory: pytest.TempPathFactory, kind: str, given_words: list[str]
) -> None:
    """A real shell hands quotes, variables, newlines and blanks on as they were given, and expands nothing."""
    script = emit(kind, CATALOG.flavor("4xlarge"), CATALOG, given_words)
    called, _ = run_script(script, tmp_path_factory.mktemp("shell"))
    start = called.index("trainer") + 1
    assert called[start : start + len(given_words)] == given_words


@pytest.mark.parametrize(("kind", "output"), [("torchrun", "runs/first"), ("slurm", "runs/41234")])
def test_a_job_that_begins_again_goes_on(kind: str, output: str, tmp_path: Path) -> None:
    """Where nothing else is asked for, a run has a folder that stays, and resumes what lies there."""
    called, environment = run_script(emit(kind, CATALOG.flavor("4xlarge"), CATALOG, PLAN), tmp_path)
    assert called[:2] == ["-m", "trainer.jobs.torchrun"]
    assert called[-8:-2] == ["--flavor", "4xLarge.2048GB", "--resume", "auto", "--checkpoint-every", str(EVERY)]
    assert called[-2:] == ["--output", output]
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == str(SHUTDOWN_S)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_is_not_given_again(kind: str) -> None:
    """A flavor, a checkpoint or a folder that the arguments name stays the only one, however it is written."""
    own = ["--flavor=4xlarge", "--resume", "runs/a/checkpoints/step-10", "--output", "/data/a", "--checkpoint-every=7"]
    text = emit(kind, CATALOG.flavor("4xlarge"), CATALOG, own)
    command = "".join(line for line in text.splitlines() if not line.startswith("#"))
    assert [command.count(option) for option in ("--flavor", "--resume", "--output", "--checkpoint-every")] == [1] * 4


def test_whoever_ends_torchrun_waits_longer_than_torchrun() -> None:
    """The ranks' time to save is less than what Slurm and Kubernetes allow before they kill."""
    flavor = CATALOG.flavor("4xlarge")
    pod = job(emit("kubernetes", flavor, CATALOG, PLAN))["spec"]["template"]["spec"]
    (environment,) = pod["containers"][0]["env"]
    assert environment == {"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": str(SHUTDOWN_S)}
    assert pod["terminationGracePeriodSeconds"] == NOTICE_S > SHUTDOWN_S
    assert f"#SBATCH --signal=TERM@{NOTICE_S}\n" in emit("slurm", flavor, CATALOG, PLAN)


def test_what_was_stopped_goes_on_and_what_was_refused_does_not() -> None:
    """A pod that saved and ended for another's eviction is no failure; bad input ends the job; the rest is counted."""
    spec = job(emit("kubernetes", CATALOG.flavor("4xlarge"), CATALOG, PLAN))["spec"]
    rules = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert rules == {"FailJob": [BAD_INPUT, DIVERGED], "Ignore": [STOPPED]}
    assert {"type": "DisruptionTarget"} in spec["podFailurePolicy"]["rules"][-1]["onPodConditions"]
    assert spec["backoffLimit"] == RETRIES * spec["completions"]
    assert len({DONE, FAILED, BAD_INPUT, DIVERGED, STOPPED, HUNG}) == 6


@pytest.mark.parametrize(
    ("status", "seconds_left", "is_requeued"),
    [
        (STOPPED, NOTICE_S + 59, True),  # the notice came a minute early, and the checkpoint took a second
        (STOPPED, NOTICE_S - 300, True),
        (FAILED, NOTICE_S - 300, True),
        (STOPPED, 7200, False),  # somebody asked the run to stop
        (DONE, 60, False),
    ],
)
def test_a_job_whose_time_is_up_is_begun_again(
    status: int, seconds_left: int, *, is_requeued: bool, tmp_path: Path
) -> None:
    """Slurm's script asks to be begun again where the notice made it end, however early it came, and only then."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/bash\nexit {status}\n", encoding="utf-8")
    python.chmod(0o755)
    for name, script in (("srun", SRUN), ("scontrol", '#!/bin/bash\necho "$@" >> "$SEEN/scontrol.txt"\necho node-7\n')):
        (tmp_path / name).write_text(script, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.defpath}",
        "SEEN": str(tmp_path),
        "SLURM_JOB_ID": "41234",
        "SLURM_JOB_NODELIST": "node-[7-8]",
        "SLURM_JOB_END_TIME": str(int(time.time()) + seconds_left),
    }
    text = emit("slurm", CATALOG.flavor("4xlarge"), CATALOG, PLAN)
    done = subprocess.run([BASH, "-c", text], check=False, env=environment, cwd=tmp_path)  # noqa: S603
    assert done.returncode == status
    assert ("requeue 41234" in (tmp_path / "scontrol.txt").read_text()) == is_requeued


def test_a_notice_may_come_early() -> None:
    """Whether a job's time is up is asked with more than the minute by which Slurm may be early."""
    assert EARLY_S > 60


@pytest.mark.parametrize(
    ("step_s", "num_steps", "every"),
    [(10.0, 10**6, MOST_LOST_S / 10), (10.0, 100, 50), (1e5, 10**6, 1), (10.0, 1, 1)],
)
def test_a_failure_costs_half_an_hour_at_most(step_s: float, num_steps: int, every: int) -> None:
    """Checkpoints come every half hour where failures are rare, at half of a shorter run, at each of longer steps."""
    workload = Workload(load_shape("gpt2"), seq_len=256, global_batch=8, num_steps=num_steps)
    machine = Machine.of(CATALOG, CATALOG.flavor("4xlarge"))
    assert checkpoint_steps(workload, machine, load_stack("reference"), step_s) == every


def test_many_devices_write_checkpoints_more_often() -> None:
    """Where failures are frequent the interval is Daly's."""
    workload = Workload(load_shape("megatron-1t"), seq_len=2048, global_batch=4096, num_steps=10**6)
    machine = Machine.of(CATALOG, CATALOG.flavor_of("h100-sxm-80gb", 8192))
    stack = load_stack("reference")
    best_s = run_endurance(workload, machine, stack, DEVICE_MTBF_S).interval_s
    assert best_s < MOST_LOST_S
    assert checkpoint_steps(workload, machine, stack, 1.0) == round(best_s)


def test_pods_meet_at_the_first_one() -> None:
    """The rendezvous is the pod of index 0 by the name that the Service gives it."""
    text = emit("kubernetes", CATALOG.flavor("4xlarge"), CATALOG, PLAN)
    service, work = yaml.safe_load_all(text)
    name = work["metadata"]["name"]
    assert service["metadata"]["name"] == work["spec"]["template"]["spec"]["subdomain"] == name
    assert service["spec"]["selector"] == {"job-name": name}
    assert f"--rdzv-endpoint={name}-0.{name}:29400" in container(text)["command"]


@pytest.mark.parametrize(
    ("accelerator", "resource"),
    [("mi250", "amd.com/gpu"), ("mi300x", "amd.com/gpu"), ("h100-sxm-80gb", "nvidia.com/gpu")],
)
def test_devices_are_asked_for_by_their_vendors_name(accelerator: str, resource: str) -> None:
    """AMD's and NVIDIA's plugins each have a name for their devices."""
    text = emit("kubernetes", CATALOG.flavor_of(accelerator, 8), CATALOG, PLAN)
    assert container(text)["resources"]["limits"] == {resource: 8}


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
def test_unknown_devices_are_refused(kind: str) -> None:
    """A scheduler's name for a processor is not guessed."""
    with pytest.raises(ValueError, match=rf"^emit: {kind} has no resource .* epyc-7763 of AMD; use --emit torchrun$"):
        emit(kind, CATALOG.flavor_of("epyc-7763", 2), CATALOG, PLAN)


def test_unequal_nodes_are_refused() -> None:
    """Torchrun starts the same number of ranks on each node, so a flavor must have it."""
    with pytest.raises(ValueError, match=r"^emit: mi300x-9 has 9 devices on 2 nodes; .*take a flavor whose nodes"):
        emit("torchrun", CATALOG.flavor_of("mi300x", 9), CATALOG, PLAN)


def test_a_name_does_not_leave_its_comment() -> None:
    """The name of a device in a user's catalog stays one line of comment, whatever it holds."""
    chip = CATALOG.accelerator("mi300x").model_copy(
        update={"id": "odd", "name": "a\nrm -rf /\r\x85b", "driver_names": ()}
    )
    node = CATALOG.node("mi300x-x8").model_copy(update={"id": "odd", "accelerator": "odd"})
    catalog: Catalog = CATALOG.adding(chip).adding(node)
    for kind in KINDS:
        assert "8 x a rm -rf / b." in emit(kind, catalog.flavor_of("odd", 8), catalog, PLAN).replace("\n#", "")
