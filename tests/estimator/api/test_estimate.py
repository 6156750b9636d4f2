import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from estimator import Estimate, Estimates, estimate, load_shape, load_stack, search
from estimator.api.options import Options, SubjectOptions, subject
from estimator.cli.estimate import estimate_app
from estimator.report.json import estimate_document, flavors_document
from estimator.work.plan import Plan
from hardware.catalog import load_catalog
from tests.support.commands import estimate as call

FLAVOR = "4xLarge.2048GB"
OF_OUTPUT = {
    "configuration", "diff", "stacks", "top", "as_json", "explain", "trace", "template", "compare", "is_served", "port",
    "html", "plot",
}  # fmt: skip
"""Options of the command that say how its answer is printed."""
TINY = {"model": "openai-community/gpt2", "seq_len": 1024, "batch": 64, "steps": 10}


def without_seconds(document: dict) -> dict:
    """Return a document without the time that the search took."""
    for found in document.get("estimates", [document]):
        found["search"]["seconds"] = 0
    return document


def printed(**options: object) -> tuple[int, str, str]:
    """Run the command with options by their names in Python."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not True]
    flags = [f"--{name}" for name, value in options.items() if value is True]
    return call(*words, *flags, "--json")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": "meta-llama/Llama-2-13b-hf", "flavor": "8xlarge", "seq_len": 1024, "batch": 512, "epochs": 1},
        {"flavor": FLAVOR, "plan": "num_stages=2,num_micro_batches=16", "lora": 16, "quantize": 4},
        {"flavor": FLAVOR, "model": "phi-3-mini-4k-instruct", "lora": 8, "lora_targets": "qkv_proj,down_proj"},
        {"accelerator": "h100-sxm-80gb", "devices": 16, "stack": "torchtune", "precision": "bf16", "steps": 20},
        {"failures": True, "device_mtbf": "2000h", "optimizer": "adamw-8bit"},
        {**TINY, "flavor": "Small.64GB", "space": "full"},
    ],
)
def test_python_and_the_command_answer_alike(options: dict[str, Any]) -> None:
    """The document of an answer is what the command prints, option by option of the same name."""
    status, out, _ = printed(**options)
    assert status == 0
    assert without_seconds(estimate_document(estimate(**options))) == without_seconds(json.loads(out))


def test_every_flavor_alike() -> None:
    """So it is over all flavors, with the one that is chosen."""
    options: dict[str, Any] = {"objective": "cost", "deadline": "20m", "space": "moai"}
    found = estimate(flavor="all", **options)
    document = flavors_document(found.estimates, found.chosen)
    _, out, _ = printed(flavor="all", **options)
    assert without_seconds(document) == without_seconds(json.loads(out))


def test_every_option_of_the_command_is_one_of_the_call() -> None:
    """Names and defaults are the command's, but for those of its output; what a type checker sees has them all."""
    command = typer.main.get_command(estimate_app)
    options = {str(parameter.name): parameter.default for parameter in command.params} | {"catalog": ()}
    parameters = inspect.signature(estimate).parameters
    assert parameters.keys() == options.keys() - OF_OUTPUT
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        name: default for name, default in options.items() if name not in OF_OUTPUT
    }
    assert Options.__annotations__.keys() == parameters.keys() - {"model", "flavor"}
    shared = inspect.signature(subject).parameters
    assert SubjectOptions.__annotations__.keys() == shared.keys() - {"model", "flavor"}
    assert all(shared[name].default == parameters[name].default for name in SubjectOptions.__annotations__)


@pytest.mark.parametrize(
    "options",
    [
        {"flavor": "5xLarge"},
        {"flavor": "all", "plan": "num_stages=7"},
        {"flavor": FLAVOR, "plan": "num_stages=3"},
        {"flavor": FLAVOR, "devices": 8},
        {"accelerator": "mi300x"},
        {"model": "nothing"},
        {"space": "all"},
        {"objective": "speed"},
        {"deadline": "soon"},
        {"budget": -1.0},
        {"batch": 0},
        {"steps": 3, "rows": 300},
        {"lengths": "missing.csv", "rows": 300},
        {"device_mtbf": "2h"},
        {"quantize": 4},
        {"stack": "none"},
        {"catalog": "missing.toml"},
        {"why": "num_stages=2", "plan": "num_stages=2"},
        {"why": "num_stages=2", "flavor": "all"},
    ],
)
def test_an_error_is_the_commands_line(options: dict[str, Any]) -> None:
    """What the command tells in one line, the call raises as a ValueError."""
    with pytest.raises(ValueError, match=r"\w") as told:
        estimate(**options)
    status, out, err = call(*(f"--{name.replace('_', '-')}={value}" for name, value in options.items()))
    assert (status, out, err) == (2, "", f"{told.value}\n")


@pytest.mark.parametrize(("name", "value"), [("seq_len", 2048.0), ("batch", "256"), ("steps", 1.5), ("lora", "16")])
def test_counts_are_whole_numbers(name: str, value: object) -> None:
    """A count that is none is refused in one line, where the command's parser would."""
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"{name.replace('_', '-')}: .* is not a whole number; give one"):
        estimate(flavor=FLAVOR, **options)


