"""Every assumption behind an estimate: value, unit, evidence and source."""

import numpy as np

from estimator.formulas import attention, compute, counts, launch, traffic
from estimator.predict.residual import residual_log_sd
from estimator.search.planner import Estimate
from hardware.models import Link, Network
from hardware.units import MIB

OF_RECIPES = (
    "end_optimizer_bytes",
    "offloads_activations",
    "pages_optimizer",
    "orthogonalizes",
    "fused_loss",
    "updates_in_backward",
)
"""Habits that no stack has unless it is asked for them."""

Assumption = tuple[str, str, str, str, str]
"""Name, value, unit, kind of evidence, source."""


def assumptions(estimate: Estimate) -> list[Assumption]:
    """Return every assumption behind an estimate: its name, value, unit, kind of evidence, and source."""
    return [
        *_machine_assumptions(estimate),
        *_stack_assumptions(estimate),
        *_formula_assumptions(estimate),
        *_run_assumptions(estimate),
    ]


def _machine_assumptions(estimate: Estimate) -> list[Assumption]:
    accelerator, node = estimate.machine.accelerator, estimate.machine.node
    url, node_url, network = accelerator.sources[0].url, node.sources[0].url, node.network
    read = "measured" if url.startswith("measured:") else "datasheet"
    unit = accelerator.usual_precision
    rows = [
        ("device memory", f"{accelerator.hbm_bytes / MIB:,.0f}", "MiB", read, url),
        ("device memory bandwidth", f"{accelerator.hbm_bytes_per_s / 1e9:,.0f}", "GB/s", read, url),
        (f"device {unit} matrix peak", f"{accelerator.usual_flop_per_s / 1e12:,.1f}", "TFLOP/s", read, url),
        ("device power", f"{accelerator.tdp_w:,.0f}", "W", "assumed" if read == "measured" else read, url),
    ]
    for name, share in (
        ("best matrix rate", accelerator.matmul_efficiency),
        ("best memory bandwidth", accelerator.hbm_efficiency),
    ):
        rows.append((name, f"{share.value:.3f}", "of peak", share.evidence, f"{share.note} ({share.source.url})"))
    wires: list[tuple[str, Link | Network]] = [
        (f"link of {link.span} devices ({link.topology})", link) for link in node.links
    ]
    for name, wire in [*wires, ("network per node", network)]:
        source = node_url if wire.evidence == "datasheet" else node.note or node_url
        reached = wire.efficiency
        rows.append((name, f"{wire.bytes_per_s / 1e9:,.0f}", "GB/s per direction", wire.evidence, source))
        rows.append((f"{name}, reached", f"{reached.value:.2f}", "of peak", reached.evidence, reached.note))
        hop = node_url if wire.latency_evidence == "measured" else "order of a collective's hop"
        rows.append((f"{name}, a hop", f"{wire.latency_s * 1e6:g}", "us", wire.latency_evidence, hop))
    return rows


def _stack_assumptions(estimate: Estimate) -> list[Assumption]:
    stack, family = estimate.stack, estimate.workload.shape.family
    fit, values = stack.fit, stack.efficiencies(family)._asdict()
    rows: list[Assumption] = []
    unasked = {name for name in OF_RECIPES if getattr(stack.habits, name) in (None, False)}
    for name, habit in stack.habits.model_dump(exclude={"evidence", *unasked}).items():
        why = stack.habits.evidence.get(name)
        shown = ", ".join(habit) if isinstance(habit, tuple) else str(habit)
        rows.append((f"stack: {name}", shown, "", why.kind if why else "assumed", why.text if why else "-"))
    num_runs = sum(table.rows for table in stack.tables)
    for i, (name, prior) in enumerate(stack.priors.items()):
        value = f"{values[name]:.4g} +- {fit.covariance[i][i] ** 0.5:.0%}"
        source = f"{num_runs} runs; prior {prior.median:g} +- {prior.log_sd:.0%}: {prior.evidence}"
        rows.append((f"stack: {name}", value, prior.unit, "fitted", source))
    if family in fit.families:
        own = fit.families[family]
        factor, source = (
            f"{values['family_factor']:.3f} +- {own.log_sd:.0%}",
            f"measured runs of the family: {own.runs}",
        )
    else:
        factor, source = f"1 +- {fit.family_log_sd:.0%}", "an unseen family: the spread between the measured ones"
    rows.append((f"stack: factor of family {family}", factor, "on device seconds", "fitted", source))
    spread = f"runs around the model; intervals are Student's t with {fit.degrees_of_freedom} degrees of freedom"
    for name, log_sd, learned in (
        ("seconds per step", fit.step_log_sd, fit.step_residual),
        ("launch of work", fit.launch_log_sd, None),
        ("memory", fit.memory_log_sd, fit.memory_residual),
    ):
        told = f"{log_sd:.1%}"
        if learned:
            far = np.full((1, len(learned.lengths)), 1e3)
            least, most = (residual_log_sd(learned, log_sd, at).min() for at in (np.array(learned.places), far))
            told = f"{least:.1%} at a measured run to {most:.1%} far from all"
        rows.append((f"stack: spread of {name}", told, "one sigma", "fitted", spread))
    if estimate.machine.accelerator.id not in fit.accelerators:
        source = f"the stack was never measured on it, only on {', '.join(fit.accelerators) or 'nothing'}"
        rows.append(
            ("stack: further spread on this device", f"{fit.device_log_sd:.0%}", "one sigma", "assumed", source)
        )
    return rows + _reach_assumptions(estimate)


