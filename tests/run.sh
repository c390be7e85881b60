#!/usr/bin/env bash
# Runs every test, then says what did not run. Arguments go to `cargo test`.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --locked --release --workspace --no-fail-fast "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
not_run=$(sed -n 's/^NOT RUN: \([0-9]*\) third-party vectors.*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
if [ -n "$not_run" ] && [ "$not_run" != 0 ]; then
    printf 'NOT RUN: %s third-party vectors (set SUBROSA_VECTORS; sources and hashes in tests/VECTORS.md)\n' "$not_run"
fi
grep '^NOT RUN: ' "$log" | grep -v 'third-party vectors' | sort -u
exit "$status"
