"""Seconds of a collective: latency and bandwidth over the links of a node and the network between nodes.

Inside a node the bandwidth per device of a group is that of the innermost link that spans it: a pair, a ring at its
slowest edge, a switch, or a mesh, where a group of m devices drives m - 1 links at once. Between nodes all devices that
a node lends share its network, each carrying an equal part. Ranks are laid over the devices tensor parallel first, then
data parallel, then stages.
"""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout
from estimator.formulas.machine import Machine
from estimator.formulas.stages import fullest_rank

BUCKET_BYTES = 25 * 2**20
"""Gradients in one message where nothing is sharded.  # datasheet: the default of DistributedDataParallel"""

MESSAGES_PER_LAYER = 0.5
"""Messages of a layer's sharded gradients, or weights, whose latencies add up.

measured: with 0.5, of 0.5, 1, 2 and 6, nanotron's runs of ZeRO 1 on 64 and more replicas agree best with the others;
their tensors, 6 a layer, are sent as one group
"""


class Group(NamedTuple):
    """Devices that take part in a collective, as numbers or arrays."""

    members: Num
    """In each node."""
    nodes: Num
    stride: Num = 1
    """From a member to the next in its node, in devices."""


def group_links(group: Group, machine: Machine) -> tuple[Array, Array]:
    """Bandwidth per device and direction [bytes/s] and latency [s] inside a node.

    Returns infinite bandwidth and no latency for a group of one.
    """
    count, span = np.broadcast_arrays(group.members, np.asarray(group.members) * group.stride)
    bandwidth, latency = np.full(count.shape, np.inf), np.zeros(count.shape)
    for link in reversed(machine.node.links):
        fits = (count > 1) & ((span <= link.span) | (link is machine.node.links[-1]))
        links = count - 1 if link.topology == "mesh" else 1
        bandwidth = np.where(fits, link.bytes_per_s * link.efficiency.value * links, bandwidth)
        latency = np.where(fits, link.latency_s, latency)
    return bandwidth, latency


def gather_seconds(num_bytes: Num, group: Group, machine: Machine, messages: Num = 1) -> Array:
    """Seconds of an all-gather, or a reduce-scatter, of `num_bytes` in all over a group.

    Hierarchical: between nodes every member gathers its 1/m of the bytes from the same member of the other nodes, the
    node's network shared by all its devices; then the members exchange inside the node.

    between: (n - 1) / n * (bytes / m) / (B_net / d) + (n - 1) a_net;  inside: (m - 1) / m * bytes / B + n (m - 1) a
    (ring terms of Thakur, Rabenseifner, Gropp 2005, doi:10.1177/1094342005051521, section 4.1; d devices per node).
    One member of one node: 0. In several messages, the bytes take as long, and each message its latencies: those of a
    ring through all n m members, as NCCL runs it (src/graph/tuning.cc: nRanks - 1 steps, nNodes - 1 of them between
    nodes), which grow with the nodes without end.
    """
    members, nodes = np.asarray(group.members, dtype=np.float64), np.asarray(group.nodes, dtype=np.float64)
    bandwidth, latency = group_links(group, machine)
    share, hop_s = network_share(machine), network_hop_seconds(machine)
    between = (nodes - 1) / nodes * np.asarray(num_bytes) / members / share + messages * (nodes - 1) * hop_s
    inside = (members - 1) / members * np.asarray(num_bytes) / bandwidth + messages * nodes * (members - 1) * latency
    return np.asarray(between + inside)


def network_share(machine: Machine) -> float:
    """Bandwidth that each device has of its node's network, all of them sending [bytes/s]."""
    network = machine.node.network
    return network.bytes_per_s * network.efficiency.value / machine.devices_per_node


def network_hop_seconds(machine: Machine) -> Num:
    """Seconds that a hop between nodes adds to a message: as measured, else the catalog's latency."""
    return machine.node.network.latency_s if machine.fabric is None else machine.fabric.hop_s


def all_reduce_seconds(num_bytes: Num, group: Group, machine: Machine) -> Array:
    """Seconds of an all-reduce: a reduce-scatter and an all-gather (Rabenseifner's algorithm)."""
    return 2.0 * gather_seconds(num_bytes, group, machine)


def transfer_seconds(num_bytes: Num, stage_devices: Num, machine: Machine) -> Array:
    """Seconds of each device of a stage sending `num_bytes` to its peer of the next stage, all at once.

    A pipeline over several nodes crosses between two of them somewhere, and is as fast as its slowest link.
    """
    sent, node = np.asarray(num_bytes, dtype=np.float64), machine.node
    between = np.asarray(sent / network_share(machine) + node.network.latency_s)
    if not node.links:
        return between
    link = node.links[-1]
    inside = np.asarray(sent / (link.bytes_per_s * link.efficiency.value) + link.latency_s)
    if machine.num_nodes == 1:
        return inside
    return np.where(np.asarray(stage_devices) < machine.devices_per_node, np.maximum(between, inside), between)


def placed(count: Num, stride: Num, machine: Machine) -> Group:
    """Return the group of so many ranks, `stride` devices apart."""
    count = np.asarray(count)
    nodes = np.minimum(count, np.ceil(count * np.asarray(stride) / machine.devices_per_node))
    return Group(np.ceil(count / nodes), nodes, stride)


