"""The command `estimate`: parse, call, print."""

import math
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from estimator.formulas.failures import DEVICE_MTBF_S
from estimator.report import text
from estimator.report.json import estimate_document, flavors_document
from estimator.search.choice import OBJECTIVES, Limits, choose, parse_duration, worth
from estimator.search.planner import SPACES, Estimate, offers, search, with_failures
from estimator.stack.recipe import OPTIMIZERS, PRECISIONS, Recipe
from estimator.stack.stack import Stack, load_stack
from estimator.work.defaults import SEED_BATCH, SEED_EPOCHS, SEED_MODEL, SEED_ROWS, SEED_SEQ_LEN, SEED_SPACE, SEED_STACK
from estimator.work.lengths import packed_rows, read_lengths, useful_fraction
from estimator.work.plan import Plan, parse_plan
from estimator.work.shape import load_shape
from estimator.work.workload import Padding, Workload, num_steps
from hardware.catalog import Catalog, load_catalog
from hardware.command import EXIT_DONE, open_console, print_json, run_command
from hardware.errors import shown, unknown_name
from hardware.models import Flavor
from hardware.smi.selection import current_flavor

EXIT_NOTHING_FITS = 3

estimate_app = typer.Typer(add_completion=False, rich_markup_mode=None)


def estimate_main() -> None:
    """Run `estimate`."""
    sys.exit(run_command(estimate_app, "estimate", sys.argv[1:]))


@estimate_app.command()
def estimate(
    flavor: Annotated[str | None, typer.Option(help="name of a flavor, or 'all'  [default: the current one]")] = None,
    model: Annotated[str, typer.Option(help="built-in name, directory, or config.json")] = SEED_MODEL,
    seq_len: Annotated[int, typer.Option(help="tokens per row")] = SEED_SEQ_LEN,
    batch: Annotated[int, typer.Option(help="rows per step, over all devices")] = SEED_BATCH,
    rows: Annotated[int | None, typer.Option(help=f"rows of the data set  [default: {SEED_ROWS}]")] = None,
    epochs: Annotated[int | None, typer.Option(help=f"passes over the rows  [default: {SEED_EPOCHS}]")] = None,
    steps: Annotated[int | None, typer.Option(help="optimizer steps, instead of rows and epochs")] = None,
    lengths: Annotated[Path | None, typer.Option(help="the rows' lengths: CSV of length,count, or JSON Lines")] = None,
    plan: Annotated[str, typer.Option(help="'best', or a plan such as num_stages=2,num_micro_batches=16")] = "best",
    space: Annotated[str, typer.Option(help=f"set of plans to search: {', '.join(SPACES)}")] = SEED_SPACE,
    stack: Annotated[str, typer.Option(help="name of a stack, or its TOML file")] = SEED_STACK,
    accelerator: Annotated[str | None, typer.Option(help="id of an accelerator, instead of a flavor")] = None,
    devices: Annotated[int | None, typer.Option(help="how many of that accelerator")] = None,
    catalog: Annotated[list[Path] | None, typer.Option(help="TOML file of further hardware; may be repeated")] = None,
    precision: Annotated[str | None, typer.Option(help=f"{', '.join(PRECISIONS)}  [default: the stack's]")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"{', '.join(OPTIMIZERS)}  [default: the stack's]")] = None,
    lora: Annotated[int, typer.Option(help="rank of adapters, all else frozen; 0 trains everything")] = 0,
    quantize: Annotated[str | None, typer.Option(help="bits of the frozen weights: 8, 4")] = None,
    objective: Annotated[str, typer.Option(help=f"what to make small: {', '.join(OBJECTIVES)}")] = OBJECTIVES[0],
    deadline: Annotated[str | None, typer.Option(help="time from start to end at most, such as 30m or 2.5h")] = None,
    budget: Annotated[float | None, typer.Option(help="USD at most")] = None,
    failures: Annotated[bool, typer.Option("--failures", help="count checkpoints and failures")] = False,
    device_mtbf: Annotated[str | None, typer.Option(help="mean time between failures of one device")] = None,
    why: Annotated[
        str | None, typer.Option(help="a plan: why it cannot run, or how it ranks and where it loses")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="how many plans to list")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    explain: Annotated[bool, typer.Option(help="list every assumption with its evidence")] = False,
) -> int:
    """Predict what a fine-tune needs, how fast it runs, how long it takes and what it costs."""
    hardware = load_catalog(catalog or [])
    for name, given, known in (("space", space, SPACES), ("objective", objective, OBJECTIVES)):
        if given not in known:
            raise ValueError(unknown_name(name, given, known))
    recipe = Recipe(precision, optimizer, lora, quantize)
    workload = _Work(model, seq_len, batch, rows, epochs, steps, lengths).workload(recipe)
    question = _Question(
        workload=workload,
        stack=recipe.stack(load_stack(stack), workload.shape),
        hardware=hardware,
        plan=None if plan == "best" else parse_plan(plan),
        space=space,
        objective=objective,
        device_mtbf_s=_device_mtbf_s(device_mtbf, failures=failures),
        limits=Limits(parse_duration("deadline", deadline) if deadline is not None else None, budget),
        top=top,
        as_json=as_json,
    )
    every = flavor is not None and flavor.casefold() == "all" and accelerator is None and devices is None
    beside = "--json" if as_json else "--flavor all" if every else ""
    if explain and beside:
        raise ValueError(f"explain: --explain is given beside {beside}; it explains the tables of one flavor")
    if why is not None and (beside or question.plan):
        raise ValueError(
            f"why: --why is given beside {beside or '--plan'}; it holds one plan against the best of a flavor"
        )
    if every:
        return _answer_all(question)
    where = _flavor(hardware, flavor, accelerator, devices)
    return _answer(question, where, explain=explain) if why is None else _say_why(question, where, parse_plan(why))


