"""Trains the demonstration model on synthetic notes, on the CPU.

Resumes from the checkpoint in `--work` where there is one. Every chunk of
notes is made from its own seed, so a resumed run sees the notes that an
uninterrupted one would have seen.
"""

import argparse
import math
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from model import Config, Model
from notes import FIELDS, answer_text, held_out_notes, training_notes, unseen_drug_notes
from tokenizer import END, PAD, make_tokenizer, prompt_text

MOST_STEPS = 15_000
BATCHES_IN_CHUNK = 250
EVALUATE_EVERY = 250
# The note is modelled too, lightly: copying forms sooner when what precedes
# a word is worth attending to.
NOTE_WEIGHT = 0.1


def encode(tokenizer, notes):
    """A list of (prompt tokens, answer tokens)."""
    prompts = tokenizer.encode_batch([prompt_text(note) for note, _ in notes])
    answers = tokenizer.encode_batch([answer_text(fields) + END for _, fields in notes])
    return [(prompt.ids, answer.ids) for prompt, answer in zip(prompts, answers)]


def collate(examples, pad):
    """Inputs, targets and per-target weights, padded on the right."""
    longest = max(len(prompt) + len(answer) for prompt, answer in examples) - 1
    inputs = torch.full((len(examples), longest), pad)
    targets = torch.full((len(examples), longest), pad)
    weights = torch.zeros(len(examples), longest)
    for row, (prompt, answer) in enumerate(examples):
        tokens = torch.tensor(prompt + answer)
        length = len(tokens) - 1
        inputs[row, :length] = tokens[:-1]
        targets[row, :length] = tokens[1:]
        weights[row, : len(prompt) - 1] = NOTE_WEIGHT
        weights[row, len(prompt) - 1 : length] = 1.0
    return inputs, targets, weights


def chunk_batches(tokenizer, pad, chunk, batch_size):
    """The batches of one chunk: notes of like length together, in random order."""
    notes = training_notes(BATCHES_IN_CHUNK * batch_size, seed=10_000 + chunk)
    examples = sorted(encode(tokenizer, notes), key=lambda example: len(example[0]) + len(example[1]))
    groups = [examples[at : at + batch_size] for at in range(0, len(examples), batch_size)]
    random.Random(chunk).shuffle(groups)
    return [collate(group, pad) for group in groups]


def learning_rate(step, steps, peak):
    warm_up = 200
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@torch.no_grad()
def field_accuracy(model, tokenizer, pad, notes):
    """Share of exact fields per field, each token given the true tokens before it.

    This is cheaper than decoding and the same as greedy decoding for an
    answer without any error; `evaluate.py` decodes.
    """
    model.eval()
    right = dict.fromkeys(FIELDS, 0)
    line_end = tokenizer.encode("\n").ids[0]
    examples = encode(tokenizer, notes)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index][0]))
    for at in range(0, len(order), 100):
        group = [examples[index] for index in order[at : at + 100]]
        inputs, targets, _ = collate(group, pad)
        with torch.autocast("cpu", torch.bfloat16):
            hits = model(inputs).argmax(-1) == targets
        for row, (prompt, answer) in enumerate(group):
            start = len(prompt) - 1
            line = [True]
            for token, hit in zip(answer, hits[row, start : start + len(answer)].tolist()):
                line[-1] = line[-1] and hit
                if token == line_end:
                    line.append(True)
            for field, exact in zip(FIELDS, line):
                right[field] += exact
    model.train()
    return {field: count / len(notes) for field, count in right.items()}


class ThreadChoice:
    """Keeps to the number of threads that is fastest just now.

    On a machine shared with other work two threads can be slower than one:
    each product waits for the thread that lost its core.
    """

    PERIOD, TRIAL = 60, 3

    def __init__(self, most):
        self.most = most
        self.best = most
        self.costs = {}

    def before(self, step):
        trial = step % self.PERIOD // self.TRIAL
        if step % self.PERIOD == 0:
            self.costs = {}
        self.current = trial + 1 if trial < self.most else self.best
        torch.set_num_threads(self.current)

    def after(self, seconds_per_token):
        self.costs[self.current] = min(seconds_per_token, self.costs.get(self.current, math.inf))
        if len(self.costs) == self.most:
            self.best = min(self.costs, key=self.costs.get)


