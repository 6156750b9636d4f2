import re
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hardware.errors import first_error
from hardware.models import (
    MOST_DEVICES,
    Accelerator,
    Flavor,
    Host,
    Instance,
    Link,
    Measured,
    Network,
    Node,
    Price,
    Record,
    Source,
)

SOURCE = {"url": "https://example.com/a", "checked": date(2026, 1, 15)}
HALF = {"value": 0.5, "evidence": "assumed", "note": "for this test", "source": SOURCE}
ACCELERATOR = {
    "id": "test-chip",
    "name": "Test chip",
    "vendor": "Nobody",
    "architecture": "none",
    "hbm_bytes": "80 GB",
    "hbm_bytes_per_s": "2 TB/s",
    "bf16_flop_per_s": "100 TFLOP/s",
    "fp32_flop_per_s": "10 TFLOP/s",
    "num_compute_units": 100,
    "tdp_w": "400 W",
    "matmul_efficiency": HALF,
    "hbm_efficiency": HALF,
    "sources": [SOURCE],
}
LINK = {
    "span": 8,
    "topology": "switch",
    "bytes_per_s": "300 GB/s",
    "evidence": "datasheet",
    "latency_s": "5 us",
    "efficiency": HALF,
}
NETWORK = {"bytes_per_s": "200 Gb/s", "evidence": "assumed", "latency_s": "5 us", "efficiency": HALF}
NODE = {
    "id": "test-node",
    "accelerator": "test-chip",
    "num_devices": 8,
    "links": [LINK],
    "network": NETWORK,
    "sources": [SOURCE],
}
FLAVOR = {"id": "Test.1", "node": "test-node", "num_devices": 8, "num_nodes": 1, "sources": [SOURCE]}
HOST = {
    "memory_bytes": "1 TiB",
    "bytes_per_s": "400 GB/s",
    "link_bytes_per_s": "32 GB/s",
    "evidence": "assumed",
    "note": "for this test",
}
INSTANCE = {
    "id": "T1.4x_large",
    "aliases": ["T1"],
    "provider": "Nobody",
    "node": "test-node",
    "num_devices": 4,
    "network_bytes_per_s": "100 Gb/s",
    "host_memory_bytes": "512 GiB",
    "sources": [SOURCE],
}
PRICE = {
    "accelerator": "test-chip",
    "provider": "Nobody",
    "market": "spot",
    "usd_per_device_h": 2.5,
    "on": date(2026, 1, 15),
    "sources": [SOURCE],
}
RECORDS: list[tuple[type[Record], dict[str, Any]]] = [
    (Accelerator, ACCELERATOR),
    (Node, NODE),
    (Flavor, FLAVOR),
    (Instance, INSTANCE),
    (Price, PRICE),
]
EACH_RECORD = pytest.mark.parametrize(
    ("model", "fields"), RECORDS, ids=["accelerator", "node", "flavor", "instance", "price"]
)


def without(fields: dict[str, Any], field: str) -> dict[str, Any]:
    """Return all fields but one."""
    return {key: value for key, value in fields.items() if key != field}


