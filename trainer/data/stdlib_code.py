"""The embedded dataset: functions of the running Python's own standard library, to be written from their docstrings.

It needs no network and nothing is copied into this repository: the rows are made from the sources that came with the
interpreter, all of which its licence lets one use. Another Python version makes another dataset, of another digest.
"""

import ast
import json
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from trainer.data.cache import cached, file_digest, key_of

VERSION = 1
"""Rises when other rows are made of the same sources."""
MAX_CHARACTERS = 4000
"""Of a row's instruction and answer together.

measured: the longest row of Python 3.11 has 1,286 tokens of `trainer.data.tokenizer`, the form's headings among them.
"""
LEFT_OUT = frozenset(
    {"__phello__", "antigravity", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "this", "turtledemo"}
)
"""Modules that are bundles, tables, jokes or demonstrations rather than a library."""

_ROWS = "rows.jsonl"


def embedded_rows(cache: Path) -> Path:
    """Return the dataset as a file of JSON Lines, from the cache if it is there.

    Raises:
        ValueError: this Python came without the sources of its library, or the cache cannot be written.
    """
    files = sources()
    if not files:
        raise ValueError("embedded dataset: this Python came without its library's sources; give --dataset")
    name = f"stdlib-{key_of(VERSION, MAX_CHARACTERS, *map(file_digest, files))}"
    return cached(cache, name, lambda draft: write_rows(files, draft / _ROWS)) / _ROWS


def sources() -> list[Path]:
    """Return the library's Python files, in order: no tests, no modules of a private name."""
    library = Path(sysconfig.get_path("stdlib"))
    tops = sorted(name for name in sys.stdlib_module_names - LEFT_OUT if not name.startswith("_"))
    files = [library / f"{top}.py" for top in tops if (library / f"{top}.py").is_file()]
    for top in tops:
        files += sorted((library / top).rglob("*.py"))
    return [file for file in files if not {"test", "tests"} & set(file.relative_to(library).parts)]


def write_rows(files: list[Path], path: Path) -> None:
    """Write the dataset as JSON Lines: instruction, input and output of each function, no answer twice."""
    seen = set[str]()
    with path.open("w", encoding="utf-8") as out:
        for file in files:
            with tokenize.open(file) as module:
                source = module.read()
            for row in rows_of(source):
                if row["output"] not in seen:
                    seen.add(row["output"])
                    out.write(json.dumps(row) + "\n")


def rows_of(source: str) -> Iterator[dict[str, str]]:
    r"""Yield a row for each function of a module that says what it does: docstring and header ask for the source.

    >>> list(rows_of('def twice(x):\n    "Return x two times."\n    return 2 * x\n'))
    [{'instruction': 'Return x two times.', 'input': 'def twice(x):', 'output': 'def twice(x):\n    return 2 * x\n'}]
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old sources are no one's concern here
        tree = ast.parse(source)
    lines = [f"{line}\n" for line in source.split("\n")]  # `splitlines` cuts at form feeds too, where ast does not
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            row = _row(node, lines)
            if row is not None and len(row["instruction"]) + len(row["output"]) <= MAX_CHARACTERS:
                yield row


def _row(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> dict[str, str] | None:
    """Return the row of a function; None where taking out its docstring would leave no source that stands alone."""
    docstring = ast.get_docstring(node)
    if not docstring or len(node.body) < 2:
        return None
    quoted, after = node.body[:2]
    last = quoted.end_lineno or quoted.lineno
    if quoted.lineno == node.lineno or after.lineno == last:  # two statements in one line
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    code = dedent("".join(lines[first - 1 : quoted.lineno - 1] + lines[last : node.end_lineno]))
    if code[0].isspace():  # a string in it begins further left than the function
        return None
    header = dedent("".join(lines[node.lineno - 1 : quoted.lineno - 1])).rstrip()
    return {"instruction": docstring, "input": header, "output": code}
