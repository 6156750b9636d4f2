#!/usr/bin/env bash
# foretrain on Medium.128GB: 2 x AMD Instinct MI250, one GCD.
# Add what your site asks for: --account, --partition, --time.
# A device is a GCD, as Slurm counts them: an MI250 has two.
#SBATCH --job-name=foretrain-medium-128gb
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-gpu=4
#SBATCH --signal=TERM@660
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600  # seconds for the ranks to save and end on SIGTERM

status=0
srun --kill-on-bad-exit=1 --cpu-bind=none \
    python -m trainer.jobs.torchrun \
    --standalone \
    --nnodes=1 \
    --nproc-per-node=2 \
    -m trainer \
    --model mistralai/Mistral-7B-v0.1 \
    --dataset 'it'"'"'s mine/$(rows).jsonl' \
    --packing \
    --plan num_stages=2,num_micro_batches=16,tp=1,recomputation=none,distribute_param=true \
    --flavor Medium.128GB \
    --resume auto \
    --checkpoint-every 40 \
    --output "runs/$SLURM_JOB_ID" || status=$?

# Slurm begins a preempted job again, but not one whose time is up: then the ranks were told to save, a
# minute early perhaps, and ended with status 75.
if ((status != 0 && $(date +%s) >= ${SLURM_JOB_END_TIME:-9999999999} - 780)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
