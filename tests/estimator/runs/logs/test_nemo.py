import pytest

from estimator.runs.logs.nemo import NemoReader

LINE = (
    "Training epoch 0, iteration 1/249 | lr: 3.922e-06 | global_batch_size: 8 | global_step: 1 | reduced_train_loss: "
    "1.653 | train_step_timing in s: 2.505 | consumed_samples: 16"
)
BAR = (
    "Epoch 0: : 100%|##########| 100/100 [10:48<00:00, reduced_train_loss=0.0172, global_step=99.00, "
    "consumed_samples=25600.0, train_step_timing in s=3.130]"
)


def read(*lines: str) -> NemoReader:
    """Return a reader that has read lines."""
    reader = NemoReader()
    for line in lines:
        reader.take(line)
    return reader


@pytest.mark.parametrize(
    ("line", "told"), [(LINE, (2, 2.505, 1.653, 8.0)), (BAR, (100, 3.13, 0.0172, 256.0))], ids=["line", "bar"]
)
def test_a_line_and_a_bar_are_read(line: str, told: tuple[float, ...]) -> None:
    """Step from 1, seconds, loss, and rows of a step: told, or samples over steps."""
    (step,) = read(line, "Validation: iteration 1/2").steps()
    assert (step.step, step.step_s, step.loss, step.rows) == told


def test_the_line_of_the_first_step_ends_with_its_time() -> None:
    """Before the second step there are no samples to tell: the line is whole."""
    first = LINE[: LINE.index(" | consumed")].replace("global_step: 1", "global_step: 0")
    assert [(step.step, step.step_s) for step in read(first).steps()] == [(1, 2.505)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE[: LINE.index(" | consumed")], "not whole, or without its global_step"),
        (BAR[:-1], "not whole, or without its global_step"),
        (LINE.replace("global_step: 1 | ", ""), "not whole, or without its global_step"),
        (LINE + LINE, "two records in one line"),
        (LINE.replace("2.505", "0"), "step 2: 0 s is no step's time"),
    ],
)
def test_what_is_no_line_is_refused(line: str, reason: str) -> None:
    """A line that may be cut, has no step, or is two, is left out and quoted."""
    reader = read(line)
    assert reader.count == 0
    assert reader.refused.told[0].startswith(f"{reason}: ")
