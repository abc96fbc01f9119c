#!/usr/bin/env bash
# Runs a command, and ends it once it has said nothing for so long; how long it takes in all does not
# matter, for a busy machine is slow. The status is the command's, or 124 if it was ended.
#
#   scripts/unless-silent.sh SECONDS COMMAND [ARGUMENT...]
set -uo pipefail
limit=$1
shift
exec 3< <(exec "$@" 2>&1)
command=$!
give_up() { # in time for it to clean up, and then at once
    kill -TERM "$command" 2>/dev/null
    for _ in {1..50}; do
        kill -0 "$command" 2>/dev/null || return
        sleep 0.1
    done
    kill -KILL "$command" 2>/dev/null
}
trap 'give_up; exit 130' INT TERM
while true; do
    if IFS= read -r -t "$limit" -u 3 line; then
        printf '%s\n' "$line"
    elif [ $? -gt 128 ]; then
        printf '%s' "$line"
        echo "unless-silent: nothing was said for $limit s; giving up: $1" >&2
        give_up
        exit 124
    else
        printf '%s' "$line"
        wait "$command"
        exit $?
    fi
done
