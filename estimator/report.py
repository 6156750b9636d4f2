"""What a user reads on a terminal: the tables of an estimate and of a calibration."""

from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from estimator.calibrate import Trial
from estimator.explain import assumptions
from estimator.planner import Estimate, PlanEstimate, Range
from estimator.spaces import nearest_batch
from estimator.stack import Stack
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
    "host": "host issues work",
}


def _number(value: float) -> str:
    """Three significant digits or more, never an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _with_interval(value: Range, unit: str, show: Any = _number) -> Text:
    return Text.assemble((show(value.value), "bold"), f" {unit}  ", (f"{show(value.low)} to {show(value.high)}", "dim"))


def bar(fraction: float, width: int = BAR_WIDTH) -> str:
    """Return a bar of text, full at 1.

    >>> bar(0.5, width=8), bar(2.0, width=4)
    ('####....', '####')
    """
    filled = round(min(max(fraction, 0.0), 1.0) * width)
    return "#" * filled + "." * (width - filled)


def _table(*columns: str) -> Table:
    """Return an empty table; a column whose name ends in `>` is aligned to the right."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="cyan")
    for name in columns:
        justify: Literal["left", "right"] = "right" if name.endswith(">") else "left"
        table.add_column(name.removesuffix(" >"), justify=justify, no_wrap=True, overflow="fold")
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    return table


def headline(estimate: Estimate) -> RenderableType:
    """Return what is trained, on what, and with which software."""
    workload, machine = estimate.workload, estimate.machine
    nodes = f"{machine.num_nodes} node{'s' if machine.num_nodes > 1 else ''}"
    table = _grid()
    table.add_row(
        "model",
        f"{workload.shape.name}, {estimate.num_params:,} parameters; {workload.num_steps:,} steps of "
        f"{workload.global_batch:,} x {workload.seq_len:,} = {workload.tokens_per_step:,} tokens",
    )
    table.add_row(
        "flavor",
        f"{estimate.flavor.id}: {machine.num_devices} devices ({machine.accelerator.name}) on {nodes}, "
        f"{machine.accelerator.hbm_bytes / MIB:,.0f} MiB each",
    )
    trained = (
        ""
        if machine.accelerator.id == estimate.stack.fit.accelerator
        else (f"; measured on {estimate.stack.fit.accelerator} only, so the interval is wider")
    )
    seen = workload.shape.family in estimate.stack.fit.families
    unseen = "" if seen else f"; no {workload.shape.family} model was measured on it, so the interval is wider"
    table.add_row("stack", f"{estimate.stack.name}{trained}{unseen}")
    return table


def best_plan(estimate: Estimate, found: PlanEstimate) -> RenderableType:
    """Return the headline numbers of a plan."""
    workload, stack = estimate.workload, estimate.stack
    used = found.device_bytes.value
    table = _grid()
    table.add_row("plan", Text(found.plan.platform_line(), style="bold"))
    table.add_row(
        "memory",
        Text.assemble(
            (f"{found.total_bytes.value / MIB:,.0f}", "bold"),
            " MiB in all  ",
            (f"{found.total_bytes.low / MIB:,.0f} to {found.total_bytes.high / MIB:,.0f}", "dim"),
        ),
    )
    table.add_row(
        "",
        f"fullest device {used / MIB:,.0f} MiB {bar(used / estimate.usable_bytes)} "
        f"{used / estimate.usable_bytes:.0%} of the usable {estimate.usable_bytes / MIB:,.0f}",
    )
    seconds = _with_interval(found.step_s, "s")
    if stack.window.slow_fraction > 0:
        seconds.append(
            f"  ({_number(found.fast_step_s)} s, or {_number(found.slow_step_s)} s in the "
            f"{stack.window.slow_fraction:.0%} where the host is slow)"
        )
    table.add_row("step", seconds)
    table.add_row("sustained", _with_interval(found.step_s.inverse(workload.tokens_per_step), "tokens/s"))
    logged = _with_interval(found.logged_tokens_per_s, "tokens/s")
    if stack.window.times == "issue":
        logged.append("  (the log's clock times only the issue of the work)")
    table.add_row("as logged", logged)
    table.add_row("training", _with_interval(found.training_s.times(1 / 60), "min"))
    whole = _with_interval(found.wall_s.times(1 / 60), "min")
    whole.append(
        f"  (after {found.wall.startup_s:.0f} s of startup and a first step of {found.wall.first_step_s:.0f} s)"
    )
    table.add_row("start to end", whole)
    cost = _with_interval(found.usd, "USD") if found.usd else Text("no price known")
    cost.append(f"  {_number(found.kwh)} kWh at most")
    table.add_row("cost", cost)
    return table


