import json
import re
from pathlib import Path

import pytest

from tests.support.commands import estimate as call

SEED = ("--flavor", "4xLarge.2048GB")


def answers(*options: str) -> dict[str, dict[str, object]]:
    """Return what the command prints, each answer by its question."""
    status, out, err = call(*options, "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "comparison/1"
    return {one["question"]: one["estimate"] for one in document["answers"]}


def alone(*options: str) -> dict[str, object]:
    """Return one answer, as the command prints it."""
    found: dict[str, object] = json.loads(call(*options, "--json")[1])
    return found


def without_time(answer: dict[str, object]) -> dict[str, object]:
    """Return an answer without how long its search took."""
    search = answer["search"]
    assert isinstance(search, dict)
    return answer | {"search": search | {"seconds": 0}}


@pytest.mark.parametrize(
    ("asked", "compared", "same_as"),
    [
        (SEED, "--lora 16", (*SEED, "--lora", "16")),
        (SEED, "--flavor mi300x8", ("--flavor", "mi300x8")),
        (SEED, "--plan tp=2 --space full", (*SEED, "--plan", "tp=2", "--space", "full")),
        (SEED, "--model 'meta-llama/Llama-3.1-8B'", (*SEED, "--model", "meta-llama/Llama-3.1-8B")),
        ((*SEED, "--rows", "512"), "--steps 10", (*SEED, "--steps", "10")),
        ((*SEED, "--steps", "10"), "--epochs 3", (*SEED, "--epochs", "3")),
        (SEED, "--accelerator mi300x --devices 8", ("--accelerator", "mi300x", "--devices", "8")),
        (("--accelerator", "mi300x", "--devices", "8"), "--devices 16", ("--accelerator", "mi300x", "--devices", "16")),
        (("--accelerator", "mi300x", "--devices", "8"), "--flavor mi300x8", ("--flavor", "mi300x8")),
    ],
)
def test_each_answer_is_that_of_its_question(asked: tuple[str, ...], compared: str, same_as: tuple[str, ...]) -> None:
    """An answer beside another is what its options give alone; those that exclude others replace them."""
    found = answers(*asked, "--compare", compared)
    assert list(found) == ["as asked", compared]
    assert without_time(found["as asked"]) == without_time(alone(*asked))
    assert without_time(found[compared]) == without_time(alone(*same_as))


def test_what_differs_is_read_at_once() -> None:
    """The terminal shows a line an answer, with its change against the first, and why there is none."""
    status, out, _ = call(*SEED, "--compare", "--steps 72", "--compare", "--flavor small")
    assert status == 0
    assert re.search(r"^--steps 72 .* -\d\d % ", out, re.MULTILINE)
    assert re.search(r"^no plan for --flavor small: the nearest", out, re.MULTILINE)


def test_status_says_that_none_fits() -> None:
    """Where no plan fits any of the questions, the status is 3."""
    status, _, err = call("--flavor", "small", "--compare", "--batch 128")
    assert (status, err) == (3, "no plan fits any of these questions\n")


def test_the_page_has_every_question(tmp_path: Path) -> None:
    """Names that users give are in the page as they are, and the fastest is named first."""
    page = tmp_path / "page.html"
    assert call(*SEED, "--compare", "--lora  16", "--html", str(page))[0] == 0
    told = page.read_text(encoding="utf-8")
    assert '<th scope="row">as asked</th>' in told
    assert '<tr class="best"><th scope="row">--lora 16</th>' in told
    assert "The least time takes <strong>--lora 16</strong>" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--compare", ""], "compare: '' has no options; give"),
        (["--compare", "--html x.html"], "compare: '--html x.html' gives --html, by which answers do not differ"),
        (["--compare", "--deadline 3h"], "compare: '--deadline 3h' gives --deadline, by which"),
        (["--compare", "--lora '1"], "compare: .* No closing quotation; quote as a shell does"),
        (["--compare", "--nope"], "compare: '--nope': No such option: --nope"),
        (["--compare", "--help"], "compare: '--help': No such option: --help"),
        (["--compare", "--flavor all"], "compare: '--flavor all' asks for several answers; repeat --compare"),
        (["--compare", "--flavor small,medium"], "compare: .* asks for several answers"),
        (["--compare", "--stack all"], "compare: '--stack all' asks for several answers"),
        (["--compare", "--lora -1"], "compare: '--lora -1': lora: rank -1 is not from 1"),
        (["--compare", "--lora 8", "--compare", " --lora  8"], "compare: '--lora 8' is given twice; leave one out"),
        (["--compare", "--lora 8", "--explain"], "compare: --compare is given beside --why, --explain"),
        (["--compare", "--lora 8", "--why", "tp=2"], "compare: --compare is given beside --why, --explain"),
        (
            ["--compare", "--lora 8", "--stack", "all"],
            "compare: .* is given beside several flavors or stacks; ask of one",
        ),
    ],
)
def test_bad_input_is_one_line(options: list[str], told: str) -> None:
    """It says what was given and the rule; nothing is printed or written."""
    status, out, err = call(*SEED, *options)
    assert (status, out) == (2, "")
    assert re.fullmatch(f"{told}.*\n", err)
