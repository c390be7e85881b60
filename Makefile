# Subrosa. `make` alone says what there is.
.DEFAULT_GOAL := help
.PHONY: help tools build demo test test-qemu test-neon check evaluate eif reproduce eif-oracle run-enclave bench bench-inference bench-smoke fuzz

CARGO ?= cargo
FUZZ_SECONDS ?= 20
DEMO_NOTE ?= tests/demo-model/note.txt
MODEL = tests/demo-model/subrosa-intake.gguf

help: ## say what can be made
	@printf 'Subrosa: confidential inference in AWS Nitro Enclaves.\n\n'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@printf '\nThe first build takes about 10 minutes on 2 cores. DEMO_NOTE=FILE make demo asks about a note of yours.\n'

tools: ## name what is missing on this machine, and how to get it
	@bash tests/tools.sh

build: tools ## build every program (release)
	@$(CARGO) build --locked --release --workspace --bins

demo: build ## the whole path on this machine: ask, see the answer, see what is refused, search for leaks
	@target/release/demo --note $(DEMO_NOTE)

test: build ## every test; third-party vectors from $$SUBROSA_VECTORS or ../shared/testdata
	@bash tests/run.sh

test-qemu: tools ## boot the image in QEMU, and show what it answers and what it refuses
	@bash tests/qemu.sh

test-neon: tools ## the kernels' tests on emulated Arm processors, with and without dotprod and i8mm (Debian 12)
	@bash tests/neon.sh

check: tools ## formatting, lints, dependency rules
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --locked --release --workspace --all-targets -- -D warnings
	@bash tests/deny.sh

evaluate: build ## the demonstration model on its held-out notes: in our engine, and in llama.cpp
	@$(CARGO) build --locked --release --workspace --example evaluate
	@target/release/examples/evaluate --model $(MODEL) --held-out tests/demo-model/held-out.jsonl --at-least 0.95
	@target/release/examples/evaluate --model $(MODEL) --held-out tests/demo-model/held-out-unseen-drugs.jsonl
	@python3 tests/demo-model/llama_cpp_check.py

eif: tools ## the enclave image and its measurements, into target/eif (docs/MEASUREMENTS.md)
	@bash enclave/image/build.sh

reproduce: tools ## build program and kernel again elsewhere, and compare every byte
	@bash enclave/image/reproduce.sh

bench: build ## measure: sealing, attestation, end to end (ratios within one run)
	@bash tests/bench.sh

bench-inference: build ## the engine beside llama.cpp: Llama-3.2-1B and Qwen3-0.6B shapes, 1 and 2 threads (an hour)
	@bash tests/inference-bench/run.sh

bench-smoke: build ## the same in a minute, on a small shape
	@bash tests/inference-bench/run.sh --smoke

fuzz: tools ## run each fuzz target for FUZZ_SECONDS (20)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) bash tests/fuzz.sh

eif-oracle: build ## compare the image reader with AWS's own crate (built once, 4 minutes of CPU); IMAGES=FILES adds yours
	@bash tests/eif-oracle.sh $(IMAGES)

run-enclave: ## start EIF= with MEMORY= (MiB), CPUS=, CID= on a Nitro instance, and stay with it; DEBUG=1 shows its console
	@EIF=$(or $(EIF),target/eif/subrosa.eif) MEMORY=$(MEMORY) CPUS=$(or $(CPUS),2) CID=$(or $(CID),16) DEBUG=$(DEBUG) bash deploy/run-enclave.sh
