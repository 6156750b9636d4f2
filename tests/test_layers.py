"""Imports point only left: hardware <- estimator <- trainer, and inside these from a room to those before it."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("hardware", "estimator", "trainer")
TRAINER_ONLY = ("torch", "transformers", "safetensors")
SLOW = ("pandas", "matplotlib")
"""Packages that are imported where they are used, and not before."""

ROOMS = {
    "hardware": ("", "smi"),
    "estimator": (
        "arrays", "work", "stack", "formulas", "predict", "search", "runs", "calibrate", "report", "api", "serve",
        "cli",
    ),
    "trainer": (
        "data", "parallel", "jobs", "config", "build", "step_log", "measure", "source", "resume", "inspection",
        "display", "sample",
        "look_ahead", "prepare", "train", "rank", "cli", "__main__",
    ),
}  # fmt: skip
"""Each package's rooms and single files, lower ones first; an import from one goes to itself or to one before it.

"" are all single files that the list does not name.
"""

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
COMMANDS = tuple(script.partition(":")[0] for script in SCRIPTS.values())
"""Modules of commands: what others need of one belongs to the idea that it serves."""
ENTRY_POINTS = ("trainer/__main__.py",)
"""Files that start a command."""

DOORS = ("estimator/__init__.py",)
"""Files of no room, which may import all of their package, but for commands."""
FILES = sorted(path.relative_to(ROOT).as_posix() for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(source: str, file: str) -> Iterator[tuple[str, bool]]:
    """Yield the dotted name of each import, and whether it runs when the module is imported."""
    tree = ast.parse(source)
    later = {id(node) for outer in ast.walk(tree) if _waits(outer) for node in ast.walk(outer)}
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


def _waits(node: ast.AST) -> bool:
    """Whether what is inside does not run when the module is imported: of a function, or for a type checker alone."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return isinstance(node, functions) or (
        isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse
    )


def room(module: str) -> int:
    """Return the place of a dotted name's room in its package; -1 of what is in none."""
    package, *rest = module.split(".")
    named = rest[0] if rest and rest[0] in ROOMS[package] else ""
    return ROOMS[package].index(named) if named in ROOMS[package] else -1


def offences(source: str, file: str) -> list[str]:
    """Return the imports of a file that point right, or reach for what its layer does without."""
    own = file.removesuffix(".py").replace("/", ".")
    layer = own.split(".", maxsplit=1)[0]
    found = []
    for name, at_once in imported(source, file):
        top = name.split(".")[0]
        right = top in LAYERS and LAYERS.index(top) > LAYERS.index(layer)
        higher = top == layer and file not in DOORS and room(name) > room(own)
        heavy = top in TRAINER_ONLY and layer != "trainer"
        slow = top in SLOW and at_once
        command = f"{name}.".startswith(tuple(f"{module}." for module in COMMANDS)) and file not in ENTRY_POINTS
        if right or higher or heavy or slow or command:
            found.append(f"{file} imports {name}")
    return found


@pytest.mark.parametrize("file", FILES)
def test_imports_point_left(file: str) -> None:
    """A module imports only its own room, those before it, and no package that its layer does without."""
    assert offences((ROOT / file).read_text(encoding="utf-8"), file) == []


def test_every_layer_is_walked() -> None:
    """The walk finds modules in each layer."""
    assert {file.split("/")[0] for file in FILES} == set(LAYERS)


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("import estimator", "hardware/units.py"),
        ("import estimator.work.plan as p", "hardware/units.py"),
        ("from estimator.work.plan import Plan", "hardware/units.py"),
        ("def f():\n    from trainer import train", "estimator/work/plan.py"),
        ("if True:\n    import trainer.parallel.model", "estimator/work/plan.py"),
        ("from ...trainer import model", "estimator/work/plan.py"),
        ("from ... import trainer", "estimator/work/plan.py"),
        ("import importlib\nimportlib.import_module('trainer')", "estimator/work/plan.py"),
        ("def f():\n    import torch", "estimator/work/plan.py"),
        ("from transformers import AutoConfig", "estimator/work/shape.py"),
        ("import torch.nn", "hardware/units.py"),
        ("import pandas as pd", "estimator/search/planner.py"),
        ("if TYPE_CHECKING:\n    import torch", "estimator/search/planner.py"),
        ("if True:\n    import pandas as pd", "estimator/search/planner.py"),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import pandas as pd", "estimator/search/planner.py"),
        ("from estimator.formulas.step import Step", "estimator/work/plan.py"),
        ("def f():\n    from estimator.cli import estimate", "estimator/report/text.py"),
        ("from ..predict import interval", "estimator/formulas/step.py"),
        ("from hardware.smi.jobs import Job", "hardware/catalog.py"),
        ("from trainer.train import train", "trainer/look_ahead/meter.py"),
        ("from estimator.cli.estimate import SEED_MODEL", "trainer/cli.py"),
        ("from estimator.cli import calibrate", "estimator/__init__.py"),
    ],
)
def test_an_offence_is_found(source: str, file: str) -> None:
    """An import to the right is found, however it is written."""
    assert len(offences(source, file)) == 1


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("import numpy\nfrom hardware.errors import shown", "estimator/work/plan.py"),
        ("from . import plan\nfrom .plan import Plan", "estimator/work/rules.py"),
        ("from ..work.plan import Plan", "estimator/formulas/layout.py"),
        ("import torch\nfrom estimator.work import shape\nimport hardware", "trainer/train.py"),
        ("def f():\n    import pandas as pd", "estimator/report/text.py"),
        ("if TYPE_CHECKING:\n    import pandas as pd", "estimator/report/text.py"),
        ("from trainer.cli import main", "trainer/__main__.py"),
    ],
)
def test_what_is_allowed_is_not(source: str, file: str) -> None:
    """Imports to the left, of the same room, and of pandas where it is used are no offence."""
    assert offences(source, file) == []
