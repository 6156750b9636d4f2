import pytest
import torch
from torch import nn

from trainer.parallel import adamw
from trainer.parallel.adamw import WIDTH, CompiledAdamW
from trainer.parallel.optimizer import OptimizerConfig, make_optimizers, set_rate

SHAPES = ((256, 300), (256, 512), (1, 64 * WIDTH), (WIDTH,), (3, 5), ())
"""Of weights: three large ones in rows of `WIDTH`, of which one size comes last, and those that are no such."""


@pytest.fixture(autouse=True)
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "LEAST", 64 * WIDTH)


def model(dtype: torch.dtype) -> nn.ParameterList:
    """Return weights, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_torchs(dtype: torch.dtype) -> None:
    """Weights and moments are those of torch's fused kernel, to a unit in the last place, rates and scales changing."""
    theirs, ours = model(dtype), model(dtype)
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    (fused,), (compiled,) = make_optimizers([theirs], config), make_optimizers([ours], config, compiles=True)
    assert isinstance(compiled, CompiledAdamW)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 4):
        set_rate([fused, compiled], 1e-2 / step)
        scale = torch.tensor(2.0**-step)  # halves a gradient to the last bit
        for a, b in zip(theirs, ours, strict=True):
            gradient = torch.randn(a.shape, generator=generator).to(dtype)
            b.grad = gradient.clone()
            a.grad = (gradient * scale).to(dtype)
        compiled.scale = scale
        fused.step()
        compiled.step()
    close = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-12}
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b.detach(), a.detach(), **close)
        assert fused.state[a].keys() == compiled.state[b].keys()
        for name, expected in fused.state[a].items():
            torch.testing.assert_close(compiled.state[b][name], expected, **close)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_state_goes_from_one_to_the_other() -> None:
    """What torch's optimizer has kept, the compiled one goes on with, and a weight without a gradient waits."""
    weights, config = model(torch.float32), OptimizerConfig(lr=1e-2)
    (fused,), (compiled,) = make_optimizers([weights], config), make_optimizers([weights], config, compiles=True)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    fused.step()
    compiled.load_state_dict(fused.state_dict())
    weights[-1].grad, before = None, weights[-1].detach().clone()
    compiled.step()
    assert [float(compiled.state[weight]["step"]) for weight in weights] == [2.0] * (len(SHAPES) - 1) + [1.0]
    assert torch.equal(weights[-1], before)
