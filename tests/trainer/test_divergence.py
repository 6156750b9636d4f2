"""When a run has lost what it knew."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.divergence import MARGIN, STEPS, Divergence

VOCAB = 384
BOUND = math.log(VOCAB) + MARGIN


def ends_at(losses: list[float], num_steps: int = 1000) -> int | None:
    """Return the step at which a run with these losses ends early, if any."""
    watch = Divergence(VOCAB, num_steps)
    for step, loss in enumerate(losses, start=1):
        try:
            watch.see(step, loss, 1.0)
        except FloatingPointError:
            return step
    return None


@pytest.mark.parametrize(
    ("losses", "end"),
    [
        ([6.3, *[26_198.0] * 50], 1 + STEPS),
        ([6.3, *[26_198.0] * (STEPS - 1), 6.0, *[26_198.0] * (STEPS - 1)], None),  # spikes that come back
        ([BOUND + 5 - 0.1 * step for step in range(100)], None),  # began worse than no knowledge, and learns
        ([26_198.0] * 50, None),  # was never better
        ([2.0, *[BOUND - 0.01] * 50], None),
    ],
)
def test_a_run_ends_where_it_stays_worse_than_no_knowledge(losses: list[float], end: int | None) -> None:
    """Ten steps running above ln V + 1, after better ones, end a run; spikes, and starts from above, do not."""
    assert ends_at(losses) == end


def test_a_run_does_not_end_well_with_a_loss_like_that() -> None:
    """At the last step one such loss is enough: nothing comes after it."""
    assert ends_at([6.0, 6.0, 26_198.0], num_steps=3) == 3
    assert ends_at([6.0, 6.0, 26_198.0], num_steps=4) is None


@given(st.lists(st.floats(0, BOUND), max_size=60))
def test_a_run_that_is_better_than_nothing_goes_on(losses: list[float]) -> None:
    """However the loss moves below the bound, the run goes on and is above suspicion."""
    watch = Divergence(VOCAB, 1000)
    for step, loss in enumerate(losses, start=1):
        watch.see(step, loss, 1.0)
        assert not watch.is_suspect


def test_the_line_says_since_when_and_what_to_do() -> None:
    """It names the step, the loss, the bound, the best loss, and the mend."""
    watch = Divergence(VOCAB, 2)
    watch.see(1, 5.1, 1.0)
    said = (
        r"^step 2: the run has diverged: the loss is 900, for 1 steps above 6\.95, a nat worse than no knowledge, "
        r"after 5\.1 at step 1; lower --lr, or clip with --clip-norm; checkpoints from before are kept$"
    )
    with pytest.raises(FloatingPointError, match=said):
        watch.see(2, 900.0, 1.0)
