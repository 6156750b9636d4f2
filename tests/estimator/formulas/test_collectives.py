import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.collectives import (
    all_reduce_seconds,
    all_to_all_seconds,
    context_parallel_seconds,
    data_parallel_seconds,
    expert_parallel_seconds,
    gather_seconds,
    group_links,
    network_share,
    placed,
    stage_transfer_seconds,
    tensor_parallel_seconds,
    transfer_seconds,
)
from estimator.formulas.layout import Layout
from estimator.formulas.machine import Machine
from estimator.stack.stack import Habits
from estimator.work.plan import Plan
from estimator.work.shape import Shape, load_shape
from hardware.catalog import load_catalog
from hardware.models import Node
from tests.support.strategies import HABITS, habits, laid, one_layout

CATALOG = load_catalog()
any_node = st.sampled_from(CATALOG.nodes)
byte_counts = st.floats(1, 1e12)
stage_sizes = st.integers(1, 128)


def full_nodes(node: Node, num_nodes: int) -> Machine:
    """Return the devices of so many full nodes."""
    return Machine(CATALOG.accelerator(node.accelerator), node, num_nodes * node.num_devices, num_nodes)


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, int, Machine]:
    """Draw the members per node and the nodes of a group, and the devices it lies in."""
    node, nodes = draw(any_node), draw(st.integers(1, 64))
    return draw(st.integers(1, node.num_devices)), nodes, full_nodes(node, nodes)


def scaled(machine: Machine, *, links: float = 1, network: float = 1, latency: float = 1) -> Machine:
    """Return the devices with their bandwidths and latencies multiplied."""
    node = machine.node
    faster = [
        link.model_copy(update={"bytes_per_s": links * link.bytes_per_s, "latency_s": latency * link.latency_s})
        for link in node.links
    ]
    between = node.network.model_copy(
        update={"bytes_per_s": network * node.network.bytes_per_s, "latency_s": latency * node.network.latency_s}
    )
    return machine._replace(node=node.model_copy(update={"links": tuple(faster), "network": between}))


@given(any_node, byte_counts)
def test_one_rank_pays_nothing(node: Node, num_bytes: float) -> None:
    """A group of one device has nobody to talk to."""
    assert gather_seconds(num_bytes, 1, 1, full_nodes(node, 1)) == 0
    assert all_reduce_seconds(num_bytes, 1, 1, full_nodes(node, 1)) == 0
    assert all_to_all_seconds(num_bytes, 1, 1, full_nodes(node, 1)) == 0


@given(groups(), byte_counts)
def test_all_reduce_is_two_gathers(group: tuple[int, int, Machine], num_bytes: float) -> None:
    """An all-reduce is a reduce-scatter and an all-gather of the same bytes."""
    assert all_reduce_seconds(num_bytes, *group) == 2 * gather_seconds(num_bytes, *group)


@given(groups(), byte_counts, byte_counts, stage_sizes)
def test_more_bytes_never_cost_less(
    group: tuple[int, int, Machine], num_bytes: float, more: float, senders: int
) -> None:
    """A collective and a transfer of more bytes take as long or longer."""
    for collective in (gather_seconds, all_to_all_seconds):
        assert collective(num_bytes + more, *group) >= collective(num_bytes, *group) >= 0
    seconds = transfer_seconds(num_bytes, senders, group[2])
    assert transfer_seconds(num_bytes + more, senders, group[2]) >= seconds > 0


@given(groups(), byte_counts, st.floats(1, 100), st.floats(1, 100), stage_sizes)
def test_faster_wires_are_never_slower(
    group: tuple[int, int, Machine], num_bytes: float, links: float, network: float, senders: int
) -> None:
    """Faster links and a faster network make no collective and no transfer slower."""
    members, nodes, machine = group
    faster = scaled(machine, links=links, network=network)
    for collective in (gather_seconds, all_to_all_seconds):
        assert collective(num_bytes, members, nodes, faster) <= collective(num_bytes, members, nodes, machine)
    assert transfer_seconds(num_bytes, senders, faster) <= transfer_seconds(num_bytes, senders, machine)


