import ast
import inspect
import json
import textwrap
import warnings
from pathlib import Path

import pytest

from trainer.data import stdlib_code
from trainer.data.stdlib_code import MAX_CHARACTERS, embedded_rows, rows_of, sources, write_rows


def rows(*sources: str) -> list[dict[str, str]]:
    """Return the rows of modules."""
    return [row for source in sources for row in rows_of(textwrap.dedent(source))]


def test_rows_of_a_real_module_are_its_functions() -> None:
    """Every row of `textwrap` is a function that parses, bears the name its input asks for, and is what runs here."""
    found = rows(inspect.getsource(textwrap))
    assert {"def wrap(text, width=70, **kwargs):", "def dedent(text):"} <= {row["input"] for row in found}
    for row in found:
        [function] = ast.parse(row["output"]).body
        assert isinstance(function, ast.FunctionDef)
        assert row["input"].splitlines()[0] in row["output"]
        assert ast.get_docstring(function) is None
    [indent] = [row for row in found if row["input"].startswith("def indent(")]
    names: dict[str, object] = {}
    exec(indent["output"], names)  # noqa: S102 - the library's own code
    assert names["indent"]("a\n\nb", "> ") == textwrap.indent("a\n\nb", "> ")  # type: ignore[operator]
    assert indent["instruction"] == inspect.getdoc(textwrap.indent)


def test_methods_and_decorators_stand_alone() -> None:
    """A method comes without its indentation, with its decorators; a coroutine keeps its `async`."""
    source = '''
    class A:
        @property
        def size(self) -> int:
            """How large."""
            # counted

            return 1

        async def wait(
            self,
            seconds,
        ):
            """Wait a while."""
            await sleep(seconds)
    '''
    assert rows(source) == [
        {
            "instruction": "How large.",
            "input": "def size(self) -> int:",
            "output": "@property\ndef size(self) -> int:\n    # counted\n\n    return 1\n",
        },
        {
            "instruction": "Wait a while.",
            "input": "async def wait(\n    self,\n    seconds,\n):",
            "output": "async def wait(\n    self,\n    seconds,\n):\n    await sleep(seconds)\n",
        },
    ]


def test_lines_are_python_s() -> None:
    """A form feed, which some old sources have between functions, begins no line."""
    source = 'def f():\n    """One."""\n    return 1\n\f\ndef g():\n    """Two."""\n    return 2\n'
    assert [row["output"] for row in rows_of(source)] == ["def f():\n    return 1\n", "def g():\n    return 2\n"]


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    return 1\n",
        'def f():\n    """Only says what it does."""\n',
        'def f(): """In one line."""; return 1\n',
        'def f():\n    """Beside the rest."""; return 1\n',
        'class A:\n    def f(self):\n        """Hold text."""\n        return """\nfurther left"""\n',
        f'def f():\n    """Too long."""\n    return "{"x" * MAX_CHARACTERS}"\n',
    ],
)
def test_what_makes_no_row_is_left_out(source: str) -> None:
    """Functions without a docstring, or whose source cannot do without it, give no row."""
    assert rows(source) == []


def test_no_answer_comes_twice(tmp_path: Path) -> None:
    """Functions that are the same but for their docstrings are one row, across modules too."""
    module = 'def f():\n    """{}"""\n    return 1\n'
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(module.format(name))
    (tmp_path / "c.py").write_bytes(b'# coding: latin-1\ndef g():\n    """\xe9"""\n    return 1\n')
    write_rows([tmp_path / "a.py", tmp_path / "b.py", tmp_path / "c.py"], tmp_path / "rows")
    found = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [row["instruction"] for row in found] == ["a", "\u00e9"]


def test_the_library_has_no_tests() -> None:
    """The sources are the library's, packages too, each once; none is a test, a bundle or another's package."""
    files = sources()
    assert len(files) == len(set(files)) > 300
    assert {"textwrap.py", "decoder.py"} <= {file.name for file in files}
    assert not any({"test", "tests", "site-packages", "idlelib", "_bundled"} & set(file.parts) for file in files)


@pytest.mark.slow
def test_the_dataset_is_the_same_each_time(embedded_cache: Path, tmp_path: Path) -> None:
    """Of the same sources the rows are the same to the byte; all are thousands, each answered by its function."""
    for name in ("first", "second"):
        write_rows(sources()[::10], tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    lines = embedded_rows(embedded_cache).read_text(encoding="utf-8").splitlines()
    assert len(lines) > 3000
    for row in map(json.loads, lines):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old sources
            [function] = ast.parse(row["output"]).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert f"def {function.name}" in row["input"]


def test_a_python_without_sources_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library's sources are not installed, the line says what to give instead."""
    monkeypatch.setattr(stdlib_code.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ValueError, match=r"^embedded dataset: this Python came without .* sources; give --dataset$"):
        embedded_rows(tmp_path)
