from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from estimator.calibrate import residual_study as studies
from estimator.calibrate.assess import Assessed, assess, to_frame
from estimator.calibrate.hold_out import hold_out_document
from estimator.calibrate.residual_study import LEVELS, Study, coverages, gains, prior_fit, study, trends, worst
from estimator.predict.interval import Range
from estimator.report.page_runs import write_report
from estimator.stack.stack import load_stack
from tests.support.measured import table_runs
from tests.support.paths import TABLES

TABLE = TABLES / "vtrain_a100_single_node.csv"
STACK = load_stack("megatron-deepspeed")
CASES = table_runs(TABLE.stem)[::40]
DRAW = np.random.default_rng(0)


def rows(factor_of: dict[str, float] | None = None, noise: float = 0.02) -> list[Assessed]:
    """Return runs whose predictions are off by noise, and by a power of a run's features."""
    found = []
    for row in assess(CASES, [STACK]).rows:
        features = to_frame([row]).iloc[0]
        log = noise * DRAW.standard_normal() + sum(
            slope * np.log2(features[studies.TREND_FEATURES[name][0]]) for name, slope in (factor_of or {}).items()
        )
        value = (row.run.step_s or 1.0) * float(np.exp(log))
        found.append(replace(row, step_s=Range(value, value / 1.05, value * 1.05)))
    return found


def test_a_trend_is_found_and_noise_is_none() -> None:
    """Errors that grow with the tensor-parallel degree are told so, with their slope; noise alone has no trend."""
    found = trends(to_frame(rows({"tensor-parallel degree": 0.05})))
    assert found[0].feature == "tensor-parallel degree"
    assert found[0].slope == pytest.approx(0.05, abs=0.02)
    assert trends(to_frame(rows()[: studies.FEWEST - 1])) == []
    assert len(trends(to_frame(rows()))) <= 1


def test_the_worst_come_first_and_name_what_would_explain_them() -> None:
    """Misses are sorted by size; each names a part of the step, and the nearest run on the device."""
    found = worst(to_frame(rows(noise=0.1)))
    sizes = np.abs(np.log1p(found["step_error"])).tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert len(found) == studies.NUM_WORST
    assert found["explained_by"].str.contains("would have to be .* the nearest run, ").all()


def test_coverage_of_normal_errors_is_as_stated() -> None:
    """Of errors that are as wide as the intervals say, each level holds its part."""
    degrees, log_sd = 10**6, 0.05
    row, many = assess(CASES[:1], [STACK]).rows[0], []
    for error in log_sd * DRAW.standard_normal(4000):
        value = (row.run.step_s or 1.0) * float(np.exp(error))
        ratio = float(np.exp(1.6448536 * log_sd))
        many.append(replace(row, step_s=Range(value, value / ratio, value * ratio)))
    assert coverages(to_frame(many), degrees) == pytest.approx(LEVELS, abs=0.03)
    assert coverages(to_frame([]), degrees) == []


def test_before_the_fit_the_priors_stand() -> None:
    """The fit to nothing has every parameter at its prior's median, as uncertain as that."""
    fit = prior_fit(STACK)
    assert np.exp(fit.log_values) == pytest.approx([prior.median for prior in STACK.priors.values()])
    assert np.diag(fit.covariance) ** 0.5 == pytest.approx([prior.log_sd for prior in STACK.priors.values()])


def test_a_measurement_narrows_and_the_best_comes_first() -> None:
    """No measurement widens the intervals; they are sorted by what they leave."""
    found = gains(STACK, CASES)
    left = [gain.after for gain in found]
    assert left == sorted(left)
    assert all(0 <= gain.after <= gain.before for gain in found)


