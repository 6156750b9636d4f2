import pytest

from estimator.runs.logs.setup import setup_of
from hardware.catalog import load_catalog

CATALOG = load_catalog()

MEGATRON = """using world size: 16, data-parallel size: 4, context-parallel size: 1, tensor-model-parallel size: 2, \
pipeline-model-parallel size: 2
  bf16 ............................................ True
  global_batch_size ............................... 64
  micro_batch_size ................................ 1
  optimizer ....................................... adam
  recompute_granularity ........................... selective
  seq_length ...................................... 4096
  use_distributed_optimizer ....................... True
"""
TORCHTITAN = """[rank0]:[titan] 2025-11-25 19:44:58,547 - root - INFO - CUDA capacity: NVIDIA H200 with 139.81GiB memory
[rank0]:[titan] 2025-11-25 19:44:58,838 - root - INFO - Trainer is initialized with local batch size 8, global batch \
size 64, gradient accumulation steps 2, sequence length 2048, total steps 10 (warmup 2)
"""
TRANSFORMERS = """***** Running training *****
  Num examples = 34,940
  Instantaneous batch size per device = 10
  Total train batch size (w. parallel, distributed & accumulation) = 640
  Gradient Accumulation steps = 8
  Total optimization steps = 100
"""
NANOTRON = (
    "07/02/2024 13:00:00 [INFO|DP=0|PP=0|TP=0|node-1]: mbs: 2 | grad_accum: 4 | sequence_length: 8192 | "
    "global_batch_size: 64 | train_steps: 500 | start_iteration_step: 0 | consumed_train_samples: 0"
)
COMPOSER = """num_nodes: 2
num_gpus_per_node: 8
max_seq_len: 2048
global_train_batch_size: 256
\t Train trainer/device_train_microbatch_size: 4
"""
MOAI = (
    "[2024-04-22 00:51:28.447] [info] num_stages : 2, num_micro_batches : 16, batch_per_device : 1, No TP, "
    "recomputation : false, distribute_param : true, distribute_low_prec_param : false"
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            MEGATRON,
            {
                "num_devices": 16, "rows": 64, "seq_len": 4096, "tokens_per_step": 262144, "precision": "bf16-mixed",
                "optimizer": "adamw", "plan.num_stages": 2, "plan.tensor_parallel": 2, "plan.batch_per_device": 1,
                "plan.num_micro_batches": 16, "plan.recomputation": "selective", "plan.zero_stage": 1,
            },
        ),
        (
            TORCHTITAN,
            {
                "accelerator": "h200-sxm-141gb", "rows": 64, "seq_len": 2048, "tokens_per_step": 131072,
                "plan.batch_per_device": 8, "plan.num_micro_batches": 2,
            },
        ),
        (TRANSFORMERS, {"plan.batch_per_device": 10, "rows": 640, "plan.num_micro_batches": 8, "num_steps": 100}),
        (
            NANOTRON,
            {
                "plan.batch_per_device": 2, "plan.num_micro_batches": 4, "seq_len": 8192, "rows": 64, "num_steps": 500,
                "tokens_per_step": 524288,
            },
        ),
        (
            COMPOSER,
            {
                "num_nodes": 2, "devices_per_node": 8, "num_devices": 16, "seq_len": 2048, "rows": 256,
                "tokens_per_step": 524288, "plan.batch_per_device": 4, "plan.num_micro_batches": 4,
            },
        ),
        (
            MOAI,
            {
                "plan.num_stages": 2, "plan.num_micro_batches": 16, "plan.batch_per_device": 1,
                "plan.tensor_parallel": 1, "plan.recomputation": "none", "plan.zero_stage": 3,
            },
        ),
    ],
)  # fmt: skip
def test_what_a_log_says_of_its_run(text: str, told: dict[str, object]) -> None:
    """Sizes of the batch, devices and the plan are read off the lines that each trainer prints before it trains."""
    assert setup_of(text.split("\n"), CATALOG) == told


def test_the_first_of_two_that_differ_counts() -> None:
    """A second run's lines change nothing."""
    assert (
        setup_of([*TRANSFORMERS.split("\n"), *TRANSFORMERS.replace("640", "320").split("\n")], CATALOG)["rows"] == 640
    )


@pytest.mark.parametrize(
    "line",
    [
        "step: 1 loss: 2.0",
        "  micro_batch_size ................................ [1, 2, 4, 8]",
        "  micro_batch_size ................................ 0",
        "Trainer: CUDA capacity: NVIDIA H999 with 139.81GiB memory",
        "[2024-04-22 00:51:28.447] [info] num_stages : 2, num_micro_batches : many",
    ],
)
def test_other_lines_say_nothing(line: str) -> None:
    """A line with no such words, a list, nothing at all, or a device or a word that is not known, tells nothing."""
    assert setup_of([line], CATALOG) == {}
