import os
import re
import tomllib
from collections.abc import Iterator
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.catalog import MOST_FILE_BYTES, Catalog, load_catalog
from hardware.files import read_regular_file
from hardware.models import MOST_DEVICES, Accelerator, Flavor, Instance, Measured, Node, Price, Record, Source
from hardware.units import MIB

CATALOG = load_catalog()
FLAVOR_IDS = [flavor.id for flavor in CATALOG.flavors]
FILES = ("accelerators.toml", "nodes.toml", "flavors.toml", "instances.toml", "prices.toml")

MENU = [
    ("Small.64GB", "small", 1, 65_520),
    ("Medium.128GB", "medium", 1, 131_040),
    ("Large.256GB", "large", 1, 262_080),
    ("xLarge.512GB", "xlarge", 1, 524_160),
    ("1.5xLarge.768GB", "1.5xlarge", 2, 786_240),
    ("2xLarge.1024GB", "2xlarge", 2, 1_048_320),
    ("3xLarge.1536GB", "3xlarge", 3, 1_572_480),
    ("4xLarge.2048GB", "4xlarge", 4, 2_096_640),
    ("6xLarge.3072GB", "6xlarge", 6, 3_144_960),
    ("8xLarge.4096GB", "8xlarge", 8, 4_193_280),
    ("12xLarge.6144GB", "12xlarge", 12, 6_289_920),
    ("24xLarge.12288GB", "24xlarge", 24, 12_579_840),
    ("48xLarge.24576GB", "48xlarge", 48, 25_159_680),
]
"""The platform's menu in its order: both spellings, nodes, MiB in all."""

SOURCES = 'sources = [{ url = "https://example.com/a", checked = 2026-01-15 }]'
HALF = (
    'value = 0.5, evidence = "assumed", note = "test", source = { url = "https://example.com/a", checked = 2026-01-15 }'
)
ACCELERATOR = f"""
[[accelerator]]
id = "test-chip"
name = "Test chip"
vendor = "Nobody"
architecture = "none"
hbm_bytes = "80 GB"
hbm_bytes_per_s = "2 TB/s"
bf16_flop_per_s = "100 TFLOP/s"
fp32_flop_per_s = "10 TFLOP/s"
num_compute_units = 100
tdp_w = "400 W"
matmul_efficiency = {{ {HALF} }}
hbm_efficiency = {{ {HALF} }}
{SOURCES}
"""
NODE = f"""
[[node]]
id = "test-node"
accelerator = "test-chip"
num_devices = 4
network = {{ bytes_per_s = "200 Gb/s", evidence = "assumed", latency_s = "5 us", efficiency = {{ {HALF} }} }}
{SOURCES}

[[node.links]]
span = 4
topology = "mesh"
bytes_per_s = "50 GB/s"
evidence = "datasheet"
latency_s = "5 us"
efficiency = {{ {HALF} }}
"""
FLAVOR = f"""
[[flavor]]
id = "Test.2"
aliases = ["test"]
node = "test-node"
num_devices = 6
num_nodes = 2
{SOURCES}
"""
INSTANCE = f"""
[[instance]]
id = "t1.2x_large"
aliases = ["T1"]
provider = "Nobody"
node = "test-node"
num_devices = 2
network_bytes_per_s = "100 Gb/s"
host_memory_bytes = "512 GiB"
{SOURCES}
"""
PRICE = f"""
[[price]]
accelerator = "test-chip"
provider = "Nobody"
market = "spot"
usd_per_device_h = 2.5
on = 2026-01-15
{SOURCES}
"""
DOCUMENT = PRICE + INSTANCE + FLAVOR + NODE + ACCELERATOR  # the order of the tables is free


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a file that each test writes anew."""
    return tmp_path_factory.mktemp("catalog") / "my.toml"


def load(file: Path, content: str | bytes) -> Catalog:
    """Write a user's file and load it."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_catalog([file])


