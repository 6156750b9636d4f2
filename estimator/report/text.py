"""What a user reads on a terminal: the tables of an estimate and of a calibration."""

from collections.abc import Iterator
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.padding import Padding as Indented
from rich.table import Table
from rich.text import Text

from estimator.formulas.counts import trained_parameters
from estimator.formulas.failures import Endurance
from estimator.predict.evaluate import PlanEstimate
from estimator.predict.interval import Range
from estimator.report.assumptions import assumptions
from estimator.search.choice import differences
from estimator.search.planner import Estimate, not_modelled
from estimator.work.workload import Padding, Workload
from hardware.units import MIB

BAR_WIDTH = 20
MEMORY_NAMES = {
    "weights": "weights, compute",
    "master_weights": "weights, 32-bit",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "communication_buffers": "comm. buffers",
    "activations": "activations",
    "recomputed_layer": "recomputed layer",
    "attention_workspace": "attention workspace",
    "logits": "logits and loss",
    "workspace": "gathered workspace",
    "correction": "fitted correction",
}
STEP_NAMES = {
    "matmul": "matrix products",
    "attention": "attention",
    "elementwise": "element-wise ops",
    "tensor_parallel": "tensor parallel",
    "context_parallel": "context parallel",
    "expert_parallel": "expert parallel",
    "pipeline_bubble": "pipeline bubble",
    "stage_transfer": "stage transfers",
    "data_parallel": "data parallel",
    "optimizer": "optimizer",
    "offload": "offload to host",
    "host": "launch overhead",
    "unexplained": "unexplained, learned",
}


def number(value: float) -> str:
    """Return a value in three significant digits or more, never an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _with_interval(value: Range, unit: str, show: Any = number) -> Text:
    return Text.assemble((show(value.value), "bold"), f" {unit}  ", (f"{show(value.low)} to {show(value.high)}", "dim"))


def bar(fraction: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of text, full at 1.

    >>> bar(0.5, width=8), bar(2.0, width=4)
    ('####....', '####')
    """
    filled = round(min(max(fraction, 0.0), 1.0) * width)
    return "#" * filled + "." * (width - filled)


