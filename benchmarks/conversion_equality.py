"""Largest difference between the logits of a base and of its conversion, the gate closed and the window over the text.

    python benchmarks/conversion_equality.py [--base HuggingFaceTB/SmolLM2-135M-Instruct] [--tokens 1000]

The text is the Python language reference that ships with CPython. The target is at most 1e-4 in float32; the command
ends with status 1 above it.
"""

import argparse
import sys
from itertools import islice

import torch

from senri.conversion import CalibrationSettings, convert, load_base, load_preset, resolve_base
from senri.data import TokenStream, chunks, open_document
from senri.settings import load_settings

TARGET = 1e-4
CLOSED_GATE = -60.0  # sigmoid(-60) is 9e-27


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--preset", default="smollm_infini")
    parser.add_argument("--tokens", type=int, default=1000)
    options = parser.parse_args()

    base, tokenizer = load_base(resolve_base(options.base))
    base.eval()
    stream = TokenStream(open_document(), tokenizer, block_characters=65536)
    ids = next(chunks(islice(stream, options.tokens), options.tokens))
    overrides = [f"memory.gate_init={CLOSED_GATE}", f"sliding_window={options.tokens + 1}"]
    settings = load_settings(CalibrationSettings, "calibration", ["solve_gate=false", "tokens=1024"])
    preset = load_preset(options.preset, overrides)
    model = convert(options.base, preset, calibration=settings).model
    with torch.no_grad():
        expected, found = base(ids).logits, model(ids).logits
    difference = (expected - found).abs().max().item()
    print(f"base                  {options.base}")
    print(f"preset                {options.preset}, memory in layers {preset.memory_layers}, gate closed")
    print(f"tokens                {ids.shape[1]}, window {preset.sliding_window}")
    print(f"max |logit|           {expected.abs().max().item():.3f}")
    print(f"max |difference|      {difference:.2e} (target {TARGET:.0e})")
    return 0 if difference <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
