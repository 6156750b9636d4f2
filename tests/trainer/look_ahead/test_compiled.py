import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import symbolic_trace

from estimator.work.plan import parse_plan
from tests.trainer.look_ahead.test_dry_run import MODEL
from trainer.config import TrainConfig
from trainer.data.dataset import DataConfig
from trainer.look_ahead.compiled import counted_as_compiled, fused_nodes
from trainer.look_ahead.dry_run import dry_run
from trainer.look_ahead.meter import Meter


class Gated(nn.Module):
    """The inner part of a gated block, from its two products on."""

    def forward(self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up, projected."""
        return (nn.functional.silu(gate) * up) @ down


def test_a_compiled_gated_block_keeps_three_values_and_an_eager_one_four() -> None:
    """The activation's own result is repeated in the backward pass: gate, up and their product are kept."""
    kept = {}
    for compiled in (False, True):
        torch.compiler.reset()
        block = Gated()
        if compiled:
            block.compile(backend=counted_as_compiled)
        with FakeTensorMode(), Meter() as meter:
            gate, up = (torch.zeros(32, 64, requires_grad=True) for _ in range(2))
            down = torch.zeros(64, 8, requires_grad=True)
            meter.mark("parameters", [down])
            out = block(gate, up, down)
            meter.reset_peak()
            kept[compiled] = meter.peak()["activations"] - out.nbytes
    assert kept == {False: 4 * 32 * 64 * 4, True: 3 * 32 * 64 * 4}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("recomputation", ["none", "full"])
def test_a_compiled_layer_keeps_less_and_computes_the_same(recomputation: str) -> None:
    """It keeps two thirds to four fifths of an eager one's activations, unless all is repeated; the same products."""

    def run(*, compiles: bool) -> tuple[int, int]:
        plan = parse_plan(f"num_micro_batches=1,batch_per_device=8,recomputation={recomputation}")
        config = TrainConfig(plan=plan, data=DataConfig(seq_len=64), precision="bf16-mixed", compiles=compiles)
        found = dry_run(config, MODEL, world_size=8, local_size=4, rank=0)
        assert found.compiled == compiles
        return found.num_bytes["activations"], found.num_flop

    (eager, flop), (compiled, same) = run(compiles=False), run(compiles=True)
    assert compiled < eager or recomputation == "full"
    assert same == flop


@pytest.mark.parametrize("name", ["relu", "neg"])
def test_what_a_product_takes_is_written_to_memory(name: str) -> None:
    """Not so what only another element-wise operator takes; nothing is fused that is no element-wise operator."""
    op = getattr(torch.ops.aten, name).default

    def chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.mm.default(op(op(x)), y)

    graph = symbolic_trace(chain)
    first, second, product = (node for node in graph.graph.nodes if node.op == "call_function")
    assert fused_nodes(graph) == {first}
    assert second not in fused_nodes(graph)
    assert product not in fused_nodes(graph)
