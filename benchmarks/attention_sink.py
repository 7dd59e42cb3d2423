"""Perplexity of a base, of a sliding window alone, and of the window with a measured attention sink, on a text.

    python benchmarks/attention_sink.py [--text book.txt] [--tokens 8192] [--windows 512 1024]

The base reads all tokens with full attention; the windows read the same tokens. The second half is scored, so that
every scored token looks back further than any window. No memory takes part. The text is the Python language reference
that ships with CPython unless one is given; the sinks are always measured on the reference's beginning (16,384 tokens
at most), so give another text to see how they carry over.
"""

import argparse
import math
import sys
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.conversion import Preset, convert, load_base, resolve_base
from senri.data import TokenStream, chunks, open_document
from senri.models import Session

CHUNK = 512


def perplexity(logits: Tensor, ids: Tensor) -> float:
    half = ids.shape[1] // 2
    return math.exp(F.cross_entropy(logits[0, half - 1 : -1].float(), ids[0, half:]).item())


@torch.no_grad()
def streamed(model: Any, ids: Tensor) -> float:
    session = Session(model)
    return perplexity(torch.cat([session.logits(piece) for piece in ids.split(CHUNK, dim=1)], dim=1), ids)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--text", default=None)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--skip", type=int, default=16384, help="tokens of the text left out at its start")
    parser.add_argument("--windows", type=int, nargs="+", default=[512, 1024])
    options = parser.parse_args()

    base, tokenizer = load_base(resolve_base(options.base))
    stream = TokenStream(open_document(options.text), tokenizer, 65536)
    ids = next(chunks(islice(stream, options.skip, options.skip + options.tokens), options.tokens))
    with torch.no_grad():
        full = perplexity(base.eval()(ids).logits, ids)
    print(f"text {options.text or 'Python language reference'}, {ids.shape[1]:,} tokens, second half scored")
    print(f"{'base, full attention':32} {full:8.3f}")
    for window in options.windows:
        for sink in (False, True):
            preset = Preset(sliding_window=window, default_layer_type="sliding_attention", attention_sink=sink)
            ratio = (value := streamed(convert(options.base, preset).model, ids)) / full
            print(f"{f'window {window}' + (' + sink' if sink else ''):32} {value:8.3f}  {ratio:5.2f} x base")
    return 0


if __name__ == "__main__":
    sys.exit(main())
