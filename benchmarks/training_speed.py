"""Stage 2 by the plain path and by the frozen-base path: tokens a second in turn, and the losses of both.

    python benchmarks/training_speed.py --model ./model --text book.txt [--length 4096] [--rounds 5] [--answers]

The model is a converted one with frozen layers below its first memory. With --answers the loss is the answers' alone.
The frozen layers' outputs are computed first (the first epoch pays for that once); what is timed is a later epoch.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from senri.data import open_corpus, token_blocks
from senri.evaluation.settings import default_settings
from senri.models import SenriForCausalLM
from senri.training.answers import AnswersOnly
from senri.training.frozen_base import FrozenBase
from senri.training.language_modelling import LanguageModelling
from senri.training.needle_blocks import NeedleMixing, with_needles
from senri.training.parameters import choose_trained
from senri.training.rows import PLACES, TrainingRows

START_STD = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--segment", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--train", default="memory", choices=["memory", "mixers"])
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = SenriForCausalLM.from_pretrained(options.model).train()
    choose_trained(model, options.train)
    for name, parameter in model.named_parameters():
        if "memory_o_proj" in name:  # a fresh branch adds nothing, so all ways to compute it would agree
            torch.nn.init.normal_(parameter, std=START_STD)
    with tempfile.TemporaryDirectory() as folder:
        corpus = open_corpus(options.text, "train", held_out=(0.0, 0.0), seed=0, unwrap=False)
        tokens = options.length * (options.rounds + 1)
        blocks = token_blocks(
            corpus, tokenizer, options.length, cache=Path(folder), tokens=tokens, block_characters=65536
        )
        needle = NeedleMixing(1.0, default_settings().needle.formats["named"], ["numbers"], [1], 32)
        rows = TrainingRows(with_needles(blocks, tokenizer, needle, 0) if options.answers else blocks, options.answers)
        kept = FrozenBase(model, rows.tokens, Path(folder) / "frozen", "float16", "rows", options.segment)
        began = time.perf_counter()
        for row in range(len(rows)):
            kept[row]
        first = len(rows) * options.length / (time.perf_counter() - began)
        kind: Any = AnswersOnly if options.answers else LanguageModelling
        settings = (model, options.segment, "full", True)
        plain = kind(*settings, shortened=False) if options.answers else kind(*settings)
        fast = kind(*settings, kept.start_layer)

        def batch(row: int) -> dict[str, Any]:
            found = rows[row]
            places = {name: found[name].view(1) for name in PLACES} if options.answers else {}
            return {"input_ids": found["input_ids"].unsqueeze(0), **places}

        seconds: dict[str, list[float]] = {"plain": [], "fast": []}
        worst = 0.0
        for row in range(len(rows)):
            slow_loss, slow = _step(model, lambda row=row: plain(**batch(row)))
            quick_loss, quick = _step(model, lambda row=row: fast(**batch(row), lower_states=kept[row].unsqueeze(0)))
            worst = max(worst, abs(slow_loss - quick_loss) / slow_loss)
            if row:  # the first round warms up
                seconds["plain"].append(slow)
                seconds["fast"].append(quick)
    rates = {name: options.length / statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["plain"], seconds["fast"], strict=True))
    print(f"{'':24}{'tokens/s':>12}")
    for name, rate in rates.items():
        print(f"{name:24}{rate:>12,.0f}")
    print(f"{'frozen layers, once':24}{first:>12,.0f}")
    first_epoch = 1 / (1 / first + 1 / rates["fast"])
    print(f"{'fast, first epoch':24}{first_epoch:>12,.0f}")
    print(f"fast / plain: {ratio:.2f} (median of {options.rounds}); largest difference of a loss: {worst:.1e} relative")
    if options.out is not None:
        values = {"tokens_per_second": rates | {"frozen_layers": first}, "ratio": ratio, "loss_difference": worst}
        options.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _step(model: SenriForCausalLM, run: Callable[[], dict[str, torch.Tensor]]) -> tuple[float, float]:
    """Return the loss of a forward and backward pass, and its seconds."""
    model.zero_grad()
    began = time.perf_counter()
    loss = run()["loss"]
    loss.backward()
    return float(loss.detach()), time.perf_counter() - began


if __name__ == "__main__":
    main()
