#!/usr/bin/env bash
# Builds what our engine is measured against, once, into the cache: llama.cpp's llama-bench, llama-batched-bench and
# llama-quantize, and a Python that can write GGUF files. Prints the folder that holds them:
#
#   FOLDER/llama-bench   FOLDER/llama-batched-bench   FOLDER/llama-quantize   FOLDER/python/bin/python
#
# llama.cpp's source is the one inside the source package of llama-cpp-python: one pinned file of one registry.
# It is built for the processor that it runs on, as somebody who wants it fast would build it.
# About 10 minutes of processor time; CMAKE_BUILD_PARALLEL_LEVEL sets how many compilers run at the same time.
set -euo pipefail
cache=${SUBROSA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/subrosa}/llama.cpp

version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
# What pip and cmake need to unpack and build it.
build_packages=(cmake==4.4.4 ninja==1.13.2 scikit-build-core==1.1.2)
# What models.py needs; of what gguf names, only what its writer loads.
model_packages=(gguf==0.19.0 numpy==2.4.6 pyyaml==6.0.3 tqdm==4.67.1 requests==2.32.5)
tools=(llama-bench llama-batched-bench llama-quantize)

main() {
    for program in cc c++ python3; do
        command -v "$program" >/dev/null || fail "$program is missing. Get it: apt-get install gcc g++ python3 python3-venv"
    done
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    folder=$cache/$version-$(recipe)
    [ -d "$folder" ] || build
    printf '%s\n' "$folder"
}

# Another recipe, another processor or another compiler makes other programs.
recipe() {
    {
        declare -f build compile
        printf '%s\n' "$version" "$sha256" "${build_packages[@]}" "${model_packages[@]}"
        grep -m 1 -E '^(flags|Features)' /proc/cpuinfo || true
        c++ --version | head -n 1
    } | sha256sum | cut -c 1-16
}

build() {
    local started
    started=$(date +%s)
    rm -rf "$cache"/.building.*
    work=$(mktemp -d "$cache/.building.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/out"
    note "building llama.cpp of llama-cpp-python $version (about 10 minutes of processor time)"
    # In a shell of its own, as it changes PATH.
    (compile) >"$work/log" 2>&1 || {
        tail -n 40 "$work/log" >&2
        fail 'llama.cpp does not build: see the lines above'
    }
    mv -T "$work/out" "$folder"
    rm -rf "$work"
    note "built in $(($(date +%s) - started)) s"
}

# Each step by &&: in a condition, `set -e` does not hold.
compile() {
    local source=$work/source/vendor/llama.cpp
    python3 -m venv "$work/tools" && PATH=$work/tools/bin:$PATH &&
        pip install --quiet --disable-pip-version-check "${build_packages[@]}" &&
        printf 'llama-cpp-python==%s --hash=sha256:%s\n' "$version" "$sha256" >"$work/requirements" &&
        pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --no-build-isolation \
            --require-hashes --requirement "$work/requirements" --dest "$work/download" &&
        mkdir "$work/source" &&
        tar -xf "$work/download/llama_cpp_python-$version.tar.gz" -C "$work/source" --strip-components=1 &&
        # Where a processor has AMX: gcc 12 takes ldtilecfg to read 8 bytes, and leaves out what the other 56 are set to.
        sed -i 's/^    _tile_loadconfig(&tc);$/    __asm__ volatile("" : : "m"(tc));\n&/' "$source/ggml/src/ggml-cpu/amx/mmq.cpp" &&
        grep -q 'volatile("" : : "m"(tc))' "$source/ggml/src/ggml-cpu/amx/mmq.cpp" &&
        # Static, so that the programs can move. What these three do not need is left out; nothing may be fetched.
        cmake -S "$source" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
            -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_CCACHE=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_COMMON=ON \
            -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
            -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF &&
        cmake --build "$work/build" --target "${tools[@]}" --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" &&
        (cd "$work/build/bin" && strip "${tools[@]}" && mv "${tools[@]}" "$work/out/") &&
        python3 -m venv "$work/out/python" &&
        "$work/out/python/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "${model_packages[@]}" &&
        "$work/out/python/bin/python" -c 'import gguf' &&
        "$work/out/llama-bench" --list-devices
}

note() {
    printf 'build.sh: %s\n' "$*" >&2
}

fail() {
    note "$*"
    exit 1
}

main
