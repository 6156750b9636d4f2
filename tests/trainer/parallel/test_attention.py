from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, PreTrainedConfig

from tests.support.tiny import MODELS, VOCAB
from trainer.parallel.attention import BY_LENGTHS, attend_by_lengths, attention_kernel, document_bounds
from trainer.parallel.model import Stage, meta_model
from trainer.parallel.parallelize import recompute_layers

TOKENS = 32
LENGTHS = ((20, 5, 7), (1, 31), (32,))
"""Of the documents of three rows; the windows of `MODELS` are shorter than the longest."""


@pytest.fixture(autouse=True)
def _kernel_on_processors() -> Iterator[None]:
    """Give the operator, which has kernels for devices alone, one for processors, as its documentation has it."""
    with torch.library._scoped_library("torch_attn", "IMPL") as library:  # noqa: SLF001 - ends with the test
        library.impl("_varlen_attn", forward, "CPU")
        library.impl("_varlen_attn_backward", backward, "CPU")
        yield


def probabilities(query: Tensor, key: Tensor, bounds: Tensor, window: list[int]) -> Tensor:
    """Return those of tokens (N, H, D) of the same document, at most `window[0]` before; shape (H, N, N)."""
    place = torch.arange(len(query))
    document = torch.searchsorted(bounds, place.int(), right=True)
    apart = place[:, None] - place[None, :]
    allowed = (document[:, None] == document[None, :]) & (apart >= 0)
    if window[0] >= 0:
        allowed &= apart <= window[0]
    scores = torch.einsum("nhd,mhd->hnm", query, key) * query.shape[-1] ** -0.5
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1)


