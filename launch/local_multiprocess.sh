#!/usr/bin/env bash
# The pod's path on one machine: N processes of M fake CPU devices each, over loopback, under the
# supervisor. For tests and rehearsals; it is slower than one process.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local_multiprocess.sh [--processes N] [--devices M] [--dry-run] -- WORDS

N processes (default 2) of M CPU devices each (default 2) run `jepa-vl train WORDS` as one run;
--dry-run prints the command and runs nothing. The batch must divide by N x M.

  launch/local_multiprocess.sh --processes 2 --devices 2 -- \
    --config configs/quickstart.py --workdir runs/pod --config.train.steps=20 \
    --config.optim.warmup_steps=2 --config.loss.ramp_steps=2
TEXT
}

refuse() {
  echo "local_multiprocess.sh: error: $1" >&2
  exit 5
}

processes=2 devices=2 dry=
while [[ $# -gt 0 ]]; do
  case $1 in
    --help | -h) usage; exit 0 ;;
    --dry-run) dry=1; shift ;;
    --processes | --devices)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || refuse "$1 = '${2:-}': a whole number, 1 or more"
      [[ $1 == --processes ]] && processes=$2 || devices=$2
      shift 2
      ;;
    --) shift; break ;;
    *) refuse "$1: unknown; words of the training follow --" ;;
  esac
done
[[ $# -gt 0 ]] || refuse "no words of the training after --; see --help"

command=(
  env JAX_PLATFORMS=cpu "XLA_FLAGS=--xla_force_host_platform_device_count=$devices"
  "${PYTHON:-python3}" -m jepa_vl train "$@" --supervise --local-processes "$processes"
)
if [[ -n $dry ]]; then
  printf '%q ' "${command[@]}" | sed 's/ $//'
  echo
else
  exec "${command[@]}"
fi
