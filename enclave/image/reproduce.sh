#!/usr/bin/env bash
# Builds what is measured a second time: in another folder, under another user's name, with another home and another registry
# folder, from nothing. Says whether it is the same, byte by byte. --program-only leaves the kernel out. KEEP=DIR keeps both
# files where they differ.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
only=${1:-}
started=$(date +%s)
say() { printf 'reproduce: %s (%s s)\n' "$1" "$(($(date +%s) - started))"; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
copy="$scratch/some other folder"
mkdir -p "$copy" "$scratch/home" "$scratch/cargo/registry"
# What git knows, as it lies in the work tree: neither build results nor anything ignored.
(cd "$root" && git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- --create) | tar --extract -C "$copy"
# The same crates, unpacked under another path. Without a cache they are fetched again.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
for part in index cache; do
    [ ! -d "$cargo_home/registry/$part" ] || ln -s "$(cd "$cargo_home/registry/$part" && pwd -P)" "$scratch/cargo/registry/$part"
done
for configuration in config config.toml; do
    [ ! -f "$cargo_home/$configuration" ] || cp "$cargo_home/$configuration" "$scratch/cargo/"
done
as_other=()
if unshare --user --map-user=4711 --map-group=4711 true 2>/dev/null; then
    as_other=(unshare --user --map-user=4711 --map-group=4711)
else
    say 'this system gives no user namespace: the same user builds again'
fi
elsewhere() { # command...
    env HOME="$scratch/home" CARGO_HOME="$scratch/cargo" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" TZ=Asia/Kathmandu LC_ALL=C.UTF-8 \
        "${as_other[@]}" "$@"
}

compare() { # what, first, second
    if cmp -s "$2" "$3"; then
        say "$1: the same, SHA-384 $(sha384sum "$2" | cut -d' ' -f1)"
    else
        say "$1: NOT the same"
        ls -l "$2" "$3"
        cmp "$2" "$3" | head -n 1
        cmp -l "$2" "$3" 2>/dev/null | wc -l | sed 's/$/ bytes differ/'
        if [ -n "${KEEP:-}" ]; then
            cp "$2" "$KEEP/first"
            cp "$3" "$KEEP/second"
        fi
        exit 1
    fi
}

first=$(bash "$here/program.sh" 2>/dev/null)
say 'program, here'
second=$(TARGET_DIR="$scratch/target" elsewhere bash "$copy/enclave/image/program.sh" 2>"$scratch/log") || {
    tail -n 30 "$scratch/log"
    exit 1
}
say 'program, elsewhere'
compare program "$first" "$second"
[ "$only" != --program-only ] || exit 0

kernel=$(bash "$here/kernel/build.sh" 2>/dev/null)
say 'kernel, here'
# From the same tarball, whose digest is pinned: what is built is built again, what is fetched is not fetched again.
SUBROSA_CACHE=${SUBROSA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/subrosa} \
    elsewhere bash "$copy/enclave/image/kernel/build.sh" --into "$scratch/kernel" >/dev/null 2>"$scratch/log" || {
    tail -n 30 "$scratch/log"
    exit 1
}
say 'kernel, elsewhere'
compare kernel "$kernel" "$scratch/kernel/bzImage"
(cd "$root" && cargo build --locked --release --workspace --bin subrosa-image 2>/dev/null)
for build in first second; do
    program=$first kernel_file=$kernel config=$here/image.toml
    [ "$build" = first ] || { program=$second kernel_file=$scratch/kernel/bzImage config="$copy/enclave/image/image.toml"; }
    "${CARGO_TARGET_DIR:-$root/target}/release/subrosa-image" build --program "$program" --kernel "$kernel_file" \
        --image-config "$config" --output "$scratch/$build.eif"
done
compare image "$scratch/first.eif" "$scratch/second.eif"
