"""What every command prints, as digests: the same before and after a change that is to change no output.

    python benchmarks/outputs.py FOLDER      # run all, keep what each printed in FOLDER, print a digest of each
    diff -r BEFORE AFTER                     # of two such folders: nothing, where nothing changed

The commands are those of the virtual environment whose Python runs this. Times that a command measured of itself are
blanked. The fits of `calibrate` run on one thread of linear algebra, so that they are the same to the last digit.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLES = "reports/measured/runs/measured_runs.csv"
NANOTRON = "reports/measured/runs/ultrascale_h100.csv"
LOGS = "reports/measured/cpu/100m_s256_n1_m1_b4/steps.jsonl"
BENCHMARKS = "reports/measured/timings/op_microbench.csv reports/measured/timings/collective_microbench.csv"
MOAI = " ".join(f"reports/measured/moai/{path.name}" for path in sorted((ROOT / "reports/measured/moai").glob("*.log")))
PLAN = "num_stages=2,num_micro_batches=16,tp=1,recomputation=none,distribute_param=true"
H100 = "--accelerator h100-sxm-80gb --devices 8"

COMMANDS = (
    "estimate",
    "estimate --help",
    "estimate --json",
    "estimate --explain",
    "estimate --flavor all",
    "estimate --flavor all --json --top 1",
    "estimate --space full",
    "estimate --space full --json --top 3",
    "estimate --flavor all --space full --objective cost --deadline 60m",
    f"estimate --why {PLAN} --space full",
    "estimate --why num_stages=3,num_micro_batches=16 --space full",
    f"estimate --plan {PLAN}",
    "estimate --plan num_stages=3",
    "estimate --plan tp=2,tp=4",
    "estimate --flavor xlarge --model meta-llama/Llama-2-13b-hf --seq-len 1024 --batch 64 --steps 500",
    "estimate --lora 16 --quantize 4 --flavor small",
    "estimate --flavor small",
    "estimate --flavor nowhere",
    "estimate --model nothing",
    "estimate --accelerator h100-sxm-80gb",
    "estimate --precision fp8-mixed",
    f"estimate {H100} --precision fp8-mixed --space full",
    "estimate --optimizer adamw-8bit --json",
    "estimate --model gpt3-175b --accelerator h100-sxm-80gb --devices 512 --batch 512 --failures --space full",
    "estimate --failures --device-mtbf 1000h --budget 20",
    "estimate --deadline yesterday",
    "estimate --flavor all --objective energy",
    *(
        f"estimate {H100} --stack {stack} --space full --batch 64 {form}"
        for stack in (
            "generic", "llm-foundry", "megatron", "megatron-deepspeed", "mlperf-amd", "mlperf-nvidia", "nanotron",
            "nanotron-early", "reference", "torchtune",
        )
        for form in ("", "--json --top 2")
    ),
    "estimate --stack nothing",
    f"calibrate {TABLES} --check",
    f"calibrate {TABLES} --check --json",
    f"calibrate {NANOTRON} --check --stack nanotron",
    f"calibrate {NANOTRON} --check --json",
    f"calibrate {LOGS} --check --catalog reports/measured/cpu/100m_s256_n1_m1_b4/machine.toml",
    f"calibrate {LOGS} --check --stack reference --json",
    f"calibrate {BENCHMARKS}",
    f"calibrate {BENCHMARKS} --json",
    f"calibrate {MOAI} --stack moai-24.2",
    f"calibrate {MOAI} --check --stack moai-24.2",
    f"calibrate {TABLES} --stack torchtune",
    f"calibrate {TABLES} --stack mlperf-amd --json",
    "calibrate",
    f"calibrate {TABLES}",
    f"calibrate {TABLES} --check --write",
    "calibrate README.md --check",
    "calibrate --help",
    "smi",
    "smi --json",
    "smi -p",
    "smi device --list",
    "smi --help",
    "switch-model -M 99",
    "switch-model --help",
    "train --help",
    "train --emit slurm --flavor 4xlarge",
    "train --emit torchrun --flavor small --plan num_stages=1,num_micro_batches=64",
    "train --emit kubernetes --flavor 4xlarge --plan best",
    "train --emit nothing",
    "train --plan num_stages=2,tp=3 --nproc 4",
    "train --nproc 0",
)  # fmt: skip

MEASURED = (
    (re.compile(r"searched in [\d.,]+ ms"), "searched in - ms"),
    (re.compile(r'("num_possible": \d+,\s*"seconds": )[\d.e-]+'), r"\1-"),
    (re.compile(r"\d\d:\d\d:\d\d [A-Z][a-z]+ \d\d, \d{4}"), "-"),
)


def run(command: str, home: str) -> str:
    """Return what a command printed on both streams, and its exit status."""
    words = shlex.split(command)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": home,
        "XDG_STATE_HOME": f"{home}/state",
        "XDG_RUNTIME_DIR": home,
        "COLUMNS": "160",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", ""),
    }
    where = Path(sys.executable).with_name(words[0])
    found = subprocess.run(  # noqa: S603 - the project's own commands
        [where, *words[1:]], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    text = f"{found.stdout}--- {found.stderr}--- {found.returncode}\n"
    for pattern, blank in MEASURED:
        text = pattern.sub(blank, text)
    return text


def main() -> None:
    """Run all commands, as many at once as there are processors, and keep and digest what they print."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home, ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, (command, text) in enumerate(zip(COMMANDS, pool.map(lambda c: run(c, home), COMMANDS), strict=True)):
            (folder / f"{i:02d}.txt").write_text(f"$ {command}\n{text}", encoding="utf-8")
            print(sha256(text.encode()).hexdigest()[:16], text.splitlines()[-1][4:], command, flush=True)
    print(f"{len(COMMANDS)} commands")


if __name__ == "__main__":
    main()
