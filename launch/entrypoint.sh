#!/usr/bin/env bash
# usage: launch/entrypoint.sh [--dry-run] COMMAND [ARGUMENT...]
#
# Runs a command as the main process of a machine or a container: with the flags of the chip, its
# output to a log as well, SIGTERM handed on (jepa-vl then saves and exits 3), its exit code kept.
# JEPA_VL_CHIP   chip whose variables are set (python -m jepa_vl.hardware CHIP); empty: none
# JEPA_VL_COORDINATOR without JEPA_VL_PROCESS: the number of this process is counted from the pod's
#                JEPA_VL_SLICE, JEPA_VL_HOSTS (of a slice) and JOB_COMPLETION_INDEX
# JEPA_VL_STATE  folder of the files pid, log and exit (default: a temporary one)
# JEPA_VL_TERMINATION_LOG  gets the last lines of the log after a failure, where it can be written
#                (default: /dev/termination-log, which Kubernetes reads)
set -euo pipefail

if [[ ${1-} == --help || $# == 0 ]]; then
  sed -n '/^# usage:/,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
  exit $(($# ? 0 : 5))
fi
if [[ $1 == --dry-run ]]; then
  shift
  [[ -z ${JEPA_VL_CHIP-} ]] || echo "eval \"\$(python -m jepa_vl.hardware $JEPA_VL_CHIP)\""
  printf '%q ' "$@"
  exit 0
fi

state=${JEPA_VL_STATE:-$(mktemp -d)}
ending=${JEPA_VL_TERMINATION_LOG:-/dev/termination-log}
mkdir -p "$state"
rm -f "$state/exit"
echo $$ >"$state/pid"
if [[ -n ${JEPA_VL_CHIP-} ]]; then
  variables=$(python -m jepa_vl.hardware "$JEPA_VL_CHIP")
  eval "$variables"
fi
if [[ -n ${JEPA_VL_COORDINATOR-} && -z ${JEPA_VL_PROCESS-} ]]; then
  export JEPA_VL_PROCESS=$((JEPA_VL_SLICE * JEPA_VL_HOSTS + JOB_COMPLETION_INDEX))
fi

rm -f "$state/pipe"
mkfifo "$state/pipe"
tee -a "$state/log" <"$state/pipe" &
shown=$!
signals=0 child=
trap 'signals=$((signals + 1)); [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
"$@" >"$state/pipe" 2>&1 &
child=$!
((signals == 0)) || kill -TERM "$child"
while :; do # a signal ends the wait, not the command
  before=$signals code=0
  wait "$child" || code=$?
  ((signals != before)) || break
done
for _ in {1..50}; do # the last lines; what the command left behind may hold the pipe open
  kill -0 "$shown" 2>/dev/null || break
  sleep 0.1
done
kill "$shown" 2>/dev/null || true
rm -f "$state/pipe"

if ((code)) && [[ -w $ending ]]; then
  tail -n 20 "$state/log" | tail -c 4000 >"$ending" || true
fi
echo "$code" >"$state/exit.tmp"
mv "$state/exit.tmp" "$state/exit"
exit "$code"
