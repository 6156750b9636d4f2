"""A run that has lost what it knew, and does not find it again: it ends, and its last good checkpoint stays."""

import math

MARGIN = 1.0
"""Nats above the loss of knowing nothing."""

STEPS = 10
"""In a row, after which a run has diverged.

assumed: a loss spikes for some steps and comes back, but seldom from there.
"""


class Divergence:
    """Watches the loss of a run.

    A model that gives each token of its vocabulary the same chance has a loss of ln V. One that was better, and then is
    worse by a nat for ten steps running, or at the last step of the run, has diverged.
    """

    def __init__(self, vocab_size: int, num_steps: int) -> None:
        """Begin a run.

        Args:
            vocab_size: V.
            num_steps: of the whole run.
        """
        self._num_steps = num_steps
        self._bound = math.log(vocab_size) + MARGIN
        self._best_step, self._best = 0, math.inf
        self._above = 0

    @property
    def is_suspect(self) -> bool:
        """Whether the last loss was above the bound, after better ones: such weights are in no checkpoint."""
        return self._above > 0

    def see(self, step: int, loss: float, grad_norm: float) -> None:
        """Look at a step.

        Raises:
            FloatingPointError: the loss or the norm is no number, or the run has diverged; one line with the mend.
        """
        mend = "lower --lr, or clip with --clip-norm"
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(f"step {step}: the loss is {loss:g}, the gradient's norm {grad_norm:g}; {mend}")
        if loss < self._best:
            self._best_step, self._best = step, loss
        self._above = self._above + 1 if self._best < self._bound < loss else 0
        if self._above >= STEPS or (self.is_suspect and step == self._num_steps):
            raise FloatingPointError(
                f"step {step}: the run has diverged: the loss is {loss:g}, for {self._above} steps above "
                f"{self._bound:.3g}, a nat worse than no knowledge, after {self._best:.3g} at step {self._best_step}; "
                f"{mend}; checkpoints from before are kept"
            )
