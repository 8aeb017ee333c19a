#!/bin/bash
# Keeps a copy of a run in a bucket that is mounted as a folder, for machines whose disks vanish with them.
#
#     mirror_run.sh restore BUCKET RUN     before the training: copy the newest copy to the folder RUN, if RUN holds no run
#     mirror_run.sh keep BUCKET RUN        beside the training: copy each new checkpoint, until this script is killed
#     mirror_run.sh once BUCKET RUN        after the training: copy the last checkpoint
#
# A copy also has the checkpoints that are linked as the best.
#
# A run needs a file system with renames and appends, which a mounted bucket is not. This script writes only whole files to
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
    local step copied name target log old
    step=$(last "$run/checkpoints" state.pt)
    copied=$(last "$bucket" complete)
    if [ "$step" -lt 0 ] || [ ! -f "$run/config.json" ]; then return 0; fi
    if [ "$step" -lt "$copied" ]; then
        echo "$0: $bucket: holds a copy of step $copied; expected none after step $step, the last in $run" >&2
        return 1
    fi
    name=$(printf 'step-%08d' "$step")
    target=$bucket/$name
    if [ "$step" -eq "$copied" ]; then copy_best "$name"; return; fi # an evaluation may have moved a link
    rm -rf "$target" && mkdir -p "$target" &&
        cp -r "$run/checkpoints/$name" "$target/checkpoint" &&
        cp "$run/config.json" "$target" || return 1
    for log in metrics.jsonl skipped.jsonl; do
        if [ -f "$run/$log" ]; then cp "$run/$log" "$target" || return 1; fi
    done
    copy_best "$name" || return 1
    touch "$target/complete" || return 1
    for old in "$bucket"/step-*; do
        if [[ ${old##*/step-} =~ ^[0-9]{8,18}$ ]] && ((10#${old##*/step-} < step)); then
            rm -f "$old/complete" && rm -rf "$old"
        fi
    done
}

# Copies the checkpoints that are linked as the best to the copy of the checkpoint $1. Buckets have no links: the file
# `best` holds the name of the checkpoint. It is written after the checkpoint, which is in the folder `linked`, unless it
# is the last one.
copy_best() {
    local link linked target=$bucket/$1
    for link in best best-t2s; do
        linked=$(readlink "$run/checkpoints/$link" || true)
        [[ $linked =~ ^step-[0-9]{8,18}$ ]] && [ -f "$run/checkpoints/$linked/state.pt" ] || continue
        if [ "$(cat "$target/$link" 2>/dev/null)" = "$linked" ]; then continue; fi
        if [ "$linked" != "$1" ] && ! grep -qsx "$linked" "$target/best" "$target/best-t2s"; then
            rm -rf "$target/linked/$linked" && mkdir -p "$target/linked" &&
                cp -r "$run/checkpoints/$linked" "$target/linked" || return 1
        fi
        echo "$linked" >"$target/$link" || return 1
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
        samples | tensorboard | lost+found) ;;
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
        # The copy is made inside RUN, on the same disk, so its parts can be renamed. config.json is renamed last: with
        # it, the run is whole. If this script is killed before, the next restore removes what has been renamed.
        new=$run/.restored
        if [ -f "$new/config.json" ] && [ ! -e "$new/checkpoints" ]; then
            rm -rf "$run/checkpoints" "$run/metrics.jsonl" "$run/skipped.jsonl"
        fi
        check_unused
        name=$(printf 'step-%08d' "$step")
        from=$bucket/$name
        rm -rf "$new"
        mkdir -p "$new/checkpoints"
        cp -r "$from/checkpoint" "$new/checkpoints/$name"
        for link in best best-t2s; do
            linked=$(cat "$from/$link" 2>/dev/null || true)
            [[ $linked =~ ^step-[0-9]{8,18}$ ]] || continue
            if [ ! -e "$new/checkpoints/$linked" ]; then cp -r "$from/linked/$linked" "$new/checkpoints"; fi
            ln -s "$linked" "$new/checkpoints/$link"
        done
        for log in metrics.jsonl skipped.jsonl; do
            if [ -f "$from/$log" ]; then cp "$from/$log" "$new"; fi
        done
        cp "$from/config.json" "$new"
        rm -rf "$run/samples" "$run/tensorboard" "$run/checkpoints" "$run/.lock" # the rest of a start, and nothing else
        mv "$new/checkpoints" "$run"
        for log in metrics.jsonl skipped.jsonl; do
            if [ -f "$new/$log" ]; then mv "$new/$log" "$run"; fi
        done
        mv "$new/config.json" "$run"
        rmdir "$new"
    fi
    ;;
keep)
    # SIGTERM ends the pause at once. A copy that has begun is finished first.
    copying='' stop=''
    trap 'if [ -n "$copying" ]; then stop=1; else jobs -p | xargs -r kill; exit 0; fi' TERM
    while true; do
        copying=1
        copy || true
        copying=''
        if [ -n "$stop" ]; then exit 0; fi
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
