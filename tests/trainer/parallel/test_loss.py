import pytest
import torch
from torch import Tensor, nn

from estimator.stack.stack import load_premises
from trainer.data.loader import NO_TARGET
from trainer.parallel import loss as module
from trainer.parallel.loss import MOST_LOGITS, loss_sum, soften, soften_in_parts, take_loss

VOCABULARY, SIZE, TARGETS = 100, 16, 14


def work(dtype: torch.dtype) -> tuple[Tensor, Tensor, nn.Linear]:
    """Return hidden states, labels of which five are no targets, and a projection."""
    torch.manual_seed(0)
    h_BTD = torch.randn(2, 9, SIZE, dtype=dtype, requires_grad=True)
    labels_BT = torch.randint(0, VOCABULARY, (2, 9))
    labels_BT[0, 3] = labels_BT[1, :4] = NO_TARGET
    return h_BTD, labels_BT, nn.Linear(SIZE, VOCABULARY, bias=False, dtype=dtype)


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    """Return the gradients of a loss as 32-bit numbers."""
    return [gradient.float() for gradient in torch.autograd.grad(loss, of)]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # Inductor's own
@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("most", [2**28, 7 * VOCABULARY])
def test_the_loss_in_chunks_is_the_whole_ones(
    dtype: torch.dtype, off: float, most: int, monkeypatch: pytest.MonkeyPatch, *, compiles: bool
) -> None:
    """Loss and gradients are those of all logits at once, whatever the chunks, and compiled; others have no part."""
    monkeypatch.setattr(module, "MOST_LOGITS", most)
    h_BTD, labels_BT, head = work(dtype)
    whole = loss_sum(head(h_BTD), labels_BT) / TARGETS
    expected = gradients(whole, h_BTD, head.weight)
    take_loss(head, compiles=compiles)
    chunked = head(h_BTD, labels_BT, TARGETS)
    found = gradients(chunked, h_BTD, head.weight)
    assert float(chunked.detach()) == pytest.approx(float(whole.detach()), rel=off)
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).abs().max()) <= off * float(theirs.abs().max())
    assert not found[0][0, 3].any()


def test_a_sure_guess_has_a_gradient() -> None:
    """In 16 bits a probability near 1 is 1: its gradient, the probability less 1, is told by the loss."""
    head = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[8.0, 0.0], [0.0, 0.0]]))
    take_loss(head, compiles=False)
    h_BTD = torch.ones(1, 1, 2, dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = gradients(head(h_BTD, torch.zeros(1, 1, dtype=torch.long), 1), h_BTD)
    assert float(gradient[0, 0, 0]) == pytest.approx(-8.0 * 3.3535e-4, rel=0.01)


def test_nothing_is_computed_for_what_is_frozen() -> None:
    """A frozen projection has no gradient; with nothing to train there is a loss alone."""
    h_BTD, labels_BT, head = work(torch.float32)
    head.weight.requires_grad_(requires_grad=False)
    take_loss(head, compiles=False)
    head(h_BTD, labels_BT, TARGETS).backward()
    assert head.weight.grad is None
    assert h_BTD.grad is not None
    assert head(h_BTD.detach(), labels_BT, TARGETS).grad_fn is None


def test_parts_are_the_whole() -> None:
    """Softened a few rows at a time, the numbers are those of all rows."""
    logits_NV = 30 * torch.randn(50, 3)
    one, other = logits_NV.clone(), logits_NV.clone()
    torch.testing.assert_close(soften(one), soften_in_parts(other))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, torch.softmax(logits_NV, dim=-1))


def test_the_stack_says_how_many_logits_there_are_at_once() -> None:
    """What the estimator is told of the loss is what it does."""
    assert load_premises("reference").habits.chunked_logits == MOST_LOGITS
