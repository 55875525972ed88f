#!/usr/bin/env bash
# usage: launch/tpu_vm.sh ACTION --name NAME --zone ZONE [OPTION...] [-- ARGUMENTS OF jepa-vl train]
#
# One training run on TPU VMs: a queued resource of one or several slices. Each action may be given
# again: what is done already is left alone.
#
# create   queue the request for machines      (--type; --nodes, --spot, --reserved, --valid-until)
# wait     until the machines are there; 1 if they will not come
# setup    install on all hosts                 (--git and --ref, or --wheel; --bucket)
# run      start `jepa-vl train --supervise` on all hosts, in the background     (--type; --env)
# status   one line: the state of the machines and of the run on the first host
# logs     follow the log of a host             (--node, --worker; --tail N: its end alone)
# stop     SIGTERM to the run on all hosts: it saves and ends
# delete   give the machines back
#
# --type TYPE         v5e-16, v5p-8, v6e-256 and so on (v4 and v5p count TensorCores, two a chip)
# --nodes K           slices of that type (default 1)
# --spot, --reserved  kind of capacity (default: on demand)
# --valid-until TIME  give up the request after, e.g., 6h
# --project PROJECT   (default: gcloud's)
# --git URL           repository to install from, at --ref COMMIT, BRANCH or TAG (default main)
# --wheel FILE        wheel to install; configs/ and launch/ of this checkout go with it
# --bucket BUCKET     gs://BUCKET is mounted at /mnt/BUCKET on all hosts (setup)
# --env NAME=VALUE    variable of the run, as often as needed; secrets do not belong here
# --node N, --worker N  which host (logs; default 0, 0)
# --tail N            lines of the log, without following it (logs)
# --poll SECONDS      between looks (wait; default 30)
# --dry-run           print the commands, run nothing
# PYTHON              variable: a Python of at least 3.11 on this machine (default python3)
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TPU=(gcloud compute tpus queued-resources)
HOME_DIR=jepa-vl # on the hosts, under the home directory

action=${1-} name='' zone='' type='' nodes=1 capacity='' until='' project=''
git='' ref=main wheel='' bucket='' node=0 worker=0 poll=30 tail=''
variables=('TPU_MIN_LOG_LEVEL=2') arguments=()

parse() {
  while (($#)); do
    case $1 in
      --name | --zone | --type | --project | --git | --ref | --wheel | --bucket)
        need "$1" "${2-}"
        printf -v "${1#--}" %s "$2"
        ;;
      --valid-until) need "$1" "${2-}" && until=$2 ;;
      --nodes | --poll | --tail) need_count "$1" "${2-}" && printf -v "${1#--}" %s "$2" ;;
      --node | --worker)
        [[ ${2-} =~ ^[0-9]+$ ]] || die "$1 = '${2-}': a number from 0 on"
        printf -v "${1#--}" %s "$2"
        ;;
      --env) need_variable "$1" "${2-}" && variables+=("$2") ;;
      --spot | --reserved)
        [[ -z $capacity || $capacity == "$1" ]] || die "$1: not with $capacity"
        capacity=$1
        shift && continue
        ;;
      --dry-run) DRY_RUN=1 && shift && continue ;;
      --help) usage && exit ;;
      --) shift && arguments=("$@") && break ;;
      *) die "$1: unknown; see tpu_vm.sh --help" ;;
    esac
    shift 2
  done
}

# Sets chip, accelerator and runtime of --type.
resolve_type() {
  need --type "$type"
  accelerator=$(hardware "$type" accelerator) || exit 5
  runtime=$(hardware "$type" runtime) || exit 5
  chip=$(hardware "$type" name) || exit 5
  [[ -n $runtime && $accelerator == *-* ]] || die "--type = '$type': a TPU slice, as in v5e-16"
}

# State of the queued resource; ABSENT if there is none. Fails where gcloud does.
state() {
  local complaint found
  complaint=$(mktemp)
  if found=$("${TPU[@]}" describe "$name" "${where[@]}" '--format=value(state.state)' \
    2>"$complaint"); then
    echo "${found:-UNKNOWN}"
  elif grep -qi 'not_found\|not found' "$complaint"; then
    echo ABSENT
  else
    tail -n 1 "$complaint" >&2
    rm -f "$complaint"
    return 1
  fi
  rm -f "$complaint"
}

# on NODE WORKER COMMAND: runs it there; all are possible.
on() {
  execute "${TPU[@]}" ssh "$name" "${where[@]}" --node="$1" --worker="$2" --quiet --command="$3"
}

create() {
  resolve_type
  local found=ABSENT request
  if ((!DRY_RUN)); then found=$(state); fi
  case $found in
    ABSENT) ;;
    SUSPENDED | FAILED) delete ;; # such a request never comes back to life
    *) echo "$name: $found already" && return ;;
  esac
  request=("${TPU[@]}" create "$name" "${where[@]}" --accelerator-type="$accelerator"
    --runtime-version="$runtime")
  if ((nodes > 1)); then
    request+=(--node-count="$nodes" --node-prefix="$name")
  else
    request+=(--node-id="$name")
  fi
  [[ -z $capacity ]] || request+=("$capacity")
  [[ -z $until ]] || request+=(--valid-until-duration="$until")
  execute "${request[@]}" --quiet
}

