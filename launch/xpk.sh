#!/usr/bin/env bash
# usage: launch/xpk.sh build|run|logs|delete [OPTION...] [-- ARGUMENTS OF jepa-vl train]
#
# Training on GKE by XPK (pip install xpk), which makes a JobSet and queues it by Kueue. The cluster
# exists already: xpk cluster create --help.
#
# build   make the image from launch/Dockerfile and push it    (--image, --device)
# run     submit the workload                   (all but --device; again with the same name: refused)
# logs    follow the first pod                  (--workload)
# delete  stop the workload and forget it       (--cluster, --workload)
#
# --cluster NAME --workload NAME --image REGISTRY/NAME:TAG
# --type TYPE       v5e-256, v5p-128, v6e-8 ... or a device type of XPK, as in h100-80gb-8
# --slices K        slices, or nodes of GPUs (default 1)
# --device DEVICE   tpu (default) or gpu: what the image is made for
# --zone ZONE --project PROJECT    (default: gcloud's)
# --max-restarts N  of the whole workload (default 50); each resumes from the workdir
# --env NAME=VALUE  variable of the run, as often as needed; secrets do not belong here
# --dry-run         print the commands, run nothing
# PYTHON            variable: a Python of at least 3.11 on this machine (default python3)
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

action=${1-} cluster='' workload='' image='' type='' slices=1 device=tpu restarts=50
where=() variables=() arguments=()
case $action in
  build | run | logs | delete) shift ;;
  --help) usage && exit ;;
  *) die "action = '$action': one of build, run, logs, delete" ;;
esac
while (($#)); do
  case $1 in
    --cluster | --workload | --image | --type) need "$1" "${2-}" && printf -v "${1#--}" %s "$2" ;;
    --slices) need_count "$1" "${2-}" && slices=$2 ;;
    --max-restarts) need_count "$1" "${2-}" && restarts=$2 ;;
    --device)
      [[ ${2-} == tpu || ${2-} == gpu ]] || die "--device = '${2-}': tpu or gpu"
      device=$2
      ;;
    --zone | --project) need "$1" "${2-}" && where+=("$1=$2") ;;
    --env) need_variable "$1" "${2-}" && variables+=("$2") ;;
    --dry-run) DRY_RUN=1 && shift && continue ;;
    --help) usage && exit ;;
    --) shift && arguments=("$@") && break ;;
    *) die "$1: unknown; see xpk.sh --help" ;;
  esac
  shift 2
done

# Sets kind, the options that name the hardware, and chip.
resolve_type() {
  need --type "$type"
  if chip=$(hardware "$type" name 2>/dev/null) && [[ -n $(hardware "$type" runtime) ]]; then
    kind=(--tpu-type="$(hardware "$type" accelerator)" --num-slices="$slices")
  else
    chip=${type%%-*}
    if [[ $type != *-*-* ]] || ! hardware "$chip" name >/dev/null 2>&1; then
      die "--type = '$type': a TPU slice, as in v5e-256, or a device type, as in h100-80gb-8"
    fi
    kind=(--device-type="$type" --num-nodes="$slices")
  fi
}

run() {
  local variable
  need --cluster "$cluster"
  need --workload "$workload"
  need --image "$image"
  ((${#arguments[@]})) || die "-- : give the arguments of jepa-vl train after it"
  resolve_type
  command=(xpk workload create --cluster="$cluster" --workload="$workload" "${kind[@]}")
  ((!${#where[@]})) || command+=("${where[@]}")
  command+=(--docker-image="$image" --max-restarts="$restarts" --env="JEPA_VL_CHIP=$chip")
  for variable in TPU_MIN_LOG_LEVEL=2 ${variables[@]+"${variables[@]}"}; do
    command+=(--env="$variable")
  done
  execute "${command[@]}" \
    --command="launch/entrypoint.sh jepa-vl train --supervise $(quoted "${arguments[@]}")"
}

case $action in
  build)
    need --image "$image"
    execute docker build --file "launch/Dockerfile" --build-arg "DEVICE=$device" --tag "$image" .
    execute docker push "$image"
    ;;
  run) run ;;
  logs)
    need --workload "$workload"
    execute kubectl logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$workload,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete)
    need --cluster "$cluster"
    need --workload "$workload"
    command=(xpk workload delete --cluster="$cluster" --workload="$workload")
    ((!${#where[@]})) || command+=("${where[@]}")
    execute "${command[@]}" --force
    ;;
esac
