#!/usr/bin/env bash
# Runs jaxpref on a plain TPU VM slice, however many hosts it has; no image to build.
#
#   tools/tpu.sh create                       the slice, unless it is there; one that was preempted is made anew
#   tools/tpu.sh setup                        this checkout and its environment on every host, unless they are there
#   tools/tpu.sh run --config=F --workdir=gs://D [...]
#                                             create, setup, then `jaxpref train` with these arguments on every host.
#                                             After a preemption the same command goes on where the run stopped.
#   tools/tpu.sh logs [HOST]                  follows the log of a host (default 0); Ctrl-C leaves the run alone
#   tools/tpu.sh stop                         lets the run finish its step, save a checkpoint and end
#   tools/tpu.sh delete                       the slice; what lies in gs:// stays
#
# Set before (export them, or write them in front of the command):
#   TPU_NAME     of the slice                      TPU_ZONE     for example us-east5-a
#   TPU_TYPE     for example v5p-32, v6e-16        TPU_VERSION  runtime (default: that of the type)
#   TPU_PROJECT  (default: gcloud's)               TPU_SPOT=1   cheap, and taken away at any time
#   TPU_ENV      variables of the run: 'JAXPREF_DATA=gs://bucket/pairs WANDB_API_KEY=...'
#   DRY_RUN=1    prints the commands instead of running them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf 'error: %s\n' "$1" >&2 && exit 2; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }

execute() { # runs a command, or prints it
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        printf '%q ' "$@" && printf '\n'
    else
        "$@"
    fi
}

tpu() { # tpu VERB [...]: gcloud on this slice
    local verb=$1
    shift
    execute gcloud compute tpus tpu-vm "$verb" "$@" --zone="$TPU_ZONE" ${TPU_PROJECT:+--project="$TPU_PROJECT"} --quiet
}

on_hosts() { # on_hosts HOST COMMAND: a shell command on one host, or on all of them
    tpu ssh "$TPU_NAME" --worker="$1" --command="$2"
}

state() { # READY, PREEMPTED, ...; empty without a slice
    [[ ${DRY_RUN:-0} == 1 ]] && return
    gcloud compute tpus tpu-vm list --zone="$TPU_ZONE" ${TPU_PROJECT:+--project="$TPU_PROJECT"} \
        --filter="name~/${TPU_NAME}\$" --format='value(state)'
}

runtime() { # the runtime version of a TPU type
    case "$TPU_TYPE" in
        v6e-*) echo v2-alpha-tpuv6e ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        v4-*) echo tpu-ubuntu2204-base ;;
        *) fail "no runtime is known for TPU_TYPE=$TPU_TYPE; set TPU_VERSION (gcloud compute tpus tpu-vm versions list)." ;;
    esac
}

create() {
    [[ -n ${TPU_TYPE:-} ]] || fail 'TPU_TYPE is not set; for example TPU_TYPE=v5p-32.'
    local version=${TPU_VERSION:-}
    [[ -n $version ]] || version=$(runtime)
    case "$(state)" in
        READY) printf '%s is there.\n' "$TPU_NAME" && return ;;
        PREEMPTED | TERMINATED) tpu delete "$TPU_NAME" ;;
        '') ;;
        *) fail "$TPU_NAME is $(state); wait until it is READY, or delete it." ;;
    esac
    tpu create "$TPU_NAME" --accelerator-type="$TPU_TYPE" --version="$version" ${TPU_SPOT:+--spot}
}

setup() {
    local archive revision
    revision=$(git rev-parse HEAD)
    archive=$(mktemp --suffix=.tar.gz)
    git archive --format=tar.gz --output="$archive" HEAD
    tpu scp "$archive" "$TPU_NAME:jaxpref.tar.gz" --worker=all
    rm -f "$archive"
    # The images' own Python is too old. The file INSTALLED names the revision that is whole, so that a second call is quick.
    on_hosts all "set -e
test \"\$(cat ~/jaxpref/INSTALLED 2>/dev/null)\" = $revision && exit 0
rm -rf ~/jaxpref && mkdir ~/jaxpref && tar -xzf ~/jaxpref.tar.gz -C ~/jaxpref
command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ~/jaxpref-environment
~/.local/bin/uv pip install --quiet --python ~/jaxpref-environment/bin/python ~/jaxpref'[tpu,gcs]'
echo $revision > ~/jaxpref/INSTALLED"
}

run() {
    local arguments
    [[ " $*" == *' --workdir=gs://'* || " $*" == *' --workdir=/'* ]] ||
        fail 'run needs --workdir=gs://<bucket>/<folder> (or a disk that all hosts share), which outlives the slice.'
    printf -v arguments '%q ' "$@"
    create
    setup
    # One run at a time: a host that has one already is left alone.
    on_hosts all "cd ~/jaxpref && if kill -0 \$(cat ~/jaxpref.pid) 2>/dev/null; then echo 'a run is on; tools/tpu.sh logs'; else
${TPU_ENV:-} setsid nohup ~/jaxpref-environment/bin/jaxpref train $arguments--config.mesh.distributed=on >> ~/jaxpref.log 2>&1 < /dev/null &
echo \$! > ~/jaxpref.pid; fi"
}

case "${1:-}" in
    '' | -h | --help | help) usage && exit ;;
    create | setup | run | logs | stop | delete) ;;
    *) fail "there is no '$1'; expected create, setup, run, logs, stop or delete (tools/tpu.sh --help)." ;;
esac
for needed in TPU_NAME TPU_ZONE; do
    [[ -n ${!needed:-} ]] || fail "$needed is not set (tools/tpu.sh --help)."
done
command=$1
shift
case "$command" in
    create | setup) "$command" ;;
    run) run "$@" ;;
    logs) on_hosts "${1:-0}" 'tail -n 100 -f ~/jaxpref.log' ;;
    stop) on_hosts all "kill -TERM \$(cat ~/jaxpref.pid) 2>/dev/null || true" ;;
    delete) tpu delete "$TPU_NAME" ;;
esac
