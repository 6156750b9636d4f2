#!/usr/bin/env bash
# foretrain on 4xLarge.2048GB: 8 x AMD Instinct MI250, one GCD on each of 4 nodes.
# Add what your site asks for: --account, --partition, --time.
# A device is a GCD, as Slurm counts them: an MI250 has two.
#SBATCH --job-name=foretrain-4xlarge-2048gb
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=TERM@660
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600  # seconds for the ranks to save and end on SIGTERM
# NCCL and RCCL choose the network themselves; where they choose wrongly, set NCCL_SOCKET_IFNAME.
read -r HEAD_NODE < <(scontrol show hostnames "$SLURM_JOB_NODELIST")

status=0
srun --kill-on-bad-exit=1 --cpu-bind=none \
    python -m trainer.jobs.torchrun \
    --nnodes=4 \
    --nproc-per-node=8 \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$HEAD_NODE:$((20000 + SLURM_JOB_ID % 20000))" \
    --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    --rdzv-conf=join_timeout=1800,read_timeout=600 \
    -m trainer \
    --model mistralai/Mistral-7B-v0.1 \
    --dataset 'it'"'"'s mine/$(rows).jsonl' \
    --packing \
    --plan num_stages=2,num_micro_batches=16,tp=1,recomputation=none,distribute_param=true \
    --flavor 4xLarge.2048GB \
    --resume auto \
    --checkpoint-every 40 \
    --output "runs/$SLURM_JOB_ID" || status=$?

# Slurm begins a preempted job again, but not one whose time is up: then the ranks were told to save, a
# minute early perhaps, and ended with status 75.
if ((status != 0 && $(date +%s) >= ${SLURM_JOB_END_TIME:-9999999999} - 780)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
