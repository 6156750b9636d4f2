from functools import partial

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from tests.support.tiny import mistral_of
from trainer.parallel.model import Stage, meta_model
from trainer.parallel.parallelize import recompute_layers

ROWS, TOKENS = 2, 16


def stage_of(layers: int) -> Stage:
    """Return a model of a few layers in one stage, the same weights each time."""
    config = mistral_of(layers)
    torch.manual_seed(0)
    stage = Stage(meta_model(config, "sdpa", torch.float32), range(layers), first=True, last=True, packed=False)
    stage.materialize(torch.device("cpu"))
    for name, parameter in stage.named_parameters():
        nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.ones_(parameter)
        assert name
    return stage


def gradients(stage: Stage) -> dict[str, torch.Tensor]:
    """Return the gradients of a sum of logits."""
    ids = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS)
    stage(ids, torch.arange(TOKENS).expand(ROWS, TOKENS)).square().sum().backward()
    found = {}
    for name, parameter in stage.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad
    return found


def test_selective_recomputation_repeats_no_product() -> None:
    """Gradients and products are those of a plain step; full recomputation has more products."""
    expected, products = gradients(stage_of(2)), {}
    for name, count, keeps_products in (("none", 0, False), ("selective", 2, True), ("full", 2, False)):
        stage = stage_of(2)
        recompute_layers(stage, count, keeps_products=keeps_products)
        with FlopCounterMode(display=False) as counter:
            found = gradients(stage)
        products[name] = counter.get_total_flops()
        torch.testing.assert_close(found, expected)
    assert products["none"] == products["selective"] < products["full"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_selective_recomputation_is_compiled_whole() -> None:
    """Compiled layers that keep their products are one graph each, and have the gradients of plain ones."""
    expected, stage = gradients(stage_of(2)), stage_of(2)
    recompute_layers(stage, 2, keeps_products=True)
    torch.compiler.reset()
    for _, layer in stage.layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(stage), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_repeated_layer_is_compiled_whole() -> None:
    """Full recomputation leaves a layer one graph, the repeated part in it, and the gradients as they are."""
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _: list[torch.Tensor]) -> GraphModule:
        graphs.append(graph)
        return graph

    expected, stage = gradients(stage_of(2)), stage_of(2)
    recompute_layers(stage, 2)
    torch.compiler.reset()
    for _, layer in stage.layers:
        layer.compile(backend=partial(keep), fullgraph=True)
    found = gradients(stage)
    products = [
        node
        for graph in graphs
        for part in graph.modules()
        if isinstance(part, GraphModule)
        for node in part.graph.nodes
        if node.target in (torch._C._nn.linear, "linear")  # noqa: SLF001 - as dynamo writes nn.Linear
    ]
    assert len(products) == 7 * len(graphs) > 0
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
