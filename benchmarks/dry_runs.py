"""Dry runs of Mistral-7B under plans of each kind: `make dry-runs` writes reports/measured/dry_run/runs.csv."""

import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from estimator.work.plan import parse_plan
from estimator.work.shape import builtin_configs
from trainer.config import TrainConfig
from trainer.data.dataset import DataConfig
from trainer.look_ahead.dry_run import DryRun, dry_runs, stage_ranks
from trainer.look_ahead.meter import PURPOSES
from trainer.source import config_of

MODEL, SEQ_LEN, DEVICES, DEVICES_PER_NODE = "mistralai/Mistral-7B-v0.1", 2048, 32, 8
TARGET = Path("reports/measured/dry_run/runs.csv")
COLUMNS = ("plan", "precision", "devices", "seq_len", "rank", "stage", *PURPOSES, "total", "seconds", "resident_bytes")
PROCESSES = 2


@dataclass(frozen=True)
class Case:
    """A plan, and which of its ranks are run; none for one of each stage."""

    plan: str
    precision: str = "bf16-mixed"
    ranks: tuple[int, ...] = ()


CASES = (
    Case("num_stages=2,num_micro_batches=16,batch_per_device=1"),  # the seed run's
    Case("num_micro_batches=1"),
    Case("num_micro_batches=2"),
    Case("num_micro_batches=1,recomputation=full"),
    Case("num_micro_batches=1,recomputation=selective"),
    Case("num_micro_batches=1,shard_within_node=true"),
    Case("num_micro_batches=1,zero_stage=0"),
    Case("num_micro_batches=2,zero_stage=1"),
    Case("num_micro_batches=2,zero_stage=2"),
    Case("num_stages=4,num_micro_batches=4"),
    Case("num_stages=4,num_micro_batches=4,recomputation=full", ranks=(0,)),
    Case("num_stages=4,num_micro_batches=4,schedule=zero_bubble", ranks=(0, 24)),
    Case("num_stages=4,num_micro_batches=8,schedule=gpipe", ranks=(0, 24)),
    Case("num_stages=4,num_micro_batches=4,schedule=interleaved,virtual_stages=2", ranks=(0,)),
    Case("num_micro_batches=1,tp=2"),
    Case("num_micro_batches=1,tp=2,sequence_parallel=false"),
    Case("num_stages=2,num_micro_batches=2,tp=4"),
    Case("num_micro_batches=1", precision="bf16"),
    Case("num_micro_batches=1", precision="fp32"),
)


def main() -> None:
    """Run every rank of every case, two at a time, and write a row for each."""
    config = {key: value for key, value in builtin_configs()[MODEL].items() if key != "source"}
    model = config_of(config | {"sliding_window": None}, MODEL)  # rows are shorter than the window

    def run(case: Case, rank: int) -> DryRun:
        train = TrainConfig(plan=parse_plan(case.plan), data=DataConfig(seq_len=SEQ_LEN), precision=case.precision)
        return dry_runs(train, model, world_size=DEVICES, local_size=DEVICES_PER_NODE, ranks=[rank])[0]

    asked = [(case, rank) for case in CASES for rank in case.ranks or stage_ranks(parse_plan(case.plan), DEVICES)]
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with TARGET.open("w", encoding="utf-8", newline="") as file, ThreadPoolExecutor(PROCESSES) as pool:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (case, _), found in zip(asked, pool.map(run, *zip(*asked, strict=True)), strict=True):
            place = (case.plan, case.precision, DEVICES, SEQ_LEN, found.rank, found.stage)
            took = (found.total_bytes, round(found.seconds), found.resident_bytes)
            writer.writerow((*place, *(found.num_bytes[name] for name in PURPOSES), *took))
            file.flush()


if __name__ == "__main__":
    main()
