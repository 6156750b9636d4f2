#!/usr/bin/env bash
# foretrain on 4xLarge.2048GB: 8 x AMD Instinct MI250, one GCD on each of 4 nodes.
# Start it on every node, with the name or address of one of them, and a word of this run:
#   HEAD_NODE=node-0 RUN_ID=first bash this-file
# The folder of the run must be the same on all nodes.
set -euo pipefail

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600  # seconds for the ranks to save and end on SIGTERM
# NCCL and RCCL choose the network themselves; where they choose wrongly, set NCCL_SOCKET_IFNAME.
: "${HEAD_NODE:?set it to the name or address of one of the nodes}"
: "${RUN_ID:=run}"

exec python -m trainer.jobs.torchrun \
    --nnodes=4 \
    --nproc-per-node=8 \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$HEAD_NODE:29400" \
    --rdzv-id="$RUN_ID" \
    --rdzv-conf=join_timeout=1800,read_timeout=600 \
    -m trainer \
    --model mistralai/Mistral-7B-v0.1 \
    --dataset 'it'"'"'s mine/$(rows).jsonl' \
    --packing \
    --plan num_stages=2,num_micro_batches=16,tp=1,recomputation=none,distribute_param=true \
    --flavor 4xLarge.2048GB \
    --resume auto \
    --checkpoint-every 40 \
    --output "runs/$RUN_ID"
