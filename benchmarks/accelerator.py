"""The trainer on one accelerator: smoke tests of its paths, and measured runs beside what was predicted of each.

Each run is a process of its own with a time limit, the most telling first, until the seconds that are given are over;
what it found is written at once. No network and no checkpoint is needed: weights and tokens are random.

    python3 benchmarks/accelerator.py --predict FILE   what the stack `reference` says of each run, without a device
    python3 benchmarks/accelerator.py --out FOLDER     FOLDER/results.jsonl, and the step logs in FOLDER/logs.jsonl
        --smoke             tiny models through every path; on processors too
        --eager             of those, what compiles nothing: a rehearsal of seconds
        --baseline OTHER    runs of 7B also by the trainer of another checkout
"""

import argparse
import json
import multiprocessing
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

STEPS, WARM = 8, 3
"""Of a run, and of them those at its begin that no median counts."""

LEAST_S = 15.0
"""Left of the time limit, for a run to be begun."""

MODELS = {
    "7b": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "3b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 28,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "1b": {
        "model_type": "mistral",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "model_type": "mistral",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
COMMON = {"max_position_embeddings": 32768, "sliding_window": None, "tie_word_embeddings": False}


@dataclass(frozen=True)
class Case:
    """One run of the trainer by one process."""

    model: str
    seq_len: int
    rows: int
    """Of a micro-batch."""
    compiles: bool = True
    recomputation: str = "none"
    precision: str = "bf16"
    micro_batches: int = 1
    packing: int = 0
    """Tokens of the documents that share a row; 0 for one document a row."""
    attention: str = "sdpa"
    steps: int = STEPS
    limit_s: int = 90

    @property
    def name(self) -> str:
        """What tells the run from the others."""
        parts = [self.model, f"s{self.seq_len}", f"m{self.rows}" + f"x{self.micro_batches}" * (self.micro_batches > 1)]
        parts += [self.recomputation, "c" if self.compiles else "e", self.precision]
        parts += [f"packed{self.packing}"] if self.packing else []
        return "_".join(parts + ([self.attention] if self.attention != "sdpa" else []))

    @property
    def plan(self) -> str:
        """The plan."""
        return (
            f"num_stages=1,tp=1,num_micro_batches={self.micro_batches},batch_per_device={self.rows},"
            f"recomputation={self.recomputation},zero_stage=0"
        )


SEVEN, ONE = Case("7b", 2048, 4), Case("1b", 2048, 4, limit_s=60)
BESIDE_BASELINE = (SEVEN, replace(SEVEN, recomputation="full"), replace(SEVEN, packing=512))
CASES = (
    *BESIDE_BASELINE,
    replace(SEVEN, recomputation="selective"),
    replace(SEVEN, micro_batches=4, recomputation="full", precision="bf16-mixed", steps=5),
    *(
        replace(ONE, seq_len=seq_len, rows=rows, micro_batches=count, recomputation=again, compiles=compiles)
        for seq_len, rows, count, again, compiles in (
            (2048, 4, 1, "none", True),
            (2048, 16, 1, "none", True),
            (2048, 16, 1, "full", True),
            (1024, 1, 1, "none", True),
            (512, 1, 1, "none", False),
            (2048, 4, 4, "none", True),
            (8192, 1, 1, "none", False),
            (16384, 1, 1, "none", True),
        )
    ),
    replace(ONE, precision="bf16-mixed"),
    replace(ONE, micro_batches=2, compiles=False, precision="bf16-mixed"),
    Case("3b", 2048, 4),
    *(
        replace(SEVEN, seq_len=seq_len, rows=rows, micro_batches=count, recomputation=again, compiles=compiles)
        for seq_len, rows, count, again, compiles in (
            (2048, 4, 1, "none", False),
            (8192, 1, 1, "none", True),
            (2048, 1, 1, "none", True),
            (2048, 2, 4, "none", True),
            (8192, 1, 1, "full", True),
            (2048, 4, 1, "full", False),
            (2048, 2, 1, "none", True),
            (2048, 2, 1, "none", False),
            (4096, 2, 1, "none", True),
        )
    ),
    Case("3b", 4096, 2, recomputation="full"),
)
"""The most telling first; among them the twenty of reports/measured/h200/blind.csv."""

TINY = Case("tiny", 128, 4, compiles=False, precision="fp32", steps=4, limit_s=60)
SMOKE = (
    TINY,
    replace(TINY, compiles=True),
    replace(TINY, compiles=True, recomputation="full"),
    replace(TINY, recomputation="full"),
    replace(TINY, recomputation="selective", precision="bf16"),
    replace(TINY, compiles=True, precision="bf16-mixed", micro_batches=2),
    replace(TINY, packing=32),
    replace(TINY, packing=32, compiles=True, precision="bf16"),
    replace(TINY, packing=32, compiles=True, precision="bf16", recomputation="full"),
)


def config_of(model: str) -> dict[str, Any]:
    """Return a model's Hugging Face config."""
    return COMMON | MODELS[model]


def prediction(case: Case, accelerator: str) -> dict[str, Any]:
    """Return what the stack `reference` says of a run on one accelerator of the catalog."""
    from estimator import estimate  # noqa: PLC0415 - a run imports the trainer alone

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(config_of(case.model)), encoding="utf-8")
        found = estimate(
            str(path),
            accelerator=accelerator,
            devices=1,
            stack="reference",
            seq_len=case.seq_len,
            batch=case.rows * case.micro_batches,
            steps=case.steps,
            plan=case.plan,
            precision=case.precision,
            compiles=case.compiles,
        )
    plan = found.plans[0]
    memory = plan.memory.per_device_bytes
    return {
        "name": case.name,
        "accelerator": accelerator,
        "step_s": list(plan.step_s),
        "reserved_bytes": list(memory),
        "fits": plan.possible,
    }


