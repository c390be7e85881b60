#!/usr/bin/env bash
# Every benchmark: figures are ratios within one run. Nothing here is a test.
set -eu
cd "$(dirname "$0")/.."
cargo bench --locked -p sealing --bench message
cargo bench --locked -p attestation --bench verify
cargo bench --locked -p tests --bench end_to_end
cargo run --locked --release -p parent --example connections
