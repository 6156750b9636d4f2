"""What a compiled layer holds: the graphs that torch compiles, run operator by operator, and counted as compiled.

Dynamo's trace, Inductor's decompositions and the partitioner that divides them into a forward and a backward pass are
torch's own: what the forward pass keeps is what a compiled one keeps. Inductor's fusion is stood for by a rule: what
element-wise operators make lives in registers, unless a matrix product, an attention kernel or the graph's result
takes it.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._prims.rng_prims import run_and_save_rng_state, run_with_rng_state
from torch.fx import GraphModule, Interpreter, Node

from trainer.look_ahead.meter import FLOP_FORMULAS, fused

DRAWN: dict[Any, int] = {run_and_save_rng_state: 0, run_with_rng_state: 1}
"""Around an operator of recomputation that may draw random numbers, attention's; and its place among the arguments."""


def counted_as_compiled(graph: GraphModule, inputs: Sequence[Any]) -> Any:
    """Compile as a backend of `torch.compile` whose graphs a meter counts as Inductor's."""
    return aot_autograd(
        fw_compiler=_as_compiled,
        bw_compiler=_as_compiled,
        decompositions=select_decomp_table,
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        keep_inference_input_mutations=True,
    )(graph, inputs)


def _as_compiled(graph: GraphModule, _: Sequence[Any]) -> Callable[[list[Any]], Any]:
    interpreter = _Fused(graph)

    def run(inputs: list[Any]) -> Any:
        try:
            return interpreter.boxed_run(inputs)  # which lets go of an input after its last use, as compiled code does
        finally:
            interpreter.env.clear()

    run._boxed_call = True  # type: ignore[attr-defined] # noqa: SLF001 - what torch asks such a function for
    return run


class _Fused(Interpreter):
    """Runs a graph; what the compiler would not write to memory a meter does not see."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.fused = fused_nodes(graph)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function; where recomputation would save or restore a random state, as for dropout, there is none."""
        if target not in DRAWN:
            return super().call_function(target, args, kwargs)
        operator, *rest = args[DRAWN[target] :]
        result = operator(*rest, **kwargs)
        return (torch.empty(0, dtype=torch.uint8), result) if target is run_and_save_rng_state else result

    def run_node(self, n: Node) -> Any:
        """Run an operator."""
        with fused() if n in self.fused else nullcontext():
            return super().run_node(n)


def fused_nodes(graph: GraphModule) -> set[Node]:
    """Return the operators of a graph whose results a compiler does not write to memory."""
    written: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        if any(user.op == "output" or _is_kernel(user) or (_is_view(user) and user in written) for user in node.users):
            written.add(node)
    fused: set[Node] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if _is_view(node):
            if any(source in fused for source in node.all_input_nodes):
                fused.add(node)
        elif _is_elementwise(node) and node not in written:
            fused.add(node)
    return fused


def _is_kernel(node: Node) -> bool:
    """Whether an operator is a kernel of its own, which reads its inputs from memory."""
    target = node.args[DRAWN[node.target]] if node.target in DRAWN else node.target
    packet = getattr(target, "overloadpacket", None)
    return packet in FLOP_FORMULAS or getattr(node.target, "namespace", "") in {"_c10d_functional", "c10d"}


def _is_view(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view  # noqa: SLF001


def _is_elementwise(node: Node) -> bool:
    target = node.target
    if target is torch.ops.aten.copy.default:  # what is written in place, as autograd's graphs have it
        return True
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags  # noqa: SLF001
