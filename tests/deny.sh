#!/usr/bin/env bash
# Checks bans, licences and sources of every dependency by deny.toml. The advisory database is a download of its own:
# it is checked only where it is already on the machine.
set -eu
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null 2>&1; then
    printf 'missing: cargo-deny (checks the dependency rules). Get it: cargo install --locked cargo-deny@0.20.2\n' >&2
    exit 1
fi
# It reads the crates of every platform, and a build fetched those of this one.
cargo fetch --locked --quiet
cargo deny --offline --locked check bans licenses sources
if [ -d "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" ]; then
    cargo deny --offline --locked check advisories
else
    printf 'NOT CHECKED: advisories (no advisory database on this machine; `cargo deny fetch` gets it)\n'
fi
