"""Writes a checkpoint as a GGUF file of the `llama` architecture."""

import argparse
import json
from pathlib import Path

import gguf
import torch

from model import Config
from tokenizer import BEGIN, CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS


def write_tokenizer(writer, tokenizer_file):
    described = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    vocabulary = described["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    assert [vocabulary[token] for token in tokens] == list(range(len(tokens)))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    types = [
        gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL for token in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary[BEGIN])
    writer.add_eos_token_id(vocabulary[END])
    writer.add_eot_token_id(vocabulary[END])
    writer.add_pad_token_id(vocabulary[PAD])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of tokenizer and checkpoint")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "subrosa-intake.gguf")
    parser.add_argument("--type", choices=["q8_0", "f16"], default="q8_0")
    arguments = parser.parse_args()
    saved = torch.load(arguments.work / "checkpoint.pt", weights_only=True)
    config = Config(**saved["config"])

    writer = gguf.GGUFWriter(arguments.out, "llama")
    writer.add_name("Subrosa Intake")
    writer.add_description("Summarises a synthetic clinical intake note; a demonstration, not a medical device")
    writer.add_license("Apache-2.0")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_vocab_size(config.vocabulary)
    quantised = gguf.GGMLQuantizationType.Q8_0 if arguments.type == "q8_0" else gguf.GGMLQuantizationType.F16
    writer.add_file_type(
        gguf.LlamaFileType.MOSTLY_Q8_0 if arguments.type == "q8_0" else gguf.LlamaFileType.MOSTLY_F16
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    assert write_tokenizer(writer, arguments.work / "tokenizer.json") == config.vocabulary

    for name, tensor in saved["model"].items():
        values = tensor.float().numpy()
        kind = quantised if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"step {saved['step']}: {arguments.out.name}, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