def records_within(value: object) -> Iterator[Record]:
    """Yield every record inside a value, itself first."""
    if isinstance(value, Record):
        yield value
        for _, inner in value:
            yield from records_within(inner)
    elif isinstance(value, tuple):
        for inner in value:
            yield from records_within(inner)


# The packaged data


def test_menu() -> None:
    """The 13 flavors of the menu have the order, nodes and memory of the platform's tutorial: 65,520 MiB per GCD."""
    menu = sorted((f for f in CATALOG.flavors if f.menu_index), key=lambda f: f.menu_index or 0)
    assert [f.menu_index for f in menu] == list(range(1, 14))
    for flavor, (name, alias, num_nodes, mib) in zip(menu, MENU, strict=True):
        accelerator = CATALOG.accelerator(CATALOG.node(flavor.node).accelerator)
        assert (flavor.id, flavor.aliases, flavor.num_nodes) == (name, (alias,), num_nodes)
        assert flavor.num_devices * accelerator.hbm_bytes == mib * MIB


def test_equivalents_of_the_tutorial() -> None:
    """16 MI250, 32 MI210 and 8 MI300X, the choices of the tutorial, are flavors."""
    assert CATALOG.flavor("4xlarge").num_devices == 32
    assert CATALOG.flavor("mi210x32").num_devices == 32
    assert CATALOG.flavor("mi300x8").num_devices == 8


@pytest.mark.parametrize("flavor", CATALOG.flavors, ids=FLAVOR_IDS)
def test_a_flavor_resolves_by_each_spelling(flavor: Flavor) -> None:
    """The id, the aliases and either in other case name the same flavor."""
    for spelling in (flavor.id, *flavor.aliases):
        assert CATALOG.flavor(spelling) is flavor
        assert CATALOG.flavor(spelling.upper()) is flavor


@pytest.mark.parametrize("instance", CATALOG.instances, ids=[instance.id for instance in CATALOG.instances])
def test_an_instance_resolves_by_each_spelling(instance: Instance) -> None:
    """The id, the aliases and either in other case name one of it, with "-xN" several, on nodes of its own."""
    for spelling in (instance.id, *instance.aliases):
        one, three = CATALOG.flavor(spelling.swapcase()), CATALOG.flavor(f"{spelling.upper()}-x3")
        assert one == CATALOG.flavor(spelling)
        assert (one.id, one.provider, one.num_nodes) == (instance.id, instance.provider, 1)
        assert (three.id, three.num_nodes, three.num_devices) == (f"{instance.id}-x3", 3, 3 * one.num_devices)
        node = CATALOG.node(three.node.upper())
        assert node.num_devices == one.num_devices == instance.num_devices
        assert node.network.bytes_per_s == instance.network_bytes_per_s


@pytest.mark.parametrize("node", CATALOG.nodes, ids=[node.id for node in CATALOG.nodes])
def test_a_node_is_a_flavor_of_all_its_devices(node: Node) -> None:
    """The id of a node names all of it, with "-xN" several."""
    one, four = CATALOG.flavor(node.id.upper()), CATALOG.flavor(f"{node.id}-x4")
    assert (one.id, one.node, one.num_devices, one.num_nodes) == (node.id, node.id, node.num_devices, 1)
    assert (four.node, four.num_devices, four.num_nodes) == (node.id, 4 * node.num_devices, 4)


@pytest.mark.parametrize("accelerator", CATALOG.accelerators, ids=[record.id for record in CATALOG.accelerators])
def test_a_driver_name_leads_to_its_accelerator(accelerator: Accelerator) -> None:
    """Each name that a driver gives, in any case, is of one accelerator alone."""
    for name in accelerator.driver_names:
        assert CATALOG.accelerator_named(name) is CATALOG.accelerator_named(name.upper()) is accelerator


