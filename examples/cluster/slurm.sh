#!/bin/bash
# A training run as a SLURM job: Ray on every node, the driver on the first.
#
#   NAME=main sbatch slurm.sh main.toml --set num_steps=500
#
# 15 minutes before the time is up SLURM sends SIGTERM to this script, which passes it on to the driver: the run ends its
# step and writes a checkpoint. The job is then put back into the queue, and goes on from there.
#SBATCH --job-name=gvm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=gvm-%j.log
set -euo pipefail

RUNS=${RUNS:-$PWD/runs} # on storage that all nodes see, like this folder and .venv
PORT=${PORT:-6379}
CONFIG=$1
NAME=${NAME:-slurm-${SLURM_JOB_ID}}
shift

source .venv/bin/activate
export RAY_AUTH_MODE=token # nobody else in the network can run anything
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

head=$(hostname)
address=$(hostname --ip-address | awk '{print $1}'):$PORT
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --node-ip-address="${address%:*}" --port="$PORT" --block &
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  others=$((SLURM_JOB_NUM_NODES - 1))
  srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" ray start --address="$address" --block &
fi
RAY_ADDRESS=$address python - "$SLURM_JOB_NUM_NODES" <<'WAIT' # a run is refused where it doesn't fit
import sys, time, ray

for attempt in range(60):
    try:
        ray.init(log_to_driver=False)
        break
    except ConnectionError:
        time.sleep(5)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(2)
WAIT

resume=()
if [ -f "$RUNS/$NAME/config.json" ]; then
  resume=(--resume)
fi
stopped=
trap 'stopped=1; kill -TERM "$driver"' TERM
RAY_ADDRESS=$address gvm-ray train "$CONFIG" --set runs_dir="$RUNS" --set name="$NAME" "$@" "${resume[@]}" &
driver=$!
code=0
wait "$driver" || code=$?
if [ -n "$stopped" ]; then # the signal ended the first wait
  code=0
  wait "$driver" || code=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
