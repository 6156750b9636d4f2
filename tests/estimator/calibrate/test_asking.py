import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.arrays import Array
from estimator.calibrate import asking
from estimator.calibrate.asking import Asking, answered, together, translated


def squares(values: Array) -> Array:
    """Return predictions of two runs, shape (2, samples, parameters)."""
    return np.stack([values**2, -values])


def halving(start: float, rounds: int) -> Asking[list[float]]:
    """Ask for so many rounds, each time half of what was asked before, and return the first run's answers."""
    told = []
    for _ in range(rounds):
        answer = yield np.array([[start], [start + 1]])
        told.append(float(answer[0, 0, 0]))
        start /= 2
    return told


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 4)), max_size=6))
def test_together_each_finds_what_it_finds_alone(asked: list[tuple[float, int]]) -> None:
    """Computations of any lengths find together what each finds alone, in as many rounds as the longest asks."""
    calls = []

    def model(values: Array) -> Array:
        calls.append(len(values))
        return squares(values)

    found = answered(together([halving(*one) for one in asked]), model)
    assert found == [answered(halving(*one), squares) for one in asked]
    assert len(calls) == max((rounds for _, rounds in asked), default=0)
    assert sum(calls) == 2 * sum(rounds for _, rounds in asked)


def test_a_question_in_other_terms() -> None:
    """A translated computation finds the same where its answers are translated back."""
    found = answered(translated(halving(4.0, 3), lambda values: 10 * values, lambda answer: answer / 100), squares)
    assert found == answered(halving(4.0, 3), squares)


def test_many_samples_are_asked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """More samples than the model is asked for at once are put to it in parts, and answered as one."""
    monkeypatch.setattr(asking, "MOST_SAMPLES", 3)
    sizes = []

    def model(values: Array) -> Array:
        sizes.append(len(values))
        return squares(values)

    def once() -> Asking[Array]:
        return (yield np.arange(8.0)[:, None])

    assert answered(once(), model)[0, :, 0].tolist() == [float(i * i) for i in range(8)]
    assert sizes == [3, 3, 2]
