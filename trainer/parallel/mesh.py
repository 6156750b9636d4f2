"""Where a rank stands: the degrees of a plan as axes of one device mesh, and the process group under it."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from estimator.work.plan import Plan

AXES = ("pp", "dp_replicate", "dp_shard", "tp")
"""Ranks are laid tensor parallel first, stages last, as `estimator.formulas.layout` counts them."""

FIRST_STEP_TIMEOUT = timedelta(minutes=30)
"""The first collectives wait for the slowest rank's imports, checkpoint and compilation."""


@dataclass(frozen=True)
class World:
    """This process among those of its run, as its launcher says."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> "World":
        """Return what torchrun, or what stands in for it, has set; a process alone where it has set nothing."""
        value = {name: int(os.environ.get(name, usual)) for name, usual in _VARIABLES.items()}
        return cls(value["RANK"], value["WORLD_SIZE"], value["LOCAL_RANK"], value["LOCAL_WORLD_SIZE"])

    @property
    def num_nodes(self) -> int:
        """Machines of the run."""
        return -(-self.size // self.local_size)


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_device(world: World) -> torch.device:
    """Return the accelerator of this rank (CUDA and ROCm alike), or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", world.local_rank)
    return torch.device("cpu")


def start_processes(world: World, device: torch.device) -> None:
    """Join the process group of the run: NCCL or RCCL between accelerators, gloo between CPUs."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    device_id = device if device.type == "cuda" else None
    if is_launched():
        dist.init_process_group(backend, timeout=FIRST_STEP_TIMEOUT, device_id=device_id)
    else:
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=world.size, device_id=device_id)


@dataclass(frozen=True)
class Place:
    """The mesh of a plan, and where this rank is in it."""

    mesh: DeviceMesh
    """Axes `AXES`."""
    dp: int
    """Data-parallel degree."""
    dp_rank: int
    stage: int
    """Position in the pipeline; an interleaved stage has further chunks after the last position."""
    tp_rank: int

    @property
    def data_mesh(self) -> DeviceMesh:
        """The axes that parameters are replicated and sharded over."""
        if self.mesh["dp_replicate"].size() == 1:
            return self.mesh["dp_shard"]
        return self.mesh["dp_replicate", "dp_shard"]


def make_place(plan: Plan, world_size: int, local_size: int, device_type: str) -> Place:
    """Return the mesh of a plan over all ranks.

    What ZeRO shards is sharded over `dp_shard` and copied over `dp_replicate`: without ZeRO every rank holds a copy,
    with `shard_within_node` the replicas of a node hold one together, else all replicas do.

    Args:
        plan: one that divides the ranks (`trainer_limits` has refused the others).
        world_size: ranks of the run.
        local_size: ranks per node.
        device_type: "cuda" or "cpu".
    """
    dp = world_size // (plan.num_stages * plan.tp)
    shard = dp if plan.zero_stage else 1
    if plan.zero_stage and plan.shard_within_node:
        shard = min(max(local_size // plan.tp, 1), dp)
    mesh = init_device_mesh(device_type, (plan.num_stages, dp // shard, shard, plan.tp), mesh_dim_names=AXES)
    coordinate = mesh.get_coordinate()
    assert coordinate is not None  # every rank of the run is in its mesh
    stage, replica, part, tp_rank = coordinate
    return Place(mesh, dp, replica * shard + part, stage, tp_rank)
