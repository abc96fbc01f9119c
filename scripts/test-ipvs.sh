#!/usr/bin/env bash
# Runs what needs the kernel's ip_vs: the tests of ipvs-rs and of IPVS mode.
#
#   scripts/test-ipvs.sh [FILTER]     only tests of IPVS mode whose name holds FILTER
set -euo pipefail
cd "$(dirname "$0")/.."

built() { # the test binary that cargo names last
    cargo test --locked --no-run "$@" 2>&1 | tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p' | tail -n 1
}
mode=$(built --test netns)
library=$(built -p ipvs-rs --test live)
export VM_TIMEOUT=${VM_TIMEOUT:-3000}
scripts/with-ipvs.sh "$library" --ignored
scripts/with-ipvs.sh "$mode" --ignored "${1:-ipvs}"