# --- one run ----------------------------------------------------------------------------------------------------------


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Train, and return what was measured: medians of the last steps, peaks, and the seconds of the start."""
    import numpy as np  # noqa: PLC0415 - the parent imports nothing that is slow
    import torch  # noqa: PLC0415

    from estimator.work.plan import parse_plan  # noqa: PLC0415
    from hardware.catalog import load_catalog  # noqa: PLC0415
    from hardware.smi.jobs import Job, publish  # noqa: PLC0415
    from trainer.config import TrainConfig  # noqa: PLC0415
    from trainer.data.dataset import Data, DataConfig  # noqa: PLC0415
    from trainer.data.token_rows import TokenRows  # noqa: PLC0415
    from trainer.display import Reporter  # noqa: PLC0415
    from trainer.jobs.stop import Stop  # noqa: PLC0415
    from trainer.measure import Stopwatch  # noqa: PLC0415
    from trainer.parallel.mesh import World, local_device, start_processes  # noqa: PLC0415
    from trainer.parallel.optimizer import OptimizerConfig  # noqa: PLC0415
    from trainer.source import ModelSource  # noqa: PLC0415
    from trainer.source import config_of as hugging_face  # noqa: PLC0415
    from trainer.train import Run, take_step  # noqa: PLC0415

    begun = time.perf_counter()
    device, sizes = local_device(World()), config_of(case.model)
    start_processes(World(), device)
    on_device = device.type == "cuda"
    accelerator = load_catalog().accelerator_named(torch.cuda.get_device_name()).id if on_device else ""
    length = case.packing or case.seq_len
    count = case.rows * case.micro_batches * case.steps * (case.seq_len // length)
    tokens = np.random.default_rng(0).integers(0, sizes["vocab_size"], count * length, dtype=np.int32)
    lengths = np.full(count, length)
    rows = TokenRows(tokens, np.arange(count) * length, lengths, np.ones(count, dtype=np.int64), "random")
    data = Data(rows, rows.take(np.arange(0)), None, sizes["vocab_size"], 0)  # type: ignore[arg-type]
    config = TrainConfig(
        data=DataConfig(seq_len=case.seq_len, packing=bool(case.packing)),
        plan=parse_plan(case.plan),
        optimizer=OptimizerConfig(lr=1e-5, clip_norm=1.0),
        global_batch=case.rows * case.micro_batches,
        num_steps=case.steps,
        precision=case.precision,
        attention=case.attention,
        compiles=case.compiles,
        accelerator=accelerator,
        output=folder,
    )
    source = ModelSource(case.name, hugging_face(sizes, case.name), None)
    trained = Run(config, source, data, World(), device)
    if on_device:
        torch.cuda.synchronize()
    built_s = time.perf_counter() - begun
    watch, stop = Stopwatch(device), Stop()
    reporter = Reporter(folder, trained.record(), case.steps, 0, None, is_main=True)
    job = publish(Job(job_id="bench", rank=0, local_device=None, flavor="here", process="bench", total_steps=1))
    watch.end_step()
    for _ in range(case.steps):
        take_step(trained, watch, stop, reporter, job)
    reporter.close()
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()][1:]
    last = steps[min(WARM, len(steps) - 1) :]
    step_s = statistics.median(step["step_s"] for step in last)
    return {
        "step_s": step_s,
        "tokens_per_s": last[-1]["tokens"] / step_s,
        **{name: statistics.median(step[name] for step in last) for name in ("compute_s", "optimizer_s", "log_s")},
        "allocated_bytes": last[-1]["peak_allocated_bytes"],
        "reserved_bytes": last[-1]["peak_reserved_bytes"],
        "losses": [round(step["loss"], 4) for step in steps],
        "built_s": built_s,
        "first_step_s": steps[0]["step_s"],
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_device else "cpu",
    }


def _child(case: Case, folder: str, found: Any) -> None:
    """Run in a process of its own, its output kept aside."""
    with Path(folder, "output.txt").open("w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        try:
            found.put(run(case, Path(folder)))
        except BaseException:  # noqa: BLE001 - whatever it is, it is the run's result
            found.put({"error": traceback.format_exc()[-2000:]})
        found.close()
        found.join_thread()
        os._exit(0)


def quick_weights() -> None:
    """Fill the weights of an older trainer on the device, which took a minute to draw 7B."""
    import torch  # noqa: PLC0415

    import trainer.train  # noqa: PLC0415

    def fill(stages: Any, _: int) -> None:
        with torch.no_grad():
            for stage in stages:
                for parameter in stage.parameters():
                    parameter.normal_(0.0, 0.02) if parameter.ndim > 1 else parameter.fill_(1.0)

    trainer.train.draw_weights = fill


# --- all of them ------------------------------------------------------------------------------------------------------


class Results:
    """Where results go, as they come."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Write to a folder, for so many seconds."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.end = folder, time.monotonic() + seconds
        self.failed = 0

    def write(self, name: str, found: dict[str, Any]) -> None:
        """Append what a run came to."""
        self.failed += "error" in found
        with (self.folder / "results.jsonl").open("a", encoding="utf-8") as out:
            print(json.dumps({"name": name, **found}), file=out)
        if "error" in found:
            shown = found["error"].strip().splitlines()[-1]
        else:
            shown = f"{found['step_s']:.4f} s  {found['tokens_per_s']:,.0f} tokens/s"
            shown += f"  {found['allocated_bytes'] / 1e9:.2f} of {found['reserved_bytes'] / 1e9:.2f} GB"
            shown += f"  built {found['built_s']:.1f} s, first step {found['first_step_s']:.1f} s"
        print(f"{self.end - time.monotonic():5.0f} s left  {name:<48} {shown}", flush=True)

    def keep_log(self, name: str, folder: Path) -> None:
        """Append the step log of a run, each line with its name."""
        path = folder / "steps.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        with (self.folder / "logs.jsonl").open("a", encoding="utf-8") as out:
            out.writelines(json.dumps({"run": name, **json.loads(line)}) + "\n" for line in lines)
        output = folder / "output.txt"
        if output.is_file():
            with (self.folder / "output.txt").open("a", encoding="utf-8") as out:
                out.write(f"== {name}\n{output.read_text(encoding='utf-8', errors='replace')[-3000:]}\n")


