"""Makes of a model one whose answers are known: after each token it says the next of the vocabulary.

What attention and feed-forward add to a token's embedding becomes zero, all else
stays, and the output matrix is the embedding table, moved on by one row. So it
computes as much as the model it was made of (the values do not matter to the
time), and its answer, being known, can be put into its prompt: what speculation
gains is measured on true answers of a true model. Of a model with an embedding
table for its output, as models.py makes them. Needs `gguf`, as models.py does.
"""

import sys
from pathlib import Path

import gguf
import numpy


def succeed(source, target):
    reader = gguf.GGUFReader(source)
    fields = reader.fields
    writer = gguf.GGUFWriter(target, fields["general.architecture"].contents())
    for key, field in fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    kinds = fields["tokenizer.ggml.token_type"].contents()
    ordinary = kinds.index(gguf.TokenType.CONTROL)
    assert all(kind == gguf.TokenType.CONTROL for kind in kinds[ordinary:])
    for tensor in reader.tensors:
        values = tensor.data
        if tensor.name.endswith((".attn_output.weight", ".ffn_down.weight")):
            # In every block format: scales of zero.
            values = numpy.zeros_like(values)
        writer.add_tensor(tensor.name, values, raw_dtype=tensor.tensor_type)
        if tensor.name == "token_embd.weight":
            # Rows of control tokens are zero already, and stay where they are.
            moved = numpy.array(values)
            moved[:ordinary] = numpy.roll(values[:ordinary], 1, axis=0)
            writer.add_tensor("output.weight", moved, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    for source in map(Path, sys.argv[1:]):
        target = source.with_name(f"successor-{source.name}")
        if not target.exists():
            part = target.with_suffix(".part")
            succeed(source, part)
            part.rename(target)
        print(target, flush=True)


if __name__ == "__main__":
    main()
