#!/usr/bin/env bash
# Compares `subrosa measure` with AWS's own crate on images that the crate builds, and on the images named as arguments.
# The crate is built once, into $SUBROSA_CACHE (default: $XDG_CACHE_HOME/subrosa or ~/.cache/subrosa): some 200 packages.
# Measured on 2 busy cores: 9 minutes (220 s of CPU) cold, 2 s warm.
# SUBROSA names the program; default: target/release/subrosa, built if it is missing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${SUBROSA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/subrosa}/eif-oracle
if ! pkg-config --exists openssl 2>/dev/null; then
    printf 'missing: the headers of OpenSSL 3 (the crate under comparison links it). Get them: apt-get install libssl-dev pkg-config\n' >&2
    exit 1
fi
target=${CARGO_TARGET_DIR:-$here/../target}
subrosa=${SUBROSA:-$target/release/subrosa}
if [ ! -x "$subrosa" ]; then
    cargo build --locked --release --manifest-path "$here/../Cargo.toml" --bin subrosa
fi
began=$(date +%s)
cargo build --locked --quiet --manifest-path "$here/eif-oracle/Cargo.toml" --target-dir "$cache"
printf 'eif-oracle: built in %s s\n' "$(($(date +%s) - began))"
"$cache/debug/eif-oracle" "$subrosa" "$@"