def show(figures):
    mean = sum(figures.values()) / len(figures)
    return f"{mean:.4f} (" + " ".join(f"{field} {share:.3f}" for field, share in figures.items()) + ")"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of tokenizer and checkpoints")
    parser.add_argument("--steps", type=int, default=3_400, help="length of the whole schedule")
    parser.add_argument("--stop-at", type=int, help="stop earlier than the schedule's end")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2, help="the most to use")
    arguments = parser.parse_args()
    assert arguments.steps <= MOST_STEPS
    torch.manual_seed(1)

    arguments.work.mkdir(parents=True, exist_ok=True)
    tokenizer_file = arguments.work / "tokenizer.json"
    if not tokenizer_file.exists():
        make_tokenizer().save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    pad = tokenizer.token_to_id(PAD)

    model = Model(Config(vocabulary=tokenizer.get_vocab_size()))
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.peak, betas=(0.9, 0.98), eps=1e-8, fused=True,
    )
    checkpoint_file = arguments.work / "checkpoint.pt"
    step = 0
    if checkpoint_file.exists():
        saved = torch.load(checkpoint_file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
        print(f"resumed at step {step}", flush=True)
    print(f"{model.parameter_count()} parameters", flush=True)

    def save():
        fresh = checkpoint_file.with_suffix(".new")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "step": step, "config": asdict(model.config)}, fresh)
        fresh.replace(checkpoint_file)

    held_out = held_out_notes(300, seed=2_000_001)
    unseen = unseen_drug_notes(150, seed=2_000_002)
    end = min(arguments.steps, arguments.stop_at or arguments.steps)
    if step == 0:
        save()
    threads = ThreadChoice(arguments.threads)
    batches, loaded, started, mean_loss = [], None, time.time(), None
    while step < end:
        chunk, at = divmod(step, BATCHES_IN_CHUNK)
        if chunk != loaded:
            batches, loaded = chunk_batches(tokenizer, pad, chunk, arguments.batch), chunk
        inputs, targets, weights = batches[at]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.peak)
        threads.before(step)
        step_started = time.time()
        answer_at = (weights == 1).flatten().nonzero().squeeze(1)
        note_at = (weights == NOTE_WEIGHT).flatten().nonzero().squeeze(1)
        # Logits are a good part of a step's cost: a quarter of the note is enough.
        note_at = note_at[torch.rand(len(note_at)) < 0.25]
        flat_targets = targets.flatten()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.hidden(inputs).flatten(0, 1)
            answer_logits, note_logits = model.logits(hidden[answer_at]), model.logits(hidden[note_at])
        answer_loss = F.cross_entropy(answer_logits.float(), flat_targets[answer_at])
        note_loss = F.cross_entropy(note_logits.float(), flat_targets[note_at])
        loss = answer_loss + NOTE_WEIGHT * note_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        threads.after((time.time() - step_started) / inputs.numel())
        step += 1
        latest = answer_loss.item()
        mean_loss = latest if mean_loss is None else 0.97 * mean_loss + 0.03 * latest
        if step % 50 == 0:
            print(f"step {step} answer loss {mean_loss:.4f} {(time.time() - started):.0f} s, {threads.best} threads", flush=True)
        if step % EVALUATE_EVERY == 0 or step == end:
            save()
            print(f"step {step} held out {show(field_accuracy(model, tokenizer, pad, held_out))}", flush=True)
            print(f"step {step} unseen drugs {show(field_accuracy(model, tokenizer, pad, unseen))}", flush=True)


if __name__ == "__main__":
    main()
