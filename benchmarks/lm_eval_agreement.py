"""LAMBADA and WikiText-2 by Senri and by lm-eval's own `hf` model, on the same weights and texts; target 1e-4 relative.

    python benchmarks/lm_eval_agreement.py --lambada lambada_test.jsonl --wikitext wiki.test.tokens [--window 2048]

Texts are local files: LAMBADA as JSON Lines with `text`, WikiText-2 as its token file. lm-eval runs its own task
definitions on them, without a network. What is finished is kept in --out: the same command goes on from there. Ends
with status 1 where a number differs by more.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from senri.conversion import load_base, resolve_base
from senri.data.wikitext import wikitext_pages
from senri.evaluation import Subject, default_settings, evaluate

TARGET = 1e-4
LAMBADA, WIKITEXT = ("accuracy", "perplexity"), ("word_perplexity", "byte_perplexity", "bits_per_byte")
# lm-eval makes the logits of whole windows at once: 4 of 2,048 tokens are 1.6 GB.
BATCH = {"lambada": 8, "wikitext": 4}


def by_lm_eval(subject: Subject, task: str, path: Path, window: int, out: Path) -> dict[str, float]:
    import lm_eval.tasks
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    kept = out / f"lm_eval-{task}.json"
    if kept.is_file():
        found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    source = {"lambada": "lambada/lambada_openai.yaml", "wikitext": "wikitext/wikitext.yaml"}[task]
    settings = [
        f"include: {Path(lm_eval.tasks.__file__).parent / source}",
        f"task: local_{task}",
        "dataset_path: json",
        "dataset_name: null",
        "training_split: null",
        "validation_split: null",
        f"dataset_kwargs: {{data_files: {{test: {path.resolve()}}}}}",
    ]
    (out / f"{task}.yaml").write_text("\n".join(settings) + "\n", encoding="utf-8")
    model: Any = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=BATCH[task], max_length=window)
    manager = lm_eval.tasks.TaskManager(include_path=str(out))
    results = simple_evaluate(model, tasks=[f"local_{task}"], task_manager=manager, bootstrap_iters=0)["results"]
    theirs = {
        name.partition(",")[0].replace("acc", "accuracy"): value for name, value in results[f"local_{task}"].items()
    }
    wanted = {name: float(theirs[name]) for name in (LAMBADA if task == "lambada" else WIKITEXT)}
    kept.write_text(json.dumps(wanted), encoding="utf-8")
    return wanted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--lambada", type=Path, required=True)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--window", type=int, default=2048, help="tokens that both see at once")
    parser.add_argument("--out", type=Path, default=Path("build/lm_eval_agreement"))
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_base(resolve_base(options.base))
    subject = Subject(model.eval(), tokenizer, Path(options.base).name)
    settings = default_settings()
    pages = options.out / "pages.jsonl"
    lines = [json.dumps({"page": page}) for page in wikitext_pages(str(options.wikitext))]
    pages.write_text("\n".join(lines) + "\n", encoding="utf-8")
    runs = {
        "lambada": (dataclasses.replace(settings.lambada, data=str(options.lambada)), options.lambada),
        "wikitext": (dataclasses.replace(settings.wikitext, data=str(options.wikitext), window=options.window), pages),
    }
    worst = 0.0
    print(f"{'':28}{'senri':>14}{'lm-eval hf':>14}{'difference':>14}")
    for task, (chosen, path) in runs.items():
        mine = evaluate(subject, task, chosen, out=options.out).outcome.results["model"]
        theirs = by_lm_eval(subject, task, path, options.window, options.out)
        for name, value in theirs.items():
            difference = abs(mine[name] - value) / value
            worst = max(worst, difference)
            print(f"{f'{task} {name}':28}{mine[name]:14.6f}{value:14.6f}{difference:14.1e}", flush=True)
    print(f"largest relative difference {worst:.1e} (target {TARGET:g})")
    return int(worst > TARGET)


if __name__ == "__main__":
    sys.exit(main())
