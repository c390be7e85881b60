"""Makes GGUF files with random weights in the shapes of real models.

Speed depends on the shapes and on the block formats, not on the values. Each
shape is written as F16, row by row, and quantised by llama-quantize; the F16
file is deleted. A file that is there already is kept: delete it after a change
here. Prints the path of each file. Needs the packages `gguf` and `numpy`:
run it with the Python that build.sh made.
"""

import argparse
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

try:
    import gguf
    import numpy
except ImportError as error:
    sys.exit(f"models.py: {error}: use FOLDER/python/bin/python, FOLDER being what build.sh prints")

SEED = 20260101
# As in the initialisation of the real models.
DEVIATION = 0.02
# Values that are made at a time: 16 MiB of them.
CHUNK = 1 << 22


@dataclass(frozen=True)
class Shape:
    """What decides the time of a token."""

    architecture: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    rope_base: float
    epsilon: float
    pre_tokenizer: str
    # The first control token; all that follow are control tokens too.
    control_from: int
    # Tokens with a meaning, by how far they are behind `control_from`.
    special: tuple
    begin: int
    ends: tuple
    # Llama 3.2 divides its low rotary frequencies: (factor, low, high, original context).
    rope_scaling: tuple = None
    # Real contexts are longer; a benchmark has no need of them.
    context: int = 8192


LLAMA_SPECIAL = (
    (0, "<|begin_of_text|>"),
    (1, "<|end_of_text|>"),
    (6, "<|start_header_id|>"),
    (7, "<|end_header_id|>"),
    (9, "<|eot_id|>"),
)
QWEN_SPECIAL = ((0, "<|endoftext|>"), (1, "<|im_start|>"), (2, "<|im_end|>"))

SHAPES = {
    # For a run of a minute. Its weights are of the size of a cache: its figures say little about a real model.
    "smoke": Shape(
        architecture="llama",
        vocabulary=8192,
        width=768,
        layers=8,
        heads=12,
        kv_heads=4,
        head_width=64,
        feed_forward=2048,
        rope_base=500_000.0,
        epsilon=1e-5,
        pre_tokenizer="llama-bpe",
        control_from=8176,
        special=LLAMA_SPECIAL,
        begin=0,
        ends=(1, 9),
    ),
    "llama-3.2-1b": Shape(
        architecture="llama",
        vocabulary=128_256,
        width=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        head_width=64,
        feed_forward=8192,
        rope_base=500_000.0,
        epsilon=1e-5,
        pre_tokenizer="llama-bpe",
        control_from=128_000,
        special=LLAMA_SPECIAL,
        begin=0,
        ends=(1, 9),
        rope_scaling=(32.0, 1.0, 4.0, 8192),
    ),
    "qwen3-0.6b": Shape(
        architecture="qwen3",
        vocabulary=151_936,
        width=1024,
        layers=28,
        heads=16,
        kv_heads=8,
        head_width=128,
        feed_forward=3072,
        rope_base=1_000_000.0,
        epsilon=1e-6,
        pre_tokenizer="qwen2",
        control_from=151_643,
        special=QWEN_SPECIAL,
        begin=0,
        ends=(2, 0),
    ),
}
TYPES = ("Q8_0", "Q4_0", "Q4_K_M")

