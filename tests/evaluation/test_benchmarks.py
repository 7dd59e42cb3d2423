"""LAMBADA and WikiText-2 as lm-eval computes them, on the same weights."""

import dataclasses
import json
import math
import textwrap
from pathlib import Path

import pytest
import torch

from senri.conversion import load_base, resolve_base
from senri.data.wikitext import detokenise, wikitext_pages
from senri.errors import SenriError
from senri.evaluation import Subject, default_settings, evaluate
from senri.evaluation.loglikelihood import encode_pair, score_after, score_pairs
from senri.evaluation.reader import open_reader

PASSAGES = [
    "The ferry was late again, and Oskar counted the gulls on the pier until he had no more patience for gulls",
    "She put the kettle on the stove, cut two slices of bread and asked him whether he wanted jam on his bread",
    '"You never liked the sea," said the captain. He laughed. "And yet here you are, on the sea',
    "Every evening the lamplighter passed the house of the widow Brandt, and every evening he greeted the widow",
    "Seven",
    "The letter had been opened. Somebody had read it, folded it with care and closed the envelope. Who reads a letter",
    "It was not the wolf that the children feared; it was the long dark road on which one might meet the wolf",
    "He wound the clock, as his father had done, and as long as he lived nobody else was allowed to touch the clock",
]
PAGES = """
 = Mill at Norden =

 The mill at Norden was built in 1,200 days @-@ or so the miller said ; it has 3 @.@ 5 floors . " It turns , " he
 used to say , " when it turns . "

 = = History = =

 In 1871 ( the year of the flood ) the <unk> river carried away the wheel [ and the sluice ] . Nobody was hurt .

 = Ash Hill =

 Ash Hill is a hill of 2 @,@ 041 feet . It is the miller 's favourite walk : steep , stony and quiet .
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "lambada.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    (folder / "wiki.tokens").write_text(PAGES)
    return folder


def lambada(subject, data, **changes):
    chosen = dataclasses.replace(default_settings().lambada, data=str(data / "lambada.jsonl"), **changes)
    return evaluate(subject, "lambada", chosen, progress=False).outcome.results


def wikitext(subject, data, **changes):
    chosen = dataclasses.replace(default_settings().wikitext, data=str(data / "wiki.tokens"), **changes)
    return evaluate(subject, "wikitext", chosen, progress=False).outcome.results


def by_lm_eval(subject, data, folder, names, **options):
    """Run lm-eval's own `hf` model on its own task definitions, with the local texts in place of the Hub's."""
    import lm_eval.tasks
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    pages = wikitext_pages(str(data / "wiki.tokens"))
    (folder / "pages.jsonl").write_text("".join(json.dumps({"page": page}) + "\n" for page in pages))
    local = {"lambada": ("lambada_openai", data / "lambada.jsonl"), "wikitext": ("wikitext", folder / "pages.jsonl")}
    root = Path(lm_eval.tasks.__file__).parent
    for name, (task, path) in local.items():
        source = root / name / f"{task}.yaml"
        (folder / f"{name}.yaml").write_text(
            textwrap.dedent(
                f"""
                include: {source}
                task: local_{name}
                dataset_path: json
                dataset_name: null
                training_split: null
                validation_split: null
                dataset_kwargs: {{data_files: {{test: {path}}}}}
                """
            )
        )
    lm = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=4, **options)
    found = simple_evaluate(
        lm,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder)),
        bootstrap_iters=0,
    )
    return found["results"]


def assert_agrees(subject, data, folder, rel, **options):
    theirs = by_lm_eval(subject, data, folder, ["local_lambada"])
    theirs |= by_lm_eval(subject, data, folder, ["local_wikitext"], **options)
    mine = lambada(subject, data)["model"]
    assert mine["accuracy"] == theirs["local_lambada"]["acc,none"]
    assert mine["perplexity"] == pytest.approx(theirs["local_lambada"]["perplexity,none"], rel=rel)
    pages = wikitext(subject, data, window=options.get("max_length"))["model"]
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert pages[name] == pytest.approx(theirs["local_wikitext"][f"{name},none"], rel=rel)
    return mine


def test_a_tiny_model_agrees_with_lm_eval(base_subject, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Pages are longer than 48 tokens, so windows follow each other and the last one is filled from before.
    assert_agrees(base_subject, data, tmp_path, 1e-5, max_length=48)


@pytest.mark.slow
def test_smollm2_agrees_with_lm_eval(data, tmp_path, monkeypatch):
    """The whole data sets are compared by benchmarks/lm_eval_agreement.py; docs/evaluation.md has its numbers."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        model, tokenizer = load_base(resolve_base("HuggingFaceTB/SmolLM2-135M-Instruct"))
    except SenriError as error:
        pytest.skip(f"the weights cannot be had: {error}")
    mine = assert_agrees(Subject(model.eval(), tokenizer, "smollm2"), data, tmp_path, 1e-4)
    assert 0 < mine["accuracy"] < 1


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_change_nothing(base_subject, senri_subject, data, batch_size):
    for subject in (base_subject, senri_subject):
        whole = lambada(subject, data, batch_size=8)
        parts = lambada(subject, data, batch_size=batch_size, samples_per_unit=3)
        for way, found in whole.items():
            assert parts[way] == pytest.approx(found, rel=1e-5)


