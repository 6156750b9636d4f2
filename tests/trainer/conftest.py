"""A cache of the embedded dataset and its tokenizer, made once for all tests, by whichever worker comes first."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def embedded_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder that all tests of a run share, also over the processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "embedded-cache"