def plans_table(estimate: Estimate, top: int) -> RenderableType:
    """Return the candidates, the stack's choice first."""
    table = _table(
        "stages >",
        "batches >",
        "rows >",
        "tp >",
        "recompute >",
        "MiB >",
        "of usable",
        "device s >",
        "step s >",
        "tokens/s >",
    )
    for found in estimate.plans[:top]:
        plan, share = found.plan, found.device_bytes.value / estimate.usable_bytes
        risky = found.possible and found.is_risky
        table.add_row(
            str(plan.num_stages),
            str(plan.num_micro_batches),
            str(plan.batch_per_device),
            str(plan.tp),
            plan.recomputation,
            f"{found.device_bytes.value / MIB:,.0f}",
            Text(f"{bar(share, 8)} {share:4.0%}{' risky' if risky else ''}"),
            _number(found.device_s),
            _number(found.step_s.value),
            _number(estimate.workload.tokens_per_step / found.step_s.value),
            style="bold" if found is estimate.best else None if found.possible else "dim",
        )
    return table


def breakdown_table(found: PlanEstimate) -> RenderableType:
    """Return where the step's seconds and the fullest device's memory go."""
    table = _table("step", "s >", "", "fullest device", "MiB >", "")
    left = _shares(found.step_breakdown, STEP_NAMES, 1.0)
    right = _shares(found.memory_breakdown, MEMORY_NAMES, MIB)
    for i in range(max(len(left), len(right))):
        table.add_row(*(left[i] if i < len(left) else ("", "", "")), *(right[i] if i < len(right) else ("", "", "")))
    return table


def _shares(parts: dict[str, float], names: dict[str, str], unit: float) -> list[tuple[str, str, str]]:
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return [
        (names[name], _number(part / unit), bar(part / total, 10))
        for name, part in ordered
        if abs(part) > 0.0005 * total
    ]


def print_estimate(console: Console, estimate: Estimate, top: int) -> None:
    """Print an estimate: the workload, the best plan, the candidates, and where time and memory go."""
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
    fastest = estimate.fastest
    if fastest is not None and fastest.step_s.value < best.step_s.value:
        console.print(
            f"The platform compares seconds of the devices. Counting the issue of work too, {fastest.plan} would be "
            f"faster: {_number(fastest.step_s.value)} s per step (the intervals overlap).",
            style="dim",
        )
    console.print()
    console.print(breakdown_table(best))
    console.print()
    for text in estimate.stack.not_modelled:
        console.print(f"not modelled: {text}", style="dim")


def print_flavors(console: Console, estimates: Sequence[Estimate]) -> None:
    """Print one line per flavor: its best plan, or why it has none."""
    workload, stack = estimates[0].workload, estimates[0].stack
    console.print(
        f"{workload.shape.name}, {workload.num_steps:,} steps of {workload.global_batch:,} x {workload.seq_len:,} "
        f"tokens, stack {stack.name}; each flavor's plan as the stack would choose it"
    )
    table = _table("flavor", "dev >", "plan >", "usable >", "step s >", "tokens/s >", "logged/s >", "min >", "USD >")
    missing = []
    for estimate in estimates:
        best = estimate.best
        if best is None:
            missing.append(f"{estimate.flavor.id}: {no_plan_reason(estimate)}")
            continue
        plan = best.plan
        table.add_row(
            estimate.flavor.id,
            str(estimate.flavor.num_devices),
            f"{plan.num_stages}x{best.data_parallel}x{plan.num_micro_batches}x{plan.batch_per_device}"
            + ("R" if plan.recomputation != "none" else ""),
            f"{best.device_bytes.value / estimate.usable_bytes:.0%}",
            _number(best.step_s.value),
            _number(workload.tokens_per_step / best.step_s.value),
            _number(best.logged_tokens_per_s.value),
            _number(best.wall_s.value / 60),
            _number(best.usd.value) if best.usd else "-",
        )
    console.print(table)
    console.print(
        "dev: devices; plan: stages x data parallel x micro-batches x rows, R recomputes; min: from start to end",
        style="dim",
    )
    for text in missing:
        console.print(f"no plan on {text}", style="dim")


