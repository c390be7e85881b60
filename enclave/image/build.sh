#!/usr/bin/env bash
# Builds the enclave image and its measurements into OUT (default: target/eif). No Docker and no tool of AWS is needed.
#   KERNEL=FILE [KERNEL_CONFIG=FILE] [NSM_MODULE=FILE]   another kernel, such as AWS's own
#   IMAGE_CONFIG=FILE                                    another image configuration (release number, TLS roots)
#   SIGN_CERTIFICATE=FILE with SIGN_KEY=FILE or SIGN_KMS_KEY=ARN   a signed image (PCR8)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)
out=${OUT:-$root/target/eif}
started=$(date +%s)
say() { printf 'eif: %s (%s s)\n' "$1" "$(($(date +%s) - started))" >&2; }

mkdir -p "$out"
if [ -n "${KERNEL:-}" ]; then
    kernel=$KERNEL
    kernel_config=${KERNEL_CONFIG:-}
else
    say 'kernel'
    kernel=$(bash "$here/kernel/build.sh")
    kernel_config=$kernel.config
fi
say 'program'
program=$(bash "$here/program.sh")
say 'image'
(cd "$root" && cargo build --locked --release --workspace --bin subrosa-image --bin subrosa >&2)
bin=${CARGO_TARGET_DIR:-$root/target}/release

first() { "$@" 2>/dev/null | head -n 1; }
"$bin/subrosa-image" build --program "$program" --kernel "$kernel" ${kernel_config:+--kernel-config "$kernel_config"} \
    ${NSM_MODULE:+--module "$NSM_MODULE"} --image-config "${IMAGE_CONFIG:-$here/image.toml}" \
    --tool "Compiler=$(cd "$root" && rustc --version)" --tool "CCompiler=$(first cc --version)" \
    --tool "Linker=$(first ld --version)" --tool "CLibrary=$(first ldd --version)" \
    ${SIGN_CERTIFICATE:+--sign-certificate "$SIGN_CERTIFICATE"} ${SIGN_KEY:+--sign-key "$SIGN_KEY"} \
    ${SIGN_KMS_KEY:+--sign-kms-key "$SIGN_KMS_KEY"} --output "$out/subrosa.eif"
"$bin/subrosa" measure "$out/subrosa.eif" --json >"$out/measurements.json.part"
mv "$out/measurements.json.part" "$out/measurements.json"
say "$out/subrosa.eif, $(stat -c %s "$out/subrosa.eif") bytes"
cat "$out/measurements.json"
