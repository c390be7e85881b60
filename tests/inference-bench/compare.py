"""Our engine and llama.cpp on the same files: interleaved, medians, ratios.

Each measurement is a process of its own. In one round every engine is measured
once on every file; the next round goes in the opposite order. llama.cpp runs
with its default settings and with flash attention switched on, and the better
median counts. Every process is held to as many cores as it has threads, and
what others took of those cores meanwhile is read from the kernel. A round
counts only if that was little for all engines: less than 2 % with two threads
or more, which wait for one another, and less than 5 % with one, which only
loses its share. Standard library only.
"""

import argparse
import contextlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MOST_OF_OTHERS, MOST_OF_OTHERS_WITH_ONE_THREAD = 0.02, 0.05
MEMORY_BAR = 1.1
MIB = 1 << 20

OURS = "ours"
VARIANTS = {"default": [], "fa-on": ["-fa", "on"], "fa-off": ["-fa", "off"]}

# Of the table, and how each is written that is no text.
COLUMNS = "model test threads ours llama_cpp variant ratio bar holds rounds others note".split()
WRITTEN = {"ours": "{:.1f}", "llama_cpp": "{:.1f}", "ratio": "{:.2f}", "others": "{:.1%}"}


@dataclass(frozen=True)
class Test:
    """One figure of a group; a group is measured by one process of each engine."""

    name: str
    # `n`, `depth` and `sequences` of the line that our bench prints.
    kind: str
    n: int
    depth: int
    sequences: int
    bar: float
    # The file types that the bar is set for (`general.file_type`).
    types: tuple


@dataclass(frozen=True)
class Group:
    ours: tuple
    llama_program: str
    llama: tuple
    tests: tuple
    # Positions that are in the KV cache at the end.
    positions: int


Q4_0, Q8_0, Q4_K_M = 2, 7, 15
ALL = (Q4_0, Q8_0, Q4_K_M)
# Our bench always measures a prefill and a decode; the one that is not asked for is kept short.
SHORT_PREFILL, SHORT_DECODE = 16, 4

GROUPS = {
    "prefill": Group(
        ours=("--prefill", "128,512", "--decode", str(SHORT_DECODE), "--depth", "0", "--sequences", "1"),
        llama_program="llama-bench",
        llama=("-p", "128,512", "-n", "0"),
        tests=(
            Test("prefill 128", "prefill", 128, 0, 1, 2.0, (Q8_0, Q4_K_M)),
            Test("prefill 512", "prefill", 512, 0, 1, 2.0, (Q8_0, Q4_K_M)),
        ),
        positions=512,
    ),
    "decode": Group(
        ours=("--prefill", str(SHORT_PREFILL), "--decode", "64", "--depth", "0", "--sequences", "1"),
        llama_program="llama-bench",
        llama=("-p", "0", "-n", "64"),
        tests=(Test("decode 64", "decode", 64, 0, 1, 1.0, ALL),),
        positions=64,
    ),
    "depth": Group(
        ours=("--prefill", str(SHORT_PREFILL), "--decode", "32", "--depth", "1024", "--sequences", "1"),
        llama_program="llama-bench",
        llama=("-p", "0", "-n", "32", "-d", "1024"),
        tests=(Test("decode 32 at 1024", "decode", 32, 1024, 1, 1.5, ALL),),
        positions=1024 + 32,
    ),
    "batch": Group(
        ours=("--prefill", str(SHORT_PREFILL), "--decode", "32", "--depth", "32", "--sequences", "8"),
        llama_program="llama-batched-bench",
        # Room for 8 times 256 positions, the least that it takes.
        llama=("-c", "2048", "-npp", "32", "-ntg", "32", "-npl", "8"),
        tests=(Test("decode 32, 8 sequences", "batch", 32, 32, 8, 3.0, ALL),),
        positions=8 * (32 + 32),
    ),
}


@dataclass
class Ran:
    """What one process did."""

    tokens_per_second: dict
    # Highest resident memory, as the kernel counted it.
    peak_mib: float
    # Share of the cores that went to others.
    others: float
    # As our bench says it; None for llama.cpp.
    stated_mib: float = None
    kernel: str = None


@dataclass
class Model:
    path: Path
    file_type: int
    kv_bytes_per_position: int