def forward(*given: Any, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Do what the operator does; its backward pass reads nothing of the second and third result."""
    query, key, value, bounds, _, most, __, causal, scale, window = [*given, *more.values()][:10]
    assert causal == (window == [-1, 0])
    assert int(bounds.diff().max()) <= most
    assert scale in (None, query.shape[-1] ** -0.5)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    found = torch.einsum("hnm,mhd->nhd", probabilities(query, key, bounds, window), value).contiguous()
    return found, query.new_zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def backward(*given: Any, **more: Any) -> tuple[Tensor, ...]:
    """Return the gradients of query, key and value."""
    grad, query, key, value, _, __, bounds = given[:7]
    window = next(x for x in (*given[7:], *more.values()) if isinstance(x, list))
    group, size = query.shape[1] // key.shape[1], query.shape[-1]
    wide_key, wide_value = (x.repeat_interleave(group, 1) for x in (key, value))
    p = probabilities(query, wide_key, bounds, window)
    of_p = torch.einsum("nhd,mhd->hnm", grad, wide_value)
    of_scores = p * (of_p - (p * of_p).sum(-1, keepdim=True)) * size**-0.5
    of_query = torch.einsum("hnm,mhd->nhd", of_scores, wide_key)
    of_key, of_value = torch.einsum("hnm,nhd->mhd", of_scores, query), torch.einsum("hnm,nhd->mhd", p, grad)
    return of_query.contiguous(), *(x.unflatten(1, (-1, group)).sum(2) for x in (of_key, of_value))


def config_of(name: str) -> PreTrainedConfig:
    """Return the config of one of `MODELS`, two layers of each of its kinds."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    others = {"vocab_size": VOCAB, "num_hidden_layers": 4, "pad_token_id": None}
    found = AutoConfig.for_model(**others, **shape, **MODELS[name])
    assert isinstance(found, PreTrainedConfig)
    return found


def stage_of(config: PreTrainedConfig, *, takes_lengths: bool) -> Stage:
    """Return a model in one stage, the same weights each time."""
    AttentionInterface.register(BY_LENGTHS, attend_by_lengths)
    kernel = BY_LENGTHS if takes_lengths else "sdpa"
    whole = meta_model(config, kernel, torch.float32)
    stage = Stage(whole, range(4), first=True, last=True, packed=True, takes_lengths=takes_lengths)
    stage.materialize(torch.device("cpu"))
    torch.manual_seed(0)
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else nn.init.ones_(parameter)
    return stage


def positions(rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return positions of rows of documents of these lengths."""
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def found(stage: Stage, rows: tuple[tuple[int, ...], ...] = LENGTHS) -> tuple[Tensor, list[Tensor]]:
    """Return logits, and gradients of a sum of them."""
    stage.zero_grad()
    ids = torch.arange(len(rows) * TOKENS).reshape(len(rows), TOKENS) * 7 % VOCAB
    logits = stage(ids, positions(rows), num_documents=sum(map(len, rows)) + 2)
    logits.square().mean().backward()
    return logits.detach(), [p.grad.clone() for p in stage.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["mistral", "mistral, window", "llama", "qwen2, window", "qwen3"])
def test_lengths_keep_documents_apart_as_a_mask_does(name: str) -> None:
    """Logits and gradients of rows of several documents are the same, windows and grouped heads included."""
    config = config_of(name)
    by_mask, by_lengths = (found(stage_of(config, takes_lengths=which)) for which in (False, True))
    torch.testing.assert_close(by_lengths, by_mask)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("keeps_products", [False, True])
def test_compiled_layers_take_any_number_of_documents(keeps_products: bool) -> None:
    """Compiled and repeated, layers take rows of other lengths, and compile at most once more for all of them."""
    config, rows = config_of("mistral"), (((16, 16), (32,), (30, 2)), LENGTHS, ((8,) * 4,) * 3, ((1,) * 32,) * 3)
    plain, compiled = (stage_of(config, takes_lengths=True) for _ in range(2))
    recompute_layers(compiled, 4, keeps_products=keeps_products)
    compilations = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compilations
        compilations += 1
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)  # noqa: SLF001

    torch.compiler.reset()
    for _, layer in compiled.layers:
        layer.compile(backend=backend, fullgraph=True)
    for each in rows:
        torch.testing.assert_close(found(compiled, each), found(plain, each))
    assert compilations == 2


def test_bounds_of_more_documents_than_there_are_end_empty() -> None:
    """Rows come one after the other; what is asked for beyond the documents begins where the tokens end."""
    assert document_bounds(positions(LENGTHS), 8).tolist() == [0, 20, 25, 32, 33, 64, 96, 96, 96]


@pytest.mark.parametrize(
    ("name", "packed", "device", "dtype", "head_size"),
    [
        ("sdpa", True, "cpu", torch.bfloat16, 128),
        ("sdpa", False, "cuda", torch.bfloat16, 128),
        ("sdpa", True, "cuda", torch.float32, 128),
        ("sdpa", True, "cuda", torch.bfloat16, 260),
        ("flex_attention", True, "cuda", torch.bfloat16, 128),
    ],
)
def test_what_torchs_kernel_does_not_take_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str, packed: bool, device: str, dtype: torch.dtype, head_size: int
) -> None:
    """Only packed rows in 16 bits on a CUDA device are told by lengths, and only where torch was to choose."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    asked = {"packed": packed, "device_type": device, "dtype": dtype, "head_size": head_size}
    assert attention_kernel(name, **asked) == name  # type: ignore[arg-type]
    here = {"packed": True, "device_type": "cuda", "dtype": torch.bfloat16, "head_size": 128}
    assert attention_kernel("sdpa", **here) == BY_LENGTHS  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert attention_kernel("sdpa", **here) == "sdpa"  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a device")
@pytest.mark.parametrize("window", [None, 16])
def test_the_devices_kernel_agrees_with_a_mask(window: int | None) -> None:
    """On a device, output and gradients in bfloat16 are those of a mask in 32 bits, to bfloat16's precision."""
    torch.manual_seed(0)
    bounds = document_bounds(positions(LENGTHS), 8)
    inputs = [torch.randn(3 * TOKENS, heads, 64).bfloat16() for heads in (4, 2, 2)]
    before = -1 if window is None else window - 1
    wide = [x.float() for x in inputs]
    expected, *_ = forward(*wide, bounds, bounds, TOKENS, TOKENS, window is None, None, [before, 0])
    gradients = backward(2 * expected, *wide, None, None, bounds, [before, 0])
    own_in = [x.cuda().requires_grad_() for x in inputs]
    own, _ = attend_by_lengths(
        nn.Module(),
        *(x.unflatten(0, (3, TOKENS)).transpose(1, 2) for x in own_in),
        None,
        cu_seq_lens_q=bounds.cuda(),
        max_length_q=TOKENS,
        sliding_window=window,
    )
    own.float().square().sum().backward()
    torch.testing.assert_close(own.flatten(0, 1).cpu().float(), expected, atol=2e-2, rtol=2e-2)
    for mine, theirs in zip(own_in, gradients, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.cpu().float(), theirs, atol=5e-2, rtol=5e-2)
