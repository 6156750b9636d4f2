import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.collectives import all_reduce_seconds, gather_seconds, group_links, transfer_seconds
from hardware.catalog import load_catalog
from hardware.models import Node

CATALOG = load_catalog()
any_node = st.sampled_from(CATALOG.nodes)
byte_counts = st.floats(1, 1e12)


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, int, Node]:
    """Draw the members per node, the nodes and the kind of node of a group."""
    node = draw(any_node)
    return draw(st.integers(1, node.num_devices)), draw(st.integers(1, 64)), node


def scaled(node: Node, *, links: float = 1, network: float = 1, latency: float = 1) -> Node:
    """Return the node with its bandwidths and latencies multiplied."""
    faster = [
        link.model_copy(update={"bytes_per_s": links * link.bytes_per_s, "latency_s": latency * link.latency_s})
        for link in node.links
    ]
    between = node.network.model_copy(
        update={"bytes_per_s": network * node.network.bytes_per_s, "latency_s": latency * node.network.latency_s}
    )
    return node.model_copy(update={"links": tuple(faster), "network": between})


@given(any_node, byte_counts)
def test_one_rank_pays_nothing(node: Node, num_bytes: float) -> None:
    """A group of one device has nobody to talk to."""
    assert gather_seconds(num_bytes, 1, 1, node) == 0
    assert all_reduce_seconds(num_bytes, 1, 1, node) == 0


@given(groups(), byte_counts)
def test_all_reduce_is_two_gathers(group: tuple[int, int, Node], num_bytes: float) -> None:
    """An all-reduce is a reduce-scatter and an all-gather of the same bytes."""
    assert all_reduce_seconds(num_bytes, *group) == 2 * gather_seconds(num_bytes, *group)


@given(groups(), byte_counts, byte_counts)
def test_more_bytes_never_cost_less(group: tuple[int, int, Node], num_bytes: float, more: float) -> None:
    """A collective and a transfer of more bytes take as long or longer."""
    assert gather_seconds(num_bytes + more, *group) >= gather_seconds(num_bytes, *group) >= 0
    for crosses in (False, True):
        seconds = transfer_seconds(num_bytes, crosses, group[2])
        assert transfer_seconds(num_bytes + more, crosses, group[2]) >= seconds > 0


@given(groups(), byte_counts, st.floats(1, 100), st.floats(1, 100))
def test_faster_wires_are_never_slower(
    group: tuple[int, int, Node], num_bytes: float, links: float, network: float
) -> None:
    """Faster links and a faster network make no collective and no transfer slower."""
    members, nodes, node = group
    faster = scaled(node, links=links, network=network)
    assert gather_seconds(num_bytes, members, nodes, faster) <= gather_seconds(num_bytes, members, nodes, node)
    for crosses in (False, True):
        assert transfer_seconds(num_bytes, crosses, faster) <= transfer_seconds(num_bytes, crosses, node)


@given(groups(), byte_counts)
def test_seconds_are_free_of_units(group: tuple[int, int, Node], num_bytes: float) -> None:
    """Without latency, twice the bytes over twice the bandwidths take the same seconds."""
    members, nodes, node = group
    once, twice = scaled(node, latency=0), scaled(node, links=2, network=2, latency=0)
    assert gather_seconds(2 * num_bytes, members, nodes, twice) == gather_seconds(num_bytes, members, nodes, once)
    for crosses in (False, True):
        seconds = transfer_seconds(num_bytes, crosses, once)
        assert transfer_seconds(2 * num_bytes, crosses, twice) == seconds


@given(groups())
def test_an_empty_message_costs_its_hops(group: tuple[int, int, Node]) -> None:
    """A gather of no bytes takes the latency of each hop of its two rings, and no more."""
    members, nodes, node = group
    inside = group_links(node, members)[1]
    hops = (nodes - 1) * node.network.latency_s + (members - 1) * inside
    assert gather_seconds(0, members, nodes, node) == pytest.approx(hops)


@given(any_node, byte_counts, st.integers(2, 64))
def test_a_ring_of_nodes_shares_the_network(node: Node, num_bytes: float, nodes: int) -> None:
    """Between nodes, the devices of full nodes together gather at the network's bandwidth."""
    still = scaled(node, latency=0)
    between = gather_seconds(num_bytes, node.num_devices, nodes, still) - gather_seconds(
        num_bytes, node.num_devices, 1, still
    )
    network = node.network.bytes_per_s * node.network.efficiency.value
    assert between == pytest.approx((nodes - 1) / nodes * num_bytes / network, rel=1e-6)


def test_a_group_takes_its_innermost_link() -> None:
    """On MI250 two devices use the link inside a package, more than two the ring; one uses none."""
    node = CATALOG.node_of("mi250")
    pair, ring = node.links
    bandwidth, latency = group_links(node, np.arange(1, 9))
    expected = [np.inf, pair.bytes_per_s * pair.efficiency.value] + [ring.bytes_per_s * ring.efficiency.value] * 6
    assert bandwidth.tolist() == expected
    assert latency.tolist() == [0, pair.latency_s] + [ring.latency_s] * 6
    assert bandwidth[1] > bandwidth[2]


def test_a_mesh_drives_a_link_to_every_peer() -> None:
    """On MI300X a group of m devices uses m - 1 links at once."""
    node = CATALOG.node_of("mi300x")
    (mesh,) = node.links
    members = np.arange(2, 9)
    bandwidth, _ = group_links(node, members)
    np.testing.assert_allclose(bandwidth, (members - 1) * mesh.bytes_per_s * mesh.efficiency.value)


def test_a_node_of_one_device_has_only_the_network() -> None:
    """Where a node has no links, a transfer takes the network, whatever it is told."""
    node = CATALOG.node_of("epyc-7763")
    assert node.links == ()
    assert transfer_seconds(1e9, False, node) == transfer_seconds(1e9, True, node) > 0


@given(any_node, st.lists(st.tuples(byte_counts, st.integers(1, 8), st.integers(1, 8), st.booleans()), min_size=1))
def test_arrays_are_their_elements(node: Node, sizes: list[tuple[float, int, int, bool]]) -> None:
    """Seconds of an array of groups are those of each alone."""
    members_at_most = [(n, min(m, node.num_devices), k, crosses) for n, m, k, crosses in sizes]
    num_bytes, members, nodes, crosses = (np.array(column) for column in zip(*members_at_most, strict=True))
    together = gather_seconds(num_bytes, members, nodes, node)
    np.testing.assert_array_equal(together, [gather_seconds(n, m, k, node) for n, m, k, _ in members_at_most])
    moved = transfer_seconds(num_bytes, crosses, node)
    np.testing.assert_array_equal(moved, [transfer_seconds(n, c, node) for n, _, _, c in members_at_most])
