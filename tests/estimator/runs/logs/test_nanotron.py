import pytest

from estimator.runs.logs.nanotron import NanotronReader

LINE = (
    "12/21 01:39:51 [INFO|DP=0|TP=0|node-1]: iteration: 211364 / 1500000 | consumed_tokens: 480B | "
    "time_per_iteration_ms: 8.79K | tokens_per_sec: 182K | tokens_per_sec_per_gpu: 699 | global_batch_size: 1.6M | "
    "grad_norm: 0.112 | lm_loss: 2.04 | lr: 0.0001 | model_tflops_per_gpu: 15.4 | eta: 131 days, 1:45:39"
)
OLD = LINE.replace("time_per_iteration_ms: 8.79K", "elapsed_time_per_iteration_ms: 940").replace(
    "| eta: 131 days, 1:45:39",
    "| cuda_memory_allocated: 67.4M | cuda_max_memory_reserved: 520M | hd_total_memory_tb: 2T",
)


def read(*lines: str) -> NanotronReader:
    """Return a reader that has read lines."""
    reader = NanotronReader()
    for line in lines:
        reader.take(line)
    return reader


def test_a_line_is_read() -> None:
    """Numbers are a power of 1,000; the time is in milliseconds, and the rate of a device."""
    (step,) = read(LINE).steps()
    assert (step.step, step.step_s, step.loss, step.device_tokens_per_s) == (211364, 8.79, 2.04, 699.0)


def test_a_line_of_before_2025_is_read() -> None:
    """The time has another name, and memory is there, in bytes."""
    reader = read(OLD)
    assert [step.step_s for step in reader.steps()] == [0.94]
    assert reader.records.reserved_bytes == 520e6


def test_memory_lines_are_in_mib() -> None:
    """The lines of the first steps tell the most that was allocated and reserved, in 2**20 bytes."""
    found = read(" Memory usage: 64.26MiB. Peak allocated 64.50MiB. Peak reserved: 496.00MiB").records
    assert (found.allocated_bytes, found.reserved_bytes) == (64.5 * 2**20, 496 * 2**20)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE.replace("_ms: 8.79K", "_ms: long"), "not whole, or not in milliseconds"),
        (LINE[: LINE.index(" | tokens_per_sec:")], "not whole, or not in milliseconds"),
        (LINE + LINE, "two records in one line"),
        (LINE.replace("8.79K", "0"), "step 211364: 0 s is no step's time"),
    ],
)
def test_what_is_no_line_is_refused(line: str, reason: str) -> None:
    """Another number, part of a line, or two records are left out and quoted."""
    reader = read(line)
    assert reader.count == 0
    assert reader.refused.told[0].startswith(f"{reason}: ")