def no_plan_reason(estimate: Estimate) -> str:
    """Return why no plan of a space is possible, in one line."""
    miss = estimate.nearest_miss
    if miss is not None:
        return f"the nearest, {miss.plan}, {miss.reason}"
    if estimate.plans:
        return estimate.plans[0].reason
    flavor, batch = estimate.flavor, estimate.workload.global_batch
    near = nearest_batch(flavor, batch)
    mend = f"; use --batch {near}" if near else ""
    return f"no data-parallel degree of its {flavor.num_devices} devices divides a batch of {batch}{mend}"


def print_explanation(console: Console, estimate: Estimate) -> None:
    """Print every assumption behind an estimate: value, unit, evidence, source."""
    for name, value, unit, evidence, source in assumptions(estimate):
        console.print(Text.assemble((name, "cyan"), "  ", (f"{value} {unit}".strip(), "bold"), f"  {evidence}"))
        if source != "-":
            console.print(Padding(Text(source, style="dim"), (0, 0, 0, 4)))


# --- calibration ------------------------------------------------------------------------------------------------------


def print_stack(console: Console, stack: Stack) -> None:
    """Print what a fit found."""
    table = _table("parameter", "prior", "fitted", "unit")
    values = stack.efficiencies("")._asdict()
    for i, (name, prior) in enumerate(stack.priors.items()):
        sd = stack.fit.covariance[i][i] ** 0.5
        table.add_row(name, f"{prior.median:g} +- {prior.log_sd:.0%}", f"{values[name]:.4g} +- {sd:.1%}", prior.unit)
    for name, family in stack.fit.families.items():
        factor, spread = stack.efficiencies(name).family_factor, stack.fit.family_log_sd
        table.add_row(
            f"factor of {name}", f"1 +- {spread:.0%}", f"{factor:.3f} +- {family.log_sd:.1%}", "device seconds"
        )
    console.print(table)


def print_trials(console: Console, trials: Sequence[Trial]) -> None:
    """Print runs held against predictions, and the median error."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="cyan")
    table.add_column("run")
    for name in (
        "step s",
        "measured",
        "error",
        "minutes",
        "as logged",
        "error",
        "MiB",
        "error",
        "candidates",
        "possible",
    ):
        table.add_column(name, justify="right")
    for trial in trials:
        run, seconds = trial.run, trial.step_s
        logged_error, memory_error = trial.logged_error, trial.memory_error
        table.add_row(
            run.log_name.removesuffix(".log"),
            f"{_number(seconds.value)} ({_number(seconds.low)}-{_number(seconds.high)})",
            _number(trial.measured_step_s),
            f"{trial.step_error:+.1%}",
            _number(trial.minutes.value),
            _number(trial.logged_tokens_per_s),
            "-" if logged_error is None else f"{logged_error:+.1%}",
            _number(trial.memory_mib.value),
            "-" if memory_error is None else f"{memory_error:+.1%}",
            f"{trial.num_candidates} ({run.num_candidates})",
            f"{trial.num_possible} ({run.num_possible})",
        )
    console.print(table)
    errors = sorted(abs(trial.step_error) for trial in trials)
    covered = sum(trial.step_s.low <= trial.measured_step_s <= trial.step_s.high for trial in trials)
    console.print(
        f"seconds per step: median absolute error {errors[len(errors) // 2]:.1%}, {covered} of {len(trials)} inside "
        "the 90 % interval; in parentheses what the log says"
    )
    for trial in trials:
        ran, chosen = str(trial.run.plan), trial.chosen
        console.print(
            f"{trial.run.log_name}: ran {ran}; chosen here: {'the same' if ran == chosen else chosen}", style="dim"
        )
