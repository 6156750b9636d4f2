"""The optimizer's state on a rank, and what its update takes beside passes over it."""

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.compute import Rates, matmul_seconds
from estimator.formulas.counts import MatMul, adapted, end_parameters, layer_matmuls
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout
from estimator.formulas.stages import RankParameters, Stage, rank_parameters, stages_of
from estimator.work.shape import Shape

NEWTON_SCHULZ_STEPS = 5
"""documented: torch 2.13, torch/optim/_muon.py, `ns_steps`, in 16 bits"""


def optimizer_state_bytes(inputs: StepInputs, stage: Stage) -> Array:
    """Bytes of a stage's optimizer state on each rank, wherever it lies."""
    shape, _, plan, _, habits = inputs
    is_sharded = plan.zero_stage >= 1
    of_all = rank_parameters(shape, plan, stage, trained=True).bytes_of(habits.optimizer_bytes, plan, is_sharded)
    return of_all + end_state_bytes(inputs, stage)


def end_state_bytes(inputs: StepInputs, stage: Stage) -> Array:
    """Bytes by which the state of the embedding and the vocabulary projection is more than that of as many others."""
    shape, _, plan, _, habits = inputs
    if habits.end_optimizer_bytes is None:
        return np.zeros(())
    ends = end_parameters(shape, stage.has_embedding, stage.has_head, trained=True) / plan.tp
    more = habits.end_optimizer_bytes - habits.optimizer_bytes
    return RankParameters(np.asarray(ends), np.zeros(())).bytes_of(more, plan, plan.zero_stage >= 1)


def orthogonalization_seconds(inputs: StepInputs, rates: Rates) -> Array:
    """Seconds of a rank to make the updates of its matrices orthogonal, of the stage with most of them.

    Newton-Schulz, X <- a X + (b A + c A A) X with A = X X^T, of a matrix's shorter side m and longer side n: 2 m m n +
    2 m m m + 2 m m n FLOP a step (Jordan et al. 2024, kellerjordan.github.io/posts/muon). Sharded, each matrix is made
    so on one of the ranks that share it (Liu et al. 2025, arXiv:2502.16982, section 2.3); bringing it there and back
    is not counted.
    """
    shape, plan = inputs.shape, inputs.plan
    stages = stages_of(shape, plan)
    of_stages = [
        sum(
            np.asarray(count) * sum(_matrix_seconds(m, plan, rates) for m in _trained_matrices(kind))
            for kind, count in zip(shape.kinds, stage.layers, strict=True)
        )
        for stage in stages
    ]
    return np.asarray(np.maximum.reduce(np.broadcast_arrays(*of_stages)))


def newton_schulz_products(short: Num, long: Num) -> tuple[tuple[Num, Num, Num], ...]:
    """Return rows, columns and inner size of the products of a step, of a matrix of these sides."""
    return (short, short, long), (short, short, short), (short, long, short)


def _trained_matrices(shape: Shape) -> tuple[MatMul, ...]:
    if shape.lora_rank:
        return tuple(matrix for one in adapted(shape) for matrix in one.adapter)
    return layer_matmuls(shape)


def _matrix_seconds(matmul: MatMul, plan: Layout, rates: Rates) -> Array:
    rows = matmul.in_size / np.where(matmul.splits_output, 1, plan.tp)
    columns = matmul.out_size / np.where(matmul.splits_output, plan.tp, 1)
    short, long = np.minimum(rows, columns), np.maximum(rows, columns)
    of_experts = matmul.num_copies > 1
    copies = matmul.num_copies / (plan.ep if of_experts else 1)
    shards = np.where(plan.zero_stage >= 1, plan.expert_shard_ranks if of_experts else plan.shard_ranks, 1)

    each = (
        matmul_seconds(
            *sizes,
            flop_per_s=rates.flop_per_s,
            bytes_per_s=rates.bytes_per_s,
            num_compute_units=rates.num_compute_units,
        )
        for sizes in newton_schulz_products(short, long)
    )
    return np.asarray(NEWTON_SCHULZ_STEPS * copies / shards * sum(each))


def largest_tensor(shape: Shape, plan: Layout, stage: Stage) -> Array:
    """Parameters of the largest trained tensor of a rank of a stage; experts of a layer lie in one."""
    trained = (m for kind in shape.kinds for m in _trained_matrices(kind))
    each = (m.in_size * m.out_size * m.num_copies / (plan.ep if m.num_copies > 1 else 1) for m in trained)
    of_layers = np.maximum.reduce(np.broadcast_arrays(*each))
    ends = np.maximum(*map(np.asarray, (stage.has_embedding, stage.has_head))) * (not shape.lora_rank)
    return np.asarray(np.maximum(of_layers, ends * float(shape.vocab_size * shape.hidden_size)) / plan.tp)