def plain_table(*columns: str) -> Table:
    """Return an empty table; a column whose name ends in `>` is aligned to the right."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="cyan")
    for name in columns:
        justify: Literal["left", "right"] = "right" if name.endswith(">") else "left"
        table.add_column(name.removesuffix(" >"), justify=justify, no_wrap=True, overflow="fold")
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def headline(estimate: Estimate) -> RenderableType:
    """Return what is trained, on what, and with which software."""
    workload, machine = estimate.workload, estimate.machine
    devices = f"{machine.num_devices} device{'s' if machine.num_devices > 1 else ''}"
    nodes = f"{machine.num_nodes} node{'s' if machine.num_nodes > 1 else ''}"
    table = _grid()
    table.add_row(
        "model",
        f"{workload.shape.name}, {estimate.num_params:,} parameters; {workload.num_steps:,} steps of "
        f"{workload.global_batch:,} x {workload.seq_len:,} = {workload.tokens_per_step:,} tokens",
    )
    table.add_row(
        "flavor",
        f"{estimate.flavor.id}: {devices} ({machine.accelerator.name}) on {nodes}, "
        f"{machine.accelerator.hbm_bytes / MIB:,.0f} MiB each",
    )
    if workload.recipe:
        table.add_row("recipe", f"{workload.recipe}; {trained_parameters(workload.shape):,} parameters trained")
    table.add_row("stack", "; ".join(part for part in (estimate.stack.name, estimate.stack_reason) if part))
    rests_on = estimate.basis
    if rests_on:
        table.add_row("basis", f"{rests_on}{_widening(estimate)}")
    return table


def _widening(estimate: Estimate) -> str:
    """Return why the interval is wider than that of what was measured, "" where it is not."""
    fit, family = estimate.stack.fit, estimate.workload.shape.family
    unseen_family = fit.families and family not in fit.families  # else the stack has no factor of a family's own
    if estimate.machine.accelerator.id not in fit.accelerators:
        return ", so the interval is wider"
    return f"; no {family} model was, so the interval is wider" if unseen_family else ""


def best_plan(estimate: Estimate, found: PlanEstimate) -> RenderableType:
    """Return the headline numbers of a plan."""
    table = _grid()
    text = found.plan.platform_line() if estimate.space == "moai" else str(found.plan)
    table.add_row("plan", Text(text, style="bold"))
    for name, told in (*_memory_rows(estimate, found), *_time_rows(estimate, found)):
        table.add_row(name, told)
    if estimate.workload.padding:
        table.add_row("useful", _packing(found, estimate.workload.padding, estimate.workload))
    if found.endurance:
        table.add_row("failures", _failures(found.endurance))
    cost = _with_interval(found.usd, "USD") if found.usd else Text("no price known")
    cost.append(f"  {number(found.kwh)} kWh at most")
    table.add_row("cost", cost)
    return table


def _memory_rows(estimate: Estimate, found: PlanEstimate) -> Iterator[tuple[str, RenderableType]]:
    used, total = found.memory.per_device_bytes.value, found.memory.total_bytes
    interval = (f"{total.low / MIB:,.0f} to {total.high / MIB:,.0f}", "dim")
    yield "memory", Text.assemble((f"{total.value / MIB:,.0f}", "bold"), " MiB in all  ", interval)
    usable = estimate.usable_bytes
    share = used / usable
    yield (
        "",
        f"fullest device {used / MIB:,.0f} MiB {bar(share)} {share:.0%} of the usable {usable / MIB:,.0f}",
    )


def _time_rows(estimate: Estimate, found: PlanEstimate) -> Iterator[tuple[str, RenderableType]]:
    window = estimate.stack.window
    seconds = _with_interval(found.step_s, "s")
    if window.slow_fraction > 0:
        slow = f"{number(found.slow_step_s)} s in the {window.slow_fraction:.0%} where the host is slow"
        seconds.append(f"  ({number(found.fast_step_s)} s, or {slow})")
    yield "step", seconds
    yield "sustained", _with_interval(found.tokens_per_s, "tokens/s")
    logged = _with_interval(found.logged_tokens_per_s, "tokens/s")
    if window.times == "launch":
        logged.append("  (the log's clock times only the launch of the work)")
    yield "as logged", logged
    yield "training", _with_interval(found.training_s.times(1 / 60), "min")
    whole = _with_interval(found.wall_s.times(1 / 60), "min")
    before = f"{found.wall.startup_s:.0f} s of startup and a first step of {found.wall.first_step_s:.0f} s"
    whole.append(f"  (after {before})")
    yield "start to end", whole


def _packing(found: PlanEstimate, padding: Padding, workload: Workload) -> Text:
    useful = padding.useful_fraction * workload.tokens_per_step / found.step_s.value
    saved = found.step_s.value * (workload.num_steps - padding.packed_steps) / 60
    return Text.assemble(
        (number(useful), "bold"),
        f" tokens/s, {padding.useful_fraction:.0%} of the rows; the rest is padding. Packed into "
        f"{padding.packed_rows:,} rows, {padding.packed_steps:,} steps would do and save {number(saved)} min",
    )


def _failures(endurance: Endurance) -> Text:
    mtbf_s, checkpoint_s, interval_s, goodput = map(float, endurance)
    return Text(
        f"one every {number(mtbf_s / 3600)} h; with a checkpoint of {number(checkpoint_s)} s every "
        f"{number(interval_s / 60)} min, {goodput:.1%} of the time is useful"
    )


PLATFORM_COLUMNS = ("stages >", "batches >", "rows >", "tp >", "recompute >")
"""What tells the plans of the platform's own space apart."""


def plans_table(estimate: Estimate, top: int) -> RenderableType:
    """Return the candidates, the stack's choice first."""
    platform = estimate.space == "moai"
    names = PLATFORM_COLUMNS if platform else ("plan",)
    table = plain_table(*names, "MiB >", "of usable", "device s >", "step s >", "tokens/s >")
    for found in estimate.plans[:top]:
        plan, share = found.plan, found.memory.per_device_bytes.value / estimate.usable_bytes
        risky = found.possible and found.is_risky
        own = (plan.num_stages, plan.num_micro_batches, plan.batch_per_device, plan.tp, plan.recomputation)
        table.add_row(
            *(map(str, own) if platform else (plan.brief(found.data_parallel),)),
            f"{found.memory.per_device_bytes.value / MIB:,.0f}",
            Text(f"{bar(share, 8)} {share:4.0%}{' risky' if risky else ''}"),
            number(found.device_s),
            number(found.step_s.value),
            number(found.tokens_per_s.value),
            style="bold" if found is estimate.best else None if found.possible else "dim",
        )
    return table


def breakdown_table(found: PlanEstimate) -> RenderableType:
    """Return where the step's seconds and the fullest device's memory go."""
    table = plain_table("step", "s >", "", "fullest device", "MiB >", "")
    left = _shares(found.step_breakdown, STEP_NAMES, 1.0)
    right = _shares(found.memory.breakdown_bytes, MEMORY_NAMES, MIB)
    for i in range(max(len(left), len(right))):
        table.add_row(*(left[i] if i < len(left) else ("", "", "")), *(right[i] if i < len(right) else ("", "", "")))
    return table