@given(groups(), byte_counts, stage_sizes)
def test_seconds_are_free_of_units(group: tuple[int, int, Machine], num_bytes: float, senders: int) -> None:
    """Without latency, twice the bytes over twice the bandwidths take the same seconds."""
    members, nodes, machine = group
    once, twice = scaled(machine, latency=0), scaled(machine, links=2, network=2, latency=0)
    for collective in (gather_seconds, all_to_all_seconds):
        assert collective(2 * num_bytes, members, nodes, twice) == collective(num_bytes, members, nodes, once)
    assert transfer_seconds(2 * num_bytes, senders, twice) == transfer_seconds(num_bytes, senders, once)


@given(groups())
def test_an_empty_message_costs_its_hops(group: tuple[int, int, Machine]) -> None:
    """A gather of no bytes takes the latency of each hop of its two rings, and no more."""
    members, nodes, machine = group
    inside = group_links(machine, members)[1]
    hops = (nodes - 1) * machine.node.network.latency_s + (members - 1) * inside
    assert gather_seconds(0, members, nodes, machine) == pytest.approx(hops)


@given(any_node, byte_counts, st.integers(2, 64))
def test_a_ring_of_nodes_shares_the_network(node: Node, num_bytes: float, nodes: int) -> None:
    """Between nodes, the devices of full nodes together gather at the network's bandwidth."""
    still, count = scaled(full_nodes(node, nodes), latency=0), node.num_devices
    between = gather_seconds(num_bytes, count, nodes, still) - gather_seconds(num_bytes, count, 1, still)
    network = node.network.bytes_per_s * node.network.efficiency.value
    assert between == pytest.approx((nodes - 1) / nodes * num_bytes / network, rel=1e-6)


def test_devices_that_are_not_rented_leave_their_network() -> None:
    """Six of a node's eight devices share its network by six."""
    node = CATALOG.node_of("mi300x")
    whole = full_nodes(node, 2)
    part = whole._replace(num_devices=12)
    assert gather_seconds(1e9, 1, 2, scaled(part, latency=0)) == pytest.approx(
        gather_seconds(1e9, 1, 2, scaled(whole, latency=0)) * 6 / 8
    )


def test_a_group_takes_its_innermost_link() -> None:
    """On MI250 two devices use the link inside a package, more than two the ring; one uses none."""
    node = CATALOG.node_of("mi250")
    pair, ring = node.links
    bandwidth, latency = group_links(full_nodes(node, 1), np.arange(1, 9))
    expected = [np.inf, pair.bytes_per_s * pair.efficiency.value] + [ring.bytes_per_s * ring.efficiency.value] * 6
    assert bandwidth.tolist() == expected
    assert latency.tolist() == [0, pair.latency_s] + [ring.latency_s] * 6
    assert bandwidth[1] > bandwidth[2]


@pytest.mark.parametrize(("name", "members", "us"), [("a100-x8", 2, 10), ("a100-x8", 8, 43), ("h100-x8", 8, 27)])
def test_small_messages_take_as_long_as_measured(name: str, members: int, us: float) -> None:
    """An all-reduce of 8 KiB takes what was measured (NVIDIA/nccl-tests issue 123; Azure's benchmarking guide)."""
    machine = full_nodes(CATALOG.node(name), 1)
    assert all_reduce_seconds(8192.0, members, 1, machine) * 1e6 == pytest.approx(us, rel=0.05)


def test_devices_apart_take_the_link_that_spans_them() -> None:
    """On MI250 two devices that are two apart lie in two packages, and use the ring."""
    machine = full_nodes(CATALOG.node_of("mi250"), 1)
    assert group_links(machine, 2, stride=2)[0] == group_links(machine, 3)[0] < group_links(machine, 2)[0]


