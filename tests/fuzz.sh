#!/usr/bin/env bash
# Runs each fuzz target for FUZZ_SECONDS (default 20) on the pinned toolchain. A crash leaves its input in tests/fuzz/artifacts.
set -eu
cd "$(dirname "$0")"
if ! command -v cargo-fuzz >/dev/null 2>&1; then
    printf 'missing: cargo-fuzz. Get it: cargo install --locked cargo-fuzz@0.13.2\n' >&2
    exit 1
fi
export RUSTC_BOOTSTRAP=1
targets=$(sed -n 's/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml | grep -v '^fuzz$')
cargo fuzz build
passed=0
for target in $targets; do
    printf '== fuzz %s, %s s\n' "$target" "${FUZZ_SECONDS:-20}"
    cargo fuzz run "$target" -- -max_total_time="${FUZZ_SECONDS:-20}" -rss_limit_mb=2048 -timeout=10 -verbosity=0 -print_final_stats=1 2>&1 |
        grep -E 'stat::number_of_executed_units|ERROR|panicked|SUMMARY' || true
    [ "${PIPESTATUS[0]}" -eq 0 ] || { printf 'fuzz %s: FAILED\n' "$target"; exit 1; }
    passed=$((passed + 1))
done
printf 'fuzz: %s passed, 0 failed\n' "$passed"
