"""Perplexity of another text than a training run's own: the base, the start, and the model after each finished stage.

    python benchmarks/stage_perplexity.py --run runs/smollm_memory_only --text pg19_test --unwrap

The beginnings of the first documents (in the order that the run's seed gives), each read as a stream.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer

from senri.conversion import load_base, resolve_base
from senri.data import open_corpus
from senri.settings import load_settings
from senri.training.config import HeldOutConfig, Recipe
from senri.training.held_out import document_tokens, held_out_perplexity
from senri.training.preparation import load_start
from senri.training.stage import Stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a folder of `senri train`")
    parser.add_argument("--text", required=True)
    parser.add_argument("--unwrap", action="store_true", help="join the hard-wrapped lines of paragraphs")
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=2048, help="of each document")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()

    recipe = load_settings(Recipe, options.run / "config.yaml")
    tokenizer = AutoTokenizer.from_pretrained(options.run / "start")
    model = load_start(options.run / "start", recipe.training.gradient).eval()
    data, chunk = recipe.experiment.data, recipe.experiment.evaluation.chunk_size
    corpus = open_corpus(options.text, "test", held_out=(0.0, 0.0), seed=recipe.experiment.seed, unwrap=options.unwrap)
    chosen = HeldOutConfig(options.documents, options.tokens, chunk)
    documents = document_tokens(corpus, tokenizer, chosen, data.block_characters)
    found: dict[str, float] = {}

    def show(what: str, measured: torch.nn.Module) -> None:
        found[what] = held_out_perplexity(measured, documents, chunk).perplexity
        ratio = found[what] / next(iter(found.values()))
        print(f"{what:30}{found[what]:>10.3f}{ratio:>10.4f}", flush=True)

    print(f"{len(documents)} documents, {sum(ids.shape[1] for ids in documents):,} tokens")
    if model.config.base_name_or_path:
        show("base", load_base(resolve_base(model.config.base_name_or_path))[0].eval())
    show("before training", model)
    with model.memory_disabled():
        show("memory off", model)
    for name in recipe.training.stages.enabled:
        stage = Stage(name, recipe, options.run / "stages" / name, options.run / "metrics.jsonl", options.run)
        if stage.is_finished:
            stage.load(model)
            show(f"after {name}", model)
            with model.memory_disabled():
                show(f"after {name}, memory off", model)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
