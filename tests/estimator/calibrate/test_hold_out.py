import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from estimator.calibrate.assess import assess, to_frame
from estimator.calibrate.hold_out import (
    EACH,
    SPLITS,
    hold_out,
    hold_out_document,
    hold_outs,
    ranking,
    splits_of,
    without_rows,
)
from estimator.stack.stack import load_premises, load_stack
from tests.support.measured import moai_logs, table_runs

NAME = "megatron-deepspeed"
PREMISES = load_premises(NAME)
CASES = table_runs("vtrain_a100_single_node")[::30]


@pytest.mark.parametrize("split", SPLITS)
def test_parts_do_not_overlap(split: str) -> None:
    """No run is in two parts; but for the most nodes, each is in one."""
    parts = np.concatenate(SPLITS[split](CASES))
    assert len(set(parts.tolist())) == len(parts)
    assert split == "most nodes" or len(parts) == len(CASES)


def test_a_part_is_predicted_without_it() -> None:
    """However slow the held-out runs were measured to be, they are predicted the same."""
    half = SPLITS["random half"](CASES)[0]
    slow = [replace(c, step_s=7 * (c.step_s or 0)) if i in half else c for i, c in enumerate(CASES)]
    first, second = (
        {row.run.name: row.step_s for row in hold_out(PREMISES, runs, "random half")} for runs in (CASES, slow)
    )
    names = [CASES[i].name for i in half]
    assert [first[name] for name in names] == [second[name] for name in names]
    assert first != second


@pytest.mark.slow
def test_all_at_once_are_each_alone() -> None:
    """Stacks held out by every split on all processors are predicted as one by one; stacks of no run are left out."""
    other = load_premises("torchtune")
    found = hold_outs({NAME: PREMISES, "torchtune": other}, CASES)
    assert list(found) == [NAME]
    assert tuple(found[NAME]) == splits_of(PREMISES, CASES)
    for split in ("random half", "model size"):
        assert found[NAME][split] == hold_out(PREMISES, CASES, split)


def test_ranking_counts_pairs() -> None:
    """Of runs that differ only in their plans, every clearly different pair is counted, as one by one."""
    rows = [row for row in assess(CASES, [load_stack(NAME)]).rows if row.run.step_s]
    count = right = 0
    for one, other in combinations(rows, 2):
        a, b = one.run, other.run
        same = (a.shape, a.seq_len, a.workload.global_batch, a.machine) == (
            b.shape, b.seq_len, b.workload.global_batch, b.machine,
        )  # fmt: skip
        ratio = (a.step_s or 0) / (b.step_s or 1)
        if same and a.plan != b.plan and not 1 / 1.05 <= ratio <= 1.05:
            count += 1
            right += (ratio > 1) == (one.step_s.value > other.step_s.value)
    found = ranking(to_frame(rows))
    assert found.num_pairs == count
    assert found.right == pytest.approx(right / count if count else 1.0)


def test_the_document_holds_rows_and_summaries() -> None:
    """Of each split how wrong it is, whole and by group, and what was predicted; the rows can be left out."""
    rows = list(assess(CASES, [load_stack(NAME)]).rows)
    document = hold_out_document({NAME: {"random half": rows, "source": []}})
    (split,) = document["stacks"][NAME].values()
    assert len(split["rows"]) == len(rows) == split["step"]["num_runs"]
    errors = np.abs([row.error("step") or 0 for row in rows])
    assert split["step"]["median"] == pytest.approx(np.median(errors), abs=1e-4)
    assert sum(group["step"]["num_runs"] for group in split["by_model"].values()) == len(rows)
    first = split["rows"][0]
    assert (first["tp"], first["step_s"]) == (rows[0].run.plan.tp, rows[0].run.step_s)
    assert first["flop_per_s_per_device"] < rows[0].run.machine.accelerator.bf16_flop_per_s
    short = without_rows(document)
    assert short == {**document, "stacks": {NAME: {"random half": {k: v for k, v in split.items() if k != "rows"}}}}
    assert len(json.dumps(short)) < len(json.dumps(document)) / 2


def test_of_few_runs_each_is_held_out() -> None:
    """The five runs of the MoAI platform are held out one by one, by fits to the other four: most lie inside."""
    premises = load_premises("moai-24.2")
    runs = moai_logs().runs
    assert splits_of(premises, runs) == (EACH,)
    rows = hold_out(premises, runs, EACH)
    assert [row.run.name for row in rows] == [run.name for run in runs]
    errors = np.abs([row.error("step") or 0 for row in rows])
    assert np.median(errors) < 0.138 * 1.1  # of the five, by a fitter for their kind alone, at most a tenth worse
    inside = [row.step_s.low <= (row.run.step_s or 0) <= row.step_s.high for row in rows]
    assert sum(inside) >= 4
    for measure, count in (("launch_s", 4), ("total_bytes", 2)):
        known = [(m, p) for m, p in (row.compared[measure] for row in rows) if m is not None and p is not None]
        assert len(known) == count
        assert all(predicted.low <= measured <= predicted.high for measured, predicted in known), measure
    slow = [replace(run, step_s=3 * (run.step_s or 0)) if run is runs[0] else run for run in runs]
    assert hold_out(premises, slow, EACH)[0].step_s == rows[0].step_s


def test_ways_to_hold_out() -> None:
    """Many runs are held out in four ways, those of any software in two."""
    assert splits_of(PREMISES, CASES) == ("random half", "source", "model size", "most nodes")
    assert splits_of(load_premises("generic"), CASES) == ("random half", "source")
