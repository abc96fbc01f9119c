#!/usr/bin/env bash
# Runs what needs the kernel's ip_vs: the tests of ipvs-rs and of IPVS mode.
#
#   scripts/test-ipvs.sh [FILTER]     only tests whose name holds FILTER
set -euo pipefail
cd "$(dirname "$0")/.."

built() { # the test binary that cargo names last
    cargo test --locked --no-run "$@" 2>&1 | tee >(cat >&2) | sed -n 's/^ *Executable .*(\(.*\))$/\1/p' | tail -n 1
}
cargo build --locked -p ipvs-rs --example list
library=$(built -p ipvs-rs --test live)
mode=$(built --test netns)
[ -x "$library" ] && [ -x "$mode" ] || { echo "test-ipvs: cargo has not said where the tests are" >&2; exit 1; }

# One boot for all. A single test may take minutes, more on a busy host, and then says so; a machine
# that says nothing for this many seconds hangs.
export VM_SILENCE=${VM_SILENCE:-1200}
# shellcheck disable=SC2016 # the inner shell expands them
exec scripts/with-ipvs.sh bash -euc '
    library=$1 mode=$2 filter=$3
    named() { "$1" --list --ignored | sed -n "s/: test\$//p" | grep -F -- "$filter" || true; }
    alone=$(named "$mode" | grep "^ipvs::alone::" || true)
    if [ -z "$(named "$library")$(named "$mode" | grep "^ipvs::")" ]; then
        echo "test-ipvs: no test is named like $filter" >&2
        exit 1
    fi
    if [ -n "$alone" ] && [ ! -e /mnt/vm/.guest ]; then
        echo "test-ipvs: not in a virtual machine, so what disturbs all else on a kernel is LEFT OUT:" $alone
    elif [ -n "$alone" ]; then
        # shellcheck disable=SC2086 # a list of names
        "$mode" --ignored --exact $alone --test-threads 1
    fi
    "$library" --ignored "$filter"
    "$mode" --ignored "${filter:-ipvs::}" --skip ipvs::alone:: --test-threads 3
' - "$library" "$mode" "${1:-}"