def test_a_pipeline_over_nodes_takes_the_slowest_link() -> None:
    """Stages of half a node on two nodes send inside a node and between nodes; those of whole nodes only between."""
    node = CATALOG.node_of("mi300x")
    inside, both, between = (
        transfer_seconds(1e9, devices, full_nodes(node, nodes)) for devices, nodes in ((4, 1), (4, 2), (8, 2))
    )
    assert both == max(inside, between)
    assert inside != between


def test_a_mesh_drives_a_link_to_every_peer() -> None:
    """On MI300X a group of m devices uses m - 1 links at once."""
    node = CATALOG.node_of("mi300x")
    (mesh,) = node.links
    members = np.arange(2, 9)
    bandwidth, _ = group_links(full_nodes(node, 1), members)
    np.testing.assert_allclose(bandwidth, (members - 1) * mesh.bytes_per_s * mesh.efficiency.value)


def test_a_node_of_one_device_has_only_the_network() -> None:
    """Where a node has no links, a transfer takes the network."""
    node = CATALOG.node_of("epyc-7763")
    assert node.links == ()
    assert transfer_seconds(1e9, 1, full_nodes(node, 1)) == transfer_seconds(1e9, 1, full_nodes(node, 2)) > 0


@given(any_node, st.lists(st.tuples(byte_counts, st.integers(1, 8), st.integers(1, 8), stage_sizes), min_size=1))
def test_arrays_are_their_elements(node: Node, sizes: list[tuple[float, int, int, int]]) -> None:
    """Seconds of an array of groups are those of each alone."""
    members_at_most = [(n, min(m, node.num_devices), k, senders) for n, m, k, senders in sizes]
    num_bytes, members, nodes, senders = (np.array(column) for column in zip(*members_at_most, strict=True))
    machine = full_nodes(node, 8)
    together = gather_seconds(num_bytes, members, nodes, machine)
    np.testing.assert_array_equal(together, [gather_seconds(n, m, k, machine) for n, m, k, _ in members_at_most])
    moved = transfer_seconds(num_bytes, senders, machine)
    np.testing.assert_array_equal(moved, [transfer_seconds(n, c, machine) for n, _, _, c in members_at_most])


# --- a plan's groups --------------------------------------------------------------------------------------------------

DEVICES = 48
MACHINES = [
    Machine.of(CATALOG, CATALOG.flavor_of(name, DEVICES)) for name in ("mi250", "mi210", "mi300x", "h100-sxm-80gb")
]
machines = st.sampled_from(MACHINES)
layouts = laid(DEVICES) | laid(DEVICES, "mixtral")
Laid = tuple[Shape, Layout]
MIXTRAL = load_shape("mistralai/Mixtral-8x7B-v0.1")


@given(st.integers(1, 64), st.integers(1, 64), machines)
def test_a_group_is_placed_whole(count: int, stride: int, machine: Machine) -> None:
    """The members on each node, times the nodes, hold a group, with less than a member per node to spare."""
    members, nodes = placed(count, stride, machine)
    assert members * nodes >= count > (members - 1) * nodes
    assert 1 <= nodes <= count
    if count * stride <= machine.devices_per_node:
        assert (members, nodes) == (count, 1)


@given(groups(), byte_counts)
def test_what_leaves_the_node_takes_the_network(group: tuple[int, int, Machine], num_bytes: float) -> None:
    """One member on each node exchanges all but its own part through its share of the network."""
    still = scaled(group[2], latency=0)
    nodes = group[1]
    expected = (nodes - 1) / nodes * num_bytes / network_share(still)
    assert all_to_all_seconds(num_bytes, 1, nodes, still) == pytest.approx(expected)
    assert all_to_all_seconds(num_bytes, 1, nodes, still) == pytest.approx(
        float(gather_seconds(num_bytes, 1, nodes, still))
    )