def _reach_assumptions(estimate: Estimate) -> list[Assumption]:
    """Return by how much intervals are wider for what lies beyond the runs of the stack's fit."""
    reach, size = estimate.stack.fit.reach, estimate.workload.shape.hidden_size
    if reach is None:
        return []
    words = {
        "nodes": f"more nodes than the {reach.most_nodes} measured",
        "size": "a model size that was not measured",
        "source": "a source of runs other than those measured",
    }
    why = "runs of the fit predicted without all of their kind, and as assumed, worth one group of them"
    return [
        (
            f"stack: further spread of {words[kind]}",
            f"{np.sqrt(far) * reach.step_log_sd[kind]:.1%}, {np.sqrt(far) * reach.memory_log_sd[kind]:.1%}",
            "one sigma of seconds, of memory",
            "fitted",
            why,
        )
        for kind, far in reach.beyond(estimate.machine.num_nodes, size, knows_source=False).items()
        if far
    ]


def _formula_assumptions(estimate: Estimate) -> list[Assumption]:
    shape, habits = estimate.workload.shape, estimate.stack.habits
    moved = [sum(both) / 1024 for both in zip(*traffic.executed_traffic(shape, habits), strict=True)]
    passes = {
        "kernels": "norms, rotary, residuals, activation, routing, casts: each op one pass over its operands",
        "compiled": "as fused kernels: each op one pass over its operands",
        "eager": "operators of transformers, counted one by one",
    }[habits.execution]
    tiles = ", ".join(f"{rows}x{columns}" for rows, columns in compute.TILES)
    loss, products = compute.SHAPE_LOSS, "765 matrix products on an H200 (reports/measured/h200)"
    rates, scores = attention.FUSED_ATTENTION_RATE, counts.MATERIALIZED_ATTENTION
    kernels = "CK flash attention beside matrix products in one run on MI300X (TraceLens, Hyperloom)"
    if habits.attention_kernel == "torch":
        kernels = "where it is not cuDNN's, whose speed was measured on an H200: " + kernels
    chunked, whole = traffic.chunked_loss_traffic_bytes, traffic.loss_traffic_bytes
    code = "ops of the eager attention of Hugging Face decoders, counted"
    return [
        ("kernel tiles", tiles, "rows x columns", "assumed", "tiles that hipBLASLt and cuBLAS ship"),
        ("products during a tile's load", f"{loss.tile_loads:g}", "", "measured", products),
        ("inner products to fill a kernel", f"{loss.depth:g}", "", "measured", products),
        ("loss of a partly filled wave", f"{loss.wave_exponent:g}", "exponent", "measured", products),
        ("sizes that are no multiple of 8", f"{loss.odd:.0%}", "longer", "measured", products),
        ("fused attention, forward", f"{rates['forward']}", "of matrix rate", "measured", kernels),
        ("fused attention, backward", f"{rates['backward']}", "of matrix rate", "measured", kernels),
        ("scores' traffic, forward", f"{scores.forward:g}", "bytes per score", "documented", code),
        ("scores' traffic, backward", f"{scores.backward:g}", "bytes per score", "documented", code),
        ("scores' workspace", f"{habits.score_workspace_bytes:g}", "bytes per score", "documented", code),
        (
            "loss traffic",
            f"{(chunked if habits.chunked_logits else whole)(habits):g}",
            "bytes per logit",
            "assumed",
            "its passes, counted",
        ),
        ("element-wise traffic, forward", f"{moved[0]:,.0f}", "KiB per token, layer", "assumed", passes),
        ("element-wise traffic, backward", f"{moved[1]:,.0f}", "KiB per token, layer", "assumed", passes),
        ("launch of a repeated layer", f"{launch.FULL_LAUNCH:.3f}", "of a layer's", "assumed", "as its FLOP"),
        (
            "launch of repeated attention",
            f"{launch.SELECTIVE_LAUNCH:.3f}",
            "of a layer's",
            "assumed",
            "a third of forward",
        ),
    ]


def _run_assumptions(estimate: Estimate) -> list[Assumption]:
    startup, window, load = estimate.stack.startup, estimate.stack.window, estimate.stack.log.evidence["load_s"]
    rows: list[Assumption] = [("startup: load", f"{startup.load_s:.1f}", "s", load.kind, load.text)]
    rows += [
        (f"startup: {name}", f"{value:.1f}", "s", "measured", startup.evidence)
        for name, value in (
            ("request", startup.request_s),
            ("search per candidate", startup.search_s_per_candidate),
            ("first step, beyond another", startup.first_step_excess_s),
        )
    ]
    rule = "inferred from the counts of candidates that 22 of 23 of the platform's logs print"
    rows.append(("space: candidates", f"{estimate.num_candidates}", "plans", "measured", rule))
    rows.append(("log: timed window", window.times, "", "measured", window.evidence))
    rows.append(("log: steps at the slow pace", f"{window.slow_fraction:.2f}", "of steps", "measured", window.evidence))
    rows.append(
        ("log: launch at the slow pace", f"{window.slow_ratio:.2f}", "of the fast", "measured", window.evidence)
    )
    if estimate.usd_per_device_h is not None:
        rows.append(("price", f"{estimate.usd_per_device_h:g}", "USD/device/h", "given", "as asked"))
    rows.extend(
        (f"price: {price.provider} ({price.market})", f"{price.usd_per_device_h:g}", "USD/device/h", str(price.on), url)
        for price in estimate.prices
        for url in [f"{price.note} {price.sources[0].url}".strip()]
    )
    return rows
