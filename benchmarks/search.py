"""How fast the planner is: plans per second, seconds and memory of whole searches, and how time grows with plans.

Each search runs in a process of its own on one core, as often as `REPEATS` says; the median counts. `make bench`.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

REPEATS = 3
MIB_PER_KIB = 1 / 1024


class Case(NamedTuple):
    """One search."""

    name: str
    model: str
    accelerator: str
    num_devices: int
    batch: int


CASES = (
    Case("Mistral-7B, 4xLarge (32 x MI250 GCD)", "mistral-7b-v0.1", "mi250", 32, 256),
    Case("Mistral-7B, 128 x MI250 GCD", "mistral-7b-v0.1", "mi250", 128, 256),
    Case("175B, 1,024 x A100", "gpt3-175b", "a100-sxm-80gb", 1024, 1536),
    Case("175B, 16,384 x H100", "gpt3-175b", "h100-sxm-80gb", 16384, 16384),
    Case("1T, 3,072 x A100", "megatron-1t", "a100-sxm-80gb", 3072, 3072),
    Case("1T, 16,384 x H100", "megatron-1t", "h100-sxm-80gb", 16384, 16384),
)
GROWS = CASES[2]


def question(case: Case) -> tuple[Any, ...]:
    """Return the workload, the flavor, the stack and the catalog of a case."""
    from estimator.stack.stack import load_stack  # noqa: PLC0415
    from estimator.work.shape import load_shape  # noqa: PLC0415 - what the imports take is part of the memory
    from estimator.work.workload import Workload  # noqa: PLC0415
    from hardware.catalog import load_catalog  # noqa: PLC0415

    catalog = load_catalog()
    workload = Workload(load_shape(case.model), 2048, case.batch, 144)
    return workload, catalog.flavor_of(case.accelerator, case.num_devices), load_stack("moai-24.2"), catalog


def peak_mib() -> float:
    """Return the most memory that this process has held [MiB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MIB_PER_KIB


def whole(case: Case) -> dict[str, float]:
    """Search the full space of a case once: plans, those that fit, seconds, most memory [MiB]."""
    from estimator.search.planner import search  # noqa: PLC0415 - as above

    asked, before = question(case), peak_mib()
    started = time.perf_counter()
    found = search(*asked, space="full")
    seconds = time.perf_counter() - started
    plans, fit = found.num_candidates, found.num_possible
    return {"plans": plans, "fit": fit, "seconds": seconds, "mib": peak_mib(), "added": peak_mib() - before}


def every_flavor(case: Case) -> dict[str, float]:
    """Search the full space of every flavor of `--flavor all`, the case's devices left aside."""
    from estimator.search.planner import offers, search  # noqa: PLC0415 - as above

    (workload, _, stack, catalog), before = question(case), peak_mib()
    started = time.perf_counter()
    found = [search(workload, flavor, stack, catalog, space="full") for flavor in offers(catalog)]
    seconds = time.perf_counter() - started
    plans, fit = sum(e.num_candidates for e in found), sum(e.num_possible for e in found)
    return {"plans": plans, "fit": fit, "seconds": seconds, "mib": peak_mib(), "added": peak_mib() - before}


def growth(case: Case) -> dict[str, float]:
    """Evaluate the first blocks of a case's space up to each size: seconds by the number of plans."""
    from estimator.formulas.machine import Machine  # noqa: PLC0415 - as above
    from estimator.search.spaces import full_space  # noqa: PLC0415
    from estimator.search.sweep import sweep  # noqa: PLC0415

    workload, flavor, stack, catalog = question(case)
    machine = Machine.of(catalog, flavor)
    blocks = list(full_space(workload, machine, stack.habits))
    found = {}
    for count in sorted({max(len(blocks) * tenth // 10, 1) for tenth in (1, 2, 4, 6, 8, 10)}):
        started = time.perf_counter()
        plans = sweep(blocks[:count], workload, machine, stack).num_plans
        found[str(plans)] = time.perf_counter() - started
    return found


def median_of(what: Callable[[Case], dict[str, float]], case: Case) -> dict[str, float]:
    """Return the medians over runs, each in a fresh process on one core with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, what.__name__, json.dumps(case)]
    outs = [
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout  # noqa: S603 - ourselves
        for _ in range(REPEATS)
    ]
    runs = [json.loads(out) for out in outs]
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    """Print a line per search, and how the time grows with the plans of one of them."""
    print(
        f"{'search':38} {'plans':>11} {'fit':>11} {'seconds':>8} {'plans/s':>11} {'peak MiB':>9} {'of it search':>13}"
    )
    searches = [(case.name, whole, case) for case in CASES]
    searches.insert(1, (f"{CASES[0].model}, every flavor", every_flavor, CASES[0]))
    for name, what, case in searches:
        found = median_of(what, case)
        print(
            f"{name:38} {found['plans']:11,.0f} {found['fit']:11,.0f} {found['seconds']:8.2f} "
            f"{found['plans'] / found['seconds']:11,.0f} {found['mib']:9,.0f} {found['added']:13,.0f}"
        )
    sizes = {int(plans): seconds for plans, seconds in median_of(growth, GROWS).items()}
    print(f"\n{GROWS.name}, part of its space:")
    for plans, seconds in sizes.items():
        print(f"{plans:11,d} plans {seconds:8.3f} s {seconds / plans * 1e6:6.3f} s per million")
    print(f"correlation of seconds with plans {statistics.correlation(list(sizes), list(sizes.values())):.4f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        chosen = {"whole": whole, "every_flavor": every_flavor, "growth": growth}[sys.argv[1]]
        print(json.dumps(chosen(Case(*json.loads(sys.argv[2])))))
    else:
        main()
