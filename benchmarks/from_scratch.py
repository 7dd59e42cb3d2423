"""The models of create_model on the same text with the same budget: perplexity, reversal gap, bytes, tokens a second.

    python benchmarks/from_scratch.py --text ./novels --pairs pairs.csv [--steps 200] [--hidden 256]

Each model is trained by `senri train --config from_scratch`, then taught the pairs in one order by `--config reversal`,
and asked in both by `senri eval reversal`. A BPE tokenizer is made from the text. Every command is printed; each goes
on where it was stopped, and so does this one.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from senri.data import open_corpus
from senri.models import SenriForCausalLM, Session
from senri.models.hand_built import MODELS

END = "<|endoftext|>"


def make_tokenizer(text: str, vocabulary: int, folder: Path) -> Path:
    if not (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        corpus = open_corpus(text, "train", held_out=(0.05, 0.05), seed=0, unwrap=False)
        tokenizer.train_from_iterator((piece for _, pieces in corpus.texts() for piece in pieces), trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    return folder


def run(*words: str) -> None:
    command = [sys.executable, "-m", "senri", *words]
    print("$ " + shlex.join(["senri", *words]), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def carried_bytes(folder: Path, tokens: int) -> int:
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, SenriForCausalLM)
    session = Session(model)
    step = 512
    for _ in range(0, tokens, step):
        session.read(model.dummy_inputs["input_ids"][:1, :1].expand(1, step).clone())
    return session.memory_bytes() + session.window_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--pairs", required=True, help="the folder of Berglund et al., or a CSV file")
    parser.add_argument("--steps", type=int, default=200, help="of training on the text")
    parser.add_argument("--pair-steps", type=int, default=60, help="of training on the pairs")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--bytes-after", type=int, default=8192, help="tokens after which carried bytes are counted")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("build/scratch"))
    options = parser.parse_args()

    tokenizer = make_tokenizer(options.text, options.vocabulary, options.out / "tokenizer")
    sizes = {"hidden_size": options.hidden, "num_heads": options.heads, "intermediate_size": 4 * options.hidden}
    rows = []
    for name in options.models:
        changes = json.dumps(sizes | {"vocab_size": options.vocabulary})
        run(
            *("train", "--config", "from_scratch", f"model.create={name}", f"model.tokenizer={tokenizer}"),
            *(f"model.changes={changes}", f"experiment.data.train={options.text}", f"experiment.name={name}"),
            *(f"experiment.out={options.out}", f"training.stages.full.max_steps={options.steps}"),
        )
        model = options.out / name / "model"
        run(
            *("train", "--config", "reversal", "model.preset=null", f"model.folder={model}"),
            *(f"experiment.data.sentences.path={options.pairs}", f"experiment.name={name}-pairs"),
            *(f"experiment.out={options.out}", f"training.stages.full.max_steps={options.pair_steps}"),
            "training.stages.full.learning_rate=5.0e-4",
        )
        taught = options.out / f"{name}-pairs" / "model"
        results = options.out / "results"
        run("eval", "reversal", "--model", str(taught), "--name", name, "--out", str(results), f"data={options.pairs}")
        report = json.loads((options.out / name / "report.json").read_text(encoding="utf-8"))["results"]
        reversal = json.loads((results / f"reversal-{name}" / "result.json").read_text(encoding="utf-8"))
        stage = report["stages"][0]
        rows.append(
            [
                name,
                f"{stage['parameters'] / 1e6:.2f}",
                f"{report['perplexities']['after full']:.1f}",
                reversal["headline"],
                f"{carried_bytes(model, options.bytes_after) / 1e6:.2f}",
                f"{stage['tokens'] / stage['seconds']:,.0f}",
            ]
        )
    columns = ["model", "M parameters", "perplexity", "reversal", f"MB after {options.bytes_after:,}", "tokens/s"]
    for row in [columns, ["---"] * len(columns), *rows]:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
