"""How a rank's failure reads: one line, the rank of its cause, and a file with all the rest."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.api import _wrap_exception

from trainer.jobs.fault import MEMORY_MEND, Fault, Refusal, fault_of, first_line, refusing, report
from trainer.jobs.status import BAD_INPUT, FAILED
from trainer.parallel.optimizer import OptimizerConfig


def raised(error: BaseException) -> BaseException:
    """Return an error with a traceback."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_a_failure_is_one_line_and_a_file(tmp_path: Path) -> None:
    """The line has rank, kind and the first line of the text; the file it names has the traceback."""
    fault = fault_of(raised(RuntimeError("shapes differ\nat 0x1\x1b[2J")), 3, tmp_path)
    file = tmp_path / "errors" / "rank-3.txt"
    assert fault == Fault(f"rank 3 failed: RuntimeError: shapes differ; traceback in {file}", FAILED)
    assert "in raised" in file.read_text()
    assert "at 0x1" in file.read_text()


def test_a_checkpoints_failure_is_that_of_the_rank_it_came_from(tmp_path: Path) -> None:
    """All ranks raise what one of them met while it wrote; the line names that one, and what it met."""
    error = CheckpointException("save", {5: _wrap_exception(raised(OSError(28, "No space left on device")))})
    fault = fault_of(raised(error), 0, tmp_path)
    assert fault.line.startswith("rank 5 failed: OSError: [Errno 28] No space left on device; traceback in ")
    assert "rank-0.txt" in fault.line
    assert not fault.is_consequence


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1"),
        dist.DistBackendError("NCCL error"),
        dist.DistStoreError("timed out"),
    ],
)
def test_who_lost_another_is_not_the_cause(tmp_path: Path, error: Exception) -> None:
    """A rank that fails since another is gone says so."""
    fault = fault_of(raised(error), 1, tmp_path)
    assert fault.is_consequence
    assert fault.line.startswith("rank 1 lost its connection to another rank (")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_memory_that_ran_out_has_a_mend(tmp_path: Path, error: Exception) -> None:
    """A device or a process whose memory ran out is told what to change, in the same line."""
    line = fault_of(raised(error), 0, tmp_path).line
    assert MEMORY_MEND in line
    assert "\n" not in line


def test_bad_input_is_what_this_package_refuses() -> None:
    """A ValueError of this package's code becomes a refusal, its text kept; one of a library stays what it is."""
    with pytest.raises(Refusal, match=r"^lr: -1\.0 is not"), refusing():
        OptimizerConfig(lr=-1.0)
    with pytest.raises(ValueError, match=r"[Nn]ame") as caught, refusing():
        Path("x").with_name("")
    assert not isinstance(caught.value, Refusal)


def test_a_refusal_is_no_failure(tmp_path: Path) -> None:
    """A refusal has no rank and no traceback, and the status of bad input."""
    assert fault_of(Refusal("resume: no; give another"), 1, tmp_path) == Fault("resume: no; give another", BAD_INPUT)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_costs_no_line(tmp_path: Path) -> None:
    """Where the traceback cannot be written, the line says why instead."""
    (tmp_path / "errors").touch()
    line = fault_of(raised(KeyError("k")), 0, tmp_path).line
    assert line == "rank 0 failed: KeyError: 'k'; traceback in no file (File exists)"


def test_long_texts_are_cut() -> None:
    """A line stays one of a terminal, whatever a library says."""
    assert len(first_line(RuntimeError("x" * 10_000))) == 300
    assert first_line(RuntimeError("  \n")) == "no text"
    assert first_line(RuntimeError("a\x07b")) == "a\\x07b"


def test_without_a_launcher_of_ours_a_rank_tells_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The line is printed by the rank, unless a launcher of this package prints what the rank hands it."""
    report(Fault("rank 1 failed: it", FAILED))
    assert capsys.readouterr().err == "rank 1 failed: it\n"
    monkeypatch.setenv("FORETRAIN_LAUNCHER", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    report(Fault("rank 1 failed: it", FAILED))
    assert capsys.readouterr().err == ""
    assert "Reported: rank 1 failed: it" in (tmp_path / "error.json").read_text()
