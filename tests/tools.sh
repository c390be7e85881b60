#!/usr/bin/env bash
# Names what is missing to build and test, and how to get it. Exit 1 if anything is.
set -u
missing=0
need() { # program, why, how
    if ! command -v "$1" >/dev/null 2>&1; then
        printf 'missing: %s (%s). Get it: %s\n' "$1" "$2" "$3" >&2
        missing=1
    fi
}
need cargo 'builds everything' 'install Rust by rustup (https://rustup.rs); rust-toolchain.toml names the version'
need cc 'compiles the C and assembly of ring and aws-lc' 'apt-get install gcc'
need make 'runs these commands' 'apt-get install make'
need python3 'runs the official SDKs that the tests compare with' 'apt-get install python3 python3-venv'
if command -v python3 >/dev/null 2>&1 && ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    printf 'missing: the venv module of python3. Get it: apt-get install python3-venv\n' >&2
    missing=1
fi
exit "$missing"