def refusal(model: type[Record], fields: dict[str, Any]) -> str:
    """Return what the model says when it refuses the fields."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(fields)
    return first_error(caught.value)


@EACH_RECORD
def test_a_record_is_frozen_and_hashable(model: type[Record], fields: dict[str, Any]) -> None:
    """No field of a record can be set, and equal records hash alike: nothing mutable hides inside."""
    record = model.model_validate(fields)
    with pytest.raises(ValidationError, match="frozen"):
        record.sources = ()  # type: ignore[attr-defined]
    assert hash(record) == hash(model.model_validate(fields))


@EACH_RECORD
def test_a_record_round_trips(model: type[Record], fields: dict[str, Any]) -> None:
    """A record dumped and read again is the same record."""
    record = model.model_validate(fields)
    assert model.model_validate(record.model_dump()) == record


@EACH_RECORD
def test_every_field_that_has_no_default_is_needed(model: type[Record], fields: dict[str, Any]) -> None:
    """Leaving out a required field is refused by name."""
    for field, info in model.model_fields.items():
        if info.is_required():
            assert refusal(model, without(fields, field)) == f"{field}: is missing; add it"


@EACH_RECORD
def test_a_record_without_a_source_does_not_load(model: type[Record], fields: dict[str, Any]) -> None:
    """Every record names at least one page."""
    assert refusal(model, fields | {"sources": []}).startswith("sources: [] does not fit; tuple should have at least 1")


@EACH_RECORD
def test_a_misspelt_key_is_an_error(model: type[Record], fields: dict[str, Any]) -> None:
    """A key that the record does not have is refused by name, control characters and all."""
    assert (
        refusal(model, fields | {"tpd_w": 1}) == "tpd_w: is not a field of this record; remove it or correct its name"
    )
    assert refusal(model, fields | {"a\nb": 1}).startswith("'a\\nb': is not a field")


def test_a_source_is_a_page_or_a_measurement() -> None:
    """Besides pages, a source may be the module of this project that measured on the spot."""
    for url in ("https://example.com/a", "http://example.com", "measured:trainer.jobs.cpu", "measured:bench"):
        assert Source.model_validate(SOURCE | {"url": url}).url == url


@pytest.mark.parametrize("note", ["", "8 x 400 Gb/s", "of two: 1 and  2"])
def test_a_source_may_be_one_text(note: str) -> None:
    """A day, an address and what it says, in one text, are the source that its table would be."""
    text = f"2026-01-15 https://example.com/a {note}".rstrip()
    assert Source.model_validate(text) == Source.model_validate(SOURCE | {"note": note})


@pytest.mark.parametrize("text", ["", "https://example.com/a", "2026-13-01 https://example.com/a", "2026-01-15"])
def test_a_text_that_is_no_source_is_refused(text: str) -> None:
    """Without a day and an address it is refused, with an example."""
    example = "is not a day and an address; write for example '2026-01-15 https://example.com/a what it says'"
    assert refusal(Source, text) == f"{text!r} {example}"  # type: ignore[arg-type]


def test_the_peak_of_a_precision() -> None:
    """Products run at the peak of their precision; where the device has no units for it, another one is named."""
    without_bf16 = without(ACCELERATOR, "bf16_flop_per_s") | {"fp16_flop_per_s": "65 TFLOP/s"}
    older, oldest = Accelerator.model_validate(without_bf16), without(ACCELERATOR, "bf16_flop_per_s")
    assert older.matmul_flop_per_s("fp16") == older.usual_flop_per_s == 65e12
    assert older.usual_precision == "fp16"
    with pytest.raises(ValueError, match=r"^precision: bf16 needs matrix units that test-chip lacks; use fp16-mixed$"):
        older.matmul_flop_per_s("bf16")
    cpu = Accelerator.model_validate(oldest)
    assert (cpu.usual_precision, cpu.usual_flop_per_s) == ("fp32", 10e12)
    with pytest.raises(ValueError, match=r"^precision: fp16 needs matrix units that test-chip lacks; use fp32$"):
        cpu.matmul_flop_per_s("fp16")
    usual = Accelerator.model_validate(ACCELERATOR)
    assert usual.matmul_flop_per_s("bf16") == usual.usual_flop_per_s == 100e12
    with pytest.raises(ValueError, match=r"^precision: fp8 needs matrix units that test-chip lacks; use bf16-mixed$"):
        usual.matmul_flop_per_s("fp8")


@given(num_devices=st.integers(1, 8))
def test_a_part_of_a_node_has_the_links_between_its_devices(num_devices: int) -> None:
    """Any number of its devices is a node of the catalog's rules, each pair of them joined by the link that did so."""
    pair, hive = LINK | {"span": 2, "topology": "pair"}, LINK | {"span": 4, "topology": "ring"}
    whole = Node.model_validate(NODE | {"links": [pair, hive, LINK]})
    part = whole.part(num_devices)
    assert Node.model_validate(part.model_dump()) == part
    for group in range(2, num_devices + 1):
        joined, was = (next(link for link in node.links if link.span >= group) for node in (part, whole))
        assert joined.topology == was.topology
    assert whole.part(8) == whole


