"""Job files: what torchrun, Slurm or Kubernetes starts to run a plan on a flavor, ready but for the names of a site."""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from estimator.formulas.machine import Machine
from hardware.catalog import Catalog
from hardware.models import Accelerator, Flavor
from trainer.jobs.status import BAD_INPUT, DIVERGED, STOPPED

SHUTDOWN_S = 600
"""Seconds between SIGTERM and SIGKILL, in which the ranks finish a step, write a checkpoint and end.

assumed: 112 GB of a 7B model's weights and optimizer state at 1 GB/s, five times over. torchrun's own is 30 s.
"""

NOTICE_S = SHUTDOWN_S + 60
"""Seconds that whoever ends the ranks' launcher allows it: a little more than it allows the ranks."""

EARLY_S = 120
"""Seconds before a notice is due in which it may come: Slurm sends it up to 60 s early (sbatch's manual, --signal), and
clocks differ."""

RETRIES = 8
"""Failures of a job after which it is given up."""

JOIN_S = 1800
"""Seconds that the first node waits for the last: images are pulled at different speeds. assumed."""

PORT = 29400
"""Of the rendezvous; torchrun's own choice."""

CPUS_PER_DEVICE = 4
"""Cores for a rank and the loading of its data, where a job does not have its nodes alone. assumed."""

_LAUNCHER = ("python", "-m", "trainer.jobs.torchrun")
"""torchrun, but that it ends with the ranks' exit status, which says what may go on."""

_INDENT = " \\\n    "


class _Job(NamedTuple):
    """What every kind of job file says, in its own words."""

    title: str
    name: str
    """Of DNS, as Kubernetes wants it."""
    machine: Machine
    words: tuple[str, ...]
    """Arguments of `train`."""

    @property
    def is_mi250(self) -> bool:
        """Whether a device is half of what is sold as one."""
        return self.machine.accelerator.id == "mi250"


def emit(kind: str, flavor: Flavor, catalog: Catalog, arguments: Sequence[str], *, checkpoint_every: int) -> str:
    """Return the job file that runs `train` with these arguments on a flavor.

    The arguments come with their plan. What a job adds where they do not say it: `--flavor`, which the ranks hold
    against what they find; `--resume auto`, so that a job that is started again goes on; `--checkpoint-every`, so that
    it goes on from somewhere; and an `--output` that is the same for all ranks, and after each start.

    Args:
        kind: one of `KINDS`.
        flavor: the devices.
        catalog: where the flavor's hardware is.
        arguments: of `train`, without `--emit`.
        checkpoint_every: steps between checkpoints.

    Raises:
        ValueError: no such job can be described.
    """
    machine = Machine.of(catalog, flavor)
    if machine.num_devices % machine.num_nodes:
        raise ValueError(
            f"emit: {flavor.id} has {machine.num_devices} devices on {machine.num_nodes} nodes; torchrun starts "
            "equally many on each, take a flavor whose nodes are alike"
        )
    each = "" if machine.num_nodes == 1 else f" on each of {machine.num_nodes} nodes"
    device = " ".join(machine.accelerator.name.split())  # of one line, as a comment is
    title = f"foretrain on {flavor.id}: {machine.devices_per_node} x {device}{each}."
    name = f"foretrain-{re.sub('[^a-z0-9]+', '-', flavor.id.lower())}"[:50].rstrip("-")
    words = tuple(arguments)
    for option, value in (
        ("--flavor", flavor.id),
        ("--resume", "auto"),
        ("--checkpoint-every", str(checkpoint_every)),
    ):
        if not _has(words, option):
            words = (*words, option, value)
    return _WRITERS[kind](_Job(title, name, machine, words))


def _torchrun(job: _Job) -> str:
    """Return a script that a person, or a site's own launcher, runs on every node."""
    lines = ["#!/usr/bin/env bash", f"# {job.title}"]
    several = job.machine.num_nodes > 1
    if several:
        lines += [
            "# Start it on every node, with the name or address of one of them, and a word of this run:",
            "#   HEAD_NODE=node-0 RUN_ID=first bash this-file",
            "# The folder of the run must be the same on all nodes.",
        ]
    lines += ["set -euo pipefail", "", *_environment(job)]
    if several:
        lines += [': "${HEAD_NODE:?set it to the name or address of one of the nodes}"']
    lines += [': "${RUN_ID:=run}"']
    command = [*_torchrun_words(job, f'"$HEAD_NODE:{PORT}"', '"$RUN_ID"'), *_train_words(job, '"runs/$RUN_ID"')]
    return "\n".join([*lines, "", "exec " + _INDENT.join(command), ""])


