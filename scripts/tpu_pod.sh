#!/usr/bin/env bash
# A run on a slice of TPU VMs: every host gets the same checkout and the same packages and starts the same command.
#
#   scripts/tpu_pod.sh create                          a slice; SPOT=1 for one that may be preempted
#   scripts/tpu_pod.sh install                         what is committed here, and its packages, on all hosts
#   scripts/tpu_pod.sh each 'COMMAND'                  any command on all hosts, such as mounting a disk
#   scripts/tpu_pod.sh start [--config.FIELD=VALUE]    train.py on all hosts; resumes what is in WORKDIR
#   scripts/tpu_pod.sh watch                           its messages and metrics.jsonl as they grow; Ctrl-C ends the watching
#   scripts/tpu_pod.sh stop                            SIGTERM: saves and ends
#   scripts/tpu_pod.sh delete
#
# The variables below are read from the environment. docs/pods.md explains each step.
set -euo pipefail

NAME=${NAME:-gw}                                   # of the slice
ZONE=${ZONE:-us-east5-b}
TYPE=${TYPE:-v6e-32}                               # 32 chips; gcloud compute tpus accelerator-types list
VERSION=${VERSION:-v2-alpha-tpuv6e}                # of the hosts' software; it goes with the type
SPOT=${SPOT:-}
DATA_DISK=${DATA_DISK:-}                           # projects/PROJECT/zones/ZONE/disks/DISK, attached to all hosts to read
CONFIG=${CONFIG:-configs/imagenet_resnet50_gw_lars.py:4096}
DATA_DIR=${DATA_DIR:-/mnt/data/tensorflow_datasets} # the prepared set, on every host
WORKDIR=${WORKDIR:-/mnt/runs/lars4096}             # one directory that all hosts share
WORKERS=${WORKERS:-32}                             # reading processes per host

cd "$(dirname "$0")/.."

each() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  create)
    gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION" \
      ${SPOT:+--spot} ${DATA_DISK:+--data-disk=mode=read-only,source="$DATA_DISK"}
    ;;
  install)
    checkout=$(mktemp)
    trap 'rm -f "$checkout"' EXIT
    git archive --format=tar.gz --output="$checkout" HEAD
    gcloud compute tpus tpu-vm scp "$checkout" "$NAME:gw_jax.tar.gz" --zone="$ZONE" --worker=all
    # uv brings a Python that is new enough. All hosts resolve versions in the same minute; unlike ones refuse to start.
    each 'set -e
      rm -rf gw_jax && mkdir gw_jax && tar -xzf gw_jax.tar.gz -C gw_jax
      curl -LsSf https://astral.sh/uv/install.sh | sh
      ~/.local/bin/uv venv --clear --python 3.12 venv
      ~/.local/bin/uv pip install --python venv/bin/python -e "gw_jax[examples,tpu]"'
    ;;
  each)
    each "${2:?give the command in quotes}"
    ;;
  start)
    shift
    # Quoted for the hosts' shells.
    options=$(printf ' %q' --config="$CONFIG" --workdir="$WORKDIR" --config.data.data_dir="$DATA_DIR" \
      --config.data.num_workers="$WORKERS" "$@")
    # nohup and no terminal: the run outlives the connection.
    each "if kill -0 \$(cat train.pid 2>/dev/null) 2>/dev/null; then echo 'already running' >&2; exit 1; fi
      cd gw_jax
      nohup ../venv/bin/python train.py$options > ../train.log 2>&1 < /dev/null &
      echo \$! > ../train.pid"
    ;;
  watch)
    # Messages of hosts other than the first are errors; `each 'tail train.log'` shows those.
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=0 \
      --command="tail -n 5 -F train.log $(printf %q "$WORKDIR")/metrics.jsonl"
    ;;
  stop)
    # shellcheck disable=SC2016 # for the hosts' shells to expand
    each 'pid=$(cat train.pid); kill -TERM "$pid" 2>/dev/null || true
      while kill -0 "$pid" 2>/dev/null; do sleep 1; done
      tail -n 1 train.log'
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE"
    ;;
  *)
    sed -n '2,/^$/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
    ;;
esac
