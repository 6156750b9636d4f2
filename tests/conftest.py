"""Hypothesis profiles: `ci` repeats exactly, `dev` explores, `thorough` digs; and the surroundings that tests see.

`ci` takes the same examples each time, so that more of them would only be more time: half of what `dev` takes anew.
"""

import atexit
import gc
import os
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("dev", deadline=None, max_examples=100)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers share the cores already; read when numpy and torch are imported
os.environ["COLUMNS"] = "132"  # parallel runs of pytest set 80, plain ones nothing


def need_torch() -> list[str]:
    """Return the files of tests that import torch or what comes with it, by themselves or through one another."""
    folder = Path(__file__).parent
    texts = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}
    modules = ["torch", "transformers", "tokenizers", "peft", "matplotlib", "trainer"]
    found: set[Path] = set()
    while True:
        imports = re.compile(rf"^(?:import|from) (?:{'|'.join(modules)})\b", re.MULTILINE)
        more = {path for path, text in texts.items() if path not in found and imports.search(text)}
        if not more:
            return [str(path.relative_to(folder)) for path in sorted(found)]
        found |= more
        modules += [f"tests.{'.'.join(path.relative_to(folder).with_suffix('').parts)}" for path in more]


if find_spec("torch") is None:  # a base install: all is tested but what trains, or is counted by torch, and the tree
    collect_ignore = ["parity", "trainer", "test_layers.py", *need_torch()]

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