@given(layouts, st.floats(1, 1e6), machines, habits)
def test_a_degree_of_one_costs_nothing(drawn: Laid, tokens: float, machine: Machine, habit: Habits) -> None:
    """Tensor, context, expert and data parallelism, and a pipeline, cost nothing at 1, and something above."""
    shape, plan = drawn
    assert (tensor_parallel_seconds(tokens, plan, machine) == 0) == (plan.tp == 1)
    assert (context_parallel_seconds(tokens, shape, plan, machine, habit) == 0) == (plan.cp == 1)
    assert (expert_parallel_seconds(tokens, shape, plan, machine, habit) == 0) == (plan.ep == 1)
    assert (data_parallel_seconds(shape, plan, machine, habit) == 0) == (plan.replicas == 1)
    assert (stage_transfer_seconds(shape, 64, plan, machine, habit) == 0) == (plan.stages == 1)


@given(layouts, st.floats(1, 1e6), st.floats(0, 1e6), machines, habits)
def test_more_tokens_never_cost_less(drawn: Laid, tokens: float, more: float, machine: Machine, habit: Habits) -> None:
    """A ring and an exchange of more tokens take as long or longer."""
    shape, plan = drawn
    for seconds in (context_parallel_seconds, expert_parallel_seconds):
        few, many = (seconds(count, shape, plan, machine, habit) for count in (tokens, tokens + more))
        assert few <= many * (1 + 1e-12)


@given(layouts, machines, habits, st.floats(1, 100), st.floats(1, 100))
def test_faster_wires_never_slow_a_plan(
    drawn: Laid, machine: Machine, habit: Habits, links: float, network: float
) -> None:
    """Faster links and a faster network make none of a plan's collectives slower."""
    shape, plan = drawn
    before, after = (
        (
            tensor_parallel_seconds(1e6, plan, where),
            context_parallel_seconds(1e3, shape, plan, where, habit),
            expert_parallel_seconds(1e3, shape, plan, where, habit),
            stage_transfer_seconds(shape, 64, plan, where, habit),
            data_parallel_seconds(shape, plan, where, habit),
        )
        for where in (machine, scaled(machine, links=links, network=network))
    )
    assert all(fast <= slow * (1 + 1e-12) for slow, fast in zip(before, after, strict=True))


@given(layouts, machines, habits)
def test_hybrid_sharding_in_one_node_is_plain(drawn: Laid, machine: Machine, habit: Habits) -> None:
    """Where a node holds all replicas, shards within nodes are shards over all of them."""
    shape, plan = drawn
    plain, within = (
        data_parallel_seconds(shape, plan._replace(shard_within_node=flag), machine, habit) for flag in (False, True)
    )
    if plan.zero_stage == 0 or plan.replicas * plan.tp <= machine.devices_per_node:
        assert plain == within


def test_hybrid_sharding_spares_the_network() -> None:
    """Gathering every weight twice per micro-batch is faster inside the nodes than over the network between them."""
    shape, machine = load_shape("mistral-7b-v0.1"), MACHINES[3]
    plain, within = (
        data_parallel_seconds(
            shape, one_layout(Plan(num_micro_batches=8, shard_within_node=flag), DEVICES), machine, HABITS
        )
        for flag in (False, True)
    )
    assert within < plain


@given(st.sampled_from([1, 2, 4, 8]), machines)
def test_expert_ranks_share_what_they_hold(ep: int, machine: Machine) -> None:
    """More expert-parallel ranks leave each fewer experts to reduce, and never take longer to keep them alike."""
    plan = one_layout(Plan(num_micro_batches=8, tp=2, zero_stage=0, ep=ep), 32)
    whole = one_layout(Plan(num_micro_batches=8, tp=2, zero_stage=0), 32)
    split, together = (data_parallel_seconds(MIXTRAL, way, machine, HABITS) for way in (plan, whole))
    assert split <= together * (1 + 1e-12)
