#!/bin/bash
# Keeps a copy of a run in a bucket that is mounted as a folder, for machines whose disks vanish with them.
#
#     mirror_run.sh restore BUCKET RUN     before the training: copy the newest copy to the folder RUN, if RUN holds no run
#     mirror_run.sh keep BUCKET RUN        beside the training: copy each new checkpoint, until this script is killed
#     mirror_run.sh once BUCKET RUN        after the training: copy the last checkpoint
#
# A run needs a file system with renames and appends, which a mounted bucket is not. This script writes only new files to
# the bucket. A copy BUCKET/step-######## counts when it holds the file `complete`, which is written last.
set -euo pipefail
action=$1 bucket=$2 run=$3

# Prints the name of the last folder step-######## in $1 that holds the file $2.
last() {
    local found='' folder
    for folder in "$1"/step-????????; do
        if [ -f "$folder/$2" ]; then found=${folder##*/}; fi
    done
    echo "$found"
}

# Copies the last checkpoint with the run's record. Fails if the training removes the checkpoint meanwhile.
copy() {
    local step target old
    step=$(last "$run/checkpoints" state.pt)
    target=$bucket/$step
    if [ -z "$step" ] || [ ! -f "$run/config.json" ] || [ -f "$target/complete" ]; then return 0; fi
    rm -rf "$target" && mkdir -p "$target" &&
        cp -r "$run/checkpoints/$step" "$target/checkpoint" &&
        cp "$run/config.json" "$run/metrics.jsonl" "$target" &&
        touch "$target/complete" || return 1
    for old in "$bucket"/step-????????; do
        if [ "$old" != "$target" ]; then rm -f "$old/complete" && rm -rf "$old"; fi
    done
}

case $action in
restore)
    step=$(last "$bucket" complete)
    if [ -n "$step" ] && [ ! -f "$run/config.json" ]; then
        rm -rf "$run" "$run.restored"
        mkdir -p "$run.restored/checkpoints"
        cp -r "$bucket/$step/checkpoint" "$run.restored/checkpoints/$step"
        cp "$bucket/$step/config.json" "$bucket/$step/metrics.jsonl" "$run.restored"
        mv "$run.restored" "$run"
    fi
    ;;
keep)
    while true; do
        copy || true
        sleep "${SECONDS_BETWEEN:-60}"
    done
    ;;
once) copy ;;
*)
    echo "$0: expected restore, keep or once, found $action" >&2
    exit 2
    ;;
esac
