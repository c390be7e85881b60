#!/usr/bin/env bash
# Every benchmark: figures are ratios within one run. Nothing here is a test.
set -eu
cd "$(dirname "$0")/.."
for bench in message verify end_to_end; do
    cargo bench --locked --workspace --bench "$bench"
done
cargo build --locked --release --workspace --example connections
target/release/examples/connections
