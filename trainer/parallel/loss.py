"""The vocabulary projection and its cross-entropy together, some tokens at a time, so that logits are never all there.

Shapes: N tokens, D hidden size, V vocabulary. The gradient of the logits takes their place as soon as the loss is known
(Hsu et al. 2024, arXiv:2410.10989, section 3.2): 2 bytes a logit in 16 bits, instead of the 12 of logits, their 32-bit
copy, its log-softmax and its gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from estimator.formulas.activations import WIDE_LOGITS
from trainer.data.loader import NO_TARGET

MOST_LOGITS = 2**28
"""Logits in memory at once: 512 MiB in 16 bits. More tokens at a time would fill a matrix product no better."""

Softened = Callable[[Tensor], Tensor]
"""Turns logits, shape (N, V), into their softmax in place; returns the logarithms of its denominators, shape (N,)."""


def soften(logits_NV: Tensor) -> Tensor:
    """Turn logits into their softmax in place, computed in 32 bits; return the logarithm of each denominator.

    Nothing else is read here of what is overwritten: compiled by torch 2.11, a value gathered from the logits before
    came out as one gathered after (findings/compiled-read-after-overwrite.sh).
    """
    wide_NV = logits_NV.float()
    log_sum_N1 = torch.logsumexp(wide_NV, dim=-1, keepdim=True)
    logits_NV.copy_(torch.exp(wide_NV - log_sum_N1))
    return log_sum_N1.squeeze(1)


def soften_in_parts(logits_NV: Tensor) -> Tensor:
    """Do the same operator by operator, a few tokens at a time, so that 32-bit copies stay small."""
    log_sums = []
    for part_NV in logits_NV.split(max(WIDE_LOGITS // logits_NV.shape[1], 1)):
        log_NV = torch.log_softmax(part_NV, dim=-1, dtype=torch.float32)  # one kernel where a sum of exponents has five
        log_sums.append(part_NV[:, 0].float() - log_NV[:, 0])  # any column tells it
        part_NV.copy_(log_NV.exp_())
    return torch.cat(log_sums)


class _ProjectedLoss(torch.autograd.Function):
    """Cross-entropy of h W^T, summed and scaled, with the gradients of both computed on the way."""

    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, scale: float, softened: Softened
    ) -> Tensor:
        """Return the sum times the scale, in 32 bits; shape ()."""
        wants_h, wants_weight = ctx.needs_input_grad[:2]
        gradient_h_ND = torch.empty_like(h_ND) if wants_h else None
        gradient_VD = torch.empty_like(weight_VD) if wants_weight else None
        rows = max(MOST_LOGITS // weight_VD.shape[0], 1)
        is_one = rows >= len(labels_N)
        sum_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight and not is_one else None
        total = h_ND.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(labels_N), rows):
            part = slice(begin, begin + rows)
            h, labels = h_ND[part], labels_N[part]
            has_target = labels != NO_TARGET
            targets = torch.where(has_target, labels, 0)
            logits = h @ weight_VD.t()
            picked_N = logits.gather(1, targets.unsqueeze(1)).squeeze(1).float()
            loss_N = softened(logits) - picked_N
            total += (loss_N * has_target).sum()
            if not (wants_h or wants_weight):
                continue
            # p - 1 of the target comes from its loss: in 16 bits a p near 1 has lost it
            logits.scatter_(1, targets.unsqueeze(1), torch.expm1(-loss_N).to(logits.dtype).unsqueeze(1))
            if gradient_h_ND is not None:
                out = gradient_h_ND[part]
                torch.addmm(out, logits, weight_VD, beta=0, alpha=scale, out=out)
                out *= has_target.unsqueeze(1)
            if gradient_VD is not None:
                trained = h * has_target.unsqueeze(1)
                torch.addmm(gradient_VD, logits.t(), trained, beta=0, alpha=scale, out=gradient_VD)
                if sum_VD is not None:
                    sum_VD += gradient_VD
            del logits
        if gradient_VD is not None and sum_VD is not None:
            gradient_VD.copy_(sum_VD)
        ctx.save_for_backward(gradient_h_ND, gradient_VD)
        return total * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Return the gradients of h and of the weight."""
        gradient_h_ND, gradient_VD = (None if own is None else own * gradients[0] for own in ctx.saved_tensors)
        return gradient_h_ND, gradient_VD, None, None, None


def take_loss(head: nn.Linear, *, compiles: bool, backend: Any = "inductor") -> None:
    """Let a vocabulary projection take labels beside its input, and return a loss instead of logits.

    It stays the module that it was: its weight has its name, and what wraps it sees one call. It returns the mean loss
    over as many targets as it is told, of which its tokens may have a part.

    Args:
        head: without a bias.
        compiles: whether what lies between the products is compiled.
        backend: by what, as `torch.compile` takes it.
    """
    assert head.bias is None
    softened: Softened = torch.compile(soften, dynamic=False, backend=backend) if compiles else soften_in_parts

    def forward(h_BTD: Tensor, labels_BT: Tensor, num_targets: int) -> Tensor:
        found = _ProjectedLoss.apply(h_BTD.flatten(0, 1), head.weight, labels_BT.flatten(), 1.0 / num_targets, softened)
        assert isinstance(found, Tensor)
        return found

    head.forward = forward


def loss_sum(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the summed cross-entropy of the positions that have a target, in 32 bits, from all logits."""
    return nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), labels_BT.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )
