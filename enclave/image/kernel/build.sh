#!/usr/bin/env bash
# Builds the kernel of the enclave image from the distribution's source package and our configuration.
#
#   build.sh                 build into the cache, or find it there; print the path of bzImage
#   build.sh --into DIR      build afresh inside DIR (to compare two builds); print the path of bzImage
#   KERNEL=FILE build.sh     use this bzImage instead (AWS's, for one); KERNEL_CONFIG=FILE is its configuration
#
# KERNEL_SOURCE=FILE takes the tarball from a file; KERNEL_SOURCE_ANY=1 takes whatever version apt offers now, where the
# pinned one is gone: such a kernel boots as well, but its measurements are not those that were published.
# Beside bzImage stand bzImage.config (what it was configured with) and bzImage.json (source and compiler).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=enclave/image/kernel/apt.sh
. "$here/apt.sh"
# shellcheck source=enclave/image/kernel/source
. "$here/source"

cache=$(subrosa_cache)
into=
case "${1-}" in
'') ;;
--into)
    mkdir -p "${2:?--into needs a folder}"
    into=$(cd "$2" && pwd)
    ;;
*) fail "expected no argument or --into DIR, found '$1'" ;;
esac

main() {
    mkdir -p "$cache/kernel"
    if [ -n "${KERNEL-}" ]; then
        adopt "$KERNEL" "${KERNEL_CONFIG-}"
        return
    fi
    need_packages "$cache/apt-$(release_here)" gcc libc6-dev make bc flex bison libelf-dev xz-utils zstd perl
    local key folder
    if [ -n "$into" ]; then
        tarball
        compile "$into" "$into"
        printf '%s\n' "$into/bzImage"
        return
    fi
    key=$(inputs | sha256sum | cut -c 1-16)
    folder=$cache/kernel/$key
    if [ -e "$folder/bzImage" ]; then
        printf '%s\n' "$folder/bzImage"
        return
    fi
    exec 9>"$cache/kernel/lock"
    flock 9
    tarball # with KERNEL_SOURCE_ANY it may be another, and so is then the kernel
    key=$(inputs | sha256sum | cut -c 1-16)
    folder=$cache/kernel/$key
    if [ ! -e "$folder/bzImage" ]; then
        rm -rf "$cache"/kernel/.building.*
        work=$(mktemp -d "$cache/kernel/.building.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        mkdir "$work/out"
        compile "$work" "$work/out"
        mv -T "$work/out" "$folder"
    fi
    printf '%s\n' "$folder/bzImage"
}

# Everything that decides the bytes of the kernel.
inputs() {
    printf '%s %s %s\n' "$package" "$version" "$sha256"
    toolchain
    cat "$here/config"
    declare -f clean compile
}

# One line for each program whose version can change the bytes.
toolchain() {
    clean gcc --version | sed -n '1s/^/gcc: /p'
    clean ld --version | sed -n '1s/^/ld: /p'
    clean zstd --version | grep -o 'v[0-9.]*' | sed -n '1s/^/zstd: /p'
}

# A program in an environment that is the same for everyone: no variable, path, locale or clock of the user.
clean() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=0 \
        KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' KBUILD_BUILD_USER=subrosa KBUILD_BUILD_HOST=subrosa \
        KBUILD_BUILD_VERSION=1 "$@"
}

