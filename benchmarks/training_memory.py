"""Peak memory of one training step against the length of the sequence: gradients through all segments, or cut.

    python benchmarks/training_memory.py --model ./model --text book.txt [--lengths 4096 8192 16384 32768]

Each line is a process of its own: the model, one forward and backward pass of stage 2, the process's peak.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from senri.data import open_document
from senri.data.tokens import TokenStream
from senri.models import SenriForCausalLM
from senri.training.language_modelling import LanguageModelling
from senri.training.parameters import choose_trained

WAYS = {"full, checkpointed": ("full", True), "segment": ("segment", True), "full, everything kept": ("full", False)}


def measure(options: argparse.Namespace, length: int, way: str) -> None:
    gradient, checkpointing = WAYS[way]
    model = SenriForCausalLM.from_pretrained(options.model).train()
    choose_trained(model, "mixers")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    stream = iter(TokenStream(open_document(options.text), tokenizer, block_characters=65536))
    ids = torch.tensor([[next(stream) for _ in range(length + 1)]])
    began = time.perf_counter()
    LanguageModelling(model, options.segment, gradient, checkpointing)(ids)["loss"].backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    print(json.dumps({"peak_bytes": peak, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--segment", type=int, default=1024)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--one", nargs=2, metavar=("LENGTH", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        measure(options, int(options.one[0]), options.one[1])
        return
    print(f"{'':24}{'tokens':>10}{'peak MB':>10}{'seconds':>10}")
    for way in options.ways:
        for length in options.lengths:
            words = [sys.executable, *sys.argv, "--one", str(length), way]
            found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
            print(f"{way:24}{length:>10,}{found['peak_bytes'] / 1e6:>10,.0f}{found['seconds']:>10.0f}", flush=True)


if __name__ == "__main__":
    main()
