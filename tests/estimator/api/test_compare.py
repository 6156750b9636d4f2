"""Two answers held against each other, from Python and as a command."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from estimator import Difference, compare, estimate
from estimator.report.json import estimate_document
from tests.support.commands import estimate as call

ASKED: dict[str, Any] = {"accelerator": "h100-sxm-80gb", "devices": 8, "batch": 64, "steps": 10}
WORDS = tuple(word for name, value in ASKED.items() for word in (f"--{name}", str(value)))


@pytest.fixture(scope="module")
def found() -> Difference:
    """Return the best plan's answer against that with adapters."""
    return compare(estimate(**ASKED), estimate(**ASKED, lora=8))


def test_terms_add_up_to_what_they_explain(found: Difference) -> None:
    """Changes by purpose sum to the change of the fullest device, and by phase to that of the step."""
    for terms, whole in ((found.memory_mib, "device_mib"), (found.step_s, "step_s")):
        assert sum(pair.change for pair in terms.values()) == pytest.approx(found.headline[whole].change)
        assert [abs(pair.change) for pair in terms.values()] == sorted(
            (abs(pair.change) for pair in terms.values()), reverse=True
        )


def test_what_was_asked_otherwise_is_told(found: Difference) -> None:
    """Of the question the recipe and what is trained, and nothing that is the same."""
    assert set(found.question) == {"workload.num_params", "workload.recipe", "workload.num_trained_params"}
    assert found.question["workload.recipe"] == ("", "LoRA of rank 8 on every matrix")
    assert "workload.recipe:  -> LoRA of rank 8 on every matrix" in repr(found)


def test_an_answer_against_itself_differs_in_nothing() -> None:
    """Nothing of question and plan, and no term changes."""
    answer = estimate(**ASKED)
    same = compare(answer, estimate_document(answer))
    assert not same.question
    assert not same.plan
    assert not any(pair.change for pair in (*same.headline.values(), *same.memory_mib.values(), *same.step_s.values()))


def test_the_other_way_round_changes_signs(found: Difference) -> None:
    """The second against the first has every change the other way."""
    back = compare(estimate(**ASKED, lora=8), estimate(**ASKED))
    assert {name: -pair.change for name, pair in back.step_s.items()} == {
        name: pair.change for name, pair in found.step_s.items()
    }


def test_a_frame_has_a_row_a_term(found: Difference) -> None:
    """Memory and step, with both numbers and their change."""
    frame = found.to_frame()
    assert len(frame) == len(found.memory_mib) + len(found.step_s)
    assert ((frame["second"] - frame["first"]) == frame["change"]).all()


def test_saved_answers_and_plans_in_any_mix(tmp_path: Path) -> None:
    """A file of --json, a plan and "best" stand on either side, in text and in JSON."""
    saved = tmp_path / "a.json"
    saved.write_text(call(*WORDS, "--json")[1], encoding="utf-8")
    status, out, err = call(*WORDS, "--diff", str(saved), "tp=8", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "difference/1"
    assert document == compare(estimate(**ASKED), estimate(**ASKED, plan="tp=8")).document()
    status, out, _ = call("--diff", str(saved), str(saved))
    assert status == 0
    assert "nothing of the question or the plan differs" in out
    assert call(*WORDS, "--diff", "best", "best")[0] == 0


def test_a_plan_that_does_not_fit_is_explained_too() -> None:
    """Its reason is told beside its terms."""
    plan = "num_stages=1,num_micro_batches=1,batch_per_device=64,tp=8,recomputation=none,zero_stage=0"
    status, out, _ = call(*WORDS, "--diff", "best", plan)
    assert status == 0
    assert "not possible: needs" in out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("best", "nothing.json"), "diff nothing.json: cannot be read; give a file of estimate --json, a plan, or "),
        (("bst", "tp=8"), "diff bst: cannot be read; give a file of estimate --json, a plan, or 'best'"),
        (("best", "tq=8"), "plan: unknown key 'tq'; use one of"),
        (("best", "tp=8", "--why", "tp=8"), "diff: --diff is given beside --why; it holds two answers of one flavor"),
        (("best", "tp=8", "--plan", "tp=4"), "diff: --diff is given beside --plan; "),
        (("best", "tp=8", "--explain"), "diff: --diff is given beside --explain; "),
    ],
)
def test_bad_sides_are_refused(words: tuple[str, ...], problem: str) -> None:
    """One line, status 2."""
    status, out, err = call(*WORDS, "--diff", *words)
    assert (status, out) == (2, "")
    assert err.startswith(problem)
    assert err.count("\n") == 1


def test_several_flavors_are_refused() -> None:
    """Two answers of one flavor are held against each other."""
    for flavor in ("all", "mi300x8,4xlarge"):
        status, _, err = call("--flavor", flavor, "--diff", "best", "tp=2")
        assert status == 2
        assert err.startswith("diff: --diff is given beside ")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "estimate/1"}', "[" * 100_000, '{"schema": "estimates/1"}']
)
def test_files_that_are_no_answer_are_refused(text: str, tmp_path: Path) -> None:
    """One line that names the file."""
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    status, _, err = call("--diff", str(path), str(path))
    assert status == 2
    assert err.startswith(f"diff {path}: is ")
    assert err.count("\n") == 1


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """It is told to be one."""
    os.mkfifo(tmp_path / "pipe.json")
    status, _, err = call("--diff", str(tmp_path / "pipe.json"), "best", *WORDS)
    assert status == 2
    assert "is a pipe, not a file" in err
