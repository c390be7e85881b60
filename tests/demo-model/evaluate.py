"""Greedy-decodes held-out notes with PyTorch from the GGUF file itself.

The weights are those of the file, dequantised, and so is the tokenizer: the
figures are of what is shipped and not of the checkpoint behind it.
"""

import argparse
import json
from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model import Config, Model
from notes import FIELDS, parse_answer
from tokenizer import END, prompt_text

MOST_NEW_TOKENS = 96
GROUP = 50


def load(path):
    reader = gguf.GGUFReader(path)

    def value(key):
        return reader.fields[key].contents()

    tokens = value("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([
        AddedToken(token, special=True)
        for token, kind in zip(tokens, value("tokenizer.ggml.token_type"))
        if kind == gguf.TokenType.CONTROL
    ])
    model = Model(Config(
        vocabulary=len(tokens),
        width=value("llama.embedding_length"),
        layers=value("llama.block_count"),
        heads=value("llama.attention.head_count"),
        kv_heads=value("llama.attention.head_count_kv"),
        feed_forward=value("llama.feed_forward_length"),
        context=value("llama.context_length"),
        rope_theta=value("llama.rope.freq_base"),
        norm_epsilon=value("llama.attention.layer_norm_rms_epsilon"),
    ))
    model.load_state_dict({
        tensor.name: torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in reader.tensors
    })
    return model.eval(), tokenizer


@torch.no_grad()
def decode(model, tokenizer, prompts):
    """Greedy continuations of prompts of any lengths, padded on the right."""
    end = tokenizer.token_to_id(END)
    rows = [tokenizer.encode(prompt).ids for prompt in prompts]
    starts = [len(row) for row in rows]
    running = set(range(len(rows)))
    for _ in range(MOST_NEW_TOKENS):
        order = sorted(running)
        longest = max(len(rows[index]) for index in order)
        inputs = torch.full((len(order), longest), end)
        for at, index in enumerate(order):
            inputs[at, : len(rows[index])] = torch.tensor(rows[index])
        last = torch.tensor([len(rows[index]) - 1 for index in order])
        hidden = model.hidden(inputs)[torch.arange(len(order)), last]
        for index, token in zip(order, model.logits(hidden).argmax(-1).tolist()):
            rows[index].append(token)
            if token == end:
                running.discard(index)
        if not running:
            break
    return [tokenizer.decode(row[start:]) for row, start in zip(rows, starts)]


def main():
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=here / "subrosa-intake.gguf")
    parser.add_argument("--held-out", type=Path, default=here / "held-out.jsonl")
    parser.add_argument("--limit", type=int, help="only the first notes")
    parser.add_argument("--show-errors", type=int, default=0, help="how many wrong fields to print")
    parser.add_argument("--threads", type=int, default=1, help="more is slower on a busy machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load(arguments.model)
    lines = arguments.held_out.read_text(encoding="utf-8").splitlines()[: arguments.limit]
    items = sorted((json.loads(line) for line in lines), key=lambda item: len(item["note"]))
    right = dict.fromkeys(FIELDS, 0)
    whole = 0
    shown = 0
    for at in range(0, len(items), GROUP):
        group = items[at : at + GROUP]
        answers = decode(model, tokenizer, [prompt_text(item["note"]) for item in group])
        for item, answer in zip(group, answers):
            fields = parse_answer(answer)
            wrong = [field for field in FIELDS if fields.get(field) != item["fields"][field]]
            for field in FIELDS:
                right[field] += field not in wrong
            whole += not wrong
            for field in wrong:
                if shown < arguments.show_errors:
                    shown += 1
                    print(f"{item['note']!r}\n  {field}: {item['fields'][field]!r}, got {fields.get(field)!r}")
    for field in FIELDS:
        print(f"{field}: {right[field]}/{len(items)} = {100 * right[field] / len(items):.1f} %")
    total = len(FIELDS) * len(items)
    print(f"all fields: {sum(right.values())}/{total} = {100 * sum(right.values()) / total:.2f} %")
    print(f"whole notes: {whole}/{len(items)} = {100 * whole / len(items):.1f} %")


if __name__ == "__main__":
    main()
