#!/usr/bin/env bash
# Builds our bench, llama.cpp and random models in real shapes (once, into the cache), and measures both engines side by side;
# and before that, what speculation gains where the prompt contains the answer, and loses where it leads astray.
# --smoke: a small model, one thread, one round. Other arguments go to compare.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --locked --release --workspace --example bench
llama=$(bash tests/inference-bench/build.sh)
python=$llama/python/bin/python
ours=${CARGO_TARGET_DIR:-target}/release/examples/bench
if [ "${1:-}" = --smoke ]; then
    shift
    made=$("$python" tests/inference-bench/models.py smoke)
    options=(--threads 1 --rounds 1 --tries 1 --variants default)
else
    made=$("$python" tests/inference-bench/models.py llama-3.2-1b qwen3-0.6b)
    options=(--threads 1,2 --rounds 3)
fi
mapfile -t models <<<"$made"
for model in "${models[@]}"; do
    case $model in *-Q4_K_M.gguf) ;; *) continue ;; esac
    successor=$("$python" tests/inference-bench/successor.py "$model")
    printf '%s\n' "${successor##*/}"
    "$ours" --model "$successor" --threads 1 --extract 120 --copied 1,0.7,0 --rounds 3
done
python3 tests/inference-bench/compare.py --ours "$ours" --llama "$llama" "${options[@]}" "$@" --model "${models[@]}"
