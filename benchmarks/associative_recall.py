"""Associative recall of untrained memories at equal state bytes: how many stored pairs are found again by their keys.

    python benchmarks/associative_recall.py [--text book.txt] [--calibration-text other.txt] [--layer 20] [--out DIR]

A base reads a text; at one layer the keys (before rotary positions) and values of N tokens are written into a memory
in one run, then every key is the query once. A pair counts as found when, of all N stored values, its own is nearest
to what was read (cosine). Pairs are N random tokens of a stretch of the text, in text order; the columns "run" take N
tokens in a row instead, and "noisy" disturbs every query. Calibration (mean and whitening of the keys per head) is
measured on another stretch, or on another text.

Every memory gets the same bytes per key/value head (M and z, float32): those of DPFP-3 on the base's keys. Its key
width is the largest that fits; the base's keys are mapped to that width by a fixed random orthonormal matrix. A second
table compares many narrow heads with one wide head. Ends with status 1 where the targets are missed.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from recall_chart import chart
from recall_measure import (
    BASELINE_PAIRS,
    BEST,
    FEWEST_DRAWS,
    NOISY_PAIRS,
    PAIRS,
    TARGETS,
    Bench,
    Row,
    build,
    heads_rows,
    make_trials,
    memory_config,
    record,
    state_bytes_per_head,
    twins,
)
from torch import Tensor

from senri.conversion import load_base, resolve_base
from senri.data import TokenStream, chunks, open_document
from senri.errors import SenriError
from senri.evaluation.figures import png_bytes
from senri.evaluation.files import make_folder, write_bytes
from senri.evaluation.report import write_json

RUN_PAIRS_SHOWN = (64, 128)


def check(rows: Sequence[Row]) -> bool:
    """Print how the rows stand to the targets and return whether all are met."""
    by_name = {row.name: row for row in rows}
    best, met = by_name[BEST], True
    for pairs, target in TARGETS.items():
        reached = best.found[f"{pairs}"]
        met &= reached >= target
        print(f"{' '.join(BEST)} at {pairs} pairs: {reached:.1%} (target {target:.0%})")
    baseline = next(row for row in rows if row.memory == "tensor")
    column = f"{BASELINE_PAIRS}"
    kinds = dict.fromkeys(row.memory for row in rows if row.state)
    for kind in kinds:
        mine = [row for row in rows if row.memory == kind and row.keys == "calibrated"]
        better = [row for row in mine if row.found[column] > baseline.found[column]]
        met &= bool(better)
        print(
            f"{kind}: {len(better)} of {len(mine)} calibrated rows beat raw ELU+1, linear, {baseline.key_dim} wide "
            f"({baseline.found[column]:.1%}) at {BASELINE_PAIRS} pairs; best "
            f"{max(row.found[column] for row in mine):.1%}"
        )
    return met


def columns() -> list[str]:
    return [f"{n}" for n in PAIRS] + [f"run {n}" for n in RUN_PAIRS_SHOWN] + [f"noisy {NOISY_PAIRS}"]


def line(cells: Sequence[str], found: Sequence[str]) -> str:
    widths = (15, 7, 15, 11, 8, 11)
    left = "".join(f"{cell:<{width}}" for cell, width in zip(cells[:4], widths, strict=False))
    sizes = "".join(f"{cell:>{width}}" for cell, width in zip(cells[4:], widths[4:], strict=False))
    return (
        left + sizes + "".join(f"{cell:>{max(7, len(name) + 1)}}" for cell, name in zip(found, columns(), strict=False))
    )


def show(row: Row, names: Sequence[str]) -> str:
    cells = (*row.name, f"{row.key_dim}" if row.key_dim else "", f"{row.state:,}" if row.state else "")
    return line(cells, [f"{100 * row.found[name]:.1f}" if name in row.found else "" for name in names])


def read_tokens(source: str | None, tokenizer: Any, skip: int, tokens: int, piece: int) -> tuple[str, list[Tensor]]:
    document = open_document(source)
    ids = islice(TokenStream(document, tokenizer, 65536), skip, skip + tokens)
    pieces = list(chunks(ids, piece))
    if sum(one.shape[1] for one in pieces) < tokens:
        raise SenriError(f"{document.name} has no {tokens:,} tokens after the first {skip:,}: give a longer text.")
    return document.name, pieces


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--layer", type=int, default=20, help="20 and 10 are memory layers of the smollm presets")
    parser.add_argument("--text", default=None, help="of the pairs; the Python language reference if left out")
    parser.add_argument("--skip", type=int, default=16384, help="tokens left out at the start of --text")
    parser.add_argument("--tokens", type=int, default=8192, help="of the stretch that pairs are drawn from")
    parser.add_argument("--calibration-text", default=None, help="left out: the beginning of --text")
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=2048, help="tokens that the base reads at a time")
    parser.add_argument("--draws", type=int, default=16, help="draws of pairs in each column at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder for a JSON file and a chart")
    options = parser.parse_args()
    calibration_source = options.calibration_text or options.text
    same_text = calibration_source == options.text
    if same_text and options.calibration_tokens > options.skip:
        parser.error("the calibration stretch reaches into the pairs: raise --skip or name a --calibration-text")
    if options.tokens < max(PAIRS):
        parser.error(f"--tokens must be at least {max(PAIRS)}")

    model, tokenizer = load_base(resolve_base(options.base))
    decoder: Any = model.eval().model
    decoder.layers = decoder.layers[: options.layer + 1]  # what lies above is not needed
    calibration_name, calibration = read_tokens(
        calibration_source, tokenizer, 0, options.calibration_tokens, options.context
    )
    text_name, pieces = read_tokens(options.text, tokenizer, options.skip, options.tokens, options.context)
    pairs = record(decoder, pieces, options.layer)
    heads, _, width = pairs.keys.shape
    budget = state_bytes_per_head(build(memory_config("tensor", "delta", "dpfp"), heads, width, pairs.values.shape[-1]))
    trials = make_trials(options.tokens, options, heads, width)
    bench = Bench(pairs, record(decoder, calibration, options.layer), trials, budget, options.seed)

    # The many small triangular solves of the delta rule wait for each other where threads outnumber idle cores.
    torch.set_num_threads(1)
    print(f"base         {options.base}, layer {options.layer}, {heads} key/value heads, keys and values {width} wide")
    print(f"pairs        {text_name}, tokens {options.skip:,} to {options.skip + options.tokens:,}")
    print(f"calibration  {calibration_name}, the first {options.calibration_tokens:,} tokens")
    print(f"budget       {budget:,} bytes per key/value head: M and z, float32")
    print(f"found again  % of pairs, mean over heads and {FEWEST_DRAWS} to {options.draws} draws\n")
    print(line(("memory", "rule", "feature map", "keys", "key_dim", "bytes/head"), columns()))
    rows = []
    for row in bench.rows():
        rows.append(row)
        print(show(row, columns()), flush=True)
    alike = twins(bench)
    print("\npairs that have among the others")
    for name in ("same token", "key twin", "value close"):
        print(show(Row(name, "", "", "", 0, 0, {column: shares[name] for column, shares in alike.items()}), columns()))
    print("\nheads: keys and values are rotations of the layer's input; bytes of all heads together")
    by_heads = []
    for row in heads_rows(bench):
        by_heads.append(row)
        print(show(row, columns()), flush=True)
    print()
    met = check(rows)

    if options.out is not None:
        make_folder(options.out)
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        values = {
            "settings": settings | {"text_name": text_name, "calibration_name": calibration_name, "budget": budget},
            "rows": [dataclasses.asdict(row) for row in rows],
            "heads": [dataclasses.asdict(row) for row in by_heads],
            "twins": alike,
        }
        write_json(options.out / "associative_recall.json", values)
        title = f"{options.base}, layer {options.layer}, {text_name}; {budget:,} bytes per head unless said"
        write_bytes(options.out / "associative_recall.png", png_bytes(chart(rows, title)))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