def main():
    arguments = parse_arguments()
    ours, llama = programs(arguments)
    models = [read_model(path) for path in arguments.model]
    # By (model, threads, group): a dict by engine for each round.
    results = {}
    try:
        for turn in range(arguments.rounds):
            for model in models:
                for threads in arguments.threads:
                    for name in arguments.only:
                        label = f"round {turn + 1} of {arguments.rounds}, {model.path.stem}, {threads} threads, {name}"
                        ran = one_round(ours, llama, arguments, model, threads, GROUPS[name], turn, label)
                        results.setdefault((model.path, threads, name), []).append(ran)
    except KeyboardInterrupt:
        note("interrupted: the table has the rounds so far")
    rows = [
        row
        for model in models
        for threads in arguments.threads
        for row in rows_of(model, threads, arguments.only, results)
    ]
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
    else:
        print_table(rows)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--model", type=Path, nargs="+", required=True, metavar="FILE", help="GGUF files")
    parser.add_argument("--threads", type=numbers, default=[1, 2], help="default: 1,2")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument(
        "--tries", type=int, default=1, help="measure again, so many times in all, while others take too much"
    )
    parser.add_argument("--only", type=names_of(GROUPS), default=list(GROUPS), help=f"some of {','.join(GROUPS)}")
    parser.add_argument(
        "--variants",
        type=names_of(VARIANTS),
        default=["default", "fa-on"],
        help=f"of llama.cpp: some of {','.join(VARIANTS)}",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line in place of the table")
    parser.add_argument(
        "--ours", type=Path, default=target / "release/examples/bench", metavar="PROGRAM", help="our bench"
    )
    parser.add_argument(
        "--llama", type=Path, metavar="FOLDER", help="llama.cpp's programs (default: as build.sh makes them)"
    )
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    if max(arguments.threads) > cores:
        parser.error(f"--threads {max(arguments.threads)}: there are {cores} cores")
    if min(arguments.rounds, arguments.tries) < 1:
        parser.error("--rounds and --tries: at least 1")
    return arguments


def numbers(text):
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def names_of(known):
    def names(text):
        given = text.split(",")
        unknown = [name for name in given if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return given

    return names


def programs(arguments):
    """Our program and llama.cpp's folder; both are there."""
    llama = arguments.llama
    if llama is None:
        built = subprocess.run([HERE / "build.sh"], stdout=subprocess.PIPE, text=True, check=False)
        if built.returncode:
            sys.exit(1)
        llama = Path(built.stdout.strip())
    if not os.access(arguments.ours, os.X_OK):
        fail(f"{arguments.ours} is missing. Build it: cargo build --release -p inference --example bench")
    for name in sorted({group.llama_program for group in GROUPS.values()}):
        if not os.access(llama / name, os.X_OK):
            fail(f"{llama / name} is missing: --llama takes the folder that build.sh prints")
    return arguments.ours.resolve(), llama.resolve()


def one_round(ours, llama, arguments, model, threads, group, turn, label):
    """Every engine once; in every other round in the opposite order."""
    work = [(OURS, lambda: run_ours(ours, model, threads, group))]
    for variant in arguments.variants:
        work.append((variant, lambda variant=variant: run_llama(llama, variant, model, threads, group)))
    ran = {}
    for engine, measure in work if turn % 2 == 0 else reversed(work):
        for _ in range(arguments.tries):
            one = ran[engine] = measure()
            speeds = " ".join(f"{one.tokens_per_second[test.name]:.1f}" for test in group.tests)
            note(f"{label}, {engine}: {speeds} tokens/s, {one.peak_mib:.0f} MiB, others {one.others:.1%}")
            if is_quiet(one, threads):
                break
    return ran


def is_quiet(ran, threads):
    return ran.others < most_of_others(threads)


def most_of_others(threads):
    return MOST_OF_OTHERS_WITH_ONE_THREAD if threads == 1 else MOST_OF_OTHERS


def run_ours(program, model, threads, group):
    command = [program, "--model", model.path, "--threads", str(threads), *group.ours, "--json"]
    output, peak_mib, others = run(command, threads)
    lines = json_lines(output)
    speeds = {}
    for test in group.tests:
        found = [line for line in lines if is_figure(line, test)]
        if not found:
            fail(f"{shown(command)} printed no figure for {test.name!r}; it printed:\n{output[-2000:]}")
        # A bench that knows no "batch" calls it a decode of several sequences; one may fix the depth of a batch itself.
        found.sort(key=lambda line: (line["test"] == test.kind, line.get("depth") == test.depth), reverse=True)
        speeds[test.name] = float(found[0]["tokens_per_second"])
    stated = max(float(line.get("rss_mib", 0)) for line in lines)
    return Ran(speeds, peak_mib, others, stated, str(lines[-1].get("kernel", "?")))


def is_figure(line, test):
    if (line.get("n"), line.get("sequences")) != (test.n, test.sequences):
        return False
    if test.kind == "batch":
        return line.get("test") in ("batch", "decode")
    return line.get("test") == test.kind and line.get("depth") == test.depth


def run_llama(folder, variant, model, threads, group):
    command = [folder / group.llama_program, "-m", model.path, "-t", str(threads)]
    if group.llama_program == "llama-batched-bench":
        command += ["-tb", str(threads), "--output-format", "jsonl"]
    else:
        command += ["-r", "1", "-o", "jsonl"]
    command += [*group.llama, *VARIANTS[variant]]
    # llama-batched-bench may end before its printing thread has printed (`common_log_main` in its common/log.cpp).
    for _ in range(5):
        output, peak_mib, others = run(command, threads)
        if json_lines(output):
            break
    speeds = {}
    for test in group.tests:
        found = [speed for line in json_lines(output) if (speed := llama_figure(line, test)) is not None]
        if not found:
            fail(f"{shown(command)} printed no figure for {test.name!r}; it printed:\n{output[-2000:]}")
        speeds[test.name] = float(found[0])
    return Ran(speeds, peak_mib, others)


def llama_figure(line, test):
    if test.kind == "batch":
        asked = (line.get("tg"), line.get("pl"), line.get("pp")) == (test.n, test.sequences, test.depth)
        return line["speed_tg"] if asked else None
    wanted = (test.n, 0, test.depth) if test.kind == "prefill" else (0, test.n, test.depth)
    return line["avg_ts"] if (line.get("n_prompt"), line.get("n_gen"), line.get("n_depth")) == wanted else None


def json_lines(output):
    lines = []
    for text in output.splitlines():
        with contextlib.suppress(ValueError):
            lines += [json.loads(text)] if text.startswith("{") else []
    return lines


def run(command, threads):
    """Runs to the end on the last `threads` cores; what it printed, its memory, and the share that others took."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *map(str, command)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy_before, began = busy_seconds(cores), time.monotonic()
        try:
            process = subprocess.Popen(pinned, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        except OSError as error:
            fail(f"cannot run {pinned[0]}: {error}")
        try:
            # Of the children that it waited for as well.
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.kill()
            raise
        wall = time.monotonic() - began
        others = busy_seconds(cores) - busy_before - usage.ru_utime - usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        output = out.read().decode(errors="replace")
        if process.returncode:
            err.seek(0)
            said = (output + err.read().decode(errors="replace"))[-4000:].strip()
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
            fail(f"{shown(command)} ended with {how}; it said:\n{said}")
    # Kibibytes on Linux.
    return output, usage.ru_maxrss / 1024, max(0.0, others / (wall * len(cores)))


def busy_seconds(cores):
    """Seconds that these cores have worked, or were taken away from this machine, since it started."""
    names = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *values = line.split()
        if name in names:
            user, nice, system, _idle, _iowait, interrupts, soft_interrupts, stolen, *_ = map(int, values)
            ticks += user + nice + system + interrupts + soft_interrupts + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def rows_of(model, threads, only, results):
    memory = []
    for name in only:
        rounds = results.get((model.path, threads, name), [])
        if not rounds:
            continue
        quiet = [ran for ran in rounds if all(is_quiet(one, threads) for one in ran.values())]
        for test in GROUPS[name].tests:
            yield speed_row(model, threads, test, quiet, rounds)
        memory.append(memory_row(model, threads, name, rounds))
    if memory:
        yield max(memory, key=lambda row: row["ratio"])


def speed_row(model, threads, test, quiet, rounds):
    # Figures that do not count are still shown.
    row = row_of(model, test.name, threads, quiet or rounds, lambda ran: ran.tokens_per_second[test.name], max)
    ratio = row["ours"] / row["llama_cpp"]
    bar = test.bar if model.file_type in test.types else None
    holds = None if bar is None or not quiet else ratio >= bar
    why = "" if quiet else f"does not count: others took {most_of_others(threads):.0%} or more"
    return row | {
        "ratio": ratio,
        "bar": "-" if bar is None else f">= {bar}",
        "holds": holds,
        "rounds": f"{len(quiet)}/{len(rounds)}",
        "note": why,
    }


def memory_row(model, threads, name, rounds):
    """Our highest resident memory beside the file, after the KV cache is taken off."""
    row = row_of(model, "peak memory, MiB", threads, rounds, lambda ran: ran.peak_mib, min)
    kv_mib = GROUPS[name].positions * model.kv_bytes_per_position / MIB
    file_mib = model.path.stat().st_size / MIB
    ratio = (row["ours"] - kv_mib) / file_mib
    stated = max(ran[OURS].stated_mib for ran in rounds)
    return row | {
        "ratio": ratio,
        "bar": f"<= {MEMORY_BAR}",
        "holds": ratio <= MEMORY_BAR,
        "rounds": f"{len(rounds)}/{len(rounds)}",
        "note": f"{name}; ratio: without {kv_mib:.0f} of KV cache, to the file's {file_mib:.0f}; we say {stated:.0f}",
    }


def row_of(model, test, threads, rounds, figure, better):
    """What all rows have; of llama.cpp's variants, the one with the better median."""
    samples = {engine: [figure(ran[engine]) for ran in rounds] for engine in rounds[0]}
    medians = {engine: statistics.median(values) for engine, values in samples.items()}
    variant = better((engine for engine in medians if engine != OURS), key=medians.get)
    return {
        "model": model.path.stem,
        "test": test,
        "threads": threads,
        "ours": medians[OURS],
        "llama_cpp": medians[variant],
        "variant": variant,
        "others": max(one.others for ran in rounds for one in ran.values()),
        "kernel": rounds[0][OURS].kernel,
        "samples": samples,
    }


def print_table(rows):
    kernels = sorted({row["kernel"] for row in rows})
    print(f"processor: {processor()}; our kernel: {', '.join(kernels) or '-'}")
    print("tokens/s are medians of the rounds that count; others: the most that other processes took in those\n")
    said = {True: "yes", False: "NO", None: "-"}
    rows = [row | {"holds": said[row["holds"]]} for row in rows]
    lines = [{column: WRITTEN.get(column, "{}").format(row[column]) for column in COLUMNS} for row in rows]
    heads = {column: column.replace("_", ".") for column in COLUMNS}
    widths = {column: max(len(line[column]) for line in [heads, *lines]) for column in COLUMNS}
    rule = {column: "-" * width for column, width in widths.items()}
    for line in [heads, rule, *lines]:
        print("| " + " | ".join(line[column].ljust(widths[column]) for column in COLUMNS) + " |")


def processor():
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def read_model(path):
    """What the table needs of a GGUF file's metadata."""
    try:
        with path.open("rb") as file:
            values = metadata(file)
        architecture = values["general.architecture"]
        heads = values[f"{architecture}.attention.head_count"]
        kv_heads = values.get(f"{architecture}.attention.head_count_kv", heads)
        width = values.get(f"{architecture}.attention.key_length", values[f"{architecture}.embedding_length"] // heads)
        layers = values[f"{architecture}.block_count"]
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    except (KeyError, ValueError, struct.error) as error:
        fail(f"{path}: no GGUF file that this reads: {error!r}")
    # Keys and values in 16 bits, as in both engines.
    return Model(path.resolve(), values.get("general.file_type", -1), 2 * layers * kv_heads * width * 2)


# By the number of a value's type: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9


def metadata(file):
    def number(code):
        size = struct.calcsize("<" + code)
        return struct.unpack("<" + code, file.read(size))[0]

    def text():
        return file.read(number("Q")).decode(errors="replace")

    def value(kind):
        if kind == TEXT:
            return text()
        if kind == ARRAY:
            of, count = number("I"), number("Q")
            return [value(of) for _ in range(count)]
        if kind not in NUMBERS:
            raise ValueError(f"value type {kind}")
        return number(NUMBERS[kind])

    if file.read(4) != b"GGUF":
        raise ValueError("the first four bytes are others")
    number("I"), number("Q")
    values = {}
    for _ in range(number("Q")):
        key = text()
        values[key] = value(number("I"))
    return values


def shown(command):
    return " ".join(map(str, command))


def note(text):
    print(f"compare.py: {text}", file=sys.stderr, flush=True)


def fail(text):
    sys.exit(f"compare.py: {text}")


if __name__ == "__main__":
    main()
