"""`make parity`: every plan of the list at full length, as a table of its largest differences from the plain loop."""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

from tests.parity.cases import CASES, CLIP_NORM, GLOBAL_BATCH, LR, STEPS, TOLERANCES, WEIGHT_DECAY, Case
from tests.parity.compare import Difference, Work

REPORT = Path("reports/validation/parity.md")


def main() -> int:
    """Train every case, print each, and write the report; 1 where one is beyond its tolerance."""
    found: dict[Case, Difference] = {}
    with TemporaryDirectory(prefix="foretrain-parity-") as folder:
        work = Work(Path(folder), STEPS)
        for number, case in enumerate(CASES):
            output = Path(folder) / f"run-{number}"
            found[case] = work.difference(case, output)
            print(f"{case.name}: {found[case]}", flush=True)
        example = work.plain("mistral", "fp32", packing=False)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text("\n".join(_lines(found, (example.losses[0], example.losses[-1]))) + "\n", encoding="utf-8")
    return int(not all(is_within(case, difference) for case, difference in found.items()))


def is_within(case: Case, found: Difference) -> bool:
    """Whether a case keeps its tolerance."""
    return all(a <= most for a, most in zip(found, case.tolerance, strict=True))


def _lines(found: dict[Case, Difference], losses: tuple[float, float]) -> Iterator[str]:
    yield "# Parity: every plan against one plain loop"
    yield ""
    yield "Written by `make parity`; do not edit."
    yield ""
    yield (
        f"{len(found)} plans of the reference trainer, {STEPS} steps of {GLOBAL_BATCH} rows each, over gloo on a CPU "
        f"(torch {torch.__version__}, transformers {transformers.__version__}). Each is a run as `train` makes it: the "
        "loader, a checkpoint read shard by shard, the schedule, clipping, AdamW, an evaluation, the export. The plain "
        "loop is one process: `AutoModelForCausalLM.from_pretrained`, the whole batch at once, `cross_entropy`, "
        f"`clip_grad_norm_({CLIP_NORM:g})`, `torch.optim.AdamW(lr={LR:g}, weight_decay={WEIGHT_DECAY:g})`; where rows "
        "are packed it reads each document alone. Models are random, of 4 layers and hidden size 64; prompts have no "
        f"loss, so rows count unevenly. The loss of the first model goes from {losses[0]:.3f} to {losses[1]:.3f}."
    )
    yield ""
    yield "Largest difference at any step: of the loss (and on held-out rows), of the gradient's norm (relative), and"
    yield f"after the last step of any exported weight, in learning rates. {_counted(found)}"
    for precision, adapters in ((precision, adapters) for precision in TOLERANCES for adapters in (False, True)):
        own = {case: found[case] for case in found if (case.precision, case.adapters) == (precision, adapters)}
        tolerance = next(iter(own)).tolerance
        largest = [max(column) for column in zip(*own.values(), strict=True)]
        yield ""
        yield f"## {precision}{', adapters' * adapters}"
        yield ""
        if adapters:
            yield "The plain loop trains them by peft, of rank 4 beside all linear modules; the weights are theirs."
            yield ""
        if precision != "fp32":
            yield "The plain loop updates 32-bit weights, and computes with a bfloat16 copy of them."
            yield ""
        yield "| ranks | model | plan | loss | norm | weights |"
        yield "|---|---|---|---|---|---|"
        yield f"| | | tolerance | {_cells(tolerance)} |"
        yield f"| | | largest | {_cells(largest)} |"
        for case, difference in own.items():
            ranks = f"{case.world} on {case.world // case.per_node} nodes" if case.per_node else case.world
            model = "; ".join([case.model, *["packed"] * case.packing, *["compiled"] * case.compiles])
            yield f"| {ranks} | {model} | {case.text.replace(',', ', ')} | {_cells(difference)} |"


def _cells(values: tuple[float, ...] | list[float]) -> str:
    return " | ".join(f"{value:.1e}" for value in values)


def _counted(found: dict[Case, Difference]) -> str:
    within = sum(is_within(case, difference) for case, difference in found.items())
    return f"{within} of {len(found)} plans are within the tolerance."


if __name__ == "__main__":
    sys.exit(main())
