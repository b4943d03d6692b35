#!/usr/bin/env bash
# Runs jaxpref on TPU slices of a GKE cluster that xpk made (pip install xpk), on a public Python image.
#
#   CLUSTER=tpus TPU_TYPE=v5p-32 tools/xpk.sh dpo --config=configs/tpu/llama3_8b_dpo.py --workdir=gs://bucket/runs/dpo
#
# The first argument names the workload. A workload whose machines are taken away is started again (RESTARTS times,
# default 20) and goes on from its last checkpoint. DRY_RUN=1 prints the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for needed in CLUSTER TPU_TYPE; do
    [[ -n ${!needed:-} ]] || { printf 'error: %s is not set; see the head of %s.\n' "$needed" "$0" >&2 && exit 2; }
done
[[ $# -ge 3 ]] || { printf 'error: expected a workload, --config and --workdir.\n' >&2 && exit 2; }
workload=$1
shift
printf -v arguments '%q ' "$@"
command="pip install --quiet '.[tpu,gcs]' && jaxpref train $arguments--config.mesh.distributed=on"
program=(xpk workload create --cluster="$CLUSTER" --workload="$workload" --tpu-type="$TPU_TYPE"
    --base-docker-image=python:3.12 --script-dir="$PWD" --max-restarts="${RESTARTS:-20}" --command="$command")
if [[ ${DRY_RUN:-0} == 1 ]]; then
    printf '%q ' "${program[@]}" && printf '\n'
else
    "${program[@]}"
fi
