#!/usr/bin/env bash
# Runs each fuzz target for FUZZ_SECONDS (default 20) on the pinned toolchain. A crash leaves its input in tests/fuzz/artifacts.
set -eu
cd "$(dirname "$0")"
if ! command -v cargo-fuzz >/dev/null 2>&1; then
    printf 'missing: cargo-fuzz. Get it: cargo install --locked cargo-fuzz@0.13.2\n' >&2
    exit 1
fi
# The sanitizer's flags are unstable; the pinned stable compiler takes them with this.
export RUSTC_BOOTSTRAP=1
seconds=${FUZZ_SECONDS:-20}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo fuzz build
passed=0
for target in $(cargo fuzz list); do
    if ! cargo fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 >"$log" 2>&1; then
        tail -n 40 "$log"
        printf 'fuzz %s: FAILED\n' "$target"
        exit 1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    printf 'fuzz %s: %s runs in %s s, nothing found\n' "$target" "$runs" "$seconds"
    passed=$((passed + 1))
done
printf 'fuzz: %s passed, 0 failed\n' "$passed"
