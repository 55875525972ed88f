#!/usr/bin/env bash
# usage: launch/jobset.sh --workload NAME --image IMAGE --type TYPE --claim CLAIM [OPTION...]
#                         -- ARGUMENTS OF jepa-vl train
#
# Fills in launch/jobset.yaml and gives it to `kubectl apply`. The cluster has JobSet installed and a
# node pool a slice. Undo: kubectl delete jobset NAME.
#
# --type TYPE       v5e-256, v5p-128 ...: a TPU slice. h100-8 ...: a node of so many GPUs
# --claim CLAIM     a PersistentVolumeClaim (ReadWriteMany: Filestore, or a bucket), mounted at
#                   /mnt/CLAIM on all hosts; the workdir lies there
# --slices K        slices, or nodes of GPUs (default 1)
# --chips-per-host N  where the node pool's machines differ from: v5e and v6e up to 8 chips one host,
#                   else 4 chips a host
# --max-restarts N  of the whole set (default 50); each resumes from the workdir
# --env NAME=VALUE  variable of the run, as often as needed; secrets do not belong here
# --dry-run         print the command, run nothing
# PYTHON            variable: a Python of at least 3.11 on this machine (default python3)
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PORT=8476 # of the coordinator, on GPUs; TPU pods are told theirs by GKE

workload='' image='' type='' claim='' slices=1 per_host='' restarts=50 variables=() arguments=()
while (($#)); do
  case $1 in
    --workload | --image | --type | --claim) need "$1" "${2-}" && printf -v "${1#--}" %s "$2" ;;
    --slices) need_count "$1" "${2-}" && slices=$2 ;;
    --chips-per-host) need_count "$1" "${2-}" && per_host=$2 ;;
    --max-restarts) need_count "$1" "${2-}" && restarts=$2 ;;
    --env) need_variable "$1" "${2-}" && variables+=("$2") ;;
    --dry-run) DRY_RUN=1 && shift && continue ;;
    --help) usage && exit ;;
    --) shift && arguments=("$@") && break ;;
    *) die "$1: unknown; see jobset.sh --help" ;;
  esac
  shift 2
done
for option in workload image type claim; do need "--$option" "${!option}"; done
((${#arguments[@]})) || die "-- : give the arguments of jepa-vl train after it"
[[ $workload =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  die "--workload = '$workload': at most 40 of a-z, 0-9 and -, a letter first"

# A string of JSON, which is YAML as well.
json() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

chip=$(hardware "$type" name) || exit 5
chips=$(hardware "$type" chips) || exit 5
shape=$(hardware "$type" topology) || exit 5
variables=(TPU_MIN_LOG_LEVEL=2 ${variables[@]+"${variables[@]}"})
case $chip in
  v4) pool=tpu-v4-podslice ;;
  v5e) pool=tpu-v5-lite-podslice ;;
  v5p) pool=tpu-v5p-slice ;;
  v6e) pool=tpu-v6e-slice ;;
  a100) pool=nvidia-a100-80gb ;;
  h100) pool=nvidia-h100-80gb ;;
  h200) pool=nvidia-h200-141gb ;;
  b200) pool=nvidia-b200 ;;
  *) die "--type = '$type': no accelerator of GKE" ;;
esac
if [[ $pool == nvidia-* ]]; then
  hosts=1 privileged=false
  selector="{cloud.google.com/gke-accelerator: $pool}"
  limits="{nvidia.com/gpu: $chips}"
  variables+=("JEPA_VL_COORDINATOR=$workload-slice-0-0.$workload:$PORT" "JEPA_VL_PROCESSES=$slices")
else
  if [[ -z $per_host ]]; then
    per_host=4
    [[ $chip != v[56]e || $chips -gt 8 ]] || per_host=$chips
  fi
  ((chips % per_host == 0)) || die "--chips-per-host = $per_host: does not divide $chips chips"
  hosts=$((chips / per_host)) privileged=true
  selector="{cloud.google.com/gke-tpu-accelerator: $pool, cloud.google.com/gke-tpu-topology: $shape}"
  limits="{google.com/tpu: $per_host}"
fi
words=$(json jepa-vl)
for word in train --supervise "${arguments[@]}"; do words+=", $(json "$word")"; done
environment=''
for variable in "${variables[@]}"; do
  environment+=$'\n'"                    - name: ${variable%%=*}"
  environment+=$'\n'"                      value: $(json "${variable#*=}")"
done

filled=$(<"$ROOT/launch/jobset.yaml")
fill() { filled=${filled//"{{$1}}"/"$2"}; }
fill WORKLOAD "$workload"
fill IMAGE "$image"
fill CLAIM "$claim"
fill MAX_RESTARTS "$restarts"
fill SLICES "$slices"
fill HOSTS "$hosts"
fill SELECTOR "$selector"
fill LIMITS "$limits"
fill PRIVILEGED "$privileged"
fill PORT "$PORT"
fill CHIP "$chip"
fill ARGUMENTS "[$words]"
fill ENVIRONMENT "$environment"
if ((DRY_RUN)); then
  printf "kubectl apply -f - <<'YAML'\n%s\nYAML\n" "$filled"
else
  kubectl apply -f - <<<"$filled"
fi
