"""A checker of the Trace Event Format, JSON object form: what a viewer needs to hold of a document."""

from collections import defaultdict
from typing import Any

REQUIRED = {
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "M": {"name", "pid", "args"},
    "C": {"name", "pid", "ts", "args"},
    "s": {"name", "cat", "id", "pid", "tid", "ts"},
    "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"},
}
ROUNDING_US = 1e-3
"""Of a sum of microseconds."""


def check_trace(document: dict[str, Any]) -> None:
    """Hold a document to the format: keys, named streams, slices that nest, flows between them, counters of numbers."""
    events = document["traceEvents"]
    for event in events:
        missing = REQUIRED[event["ph"]] - event.keys()
        assert not missing, (event, missing)
        assert event.get("ts", 0.0) >= 0.0
        assert event.get("dur", 1.0) > 0.0
    named = {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"} <= named
    streams = slices(document)
    for stream in streams.values():
        check_nesting(stream)
    check_flows(events, streams)
    for event in events:
        if event["ph"] == "C":
            assert all(isinstance(value, float) and value >= 0 for value in event["args"].values())


def slices(document: dict[str, Any]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return the complete events of each stream, as a viewer sorts them: by start, the longest first."""
    found = defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            found[event["pid"], event["tid"]].append(event)
    return {key: sorted(stream, key=lambda e: (e["ts"], -e["dur"])) for key, stream in found.items()}


def check_nesting(stream: list[dict[str, Any]]) -> None:
    """Two slices of a stream lie one within the other, or one after the other."""
    open_until: list[float] = []
    for event in stream:
        start, end = event["ts"], event["ts"] + event["dur"]
        while open_until and open_until[-1] <= start + ROUNDING_US:
            open_until.pop()
        assert not open_until or end <= open_until[-1] + ROUNDING_US, event
        open_until.append(end)


def check_flows(events: list[dict[str, Any]], streams: dict[tuple[int, int], list[dict[str, Any]]]) -> None:
    """Each flow has one begin and one end, no earlier, and both lie where a slice is."""
    begins = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert begins.keys() == ends.keys()
    assert len(begins) + len(ends) == sum(e["ph"] in "sf" for e in events)
    spans = {key: [(e["ts"], e["ts"] + e["dur"]) for e in stream] for key, stream in streams.items()}
    for number, begin in begins.items():
        assert ends[number]["ts"] >= begin["ts"] - ROUNDING_US
        for event in (begin, ends[number]):
            at = event["ts"]
            of_stream = spans[event["pid"], event["tid"]]
            assert any(start - ROUNDING_US <= at <= end + ROUNDING_US for start, end in of_stream), event
