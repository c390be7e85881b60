#!/usr/bin/env bash
# Boots the enclave image in QEMU and runs the tests on it. Builds what is missing; what takes long is cached outside the
# checkout (${SUBROSA_CACHE:-~/.cache/subrosa}). Arguments go to the tests, for example the name of one.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$(date +%s)
say() { printf 'test-qemu: %s (%s s)\n' "$1" "$(($(date +%s) - started))" >&2; }

say 'QEMU and vhost-device-vsock'
bash tests/qemu/tools.sh >&2
say 'the image'
bash enclave/image/build.sh >/dev/null
say 'programs'
cargo build --locked --release --workspace --bins
say 'tests'
# The tests find the programs beside themselves, the image in target/eif, and the rest by the scripts above.
cargo test --locked --release --workspace --test qemu -- "$@"
say 'done'
