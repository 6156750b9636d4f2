"""How far the wall time goes with each assumption: one standard error of each, through the whole prediction."""

from typing import NamedTuple

import numpy as np

from estimator.predict.evaluate import evaluate
from estimator.search.planner import Estimate
from estimator.stack.stack import Stack
from estimator.work.plan import Plan, Plans

LEAST = 1e-4
"""Of the wall time: what moves it by less is not told."""


class Move(NamedTuple):
    """Seconds from start to end with an assumption one standard error lower, and higher."""

    name: str
    log_sd: float
    """The standard error of its logarithm."""
    less_s: float
    more_s: float

    @property
    def span_s(self) -> float:
        """Seconds between the two."""
        return abs(self.more_s - self.less_s)


def moves(answer: Estimate) -> list[Move]:
    """Return how far the best plan's wall time goes with each assumption of the fit, the farthest first.

    Each fitted parameter alone is moved by one standard error of its logarithm (the diagonal of the fit's covariance),
    and the plan predicted anew; those of a fit are correlated, so that effects do not add up. What runs like it took
    that no parameter explains is a move of its own.

    Args:
        answer: of one flavor, on which a plan fits.
    """
    best = answer.best
    assert best is not None
    fit, family = answer.stack.fit, answer.workload.shape.family
    found = []
    for i, name in enumerate(fit.names):
        if name in answer.stack.priors or name == family:
            sd = float(fit.covariance[i][i]) ** 0.5
            found.append(
                _move(name.replace("_", " ") if name != family else _of_family(name), answer, best.plan, i, sd)
            )
    before = best.wall_s.value - best.training_s.value
    log_sd = _unexplained_log_sd(answer, best.plan)
    ends = (before + best.training_s.value * float(np.exp(sign * log_sd)) for sign in (-1, 1))
    found.append(Move("left unexplained", log_sd, *ends))
    return sorted(
        (move for move in found if move.span_s > LEAST * best.wall_s.value), key=lambda move: move.span_s, reverse=True
    )


def _of_family(name: str) -> str:
    return f"factor of family {name}"


def _move(name: str, answer: Estimate, plan: Plan, place: int, log_sd: float) -> Move:
    less_s, more_s = (_wall_s(answer, plan, _with_value(answer.stack, place, sign * log_sd)) for sign in (-1, 1))
    return Move(name, log_sd, less_s, more_s)


def _with_value(stack: Stack, place: int, by: float) -> Stack:
    """Return a stack with one value of its fit moved in the logarithm."""
    values = list(stack.fit.log_values)
    values[place] += by
    return stack.model_copy(update={"fit": stack.fit.model_copy(update={"log_values": tuple(values)})})


def _wall_s(answer: Estimate, plan: Plan, stack: Stack) -> float:
    """Return the seconds from start to end of a plan with another stack, all else as answered."""
    best = answer.best
    assert best is not None
    table = evaluate(Plans.of([plan]), answer.workload, answer.machine, stack, intervals=False)
    num_compiled = 1 if answer.space == "full" else answer.num_candidates
    wall_s = table.row(0, None, num_compiled).wall_s.value
    return wall_s / float(best.endurance.goodput_fraction) if best.endurance else wall_s


def _unexplained_log_sd(answer: Estimate, plan: Plan) -> float:
    """Return the standard deviation of the logarithm of a step's seconds with the parameters as if known."""
    fit = answer.stack.fit
    known = fit.model_copy(
        update={"covariance": tuple(tuple(0.0 for _ in row) for row in fit.covariance), "family_log_sd": 0.0}
    )
    stack = answer.stack.model_copy(update={"fit": known})
    table = evaluate(Plans.of([plan]), answer.workload, answer.machine, stack)
    return float(table.prediction.step_log_sd[0])