@pytest.mark.parametrize(
    "name", ["NVIDIA H800 PCIe", "NVIDIA H200 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "AMD Instinct MI308X", ""]
)
def test_a_device_that_is_not_quite_known_is_refused(name: str) -> None:
    """Other editions, and parts, of known devices have other peaks: none of them passes for the known one."""
    message = rf"^device '{name}': no accelerator of the catalog has this name; .* in driver_names to a --catalog FILE$"
    with pytest.raises(ValueError, match=message):
        CATALOG.accelerator_named(name)


def test_every_accelerator_has_a_node() -> None:
    """Each accelerator is in a node, and each lookup returns what it names."""
    for accelerator in CATALOG.accelerators:
        assert CATALOG.accelerator(accelerator.id) is accelerator
        assert CATALOG.node_of(accelerator.id).accelerator == accelerator.id
    for node in CATALOG.nodes:
        assert CATALOG.node(node.id) is node


def test_every_figure_has_a_source() -> None:
    """Each record names pages that were read, and each fraction has its own page and says what it rests on."""
    records = [*CATALOG.accelerators, *CATALOG.nodes, *CATALOG.flavors, *CATALOG.instances, *CATALOG.prices]
    for record in records:
        assert record.sources
        for inner in records_within(record):
            if isinstance(inner, Measured):
                assert inner.note
            if isinstance(inner, Source):
                assert inner.url.startswith("https://")
                assert inner.checked >= date(2026, 11, 24)


def test_assumed_networks_are_marked() -> None:
    """The rates of networks and links that nobody stated are assumed, and the note of their node says so."""
    assumed = {node.id: node.note for node in CATALOG.nodes if node.network.evidence == "assumed"}
    stated = {"mi300x-x8", "h100-x8", "a100-x8", "a100-40gb-x8", "mi355x-x8", "mi250x-x4", "gaudi-3-x8"}
    assert {node.id for node in CATALOG.nodes} - set(assumed) == stated
    for note in assumed.values():
        assert re.match(r"Assumed: .*(adapter|network)", note)
    of_links = {node.id for node in CATALOG.nodes for link in node.links if link.evidence != "datasheet"}
    assert of_links == {"mi325x-x8", "v100-16gb-x8", "v100-32gb-x8", "t4-x8"}
    for node in of_links:
        assert re.search(r"the links|PCIe 3\.0", assumed[node])


def test_a_fraction_is_what_its_note_says() -> None:
    """Where a note says "a of b" of a rate, the fraction is a / b."""
    fractions = [
        m for r in (*CATALOG.accelerators, *CATALOG.nodes) for m in records_within(r) if isinstance(m, Measured)
    ]
    stated = [(m.value, re.search(r"([0-9.]+) of ([0-9.]+) (?:TFLOP|GB|TB)/s", m.note)) for m in fractions]
    ratios = [(value, float(found[1]) / float(found[2])) for value, found in stated if found]
    assert len(ratios) > 10
    for value, ratio in ratios:
        assert value == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize("name", FILES)
def test_quantities_carry_their_unit(name: str) -> None:
    """In the packaged files a dimension is written out, never a bare number; the text is ASCII."""
    text = (resources.files("hardware") / "data" / name).read_text(encoding="utf-8")
    assert text.isascii()

    def check(value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for inner_key, inner in value.items():
                check(inner, inner_key)
        elif isinstance(value, list):
            for inner in value:
                check(inner)
        elif key.endswith(("_bytes", "_per_s", "_w", "_s")):
            assert isinstance(value, str)

    check(tomllib.loads(text))


def test_what_a_file_names_stands_for_itself(file: Path) -> None:
    """A record that gives names of a source, a fraction, a link and a network is the one that spells them out."""
    page = SOURCES.removeprefix("sources = [").removesuffix("]")
    half = HALF.replace(page, '"page"')
    names = f"[named]\npage = {page}\nhalf = {{ {half} }}\n"
    short = DOCUMENT.replace(SOURCES, 'sources = ["page"]').replace(f"{{ {HALF} }}", '"half"')
    assert short.count('"half"') == 4
    assert load(file, names + short) == load(file, DOCUMENT)
    server, _, link = NODE.partition("[[node.links]]")
    network = next(line for line in server.splitlines() if line.startswith("network = "))
    names = (
        f"[named]\nmesh = {{ {', '.join(link.strip().splitlines())} }}\nnet = {network.removeprefix('network = ')}\n"
    )
    assert load(file, names + ACCELERATOR + server.replace(network, "network = 'net'\nlinks = ['mesh']")) == load(
        file, ACCELERATOR + NODE
    )


def test_packaged_instances_and_prices_are_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog that nobody asks for an instance or a price does not read those files, and reads each once."""
    read: list[str] = []

    def noted(path: Path, most_bytes: int) -> bytes:
        read.append(path.name)
        return read_regular_file(path, most_bytes)

    monkeypatch.setattr("hardware.catalog.read_regular_file", noted)
    catalog = load_catalog()
    assert catalog.flavor("small").node == "mi250-x4"
    assert catalog.node("h100-x8").num_devices == 8
    assert read == ["accelerators.toml", "nodes.toml", "flavors.toml"]
    assert [catalog.flavor("p5.48xlarge").num_nodes for _ in range(2)] == [1, 1]
    assert [len(catalog.latest_prices("mi250")) for _ in range(2)] == [1, 1]
    assert read[3:] == ["instances.toml", "prices.toml"]
    assert catalog == CATALOG
    assert hash(catalog) == hash(CATALOG)


def test_a_price_per_gcd_is_half_of_the_package() -> None:
    """The one price of the MI250 leaves its unit unclear: the two readings differ by the two GCDs of a package."""
    (price,) = CATALOG.latest_prices("mi250")
    assert price.market == "listing"
    assert price.usd_per_device_h_high == 2 * price.usd_per_device_h
    assert CATALOG.latest_prices("mi210") == ()


# Lookups


@given(days=st.lists(st.dates(), min_size=1, max_size=5))
def test_latest_price(days: list[date]) -> None:
    """Of one provider and market, the price of the last day counts; of the same day, the later record."""
    first = CATALOG.latest_prices("mi250")[0]
    catalog = Catalog(accelerators=CATALOG.accelerators)
    for number, day in enumerate(days, start=1):
        catalog = catalog.adding(first.model_copy(update={"on": day, "usd_per_device_h": float(number)}))
    (latest,) = catalog.latest_prices("mi250")
    assert latest.on == max(days)
    assert latest.usd_per_device_h == max(number for number, day in enumerate(days, start=1) if day == latest.on)


def test_latest_prices_of_one_provider() -> None:
    """Of a provider that asks a price, its own; of one that asks none, what all ask."""
    aws = CATALOG.latest_prices("h100-sxm-80gb", CATALOG.flavor("p5.48xlarge").provider)
    assert {price.provider for price in aws} == {"AWS"}
    assert CATALOG.latest_prices("h100-sxm-80gb", "Nobody") == CATALOG.latest_prices("h100-sxm-80gb")


def test_latest_prices_keep_providers_and_markets_apart() -> None:
    """There is one price per provider and market, each of the accelerator asked for."""
    prices: tuple[Price, ...] = CATALOG.latest_prices("h100-sxm-80gb")
    assert len({(price.provider, price.market) for price in prices}) == len(prices)
    assert {price.accelerator for price in prices} == {"h100-sxm-80gb"}


@given(accelerator=st.sampled_from(CATALOG.accelerators), num_devices=st.integers(1, MOST_DEVICES))
def test_a_flavor_of_devices_takes_the_fewest_nodes(accelerator: Any, num_devices: int) -> None:
    """The nodes hold all the devices, and one node fewer would not."""
    flavor = CATALOG.flavor_of(accelerator.id, num_devices)
    per_node = CATALOG.node(flavor.node).num_devices
    assert flavor.num_devices == num_devices
    assert (flavor.num_nodes - 1) * per_node < num_devices <= flavor.num_nodes * per_node
    assert CATALOG.adding(flavor).flavor(flavor.id) == flavor


@pytest.mark.parametrize("num_devices", [0, -1, MOST_DEVICES + 1])
def test_bad_counts(num_devices: int) -> None:
    """A flavor has at least one device, and not more than any cluster."""
    with pytest.raises(ValueError, match=rf"^num_devices={num_devices}: not a number of devices; use 1 to 1000000$"):
        CATALOG.flavor_of("mi300x", num_devices)


@given(name=st.text(max_size=200))
def test_an_unknown_name_is_one_line(name: str) -> None:
    """Any text is a flavor of the catalog or a ValueError of one line of ASCII."""
    try:
        assert CATALOG.flavor(name) in CATALOG.flavors
    except ValueError as error:
        message = str(error)
        assert message.startswith("unknown flavor ")
        assert message.isascii()
        assert message.isprintable()


def test_unknown_names() -> None:
    """A near name is proposed; where none is near, all are listed."""
    with pytest.raises(
        ValueError, match=r"^unknown flavor '5xLarge': did you mean 4xLarge\.2048GB or 6xLarge\.3072GB\?$"
    ):
        CATALOG.flavor("5xLarge")
    with pytest.raises(ValueError, match=r"^unknown flavor 'p5': did you mean p5\.48xlarge or p5e\.48xlarge\?$"):
        CATALOG.flavor("p5")
    with pytest.raises(ValueError, match=r"^unknown flavor 'h100-x8-x0': did you mean h100-x8"):
        CATALOG.flavor("h100-x8-x0")
    with pytest.raises(ValueError, match=rf"^unknown flavor 'zzz': use one of {', '.join(FLAVOR_IDS)}$"):
        CATALOG.flavor("zzz")
    with pytest.raises(ValueError, match=r"^unknown accelerator 'mi300': did you mean mi300x\?$"):
        CATALOG.latest_prices("mi300")
    with pytest.raises(ValueError, match=r"^unknown node 'mi250': did you mean mi250-x4 or mi250x-x4\?$"):
        CATALOG.node("mi250")


def test_an_accelerator_without_a_node(file: Path) -> None:
    """An accelerator that no node carries makes no flavor."""
    catalog = load(file, ACCELERATOR)
    with pytest.raises(ValueError, match=r"^accelerator 'test-chip': no node carries it; add a \[\[node\]\] to a "):
        catalog.flavor_of("test-chip", 1)


# A user's file


def test_a_user_file_adds_records(file: Path) -> None:
    """A file with all five tables, in any order, extends the catalog and its lookups."""
    catalog = load(file, DOCUMENT)
    assert catalog.flavors[:-1] == CATALOG.flavors
    assert catalog.accelerator("test-chip").hbm_bytes == 80e9
    assert catalog.node_of("test-chip").id == catalog.flavor("TEST").node == "test-node"
    assert catalog.latest_prices("test-chip")[0].usd_per_device_h == 2.5
    assert catalog.node(catalog.flavor("t1").node).num_devices == 2


def test_a_file_that_is_given_twice_changes_nothing(file: Path) -> None:
    """Records that are there as they are do not collide: of the same file, given beside a log that has it too."""
    once = load(file, DOCUMENT)
    assert load_catalog([file, file]) == once.with_file(file) == once


def test_devices_of_an_accelerator_are_a_flavor() -> None:
    """Whatever `flavor_of` names, `flavor` finds; no other number."""
    catalog = load_catalog()
    assert catalog.flavor("H100-SXM-80GB-24") == catalog.flavor_of("h100-sxm-80gb", 24)
    with pytest.raises(ValueError, match=r"^num_devices=0: not a number of devices"):
        catalog.flavor("h100-sxm-80gb-0")
    with pytest.raises(ValueError, match=r"^unknown flavor 'h100-sxm-80gb-'"):
        catalog.flavor("h100-sxm-80gb-")


def test_files_are_read_in_order(file: Path) -> None:
    """A record may refer to those of an earlier file, and an empty file adds none."""
    file.write_text(ACCELERATOR + NODE)
    other = file.with_name("other.toml")
    other.write_text(FLAVOR)
    assert load_catalog([file, other]).flavor("Test.2").num_devices == 6
    assert load(file, "") == CATALOG


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            ACCELERATOR.replace("80 GB", "80 Gb"),
            "accelerator 'test-chip': hbm_bytes: '80 Gb' is gigabits; write bytes, ",
        ),
        (ACCELERATOR.replace("test-chip", "mi250"), "accelerator 'mi250': the name 'mi250' is taken; choose another"),
        (ACCELERATOR.replace('id = "test-chip"', ""), "accelerator 1: id: is missing; add it"),
        (NODE, "node 'test-node': unknown accelerator 'test-chip': use one of mi250, mi210, "),
        (ACCELERATOR + NODE + NODE, "node 'test-node': the name 'test-node' is taken; choose another"),
        (
            ACCELERATOR.replace("hbm_bytes =", 'driver_names = ["nvidia h200"]\nhbm_bytes ='),
            "accelerator 'test-chip': the name 'nvidia h200' is taken; choose another",
        ),
        (FLAVOR, "flavor 'Test.2': unknown node 'test-node': use one of mi250-x4, "),
        (
            ACCELERATOR + NODE + FLAVOR.replace("= 6", "= 9"),
            "flavor 'Test.2': num_devices: 9 do not fit 2 nodes of 4; ",
        ),
        (
            ACCELERATOR + NODE + FLAVOR.replace("= 6", "= 4"),
            "flavor 'Test.2': num_devices: 4 do not fit 2 nodes of 4; ",
        ),
        (
            DOCUMENT.replace("Test.2", "SMALL.64gb"),
            "flavor 'SMALL.64gb': the name 'SMALL.64gb' is taken; choose another",
        ),
        (DOCUMENT.replace('["test"]', '["TEST.2"]'), "flavor 'Test.2': the name 'TEST.2' is taken; choose another"),
        (DOCUMENT.replace('["test"]', '["4xlarge"]'), "flavor 'Test.2': the name '4xlarge' is taken; choose another"),
        (PRICE.replace("test-chip", "mi251"), "price 1: unknown accelerator 'mi251': did you mean mi250 or mi210?"),
        (
            PRICE.replace("2.5", '"cheap"'),
            "price 1: usd_per_device_h: 'cheap' does not fit; input should be a valid number",
        ),
        (
            ACCELERATOR + NODE + INSTANCE.replace("= 2\n", "= 5\n"),
            "instance 't1.2x_large': num_devices: 5 are more than the 4 of test-node; name a larger node",
        ),
        (INSTANCE, "instance 't1.2x_large': unknown node 'test-node': use one of mi250-x4, "),
        (
            DOCUMENT.replace('["T1"]', '["P5.48xlarge"]'),
            "instance 't1.2x_large': the name 'P5.48xlarge' is taken; choose another",
        ),
        (
            DOCUMENT.replace('["T1"]', '["h100-x8"]'),
            "instance 't1.2x_large': the name 'h100-x8' is taken; choose another",
        ),
        (PRICE + "typo = 1", "price 1: typo: is not a field of this record; remove it or correct its name"),
        ("price = [3]", "price 1: 3 is not a table; write the fields of this record"),
        ("[price]", "price is not an array of tables; write [[price]]"),
        ("flavor = 3", "flavor is not an array of tables; write [[flavor]]"),
        ("named = 3", "named is not a table; write [named]"),
        (
            "[named]\na = { host = 'b' }\nb = { note = 'c' }",
            "named 'a': host: 'b' is not named above this; name it in [named] first",
        ),
        (
            "[named]\nhalf = 3\n" + ACCELERATOR.replace(f"{{ {HALF} }}", '"haff"'),
            "accelerator 'test-chip': matmul_efficiency: unknown name of [named] 'haff': did you mean half?",
        ),
        (
            f"[named]\nhalf = {{ {HALF} }}\n" + ACCELERATOR.replace(SOURCES, "sources = ['a page']"),
            "accelerator 'test-chip': sources.0: 'a page' is not a day and an address; write for example ",
        ),
        ("[[acelerator]]", "unknown table 'acelerator': did you mean accelerator?"),
        ("id = ", "not valid TOML: 'Invalid value (at end of document)'; correct it there"),
        ("a = " + "[" * 100_000, "not valid TOML: "),
        pytest.param("a = " + "9" * 5000, "not valid TOML: ", id="digits"),
        (b"\xff\xfe", "not UTF-8 text; save it as UTF-8"),
    ],
)
def test_refused_files(file: Path, content: str | bytes, message: str) -> None:
    """Each error is one line that names the file, the record, the field, the rule and the mend."""
    with pytest.raises(ValueError, match=r"my\.toml: ") as caught:
        load(file, content)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert str(caught.value).isprintable()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a folder and an impossible path are refused by name."""
    with pytest.raises(ValueError, match=r"missing\.toml: no such file; check the path$"):
        load_catalog([tmp_path / "missing.toml"])
    with pytest.raises(ValueError, match=r": is a directory, not a file; name a file in it$"):
        load_catalog([tmp_path])
    with pytest.raises(ValueError, match=r"^'a\\x00\\nb': is no path of a file; give one$"):
        load_catalog([Path("a\0\nb")])
    with pytest.raises(ValueError, match=r": cannot be read as a file; give a readable TOML file$"):
        load_catalog([Path("x" * os.pathconf("/", "PC_NAME_MAX") * 2)])


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe is not waited for, a device not read without end, and no file beyond a bound."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe: is a pipe, not a file; save what it carries as a file$"):
        load_catalog([tmp_path / "pipe"])
    with pytest.raises(ValueError, match=r"^/dev/zero: is a device, not a file; name a file$"):
        load_catalog([Path("/dev/zero")])
    with (tmp_path / "large.toml").open("wb") as large:
        large.truncate(MOST_FILE_BYTES + 1)
    with pytest.raises(ValueError, match=r"large\.toml: is larger than 8,388,608 bytes; give a smaller file$"):
        load_catalog([tmp_path / "large.toml"])


def refused_in_one_line(file: Path, content: bytes) -> None:
    """Assert that the content is a catalog or a ValueError of one line."""
    try:
        assert isinstance(load(file, content), Catalog)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{file}: ")
        assert message.isprintable()


@given(content=st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_catalog_or_one_line(file: Path, content: bytes) -> None:
    """Whatever a file holds, the end is a catalog or a ValueError of one line."""
    refused_in_one_line(file, content)


@given(
    data=st.data(), inserted=st.text(max_size=20) | st.sampled_from(["[[flavor]]", '"', "]", "=", "-1", "inf", "1e999"])
)
def test_any_edit_of_a_good_file_is_a_catalog_or_one_line(file: Path, data: st.DataObject, inserted: str) -> None:
    """A stretch of a good file replaced by any text ends in a catalog or a ValueError of one line."""
    start = data.draw(st.integers(0, len(DOCUMENT)))
    stop = data.draw(st.integers(start, min(start + 40, len(DOCUMENT))))
    refused_in_one_line(file, (DOCUMENT[:start] + inserted + DOCUMENT[stop:]).encode())


def test_a_deep_table_is_one_line(file: Path) -> None:
    """A table thousands deep in place of a record is refused like any other."""
    refused_in_one_line(file, ("[[price]]\n" + ".".join("a" * 3000) + " = 1").encode())
    deep = ".".join(["links"] * 3000) + " = 1"
    for text in (f"[named]\na = 1\n[[node]]\n{deep}", f"[named]\n{deep}"):
        with pytest.raises(ValueError, match=r"nested too deep; write "):
            load(file, text)


def test_names_of_names_stay_small(file: Path) -> None:
    """Names that each double what the one before names are refused before they fill the memory."""
    names = "\n".join(f"n{i} = ['n{i - 1}', 'n{i - 1}']" for i in range(1, 40))
    with pytest.raises(ValueError, match=r"named 'n7': holds more than 200 values; name its parts$"):
        load(file, f"[named]\nn0 = 'a page'\n{names}\n[[price]]\nsources = 'n39'")