def _device_mtbf_s(text: str | None, *, failures: bool) -> float | None:
    if text is not None and not failures:
        raise ValueError(f"device-mtbf: {shown(text)} is given without --failures; add it")
    if text is not None:
        return parse_duration("device-mtbf", text)
    return DEVICE_MTBF_S if failures else None


class _Question(NamedTuple):
    """What is asked, whatever the flavor."""

    workload: Workload
    stack: Stack
    hardware: Catalog
    plan: Plan | None
    space: str
    objective: str
    limits: Limits
    device_mtbf_s: float | None
    """None where failures are not asked for."""
    top: int | None
    as_json: bool

    def on(self, flavor: Flavor) -> Estimate:
        """Return the answer for a flavor."""
        found = search(self.workload, flavor, self.stack, self.hardware, self.plan, self.space)
        return found if self.device_mtbf_s is None else with_failures(found, self.device_mtbf_s)


class _Work(NamedTuple):
    """What is to be trained, as the options say it."""

    model: str
    seq_len: int
    batch: int
    rows: int | None
    epochs: int | None
    steps: int | None
    lengths: Path | None

    def workload(self, recipe: Recipe) -> Workload:
        """Return the workload."""
        if self.steps is not None and (self.rows is not None or self.epochs is not None):
            raise ValueError(f"steps: --steps {self.steps} is given beside --rows or --epochs; give one or the other")
        if self.lengths is not None and (self.steps is not None or self.rows is not None):
            raise ValueError("lengths: --lengths is given beside --rows or --steps; its file has the number of rows")
        found = read_lengths(self.lengths) if self.lengths else None
        rows = found.num_rows if found else SEED_ROWS if self.rows is None else self.rows
        epochs = SEED_EPOCHS if self.epochs is None else self.epochs
        count = num_steps(rows, epochs, self.batch) if self.steps is None else self.steps
        padding = None
        if found:
            packed = packed_rows(found, self.seq_len)
            padding = Padding(useful_fraction(found, self.seq_len), packed, max(packed // self.batch * epochs, 1))
        shape = recipe.shape(load_shape(self.model))
        return Workload(shape, self.seq_len, self.batch, count, str(recipe), padding)


def _answer(question: _Question, flavor: Flavor, *, explain: bool) -> int:
    found = question.on(flavor)
    if question.plan is not None and found.plans[0].is_illegal:
        raise ValueError(f"plan: {found.plans[0].reason}")
    if question.as_json:
        print_json(estimate_document(found, question.top))
    else:
        console, searched = open_console(), question.space == "full" and question.plan is None
        platform = question._replace(space="moai").on(flavor) if searched else None
        text.print_estimate(console, found, question.top or 8, platform)
        if explain:
            console.print()
            text.print_explanation(console, found)
    if found.best is None:
        return _miss(_nothing_fits(found, question.hardware))
    if missed := question.limits.missed_by(found.best):
        return _miss(f"{flavor.id}: its best plan {missed}; see --flavor all for flavors that keep it")
    return EXIT_DONE


def _say_why(question: _Question, flavor: Flavor, plan: Plan) -> int:
    asked = question._replace(plan=plan).on(flavor).plans[0]
    found = search(
        question.workload,
        flavor,
        question.stack,
        question.hardware,
        space=question.space,
        faster_than=asked.step_s.value,
    )
    text.print_why(open_console(), found, asked)
    return EXIT_DONE


def _miss(message: str) -> int:
    print(message, file=sys.stderr)
    return EXIT_NOTHING_FITS


def _flavor(hardware: Catalog, flavor: str | None, accelerator: str | None, devices: int | None) -> Flavor:
    if accelerator is None and devices is None:
        return _current_flavor(hardware) if flavor is None else hardware.flavor(flavor)
    if flavor is not None:
        raise ValueError(f"flavor: {shown(flavor)} is given beside --accelerator or --devices; give one or the other")
    if accelerator is None or devices is None:
        raise ValueError("accelerator: --accelerator ID and --devices N go together; give both")
    return hardware.flavor_of(accelerator, devices)


def _current_flavor(hardware: Catalog) -> Flavor:
    current = current_flavor()
    if current.problem:
        print(current.problem, file=sys.stderr)
    return current.record(hardware)


def _answer_all(question: _Question) -> int:
    limits = question.limits
    found = [question.on(flavor) for flavor in offers(question.hardware, question.stack.habits.matmul_precision)]
    if question.plan is not None and all(estimate.plans[0].is_illegal for estimate in found):
        raise ValueError(f"plan: {found[0].plans[0].reason} (flavor {found[0].flavor.id}; no other takes it either)")
    chosen = choose(found, question.objective, limits)
    if question.as_json:
        print_json(flavors_document(found, chosen, question.top))
    else:
        text.print_flavors(open_console(), found, question.objective, limits, chosen)
    if chosen:
        return EXIT_DONE
    fitting = [(estimate.flavor.id, estimate.best) for estimate in found if estimate.best]
    if fitting:
        name, nearest = min(fitting, key=lambda item: worth(item[1], "time" if limits.deadline_s else "cost"))
        return _miss(f"no flavor keeps the limits; on {name} the best plan {limits.missed_by(nearest)}")
    least = min(found, key=lambda e: e.nearest_miss.excess_bytes if e.nearest_miss else math.inf)
    return _miss(f"no plan fits any flavor; the nearest is on {least.flavor.id}: {text.no_plan_reason(least)}")


def _nothing_fits(found: Estimate, hardware: Catalog) -> str:
    """Return the line that says how far the nearest plan is from fitting, and on which flavor one fits."""
    accelerator = found.machine.accelerator.id
    same = sorted(
        (f for f in hardware.flavors if hardware.node(f.node).accelerator == accelerator), key=lambda f: f.num_devices
    )
    fits = next((f.id for f in same if search(found.workload, f, found.stack, hardware).best), None)
    if search(found.workload, found.flavor, found.stack, hardware).best:
        mend = "another plan fits; leave out --plan to see it"
    elif fits:
        mend = f"the smallest flavor that fits is {fits}"
    else:
        mend = f"no flavor of {accelerator} fits" + ("; shorten the rows" if found.nearest_miss else "")
    return f"no plan fits {found.flavor.id}: {text.no_plan_reason(found)}; {mend}"
