"""Hold two answers against each other, or the files that `estimate --json` wrote of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from estimator.api.options import PathLike
from estimator.search.difference import Answer, Difference, difference, read_answer
from estimator.search.planner import Estimate
from hardware.errors import shown_path
from hardware.files import read_regular_file

MOST_BYTES = 2**26
"""Of an answer's file; one of all candidates of a platform has some 50 KiB."""


def compare(
    first: Estimate | Mapping[str, Any] | PathLike, second: Estimate | Mapping[str, Any] | PathLike
) -> Difference:
    """Return what differs between two answers: question, plan, memory by purpose and step by phase.

    Of each its best plan is looked at, or where none fits the one that comes nearest.

    Args:
        first: an answer, its document, or the file that `estimate --json` wrote.
        second: likewise.

    Raises:
        ValueError: a file cannot be read, or is no answer.
    """
    return difference(_answer(first), _answer(second))


def _answer(given: Estimate | Mapping[str, Any] | PathLike) -> Answer:
    if isinstance(given, Estimate):
        from estimator.report.json import estimate_document  # noqa: PLC0415 - the door does not load reports

        return read_answer(estimate_document(given, 1), "answer")
    if isinstance(given, Mapping):
        return read_answer(given, "document")
    path = Path(given)
    where = f"diff {shown_path(path)}"
    try:
        document = json.loads(read_regular_file(path, MOST_BYTES))
    except OSError as error:
        raise ValueError(f"{where}: cannot be read; give a file of estimate --json, a plan, or 'best'") from error
    except RecursionError as error:
        raise ValueError(f"{where}: is not valid JSON; save what estimate --json prints") from error
    except ValueError as error:
        told = "is not valid JSON; save what estimate --json prints"
        is_ours = str(error).startswith(shown_path(path))
        raise ValueError(f"diff {error}" if is_ours else f"{where}: {told}") from error
    return read_answer(document, where)
