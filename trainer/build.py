"""The chunks of a model that one rank holds, as a plan lays them; still without memory."""

from transformers import PreTrainedConfig

from estimator.work.plan import Plan
from trainer.config import TrainConfig
from trainer.parallel.adapters import adapt
from trainer.parallel.attention import TAKE_LENGTHS, attention_kernel
from trainer.parallel.mesh import Place
from trainer.parallel.model import Stage, meta_model
from trainer.parallel.parallelize import compute_dtype, parallelize, weight_dtype


def chunk_layers(plan: Plan, num_layers: int) -> list[range]:
    """Return the layers of every chunk of the pipeline, in order.

    >>> chunk_layers(Plan(num_stages=3, first_layers=1, last_layers=1), 4)
    [range(0, 1), range(1, 3), range(3, 4)]
    """
    chunks = plan.num_stages * plan.virtual_stages
    sizes = [num_layers // chunks] * chunks
    if plan.first_layers:
        between = (num_layers - plan.first_layers - plan.last_layers) // max(plan.num_stages - 2, 1)
        sizes = [plan.first_layers, *[between] * (plan.num_stages - 2), plan.last_layers]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def build_stages(model: PreTrainedConfig, config: TrainConfig, place: Place) -> list[Stage]:
    """Return the chunks of this rank, in order, laid out and sharded.

    Args:
        model: the whole model's config.
        config: the run.
        place: the mesh, and where this rank is.
    """
    kernel = attention_kernel(
        config.attention,
        packed=config.data.packing,
        device_type=place.mesh.device_type,
        dtype=compute_dtype(config.precision),
        head_size=getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads,
    )
    # frozen weights are kept in the type of the products
    dtype = compute_dtype(config.precision) if config.adapters else weight_dtype(config.precision)
    whole = meta_model(model, kernel, dtype)
    plan, chunks = config.plan, chunk_layers(config.plan, model.num_hidden_layers)
    recomputed = 0 if plan.recomputation == "none" else plan.recomputed_layers or model.num_hidden_layers
    stages = []
    for number in range(place.stage, len(chunks), plan.num_stages):
        layers, first, last = chunks[number], number == 0, number == len(chunks) - 1
        takes_lengths, packed = kernel in TAKE_LENGTHS, config.data.packing
        stage = Stage(whole, layers, first=first, last=last, packed=packed, takes_lengths=takes_lengths)
        if config.adapters:
            adapt(stage, config.adapters, weight_dtype(config.precision))
        parallelize(stage, plan, place, config.precision, num_recomputed=recomputed, compiles=config.compiles)
        stages.append(stage)
        recomputed = max(recomputed - len(layers), 0)  # a plan counts over all chunks of its stage
    return stages
