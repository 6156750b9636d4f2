import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.search.planner import search
from estimator.stack.stack import load_stack
from estimator.work.shape import load_shape
from estimator.work.workload import Workload
from hardware.catalog import load_catalog
from hardware.toml_text import catalog_text
from trainer.jobs import cpu
from trainer.jobs.cpu import Rates, cpu_id, measure, measure_cpu, memory_bytes, num_cores

GIB = 2**30


@pytest.fixture(scope="module")
def two() -> Rates:
    """Return the rates of two processes with a thread each."""
    return measure(2, 1)


def test_measured_rates_are_those_of_a_computer(two: Rates) -> None:
    """Two processes multiply, copy and reduce at rates that a computer has: none is zero, none is beyond a server."""
    assert 1e8 < two.flop_per_s < 1e13
    assert 1e7 < two.bytes_per_s < 1e12
    assert 1e-7 < two.hop_s < 1
    assert 1e5 < two.link_bytes_per_s < 1e12


def test_one_process_has_no_link() -> None:
    """A process alone reduces with nobody."""
    alone = measure(1, 1)
    assert (alone.hop_s, alone.link_bytes_per_s) == (0.0, 0.0)
    assert alone.flop_per_s > 1e8


def test_a_measurement_leaves_the_threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring with other threads does not change those of the run, not even where it fails."""
    before = torch.get_num_threads()

    def fail(*_: object) -> Rates:
        raise OSError("no sockets")

    monkeypatch.setattr(cpu, "_measure_one", fail)
    with pytest.raises(OSError, match="no sockets"):
        measure(2, before + 1)
    assert torch.get_num_threads() == before


def test_a_process_that_fails_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process waits for one that has failed."""

    def fail_one(rank: int, size: int, store: object, barrier: threading.Barrier) -> Rates:
        del size, store
        if rank == 1:
            raise OSError("no sockets")
        barrier.wait()
        raise AssertionError

    monkeypatch.setattr(cpu, "_measure_one", fail_one)
    with pytest.raises((OSError, threading.BrokenBarrierError)):
        measure(2, 1)


@settings(max_examples=30)
@given(
    processes=st.integers(1, 64),
    rates=st.builds(Rates, st.floats(1e8, 1e13), st.floats(1e8, 1e12), st.floats(1e-6, 1e-1), st.floats(1e6, 1e11)),
)
def test_records_hold_what_was_measured_and_survive_a_file(
    tmp_path_factory: pytest.TempPathFactory, processes: int, rates: Rates
) -> None:
    """The records have the measured rates, keep a catalog's rules, and read from their text they are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "measure", lambda *_: rates)
        accelerator, node = measure_cpu(processes)
    assert accelerator.fp32_flop_per_s == accelerator.bf16_flop_per_s == pytest.approx(rates.flop_per_s, rel=1e-5)
    assert accelerator.hbm_bytes_per_s == pytest.approx(rates.bytes_per_s, rel=1e-5)
    assert accelerator.hbm_bytes * processes == pytest.approx(memory_bytes(), rel=1e-5)
    assert (accelerator.matmul_efficiency.value, accelerator.matmul_efficiency.evidence) == (1.0, "measured")
    assert [(link.span, link.evidence) for link in node.links] == ([(processes, "measured")] if processes > 1 else [])
    assert node.network.evidence == "assumed"
    file = tmp_path_factory.mktemp("catalog") / "machine.toml"
    file.write_text(catalog_text([accelerator, node]), encoding="utf-8")
    read = load_catalog([file])
    assert (read.accelerator(accelerator.id), read.node(node.id)) == (accelerator, node)


def test_processes_share_cores_and_never_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process gets an equal, whole part of the cores, and at least one."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(cpu, "num_cores", lambda: 8)
    monkeypatch.setattr(cpu, "measure", lambda *given: seen.append(given) or Rates(1e9, 1e9, 1e-5, 1e9))
    assert [measure_cpu(processes)[0].id for processes in (1, 3, 16)] == [
        "cpu-8-core-x1",
        "cpu-8-core-x3",
        "cpu-8-core-x16",
    ]
    assert seen == [(1, 8), (3, 2), (16, 1)]


def test_the_planner_plans_on_a_measured_machine(two: Rates, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its records added, a catalog has a flavor of this machine that the planner searches."""
    monkeypatch.setattr(cpu, "measure", lambda *_: two)
    catalog = load_catalog()
    for record in measure_cpu(2):
        catalog = catalog.adding(record)
    workload = Workload(load_shape("gpt2"), seq_len=256, global_batch=8, num_steps=10)
    found = search(workload, catalog.flavor_of(cpu_id(2), 2), load_stack("moai-24.2"), catalog, space="full")
    assert found.best is not None
    assert found.best.step_s.value > 0


def test_memory_is_the_containers_where_that_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's limit counts; none, or "max", leaves the machine's memory."""
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(cpu, "_CONTAINER_LIMIT", limit)
    whole = memory_bytes()
    for text, expected in (("max\n", whole), (f"{GIB // 2}\n", GIB // 2), (f"{10**18}\n", whole)):
        limit.write_text(text, encoding="ascii")
        assert memory_bytes() == expected


def test_the_processor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's name of the processor is in the record's, and one without a name is a CPU."""
    monkeypatch.setattr(cpu, "measure", lambda *_: Rates(1e9, 1e9, 1e-5, 1e9))
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "_PROCESSORS", info)
    assert measure_cpu(1)[0].name.startswith("CPU, 1 of 1 ")
    info.write_text("processor\t: 0\nmodel name\t: Fast 9000\n", encoding="ascii")
    assert measure_cpu(1)[0].name.startswith(f"Fast 9000, 1 of 1 equal processes on {num_cores()} cores")
