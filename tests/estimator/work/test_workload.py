from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.work.shape import load_shape
from estimator.work.workload import MAX_COUNT, Workload, num_steps

GPT2 = load_shape("gpt2")
LLAMA = load_shape("Meta-Llama-3-8B")
counts = st.integers(1, MAX_COUNT - 1)
outside = st.integers(max_value=0) | st.integers(min_value=MAX_COUNT)


def test_a_number_of_thousands_of_digits_is_one_line() -> None:
    """A count that Python does not print is refused like any other."""
    with pytest.raises(ValueError, match=r"^steps: <int too long to show> is not from 1 to 2\*\*40 - 1; "):
        Workload(LLAMA, 1024, 256, 10**9999)


@given(counts)
def test_counts_are_exact(count: int) -> None:
    """A count is exact as a float."""
    assert int(float(count)) == count


@given(counts, counts, counts)
def test_tokens_per_step(seq_len: int, global_batch: int, steps: int) -> None:
    """Any positive counts are a workload, and a step has the tokens of all its rows."""
    assert Workload(LLAMA, seq_len, global_batch, steps).tokens_per_step == seq_len * global_batch


@pytest.mark.parametrize(
    ("name", "option"), [("seq_len", "seq-len"), ("global_batch", "batch"), ("num_steps", "steps")]
)
@given(value=outside)
def test_counts_out_of_bounds(name: str, option: str, value: int) -> None:
    """A count that no run has is refused by its option's name."""
    message = rf"^{option}: {value} is not from 1 to 2\*\*40 - 1; give a positive count$"
    with pytest.raises(ValueError, match=message):
        replace(Workload(LLAMA, 1024, 256, 10), **{name: value})


def test_learned_positions() -> None:
    """A row may be as long as the model has learned positions, and no longer."""
    assert Workload(GPT2, 1024, 8, 10).tokens_per_step == 8192
    with pytest.raises(ValueError, match=r"^seq-len: 1025 is more than the 1024 learned positions .* at most 1024$"):
        Workload(GPT2, 1025, 8, 10)


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "steps"), [(18612, 2, 256, 144), (256, 1, 256, 1), (511, 3, 256, 3), (512, 3, 256, 6)]
)
def test_num_steps(rows: int, epochs: int, batch: int, steps: int) -> None:
    """Each epoch drops its last incomplete batch."""
    assert num_steps(rows, epochs, batch) == steps


@given(counts, st.integers(1, 100), counts)
def test_num_steps_trains_on_full_batches(rows: int, epochs: int, batch: int) -> None:
    """The steps of an epoch hold no more rows than there are, and less than one batch is left over."""
    if rows < batch:
        with pytest.raises(ValueError, match=r"do not fill one batch of \d+; use a smaller --batch or --steps"):
            num_steps(rows, epochs, batch)
    else:
        assert 0 <= rows * epochs - num_steps(rows, epochs, batch) * batch < batch * epochs


@pytest.mark.parametrize("name", ["rows", "epochs", "batch"])
@given(value=outside)
def test_num_steps_out_of_bounds(name: str, value: int) -> None:
    """A count that is not positive is refused by its name."""
    values = {"rows": 512, "epochs": 2, "batch": 256} | {name: value}
    with pytest.raises(ValueError, match=rf"^{name}: {value} is not from 1 to 2\*\*40 - 1; give a positive count$"):
        num_steps(*values.values())
