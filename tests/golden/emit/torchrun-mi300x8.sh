#!/usr/bin/env bash
# foretrain on mi300x8: 8 x AMD Instinct MI300X.
set -euo pipefail

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600  # seconds for the ranks to save and end on SIGTERM
: "${RUN_ID:=run}"

exec python -m trainer.jobs.torchrun \
    --standalone \
    --nnodes=1 \
    --nproc-per-node=8 \
    -m trainer \
    --model mistralai/Mistral-7B-v0.1 \
    --dataset 'it'"'"'s mine/$(rows).jsonl' \
    --packing \
    --plan num_stages=2,num_micro_batches=16,tp=1,recomputation=none,distribute_param=true \
    --flavor mi300x8 \
    --resume auto \
    --checkpoint-every 40 \
    --output "runs/$RUN_ID"
