#!/usr/bin/env bash
# Queues TPUs of Google Cloud, runs a command on all their machines until it is done, and gives them back:
#
#     launch/tpu.sh queue NAME [OPTIONS]
#     launch/tpu.sh run NAME [OPTIONS] -- COMMAND...
#     launch/tpu.sh stop NAME [OPTIONS]
#
# COMMAND is what follows `rationalyst`. OPTIONS are --zone and --project, and for queue and run all those of
# `gcloud compute tpus queued-resources create`, which refuses any other:
#
#     --accelerator-type=v5litepod-16        a slice, of one machine (v5litepod-8) or several
#     --node-count=2                         so many slices
#     --spot                                 cheaper, and may be taken away at any time
#     --runtime-version=v2-alpha-tpuv5-lite  image of the machines; by default the one for v5e, v5p or v6e
#
# run sends the package to all machines (rationalyst_jax, launch and what pip needs, nothing else) and starts
# launch/worker.sh there, in the home folder: other files, such as configs, must lie in a folder that the machines
# share. On several machines, commands other than train need `--shard tpu`, which divides the work.
#
# run queues the TPUs where there are none of that name, and again when they were taken away (SUSPENDED). It starts
# the command again after 75 (stopped, and can go on), after 134, 137 and 143 (a machine's process died) and after
# 255 (no connection), but not once any machine has ended with 1 or 2. It ends with the command's status. After 0 it
# deletes the TPUs; after an error they stay for a look, until `stop`. Settings, from the environment:
#
#     SETUP     shell commands for each machine before every start: mount a file system, export a token
#     PROGRESS  a command to run here that prints something else once the run has got further
#     TRIES     starts of the command without progress, 20 by default; all starts where there is no PROGRESS
#     POLL      seconds between looks at the state, 30 by default
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { # MESSAGE STATUS
    echo "tpu.sh: $1" >&2
    exit "$2"
}

action=${1-}
name=${2-}
case $action in queue | run | stop) ;; *) fail "the first word must be queue, run or stop, got '$action'" 2 ;; esac
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "the second word must be a name of a-z, 0-9 and -, got '$name'" 2
shift 2
where=()
create=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
    --zone | --project)
        [ $# -gt 1 ] || fail "$1 needs a value" 2
        where+=("$1=$2")
        shift
        ;;
    --zone=* | --project=*) where+=("$1") ;;
    *) create+=("$1") ;;
    esac
    shift
done
if [ "$action" = run ]; then
    [ $# -gt 1 ] || fail "run needs -- and what follows rationalyst" 2
    shift
elif [ $# -gt 0 ]; then
    fail "$action takes no command" 2
fi

asked=" ${create[*]-} "
case $asked in *" --node-count"*) create+=("--node-prefix=$name") ;; *) create+=("--node-id=$name") ;; esac
case $asked in
*" --runtime-version"*) ;;
*v5litepod-*) create+=(--runtime-version=v2-alpha-tpuv5-lite) ;;
*v5p-*) create+=(--runtime-version=v2-alpha-tpuv5) ;;
*v6e-*) create+=(--runtime-version=v2-alpha-tpuv6e) ;;
esac

poll=${POLL:-30}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

tpus() { # VERB ARGUMENTS...
    gcloud compute tpus queued-resources "$@" ${where[@]+"${where[@]}"} --quiet
}

state() { # prints NONE where nothing has that name
    if tpus describe "$name" --format='value(state.state)' 2>"$scratch/error"; then
        return
    elif grep -q NOT_FOUND "$scratch/error"; then
        echo NONE
    else
        cat "$scratch/error" >&2
        return 1
    fi
}

reach() { # ACTIVE or NONE; returns when the TPUs are there, or are gone
    local now verb status failed=0
    while true; do
        verb=describe status=0
        now=$(state) || status=$?
        case $1/$now in
        "$1/$1") return ;;
        "$1/") ;;
        ACTIVE/NONE) verb=create; tpus create "$name" "${create[@]}" || status=$? ;;
        ACTIVE/SUSPENDED) verb=delete; tpus delete "$name" --force || status=$? ;;
        NONE/*)
            verb=delete
            if tpus delete "$name" --force; then return; else status=$?; fi
            ;;
        ACTIVE/FAILED) fail "$name: $(tpus describe "$name" --format='value(state.failedData.error.message)')" 1 ;;
        esac
        [ "$status" != 2 ] || exit 2 # gcloud has said what it refuses
        if [ "$status" = 0 ]; then failed=0; else failed=$((failed + 1)); fi
        [ "$failed" -lt 10 ] || fail "$name: gcloud failed 10 times in a row, the last time to $verb it" 1
        sleep "$poll"
    done
}

# What each machine does. An earlier try may still be at work there, its connection lost: it is told to stop.
# The command holds the lock, and what SETUP leaves running does not.
on_machine() { # COMMAND...
    printf -v command '%q ' "$@"
    cat <<SCRIPT
exec 8>>rationalyst.lock
flock -n 8 || { kill "\$(cat rationalyst.pid)"; flock -w 600 8; } || exit 255
mkdir -p rationalyst && tar -xzf rationalyst.tgz -C rationalyst || exit 255
{
${SETUP:-:}
} 8>&- && (echo \$BASHPID >rationalyst.pid; exec rationalyst/launch/worker.sh $command)
status=\$?
echo "tpu.sh: \$(hostname) ended with \$status"
exit \$status
SCRIPT
}

on_all() { # VERB ARGUMENTS... on all machines; gcloud leaves out slices that it cannot reach, and returns 0
    tpus "$@" --node=all --worker=all --batch-size=all 2>&1 | tee "$scratch/log" || return
    ! grep -q 'Could not prepare all' "$scratch/log" || return 255
}

start() { # COMMAND... on all machines; returns 255 where one was left out, or none has said how it ended
    local status=0 ended
    on_all scp "$scratch/code" "$name:rationalyst.tgz" || return 255
    on_all ssh "$name" --command="$(on_machine "$@")" || status=$?
    ended=$(sed -nE 's/^tpu\.sh: .* ended with ([0-9]+)$/\1/p' "$scratch/log" | sort -un)
    case $'\n'$ended$'\n' in
    *$'\n1\n'*) return 1 ;;
    *$'\n2\n'*) return 2 ;;
    $'\n\n') return 255 ;;
    esac
    return "$status"
}

run() { # COMMAND...
    local tries=0 status progress before=''
    tar -C "$root" --exclude=__pycache__ -czf "$scratch/code" \
        rationalyst_jax launch pyproject.toml constraints.txt README.md LICENSE
    while true; do
        reach ACTIVE
        progress=$(bash -c "${PROGRESS:-:}") || progress=$before
        [ "$progress" = "$before" ] || tries=0
        before=$progress
        tries=$((tries + 1))
        status=0
        start "$@" || status=$?
        case $status in
        0)
            reach NONE
            return
            ;;
        75 | 134 | 137 | 143 | 255) ;;
        *) fail "ended with $status; $name is kept: tpu.sh stop $name deletes it" "$status" ;;
        esac
        [ "$tries" -lt "${TRIES:-20}" ] || fail "$tries starts without progress; $name is kept" "$status"
        echo "tpu.sh: ended with $status, starts again" >&2
        sleep "$poll"
    done
}

state >/dev/null || fail "gcloud cannot say whether there is a $name" 1
case $action in
queue) reach ACTIVE ;;
run) run "$@" ;;
stop) tpus delete "$name" --force ;;
esac
