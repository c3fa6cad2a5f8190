#!/bin/bash
# A Cloud TPU slice, from request to run: all hosts run the same command.
#
#   export PROJECT=my-project ZONE=us-central1-a TPU_NAME=jaxgen ACCELERATOR=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
#   launch/tpu_vm.sh create     # queued resource; SPOT=1 for spot capacity
#   launch/tpu_vm.sh status     # until it says ACTIVE
#   launch/tpu_vm.sh setup      # commits of this checkout to every host, with jaxgen[tpu,gcs]
#   launch/tpu_vm.sh run --config=configs/pretrain.py:caduceus_ph --workdir=gs://bucket/run
#   launch/tpu_vm.sh stop       # SIGTERM: saves, then exits
#   launch/tpu_vm.sh delete
#
# --dry-run as the first argument prints the commands instead of running them. `run` stays in the foreground: start it in
# tmux. The same `run` continues from the last checkpoint. The work directory must be gs://, hosts share no disk.
set -euo pipefail

dry_run=0
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=1
  shift
fi
action=${1:-help}
shift || true

usage() { sed -n '2,14s/^# \{0,1\}//p' "$0"; }

execute() {
  if (( dry_run )); then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

need() {
  local name
  for name in "$@"; do
    if [[ -z "${!name:-}" ]]; then
      echo "error: $name is not set; see launch/tpu_vm.sh help" >&2
      exit 2
    fi
  done
}

on_all_hosts() {
  execute gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" --worker=all --command="$1"
}

case "$action" in
  help | -h | --help)
    usage
    exit 0
    ;;
  create | status | setup | run | stop | delete) ;;
  *)
    echo "error: unknown action '$action'; choose one of create, status, setup, run, stop, delete" >&2
    exit 2
    ;;
esac

need PROJECT ZONE TPU_NAME
place=(--project="$PROJECT" --zone="$ZONE")

case "$action" in
  create)
    need ACCELERATOR RUNTIME
    options=()
    [[ "${SPOT:-0}" == 1 ]] && options+=(--spot)
    execute gcloud compute tpus queued-resources create "$TPU_NAME" "${place[@]}" --node-id="$TPU_NAME" \
      --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" ${options[@]+"${options[@]}"}
    ;;
  status)
    execute gcloud compute tpus queued-resources describe "$TPU_NAME" "${place[@]}" --format="value(state.state)"
    ;;
  setup)
    # Committed files only: what runs is what `git_revision` in result.json will name.
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    root=$(cd "$(dirname "$0")/.." && pwd)
    execute git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    execute gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:jaxgen.tar.gz" "${place[@]}" --worker=all
    # The images bring an older Python than jaxgen needs; uv fetches its own.
    on_all_hosts 'set -e; rm -rf ~/jaxgen; mkdir ~/jaxgen; tar -xzf ~/jaxgen.tar.gz -C ~/jaxgen; python3 -m pip install --quiet --user uv;
      python3 -m uv venv --quiet --clear --python 3.11 ~/jaxgen-env; python3 -m uv pip install --quiet --python ~/jaxgen-env/bin/python -e "$HOME/jaxgen[tpu,gcs]"'
    ;;
  run)
    if (( $# == 0 )); then
      echo "error: nothing to run: launch/tpu_vm.sh run --config=FILE --workdir=gs://bucket/path" >&2
      exit 2
    fi
    # exec keeps the shell's process id, which `stop` reads.
    on_all_hosts "cd ~/jaxgen && echo \$\$ > ~/jaxgen.pid && JAXGEN_DISTRIBUTED=1 exec ~/jaxgen-env/bin/python -u -m jaxgen.main $(printf '%q ' "$@")"
    ;;
  stop)
    on_all_hosts 'kill -TERM "$(cat ~/jaxgen.pid)"'
    ;;
  delete)
    execute gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" --force --quiet
    ;;
esac
