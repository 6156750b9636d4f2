"""Adapters: the modules that a question names, and what they keep for the backward pass."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.counts import MatMul, adapted, layer_matmuls, layer_modules
from estimator.formulas.layout import Layout
from estimator.work.modules import ALL_LINEAR, MERGED, PASSED_OVER, USUAL, USUAL_TARGETS
from estimator.work.shape import Shape
from hardware.errors import shown, unknown_name


def modules_told(shape: Shape, told: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the modules that adapters lie beside; () for all linear ones.

    Args:
        shape: of the model.
        told: "all-linear", "default" (those that peft takes where none are given), or names of modules, in a text with
            commas between; None is all linear ones.

    Raises:
        ValueError: the model has no such module, or peft takes it not so.

    >>> from estimator.work.shape import load_shape
    >>> modules_told(load_shape("mistral-7b-v0.1"), "q_proj, v_proj"), modules_told(load_shape("gpt2"), "default")
    (('q_proj', 'v_proj'), ('c_attn',))
    """
    model, names = shown(shape.name), [told] if told is None or isinstance(told, str) else list(told)
    names = [name.strip() for text in names for name in (text or ALL_LINEAR).split(",")]
    known = _known(shape)
    if names == [ALL_LINEAR]:
        if refused := PASSED_OVER.get(shape.family):
            rest = ",".join(name for name in known if name != refused)
            raise ValueError(f"lora-targets: peft adapts no {refused} of {model}; name others: --lora-targets {rest}")
        return ()
    if names == [USUAL]:
        if shape.family not in USUAL_TARGETS:
            raise ValueError(f"lora-targets: peft has no default for {model}; use all-linear, or of {', '.join(known)}")
        return USUAL_TARGETS[shape.family]
    for name in names:
        if name not in known:
            raise ValueError(unknown_name(f"lora-targets of {model}:", name, (ALL_LINEAR, USUAL, *known)))
    experts = MERGED.get(shape.family)
    if experts and len(set(experts.into) & set(names)) == 1:
        both = " and ".join(experts.into)
        raise ValueError(f"lora-targets: {both} of {model} lie in one parameter; name both or neither")
    return tuple(dict.fromkeys(names))


def _known(shape: Shape) -> tuple[str, ...]:
    """Return the names of a model's modules that adapters can be told."""
    modules = (module for kind in shape.kinds for module in layer_modules(kind))
    return tuple(dict.fromkeys(name for module in modules for name in module.name.split(",")))


class KeptElements(NamedTuple):
    """Elements per token that a layer keeps for its backward pass: whole on each rank, and split by tensors."""

    whole: float = 0.0
    split: float = 0.0


def adapters_keep(shape: Shape, *, fuses_attention: bool) -> KeptElements:
    """Return what a layer keeps with adapters beyond what it keeps where all of it is trained.

    What each adapter multiplies down to its rank, and less the inputs of products that have none: their gradients need
    no inputs. Fused attention's output stays, which its own backward pass needs. Adapters are taken to be of the
    layer's own precision: peft's of 32 bits keep their inputs in 32 bits too (`autocast_adapter_dtype`).
    """
    if not shape.lora_rank:
        return KeptElements()
    modules = adapted(shape)
    ranks = sum(one.rank * one.matrices[0].num_active for one in modules if not one.is_merged)
    beside = {matmul.name for one in modules for matmul in one.matrices}
    matrices = layer_matmuls(shape)
    hidden, ffn, dropped, products = shape.hidden_size, shape.ffn_size, 0.0, 0.0
    if shape.mixer is None and not beside & {"q", "k", "v"}:
        dropped += hidden
    if not any(m.name in beside and _takes_block_input(m) for m in matrices) and shape.ffn_size:
        dropped += hidden
    active = shape.num_experts_per_token
    if shape.num_experts and not beside & {"gate", "up"}:
        dropped += active * hidden
    products += shape.q_size * (shape.mixer is None and not fuses_attention and "o" not in beside)
    products += ffn * max(active, 1) * (ffn > 0 and "down" not in beside)
    products += shape.shared_ffn_size * ("shared.down" not in beside)
    return KeptElements(float(ranks - dropped), -float(products))


def _takes_block_input(matmul: MatMul) -> bool:
    """Whether a matrix multiplies the input of the feed-forward block as it comes; experts take a sorted copy."""
    is_into = matmul.name.rpartition(".")[2] in ("gate", "up", "scale") and matmul.num_copies == 1
    return is_into or matmul.name == "router"


class MergedBytes(NamedTuple):
    """Bytes of a rank's weights with adapters added to them, of one layer."""

    all: Array
    """Kept from the forward to the backward pass, however few the tokens."""
    largest: Array
    """Of the largest gradient of such a sum, there until those of its adapter are made."""


def merged_bytes(shape: Shape, plan: Layout, weight_bytes: float) -> MergedBytes | None:
    """Return the bytes of a layer's sums of weights and adapters (findings/lora-copies-fused-experts.sh); None without.

    Each micro-batch in flight has sums of its own.
    """
    merged = [one for one in adapted(shape) if one.is_merged]
    if not merged:
        return None
    each = [
        sum(float(m.in_size * m.out_size * m.num_copies) for m in one.matrices)
        * weight_bytes
        / (plan.tp * (plan.ep if one.matrices[0].num_copies > 1 else 1))
        for one in merged
    ]
    return MergedBytes(np.asarray(sum(each)), np.asarray(np.maximum.reduce(each)))
