"""How much of a step is run to know the whole of it: layers are alike, and so are micro-batches.

In each phase of a step (`phases`) what a rank holds, by purpose, is a function of the layers n of a chunk and of the
micro-batches m: a + b n + c m + d n m, once there are layers between the first and the last, and as many micro-batches
as fill the pipeline. So four small steps tell of any. The fullest phase of the whole need not be that of a small one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from transformers import PreTrainedConfig

from estimator.work.plan import Plan
from trainer.build import chunk_layers


class Size(NamedTuple):
    """Of a step."""

    layers: int
    """Of each chunk of the pipeline on this rank."""
    micro_batches: int


class Measured(NamedTuple):
    """What a step of some size took."""

    phases: dict[str, dict[str, int]]
    """Bytes by purpose at the fullest moment of each phase."""
    num_flop: int


FEW_LAYERS = 3
"""The first, the last, and one between."""


def size_of(plan: Plan, model: PreTrainedConfig, stage: int) -> Size:
    """Return the size of a whole step on a stage of the pipeline."""
    return Size(len(chunk_layers(plan, model.num_hidden_layers)[stage]), plan.num_micro_batches)


def measured_sizes(plan: Plan, whole: Size, *, layers_are_alike: bool = True) -> list[Size]:
    """Return the sizes to run: four, two where either is small already, or the whole one.

    Args:
        plan: of the step.
        whole: its size.
        layers_are_alike: False runs all layers.

    >>> measured_sizes(Plan(num_stages=2), Size(16, 16))
    [Size(layers=3, micro_batches=3), Size(layers=3, micro_batches=4), Size(layers=4, micro_batches=3), \
Size(layers=4, micro_batches=4)]
    """
    rounds = {"interleaved": 4, "zero_bubble": 2}.get(plan.schedule)  # of all stages, in which these two go
    few, period = (rounds * plan.num_stages, plan.num_stages) if rounds else (plan.num_stages + 1, 1)
    micro_batches = (few, few + period) if whole.micro_batches > few + period else (whole.micro_batches,)
    alike = layers_are_alike and not plan.recomputed_layers and whole.layers > FEW_LAYERS + 1
    layers = (FEW_LAYERS, FEW_LAYERS + 1) if alike else (whole.layers,)
    return [Size(n, m) for n in layers for m in micro_batches]


def extrapolated(found: Mapping[Size, Measured], whole: Size) -> Measured:
    """Return what a step of the whole size takes, from those of the measured sizes.

    >>> small = {Size(n, m): Measured({"loss": {"activations": n * m + 7}}, n * m) for n in (4, 5) for m in (2, 3)}
    >>> extrapolated(small, Size(32, 16))
    Measured(phases={'loss': {'activations': 519}}, num_flop=512)
    """
    sizes = {n for n, _ in found}, {m for _, m in found}
    shares = {
        size: _share(size.layers, sizes[0], whole.layers) * _share(size.micro_batches, sizes[1], whole.micro_batches)
        for size in found
    }
    names = next(iter(found.values())).phases
    assert all(measured.phases.keys() == names.keys() for measured in found.values())  # else too small were run
    return Measured(
        {
            phase: {
                purpose: sum(share * found[size].phases[phase][purpose] for size, share in shares.items())
                for purpose in by_purpose
            }
            for phase, by_purpose in names.items()
        },
        sum(share * found[size].num_flop for size, share in shares.items()),
    )


def _share(size: int, sizes: set[int], whole: int) -> int:
    """Return the weight of one of two neighbouring sizes in the line through both; 1 where there is one alone."""
    if len(sizes) == 1:
        return 1
    low, high = sorted(sizes)
    step = high - low
    assert (whole - low) % step == 0
    above = (whole - low) // step
    return above if size == high else 1 - above
