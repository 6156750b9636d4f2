"""Computations that ask a model for predictions, so that many of them ask together and the model answers once.

A prediction of a thousand runs costs about as much for five hundred sets of parameters as for one. A fit is therefore a
generator: it yields parameters, one set a row, and is sent what the model predicts of each, on the second last axis.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import numpy as np

from estimator.arrays import Array

T = TypeVar("T")
Asking = Generator[Array, Array, T]
"""Yields sets of parameters, shape (samples, parameters); is sent predictions, shape (..., samples, runs)."""

MOST_SAMPLES = 4096
"""Sets of parameters that the model is asked for at once: of a thousand runs, 128 MiB of answers."""


def together(asks: Sequence[Asking[T]]) -> Asking[list[T]]:
    """Return what several computations find, all of their questions of a round asked as one."""
    found: dict[int, T] = {}
    questions: dict[int, Array] = {}

    def go_on(i: int, answer: Array | None) -> None:
        try:
            questions[i] = next(asks[i]) if answer is None else asks[i].send(answer)
        except StopIteration as done:
            found[i] = done.value

    for i in range(len(asks)):
        go_on(i, None)
    while questions:
        asked, questions = questions, {}
        answers = yield np.concatenate(list(asked.values()))
        ends = np.cumsum([len(question) for question in asked.values()])[:-1]
        for i, answer in zip(asked, np.split(answers, ends, axis=-2), strict=True):
            go_on(i, answer)
    return [found[i] for i in range(len(asks))]


def translated(ask: Asking[T], to: Callable[[Array], Array], back: Callable[[Array], Array]) -> Asking[T]:
    """Return what a computation finds, its questions put in other terms, and the answers back in its own."""
    try:
        question = next(ask)
        while True:
            question = ask.send(back((yield to(question))))
    except StopIteration as done:
        found: T = done.value
        return found


def answered(ask: Asking[T], predict: Callable[[Array], Array]) -> T:
    """Return what a computation finds where a model answers its questions."""
    try:
        question = next(ask)
        while True:
            parts = [predict(question[i : i + MOST_SAMPLES]) for i in range(0, len(question), MOST_SAMPLES)]
            question = ask.send(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2))
    except StopIteration as done:
        found: T = done.value
        return found