def test_what_is_loaded_may_be_given() -> None:
    """A shape, a stack, a plan, a flavor and a catalog stand for their names."""
    catalog = load_catalog()
    plan = Plan(num_stages=2, num_micro_batches=16)
    named = estimate("mistralai/Mistral-7B-v0.1", FLAVOR, stack="moai-24.2", plan=str(plan))
    given = estimate(
        load_shape("mistralai/Mistral-7B-v0.1"),
        catalog.flavor(FLAVOR),
        stack=load_stack("moai-24.2"),
        plan=plan,
        catalog=catalog,
    )
    assert given.plans == named.plans


def test_hardware_of_ones_own(tmp_path: Path) -> None:
    """One catalog file, or several, add hardware."""
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[flavor]]\nid = "pair"\nnode = "h100-x8"\nnum_devices = 2\nnum_nodes = 1\n'
        'sources = [{ url = "https://example.org", checked = 2026-01-01 }]\n',
        encoding="utf-8",
    )
    options: dict[str, Any] = TINY
    assert estimate(flavor="pair", catalog=path, **options).flavor.num_devices == 2
    assert estimate(flavor="pair", catalog=[str(path)], **options).flavor.num_devices == 2


def test_why_a_plan_is_not_the_best() -> None:
    """Asked why, an answer holds the plan and how many are faster; a plan that cannot run has a reason."""
    found = estimate(flavor=FLAVOR, why="num_stages=2,num_micro_batches=16,recomputation=full")
    assert found.asked is not None
    assert found.best is not None
    assert found.num_faster == sum(p.possible and p.step_s.value < found.asked.step_s.value for p in found.plans) > 0
    assert str(found.asked.plan) in repr(found)
    illegal = estimate(flavor=FLAVOR, why="num_stages=3").asked
    assert illegal is not None
    assert illegal.reason.startswith("num_stages * tp * cp = 3")


def test_a_limit_that_the_best_plan_misses() -> None:
    """An answer says which limit its best plan misses, and by how much."""
    assert estimate(flavor=FLAVOR, deadline="24h", budget=1000).missed == ""
    missed = estimate(flavor=FLAVOR, deadline="30m").missed
    assert missed.startswith("takes 5")
    assert missed.endswith("min more than the deadline")
    assert missed in repr(estimate(flavor=FLAVOR, deadline="30m"))


def test_nothing_fits() -> None:
    """Where no plan fits there is no best one, and the nearest says what it lacks."""
    found = estimate(flavor="Small.64GB")
    assert found.best is None
    assert found.nearest_miss is not None
    assert found.nearest_miss.excess_bytes > 0
    assert "not possible: needs " in repr(found)


def test_one_flavor_or_several() -> None:
    """A name gives one answer; "all" or a list, even of one, an answer for each."""
    assert isinstance(estimate(flavor="4xlarge"), Estimate)
    two = estimate(flavor=["8xlarge", "4xlarge"])
    assert isinstance(two, Estimates)
    assert [one.flavor.id for one in two] == ["8xLarge.4096GB", FLAVOR]
    assert len(estimate(flavor=(FLAVOR,))) == 1
    assert len(estimate(flavor="All", space="moai")) > 15
    with pytest.raises(ValueError, match="flavor: none is given; name at least one, or 'all'"):
        estimate(flavor=[])


def test_the_current_flavor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a flavor the current one answers; a choice that cannot be read is a warning."""
    monkeypatch.setenv("ACCELERATOR_FLAVOR", "mi300x8")
    assert estimate().flavor.id == "mi300x8"
    monkeypatch.delenv("ACCELERATOR_FLAVOR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "foretrain").mkdir()
    (tmp_path / "foretrain" / "selection.json").write_text("?")
    with pytest.warns(UserWarning, match=r"switch-model writes it anew; 4xLarge\.2048GB is used"):
        assert estimate().flavor.id == FLAVOR


def test_search_looks_through_every_plan() -> None:
    """By itself it searches the full space, and what it finds is no slower than the platform's."""
    options: dict[str, Any] = {**TINY, "flavor": ["Small.64GB", "Medium.128GB"]}
    found, platform = search(**options), estimate(**options)
    assert {one.space for one in found} == {"full"}
    for full, own in zip(found, platform, strict=True):
        assert full.num_candidates > own.num_candidates
        assert full.fastest is not None
        assert own.fastest is not None
        assert full.fastest.step_s.value <= own.fastest.step_s.value * (1 + 1e-12)


def test_search_keeps_the_limits() -> None:
    """The one that is chosen keeps deadline and budget, and no other that does is cheaper."""
    found = search(space="moai", objective="cost", deadline="40m", budget=100)
    assert found.best is not None
    assert found.best.usd is not None
    kept = [e.best for e in found if e.best and e.best.usd and e.best.wall_s.value <= 2400 and e.best.usd.value <= 100]
    assert found.best.usd.value == min(plan.usd.value for plan in kept if plan.usd and not plan.is_risky)
    assert len(search(accelerator="mi300x", devices=8, space="moai")) == 1
    with pytest.raises(ValueError, match="unknown space 'all'"):
        search(space="all")