await() {
  local found
  if ((DRY_RUN)); then
    quoted "${TPU[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
    echo "# again every $poll s until it says ACTIVE"
    return
  fi
  while :; do
    found=$(state)
    case $found in
      ACTIVE) echo "$name: ACTIVE" && return ;;
      ABSENT | SUSPENDED | SUSPENDING | FAILED | DELETING)
        echo "tpu_vm.sh: error: $name: $found; create it again" >&2 && exit 1
        ;;
    esac
    echo "$name: $found"
    sleep "$poll"
  done
}

setup() {
  local package
  if [[ -n $wheel ]]; then
    [[ -z $git ]] || die "--wheel = '$wheel': not with --git"
    ((DRY_RUN)) || [[ -f $wheel ]] || die "--wheel = '$wheel': no such file"
    package="'jepa-vl[tpu,gcs] @ file://'\"\$PWD\"/${wheel##*/}"
    on all all "mkdir -p $HOME_DIR"
    execute "${TPU[@]}" scp --recurse "$wheel" "$ROOT_SHOWN/configs" "$ROOT_SHOWN/launch" \
      "$name:$HOME_DIR/" "${where[@]}" --node=all --worker=all --quiet
  else
    need --git "$git" "or --wheel says what to install"
    package="'.[tpu,gcs]'"
    on all all "set -e
test -d $HOME_DIR/.git || git clone --quiet $(quoted "$git") $HOME_DIR
cd $HOME_DIR
git fetch --quiet origin $(quoted "$ref")
git checkout --quiet FETCH_HEAD"
  fi
  # The VM's Python is older than ours: uv brings one.
  on all all "set -e
cd $HOME_DIR
python3 -m pip install --quiet --user uv
test -d .venv || python3 -m uv venv --quiet --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python --reinstall-package jepa-vl $package"
  [[ -z $bucket ]] ||
    on all all "$HOME_DIR/launch/stage_data.sh mount gs://$bucket /mnt/$bucket"
}

run() {
  resolve_type
  ((${#arguments[@]})) || die "-- : give the arguments of jepa-vl train after it"
  on all all "set -e
cd $HOME_DIR
if test ! -e run/exit && kill -0 \"\$(cat run/pid)\" 2>/dev/null; then echo 'runs already'; exit; fi
export PATH=\$PWD/.venv/bin:\$PATH JEPA_VL_CHIP=$chip JEPA_VL_STATE=\$PWD/run
export $(quoted "${variables[@]}")
mkdir -p run
rm -f run/exit run/pid
setsid nohup launch/entrypoint.sh jepa-vl train --supervise $(quoted "${arguments[@]}") \\
  >/dev/null 2>&1 </dev/null &
echo \$! >run/pid"
}

# As babysit.py reads it: "ACTIVE running", "ACTIVE exit 3", "ACTIVE idle", "SUSPENDED" and so on.
status() {
  local found=ACTIVE look="cd $HOME_DIR 2>/dev/null
if test -e run/exit; then echo \"exit \$(cat run/exit)\"
elif kill -0 \"\$(cat run/pid)\" 2>/dev/null; then echo running
else echo idle; fi"
  if ((DRY_RUN)); then
    quoted "${TPU[@]}" describe "$name" "${where[@]}" '--format=value(state.state)'
    on 0 0 "$look"
    return
  fi
  found=$(state)
  [[ $found != ACTIVE ]] || found="ACTIVE $(on 0 0 "$look" 2>/dev/null | tail -n 1 || true)"
  [[ $found != 'ACTIVE ' ]] || found='ACTIVE unreachable'
  echo "$found"
}

stop() {
  on all all "cd $HOME_DIR
test -e run/pid && test ! -e run/exit || { echo 'no run'; exit 0; }
kill -TERM \"\$(cat run/pid)\" || exit 0
for _ in \$(seq 300); do test ! -e run/exit || break; sleep 1; done
echo \"exit \$(cat run/exit)\""
}

delete() {
  local found=ACTIVE
  if ((!DRY_RUN)); then found=$(state); fi
  if [[ $found == ABSENT ]]; then
    echo "$name: there is none"
  else
    execute "${TPU[@]}" delete "$name" "${where[@]}" --force --quiet
  fi
}

case $action in
  create | wait | setup | run | status | logs | stop | delete) shift ;;
  --help) usage && exit ;;
  *) die "action = '$action': one of create, wait, setup, run, status, logs, stop, delete" ;;
esac
parse "$@"
need --name "$name"
need --zone "$zone"
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
ROOT_SHOWN=$ROOT
[[ $PWD != "$ROOT" ]] || ROOT_SHOWN=.
case $action in
  wait) await ;;
  logs) on "$node" "$worker" "tail -n ${tail:-100 -F} $HOME_DIR/run/log" ;;
  *) "$action" ;;
esac