@pytest.fixture(scope="module")
def found() -> Study:
    """Return a study of some runs, one way of holding out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "splits_of", lambda *_: ("random half",))
        patch.setattr(studies, "hold_out", lambda stack, runs, _: list(assess(runs, [stack]).rows))
        return study(STACK, CASES)


def test_a_report_is_the_same_bytes_and_whole(found: Study, tmp_path: Path) -> None:
    """Written twice, a report is the same bytes; its page needs no other file; every picture of the text is there."""
    first = write_report(found, tmp_path / "a")
    second = write_report(found, tmp_path / "b")
    for name in sorted(path.name for path in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (
        [path.name for path in first]
        == [path.name for path in second]
        == [
            "megatron-deepspeed.md",
            "megatron-deepspeed.html",
        ]
    )
    text, page = (path.read_text(encoding="utf-8") for path in first)
    for part in (
        "How wrong it is",
        "Residuals",
        "What was fitted",
        "What the errors follow",
        "Where the time goes",
        "The worst cases",
        "What physics they point to",
        "What the intervals are worth",
        "What to measure next",
    ):
        assert f"## {part}\n" in text
        assert f"<h2>{part}</h2>" in page
    pictures = [line.partition("](")[2].removesuffix(")") for line in text.splitlines() if line.startswith("![")]
    assert pictures
    assert all((tmp_path / "a" / picture).is_file() for picture in pictures)
    assert page.count("<svg") == len(pictures)
    assert "src=" not in page
    assert text.isascii()


def test_hold_outs_made_before_are_taken(found: Study) -> None:
    """From what `--hold-out --rows` wrote, the study has its predictions; those of other runs are refused."""
    document = hold_out_document({STACK.name: {"source": list(rows(noise=0.1))}})["stacks"][STACK.name]
    again = study(STACK, CASES, document)
    assert list(again.held_out) == ["source"]
    held_out = again.held_out["source"]
    assert held_out["predicted_step_s"].tolist() == [row["predicted_step_s"][0] for row in document["source"]["rows"]]
    assert held_out["run"].tolist() == [row["name"] for row in document["source"]["rows"]]
    parts = held_out.filter(like="part_").sum(axis=1)
    assert parts.to_numpy() == pytest.approx(held_out["predicted_step_s"].to_numpy())
    assert list(held_out.columns) == list(again.after.columns)
    assert again.after.equals(found.after)
    with pytest.raises(ValueError, match=r"^report: the hold-outs have a run '.*' that is not given; make them anew$"):
        study(STACK, CASES[1:], document)


def test_what_was_not_held_out_is_not_known() -> None:
    """A measure that the hold-outs have is taken from them; of one that they lack, the fit's own is no stand-in."""
    (row, *_) = assess(CASES, [STACK]).rows
    run = replace(row.run, launch_windows_s=(1.0,), total_bytes=1e9)
    logged = replace(row, run=run, launch_s=Range(2.0, 1.0, 3.0), total_bytes=Range(2e9, 1e9, 3e9))
    (known,) = hold_out_document({STACK.name: {"each run": [logged]}})["stacks"][STACK.name]["each run"]["rows"]
    after = to_frame([replace(logged, launch_s=Range(1.0, 1.0, 1.0), total_bytes=Range(1e9, 1e9, 1e9))])
    (told,) = studies.held_out_before([known], after).to_dict("records")
    assert (told["launch_error"], told["total_memory_error"]) == (1.0, 1.0)
    del known["predicted_launch_s"]
    (told,) = studies.held_out_before([known], after).to_dict("records")
    assert np.isnan(told["launch_error"])
    assert told["total_memory_error"] == 1.0


def test_a_report_of_no_runs_is_refused() -> None:
    """A stack without a run among those given has nothing to report."""
    other = load_stack("torchtune")
    with pytest.raises(ValueError, match=r"^report: no run of trainer 'torchtune'; give the tables or logs"):
        study(other, CASES)


def test_a_folder_that_cannot_be_written(found: Study, tmp_path: Path) -> None:
    """A file in the way of the folder is told."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^report '.*file': cannot be written; check the folder$"):
        write_report(found, tmp_path / "file")
