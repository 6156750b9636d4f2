from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.calibrate.assess import assess
from estimator.calibrate.fit_stack import fit_stacks
from estimator.calibrate.reach import further_log_sd, groups_of
from estimator.calibrate.unseen import Errors
from estimator.runs.read import read_runs
from estimator.stack.fit import interval_ratio
from estimator.stack.stack import load_premises, load_stack
from hardware.catalog import load_catalog
from tests.support.paths import TABLES

PREMISES = load_premises("nanotron")
RUNS = [run for run in read_runs([TABLES / "ultrascale_h100.csv"], load_catalog()).runs if run.trainer == "nanotron"]
FEW = RUNS[::12]


def test_groups_are_left_out_whole() -> None:
    """Runs are predicted from those of fewer nodes, of other sizes, of other sources; all of a kind are left out."""
    runs = [replace(run, source=f"lab {i % 4}") for i, run in enumerate(RUNS)]
    rows = np.arange(10, len(runs))
    groups = groups_of(runs, rows)
    assert [group.novelty for group in groups] == ["nodes"] * 2 + ["size"] * 3 + ["source"] * 3
    for group in groups:
        assert sorted([*group.rows, *group.out]) == list(rows)
        left, out = ([runs[i] for i in places] for places in (group.rows, group.out))
        match group.novelty:
            case "nodes":
                most = max(run.machine.num_nodes for run in left)
                assert group.distance == pytest.approx(np.log2([run.machine.num_nodes / most for run in out]))
            case "size":
                sizes = {run.shape.hidden_size for run in left}
                assert not sizes & {run.shape.hidden_size for run in out}
            case "source":
                assert not {run.source for run in left} & {run.source for run in out}
        assert (group.distance > 0).all()


def test_runs_of_one_kind_have_no_groups() -> None:
    """Where all runs have as many nodes, one size and one source, none are left out, and what is assumed stands."""
    alike = [run for run in RUNS if (run.machine.num_nodes, run.shape.hidden_size) == (4, 2048)]
    assert groups_of(alike, np.arange(len(alike))) == []
    assert further_log_sd([], 0.07, 1.0, 4) == 0.07


@given(seed=st.integers(0, 10**6), spread=st.floats(0.02, 0.5), inner=st.floats(0.0, 0.2))
def test_further_intervals_hold_nine_in_ten(seed: int, spread: float, inner: float) -> None:
    """Of errors whose variance grows with distance the spread at 1 is found; intervals then hold 90 % at any."""
    random = np.random.default_rng(seed)
    distance = random.choice([0.25, 1.0, 4.0], size=4000)
    values = np.sqrt(inner**2 + spread**2 * distance) * random.normal(size=4000)
    known, told = np.full(2000, inner), [(0, 2000)] * 50
    groups = [(Errors(values[a:b], known, *np.zeros((2, 2000))), distance[a:b]) for a, b in told]
    found = further_log_sd(groups, 0.05, 1.0, 10**6)
    log_sd = np.sqrt(inner**2 + found**2 * distance)[2000:]
    held = np.abs(values[2000:]) < np.log(interval_ratio(log_sd, 10**6))
    assert 0.84 < held.mean() < 0.96


def test_each_group_counts_as_much() -> None:
    """A thousand runs of one source outvote no ten of another; one group has the say of what is assumed."""
    near, far = (Errors(np.full(n, size), *np.zeros((3, n))) for n, size in ((1000, 0.0), (10, 1.0)))
    both = [(near, np.ones(1000)), (far, np.ones(10))]
    t = np.log(interval_ratio(1.0, 4))
    assert further_log_sd(both, 0.0, 1.0, 4) == pytest.approx(np.sqrt(2 / 3) / t)
    assert further_log_sd(both[1:], 0.3, 1.0, 4) == pytest.approx(np.sqrt((t**-2 + 0.3**2) / 2))


def test_what_the_spreads_explain_is_not_told_twice() -> None:
    """Errors within the intervals as they are ask for no further spread."""
    one = np.ones(100)
    inside = Errors(np.linspace(-1, 1, 100), one, one, 0 * one)
    assert further_log_sd([(inside, one)], 0.0, 1.0, 4) == 0
    assert further_log_sd([(inside, one)], 0.0, 0.1, 4) == 0


def test_intervals_grow_beyond_the_runs() -> None:
    """More nodes than measured, another size and an unknown source each widen both intervals; fewer nodes do not."""
    (stack,) = fit_stacks(PREMISES, FEW, [np.arange(len(FEW))], 2)
    reach = stack.fit.reach
    assert reach is not None
    assert reach.most_nodes == 32
    assert set(reach.hidden_sizes) == {run.shape.hidden_size for run in FEW}
    narrow = stack.model_copy(update={"fit": stack.fit.model_copy(update={"reach": None})})
    run = next(run for run in FEW if run.machine.num_nodes == 32 and run.step_s)

    def widths(nodes: int, source: str = run.source) -> list[float]:
        machine = run.machine._replace(num_nodes=nodes, num_devices=8 * nodes)
        moved = replace(run, machine=machine, source=source)
        found = [assess([moved], [one]).rows[0] for one in (stack, narrow)]
        return [np.log(a.high / a.value) / np.log(b.high / b.value) for a, b in (
            (found[0].step_s, found[1].step_s), (found[0].reserved_bytes, found[1].reserved_bytes)
        )]  # fmt: skip

    assert widths(32) == pytest.approx([1.0, 1.0])
    assert all(1 < near < far for near, far in zip(widths(64), widths(256), strict=True))
    assert widths(32, "mine")[0] > 1


def test_every_fit_says_how_far_it_reaches() -> None:
    """The stacks that come with the package know the nodes and sizes of their runs."""
    reach = load_stack("nanotron").fit.reach
    assert reach is not None
    assert reach.beyond(64, 4096, knows_source=True) == {"nodes": 1.0, "size": 0.0, "source": 0.0}
