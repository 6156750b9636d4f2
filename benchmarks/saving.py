"""What checkpoints cost: the step with one every 20 steps beside the step without, written meanwhile and waited for.

Two ranks on two CPU cores train the tiny model, sharded. They take turns of 20 steps: without a checkpoint, with one
written while training goes on, with one that is waited for; a turn with a checkpoint begins by saving, and ends when
it is written. A machine whose speed drifts slows neighbours alike: turns are compared with those of their own round.
Where all cores are busy, what a checkpoint costs is what the processor spends on it, which others' load changes less.
`make saving`.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from estimator.work.plan import parse_plan
from hardware.smi.jobs import Job, publish
from trainer.config import TrainConfig
from trainer.data.dataset import DataConfig, load_data
from trainer.display import Reporter
from trainer.jobs.launch import launch
from trainer.jobs.stop import Stop
from trainer.measure import Stopwatch
from trainer.parallel.mesh import World, local_device, start_processes
from trainer.parallel.saving import Keeping, Saver
from trainer.rank import leave
from trainer.source import find_model
from trainer.train import Run, take_step

RANKS, INTERVAL = 2, 20
MODES = ("none", "meanwhile", "waited for")


class Turns:
    """Turns of steps, on one rank of a run."""

    def __init__(self, config: TrainConfig) -> None:
        """Build the run."""
        world = World.from_environment()
        device = local_device(world)
        start_processes(world, device)
        data = load_data(config.data)
        self.run = Run(config, find_model("", data.vocab_size), data, world, device)
        self.is_main = world.rank == 0
        folder = config.output / f"log-{world.rank}"
        folder.mkdir(parents=True)
        self._parts = Stopwatch(device), Stop(), Reporter(folder, {}, 10**6, 0, None, is_main=False)
        self._job = publish(
            Job(job_id="saving", rank=world.rank, local_device=None, flavor="here", process="saving", total_steps=1)
        )
        self._savers = {
            mode: Saver(Keeping(config.output / mode, 1, is_async=mode == "meanwhile"), device, self.run.group, 0)
            for mode in MODES[1:]
        }
        self.stalls: dict[str, list[float]] = {mode: [] for mode in self._savers}
        self.writes: dict[str, list[float]] = {mode: [] for mode in self._savers}
        self.num_bytes = 0

    def steps(self, count: int) -> None:
        """Take so many steps."""
        for _ in range(count):
            take_step(self.run, *self._parts, self._job)

    def turn(self, mode: str) -> tuple[float, float]:
        """Take the steps of an interval, and return of each its seconds, and the processor's over all ranks."""
        dist.barrier()
        begun, busy = time.perf_counter(), time.process_time()
        if mode in self._savers:
            self.run.saver = self._savers[mode]
            self.run.save(waits=False)
        self.steps(INTERVAL)
        self.run.saver.finish()
        dist.barrier()
        spent = torch.tensor([time.process_time() - busy], dtype=torch.float64)
        seconds = time.perf_counter() - begun
        dist.all_reduce(spent)
        for saved in self.run.saver.ended():
            assert not saved.problem, saved.problem
            self.stalls[mode].append(saved.stall_s)
            self.writes[mode].append(saved.write_s)
            self.num_bytes = saved.num_bytes
        return seconds / INTERVAL, spent.item() / INTERVAL


def main() -> int:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="rows of a step")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if "RANK" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            return launch(RANKS, [*sys.argv[1:], "--output", folder], module="benchmarks.saving")
    rows = given.batch // RANKS
    config = TrainConfig(
        data=DataConfig(seq_len=512),
        plan=parse_plan(f"num_micro_batches=1,batch_per_device={rows},zero_stage=2"),
        global_batch=given.batch,
        num_steps=10**6,
        precision="fp32",
        output=given.output,
    )
    turns = Turns(config)
    turns.turn("meanwhile")  # memory of the copy, files, connections
    turns.turn("waited for")
    for kept in (turns.stalls, turns.writes):
        for seconds in kept.values():
            seconds.clear()
    rounds: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    for number in range(given.rounds):
        for mode in (*MODES[number % 3 :], *MODES[: number % 3]):
            rounds[mode].append(turns.turn(mode))
    if turns.is_main:
        report(turns, rounds)
    return 0


def report(turns: Turns, rounds: dict[str, list[tuple[float, float]]]) -> None:
    """Print what each mode's step took beside that without a checkpoint of its round: medians, and their spread."""
    print(f"checkpoint of {turns.num_bytes / 1e6:.1f} MB every {INTERVAL} steps, {len(rounds['none'])} rounds")
    for mode in MODES:
        for i, what in enumerate(("step", "processor")):
            more = [found[i] / bare[i] - 1 for found, bare in zip(rounds[mode], rounds["none"], strict=True)]
            spread = f", {statistics.median(more):+.1%} ({min(more):+.1%} to {max(more):+.1%})"
            seconds = statistics.median(found[i] for found in rounds[mode])
            print(f"{mode:11} {what:9} {seconds:.3f} s" + (spread if mode != "none" else ""))
        if mode in turns.stalls:
            stall, write = (1e3 * statistics.median(kept[mode]) for kept in (turns.stalls, turns.writes))
            print(f"{mode:11} held up   {stall:.0f} ms, written in {write:.0f} ms")


if __name__ == "__main__":
    leave(main())
