#!/usr/bin/env bash
# Drives every fuzz target by coverage, two at a time: fuzz.sh SECONDS [TARGET...]
#
# On stable Rust: the compiler's coverage pass and libFuzzer need nothing else. Only our own crates
# are instrumented (generic code of others is compiled as part of them), so all else is shared with
# the other builds. What is learnt stays in .cache/fuzz for the next run; an input that finds
# something is kept in .cache/fuzz/found and belongs, once mended, into fuzz/regressions/TARGET.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --rustc ]; then # as the wrapper of rustc for our crates
    shift
    exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Copt-level=1 -Ccodegen-units=4
fi
seconds=$1
shift
CACHE=$PWD/.cache/fuzz
wrapper=$CACHE/rustc
mkdir -p "$CACHE/corpus" "$CACHE/found" "$CACHE/log"
printf '#!/bin/sh\nexec "%s" --rustc "$@"\n' "$PWD/scripts/fuzz.sh" >"$wrapper"
chmod +x "$wrapper"
RUSTC_WORKSPACE_WRAPPER=$wrapper cargo build --quiet --locked -p fuzz --features libfuzzer --bin fuzz
# The next ordinary build replaces the program; ours must stay as it is while it runs.
cp target/debug/fuzz "$CACHE/fuzz"
listed=$(FUZZ_SEEDS=$CACHE/corpus "$CACHE/fuzz")
mapfile -t targets <<<"$listed"
[ $# -eq 0 ] || targets=("$@")

run() {
    local target=$1 log=$CACHE/log/$1
    if FUZZ_TARGET=$target "$CACHE/fuzz" -max_total_time="$2" -timeout=20 -rss_limit_mb=2048 -max_len=65536 \
        -artifact_prefix="$CACHE/found/$target-" "$CACHE/corpus/$target" >"$log" 2>&1; then
        echo "fuzz: $target: $(sed -n 's/^Done \(.*\)/\1/p' "$log"), $(sed -n 's/.*\(cov: [0-9]* ft: [0-9]*\).*/\1/p' "$log" | tail -n 1)"
    else
        tail -n 40 "$log" >&2
        echo "fuzz: $target: FOUND SOMETHING, see above and .cache/fuzz/found" >&2
        return 1
    fi
}
export CACHE
export -f run
printf '%s\n' "${targets[@]}" | xargs -P 2 -I TARGET bash -c "run TARGET $seconds"
