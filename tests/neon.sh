#!/usr/bin/env bash
# Runs the kernels' tests on emulated Arm processors: one with dotprod and i8mm, one with dotprod (Graviton2 has its cores), and one
# with neither, which gets plain Rust. Says nothing about speed.
#
# rustup's compiler needs the standard library of that target from rustup's server. Debian's (rustc-web, which it keeps current for
# browsers) comes by apt, as everything else here: it is unpacked into the cache, and the compiler of this machine stays what it is.
# The first run takes about 2 minutes on 2 cores. Arguments go to the tests, for example the name of one.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=enclave/image/kernel/apt.sh
. enclave/image/kernel/apt.sh

target=aarch64-unknown-linux-gnu
release=bookworm

main() {
    [ "$(uname -m)" = x86_64 ] || fail 'this is for x86-64; on Arm, make test runs the same tests'
    [ "$(release_here)" = "$release" ] || fail "this needs Debian $release, whose rustc-web is current"
    command -v cargo >/dev/null || fail 'cargo is missing: make tools says how to get it'
    local cache toolchain
    cache=$(subrosa_cache)/neon
    # A newer Rust of the project's asks for a newer one here.
    toolchain=$cache/$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    # Needed to link and to run, too.
    need_packages "$cache/apt" gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
    [ -x "$toolchain/rustc" ] || fetch "$toolchain" "$cache/apt"
    flock -u 9

    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/neon RUSTC=$toolchain/rustc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    note "$("$RUSTC" --version), $(qemu-aarch64 --version | head -n 1)"
    on max plain,neon-dotprod,neon-i8mm "$@"
    on neoverse-n1 plain,neon-dotprod "$@"
    on cortex-a72 plain "$@"
}

# Runs the tests on processor $1, which has the families $2: a test fails where those are not the ones that are found.
on() {
    local processor=$1 families=$2
    shift 2
    note "$processor: $families"
    KERNELS=$families CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $processor -L /usr/aarch64-linux-gnu" \
        cargo test --locked --release --package kernels --tests --target "$target" -- "$@"
}

# Unpacks the compiler and both standard libraries into folder $1, through apt state $2.
fetch() {
    local into=$1 state=$2 library package
    apt_state "$state" "$release"
    export APT_CONFIG=$state/apt.conf
    printf 'APT::Architectures { "amd64"; "arm64"; };\n' >>"$APT_CONFIG"
    apt-get update --quiet=2 >&2 || fail "apt-get update failed for arm64"
    library=$(dependency libstd-rust-web-dev 'libstd-rust-web-[0-9.]+')
    need_packages "$state" "$(dependency "$library" 'libllvm[0-9]+')"
    rm -rf "$(dirname "$into")"/.fetching.*
    work=$(mktemp -d "$(dirname "$into")/.fetching.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    note 'unpacking the compiler'
    (cd "$work" && apt-get download --quiet=2 rustc-web "$library" libstd-rust-web-dev:amd64 libstd-rust-web-dev:arm64) ||
        fail 'could not fetch the compiler'
    for package in "$work"/*.deb; do
        dpkg -x "$package" "$work/root"
        rm "$package"
    done
    cat >"$work/rustc" <<RUSTC
#!/bin/sh
here=\$(dirname "\$0")/root/usr
LD_LIBRARY_PATH=\$here/lib/x86_64-linux-gnu exec "\$here/bin/rustc" "\$@"
RUSTC
    chmod +x "$work/rustc"
    "$work/rustc" --version >/dev/null || fail 'the compiler was unpacked and does not run'
    rm -rf "$into"
    chmod 755 "$work"
    mv -T "$work" "$into"
    trap - EXIT
}

# The package of a name like $2 that package $1 depends on.
dependency() {
    local found
    found=$(apt-cache --no-all-versions show "$1" | sed -n 's/^Depends: //p' | grep -oE "\b$2\b" | head -n 1)
    [ -n "$found" ] || fail "package $1 of Debian $release does not depend on $2 as it did: tests/neon.sh has to follow"
    printf '%s\n' "$found"
}

main "$@"
