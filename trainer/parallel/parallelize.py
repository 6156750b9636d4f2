"""A plan applied to a stage, in the one order that works: tensor parallel, recomputation, compilation, sharding.

torchtitan applies them so (pytorch/torchtitan#1554): sharding must wrap what is recomputed, so that the repeated
forward pass finds its parameters gathered; compilation must see recomputation to place it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedConfig

from estimator.formulas import activations
from estimator.formulas.layout import layout
from estimator.work.plan import Plan
from trainer.parallel.adapters import AdaptedLinear, adapted
from trainer.parallel.loss import take_loss
from trainer.parallel.mesh import Place
from trainer.parallel.model import Stage


def parallelize(stage: Stage, plan: Plan, place: Place, precision: str, *, num_recomputed: int, compiles: bool) -> None:
    """Lay a stage over its ranks; its parameters are still on the meta device.

    Args:
        stage: the whole stage.
        plan: one that the trainer can run.
        place: the mesh.
        precision: one of `config.PRECISIONS`.
        num_recomputed: its first layers that recomputation repeats.
        compiles: whether each layer is compiled.
    """
    if plan.tp > 1:
        frozen = {name for name, parameter in stage.named_parameters() if not parameter.requires_grad}
        split_tensors(stage, place.mesh["tp"], sequence_parallel=plan.sequence_parallel)
        for (
            name,
            parameter,
        ) in stage.named_parameters():  # torch's SequenceParallel makes anew, and trains, those of norms
            parameter.requires_grad_(name not in frozen)
    if stage.last and chunks_loss(plan):
        stage.chunks_loss = True
        take_loss(stage.lm_head, compiles=compiles)
    recompute_layers(stage, num_recomputed, keeps_products=plan.recomputation == "selective")
    if compiles:
        for _, layer in stage.layers:
            layer.compile()
    if place.dp > 1 or precision == "bf16-mixed":
        shard(stage, plan, place.data_mesh, precision)


def chunks_loss(plan: Plan) -> bool:
    """Whether the loss is computed in chunks: not over a split vocabulary, nor where GPipe would keep its gradients."""
    return bool(activations.chunks_loss(layout(plan, num_devices=1, devices_per_node=1)).item())


# --- tensor parallelism -----------------------------------------------------------------------------------------------


class Copied(ParallelStyle):
    """A module whose parameters every tensor-parallel rank has whole, whatever the layout of its input over them."""

    def __init__(self, layout: Placement | None) -> None:
        """Take the layout of input and output: `Replicate()` where ranks hold the same, `Shard(2)` for their heads.

        None where both are DTensors, which have their layout.
        """
        super().__init__()
        self.layout = layout

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layout = self.layout
        if layout is None:
            return distribute_module(module, device_mesh)

        def enter(_: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            return tuple(DTensor.from_local(x, mesh, [layout], run_check=False) for x in inputs)

        def leave(_: nn.Module, output: Any, __: DeviceMesh) -> Any:
            return output.to_local()

        return distribute_module(module, device_mesh, None, enter, leave)


def split_tensors(stage: Stage, mesh: DeviceMesh, *, sequence_parallel: bool) -> None:
    """Split the products of each layer, the embedding and the vocabulary over tensor-parallel ranks.

    Megatron's column- then row-parallel products (Shoeybi et al. 2019, arXiv:1909.08053, section 3); with sequence
    parallelism, what lies between them is split over tokens (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2).
    """
    between = Shard(1) if sequence_parallel else Replicate()
    norm: ParallelStyle = SequenceParallel() if sequence_parallel else Copied(Replicate())
    for _, layer in stage.layers:
        plan: dict[str, ParallelStyle] = {
            "input_layernorm": norm,
            "post_attention_layernorm": norm,
            "self_attn": PrepareModuleInput(
                input_kwarg_layouts={"hidden_states": between},
                desired_input_kwarg_layouts={"hidden_states": Replicate()},
            ),
            "mlp": PrepareModuleInput(input_layouts=(between,), desired_input_layouts=(Replicate(),)),
        }
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            plan |= _product(layer, name, ColwiseParallel, (Copied(None), ColwiseParallel()))
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            of_row = partial(RowwiseParallel, output_layouts=between)
            plan |= _product(layer, name, of_row, (of_row(), Copied(between)))
        if hasattr(layer.self_attn, "q_norm"):
            plan |= {f"self_attn.{name}_norm": Copied(Shard(2)) for name in "qk"}  # of a head (B, T, heads, D)
        parallelize_module(layer, mesh, plan)
    if stage.first:
        embed = RowwiseParallel(input_layouts=Replicate(), output_layouts=between)
        parallelize_module(stage.model.embed_tokens, mesh, embed)
        # compiled, the first layer would send the gradient of a view's base to DTensor, which is no DTensor
        stage.model.embed_tokens.register_forward_hook(lambda _, __, h_BTD: h_BTD.clone())
    if stage.last:
        parallelize_module(stage.model.norm, mesh, norm)
        head = ColwiseParallel(input_layouts=between, output_layouts=Shard(-1), use_local_output=False)
        parallelize_module(stage.lm_head, mesh, head)


def _product(
    layer: nn.Module, name: str, style: Callable[[], ParallelStyle], beside: tuple[ParallelStyle, ParallelStyle]
) -> dict[str, ParallelStyle]:
    """Return how a product is split, and the A and B of its adapter where it has one.

    Column-parallel: A is whole, B split by the columns of its output. Row-parallel: A is split by its input, its few
    sums are what ranks exchange, and B is whole.
    """
    if not isinstance(layer.get_submodule(name), AdaptedLinear):
        return {name: style()}
    return {f"{name}.base_layer": style(), f"{name}.lora_A": beside[0], f"{name}.lora_B": beside[1]}


# --- recomputation ----------------------------------------------------------------------------------------------------


def recompute_layers(stage: Stage, count: int, *, keeps_products: bool = False) -> None:
    """Repeat the first so many layers in the backward pass, from their inputs.

    The repetition ends with the last tensor that the backward pass asks for, so that a layer's last product is not
    repeated (`torch.utils.checkpoint`, early stop).

    Args:
        stage: the stage.
        count: of its layers.
        keeps_products: selective recomputation: what matrix products with weights and attention kernels give is kept
            too, so that what is repeated are norms, activations and rotations, whose results are as large and cheap.
            So are those of the second matrix of an adapter, which are repeated too.
    """
    adapters = [module for _, module in adapted(stage)]
    options: dict[str, Any] = {"preserve_rng_state": any(module.dropout for module in adapters)}
    if keeps_products:
        kept = partial(_product_kept, frozenset(module.lora_B.in_features for module in adapters))
        options["context_fn"] = partial(create_selective_checkpoint_contexts, kept)
    for number, (_, layer) in enumerate(stage.layers):
        if number < count:
            layer.forward = _recomputed(layer.forward, options)


def _recomputed(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    # a function, as the compiler looks into no `functools.partial` of torch's own
    def repeat(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False, **options, **kwargs)

    return repeat


def _product_kept(ranks: frozenset[int], _: Any, operator: Any, *given: Any, **__: Any) -> CheckpointPolicy:
    name = str(operator)
    is_kept = name.startswith(("aten.mm.", "aten.addmm.")) or "attention" in name or "attn" in name
    if name.startswith("aten.mm.") and given[0].shape[1] in ranks:
        is_kept = False
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


# --- sharding ---------------------------------------------------------------------------------------------------------


def weight_dtype(precision: str) -> torch.dtype:
    """Return the type of the weights that the optimizer updates."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def export_dtype(config: PreTrainedConfig, precision: str) -> torch.dtype:
    """Return the type in which weights are exported: the one that the model came in, if it says so."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else weight_dtype(precision)


def compute_dtype(precision: str) -> torch.dtype:
    """Return the type of activations."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def shard(stage: Stage, plan: Plan, mesh: DeviceMesh, precision: str) -> None:
    """Shard or copy parameters over the data-parallel ranks, layer by layer (FSDP2), reducing gradients in 32 bits.

    ZeRO-3 gathers a layer's weights for its forward and again for its backward pass; ZeRO-1 and 2 keep them between.
    Frozen weights, which have no gradient and no optimizer state, are sharded where they are freed after use, else
    whole: a shard beside what stays gathered would be one more copy.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16-mixed" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    # a pipeline keeps weights gathered over all its micro-batches, whatever is asked here
    reshards = plan.zero_stage == 3 and plan.num_stages == 1
    frozen = set() if reshards else {p for p in stage.parameters() if not p.requires_grad}
    wrap = partial(fully_shard, mesh=mesh, mp_policy=policy, ignored_params=frozen)
    for _, layer in stage.layers:
        wrap(layer, reshard_after_forward=reshards)
    if stage.first and not stage.ties_embeddings:
        wrap(stage.model.embed_tokens, reshard_after_forward=reshards)
    if stage.last and not stage.ties_embeddings:
        # needed again at once: the backward pass starts with them
        wrap([stage.model.norm, stage.lm_head], reshard_after_forward=False)
    wrap(stage, reshard_after_forward=False)
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            # the loss is divided by all ranks' tokens already; gloo and older NCCL have no scaled sum (pytorch#190747)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