def test_an_instance_is_a_part_of_a_node_on_its_own_network() -> None:
    """Its devices and links are the node's, its network's rate and its host's memory its own."""
    instance = Instance.model_validate(INSTANCE)
    like = Node.model_validate(NODE | {"host": HOST, "counts_in_all": [1]})
    machine = instance.as_node(like)
    assert Node.model_validate(machine.model_dump()) == machine
    assert (machine.id, machine.accelerator, machine.num_devices) == ("t1-4x-large", "test-chip", 4)
    assert machine.network.bytes_per_s == 12.5e9
    assert machine.network.evidence == "datasheet"
    assert machine.host is not None
    assert machine.host.memory_bytes == 512 * 2**30
    assert machine.host.bytes_per_s == 400e9
    assert not machine.counts_in_all
    assert instance.as_node(Node.model_validate(NODE)).host is None
    flavor = instance.flavor(3, "three")
    assert (flavor.id, flavor.node, flavor.num_devices, flavor.num_nodes) == ("three", machine.id, 12, 3)
    assert flavor.provider == "Nobody"


@given(value=st.floats() | st.floats(0, 1))
def test_a_measured_fraction_is_a_thousandth_to_one(value: float) -> None:
    """A fraction of a peak is at least a thousandth and at most 1, else it is refused."""
    if 1e-3 <= value <= 1:
        assert Measured.model_validate(HALF | {"value": value}).value == value
    else:
        assert refusal(Measured, HALF | {"value": value}).startswith("value: ")


@given(spans=st.lists(st.integers(2, 16), max_size=3), num_devices=st.integers(1, 16))
def test_links_nest_up_to_the_node(spans: list[int], num_devices: int) -> None:
    """Spans increase strictly and the last one is the node; a node of one device has no link."""
    fields = NODE | {"num_devices": num_devices, "links": [LINK | {"span": span} for span in spans]}
    nested = spans == sorted(set(spans)) and (spans[-1:] == [num_devices] if num_devices > 1 else not spans)
    if nested:
        assert [link.span for link in Node.model_validate(fields).links] == spans
    else:
        assert refusal(Node, fields).startswith("links: ")


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (Accelerator, ACCELERATOR | {"id": "MI 250"}, "id: 'MI 250' does not fit; string should match pattern"),
        (Accelerator, ACCELERATOR | {"hbm_bytes": "80 Gb"}, "hbm_bytes: '80 Gb' is gigabits; write bytes, for example"),
        (
            Accelerator,
            ACCELERATOR | {"fp8_flop_per_s": "1 PFLOPS"},
            "fp8_flop_per_s: '1 PFLOPS' may be work or a rate;",
        ),
        (
            Accelerator,
            ACCELERATOR | {"num_compute_units": True},
            "num_compute_units: True does not fit; input should be",
        ),
        (Accelerator, ACCELERATOR | {"hbm_efficiency": 0.5}, "hbm_efficiency: 0.5 is not a table; write the fields"),
        (
            Measured,
            HALF | {"evidence": "guess"},
            "evidence: 'guess' does not fit; input should be 'datasheet', 'measured'",
        ),
        (Source, SOURCE | {"url": "a page"}, "url: 'a page' does not fit; string should match pattern"),
        (Source, SOURCE | {"url": "measured:"}, "url: 'measured:' does not fit; string should match pattern"),
        (Source, SOURCE | {"url": "measured:a b"}, "url: 'measured:a b' does not fit; string should match pattern"),
        (
            Accelerator,
            ACCELERATOR | {"driver_names": [""]},
            "driver_names.0: '' does not fit; string should have at least",
        ),
        (Source, SOURCE | {"checked": 0}, "checked: 0 does not fit; input should be a valid date"),
        (Link, LINK | {"span": 1}, "span: 1 does not fit; input should be greater than or equal to 2"),
        (Link, without(LINK, "evidence"), "evidence: is missing; add it"),
        (Network, without(NETWORK, "evidence"), "evidence: is missing; add it"),
        (Network, NETWORK | {"evidence": "hearsay"}, "evidence: 'hearsay' does not fit; input should be 'datasheet', "),
        (Node, NODE | {"links": [LINK, LINK]}, "links: spans [8, 8] do not increase; list the innermost link first"),
        (Node, NODE | {"links": []}, "links: none spans num_devices=8; end with a link of that span"),
        (Node, NODE | {"num_devices": 1}, "links: a node of one device has none; remove them"),
        (Node, NODE | {"links": [LINK | {"latency_s": 0}]}, "links.0.latency_s: 0 is not between 10 ns and 1 s; "),
        (Flavor, FLAVOR | {"num_devices": MOST_DEVICES + 1}, "num_devices: 1000001 does not fit; input should be less"),
        (Flavor, FLAVOR | {"aliases": ["a b"]}, "aliases.0: 'a b' does not fit; string should match pattern"),
        (Price, PRICE | {"usd_per_device_h": 0}, "usd_per_device_h: 0 does not fit; input should be greater than or"),
        (
            Price,
            PRICE | {"usd_per_device_h": 1e300},
            "usd_per_device_h: 1e+300 does not fit; input should be less than",
        ),
        (
            Price,
            PRICE | {"usd_per_device_h_high": 1.0},
            "usd_per_device_h_high: 1.0 is below usd_per_device_h=2.5; swap them",
        ),
    ],
)
def test_refusals(model: type[Record], fields: dict[str, Any], message: str) -> None:
    """Each refusal names the field, what was given and the rule, in one line."""
    found = refusal(model, fields)
    assert found.startswith(message)
    assert found.isprintable()