# Sets $source to the tarball, fetched at most once.
tarball() {
    local state downloads=$cache/downloads offered work
    if [ -n "${KERNEL_SOURCE-}" ]; then
        source=$KERNEL_SOURCE
        verify
        return
    fi
    mkdir -p "$downloads"
    source=$downloads/${package}_$version.tar.xz
    if [ ! -e "$source" ]; then
        command -v apt-get >/dev/null || fail "no apt here: give the kernel by KERNEL=FILE, or its source by KERNEL_SOURCE=FILE"
        state=$cache/apt-$(release_here)
        apt_state "$state" "$(release_here)"
        offered=$(APT_CONFIG="$state/apt.conf" apt-cache madison "$package" | awk -F' *[|] *' '!seen[$2]++ { print $2 }')
        if ! grep -qxF "$version" <<<"$offered"; then
            [ -n "${KERNEL_SOURCE_ANY-}" ] ||
                fail "apt no longer offers $package $version (it has: $(tr '\n' ' ' <<<"$offered")). Give the tarball by" \
                    "KERNEL_SOURCE=FILE, or build what there is by KERNEL_SOURCE_ANY=1 (with other measurements)"
            version=$(sed -n 1p <<<"$offered")
            [ -n "$version" ] || fail "apt has no package $package: Debian 12 or later has it"
            note "NOT THE PINNED SOURCE: building $package $version; the measurements will not be the published ones"
            source=$downloads/${package}_$version.tar.xz
        fi
        note "fetching $package $version"
        work=$(mktemp -d "$downloads/.fetching.XXXXXX")
        (cd "$work" && APT_CONFIG="$state/apt.conf" apt-get download --quiet=2 "$package=$version" >&2 && dpkg -x ./*.deb .) ||
            fail "could not fetch $package $version"
        mv "$work"/usr/src/linux-source-*.tar.xz "$source"
        rm -rf "$work"
    fi
    verify
}

verify() {
    local found
    found=$(sha256sum <"$source" | cut -d ' ' -f 1)
    if [ "$found" != "$sha256" ]; then
        [ -n "${KERNEL_SOURCE_ANY-}" ] || fail "expected $source to have the SHA-256 $sha256, found $found"
        sha256=$found
    fi
}

# Builds in folder $1, leaves bzImage, its configuration and its provenance in folder $2.
compile() {
    local work=$1 out=$2 tree=$1/tree started jobs
    started=$(date +%s)
    jobs=$(nproc)
    rm -rf "$tree"
    mkdir -p "$tree"
    note "unpacking $package $version"
    tar -xJf "$source" -C "$tree" --strip-components=1 --no-same-owner
    umask 022
    cp "$here/config" "$tree/subrosa.config"
    note "building the kernel with $jobs jobs (about 6 minutes of processor time)"
    # In the tree and not beside it: then every path that the compiler sees begins at the tree's root.
    # Joined by &&: `set -e` means nothing on the left of ||.
    (
        cd "$tree" &&
            clean make --silent KCONFIG_ALLCONFIG=subrosa.config allnoconfig &&
            configured &&
            clean make --silent --jobs="$jobs" bzImage &&
            no_trace "$work"
    ) >"$work/kernel.log" 2>&1 || {
        tail -n 40 "$work/kernel.log" >&2
        fail 'the kernel does not build: see the lines above'
    }
    cp "$tree/arch/x86/boot/bzImage" "$out/bzImage.new"
    cp "$tree/.config" "$out/bzImage.config"
    provenance "$out/bzImage.new" >"$out/bzImage.json"
    chmod 644 "$out"/bzImage*
    mv "$out/bzImage.new" "$out/bzImage"
    rm -rf "$tree"
    note "built in $(($(date +%s) - started)) s: $(stat -c %s "$out/bzImage") bytes"
}

# Kconfig drops without a word what it cannot set: each line of ours must stand in the result.
configured() {
    local line name wrong=0
    while read -r line; do
        case "$line" in
        '' | '#'*) continue ;;
        *=n)
            name=${line%=n}
            ! grep -q "^$name=" .config && continue
            ;;
        *) grep -qxF "$line" .config && continue ;;
        esac
        printf 'not configured: %s (found: %s)\n' "$line" "$(grep -w "${line%%=*}" .config || printf nothing)"
        wrong=1
    done <subrosa.config
    return "$wrong"
}

# Neither the folder of the build nor the user's or the machine's name may occur in the kernel.
no_trace() {
    local found=0 word
    for word in "$1" "$HOME/" "$(id -un)@" "@$(uname -n)"; do
        # The kernel itself speaks of /root/.
        [ ${#word} -ge 7 ] || continue
        if grep -qaF -- "$word" vmlinux; then
            printf 'the kernel contains "%s", which differs from build to build\n' "$word"
            found=1
        fi
    done
    return "$found"
}

provenance() {
    printf '{\n  "source": "%s",\n  "version": "%s",\n  "sourceSha256": "%s",\n' "$package" "$version" "$sha256"
    toolchain | sed 's/^\([a-z]*\): \(.*\)$/  "\1": "\2",/'
    printf '  "bzImageSha256": "%s"\n}\n' "$(sha256sum <"$1" | cut -d ' ' -f 1)"
}

# Takes a kernel that somebody else built, under the names that the rest of the build expects.
adopt() {
    local kernel=$1 configuration=$2 folder
    [ -r "$kernel" ] || fail "KERNEL=$kernel cannot be read"
    if [ -z "$configuration" ]; then
        configuration=$kernel.config
        [ -r "$configuration" ] || fail "no $configuration: say KERNEL_CONFIG=FILE, the image's metadata names the configuration"
    fi
    [ -r "$configuration" ] || fail "KERNEL_CONFIG=$configuration cannot be read"
    folder=$cache/kernel/given-$(cat "$kernel" "$configuration" | sha256sum | cut -c 1-16)
    mkdir -p "$folder"
    cp "$configuration" "$folder/bzImage.config"
    printf '{\n  "source": "given",\n  "bzImageSha256": "%s"\n}\n' "$(sha256sum <"$kernel" | cut -d ' ' -f 1)" >"$folder/bzImage.json"
    cp "$kernel" "$folder/bzImage.new"
    mv "$folder/bzImage.new" "$folder/bzImage"
    printf '%s\n' "$folder/bzImage"
}

main
