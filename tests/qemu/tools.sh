#!/usr/bin/env bash
# Builds what boots an enclave image here, once, into the cache: QEMU with its nitro-enclave machine, the firmware that
# it starts with, and vhost-device-vsock, which is the other end of the enclave's vsock. Prints one NAME=PATH line each:
#
#   QEMU=.../qemu-system-x86_64   FIRMWARE=.../share   VHOST_DEVICE_VSOCK=.../vhost-device-vsock
#
# Debian's own QEMU is built without libcbor and therefore without that machine, so it is built from Debian's source.
# Nothing here is measured, and nothing here ships.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=enclave/image/kernel/apt.sh
. "$here/../../enclave/image/kernel/apt.sh"

cache=$(subrosa_cache)
# The first release of Debian whose QEMU is 10.0 or later, where the machine can do what we need.
release=trixie
vhost_device_vsock=0.3.0

main() {
    mkdir -p "$cache"
    exec 9>"$cache/tools.lock"
    flock 9
    need_packages "$cache/apt-$(release_here)" gcc make pkg-config ninja-build flex bison xz-utils python3-venv dpkg-dev \
        libglib2.0-dev libcbor-dev libfdt-dev libgnutls28-dev
    local qemu
    qemu=$(found_qemu)
    if [ -z "$qemu" ]; then
        build_qemu
        qemu=$(found_qemu)
        [ -n "$qemu" ] || fail 'QEMU was built and does not run, or has no machine nitro-enclave'
    fi
    local vsock=$cache/vhost-device-vsock/$vhost_device_vsock
    [ -x "$vsock/vhost-device-vsock" ] || build_vsock "$vsock"
    printf 'QEMU=%s\nFIRMWARE=%s\nVHOST_DEVICE_VSOCK=%s\n' \
        "$qemu/qemu-system-x86_64" "$qemu/share" "$vsock/vhost-device-vsock"
}

# The folder of a QEMU that this script built as it stands now, and that runs.
found_qemu() {
    local folder
    for folder in "$cache"/qemu/*/; do
        folder=${folder%/}
        [ "$(cat "$folder/recipe" 2>/dev/null)" = "$(recipe)" ] || continue
        "$folder/qemu-system-x86_64" -M help 2>/dev/null | grep -q '^nitro-enclave' || continue
        printf '%s\n' "$folder"
        return
    done
}

recipe() {
    declare -f compile_qemu firmware | sha256sum | cut -c 1-16
}

build_qemu() {
    local started state version
    started=$(date +%s)
    mkdir -p "$cache/qemu"
    rm -rf "$cache"/qemu/.building.*
    work=$(mktemp -d "$cache/qemu/.building.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    state=$cache/apt-$release
    apt_state "$state" "$release"
    export APT_CONFIG=$state/apt.conf
    version=$(apt-cache showsrc --only-source qemu | sed -n 's/^Version: //p' | sort -V | tail -n 1)
    [ -n "$version" ] || fail "apt has no source package qemu of Debian $release"
    note "building QEMU $version (about 5 minutes of processor time)"
    mkdir "$work/download" "$work/source" "$work/out" "$work/out/share"
    (cd "$work/download" && apt-get source --quiet=2 --download-only "qemu=$version" >/dev/null) || fail "could not fetch the source of qemu $version"
    tar -xf "$work"/download/qemu_*.orig.tar.* -C "$work/source" --strip-components=1
    # In a shell of its own, as it goes into folders.
    (firmware && compile_qemu) >"$work/log" 2>&1 || {
        tail -n 40 "$work/log" >&2
        fail 'QEMU does not build: see the lines above'
    }
    recipe >"$work/out/recipe"
    # Without the epoch.
    rm -rf "$cache/qemu/${version#*:}"
    mv -T "$work/out" "$cache/qemu/${version#*:}"
    rm -rf "$work"
    note "QEMU $version built in $(($(date +%s) - started)) s"
}

# What the machine starts with, unpacked from Debian's package and not installed.
firmware() {
    (cd "$work/download" && apt-get download --quiet=2 qemu-system-data && dpkg -x qemu-system-data_*.deb root) &&
        cp "$work"/download/root/usr/share/qemu/{qboot.rom,linuxboot_dma.bin} "$work/out/share/"
}

compile_qemu() {
    local source=$work/source
    # Debian's tarball leaves out the wheels of the build system and the blobs of another firmware.
    python3 -m venv "$work/python" &&
        "$work/python/bin/pip" install --quiet --disable-pip-version-check meson==1.8.3 pycotap==1.3.1 &&
        sed -i 's/^if unpack_edk2_blobs$/if false/' "$source/pc-bios/meson.build" &&
        printf 'CONFIG_NITRO_ENCLAVE=y\nCONFIG_MICROVM=y\n' >"$source/configs/devices/x86_64-softmmu/nitro.mak" &&
        mkdir "$work/build" && cd "$work/build" &&
        "$source/configure" --python="$work/python/bin/python" --target-list=x86_64-softmmu \
            --without-default-features --without-default-devices --with-devices-x86_64=nitro \
            --enable-tcg --enable-kvm --enable-fdt=system --enable-libcbor --enable-gnutls --enable-vhost-user \
            --disable-install-blobs --disable-docs --disable-tools --disable-werror --disable-download &&
        ninja -j "$(nproc)" qemu-system-x86_64 &&
        strip qemu-system-x86_64 -o "$work/out/qemu-system-x86_64"
}

build_vsock() {
    local into=$1 started
    started=$(date +%s)
    command -v cargo >/dev/null || fail 'cargo is missing: make tools says how to get it'
    note "building vhost-device-vsock $vhost_device_vsock (about 2 minutes of processor time)"
    mkdir -p "$cache/vhost-device-vsock"
    rm -rf "$cache"/vhost-device-vsock/.building.*
    work=$(mktemp -d "$cache/vhost-device-vsock/.building.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # Where rust-toolchain.toml is.
    cd "$here"
    cargo install --quiet --locked --root "$work/root" --target-dir "$work/target" "vhost-device-vsock@$vhost_device_vsock" >&2 ||
        fail "vhost-device-vsock $vhost_device_vsock does not build"
    mkdir -p "$into"
    mv "$work/root/bin/vhost-device-vsock" "$into/vhost-device-vsock"
    rm -rf "$work"
    note "vhost-device-vsock built in $(($(date +%s) - started)) s"
}

main
