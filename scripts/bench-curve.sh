#!/usr/bin/env bash
# Measures clusters of growing size in both flavours of the tables and draws docs/plots from that.
# usage: bench-curve.sh FOLDER, where each run leaves its table and its line of JSON; SIZES and
# FLAVORS can be set to measure less. The binaries are those of the release build.
set -euo pipefail

folder=$1
release=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$folder"
for flavor in ${FLAVORS:-nft legacy}; do
    for services in ${SIZES:-100 1000 3000 10000 30000}; do
        "$release/examples/scale" "$release/kube-proxy-rs" \
            "N=$services" E=5 "FLAVOR=$flavor" LONE=10 IDLE=10 | tee "$folder/$flavor-$services.txt"
    done
done
cat "$folder"/*.txt > "$folder/all"
scripts/plot-performance.py "$folder/all"
