"""lm-eval's model `senri`: what it answers equals lm-eval's own `hf` where that can answer, and goes on where not."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from senri.errors import SenriError
from senri.models import SenriConfig, SenriForCausalLM, Session

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'senri[eval]'")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from senri.evaluation.lm_harness import SenriLM  # noqa: E402

TEXT = "".join(f"The {index}th line says that the sum of {index} and {index} is {2 * index}.\n" for index in range(80))
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
MAX_POSITIONS = 512
WINDOW = {"sliding_window": 16, "default_layer_type": "sliding_attention"}
SEGMENTS = {"segment_length": 8, "gate_init": 0.0}
KINDS = {
    "gate": {**WINDOW, "memory_layers": [1], "memory": SEGMENTS},
    "add": {
        **WINDOW,
        "attention_sink": True,
        "memory_layers": [1],
        "memory": {
            "combine": "add",
            "projections": "own",
            "granularity": "token",
            "rule": "delta",
            "feature_map": "l2",
            "normaliser": "rmsnorm",
        },
    },
    # While it generates, this one decides otherwise than while it scores.
    "hierarchical": {
        **WINDOW,
        "memory_layers": [0],
        "memory": {**SEGMENTS, "type": "hierarchical", "combine": "alone"},
    },
}
PAIRS = [
    ("The 3th line says that the sum of 3 and 3 is", " 6"),
    ("The 3th line says that the sum of 3 and 3 is", " 7"),
    ("The 3th line says that the sum of 3 and 3 is", " 6.\nThe 4th line says that the sum of 4 and 4"),
    ("A context that ends in a space ", "goes on"),
    ("", "Nothing comes before this."),
    (TEXT[:500], TEXT[500:600]),
]
DOCUMENTS = ["One short line.", TEXT[:700], "x"]
PROMPTS = [TEXT[:60], TEXT[:300], "T"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>", "<|pad|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|pad|>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def make_model(tokenizer: PreTrainedTokenizerFast, kind: str = "gate") -> SenriForCausalLM:
    torch.manual_seed(1)
    config = SenriConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_POSITIONS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**SIZES, **KINDS[kind]},
    )
    model = SenriForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "memory_o_proj" in name or ".sink." in name or "gate_weight" in name:
                parameter.normal_(std=0.5)
            elif "attention_scale" in name:
                parameter.fill_(10.0)  # so that what a hierarchical memory decides shows in the text
    return model


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> SenriForCausalLM:
    return make_model(tokenizer)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def instances(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=index) for index, each in enumerate(arguments)]


def loglikelihoods(lm: HFLM, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    return lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)


def rolling(lm: HFLM, documents: list[str]) -> list[float]:
    return lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in documents]), True)


def generations(lm: HFLM, prompts: list[str], **settings: Any) -> list[str]:
    arguments = [(prompt, {"max_gen_toks": 12, "until": [], **settings}) for prompt in prompts]
    return lm.generate_until(instances("generate_until", arguments), disable_tqdm=True)


def watch(lm: SenriLM) -> list[tuple[int, int]]:
    """Return a list that fills with (tokens, positions with logits) of every forward pass."""
    passes: list[tuple[int, int]] = []
    forward = lm.model.forward

    def watched(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        out = forward(input_ids=input_ids, **kwargs)
        passes.append((input_ids.shape[1], out.logits.shape[1]))
        return out

    lm.model.forward = watched
    return passes


@pytest.mark.parametrize("chunk_size", [{}, {"chunk_size": 7}], ids=["default", "7"])
@pytest.mark.parametrize("kind", KINDS)
def test_results_of_short_texts_are_those_of_hf(
    kind: str, chunk_size: dict[str, int], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model(tokenizer, kind)
    reference, lm = (
        HFLM(pretrained=model, tokenizer=tokenizer, max_length=4096),
        SenriLM(pretrained=model, tokenizer=tokenizer, **chunk_size),
    )
    expected, found = loglikelihoods(reference, PAIRS), loglikelihoods(lm, PAIRS)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert rolling(lm, DOCUMENTS) == pytest.approx(rolling(reference, DOCUMENTS), rel=1e-6, abs=1e-4)
    assert generations(lm, PROMPTS) == generations(reference, PROMPTS)


def test_what_the_model_would_say_itself_is_greedy(model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = SenriLM(pretrained=model, tokenizer=tokenizer, chunk_size=3)
    context = tokenizer.encode(PROMPTS[1])
    said = Session(model).generate(torch.tensor([context]), max_new_tokens=8, do_sample=False)[0].tolist()
    other = [*said[:-2], (said[-2] + 1) % len(tokenizer), said[-1]]
    requests = [(None, context, said), (None, context, other), (None, context, said[:1])]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(requests, disable_tqdm=True)] == [True, False, True]


def test_sampling_draws_as_hf_does(model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    settings = {"do_sample": True, "temperature": 0.8, "top_p": 0.9}

    def draw(lm: HFLM, seed: int) -> list[str]:
        torch.manual_seed(seed)
        return generations(lm, PROMPTS[:1], **settings)

    reference, lm = (kind(pretrained=model, tokenizer=tokenizer) for kind in (HFLM, SenriLM))
    assert draw(lm, 3) == draw(reference, 3)
    assert draw(lm, 3) != draw(lm, 4)


def test_generation_ends_before_a_stop_sequence(model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = SenriLM(pretrained=model, tokenizer=tokenizer, chunk_size=7)
    (free,) = generations(lm, PROMPTS[:1], max_gen_toks=40)
    stop = free[len(free) // 2 :][:2]
    passes = watch(lm)
    assert generations(lm, PROMPTS[:1], max_gen_toks=40, until=[stop]) == [free[: free.index(stop)]]
    prompt_tokens = len(tokenizer.encode(PROMPTS[0]))
    assert sum(tokens for tokens, _ in passes) < prompt_tokens + 39  # it did not go on to the end
    del model.forward


def test_long_texts_are_read_whole_and_in_chunks(model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = SenriLM(pretrained=model, tokenizer=tokenizer, chunk_size=64)
    context, continuation = TEXT.rstrip(), " The end of it"
    length = len(tokenizer.encode(context))
    assert length > 2 * MAX_POSITIONS
    passes = watch(lm)
    ((whole, _),) = loglikelihoods(lm, [(context, continuation)])
    (text,) = generations(lm, [context])
    del model.forward
    assert max(tokens for tokens, _ in passes) == 64
    assert max(kept for tokens, kept in passes if tokens == 64) == 1  # of the prompt, nothing but the last logits
    session = Session(model)
    logits = session.logits(torch.tensor([tokenizer.encode(context + continuation)[:-1]]))[0].log_softmax(-1)
    targets = tokenizer.encode(context + continuation)[length:]
    expected = sum(float(logits[length - 1 + index, token]) for index, token in enumerate(targets))
    assert whole == pytest.approx(expected, abs=1e-4)
    # Every answer depends on the first token, hundreds of windows ago, through the memory alone.
    ids = tokenizer.encode(context)
    answers = lm._loglikelihood_tokens([(None, [first, *ids[1:]], targets) for first in (ids[0], ids[1])], True)
    assert answers[0][0] == pytest.approx(whole, abs=1e-4)
    assert abs(answers[1][0] - whole) > 1e-3
    new = Session(model).generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert text == tokenizer.decode(new[0], skip_special_tokens=True)


def test_a_document_is_one_stream(model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = SenriLM(pretrained=model, tokenizer=tokenizer, chunk_size=50)
    ids = tokenizer.encode(TEXT)
    logits = Session(model).logits(torch.tensor([[lm.prefix_token_id, *ids[:-1]]]))[0].log_softmax(-1)
    expected = float(logits.gather(1, torch.tensor(ids)[:, None]).double().sum())
    assert rolling(lm, [TEXT, ""]) == pytest.approx([expected, 0.0], rel=1e-5)


def test_a_context_is_read_once_for_all_its_continuations(
    model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = SenriLM(pretrained=model, tokenizer=tokenizer)
    requests = [(None, list(range(20, 60)), [5]), (None, list(range(20, 60)), [6, 7]), (None, [9, 8], [5])]
    passes = watch(lm)
    answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    del model.forward
    assert [tokens for tokens, _ in passes] == [40, 1, 2]
    assert answers == [lm._loglikelihood_tokens([request], disable_tqdm=True)[0] for request in requests]


def test_max_length_cuts_the_beginning_as_in_hf(model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    reference, lm = (kind(pretrained=model, tokenizer=tokenizer, max_length=90) for kind in (HFLM, SenriLM))
    pairs = [*PAIRS[:5], (TEXT, " and so on")]
    expected = [score for score, _ in loglikelihoods(reference, pairs)]
    assert [score for score, _ in loglikelihoods(lm, pairs)] == pytest.approx(expected, abs=1e-4)
    assert rolling(lm, [TEXT]) == pytest.approx(rolling(reference, [TEXT]), rel=1e-5)
    assert generations(lm, [TEXT]) == generations(reference, [TEXT])
    with pytest.raises(SenriError, match=r"max_length \(90\)"):
        lm._loglikelihood_tokens([(None, [1], [2] * 91)])


def test_requests_begin_from_a_session(
    model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    book = Session(model)
    book.read(torch.tensor([tokenizer.encode(TEXT)]))
    book.save(tmp_path / "book.senri")
    before = (tmp_path / "book.senri").read_bytes()
    context, continuation = "The sum of", " 5 and 5"
    ids, targets = tokenizer.encode(context), tokenizer.encode(context + continuation)
    logits = book.fork().logits(torch.tensor([targets[:-1]]))[0].log_softmax(-1)
    expected = sum(float(logits[i, targets[i + 1]]) for i in range(len(ids) - 1, len(targets) - 1))
    said = tokenizer.decode(book.fork().generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0])
    for session in (str(tmp_path / "book.senri"), book):
        lm = SenriLM(pretrained=model, tokenizer=tokenizer, session=session)
        first, _, again = loglikelihoods(lm, [(context, continuation), PAIRS[5], (context, continuation)])
        assert first[0] == pytest.approx(expected, abs=1e-4)
        assert again == first
        assert generations(lm, [context, context]) == [said, said]
    without = SenriLM(pretrained=model, tokenizer=tokenizer)
    assert abs(loglikelihoods(without, [(context, continuation)])[0][0] - expected) > 1e-3
    assert (tmp_path / "book.senri").read_bytes() == before
    assert book.tokens_read == len(tokenizer.encode(TEXT))


def test_other_models_are_as_in_hf(model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=MAX_POSITIONS, **SIZES)
    other = LlamaForCausalLM(config).eval()
    reference, lm = (kind(pretrained=other, tokenizer=tokenizer, batch_size=3) for kind in (HFLM, SenriLM))
    assert (lm.max_length, lm.batch_size) == (MAX_POSITIONS, 3)
    assert loglikelihoods(lm, PAIRS) == loglikelihoods(reference, PAIRS)
    assert rolling(lm, DOCUMENTS) == rolling(reference, DOCUMENTS)
    assert generations(lm, PROMPTS) == generations(reference, PROMPTS)
    with pytest.raises(SenriError, match="LlamaForCausalLM is no Senri model"):
        SenriLM(pretrained=other, tokenizer=tokenizer, session=Session(model))


def test_answers_are_cached(
    model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = SenriLM(pretrained=model, tokenizer=tokenizer)
    requests = {
        "loglikelihood": instances("loglikelihood", PAIRS),
        "loglikelihood_rolling": instances("loglikelihood_rolling", [(text,) for text in DOCUMENTS]),
        "generate_until": instances("generate_until", [(prompt, {"max_gen_toks": 3}) for prompt in PROMPTS]),
    }
    written: list[str] = []
    caching = CachingLM(lm, str(tmp_path / "cache.db"))
    add = lm.cache_hook.add_partial
    monkeypatch.setattr(
        lm.cache_hook, "add_partial", lambda name, request, answer: (written.append(name), add(name, request, answer))
    )
    first = {name: getattr(caching, name)(each) for name, each in requests.items()}
    assert written == [name for name, each in requests.items() for _ in each]
    passes = watch(lm)
    assert {name: getattr(caching, name)(each) for name, each in requests.items()} == first
    del model.forward
    assert passes == []


@pytest.mark.parametrize("chunk_size", [0, "7", True])
def test_a_wrong_chunk_size_is_refused(
    chunk_size: Any, model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(SenriError, match="chunk_size"):
        SenriLM(pretrained=model, tokenizer=tokenizer, chunk_size=chunk_size)


def test_sessions_that_do_not_fit_are_refused(
    model: SenriForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(SenriError, match=r"nowhere\.senri"):
        SenriLM(pretrained=model, tokenizer=tokenizer, session=str(tmp_path / "nowhere.senri"))
    with pytest.raises(SenriError, match="another loaded model"):
        SenriLM(pretrained=model, tokenizer=tokenizer, session=Session(make_model(tokenizer)))
    with pytest.raises(SenriError, match="2 rows"):
        SenriLM(pretrained=model, tokenizer=tokenizer, session=Session(model, batch_size=2))


REGISTERED = """
import sys, lm_eval_senri
heavy = {"torch", "senri", "lm_eval"}
assert not heavy & sys.modules.keys()
finders = list(sys.meta_path)
ORDER
from lm_eval.api.registry import model_registry
assert model_registry._objs["senri"] == "senri.evaluation.lm_harness:SenriLM"
assert "hf" in model_registry
assert not {"torch", "senri"} & sys.modules.keys()
assert sys.meta_path == finders
"""
ORDERS = {
    "before": "lm_eval_senri.register(); lm_eval_senri.register(); import lm_eval.models",
    "after": "import lm_eval.models; lm_eval_senri.register(); lm_eval_senri.register()",
    "looked for first": "import importlib.util as u; lm_eval_senri.register(); u.find_spec('lm_eval.models'); "
    "import lm_eval.models",
}


@pytest.mark.parametrize("order", ORDERS)
def test_registration_is_light_and_leaves_nothing_behind(order: str) -> None:
    subprocess.run([sys.executable, "-c", REGISTERED.replace("ORDER", ORDERS[order])], check=True)


def test_registration_does_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval_senri

    # An older lm-eval, without the registry: torch's import must survive it.
    monkeypatch.setitem(sys.modules, "lm_eval.models", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", SimpleNamespace())
    lm_eval_senri.register()


ENTRY_POINTS = importlib.metadata.entry_points(group="torch.backends")


@pytest.mark.slow  # lm-eval reads its thousands of task files first
@pytest.mark.skipif(
    "lm_eval_senri" not in ENTRY_POINTS.names, reason="senri's entry point is not installed: pip install -e . again"
)
def test_the_command_line_of_lm_eval(folder: Path, model: SenriForCausalLM, tmp_path: Path) -> None:
    questions = [
        {"question": f"The sum of {i} and {i} is", "choices": ["1", "20 or so"], "answer": 0} for i in range(3)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'questions.jsonl'}}}}}\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
    )
    words = [
        *[sys.executable, "-m", "lm_eval", "run", "--model", "senri", "--device", "cpu", "--batch_size", "4"],
        *["--model_args", f"pretrained={folder},dtype=float32,chunk_size=7", "--include_path", str(tmp_path)],
        *["--tasks", "sums", "--log_samples", "--output_path", str(tmp_path / "out")],
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(words, env={**os.environ, **offline}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("samples_sums_*.jsonl")
    samples = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    found = [float(resp[0][0]) for sample in samples for resp in sample["resps"]]
    pairs = [(question["question"], f" {choice}") for question in questions for choice in question["choices"]]
    lm = SenriLM(pretrained=str(folder), dtype="float32", device="cpu")
    assert found == pytest.approx([score for score, _ in loglikelihoods(lm, pairs)], abs=1e-4)
