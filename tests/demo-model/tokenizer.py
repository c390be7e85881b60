"""Makes the byte-level BPE tokenizer of the demonstration model.

Each drug of the formulary is one token by ordinary merges, with and without a
leading space and in both capitalisations, so an engine needs nothing but
GPT-2's pre-tokenizer and merges. Digits have no merges: a dose is always spelt
digit by digit, and copying it needs no knowledge of number tokens.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from formulary import FORMULARY, UNSEEN
from notes import answer_text, training_notes

BEGIN, USER, ASSISTANT, END, PAD = "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
SPECIAL_TOKENS = [BEGIN, USER, ASSISTANT, END, PAD]
VOCABULARY = 2560
# The weight of a drug name against the words of the sample: high enough that
# all names are merged before the vocabulary is full.
DRUG_WEIGHT = 1000

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] | trim }}<|end|>"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] | trim }}<|end|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def drug_forms(name):
    capital = name.capitalize()
    return [" " + name, name, " " + capital, capital]


def prompt_text(note):
    """The note under `CHAT_TEMPLATE`, with the generation prompt."""
    return f"{USER}{note.strip()}{END}{ASSISTANT}"


def _merge_sample():
    """The words that merges are learnt from."""
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words = Counter()
    for note, fields in training_notes(20_000, seed=77):
        text = note + "\n" + answer_text(fields)
        for piece, _ in pre_tokenizer.pre_tokenize_str(text):
            word = piece.removeprefix("Ġ").lower()
            if word not in FORMULARY and not re.search(r"\d", word):
                words[piece] += 1
    # Invented names and rare words would only fill the vocabulary.
    for piece, count in words.items():
        if count >= 60:
            for _ in range(min(count, 500)):
                yield piece.replace("Ġ", " ").replace("Ċ", "\n")
    for name in FORMULARY:
        for form in drug_forms(name):
            for _ in range(DRUG_WEIGHT):
                yield form


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_merge_sample(), trainer)
    check(tokenizer)
    return tokenizer


def check(tokenizer):
    for name in FORMULARY:
        for form in drug_forms(name):
            pieces = tokenizer.encode(form).tokens
            assert len(pieces) == 1, f"{form!r} is {pieces}"
        for around in (f"takes {name}, and", f"\n{name} 5 mg", f" {name}.", f"({name})"):
            assert any(piece.lstrip("Ġ") == name for piece in tokenizer.encode(around).tokens), around
    for name in UNSEEN:
        assert len(tokenizer.encode(" " + name).ids) > 1, name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="tokenizer.json to write")
    arguments = parser.parse_args()
    tokenizer = make_tokenizer()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.out))
    print(f"{tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
