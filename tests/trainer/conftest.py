"""A cache of the embedded dataset, made once by whichever worker comes first; work; commands that begin no run."""

import os
from pathlib import Path
from typing import Any

import pytest

import trainer.cli
from tests.support.tiny import write_work


@pytest.fixture(scope="session")
def embedded_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder that all tests of a run share, also over the processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "embedded-cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkpoint, a tokenizer and rows; modules that need more add it."""
    folder = tmp_path_factory.mktemp("work")
    write_work(folder)
    return folder


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Any]:
    """Keep runs from beginning, and return what would have begun; the machine is not measured."""
    began: list[Any] = []

    def machine(world: Any, catalog: Any, flavor: str | None, _: Any) -> Any:
        return catalog, catalog.flavor(flavor) if flavor else catalog.flavor_of("mi250", world.size)

    def run(config: Any, *_: Any) -> int:
        began.append(config)
        return 0

    def launch(count: int, arguments: list[str], *, again: list[str], restarts: int) -> int:
        began.append((count, arguments))
        assert (again[-2:], restarts) == (["--resume", "auto"], 0)
        assert "--passed-over" not in again
        return 0

    monkeypatch.setattr(trainer.cli, "local_machine", machine)
    monkeypatch.setattr(trainer.cli, "run_rank", run)
    monkeypatch.setattr(trainer.cli, "launch", launch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return began
