"""Hypothesis profiles: `ci` repeats exactly, `dev` explores, `thorough` digs; and the surroundings that tests see.

`ci` takes the same examples each time, so that more of them would only be more time: half of what `dev` takes anew.
"""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.util import find_spec

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("dev", deadline=None, max_examples=100)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores already; read when numpy and torch are imported
os.environ["COLUMNS"] = "132"  # parallel runs of pytest set 80, plain ones nothing

if find_spec("torch") is None:  # a base install: all is tested but what trains, or is counted by torch
    collect_ignore = ["parity", "trainer", "estimator/formulas/test_parity.py"]

_home = tempfile.mkdtemp(prefix="foretrain-tests-")  # what a developer chose, or trains, is none of the tests' business
atexit.register(shutil.rmtree, _home, ignore_errors=True)
for variable in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
    os.environ[variable] = os.path.join(_home, variable)  # noqa: PTH118 - a variable holds text
    os.mkdir(os.environ[variable], mode=0o700)  # noqa: PTH102
os.environ.pop("ACCELERATOR_FLAVOR", None)


def pytest_collection_finish() -> None:
    """Take what was imported out of every later garbage collection, and so out of what processes forked here copy."""
    gc.collect()
    gc.freeze()
