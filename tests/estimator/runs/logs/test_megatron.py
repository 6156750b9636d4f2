import pytest

from estimator.runs.logs.megatron import MegatronReader
from estimator.runs.logs.steps import Refused, StepLine
from hardware.units import MIB

LINE = (
    " [2025-06-11 03:20:19] iteration        4/      40 | consumed samples:          256 | elapsed time per iteration"
    " (ms): 3391.0 | throughput per GPU (TFLOP/s/GPU): 87.4 | learning rate: 3.000000E-07 | global batch size:    64 |"
    " lm loss: 1.078000E+01 | loss scale: 1.0 | grad norm: 2.480 | number of skipped iterations:   0 | number of nan"
    " iterations:   0 |"
)


def read(*lines: str) -> MegatronReader:
    """Return a reader that has read lines."""
    reader = MegatronReader()
    for line in lines:
        reader.take(line)
    return reader


def told(reader: MegatronReader) -> list[StepLine]:
    """Return the steps that a reader has read."""
    return reader.records.forward(Refused())


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        LINE.replace(" [2025-06-11 03:20:19]", ""),  # 2022
        LINE.replace("3391.0 |", "3391.0/3402.7 |"),  # Primus: this line's mean, then a longer one's
        f"[default7]:{LINE}",  # torchrun --tee
        LINE.replace("03:20:19]", "03:20:19.123456]"),  # 2026
        LINE.replace(" | learning rate", " | tokens/sec/GPU: 74994 | energy per GPU (J/iter/GPU): 1.0 | learning rate"),
    ],
)
def test_every_version_of_the_line(line: str) -> None:
    """Milliseconds are seconds, the first number counts, and rows and loss are read, in each version's form."""
    (record,) = told(read(line))
    assert (record.step, record.step_s, record.rows) == (4, 3.391, 64)
    assert record.loss == 10.78


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE.replace("(ms)", "(s)"), "not whole, or not in milliseconds"),
        (LINE[: LINE.index("3391.0") + 4], "not whole, or not in milliseconds"),
        (LINE.replace("3391.0", "3,391.0"), "not whole, or not in milliseconds"),
        (LINE.replace("3391.0", "-3391.0"), "not whole, or not in milliseconds"),
        (LINE.replace("3391.0", "0.0"), "step 4: 0 s is no step's time"),
        (LINE.replace("skipped iterations:   0", "skipped iterations:   3"), "3 skipped iterations, which do not upd"),
        (LINE.replace("nan iterations:   0", "nan iterations:   1"), "1 nan iterations, which do not update"),
        (LINE + LINE, "two records in one line"),
    ],
)
def test_lines_that_are_no_evidence(line: str, reason: str) -> None:
    """Another unit, half a number, skipped updates and two records are left out and quoted."""
    reader = read(line)
    assert told(reader) == []
    assert reader.refused.told[0].startswith(reason)
    assert reader.refused.count == 1


def test_memory_is_the_fullest_rank() -> None:
    """The most reserved and the most allocated over ranks, in units of 2**20 bytes, in both versions' form."""
    memory = "memory (MB) | allocated: 10.5 | max allocated: {} | reserved: 99.0 | max reserved: {}"
    reader = read(
        "[Rank 2] (after 20 iterations) " + memory.format("2589.13525390625", "2608.0"),
        "[Rank 0] (after 20 iterations) " + memory.format("2600.0", "2606.0"),
        "after 5 iterations " + memory.format("12.0", "17.0"),
    )
    assert reader.records.reserved_bytes == 2608 * MIB
    assert reader.records.allocated_bytes == 2600 * MIB
    assert read("memory (GB) | max reserved: 9000.0").records.reserved_bytes is None


def test_memory_of_megatron_bridge_is_in_1e9_bytes() -> None:
    """Megatron-Bridge writes what was allocated and reserved at the most in GB; under another unit it is not read."""
    line = (
        "[Rank 4] (after 2 iterations) memory (GB) | mem-allocated-gigabytes: 16.6 | mem-max-allocated-gigabytes: 24.8 "
        "| mem-max-active-gigabytes: 25.46 | mem-max-reserved-gigabytes: 26.5 | mem-alloc-retires: 0"
    )
    reader = MegatronReader()
    reader.take(line.replace("(GB)", "(MB)"))
    reader.take(line.replace("-gigabytes", "-gibibytes"))
    assert reader.records.reserved_bytes is None
    reader.take(line)
    assert (reader.records.reserved_bytes, reader.records.allocated_bytes) == (26.5e9, 24.8e9)
