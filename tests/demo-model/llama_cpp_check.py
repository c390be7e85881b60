"""Checks that llama.cpp reads the demonstration model and answers as it should.

llama.cpp comes as a prebuilt wheel (`xllamacpp`), installed into a temporary
environment. The held-out notes go through the chat template of the GGUF file
and are decoded greedily. Each field is one check: it passes where at least
95 % of the notes have it exact. Standard library only, until the environment
is made.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIELDS = ("complaint", "onset", "medication", "allergy", "urgency")
BAR = 0.95
MOST_NEW_TOKENS = 96


def answers(model_file, notes):
    """llama.cpp's answer to each note."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_file)
    params.n_ctx = 512
    params.n_parallel = 1
    params.verbosity = 0
    params.fit_params = False
    params.use_jinja = True
    # So small a model gains nothing from threads, and they wait for one another
    # on a busy machine.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    for note in notes:
        reply = server.handle_chat_completions({
            "messages": [{"role": "user", "content": note}],
            "max_tokens": MOST_NEW_TOKENS,
            "temperature": 0,
        })
        choice = reply["choices"][0]
        # An answer that ran into the limit never reached the end-of-turn token.
        yield choice["message"]["content"] if choice["finish_reason"] == "stop" else ""


def check(model_file, held_out_file, count):
    lines = held_out_file.read_text(encoding="utf-8").splitlines()[:count]
    items = [json.loads(line) for line in lines]
    right = dict.fromkeys(FIELDS, 0)
    for item, answer in zip(items, answers(model_file, [item["note"] for item in items])):
        found = dict(line.split(": ", 1) for line in answer.splitlines() if ": " in line)
        for field in FIELDS:
            right[field] += found.get(field) == item["fields"][field]
    passed = 0
    for field in FIELDS:
        good = right[field] >= BAR * len(items)
        passed += good
        print(f"{'ok    ' if good else 'FAILED'} {field}: {right[field]} of {len(items)} notes exact")
    print(f"{passed} passed, {len(FIELDS) - passed} failed")
    return passed == len(FIELDS)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE / "subrosa-intake.gguf")
    parser.add_argument("--held-out", type=Path, default=HERE / "held-out.jsonl")
    parser.add_argument("--notes", type=int, default=200, help="how many held-out notes")
    parser.add_argument("--inside", action="store_true", help="llama.cpp is importable: make no environment")
    arguments = parser.parse_args()
    if arguments.inside:
        sys.exit(0 if check(arguments.model, arguments.held_out, arguments.notes) else 1)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:",
             "-r", str(HERE / "requirements-llama-cpp.txt")],
            check=True,
        )
        done = subprocess.run([python, str(Path(__file__).resolve()), "--inside",
                               "--model", str(arguments.model.resolve()),
                               "--held-out", str(arguments.held_out.resolve()),
                               "--notes", str(arguments.notes)], check=False)
        sys.exit(1 if done.returncode else 0)


if __name__ == "__main__":
    main()