def _slurm(job: _Job) -> str:
    """Return a batch script: one torchrun per node, told to end before the time is up, and begun again then."""
    machine = job.machine
    _resource(machine.accelerator, "slurm")
    whole = machine.devices_per_node == machine.node.num_devices
    share = "exclusive" if whole else f"cpus-per-gpu={CPUS_PER_DEVICE}"
    options = [
        f"job-name={job.name}",
        f"nodes={machine.num_nodes}",
        "ntasks-per-node=1",
        f"gpus-per-node={machine.devices_per_node}",
        share,
        f"signal=TERM@{NOTICE_S}",
        "requeue",
        "open-mode=append",
        "output=%x-%j.log",
    ]
    lines = ["#!/usr/bin/env bash", f"# {job.title}", "# Add what your site asks for: --account, --partition, --time."]
    if job.is_mi250:
        lines += ["# A device is a GCD, as Slurm counts them: an MI250 has two."]
    lines += [*(f"#SBATCH --{option}" for option in options), "set -euo pipefail", "", *_environment(job)]
    if machine.num_nodes > 1:
        lines += ['read -r HEAD_NODE < <(scontrol show hostnames "$SLURM_JOB_NODELIST")']
    endpoint = '"$HEAD_NODE:$((20000 + SLURM_JOB_ID % 20000))"'
    start = '"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"'
    command = [
        "srun --kill-on-bad-exit=1 --cpu-bind=none",
        *_torchrun_words(job, endpoint, start),
        *_train_words(job, '"runs/$SLURM_JOB_ID"'),
    ]
    return "\n".join(
        [
            *lines,
            "",
            "status=0",
            f"{_INDENT.join(command)} || status=$?",
            "",
            "# Slurm begins a preempted job again, but not one whose time is up: then the ranks were told to save, a",
            f"# minute early perhaps, and ended with status {STOPPED}.",
            f"if ((status != 0 && $(date +%s) >= ${{SLURM_JOB_END_TIME:-9999999999}} - {NOTICE_S + EARLY_S})); then",
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$status"',
            "",
        ]
    )


def _kubernetes(job: _Job) -> str:
    """Return an Indexed Job, whose pods find each other by the names that a headless Service gives them.

    Both are part of every cluster (Kubernetes 1.31 or newer); a PyTorchJob needs an operator that many have not.
    """
    machine = job.machine
    resource = _resource(machine.accelerator, "kubernetes")
    endpoint = f"{job.name}-0.{job.name}:{PORT}"
    words = [
        *_LAUNCHER,
        *_torchrun_options(machine, endpoint, job.name),
        *("-m", "trainer"),
        *job.words,
        *(() if _has(job.words, "--output") else ("--output", f"/runs/{job.name}")),
    ]
    command = "\n".join(f"            - {_yaml(word)}" for word in words)
    counts = "\n# A device is a GCD, as the device plugin counts them: an MI250 has two." if job.is_mi250 else ""
    return _KUBERNETES.format(
        title=job.title,
        counts=counts,
        service=_SERVICE.format(name=job.name) if machine.num_nodes > 1 else "",
        name=job.name,
        subdomain=f"\n      subdomain: {job.name}" if machine.num_nodes > 1 else "",
        num_nodes=machine.num_nodes,
        times=RETRIES,
        retries=RETRIES * machine.num_nodes,
        stopped=STOPPED,
        refused=BAD_INPUT,
        diverged=DIVERGED,
        notice_s=NOTICE_S,
        shutdown_s=SHUTDOWN_S,
        command=command,
        resource=resource,
        num_devices=machine.devices_per_node,
    )


_SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    job-name: {name}
---
"""

_KUBERNETES = """\
# {title}
# Set the image to one with this project, its [train] extra and torch for your devices, and the claim to storage that
# all pods can write. Relative paths of the arguments begin in /runs.{counts}
{service}apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {num_nodes}
  parallelism: {num_nodes}
  # A failure ends all pods, which begin again at the newest checkpoint, {times} times at most. An eviction is none, nor
  # is the end of the other pods, which save and end with status {stopped}. What would be so again, bad input
  # ({refused}) or a loss that has diverged ({diverged}), ends it.
  backoffLimit: {retries}
  podFailurePolicy:
    rules:
      - action: FailJob
        onExitCodes:
          containerName: train
          operator: In
          values: [{refused}, {diverged}]
      - action: Ignore
        onExitCodes:
          containerName: train
          operator: In
          values: [{stopped}]
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
  template:
    spec:{subdomain}
      restartPolicy: Never
      terminationGracePeriodSeconds: {notice_s}
      containers:
        - name: train
          image: foretrain:latest
          workingDir: /runs
          env:
            - name: TORCH_ELASTIC_SHUTDOWN_TIMEOUT
              value: "{shutdown_s}"
          command:
{command}
          resources:
            limits:
              {resource}: {num_devices}
          volumeMounts:
            - name: runs
              mountPath: /runs
            - name: shared-memory
              mountPath: /dev/shm
      volumes:
        - name: runs
          persistentVolumeClaim:
            claimName: foretrain-runs
        - name: shared-memory
          emptyDir:
            medium: Memory
"""

_WRITERS: dict[str, Callable[[_Job], str]] = {"torchrun": _torchrun, "slurm": _slurm, "kubernetes": _kubernetes}

KINDS = tuple(_WRITERS)
"""Kinds of job files."""


def _resource(accelerator: Accelerator, kind: str) -> str:
    """Return what the vendor's device plugin calls the devices, which Slurm counts alike.

    A GCD of an MI250 is a PCI device of its own, and those are what AMD's plugin counts (GetAMDGPUs of
    ROCm/k8s-device-plugin, internal/pkg/amdgpu/amdgpu.go), and what Slurm is set up to count (docs.olcf.ornl.gov,
    Frontier User Guide: the 8 GCDs of a node "show as 8 separate GPUs").
    """
    for vendor, units, resource in (("NVIDIA", " sm", "nvidia.com/gpu"), ("AMD", " gfx", "amd.com/gpu")):
        if accelerator.vendor == vendor and units in accelerator.architecture:
            return resource
    raise ValueError(
        f"emit: {kind} has no resource that is known for {accelerator.id} of {accelerator.vendor}; use --emit torchrun"
    )


def _environment(job: _Job) -> list[str]:
    lines = [f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SHUTDOWN_S}  # seconds for the ranks to save and end on SIGTERM"]
    if any(source.url.startswith("measured:") for source in job.machine.accelerator.sources):  # with so many threads
        lines += [f"export OMP_NUM_THREADS={job.machine.accelerator.num_compute_units}"]
    elif job.machine.num_nodes > 1:
        lines += ["# NCCL and RCCL choose the network themselves; where they choose wrongly, set NCCL_SOCKET_IFNAME."]
    return lines


def _torchrun_words(job: _Job, endpoint: str, run: str) -> list[str]:
    """Return the launcher and its options as the shell reads them; what is given is quoted already."""
    return [" ".join(_LAUNCHER), *_torchrun_options(job.machine, endpoint, run), "-m trainer"]


def _torchrun_options(machine: Machine, endpoint: str, run: str) -> list[str]:
    options = [f"--nnodes={machine.num_nodes}", f"--nproc-per-node={machine.devices_per_node}"]
    if machine.num_nodes == 1:
        return ["--standalone", *options]
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={run}"]
    return [*options, *rendezvous, f"--rdzv-conf=join_timeout={JOIN_S},read_timeout={SHUTDOWN_S}"]


def _train_words(job: _Job, output: str) -> list[str]:
    """Return the arguments of `train` as the shell reads them, an option and its value together."""
    lines: list[str] = []
    for word in job.words:
        follows = lines and not word.startswith("--") and lines[-1].startswith("--") and " " not in lines[-1]
        if follows:
            lines[-1] += f" {shlex.quote(word)}"
        else:
            lines.append(shlex.quote(word))
    return lines if _has(job.words, "--output") else [*lines, f"--output {output}"]


def _yaml(word: str) -> str:
    """Return a word as YAML's quoted text, JSON's but for surrogates; Kubernetes reads `$$` as `$`."""
    escaped = (f"\\U{ord(c):08X}" if ord(c) > 0xFFFF else json.dumps(c)[1:-1] for c in word.replace("$", "$$"))
    return f'"{"".join(escaped)}"'


def _has(words: Sequence[str], option: str) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in words)
