from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from estimator.calibrate.assess import assess, to_frame
from estimator.calibrate.hold_out import SPLITS, hold_out, hold_outs, holdout_document, peers, ranking
from estimator.runs.read import read_runs
from estimator.stack.stack import load_premises, load_stack
from hardware.catalog import load_catalog
from tests.support.paths import TABLES

NAME = "megatron-deepspeed"
PREMISES = load_premises(NAME)
CASES = read_runs([TABLES / "vtrain_a100_single_node.csv"], load_catalog()).runs[::40]


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


def test_all_at_once_are_each_alone() -> None:
    """Stacks held out by every split on all processors are predicted as one by one; stacks of no run are left out."""
    other = load_premises("torchtune")
    found = hold_outs({NAME: PREMISES, "torchtune": other}, CASES)
    assert list(found) == [NAME]
    assert list(found[NAME]) == list(SPLITS)
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


def test_the_document_holds_rows_and_peers() -> None:
    """Of each split what was predicted, how wrong, and beside it the peers' rows."""
    rows = list(assess(CASES, [load_stack(NAME)]).rows)
    document = holdout_document({NAME: {"random half": rows, "source": []}})
    (split,) = document["stacks"][NAME].values()
    assert len(split["rows"]) == len(rows) == split["step"]["num_runs"]
    (peer,) = document["peers"]
    assert (peer["rows"], peer["num_runs"]) == ("A100, single node", len(rows))
    mean = np.mean([abs(row.error("step") or 0) for row in rows])
    assert peer["mean_error"] == pytest.approx(mean)
    assert peers([]) == []