def _shares(parts: dict[str, float], names: dict[str, str], unit: float) -> list[tuple[str, str, str]]:
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return [
        (names[name], number(part / unit), bar(part / total, 10))
        for name, part in ordered
        if abs(part) > 0.0005 * total
    ]


def print_estimate(console: Console, estimate: Estimate, top: int, platform: Estimate | None = None) -> None:
    """Print an estimate: the workload, the best plan, the candidates, and where time and memory go.

    Args:
        console: where.
        estimate: what.
        top: how many plans to list.
        platform: the platform's own space, where the estimate is of a larger one.
    """
    console.print(headline(estimate))
    best = estimate.best
    if best is not None:
        console.print()
        console.print(best_plan(estimate, best))
    console.print()
    console.print(
        f"{estimate.num_possible} of {estimate.num_candidates} candidate{'s' * (estimate.num_candidates != 1)} fit; "
        f"space {estimate.space}, searched in {estimate.search_s * 1000:.0f} ms",
        style="dim",
    )
    if estimate.plans:
        console.print(plans_table(estimate, top))
    if best is None:
        return
    if platform is not None:
        print_platform_choice(console, best, platform)
    fastest = estimate.fastest
    if fastest is not None and fastest.step_s.value < best.step_s.value:
        why = (
            "Faster, but its interval of memory reaches beyond the usable:"
            if fastest.is_risky and not best.is_risky
            else "The platform compares seconds of the devices; counting the launch of work too, this would be faster:"
        )
        console.print(f"{why} {number(fastest.step_s.value)} s per step with {fastest.plan}", style="dim")
    console.print()
    console.print(breakdown_table(best))
    console.print()
    for text in not_modelled(estimate):
        console.print(f"not modelled: {text}", style="dim")


def in_words(found: PlanEstimate, other: PlanEstimate, most: int = 5) -> str:
    """Return where a plan's step takes longer or shorter than another's."""
    parts = differences(found, other)[:most]
    return ", ".join(
        f"{STEP_NAMES[part.purpose]} {'+' if part.seconds > 0 else '-'}{number(abs(part.seconds))} s" for part in parts
    )


def print_platform_choice(console: Console, best: PlanEstimate, platform: Estimate) -> None:
    """Print how many minutes the best plan of a larger space saves over the platform's choice, and where."""
    choice = platform.best
    if choice is None:
        return
    saved = (choice.wall_s.value - best.wall_s.value) / 60
    console.print(
        f"The platform would choose {choice.plan.platform_line()}: {number(choice.wall_s.value / 60)} min, "
        f"{number(abs(saved))} min {'more' if saved > 0 else 'less'}. Per step, against it: {in_words(best, choice)}."
    )


def print_why(console: Console, estimate: Estimate) -> None:
    """Print why the plan that was asked about cannot run, or how it ranks in a space and where it loses."""
    best, asked = estimate.best, estimate.asked
    assert asked is not None
    console.print(Text(str(asked.plan), style="bold"))
    if asked.is_illegal:
        console.print(f"cannot run on {estimate.flavor.id}: {asked.reason}")
        return
    if not asked.possible:
        console.print(f"does not fit {estimate.flavor.id}: {asked.reason}")
        console.print(breakdown_table(asked))
        return
    seconds, minutes = asked.step_s.value, asked.wall_s.value / 60
    console.print(
        f"fits {estimate.flavor.id}{', but may not' if asked.is_risky else ''}: {number(seconds)} s per step, "
        f"{number(minutes)} min; {estimate.num_faster:,} of the {estimate.num_possible:,} plans that fit "
        f"(space {estimate.space}) are faster"
    )
    if best is None or best.plan == asked.plan:
        console.print("it is the plan that is chosen")
        return
    console.print(
        f"against the plan that is chosen, {best.plan}: {seconds - best.step_s.value:+.2f} s per step, "
        f"{minutes - best.wall_s.value / 60:+.1f} min: {in_words(asked, best)}"
    )


def print_explanation(console: Console, estimate: Estimate) -> None:
    """Print every assumption behind an estimate: value, unit, evidence, source."""
    for name, value, unit, evidence, source in assumptions(estimate):
        console.print(Text.assemble((name, "cyan"), "  ", (f"{value} {unit}".strip(), "bold"), f"  {evidence}"))
        if source != "-":
            console.print(Indented(Text(source, style="dim"), (0, 0, 0, 4)))