# Each pair, and what it makes, is a token.
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "e r", "Ġ a", "o n", "r e", "Ġ w", "a t")
CHAT_TEMPLATES = {
    "llama": "{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "qwen3": "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


def tokens(shape):
    """The 256 bytes as GPT-2 writes them, what the merges make, filling, control tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    texts = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    texts += [merge.replace(" ", "") for merge in MERGES]
    texts += [f"Ġfill{index}" for index in range(shape.control_from - len(texts))]
    special = dict(shape.special)
    texts += [special.get(index, f"<|reserved_{index}|>") for index in range(shape.vocabulary - shape.control_from)]
    assert len(set(texts)) == shape.vocabulary
    return texts


def write_metadata(writer, shape, name):
    writer.add_name(f"{name}, random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    control = shape.vocabulary - shape.control_from
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.pre_tokenizer)
    writer.add_token_list(tokens(shape))
    writer.add_token_types([gguf.TokenType.NORMAL] * shape.control_from + [gguf.TokenType.CONTROL] * control)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(shape.control_from + shape.begin)
    writer.add_eos_token_id(shape.control_from + shape.ends[0])
    writer.add_eot_token_id(shape.control_from + shape.ends[1])
    writer.add_add_bos_token(shape.architecture == "llama")
    writer.add_chat_template(CHAT_TEMPLATES[shape.architecture])


def matrices(shape):
    """Name and shape (outputs, inputs) of each tensor, in the order of the file; a norm has one dimension."""
    query, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    # No "output.weight": all these models use their embedding table for it.
    yield "token_embd.weight", (shape.vocabulary, shape.width)
    yield "output_norm.weight", (shape.width,)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (shape.width,)
        yield block + "attn_q.weight", (query, shape.width)
        yield block + "attn_k.weight", (kv, shape.width)
        yield block + "attn_v.weight", (kv, shape.width)
        if shape.architecture == "qwen3":
            yield block + "attn_q_norm.weight", (shape.head_width,)
            yield block + "attn_k_norm.weight", (shape.head_width,)
        yield block + "attn_output.weight", (shape.width, query)
        yield block + "ffn_norm.weight", (shape.width,)
        yield block + "ffn_gate.weight", (shape.feed_forward, shape.width)
        yield block + "ffn_up.weight", (shape.feed_forward, shape.width)
        yield block + "ffn_down.weight", (shape.width, shape.feed_forward)


def random_matrix(index, size, zero_from):
    """The same values for the same index on every machine; rows from `zero_from` on are zero."""
    inputs = size[1]
    random = numpy.random.Generator(numpy.random.SFC64([SEED, index]))
    matrix = numpy.zeros(size, dtype=numpy.float16)
    rows = max(1, CHUNK // inputs)
    for start in range(0, zero_from, rows):
        end = min(start + rows, zero_from)
        matrix[start:end] = random.standard_normal((end - start, inputs), dtype=numpy.float32) * DEVIATION
    return matrix


def rope_factors(shape):
    """By how much each rotary frequency is divided ("rope_type": "llama3" in Hugging Face transformers)."""
    factor, low, high, original = shape.rope_scaling
    divisors = []
    for pair in range(shape.head_width // 2):
        wavelength = 2 * math.pi * shape.rope_base ** (2 * pair / shape.head_width)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return numpy.array(divisors, dtype=numpy.float32)


def write(path, shape, name):
    """Writes the F16 file. One tensor is in memory at a time."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    write_metadata(writer, shape, name)
    all_matrices = list(matrices(shape))
    for tensor, size in all_matrices:
        kind = numpy.float16 if len(size) == 2 else numpy.float32
        writer.add_tensor_info(tensor, size, numpy.dtype(kind), math.prod(size) * numpy.dtype(kind).itemsize)
    if shape.rope_scaling:
        factors = rope_factors(shape)
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for index, (tensor, size) in enumerate(all_matrices):
        if len(size) == 1:
            values = numpy.ones(size, dtype=numpy.float32)
        else:
            # A control token's row is zero and its logit too, so that a greedy answer does not end at once.
            zero_from = shape.control_from if tensor == "token_embd.weight" else size[0]
            values = random_matrix(index, size, zero_from)
        writer.write_tensor_data(values)
    if shape.rope_scaling:
        writer.write_tensor_data(factors)
    writer.close()


def make(name, types, folder, quantize, threads):
    """The files of one shape; those that are missing are made."""
    files = {kind: folder / f"{name}-{kind}.gguf" for kind in types}
    missing = {kind: file for kind, file in files.items() if not file.exists()}
    # Under names of this process until they are whole.
    full = folder / f".{name}-F16.{os.getpid()}"
    part = folder / f".{name}.{os.getpid()}"
    try:
        if missing:
            note(f"{name}: F16")
            write(full, SHAPES[name], name)
        for kind, file in missing.items():
            note(f"{name}: {kind}")
            done = subprocess.run(
                [quantize, full, part, kind, str(threads)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
            if done.returncode:
                sys.exit(f"models.py: llama-quantize fails on {name}, {kind}:\n{done.stdout[-4000:]}")
            part.rename(file)
    finally:
        full.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return list(files.values())


def note(text):
    print(f"models.py: {text}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="+", choices=sorted(SHAPES), metavar="SHAPE", help=", ".join(sorted(SHAPES)))
    parser.add_argument("--types", type=lambda text: text.split(","), default=TYPES, help=f"default: {','.join(TYPES)}")
    parser.add_argument(
        "--llama",
        type=Path,
        default=Path(sys.prefix).parent,
        help="the folder that build.sh printed (default: that of this Python)",
    )
    parser.add_argument("--into", type=Path, help="default: the folder `models` beside it")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of llama-quantize")
    arguments = parser.parse_args()
    quantize = arguments.llama / "llama-quantize"
    if not quantize.is_file():
        sys.exit(f"models.py: {quantize} is missing: use FOLDER/python/bin/python, FOLDER being what build.sh prints")
    folder = arguments.into or arguments.llama.parent / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.shapes:
        for file in make(name, arguments.types, folder, quantize, arguments.threads):
            print(file, flush=True)


if __name__ == "__main__":
    main()
