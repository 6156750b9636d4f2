import json
import os
import sys
from io import StringIO
from pathlib import Path

import pytest

from estimator.cli import calibrate as command
from estimator.stack.stack import fit_path, load_stack, stack_path
from tests.support.commands import calibrate as call
from tests.support.paths import GOLDEN, MEASURED, TABLES, TIMINGS

OPS = os.path.relpath(TIMINGS / "op_microbench.csv")
LINKS = os.path.relpath(TIMINGS / "collective_microbench.csv")
MOAI = [os.path.relpath(path) for path in sorted((MEASURED / "moai").glob("*.log"))]
STEPS = os.path.relpath(GOLDEN / "logs" / "steps.jsonl")
FEW = 30


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of the first of a node's runs."""
    lines = (TABLES / "vtrain_a100_single_node.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    path = tmp_path_factory.mktemp("tables") / "few.csv"
    path.write_text("".join(lines[: FEW + 1]), encoding="utf-8")
    return path


def test_check_predicts_without_fitting(table: Path) -> None:
    """`--check` prints a line per run by its trainer's stack, and the summaries."""
    status, out, err = call(str(table), "--check")
    assert (status, err) == (0, "")
    assert f"{FEW} runs predicted, 0 skipped" in out
    assert "in sample" in out


def test_json_is_one_object(table: Path) -> None:
    """`--json` prints one object and nothing else, the stack as named."""
    status, out, _ = call(str(table), "--check", "--stack", "megatron", "--json")
    document = json.loads(out)
    assert (status, document["schema"], len(document["rows"])) == (0, "calibration/1", FEW)
    assert {row["stack"] for row in document["rows"]} == {"megatron"}
    assert not any(row["in_sample"] for row in document["rows"])


def test_a_fit_writes_a_stack(table: Path, tmp_path: Path) -> None:
    """Fitted with --write to a file of one's own, the stack there has these runs, and checks them as in sample."""
    mine = tmp_path / "mine.toml"
    built_in = stack_path("megatron-deepspeed")
    mine.write_bytes(built_in.read_bytes())
    status, out, _ = call(str(table), "--stack", str(mine), "--write")
    assert status == 0
    assert "matmul_efficiency" in out
    assert out.endswith(f"written: {tmp_path / 'mine.fit.json'}\n")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.toml", "mine.fit.json"}
    (fitted,) = load_stack(str(mine)).tables
    assert (fitted.name, fitted.rows) == ("few.csv", FEW)


def test_a_fit_is_not_replaced_unasked(table: Path, tmp_path: Path) -> None:
    """A fit that is there is refused before anything is fitted, and kept beside the new one with --replace."""
    mine, fit = tmp_path / "mine.toml", tmp_path / "mine.fit.json"
    mine.write_bytes(stack_path("megatron-deepspeed").read_bytes())
    fit.write_text("old", encoding="utf-8")
    status, out, err = call(str(table), "--stack", str(mine), "--write")
    assert (status, out) == (2, "")
    assert err == f"write: {fit} is there already; add --replace (it is kept as mine.fit.json.bak)\n"
    assert call(str(table), "--stack", str(mine), "--write", "--replace")[0] == 0
    assert (tmp_path / "mine.fit.json.bak").read_text(encoding="utf-8") == "old"
    assert load_stack(str(mine)).tables


def test_a_stack_of_the_package_stays(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted by its name, a stack of the package stays, and one of one's own is made in the working folder."""
    before = fit_path("megatron-deepspeed").read_bytes()
    monkeypatch.chdir(tmp_path)
    status, out, _ = call(str(table), "--stack", "megatron-deepspeed", "--write")
    assert status == 0
    assert out.endswith("written: megatron-deepspeed-own.toml\nwritten: megatron-deepspeed-own.fit.json\n")
    assert fit_path("megatron-deepspeed").read_bytes() == before
    (fitted,) = load_stack("megatron-deepspeed-own.toml").tables
    assert (fitted.name, fitted.rows) == ("few.csv", FEW)


@pytest.mark.parametrize(("answer", "is_replaced"), [("y\n", True), ("Yes\n", True), ("n\n", False), ("", False)])
def test_on_a_terminal_it_is_asked(
    answer: str, is_replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal the user says whether what is there is replaced; where there is nothing, nobody is asked."""

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert not command._may_replace("mine.toml")  # noqa: SLF001 - a fit takes long
    assert capsys.readouterr().err == ""
    Path("mine.fit.json").touch()
    assert command._may_replace("mine.toml") == is_replaced  # noqa: SLF001
    assert capsys.readouterr().err == "mine.fit.json is there; replace it, and keep it as mine.fit.json.bak? [y/N] "


def test_a_log_is_checked_as_a_run() -> None:
    """A step log is predicted by its trainer's stack; what it says of its steps stands above."""
    status, out, err = call(STEPS, "--check", "--stack", "reference")
    assert (status, err) == (0, "")
    assert "32% by 34%" in out
    assert "steps.jsonl: seconds from the end of a step to the end of the next" in out
    assert "1 runs predicted, 0 skipped" in out


def test_a_log_in_json() -> None:
    """`--json` has a log's pace, its two paces, what its times include, and its refused lines."""
    status, out, _ = call(STEPS, STEPS, "--check", "--stack", "reference", "--json")
    document = json.loads(out)
    (log,) = document["logs"]
    assert (status, log["format"], log["num_steps"], log["num_outliers"]) == (0, "steps.jsonl", 37, 1)
    assert log["modes"]["slow_ratio"] == pytest.approx(1.35, rel=0.02)
    assert log["times_include"]["synchronized"]
    assert document["skipped"] == [{"name": STEPS, "why": "log: the same as one before"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not what --hold-out --rows writes; make it anew, or leave it out"),
        ("[]", "is not what --hold-out --rows writes; make it anew, or leave it out"),
        (
            '{"schema": "hold-out/1", "stacks": []}',
            "is not what --hold-out --rows writes; make it anew, or leave it out",
        ),
        ('{"schema": "hold-out/2"}', "its schema is 'hold-out/2', not 'hold-out/1'; make it anew"),
        (
            '{"schema": "hold-out/1", "stacks": {"megatron-deepspeed": {"source": {}}}}',
            "has no rows; make it anew with --hold-out --rows",
        ),
        (None, "is not what --hold-out --rows writes; make it anew, or leave it out"),
    ],
)
def test_hold_outs_that_are_none(table: Path, tmp_path: Path, text: str | None, message: str) -> None:
    """A file of hold-outs that is none ends in one line, and nothing is written."""
    rows, folder = tmp_path / "rows.json", tmp_path / "report"
    if text is not None:
        rows.write_text(text, encoding="utf-8")
    asked = ("--stack", "megatron-deepspeed", "--rows", str(rows), "--report", str(folder))
    status, out, err = call(str(table), *asked)
    assert (status, out) == (2, "")
    assert err == f"rows: {str(rows)!r}: {message}\n"
    assert not folder.exists()


@pytest.mark.slow
def test_hold_outs_are_written_and_read(table: Path, tmp_path: Path) -> None:
    """`--hold-out --rows` writes each run, `--json` prints how wrong they are, and `--report --rows` draws the same."""
    rows = tmp_path / "new" / "rows.json"
    status, out, err = call(str(table), "--stack", "megatron-deepspeed", "--hold-out", "--rows", str(rows), "--json")
    assert (status, err) == (0, "")
    printed, written = json.loads(out), json.loads(rows.read_text(encoding="utf-8"))
    halves = written["stacks"]["megatron-deepspeed"]["random half"]
    assert len(halves.pop("rows")) == FEW
    assert printed["stacks"]["megatron-deepspeed"]["random half"] == halves
    folder = tmp_path / "report"
    status, out, err = call(str(table), "--stack", "megatron-deepspeed", "--rows", str(rows), "--report", str(folder))
    assert (status, err) == (0, "")
    text = (folder / "megatron-deepspeed.md").read_text(encoding="utf-8")
    assert f"held out: random half | step | {FEW} | {halves['step']['median']:.1%} |" in text


@pytest.mark.slow
def test_a_folder_of_rows_that_is_none(table: Path, tmp_path: Path) -> None:
    """Rows that cannot be written end in one line."""
    (tmp_path / "file").touch()
    rows = tmp_path / "file" / "rows.json"
    status, out, err = call(str(table), "--stack", "megatron-deepspeed", "--hold-out", "--rows", str(rows))
    assert (status, out) == (2, "")
    assert err == f"rows: {str(rows)!r} cannot be written; check its folder\n"


def test_any_mix_of_files_is_read(table: Path) -> None:
    """A table and logs, in any order, are checked together; what each is, its content tells."""
    status, out, err = call(STEPS, str(table), *MOAI, "--check", "--stack", "reference", "--json")
    document = json.loads(out)
    assert (status, err, len(document["rows"]), len(document["logs"])) == (0, "", FEW + 6, 6)


def test_logs_of_the_platform_are_checked_as_any() -> None:
    """The five logs of the MoAI platform are predicted by its stack, from the run records beside them."""
    status, out, err = call(*MOAI, "--check", "--stack", "moai-24.2", "--json")
    document = json.loads(out)
    assert (status, err, len(document["rows"])) == (0, "", 5)
    seed = next(row for row in document["rows"] if "mistral_7b" in row["name"])
    assert seed["trainer"] == "moai"
    assert seed["predicted"]["step_s"]["low"] < seed["measured"]["step_s"] < seed["predicted"]["step_s"]["high"]
    assert len(document["logs"][0]["launch_windows_s"]) == 8


def test_a_fit_to_logs_of_the_platform() -> None:
    """The platform's stack is fitted to its logs like any other: families, seconds, launches, bytes, refused lines."""
    status, out, err = call(*MOAI, "--stack", "moai-24.2")
    assert (status, err) == (0, "")
    for words in ("matmul_efficiency", "factor of mistral", "refused: ", "launch", "total memory", "5 runs predicted"):
        assert words in out


def test_microbenchmarks_tell_priors() -> None:
    """Tables of microbenchmarks are known by their columns: errors by device and kind, priors beside the stacks'."""
    status, out, err = call(OPS, LINKS)
    assert (status, err) == (0, "")
    assert all(
        word in out for word in ("all-reduce >= 64 MiB", "shape alone", "implied", "nanotron-early", "skipped: row")
    )
    status, out, _ = call(OPS, LINKS, "--json")
    document = json.loads(out)
    assert (status, document["schema"]) == (0, "microbench/1")
    priors = {prior["parameter"]: prior for prior in document["priors"]}
    assert 0.7 < priors["matmul_efficiency"]["median"] < 1
    assert priors["matmul_efficiency"]["stacks"]["nanotron"].keys() == {"median", "log_sd"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (OPS, "--stack", "nanotron"),
            f"files: {OPS!r}, a table of microbenchmarks, is given beside --stack; leave one out",
        ),
        (
            (OPS, STEPS),
            f"files: {OPS!r}, a table of microbenchmarks, is given beside another file; leave one out",
        ),
        ((), "files: nothing is given; give tables of runs, or step logs"),
        (("x.csv", "--check", "--rows", "y"), "rows: are written by --hold-out and read by --report; give one of them"),
        (("none.log", "--check"), "log 'none.log': cannot be read; check the path"),
        ((STEPS,), "stack: a fit needs the stack that it is for; add --stack NAME, or --check to only predict"),
        ((STEPS, "--report", "x", "--json"), "report: --report is given beside --json; it writes files; leave one out"),
        ((STEPS, "--report", "x", "--check"), "check: --check and --report are given together; give one"),
        (
            (STEPS, "--report", "x", "--stack", "torchtune"),
            "report: no run of a trainer of torchtune; give the runs that a stack was fitted to",
        ),
        (("x.csv",), "stack: a fit needs the stack that it is for; add --stack NAME, or --check to only predict"),
        (("x.csv", "--check", "--in-place"), "in-place: says how --write writes; add --write"),
        (("x.csv", "--check", "--replace"), "replace: says how --write writes; add --write"),
        (("x.csv", "--check", "--write"), "check: --check and --write are given together; give one"),
        (("none.csv", "--check", "--stack", "mine"), "log 'none.csv': cannot be read; check the path"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    """What contradicts itself or cannot be read ends in one line and status 2, and nothing on standard output."""
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err == message + "\n"


def test_a_template_is_written_beside_a_log(tmp_path: Path) -> None:
    """`--template` prints where the record is, what the log told, and what is to be filled in; never over another."""
    log = tmp_path / "a.log"
    log.write_bytes((GOLDEN / "logs" / "megatron.log").read_bytes())
    status, out, err = call("--template", str(log))
    assert (status, err) == (0, "")
    written, told, *_ = out.splitlines()
    assert written == f"{log}.run.json"
    assert told.startswith("from the log: ")
    assert "num_devices" in told
    assert "to fill in: accelerator: the id of an accelerator in the catalog, such as 'h100-sxm-80gb'\n" in out
    status, out, err = call("--template", str(log))
    assert (status, out) == (2, "")
    assert err == f"template: '{log}.run.json' is there already, and is not replaced; move it away first\n"


@pytest.mark.parametrize(("beside", "what"), [("--check", "--check"), ("x.csv", "files"), ("--json", "--json")])
def test_a_template_is_asked_for_alone(beside: str, what: str) -> None:
    """Beside a template nothing else is done."""
    status, _, err = call("--template", "a.log", beside)
    assert status == 2
    assert err == f"template: --template is given beside {what}; it writes a run record; leave one out\n"
