# One assumes that `except Exception` around torch.distributed.checkpoint.load catches a checkpoint that does not fit, so that a trainer takes the one before.
# What happens: CheckpointException derives from BaseException: a missing key, another shape or no folder goes through, and ends the run as Ctrl-C does.
# Seen with torch 2.13.0 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
cat > show.py <<'PY'
import logging
import warnings

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
print("torch", torch.__version__)
print("CheckpointException:", " < ".join(kind.__name__ for kind in CheckpointException.__mro__))


def newest_that_loads(state: dict[str, torch.Tensor], *folders: str) -> str:
    """Return the first folder that loads, as a trainer would go through its checkpoints."""
    for folder in folders:
        try:
            dcp.load(state, checkpoint_id=folder)
        except Exception as error:
            print(f"  {folder} does not load ({type(error).__name__}); the one before it")
        else:
            return folder
    raise SystemExit("none loads")


dcp.save({"weight": torch.ones(1000)}, checkpoint_id="step-10")
dcp.save({"weight": torch.ones(1000), "bias": torch.ones(10)}, checkpoint_id="step-20")
escaped = []
for name, state, newest in (
    ("no folder", {"weight": torch.zeros(1000)}, "step-30"),
    ("a missing key", {"weight": torch.zeros(1000), "scale": torch.zeros(1)}, "step-20"),
    ("another shape", {"weight": torch.zeros(999)}, "step-20"),
):
    try:
        newest_that_loads(state, newest, "step-10")
    except BaseException as error:
        print(f"{name}: {type(error).__name__} went through `except Exception`")
        escaped.append(type(error) is CheckpointException)
assert escaped == [True] * 3
assert not issubclass(CheckpointException, Exception)
PY
env/bin/python show.py