def what_it_found(process: Any, found: Any, limit_s: float) -> dict[str, Any]:
    """Return what a process puts into its queue, or how it failed to; one that was killed is not waited for."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        is_alive = process.is_alive()  # asked first: what it found may arrive with its end
        try:
            result: dict[str, Any] = found.get(timeout=1.0)
        except queue.Empty:
            if not is_alive:
                return {"error": f"ended with status {process.exitcode} and no result"}
        else:
            return result
    return {"error": f"not done in {limit_s:.0f} s"}


def forked(case: Case, context: Any, limit_s: float, results: Results) -> None:
    """Run a case in a process forked from one that has imported all it needs."""
    with tempfile.TemporaryDirectory() as folder:
        channel = context.Queue()
        process = context.Process(target=_child, args=(case, folder, channel))
        process.start()
        found = what_it_found(process, channel, limit_s)
        process.kill()
        process.join()
        results.write(case.name, found)
        results.keep_log(case.name, Path(folder))


def of_baseline(case: Case, baseline: Path, limit_s: float, results: Results) -> None:
    """Run a case by the trainer of another checkout."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", json.dumps(asdict(case)), "--out", folder]
        environment = {**os.environ, "PYTHONPATH": f"{baseline}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        try:
            done = subprocess.run(  # noqa: S603 - ourselves
                command, env=environment, cwd=baseline, capture_output=True, text=True, timeout=limit_s, check=False
            )
            text = done.stdout.splitlines()[-1:] if done.returncode == 0 else []
            found = json.loads(text[0]) if text else {"error": (done.stderr or "nothing was said")[-2000:]}
        except subprocess.TimeoutExpired:
            found = {"error": f"not done in {limit_s:.0f} s"}
        results.write(f"{case.name} baseline", found)


def parts(given: argparse.Namespace, results: Results) -> Iterator[Callable[[float], None]]:
    """Yield what is to be done, in order; each takes the seconds that are left."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.train"])
    cases = SMOKE if given.smoke else CASES
    for case in (case for case in cases if not (given.eager and case.compiles)):
        yield lambda left, case=case: forked(case, context, min(case.limit_s, left), results)  # type: ignore[misc]
        if given.baseline and case in BESIDE_BASELINE:
            yield lambda left, case=case: of_baseline(case, given.baseline.resolve(), min(case.limit_s, left), results)  # type: ignore[misc]


def main() -> int:
    """Do what is asked for; status 1 if a run failed, or a smoke test was not begun."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predict", type=Path, help="write the predictions of all runs, and end")
    parser.add_argument("--accelerator", default="h200-sxm-141gb", help="of the predictions, as the catalog names it")
    parser.add_argument("--out", type=Path, default=Path("build/accelerator"), help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="tiny models through every path")
    parser.add_argument("--eager", action="store_true", help="leave out what is compiled")
    parser.add_argument("--baseline", type=Path, help="another checkout of this repository")
    parser.add_argument("--seconds", type=float, default=520.0, help="after which no run is begun")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.predict:
        found = [prediction(case, given.accelerator) for case in CASES if not case.packing]
        given.predict.write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
        return 0
    if given.one:
        quick_weights()
        print(json.dumps(run(Case(**json.loads(given.one)), given.out)))
        sys.stdout.flush()
        os._exit(0)
    results = Results(given.out, given.seconds)
    left_out = 0
    for part in parts(given, results):
        left = results.end - time.monotonic()
        if left < LEAST_S:
            left_out += 1
        else:
            part(left)
    if left_out:
        print(f"{left_out} runs were not begun: {given.seconds:.0f} s were over; give more --seconds")
    return 1 if results.failed or (given.smoke and left_out) else 0


if __name__ == "__main__":
    sys.exit(main())
