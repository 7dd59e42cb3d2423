"""What a memory adds before any training: loss of the window alone and of window + memory, for several conversions.

    python benchmarks/untrained_memory.py [--text book.txt] [--tokens 6144] [--skip 16384]

Each conversion reads the same tokens as a stream; tokens from the 2,048th on are scored (nats per token). The text is
the Python language reference that ships with CPython unless one is given; calibration always uses the reference's
beginning (16,384 tokens at most).
"""

import argparse
import sys
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.conversion import CalibrationSettings, convert, load_preset
from senri.data import TokenStream, chunks, open_document
from senri.models import Session
from senri.settings import load_settings

CHUNK = 512
FIRST_SCORED = 2048
CONVERSIONS = {
    "linear, gates at -4 (the preset)": ((), ()),
    "linear, not whitened, gates at -4": (("memory.calibration=none",), ()),
    "linear, gates solved": ((), ("solve_gate=true",)),
    "delta, gates solved": (("memory.rule=delta",), ("solve_gate=true",)),
    "delta by token, DPFP-3, gates solved": (
        ("memory.rule=delta", "memory.feature_map=dpfp", "memory.granularity=token"),
        ("solve_gate=true",),
    ),
}


def loss(model: Any, ids: Tensor) -> float:
    session = Session(model)
    logits = torch.cat([session.logits(piece) for piece in ids.split(CHUNK, dim=1)], dim=1)
    return F.cross_entropy(logits[0, FIRST_SCORED - 1 : -1], ids[0, FIRST_SCORED:]).item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="smollm_infini")
    parser.add_argument("--text", default=None)
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--skip", type=int, default=16384, help="tokens of the text left out at its start")
    options = parser.parse_args()

    alone = None
    for name, (preset_words, calibration_words) in CONVERSIONS.items():
        calibration = load_settings(CalibrationSettings, "calibration", list(calibration_words))
        result = convert(None, load_preset(options.preset, preset_words), calibration=calibration)
        if alone is None:
            stream = TokenStream(open_document(options.text), result.tokenizer, 65536)
            ids = next(chunks(islice(stream, options.skip, options.skip + options.tokens), options.tokens))
            with result.model.memory_disabled():
                alone = loss(result.model, ids)
            print(f"text {options.text or 'Python language reference'}, {ids.shape[1]:,} tokens")
            print(f"{'window alone':40} {alone:.4f}")
        print(f"{name:40} {loss(result.model, ids):.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
