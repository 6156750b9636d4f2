"""A slice of `make fuzz`, and that it finds what is wrong."""

import re
from pathlib import Path

import pytest

from estimator.runs.logs import megatron, text
from tests.support.fuzz import Fuzzer

SLICE = 1500


@pytest.mark.slow
def test_a_slice_of_inputs_ends_well(tmp_path: Path) -> None:
    """Mutated logs and tables are read, or refused in one line; a changed line, unit or row changes nothing else."""
    fuzzer = Fuzzer(tmp_path, seed=1)
    for number in range(SLICE):
        fuzzer.try_input(number)
    assert fuzzer.findings == []
    assert min(fuzzer.ends["read"], fuzzer.ends["refused"]) > SLICE / 10


@pytest.mark.slow
def test_a_reader_that_takes_any_unit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were seconds read as milliseconds, the inputs would tell."""
    loose = megatron._ITERATION.pattern.replace(r"\(ms\)", r"\(\w+\)")  # noqa: SLF001 - broken on purpose
    monkeypatch.setattr(megatron, "_ITERATION", re.compile(loose, re.ASCII))
    fuzzer = Fuzzer(tmp_path, seed=1)
    for number in range(SLICE):
        fuzzer.try_input(number)
    assert any("another unit, and read" in finding for finding in fuzzer.findings)


def test_a_reader_that_raises_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were an error of another kind raised, the inputs would tell."""
    fuzzer = Fuzzer(tmp_path, seed=1)
    monkeypatch.setattr(text, "_ANSI", None)
    for number in range(200):
        fuzzer.try_input(number)
    assert any("AttributeError" in finding for finding in fuzzer.findings)
