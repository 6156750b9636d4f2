"""The loop that every plan must equal: one process, a whole Hugging Face model, torch's own loss, clipping and AdamW.

Of the trainer it takes the batches alone.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from trainer.data.loader import Batch


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    losses: Sequence[float]
    norms: Sequence[float]
    """Of the gradient, before clipping."""
    evaluation: float
    """Loss on the held-out rows, after the last step."""
    weights: dict[str, Tensor]


def train_plainly(
    checkpoint: Path,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    lr: float,
    weight_decay: float,
    clip_norm: float,
    dtype: torch.dtype,
    adapter: Path | None = None,
) -> Trained:
    """Train on global batches: all weights, or those of adapters in a folder, by peft.

    Below 32 bits, a copy of the weights in `dtype` computes, and what is updated are weights of 32 bits.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa")
    if adapter:
        from peft import PeftModel  # noqa: PLC0415 - slow to import, and few cases need it

        model = PeftModel.from_pretrained(model, adapter, is_trainable=True, autocast_adapter_dtype=False)
    model.train()
    trained = {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}
    names, computing = list(trained), list(trained.values())
    weights = [nn.Parameter(p.detach().float()) for p in computing] if dtype != torch.float32 else computing
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)
    losses, norms = [], []
    for batch in batches:
        loss = mean_loss(model, batch)
        loss.backward()
        for weight, parameter in zip(weights, computing, strict=True):
            assert parameter.grad is not None
            weight.grad = parameter.grad.float()
        norms.append(float(nn.utils.clip_grad_norm_(weights, clip_norm)))
        losses.append(loss.item())
        optimizer.step()
        model.zero_grad()
        with torch.no_grad():
            for weight, parameter in zip(weights, computing, strict=True):
                parameter.copy_(weight)
    with torch.no_grad():
        targets = [batch.useful_tokens for batch in held_out]
        sums = [mean_loss(model, batch).item() * count for batch, count in zip(held_out, targets, strict=True)]
    return Trained(losses, norms, sum(sums) / sum(targets), dict(zip(names, map(Tensor.detach, weights), strict=True)))


def mean_loss(model: Any, batch: Batch) -> Tensor:
    """Return the mean over all targets of a batch of their cross entropy; each document of a row is read alone."""
    total = torch.zeros(())
    for ids_1T, labels_T in documents(batch):
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0]
        total = total + cross_entropy(logits_TV.float(), labels_T, ignore_index=-100, reduction="sum")
    return total / batch.useful_tokens


def documents(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids, shape (1, T), and labels, shape (T,), of each document of a batch with targets."""
    for ids_T, labels_T, positions_T in zip(*map(torch.from_numpy, batch[:3]), strict=True):
        starts = [*torch.nonzero(positions_T == 0).flatten().tolist(), len(positions_T)]
        for start, end in itertools.pairwise(starts):
            if (labels_T[start:end] != -100).any():
                yield ids_T[None, start:end], labels_T[start:end]
