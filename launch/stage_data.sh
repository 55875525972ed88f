#!/usr/bin/env bash
# usage: launch/stage_data.sh ACTION [--dry-run] ARGUMENTS
#
# Brings a data set near a host, and checks that it arrived whole.
#
# list DIR             write DIR/SHA256SUMS, the checksum of each file; once, where the data was made
# copy SOURCE DIR      copy SOURCE (a folder, or gs://BUCKET/FOLDER) to DIR, on local NVMe say, then
#                      verify; given again, only new and changed files of a bucket are copied
# copy --unverified    the same where SOURCE holds no SHA256SUMS
# verify DIR           compare each file with DIR/SHA256SUMS; 1 if one is missing or differs
# mount gs://BUCKET DIR   mount a bucket by gcsfuse, which is installed where it is missing (apt)
#
# --dry-run            print the commands, run nothing
set -euo pipefail
# shellcheck source=launch/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SUMS=SHA256SUMS
unverified=0 action=${1-} words=()
case $action in
  list | copy | verify | mount) shift ;;
  --help) usage && exit ;;
  *) die "action = '$action': one of list, copy, verify, mount" ;;
esac
for word in "$@"; do
  case $word in
    --dry-run) DRY_RUN=1 ;;
    --unverified) unverified=1 ;;
    --help) usage && exit ;;
    -*) die "$word: unknown; see stage_data.sh --help" ;;
    *) words+=("$word") ;;
  esac
done

arguments() {
  ((${#words[@]} == $1)) || die "$action takes $2; see stage_data.sh --help"
}

folder() {
  ((DRY_RUN)) || [[ -d $1 ]] || die "$action = '$1': no such folder"
}

sha256() {
  if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi
}

list() {
  arguments 1 DIR
  folder "${words[0]}"
  if ((DRY_RUN)); then
    echo "cd $(quoted "${words[0]}") && find . -type f ! -name $SUMS | sort | xargs sha256sum > $SUMS"
    return
  fi
  cd "${words[0]}"
  # A whole list or none: written beside it, then renamed.
  local file new
  new=$(mktemp "$SUMS.XXXXXX")
  find . -type f ! -name "$SUMS*" -print0 | LC_ALL=C sort -z |
    while IFS= read -r -d '' file; do sha256 "$file"; done >"$new"
  chmod a+r "$new"
  mv "$new" "$SUMS"
  echo "$(wc -l <"$SUMS" | tr -d ' ') files in ${words[0]}/$SUMS"
}

verify() {
  local dir=$1 found bad
  if ((DRY_RUN)); then
    echo "cd $(quoted "$dir") && sha256sum --check --quiet $SUMS"
    return
  fi
  [[ -f $dir/$SUMS ]] || die "verify = '$dir': holds no $SUMS; stage_data.sh list makes it"
  cd "$dir"
  if found=$(sha256 --check "$SUMS" 2>/dev/null); then
    echo "$(wc -l <"$SUMS" | tr -d ' ') files verified in $dir"
    return
  fi
  bad=$(grep -v ': OK$' <<<"${found:-$SUMS}" || true)
  printf 'stage_data.sh: error: %s: %s differ or are missing, first %s\n' "$dir" \
    "$(wc -l <<<"$bad" | tr -d ' ')" "$(head -n 1 <<<"$bad")" >&2
  exit 1
}

without_sums() {
  echo "copy = '$1': holds no $SUMS; make it (list), or take --unverified"
}

copy() {
  arguments 2 'SOURCE and DIR'
  local source=${words[0]%/} dir=${words[1]}
  if [[ $source != gs://* ]]; then
    folder "$source"
    ((unverified || DRY_RUN)) || [[ -f $source/$SUMS ]] || die "$(without_sums "$source")"
  fi
  execute mkdir -p "$dir"
  if [[ $source == gs://* ]]; then
    execute gcloud storage rsync --recursive "$source" "$dir"
  else
    execute cp -R -p "$source/." "$dir/"
  fi
  if ((unverified)); then
    echo "$dir: not verified"
  elif ((DRY_RUN)) || [[ -f $dir/$SUMS ]]; then
    verify "$dir"
  else
    die "$(without_sums "$source")"
  fi
}

mount_bucket() {
  arguments 2 'gs://BUCKET and DIR'
  local bucket=${words[0]#gs://} dir=${words[1]} key=/usr/share/keyrings/cloud.google.asc
  [[ ${words[0]} =~ ^gs://[^/]+$ ]] || die "mount = '${words[0]}': gs://BUCKET, without a folder"
  if ((!DRY_RUN)) && command -v mountpoint >/dev/null && mountpoint -q "$dir"; then
    echo "$dir: mounted already"
    return
  fi
  if ((DRY_RUN)) || ! command -v gcsfuse >/dev/null; then
    execute sudo curl -fsSL -o "$key" https://packages.cloud.google.com/apt/doc/apt-key.gpg
    execute sudo sh -c "echo \"deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" > /etc/apt/sources.list.d/gcsfuse.list"
    execute sudo apt-get -qq update
    execute sudo apt-get -qq install -y gcsfuse
  fi
  execute sudo mkdir -p "$dir"
  execute sudo chown "$(if ((DRY_RUN)); then echo USER; else id -u; fi)" "$dir"
  execute gcsfuse --implicit-dirs "$bucket" "$dir"
}

case $action in
  list) list ;;
  copy) copy ;;
  verify) arguments 1 DIR && verify "${words[0]}" ;;
  mount) mount_bucket ;;
esac
