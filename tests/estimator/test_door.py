import subprocess
import sys
import tomllib
import venv
from importlib import resources
from pathlib import Path

import pytest

import estimator
from estimator import calibrate, estimate, load_shape, load_stack, read_runs
from tests.support.every_flavor import every_flavor
from tests.support.paths import GOLDEN, ROOT

STEPS = GOLDEN / "logs" / "steps.jsonl"

ORDERS = (
    "from estimator import calibrate, search",
    "import estimator.search.planner, estimator.calibrate.assess\nfrom estimator import calibrate, search",
    "from estimator import calibrate, search\nimport estimator.search.planner, estimator.calibrate.assess",
    "from estimator.search.planner import Estimate\nfrom estimator import calibrate, search",
    "import estimator.cli.calibrate, estimator.cli.estimate\nfrom estimator import calibrate, search",
)

BOTH_ARE_FOUND = """
import inspect, sys
import estimator, estimator.search.planner, estimator.search.planner as planner, estimator.calibrate.assess as assess
assert inspect.isfunction(search) and estimator.search is search
assert inspect.isfunction(calibrate) and estimator.calibrate is calibrate
assert search.__module__ == 'estimator.api.estimate' and search.__name__ == 'search'
assert planner is estimator.search.planner is sys.modules['estimator.search.planner']
assert assess is estimator.calibrate.assess is sys.modules['estimator.calibrate.assess']
print('right')
"""

SCRIPT = """
from estimator import Estimate, Estimates, Plan, Range, calibrate, estimate, evaluate_plans, read_runs, search
import pandas as pd

answer: Estimate = estimate("mistralai/Mistral-7B-v0.1", flavor="4xLarge.2048GB", seq_len=4096)
if answer.best is not None:
    step: Range = answer.best.step_s
    held: float = answer.best.memory.per_device_bytes.high
    parts: dict[str, float] = answer.best.memory.breakdown_bytes
    plan: Plan = answer.best.plan
every: Estimates = estimate(flavor="all", objective="cost", deadline="2h")
two: Estimates = search(flavor=["mi300x8", "4xlarge"], budget=50.0, stack="generic", lora=16, quantize=4)
names: list[str] = [one.flavor.id for one in every if one.best]
frame: pd.DataFrame = evaluate_plans(pd.DataFrame({"num_stages": [1, 2]}), flavor="mi300x8", batch=64)
runs: pd.DataFrame = read_runs("steps.jsonl").to_frame()
errors: pd.DataFrame = calibrate(["steps.jsonl"], check=True).to_frame()
print(step.value, held, parts, plan, names, two.best, frame, runs, errors)
"""
"""What a user may write; a checker has nothing to say of it."""

WRONG = """
from estimator import calibrate, estimate, evaluate_plans, search

estimate(flavor="mi300x8", seqlen=4096)
estimate(flavor="mi300x8").chosen
estimate(flavor="all").plans
estimate(flavor="mi300x8").best.step_s
search(plan="num_stages=2")
evaluate_plans(["num_stages=2"], flavor=["mi300x8"])
calibrate(3)
"""
"""Each call is wrong."""


def fresh(script: str) -> str:
    """Return what a script prints in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout


@pytest.mark.parametrize("order", ORDERS)
def test_the_calls_are_calls_whatever_was_imported_before(order: str) -> None:
    """`search` and `calibrate` are functions, and the modules of the rooms of these names are found as well."""
    script = f"{order}\n{BOTH_ARE_FOUND}"
    assert fresh(script) == "right\n"


def test_the_door_is_light() -> None:
    """`import estimator` loads neither pandas nor scipy, and no reader, fit or command."""
    loaded = set(fresh("import sys, estimator\nprint('\\n'.join(sys.modules))").split())
    assert not loaded & {"pandas", "scipy", "matplotlib", "torch", "typer", "rich", "multiprocessing"}
    assert {"estimator.calibrate", "estimator.api.calibrate"} <= loaded
    rooms = ("estimator.runs", "estimator.calibrate.", "estimator.report", "estimator.cli")
    assert not [name for name in loaded if name.startswith(rooms)]


def test_every_public_name_is_there() -> None:
    """Each name of `__all__` is one, and says what it is."""
    assert all(getattr(estimator, name).__doc__ for name in estimator.__all__)


@pytest.mark.parametrize(
    "shown",
    [
        lambda: estimate(flavor="4xLarge.2048GB"),
        lambda: estimate(flavor="4xLarge.2048GB").best,
        lambda: estimate(flavor="4xLarge.2048GB", why="num_stages=3"),
        lambda: estimate(flavor="Small.64GB"),
        every_flavor,
        lambda: estimate(flavor=["Small.64GB"]),
        lambda: load_stack("nanotron"),
        lambda: load_shape("mistralai/Mistral-7B-v0.1"),
        lambda: read_runs(STEPS),
        lambda: calibrate(STEPS, "reference", check=True),
    ],
)
def test_an_object_shows_in_a_few_lines(shown: object) -> None:
    """What a notebook prints of a public object is a few lines, none of them long."""
    assert callable(shown)
    found = shown()
    for text in (repr(found), str(found)):
        lines = text.splitlines()
        assert 0 < len(lines) <= 10
        assert len(text) < 1000
        assert "=None" not in text


def test_the_types_are_packaged() -> None:
    """Each package says that it has types, and its wheel holds the file that does."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for name in ("hardware", "estimator", "trainer"):
        assert resources.files(name).joinpath("py.typed").is_file()
        assert "py.typed" in packages["package-data"][name]


@pytest.mark.slow
def test_a_users_script_is_checked_against_the_installed_package(tmp_path: Path) -> None:
    """Mypy --strict says nothing of a script that is right, and finds each line of one that is wrong."""
    pytest.importorskip("mypy")
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    for name in ("hardware", "estimator", "trainer"):  # as installed: an editable install is not seen by mypy
        (site / name).symlink_to(str(resources.files(name)))
    (own,) = {Path(path) for path in sys.path if (Path(path) / "pandas-stubs").is_dir()}
    (site / "dependencies.pth").write_text(f"{own}\n", encoding="utf-8")
    (tmp_path / "right.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    done = subprocess.run(  # noqa: S603
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            home / "bin" / "python",
            "right.py",
            "wrong.py",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line for line in errors if not line.startswith("wrong.py:")] == []
    wrong = {int(line.split(":")[1]) for line in errors}
    assert wrong == {i for i, line in enumerate(WRONG.splitlines(), 1) if line and "import" not in line}, done.stdout
