#!/bin/bash
# Keeps a copy of a run in a bucket that is mounted as a folder, for machines whose disks vanish with them.
#
#     mirror_run.sh restore BUCKET RUN     before the training: copy the newest copy to the folder RUN, if RUN holds no run
#     mirror_run.sh keep BUCKET RUN        beside the training: copy each new checkpoint, until this script is killed
#     mirror_run.sh once BUCKET RUN        after the training: copy the last checkpoint
#
# A run needs a file system with renames and appends, which a mounted bucket is not. This script writes only new files to
# the bucket. A copy BUCKET/step-######## counts when it holds the file `complete`, which is written last. A copy is
# removed only after a copy of a later step is complete.
set -euo pipefail
shopt -s nullglob
action=$1 bucket=${2%/} run=$(realpath -m "$3")

# Prints the highest step of the folders step-######## in $1 that hold the file $2, or -1.
last() {
    local found=-1 folder step
    for folder in "$1"/step-*; do
        step=${folder##*/step-}
        if [[ $step =~ ^[0-9]{8,18}$ ]] && [ -f "$folder/$2" ] && ((10#$step > found)); then found=$((10#$step)); fi
    done
    echo "$found"
}

# Copies the last checkpoint with the run's record. Fails if the training removes the checkpoint meanwhile.
copy() {
    local step copied name target old
    step=$(last "$run/checkpoints" state.pt)
    copied=$(last "$bucket" complete)
    if [ "$step" -lt 0 ] || [ ! -f "$run/config.json" ] || [ "$step" -eq "$copied" ]; then return 0; fi
    if [ "$step" -lt "$copied" ]; then
        echo "$0: $bucket: holds a copy of step $copied; expected none after step $step, the last in $run" >&2
        return 1
    fi
    name=$(printf 'step-%08d' "$step")
    target=$bucket/$name
    rm -rf "$target" && mkdir -p "$target" &&
        cp -r "$run/checkpoints/$name" "$target/checkpoint" &&
        cp "$run/config.json" "$target" || return 1
    if [ -f "$run/metrics.jsonl" ]; then cp "$run/metrics.jsonl" "$target" || return 1; fi
    touch "$target/complete" || return 1
    for old in "$bucket"/step-*; do
        if [[ ${old##*/step-} =~ ^[0-9]{8,18}$ ]] && ((10#${old##*/step-} < step)); then
            rm -f "$old/complete" && rm -rf "$old"
        fi
    done
}

# Fails unless RUN may be replaced: it is missing, empty, or the rest of a start that was killed before its config.json.
check_unused() {
    local path=
    if [ -e "$run" ] && [ ! -d "$run" ]; then
        echo "$0: $run: expected a folder, found a file" >&2
        return 1
    fi
    for path in "$run"/*; do
        case ${path##*/} in
        samples | tensorboard) ;;
        checkpoints) if [ "$(last "$path" state.pt)" -gt 0 ]; then break; fi ;;
        *) break ;;
        esac
        path=
    done
    if [ -n "$path" ]; then
        echo "$0: $run: has ${path##*/} but no config.json; expected a run, or an empty folder" >&2
        return 1
    fi
}

case $action in
restore)
    step=$(last "$bucket" complete)
    if [ "$step" -ge 0 ] && [ ! -f "$run/config.json" ]; then
        check_unused
        name=$(printf 'step-%08d' "$step")
        rm -rf "$run.restored"
        mkdir -p "$run.restored/checkpoints"
        cp -r "$bucket/$name/checkpoint" "$run.restored/checkpoints/$name"
        cp "$bucket/$name/config.json" "$run.restored"
        if [ -f "$bucket/$name/metrics.jsonl" ]; then cp "$bucket/$name/metrics.jsonl" "$run.restored"; fi
        rm -rf "$run"
        mv "$run.restored" "$run"
    fi
    ;;
keep)
    trap 'jobs -p | xargs -r kill; exit 0' TERM # it interrupts `wait` at once, and comes after a copy that has begun
    while true; do
        copy || true
        sleep "${SECONDS_BETWEEN:-60}" &
        wait $!
    done
    ;;
once) copy ;;
*)
    echo "$0: expected restore, keep or once, found $action" >&2
    exit 2
    ;;
esac
