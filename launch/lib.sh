# shellcheck shell=bash
# What the launchers share; sourced, not run.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=0

# One line and exit code 5, as `jepa-vl` does on bad input.
die() {
  printf '%s: error: %s\n' "${0##*/}" "$1" >&2
  exit 5
}

# The comment at the head of the script, from "usage:" on.
usage() {
  sed -n '/^# usage:/,/^[^#]/{s/^# \{0,1\}//p;}' "$0"
}

# need OPTION VALUE [RULE]: the value is there.
need() {
  [[ -n ${2-} ]] || die "$1 ${3:-needs a value}; see ${0##*/} --help"
}

# need_count OPTION VALUE: a whole number of at least 1.
need_count() {
  [[ ${2-} =~ ^[1-9][0-9]*$ ]] || die "$1 = '${2-}': a whole number, at least 1"
}

# need_variable OPTION VALUE: NAME=VALUE.
need_variable() {
  [[ ${2-} =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "$1 = '${2-}': NAME=VALUE"
}

# The words as a shell would take them again, on one line.
quoted() {
  local word out=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]]; then
      out+=("$word")
    else
      out+=("'${word//\'/\'\\\'\'}'")
    fi
  done
  printf '%s\n' "${out[*]}"
}

# Runs the command; with --dry-run prints it instead.
execute() {
  if ((DRY_RUN)); then quoted "$@"; else "$@"; fi
}

# hardware SLICE FIELD: what the table of chips says of it.
hardware() {
  PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} "${PYTHON:-python3}" -m jepa_vl.hardware "$1" --field "$2"
}
