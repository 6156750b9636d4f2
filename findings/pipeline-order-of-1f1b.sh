# One assumes: `Schedule1F1B(stage, n).pipeline_order`, which torch fills for pictures and checks, is what the schedule runs.
# What happens: wherever no warm-up comes first, on the last stage, it leaves out forward 0 and has a forward n, which is no micro-batch.
# Seen with torch 2.13.0 on 2026-11-27; what is run is right, what is told of it is off by one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
cat > show.py <<'PY'
import os
import warnings

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

warnings.simplefilter("ignore")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29561", RANK="0", WORLD_SIZE="1")
dist.init_process_group("gloo")
print("torch", torch.__version__)


class Recording(PipelineStage):
    """A stage alone, that writes down which micro-batches really go forward."""

    ran = []

    def forward_one_chunk(self, index, *rest, **options):
        self.ran.append(index)
        return super().forward_one_chunk(index, *rest, **options)


def told(schedule, rank):
    return [a.microbatch_index for a in schedule.pipeline_order[rank] if a and a.computation_type.name == "FORWARD"]


layer = torch.nn.Linear(4, 4)
stage = Recording(layer, 0, 1, torch.device("cpu"))
schedule = Schedule1F1B(stage, 4, loss_fn=torch.nn.functional.mse_loss)
schedule.step(torch.ones(4, 4), target=torch.ones(4, 4))
print("one stage, 4 micro-batches: forward of", told(schedule, 0), "told,", stage.ran, "run")

of_four = PipelineStage(layer, 0, 4, torch.device("cpu"))
for kind in (Schedule1F1B, ScheduleGPipe):
    made = kind(of_four, 8)
    print(kind.__name__, "4 stages, 8 micro-batches:", *(f"\n  stage {rank}: forward of {told(made, rank)}" for rank in range(4)))
assert stage.ran == [0, 1, 2, 3]
assert told(schedule, 0) == [1, 2, 3, 4]
last = told(Schedule1F1B(of_four, 8), 3)
assert last == list(range(1, 9)), last
assert all(told(Schedule1F1B(of_four, 8), rank) == list(range(8)) for rank in range(3))
assert all(told(ScheduleGPipe(of_four, 8), rank) == list(range(8)) for rank in range(4))
dist.destroy_process_group()
PY
env/bin/python show.py
