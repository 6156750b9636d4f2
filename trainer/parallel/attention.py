"""The kernel of a run's attention, and how it keeps documents apart that share a row.

A mask of every pair of tokens is right everywhere, and costs what it leaves out: a kernel that is told where documents
begin computes only the pairs inside each. Shapes: B rows of a micro-batch, T tokens of a row, H heads, D their size.
"""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

BY_LENGTHS = "torch_by_lengths"
"""Name, among transformers' kernels, of torch's own flash attention over rows of any lengths laid end to end."""

TAKE_LENGTHS = (BY_LENGTHS, "flash_attention_2", "flash_attention_3")
"""Kernels that are told where documents begin; the others take a mask."""

LARGEST_HEAD, HEAD_MULTIPLE = 256, 8
"""Sizes of heads that torch's flash attention takes."""

FIRST_CAPABILITY = (8, 0)
"""Of the CUDA devices that it runs on."""

_GROUPED: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
)  # torch 2.11 never asks


def attention_kernel(name: str, *, packed: bool, device_type: str, dtype: torch.dtype, head_size: int) -> str:
    """Return the name under which transformers finds a run's kernel.

    Torch's own that takes lengths stands in for `sdpa` where rows are packed and it runs: on CUDA devices, in 16 bits.

    Args:
        name: one of `config.ATTENTIONS`.
        packed: rows hold several documents.
        device_type: of the tensors.
        dtype: of the activations.
        head_size: D.
    """
    fits = head_size <= LARGEST_HEAD and head_size % HEAD_MULTIPLE == 0 and dtype in (torch.bfloat16, torch.float16)
    if not (name == "sdpa" and packed and fits and device_type == "cuda" and torch.version.cuda):
        return name
    if torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        return name
    AttentionInterface.register(BY_LENGTHS, attend_by_lengths)
    return BY_LENGTHS


def document_bounds(position_ids_BT: Tensor, count: int) -> Tensor:
    """Return where each document begins among the tokens of all rows, and the end of the last; shape (count + 1,).

    Args:
        position_ids_BT: place of each token in its document; a 0 begins one.
        count: at least as many as there are. Those too many are empty, at the end: a device is not asked how many it
            found.

    >>> document_bounds(torch.tensor([[0, 1, 0, 1], [0, 1, 2, 3]]), 4)
    tensor([0, 2, 4, 8, 8], dtype=torch.int32)
    """
    positions, total = position_ids_BT.flatten(), position_ids_BT.numel()
    places = torch.arange(total, dtype=torch.int32, device=positions.device)
    starts = torch.where(positions == 0, places, total).sort().values[:count]
    return nn.functional.pad(starts, (0, 1), value=total)


def lengths(position_ids_BT: Tensor, count: int) -> dict[str, Any]:
    """Return what kernels that take lengths are told of them, under transformers' names."""
    bounds, most = document_bounds(position_ids_BT, count), position_ids_BT.shape[1]
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": most, "max_length_k": most}


def attend_by_lengths(
    _: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    __: None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **___: Any,
) -> tuple[Tensor, None]:
    """Attend to the tokens before in the same document, as transformers calls kernels; returns shape (B, T, H, D).

    A window of W tokens counts the token itself.
    """
    rows = query_BHTD.shape[0]
    query, key, value = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (query_BHTD, key_BHTD, value_BHTD))
    before = -1 if sliding_window is None or sliding_window >= max_length_q else sliding_window - 1
    bounds, most = cu_seq_lens_q, max_length_q
    found = varlen_attn(
        query, key, value, bounds, bounds, most, most, scale=scaling, window_size=(before, 0), **_GROUPED
    )
    assert isinstance(found, Tensor)
    return found.unflatten(0, (rows, -1)), None