def test_a_memory_can_be_switched_off(senri_subject, data):
    found = lambada(senri_subject, data)
    assert found["memory on"]["perplexity"] != pytest.approx(found["memory off"]["perplexity"], rel=1e-4)
    pages = wikitext(senri_subject, data)
    assert pages["memory on"]["word_perplexity"] != pytest.approx(pages["memory off"]["word_perplexity"], rel=1e-4)


def test_a_stream_is_scored_as_one_forward(senri_subject, data):
    tokenizer, model = senri_subject.tokenizer, senri_subject.model
    nats = tokens = 0
    for page in wikitext_pages(str(data / "wiki.tokens")):
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(detokenise(page))["input_ids"]]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    found = wikitext(senri_subject, data, chunk_size=7)["memory on"]
    assert found["token_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found["tokens"] == tokens


def test_a_pair_is_cut_where_its_context_ends(bytes_tokenizer):
    pair = encode_pair(bytes_tokenizer, "ab ", "c")
    assert bytes_tokenizer.decode(pair.context) == "ab"
    assert bytes_tokenizer.decode(pair.continuation) == " c"
    alone = encode_pair(bytes_tokenizer, "", "c")
    assert alone.context == [bytes_tokenizer.eos_token_id]
    with pytest.raises(SenriError, match="no token to score"):
        encode_pair(bytes_tokenizer, "ab", "")


def test_a_pair_after_a_text_is_scored_as_if_it_were_one(base_subject, bytes_tokenizer):
    before = bytes_tokenizer("Long ago. ")["input_ids"]
    pair = encode_pair(bytes_tokenizer, "The mill", " turned")
    reader = open_reader(base_subject.model)
    reader.read(torch.tensor([before]))
    after = score_after(reader, pair)
    whole = score_pairs(base_subject.model, [dataclasses.replace(pair, context=before + pair.context)])[0]
    assert after.nats == pytest.approx(whole.nats, rel=1e-5)
    assert after.tokens == len(" turned")


def test_pages_are_found_and_detokenised(data):
    pages = wikitext_pages(str(data / "wiki.tokens"))
    assert len(pages) == 2
    assert "".join(pages) == PAGES
    text = detokenise(pages[0])
    assert "1,200 days-or so the miller said; it has 3.5 floors." in text
    assert '"It turns, "' not in text and '"It turns,"' in text
    assert "(the year of the flood)" in text and "[and the sluice]" in text
    assert "== History ==" in text
    assert "2,041 feet" in detokenise(pages[1])
    assert "the miller's favourite walk: steep" in detokenise(pages[1])


def test_wrong_data_is_refused(tmp_path, base_subject):
    def complain(part, content, pattern):
        path = tmp_path / "data.jsonl"
        path.write_text(content)
        chosen = dataclasses.replace(getattr(default_settings(), part), data=str(path))
        with pytest.raises(SenriError, match=pattern):
            evaluate(base_subject, part, chosen, progress=False)

    complain("lambada", '{"text": "a b"}\n{"txt": "c d"}\n', "line 2 .* has no text named 'text'")
    complain("lambada", "no json\n", "line 1 .* is not JSON")
    complain("lambada", "\n", "is empty")
    # A break that is none in JSON Lines: the row is whole, and what is wrong is in the next one.
    complain("lambada", '{"text": "a\u2028b c"}\n{}\n', "line 2 .* has no text named 'text'")
    complain("wikitext", '{"text": "a b"}\n', "no text named 'page'")
    (tmp_path / "plain.txt").write_text("no heading here")
    with pytest.raises(SenriError, match="no page heading"):
        wikitext_pages(str(tmp_path / "plain.txt"))
