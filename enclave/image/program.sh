#!/usr/bin/env bash
# Builds the enclave's program as one static file: the same bytes wherever and by whomever it is built.
# Prints the program's path. TARGET_DIR: where cargo works (default: target/image below the project's root).
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd -P)
target_dir=${TARGET_DIR:-$root/target/image}
mkdir -p "$target_dir"
target_dir=$(cd "$target_dir" && pwd -P)
triple=x86_64-unknown-linux-gnu
cargo_home=${CARGO_HOME:-$HOME/.cargo}
mkdir -p "$cargo_home"
cargo_home=$(cd "$cargo_home" && pwd -P)
cd "$root"
sysroot=$(rustc --print sysroot)
cargo fetch --locked --target "$triple" >&2

# No path of this machine may be part of the program: the sources of crates, of the standard library and of the project get
# names that are the same everywhere. (`trim-paths` would do this; it is not stable.) Of several that fit, the last counts.
maps=("$cargo_home=/cargo" "$sysroot=/rust" "$root=/subrosa" "$target_dir=/target")
for registry in "$cargo_home"/registry/src/*/; do
    maps+=("${registry%/}=/registry")
done
separator=$'\x1f'
flags="-Ctarget-feature=+crt-static${separator}-Cstrip=symbols"
# The same for what is C: aws-lc and ring name their files in their errors. Quoted as the crate `cc` reads it back, because a
# folder's name may hold a space.
cflags=''
for map in "${maps[@]}"; do
    flags+="${separator}--remap-path-prefix=$map"
    cflags+=" $(printf '%q' "-ffile-prefix-map=$map")"
done

# Nothing of the caller's environment decides what is built, but for where the tools are and where cargo works.
env -i PATH="$PATH" HOME="$HOME" LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=0 CARGO_HOME="$cargo_home" \
    ${RUSTUP_HOME:+RUSTUP_HOME="$RUSTUP_HOME"} ${CARGO_BUILD_JOBS:+CARGO_BUILD_JOBS="$CARGO_BUILD_JOBS"} \
    CARGO_TARGET_DIR="$target_dir" CARGO_ENCODED_RUSTFLAGS="$flags" CFLAGS="$cflags" CC_SHELL_ESCAPED_FLAGS=1 CARGO_TERM_PROGRESS_WHEN=never \
    cargo build --locked --release --package enclave --bin subrosa-enclave --target "$triple" >&2
program=$target_dir/$triple/release/subrosa-enclave

for trace in "$root" "$cargo_home" "$sysroot" "$target_dir" "$HOME/"; do
    if [ "$trace" != / ] && [ "$trace" != // ] && LC_ALL=C grep -qaF -- "$trace" "$program"; then
        printf 'program.sh: %s occurs in the program: it would be another one elsewhere\n' "$trace" >&2
        exit 1
    fi
done
if LC_ALL=C grep -qaE '(^|[^a-z])/(home|Users)/[A-Za-z0-9._-]+/|registry/src/' "$program"; then
    printf 'program.sh: a home or registry folder occurs in the program\n' >&2
    exit 1
fi
printf '%s\n' "$program"
