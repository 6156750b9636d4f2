"""Imports point only left: hardware <- estimator <- trainer; heavy packages stay where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("hardware", "estimator", "trainer")
TRAINER_ONLY = ("torch", "transformers", "safetensors")
PANDAS = ("estimator/planner.py", "estimator/calibrate.py", "estimator/report.py")
FILES = sorted(path.relative_to(ROOT).as_posix() for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(source: str, file: str) -> Iterator[tuple[str, bool]]:
    """Yield the dotted name of each import, and whether it runs when the module is imported."""
    tree = ast.parse(source)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    later = {id(node) for outer in ast.walk(tree) if isinstance(outer, functions) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        at_once = id(node) not in later
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = file.split("/")[: -node.level] if node.level else []
            module = ".".join([*folder, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}".lstrip("."), at_once) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((a.value, at_once) for a in node.args[:1] if isinstance(a, ast.Constant))


def offences(source: str, file: str) -> list[str]:
    """Return the imports of a file that point right, or reach for what its layer does without."""
    layer = file.split("/", maxsplit=1)[0]
    found = []
    for name, at_once in imported(source, file):
        top = name.split(".")[0]
        right = top in LAYERS and LAYERS.index(top) > LAYERS.index(layer)
        heavy = top in TRAINER_ONLY and layer != "trainer"
        table = top == "pandas" and (at_once or file not in PANDAS)
        if right or heavy or table:
            found.append(f"{file} imports {name}")
    return found


@pytest.mark.parametrize("file", FILES)
def test_imports_point_left(file: str) -> None:
    """A module imports only its own layer, those to its left, and no package that its layer does without."""
    assert offences((ROOT / file).read_text(encoding="utf-8"), file) == []


def test_every_layer_is_walked() -> None:
    """The walk finds modules in each layer."""
    assert {file.split("/")[0] for file in FILES} == set(LAYERS)


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("import estimator", "hardware/units.py"),
        ("import estimator.plan as p", "hardware/units.py"),
        ("from estimator.plan import Plan", "hardware/units.py"),
        ("def f():\n    from trainer import train", "estimator/plan.py"),
        ("if True:\n    import trainer.model", "estimator/plan.py"),
        ("from ..trainer import model", "estimator/plan.py"),
        ("from .. import trainer", "estimator/plan.py"),
        ("import importlib\nimportlib.import_module('trainer')", "estimator/plan.py"),
        ("def f():\n    import torch", "estimator/plan.py"),
        ("from transformers import AutoConfig", "estimator/shape.py"),
        ("import torch.nn", "hardware/units.py"),
        ("import pandas as pd", "estimator/planner.py"),
        ("def f():\n    import pandas as pd", "estimator/step.py"),
    ],
)
def test_an_offence_is_found(source: str, file: str) -> None:
    """An import to the right is found, however it is written."""
    assert len(offences(source, file)) == 1


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("import numpy\nfrom hardware.errors import shown", "estimator/plan.py"),
        ("from . import plan\nfrom .plan import Plan", "estimator/planner.py"),
        ("import torch\nfrom estimator import shape\nimport hardware", "trainer/train.py"),
        ("def f():\n    import pandas as pd", "estimator/report.py"),
    ],
)
def test_what_is_allowed_is_not(source: str, file: str) -> None:
    """Imports to the left, of the same layer, and of pandas where it is used are no offence."""
    assert offences(source, file) == []
