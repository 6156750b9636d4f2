"""A predicted step as a trace for chrome://tracing and ui.perfetto.dev.

The form is that of the Trace Event Format (JSON object format): complete events `X` with their start and length in
microseconds, flows `s` and `f` from a pass to the one that waits for it, counters `C`, and names `M`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from estimator.formulas.schedule import BACKWARD, FORWARD, KINDS, WEIGHT_GRADIENT, Stream
from estimator.predict.timeline import StepTimeline, step_timeline
from estimator.search.planner import Estimate
from hardware.units import MIB

Event = dict[str, Any]


class Track(NamedTuple):
    """A stream of a stage, as a thread of its process."""

    tid: int
    name: str


COMPUTE, TO_NEXT, TO_BEFORE, COLLECTIVES, HOST = (
    Track(1, "compute"),
    Track(2, "activations to the next stage"),
    Track(3, "gradients to the stage before"),
    Track(4, "data-parallel collectives, as far as they are waited for"),
    Track(5, "host"),
)
TRACKS_OF_AFTER = {"data_parallel": COLLECTIVES, "host": HOST}


def trace(answer: Estimate) -> dict[str, Any]:
    """Return one step of an answer's best or only plan as a trace, to be written as JSON for a trace viewer.

    A process is a pipeline stage, with its passes and what they consist of, its transfers and its memory. What is said
    beside the events: what was asked, the step in seconds as the events have it and as it is estimated, and the
    seconds after the last pass, of which `unexplained` may be negative.

    Args:
        answer: of `estimate` on one flavor.

    Raises:
        ValueError: no plan of the answer fits.
    """
    best = answer.best
    if best is None:
        raise ValueError(
            f"trace: no plan fits {answer.flavor.id}, so that there is no step to draw; take a larger flavor"
        )
    step = step_timeline(best.plan, answer.workload, answer.machine, answer.stack)
    said = {
        "model": answer.workload.shape.name,
        "flavor": answer.flavor.id,
        "stack": answer.stack.name,
        "plan": str(step.plan),
        "step_s": step.seconds,
        "estimated_step_s": best.step_s.value,
        "estimated_step_s_low": best.step_s.low,
        "estimated_step_s_high": best.step_s.high,
        "after_the_pipeline_s": step.after,
    }
    return {"traceEvents": list(trace_events(step)), "displayTimeUnit": "ms", "otherData": said}


def trace_events(step: StepTimeline) -> Iterator[Event]:
    """Yield the events of a step: a process for each pipeline stage."""
    for stage in range(step.plan.num_stages):
        yield from _names(stage, step.plan.num_stages)
        if step.before_s:
            yield _complete(stage, HOST, "launch", 0.0, step.before_s, "host")
        yield from _passes(stage, step)
        yield from _sends(stage, step)
        yield from _after(stage, step)
        yield from _memory(stage, step)
    yield from _flows(step)


def _names(stage: int, num_stages: int) -> Iterator[Event]:
    name = f"stage {stage}" if num_stages > 1 else "every device"
    yield {"ph": "M", "name": "process_name", "pid": stage, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": stage, "tid": 0, "args": {"sort_index": stage}}
    for track in (COMPUTE, TO_NEXT, TO_BEFORE, COLLECTIVES, HOST):
        yield {"ph": "M", "name": "thread_name", "pid": stage, "tid": track.tid, "args": {"name": track.name}}


def _passes(stage: int, step: StepTimeline) -> Iterator[Event]:
    """Yield each pass of a stage, and within it what it consists of, one kind of op after the other."""
    within = {kind: _parts(stage, step, kind) for kind in (FORWARD, BACKWARD, WEIGHT_GRADIENT)}
    for kind, chunk, micro_batch, start, end in _rows(step.pipeline.passes[stage]):
        at = start + step.before_s
        args = {"micro_batch": micro_batch, "chunk": chunk}
        yield _complete(stage, COMPUTE, f"{KINDS[kind]} {micro_batch}", at, end - start, KINDS[kind], args)
        for name, seconds, category in within[kind]:
            yield _complete(stage, COMPUTE, name, at, seconds, category)
            at += seconds


def _parts(stage: int, step: StepTimeline, kind: int) -> list[tuple[str, float, str]]:
    """Return what a pass of a kind consists of: name, seconds and category of each part that takes any."""
    passes, later = step.passes, float(step.passes.weight_gradient[stage])
    split = step.plan.schedule == "zero_bubble"
    parts = [(name, float(seconds[stage]), "forward") for name, seconds in passes.forward.items()]
    if kind == BACKWARD:
        parts = [(f"{name} again", float(seconds[stage]), "recomputation") for name, seconds in passes.repeated.items()]
        for name, seconds in passes.backward.items():
            deferred = later if split and name == "matmul" else 0.0
            parts.append((name, float(seconds[stage]) - deferred, "backward"))
    elif kind == WEIGHT_GRADIENT:
        parts = [("matmul", later if split else 0.0, "backward")]
    waits = float(passes.waits_for_host[stage] / passes.busy_s[stage]) * sum(seconds for _, seconds, _ in parts)
    each = [*parts, ("waits for its host", waits, "host")]
    return [(name, seconds / step.plan.virtual_stages, category) for name, seconds, category in each if seconds > 0]


def _sends(stage: int, step: StepTimeline) -> Iterator[Event]:
    for kind, chunk, micro_batch, start, end in _rows(step.pipeline.sends[stage]):
        track = TO_NEXT if kind == FORWARD else TO_BEFORE
        name = f"{'activations' if kind == FORWARD else 'gradients'} {micro_batch}"
        args = {"micro_batch": micro_batch, "chunk": chunk, "bytes": step.passed_bytes}
        yield _complete(stage, track, name, step.before_s + start, end - start, "transfer", args)


def _after(stage: int, step: StepTimeline) -> Iterator[Event]:
    at = step.before_s + step.pipeline.seconds
    for name, seconds in step.after.items():
        if seconds > 0:
            yield _complete(stage, TRACKS_OF_AFTER.get(name, COMPUTE), name, at, seconds, "after the pipeline")
            at += seconds


def _memory(stage: int, step: StepTimeline) -> Iterator[Event]:
    for moment, held in zip(*step.held_bytes(stage), strict=True):
        at = (step.before_s + float(moment)) * 1e6 if moment else 0.0
        yield {"ph": "C", "name": "memory of a device", "pid": stage, "ts": at, "args": {"MiB": float(held) / MIB}}


def _flows(step: StepTimeline) -> Iterator[Event]:
    """Yield an arrow from each transfer's begin to the pass that it is for."""
    stages = step.plan.num_stages
    begins = {
        (kind, chunk * stages + stage, micro_batch): (stage, start)
        for stage, own in enumerate(step.pipeline.passes)
        for kind, chunk, micro_batch, start, _ in _rows(own)
    }
    number = 0
    for stage, own in enumerate(step.pipeline.sends):
        for kind, chunk, micro_batch, start, _ in _rows(own):
            place = chunk * stages + stage + (1 if kind == FORWARD else -1)
            receiver, at = begins[kind, place, micro_batch]
            track = TO_NEXT if kind == FORWARD else TO_BEFORE
            shared = {"name": "hands on", "cat": "transfer", "id": number}
            yield {**shared, "ph": "s", "pid": stage, "tid": track.tid, "ts": (step.before_s + start) * 1e6}
            end = {"ph": "f", "bp": "e", "pid": receiver, "tid": COMPUTE.tid, "ts": (step.before_s + at) * 1e6}
            yield {**shared, **end}
            number += 1


def _rows(own: Stream) -> Iterator[tuple[int, int, int, float, float]]:
    return zip(*(column.tolist() for column in own), strict=True)


def _complete(
    stage: int, track: Track, name: str, at_s: float, seconds: float, category: str, args: Event | None = None
) -> Event:
    event = {"ph": "X", "name": name, "cat": category, "pid": stage, "tid": track.tid, "ts": at_s * 1e6}
    return {**event, "dur": seconds * 1e6, **({"args": args} if args else {})}