@pytest.mark.parametrize(
    ("model", "fields", "field", "least", "most"),
    [
        (Accelerator, ACCELERATOR, "hbm_bytes", "16 MB", "16 TB"),
        (Accelerator, ACCELERATOR, "hbm_bytes_per_s", "10 MB/s", "200 TB/s"),
        (Accelerator, ACCELERATOR, "bf16_flop_per_s", "100 MFLOP/s", "30 PFLOP/s"),
        (Accelerator, ACCELERATOR, "fp16_flop_per_s", "100 MFLOP/s", "30 PFLOP/s"),
        (Accelerator, ACCELERATOR, "fp32_flop_per_s", "100 MFLOP/s", "3 PFLOP/s"),
        (Accelerator, ACCELERATOR, "fp8_flop_per_s", "100 MFLOP/s", "120 PFLOP/s"),
        (Accelerator, ACCELERATOR, "tdp_w", "0.1 W", "10 kW"),
        (Link, LINK, "bytes_per_s", "1 MB/s", "20 TB/s"),
        (Link, LINK, "latency_s", "10 ns", "1 s"),
        (Network, NETWORK, "bytes_per_s", "1 MB/s", "200 TB/s"),
        (Network, NETWORK, "latency_s", "10 ns", "1 s"),
        (Host, HOST, "memory_bytes", "16 MB", "1 PB"),
        (Host, HOST, "bytes_per_s", "1 MB/s", "200 TB/s"),
        (Host, HOST, "link_bytes_per_s", "1 MB/s", "20 TB/s"),
        (Instance, INSTANCE, "network_bytes_per_s", "1 MB/s", "200 TB/s"),
        (Instance, INSTANCE, "host_memory_bytes", "16 MB", "1 PB"),
    ],
)
def test_a_quantity_that_no_device_has_is_refused(
    model: type[Record], fields: dict[str, Any], field: str, least: str, most: str
) -> None:
    """Both bounds are accepted; what is a little beyond either is refused, with the bounds as they are written here."""
    bound = {}
    for text in (least, most):
        record = model.model_validate(fields | {field: text})
        bound[text] = getattr(record, field)
    for beyond in (bound[least] * 0.99, bound[most] * 1.01):
        with pytest.raises(ValidationError, match=rf"is not between {re.escape(least)} and {re.escape(most)}; write "):
            model.model_validate(fields | {field: beyond})


@pytest.mark.parametrize(
    ("model", "fields", "field", "most"),
    [
        (Accelerator, ACCELERATOR, "num_compute_units", 4096),
        (Node, NODE, "num_devices", 16_384),
        (Instance, INSTANCE, "num_devices", 16_384),
        (Price, PRICE, "usd_per_device_h", 1000.0),
    ],
)
def test_a_count_that_no_machine_has_is_refused(
    model: type[Record], fields: dict[str, Any], field: str, most: float
) -> None:
    """More than any machine has, or asks, is refused with the most."""
    message = f"{field}: {most + 1} does not fit; input should be less than or equal to {most:g}"
    assert refusal(model, fields | {field: most + 1}) == message