def all_to_all_seconds(num_bytes: Num, group: Group, machine: Machine) -> Array:
    """Seconds of every device sending `num_bytes` in all, in equal parts to all of its group, itself included.

    What leaves the node, (n - 1) / n of it, goes over the device's share of the network; (m - 1) / (m n) goes inside.
    """
    members, nodes = np.asarray(group.members, dtype=np.float64), np.asarray(group.nodes, dtype=np.float64)
    bandwidth, latency = group_links(group, machine)
    between = (nodes - 1) / nodes * np.asarray(num_bytes) / network_share(machine)
    inside = (members - 1) / (members * nodes) * np.asarray(num_bytes) / bandwidth
    return np.asarray(between + inside + (nodes > 1) * machine.node.network.latency_s + latency)


def tensor_parallel_seconds(num_bytes: Num, plan: Layout, machine: Machine, hop_s: Num = 0.0) -> Array:
    """Seconds of one all-reduce (or all-gather and reduce-scatter) over a tensor-parallel group.

    Where it leaves the node, its ring of 2 (tp - 1) hops takes further `hop_s` for each.
    """
    return all_reduce_seconds(num_bytes, placed(plan.tp, 1, machine), machine) + plan.tensor_parallel_hops * hop_s


def context_parallel_seconds(inputs: StepInputs) -> Array:
    """Seconds of passing a layer's keys and values around the context-parallel ring: once forward, twice backward.

    Backward, their gradients travel along (Liu et al. 2023, arXiv:2310.01889, section 3).
    """
    plan, machine = inputs.plan, inputs.machine
    ring = 2.0 * inputs.habits.activation_bytes * inputs.tokens * plan.cp * inputs.shape.kv_size / plan.tp
    return 3.0 * gather_seconds(ring, placed(plan.cp, plan.tp, machine), machine)


def expert_parallel_seconds(inputs: StepInputs) -> Array:
    """Seconds of sending a layer's tokens to their experts and back, once: two all-to-alls."""
    shape, _, plan, machine, habits = inputs
    sent = habits.activation_bytes * inputs.tokens * shape.num_experts_per_token * shape.hidden_size
    seconds = all_to_all_seconds(sent / plan.tp, placed(plan.ep, plan.tp * plan.cp, machine), machine)
    return np.where(plan.ep > 1, 2.0 * seconds, 0.0)


def stage_transfer_seconds(inputs: StepInputs) -> Array:
    """Seconds of sending activations forward and gradients back, for every slot of the pipeline and every chunk."""
    plan = inputs.plan
    slots = plan.num_micro_batches * plan.virtual_stages + plan.num_stages - 2
    seconds = transfer_seconds(inputs.passed_bytes / plan.tp, plan.replicas * plan.tp, inputs.machine)
    return np.asarray(2.0 * np.where(plan.num_stages > 1, slots, 0) * seconds)


def data_parallel_seconds(inputs: StepInputs, message_exposure: Num = 1.0) -> Array:
    """Seconds of the collectives that keep replicas alike, none of them hidden.

    ZeRO 0 reduces and gathers gradients; 1 and 2 reduce gradients and gather weights; 3 the same where the stack keeps
    gathered weights, else it gathers them for every forward and backward pass (Rajbhandari et al. 2020,
    arXiv:1910.02054, section 7). Sharded within nodes, each shard is also reduced over the nodes (Zhao et al. 2023,
    arXiv:2304.11277, section 3.2.2). Experts have 1/ep of the replicas. What is frozen has no gradient, and is gathered
    only where it is not kept.

    Bytes hide behind the backward pass, while a ring's hops grow with its nodes until no pass is long enough for them:
    of the latencies `message_exposure` counts.
    """
    shape, _, plan, machine, habits = inputs
    zero, regathers = plan.zero_stage, ~habits.gathers_once(plan.num_stages)
    num_reductions = np.where((zero >= 2) & habits.reduces_often(plan.num_stages), plan.num_micro_batches, 1)
    num_gathers = np.where((zero == 3) & regathers, 2 * plan.num_micro_batches, 1)
    messages = message_exposure * MESSAGES_PER_LAYER * plan.most_of_stages(plan.stage_layers(shape.num_layers))
    dense = plan.replicas, plan.shard_ranks, plan.tp
    experts = plan.replicas // plan.ep, plan.expert_shard_ranks, plan.tp * plan.ep
    params, trained = fullest_rank(shape, plan), fullest_rank(shape, plan, trained=True)
    seconds = np.zeros(())
    for held, count, (replicas, shards, stride) in zip(params, trained, (dense, experts), strict=True):
        if not np.any(held):
            continue
        gradients, weights = count * habits.gradient_bytes, count * habits.weight_bytes
        if shape.lora_rank:
            weights = weights + np.where((zero == 3) & regathers, (held - count) * habits.bytes_of_frozen, 0.0)
        everyone, sharers = placed(replicas, stride, machine), placed(shards, stride, machine)
        reduced = num_reductions * gather_seconds(gradients, sharers, machine, messages)
        gathered = num_gathers * gather_seconds(weights, sharers, machine, messages)
        copies = placed(replicas // shards, stride * shards, machine)
        copied = all_reduce_seconds(gradients / shards, copies, machine)
        buckets = message_exposure * np.ceil(gradients / BUCKET_BYTES)
        unsharded = 2.0 * gather_seconds(gradients, everyone, machine, buckets)
        seconds = seconds + np.where(zero == 0, unsharded, reduced + gathered + copied)
    return seconds
