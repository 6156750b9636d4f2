import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.collectives import (
    Group,
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
from estimator.formulas.inputs import StepInputs
from estimator.formulas.machine import Machine
from estimator.work.plan import Plan
from estimator.work.shape import Shape, load_shape
from hardware.models import Node
from tests.support.strategies import CATALOG, HABITS, machines_of, one_layout, step_inputs_of, with_plan

any_node = st.sampled_from(CATALOG.nodes)
byte_counts = st.floats(1, 1e12)
stage_sizes = st.integers(1, 128)


def full_nodes(node: Node, num_nodes: int) -> Machine:
    """Return the devices of so many full nodes."""
    return Machine(CATALOG.accelerator(node.accelerator), node, num_nodes * node.num_devices, num_nodes)


@st.composite
def groups(draw: st.DrawFn) -> tuple[Group, Machine]:
    """Draw a group, and the devices it lies in."""
    node, nodes = draw(any_node), draw(st.integers(1, 64))
    return Group(draw(st.integers(1, node.num_devices)), nodes), full_nodes(node, nodes)


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
    for collective in (gather_seconds, all_reduce_seconds, all_to_all_seconds):
        assert collective(num_bytes, Group(1, 1), full_nodes(node, 1)) == 0


@given(groups(), byte_counts)
def test_all_reduce_is_two_gathers(group: tuple[Group, Machine], num_bytes: float) -> None:
    """An all-reduce is a reduce-scatter and an all-gather of the same bytes."""
    assert all_reduce_seconds(num_bytes, *group) == 2 * gather_seconds(num_bytes, *group)


@given(groups(), byte_counts, byte_counts, stage_sizes)
def test_more_bytes_never_cost_less(group: tuple[Group, Machine], num_bytes: float, more: float, senders: int) -> None:
    """A collective and a transfer of more bytes take as long or longer."""
    for collective in (gather_seconds, all_to_all_seconds):
        assert collective(num_bytes + more, *group) >= collective(num_bytes, *group) >= 0
    seconds = transfer_seconds(num_bytes, senders, group[1])
    assert transfer_seconds(num_bytes + more, senders, group[1]) >= seconds > 0


@given(groups(), byte_counts, st.floats(1, 100), st.floats(1, 100), stage_sizes)
def test_faster_wires_are_never_slower(
    group: tuple[Group, Machine], num_bytes: float, links: float, network: float, senders: int
) -> None:
    """Faster links and a faster network make no collective and no transfer slower."""
    members, machine = group
    faster = scaled(machine, links=links, network=network)
    for collective in (gather_seconds, all_to_all_seconds):
        assert collective(num_bytes, members, faster) <= collective(num_bytes, members, machine)
    assert transfer_seconds(num_bytes, senders, faster) <= transfer_seconds(num_bytes, senders, machine)


@given(groups(), byte_counts, stage_sizes)
def test_seconds_are_free_of_units(group: tuple[Group, Machine], num_bytes: float, senders: int) -> None:
    """Without latency, twice the bytes over twice the bandwidths take the same seconds."""
    members, machine = group
    once, twice = scaled(machine, latency=0), scaled(machine, links=2, network=2, latency=0)
    for collective in (gather_seconds, all_to_all_seconds):
        assert collective(2 * num_bytes, members, twice) == collective(num_bytes, members, once)
    assert transfer_seconds(2 * num_bytes, senders, twice) == transfer_seconds(num_bytes, senders, once)


@given(groups())
def test_an_empty_message_costs_its_hops(group: tuple[Group, Machine]) -> None:
    """A gather of no bytes takes the latency of each hop of a ring through all, and no more."""
    members, machine = group
    inside = group_links(members, machine)[1]
    hops = (members.nodes - 1) * machine.node.network.latency_s + members.nodes * (members.members - 1) * inside
    assert gather_seconds(0, members, machine) == pytest.approx(hops)


@given(any_node, byte_counts, st.integers(2, 64))
def test_a_ring_of_nodes_shares_the_network(node: Node, num_bytes: float, nodes: int) -> None:
    """Between nodes, the devices of full nodes together gather at the network's bandwidth."""
    still, count = scaled(full_nodes(node, nodes), latency=0), node.num_devices
    over, inside = (gather_seconds(num_bytes, Group(count, n), still) for n in (nodes, 1))
    network = node.network.bytes_per_s * node.network.efficiency.value
    assert over - inside == pytest.approx((nodes - 1) / nodes * num_bytes / network, rel=1e-6)


def test_devices_that_are_not_rented_leave_their_network() -> None:
    """Six of a node's eight devices share its network by six."""
    node = CATALOG.node_of("mi300x")
    whole = full_nodes(node, 2)
    part = whole._replace(num_devices=12)
    six, eight = (gather_seconds(1e9, Group(1, 2), scaled(lent, latency=0)) for lent in (part, whole))
    assert six == pytest.approx(eight * 6 / 8)


def test_a_group_takes_its_innermost_link() -> None:
    """On MI250 two devices use the link inside a package, more than two the ring; one uses none."""
    node = CATALOG.node_of("mi250")
    pair, ring = node.links
    bandwidth, latency = group_links(Group(np.arange(1, 9), 1), full_nodes(node, 1))
    expected = [np.inf, pair.bytes_per_s * pair.efficiency.value] + [ring.bytes_per_s * ring.efficiency.value] * 6
    assert bandwidth.tolist() == expected
    assert latency.tolist() == [0, pair.latency_s] + [ring.latency_s] * 6
    assert bandwidth[1] > bandwidth[2]


@pytest.mark.parametrize(("name", "members", "us"), [("a100-x8", 2, 10), ("a100-x8", 8, 43), ("h100-x8", 8, 27)])
def test_small_messages_take_as_long_as_measured(name: str, members: int, us: float) -> None:
    """An all-reduce of 8 KiB takes what was measured (NVIDIA/nccl-tests issue 123; Azure's benchmarking guide)."""
    machine = full_nodes(CATALOG.node(name), 1)
    assert all_reduce_seconds(8192.0, Group(members, 1), machine) * 1e6 == pytest.approx(us, rel=0.05)


def test_devices_apart_take_the_link_that_spans_them() -> None:
    """On MI250 two devices that are two apart lie in two packages, and use the ring."""
    machine = full_nodes(CATALOG.node_of("mi250"), 1)
    apart, three, near = (group_links(group, machine)[0] for group in (Group(2, 1, 2), Group(3, 1), Group(2, 1)))
    assert apart == three < near


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
    bandwidth, _ = group_links(Group(members, 1), full_nodes(node, 1))
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
    together = gather_seconds(num_bytes, Group(members, nodes), machine)
    alone = [gather_seconds(n, Group(m, k), machine) for n, m, k, _ in members_at_most]
    np.testing.assert_array_equal(together, alone)
    moved = transfer_seconds(num_bytes, senders, machine)
    np.testing.assert_array_equal(moved, [transfer_seconds(n, c, machine) for n, _, _, c in members_at_most])


# --- a plan's groups --------------------------------------------------------------------------------------------------

DEVICES = 48
MACHINES = machines_of(DEVICES)
machines = st.sampled_from(MACHINES)
steps = step_inputs_of(DEVICES) | step_inputs_of(DEVICES, "mixtral")
MIXTRAL = load_shape("mistralai/Mixtral-8x7B-v0.1")


@given(st.integers(1, 64), st.integers(1, 64), machines)
def test_a_group_is_placed_whole(count: int, stride: int, machine: Machine) -> None:
    """The members on each node, times the nodes, hold a group, with less than a member per node to spare."""
    members, nodes, apart = placed(count, stride, machine)
    assert apart == stride
    assert members * nodes >= count > (members - 1) * nodes
    assert 1 <= nodes <= count
    if count * stride <= machine.devices_per_node:
        assert (members, nodes) == (count, 1)


@given(groups(), byte_counts)
def test_what_leaves_the_node_takes_the_network(group: tuple[Group, Machine], num_bytes: float) -> None:
    """One member on each node exchanges all but its own part through its share of the network."""
    nodes, still = group[0].nodes, scaled(group[1], latency=0)
    expected = (nodes - 1) / nodes * num_bytes / network_share(still)
    for collective in (all_to_all_seconds, gather_seconds):
        assert collective(num_bytes, Group(1, nodes), still) == pytest.approx(expected)


@given(steps)
def test_a_degree_of_one_costs_nothing(inputs: StepInputs) -> None:
    """Tensor, context, expert and data parallelism, and a pipeline, cost nothing at 1, and something above."""
    plan = inputs.plan
    assert (tensor_parallel_seconds(1e6, plan, inputs.machine) == 0) == (plan.tp == 1)
    assert (context_parallel_seconds(inputs) == 0) == (plan.cp == 1)
    assert (expert_parallel_seconds(inputs) == 0) == (plan.ep == 1)
    assert (data_parallel_seconds(inputs) == 0) == (plan.replicas == 1)
    assert (stage_transfer_seconds(inputs) == 0) == (plan.num_stages == 1)


@given(steps, st.floats(0, 1))
def test_hidden_latencies_leave_the_bytes(inputs: StepInputs, part: float) -> None:
    """Latencies of the collectives of replicas count by their exposed part; their bytes take as long whatever it is."""
    none, some, whole = (float(data_parallel_seconds(inputs, one)) for one in (0.0, part, 1.0))
    assert some == pytest.approx(none + part * (whole - none))
    still = scaled(inputs.machine, latency=0)
    assert none >= float(data_parallel_seconds(inputs._replace(machine=still), 0.0)) * (1 - 1e-12)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_latencies_of_replicas_grow_with_the_nodes(zero_stage: int) -> None:
    """Over twice the nodes a ring's latencies are twice as long, while its bytes take hardly longer."""

    def seconds(nodes: int, message_exposure: float) -> float:
        node = CATALOG.node("h100-x8")
        machine = Machine(CATALOG.accelerator(node.accelerator), node, 8 * nodes, nodes)
        layout = one_layout(Plan(zero_stage=zero_stage), 8 * nodes)
        inputs = StepInputs(load_shape("mistral-7b-v0.1"), 2048, layout, machine, HABITS)
        return float(data_parallel_seconds(inputs, message_exposure))

    assert seconds(64, 0) < 1.05 * seconds(32, 0)
    assert seconds(64, 1) - seconds(64, 0) == pytest.approx(2 * (seconds(32, 1) - seconds(32, 0)), rel=0.05)


@given(steps, st.integers(1, 4096))
def test_more_tokens_never_cost_less(inputs: StepInputs, more: int) -> None:
    """A ring, an exchange and a transfer of more tokens take as long or longer."""
    longer = inputs._replace(seq_len=inputs.seq_len + more)
    for seconds in (context_parallel_seconds, expert_parallel_seconds, stage_transfer_seconds):
        assert seconds(inputs) <= seconds(longer) * (1 + 1e-12)


@given(steps, st.floats(1, 100), st.floats(1, 100))
def test_faster_wires_never_slow_a_plan(inputs: StepInputs, links: float, network: float) -> None:
    """Faster links and a faster network make none of a plan's collectives slower."""
    before, after = (
        (
            tensor_parallel_seconds(1e6, inputs.plan, machine),
            context_parallel_seconds(inputs._replace(machine=machine)),
            expert_parallel_seconds(inputs._replace(machine=machine)),
            stage_transfer_seconds(inputs._replace(machine=machine)),
            data_parallel_seconds(inputs._replace(machine=machine)),
        )
        for machine in (inputs.machine, scaled(inputs.machine, links=links, network=network))
    )
    assert all(fast <= slow * (1 + 1e-12) for slow, fast in zip(before, after, strict=True))


@given(steps)
def test_hybrid_sharding_in_one_node_is_plain(inputs: StepInputs) -> None:
    """Where a node holds all replicas, shards within nodes are shards over all of them."""
    plain, within = (data_parallel_seconds(with_plan(inputs, shard_within_node=flag)) for flag in (False, True))
    plan = inputs.plan
    if plan.zero_stage == 0 or plan.replicas * plan.tp <= inputs.machine.devices_per_node:
        assert plain == within


def reduced_seconds(shape: Shape, plan: Plan, machine: Machine) -> float:
    """Return the seconds in which a plan's replicas are kept alike."""
    return float(data_parallel_seconds(StepInputs(shape, 2048, one_layout(plan, DEVICES), machine, HABITS)))


def test_hybrid_sharding_spares_the_network() -> None:
    """Gathering every weight twice per micro-batch is faster inside the nodes than over the network between them."""
    plain, within = (
        reduced_seconds(load_shape("mistral-7b-v0.1"), Plan(num_micro_batches=8, shard_within_node=flag), MACHINES[3])
        for flag in (False, True)
    )
    assert within < plain


@given(st.sampled_from([1, 2, 4, 8]), machines)
def test_expert_ranks_share_what_they_hold(ep: int, machine: Machine) -> None:
    """More expert-parallel ranks leave each fewer experts to reduce, and never take longer to keep them alike."""
    split, together = (
        reduced_seconds(MIXTRAL, Plan(num_micro_batches=8, tp=2, zero_stage=0, ep=ways), machine) for ways in (ep, 1)
    )
    assert split <= together * (1 + 1e-12)
