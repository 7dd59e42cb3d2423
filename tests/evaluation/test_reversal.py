import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from senri.data.pairs import PairSentence
from senri.errors import SenriError
from senri.evaluation.reversal import ReversalSettings, encode_sentence, reversal_units, wrong_pairs
from senri.evaluation.reversal_outcome import reversal_outcome
from senri.evaluation.subject import Subject
from senri.evaluation.units import run_units
from senri.models import SenriConfig, SenriForCausalLM

PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Fay", "Gus", "Hal")
TRADES = ("smith", "baker", "diver", "weaver", "miller", "potter", "sailor", "tailor")
PAIRS = dict(zip(PEOPLE, TRADES, strict=True))
SIZES = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


class Bytes:
    """A tokenizer whose tokens are bytes, but for `s.`, which is one token."""

    def __call__(self, text, *, add_special_tokens, verbose=True):
        return {"input_ids": list(text.encode().replace(b"s.", b"\xfe"))}


class Knowing:
    """A reader that knows some sentences by heart, and copies what its context says after the same words."""

    def __init__(self, known, log):
        self.known, self.log, self.tokens_read = [sentence.encode() for sentence in known], log, 0

    def logits(self, ids, logits_to_keep=0):
        text = bytes(ids[0].tolist())
        self.log.append(text)
        logits = torch.zeros(1, len(text), 256)
        for end in range(1, len(text) + 1):
            line = text[:end].rpartition(b"\n")[2]
            for known in self.known:
                if known.startswith(line) and len(known) > len(line):
                    logits[0, end - 1, known[len(line)]] = 20.0
                    break
        return logits[:, -logits_to_keep:] if logits_to_keep else logits


def knowing_subject(known, log):
    return SimpleNamespace(tokenizer=Bytes(), name="knowing", is_senri=False, reader=lambda: Knowing(known, log))


def forward(person):
    return f"{person} is the {PAIRS[person]}!"


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "pairs.csv").write_text("".join(["who,what\n", *(f"{who},{what}\n" for who, what in PAIRS.items())]))
    values = {
        "data": str(tmp_path / "pairs.csv"),
        "first": "who",
        "second": "what",
        "forward": "{first} is the {second}!",
        "backward": "The {second} is {first}!",
        "pairs": "all",
        "separator": "\n",
        "pack_tokens": 70,
        "seed": 0,
    }
    return lambda **changes: ReversalSettings(**{**values, **changes})


@pytest.fixture
def berglund(tmp_path):
    """Two phrasings of each of four people, half of them taught the other way round."""
    frames = ("Once", "Long ago")

    def by_name(people):
        return [(f"{frame} {who} was", f" the {PAIRS[who]}.") for who in people for frame in frames]

    def by_trade(people):
        return [(f"{frame} the {PAIRS[who]} was", f" {who}") for who in people for frame in frames]

    for name, rows in {
        "p2d_prompts_test": by_name(PEOPLE[:4]),
        "p2d_reverse_prompts_test": by_trade(PEOPLE[:4]),
        "d2p_prompts_test": by_trade(PEOPLE[4:]),
        "d2p_reverse_prompts_test": by_name(PEOPLE[4:]),
    }.items():
        lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return str(tmp_path)


def run(subject, settings):
    results = run_units(reversal_units(subject, settings), "reversal", progress=False).results
    return results, reversal_outcome(subject, settings, results)


def sentence(text_before, completion, ending="", about=("x",), frame="f"):
    return PairSentence(text_before, completion, ending, frozenset(about), "name", frame)


def test_a_model_that_knows_one_direction_alone_shows_the_curse(settings):
    log = []
    _, outcome = run(knowing_subject([forward(who) for who in PEOPLE], log), settings())
    ahead, back = (outcome.results["directions"][name] for name in ("forward", "backward"))
    assert (ahead["exact_match"], back["exact_match"]) == (1.0, 0.0)
    assert ahead["perplexity"] == pytest.approx(1, abs=1e-3)
    assert back["perplexity"] == pytest.approx(256)  # every byte is as likely as any other
    assert back["ratio"] == pytest.approx(1)
    assert ahead["wrong_perplexity"] > 256
    assert outcome.results["gap"] == pytest.approx(255, rel=1e-3)
    assert outcome.counts["samples"] == 16
    assert outcome.counts["reads"] == len(log)
    assert outcome.counts["tokens"] == sum(map(len, log))
    assert not any("not learnt" in warning for warning in outcome.warnings)


def test_a_model_that_knows_nothing_is_said_to(settings):
    _, outcome = run(knowing_subject([], []), settings())
    assert outcome.results["directions"]["forward"]["ratio"] == pytest.approx(1)
    assert any("not learnt" in warning for warning in outcome.warnings)
    assert any("complete what, backward ones who" in warning for warning in outcome.warnings)


def test_blocks_are_full_of_whole_sentences_and_never_tell_twice_of_a_pair(berglund, settings):
    log, tokenizer = [], Bytes()
    chosen = settings(data=berglund, pack_tokens=150)
    run(knowing_subject([], log), chosen)
    blocks = [text for text in log if text.startswith(b"\n")]
    assert all(len(block) <= chosen.pack_tokens for block in blocks)
    assert max(map(len, blocks)) > chosen.pack_tokens * 0.6
    right = wrong = 0
    for block in blocks:
        lines = [line.replace(b"\xfe", b"s.").decode() for line in block[1:].split(b"\n")]
        told = [{number for number, who in enumerate(PEOPLE) if who in line or PAIRS[who] in line} for line in lines]
        assert sum(map(len, told)) == len(set().union(*told))
        assert len({len(one) for one in told}) == 1  # right and wrong pairs are never together
        right += sum(len(one) == 1 for one in told)
        wrong += sum(len(one) == 2 for one in told)
        ids = [token for line in lines for token in (10, *tokenizer(line, add_special_tokens=False)["input_ids"])]
        assert bytes(ids) == block
    assert right == wrong == 32
    # Right and wrong pairs have as much before them: their blocks, which alternate, hold the same prompts.
    for block, control in zip(blocks[::2], blocks[1::2], strict=True):
        firsts = [[line.split()[:2] for line in text.splitlines()] for text in (block, control)]
        assert firsts[0] == firsts[1]
    prompts = [text for text in log if not text.startswith(b"\n")]
    assert len(prompts) == 32
    assert not any(b"\n" in text for text in prompts)


def test_what_is_completed_is_told_apart(berglund, settings):
    known = [f"{frame} {who} was the {PAIRS[who]}." for frame in ("Once", "Long ago") for who in PEOPLE]
    _, outcome = run(knowing_subject(known, []), settings(data=berglund, pack_tokens=150))
    found = outcome.results["completions"]
    assert found["forward"]["description"]["exact_match"] == found["backward"]["description"]["exact_match"] == 1
    assert found["forward"]["name"]["exact_match"] == found["backward"]["name"]["exact_match"] == 0
    assert outcome.results["directions"]["forward"]["exact_match"] == 0.5
    assert [row[:3] for row in outcome.tables[0].rows[:3]] == [
        ["forward", "all", "16"],
        ["forward", "description", "8"],
        ["forward", "name", "8"],
    ]
    assert not any("different things" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("kind", ["senri", "llama"])
def test_perplexity_is_that_of_the_completions_tokens(settings, kind):
    """A block that holds one sentence alone, against one plain forward pass."""
    torch.manual_seed(0)
    if kind == "senri":
        memory = {"memory_layers": [1], "memory": {"segment_length": 8}}
        config = SenriConfig(sliding_window=16, default_layer_type="sliding_attention", **memory, **SIZES)
        model = SenriForCausalLM(config).eval()
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    _, outcome = run(Subject(model, Bytes(), kind), settings(pack_tokens=22))
    nats, tokens, whole_nats, whole_tokens, matches = 0.0, 0, 0.0, 0, 0
    for who, what in PAIRS.items():
        ids = torch.tensor([list(f"\n{who} is the {what}!".encode())])
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
            alone = model(ids[:, 1:]).logits[0].argmax(dim=-1)[:-1].eq(ids[0, 2:])
        count = len(f" {what}")
        nats, tokens = nats + losses[-1 - count : -1].sum().item(), tokens + count
        whole_nats, whole_tokens = whole_nats + losses.sum().item(), whole_tokens + len(losses)
        matches += bool(alone[-1 - count : -1].all())
    ahead = outcome.results["directions"]["forward"]
    assert ahead["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert ahead["sentence_perplexity"] == pytest.approx(math.exp(whole_nats / whole_tokens), rel=1e-4)
    assert ahead["exact_match"] == matches / 8
    assert [picture.name for picture in outcome.pictures] == ["reversal"]


def test_progress_adds_up_to_the_size(settings):
    for unit in reversal_units(knowing_subject([], []), settings()):
        done = []
        result = unit.run(SimpleNamespace(advance=done.append))
        assert sum(done) == unit.size == result["tokens"]


def test_units_are_the_same_in_every_run_and_pairs_can_be_fewer(settings):
    keys = [(unit.key, unit.size) for unit in reversal_units(knowing_subject([], []), settings())]
    assert keys == [(unit.key, unit.size) for unit in reversal_units(knowing_subject([], []), settings())]
    log = []
    _, outcome = run(knowing_subject([], log), settings(pairs=3))
    assert outcome.counts["samples"] == 6
    assert sum(any(who.encode() in text for text in log) for who in PEOPLE) == 3


def test_a_completion_has_its_own_tokens_and_those_that_span_its_border():
    tokenizer = Bytes()
    plain = encode_sentence(sentence("Ada is", " tall", "."), tokenizer)
    assert bytes(plain.ids[plain.begin : plain.end]) == b" tall"
    spanning = encode_sentence(sentence("Ada is", " miss", "."), tokenizer)
    assert bytes(spanning.ids[spanning.begin : spanning.end]) == b" mis\xfe"
    whole = encode_sentence(sentence("Ada is", " miss."), tokenizer)
    assert bytes(whole.ids[whole.begin : whole.end]) == b" mis\xfe"


def test_wrong_pairs_exchange_completions_within_a_frame_and_with_other_pairs_alone():
    right = [
        sentence("Once Ada was", " the smith", about=("Ada",), frame="Once"),
        sentence("Once Ada was", " a smith", about=("Ada",), frame="Once"),
        sentence("Once Ben was", " the smith", about=("Ben",), frame="Once"),
        sentence("Once Cid was", " the baker", about=("Cid",), frame="Once"),
        sentence("Later Ada was", " rich", about=("Ada",), frame="Later"),
        sentence("Later Ben was", " poor", about=("Ben",), frame="Later"),
    ]
    wrong = wrong_pairs(right)
    assert [one.prompt for one in wrong] == [one.prompt for one in right]
    assert [one.completion for one in wrong] == [
        " the baker",  # Ben is a smith as well
        " the smith",
        " the baker",
        " the smith",
        " poor",
        " rich",
    ]
    assert wrong[0].about == {"Ada", "Cid"}
    with pytest.raises(SenriError, match="no other one to be exchanged with"):
        wrong_pairs(right[:2])


def test_bad_input_is_said_before_any_reading(settings):
    subject = knowing_subject([], [])
    with pytest.raises(SenriError, match="data is not set"):
        reversal_units(subject, settings(data=None))
    with pytest.raises(SenriError, match="pairs is 9, but .* holds 8"):
        reversal_units(subject, settings(pairs=9))
    with pytest.raises(SenriError, match="more than the 12 of a block"):
        reversal_units(subject, settings(pack_tokens=12))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pairs": 1}, "pairs is 1"),
        ({"separator": ""}, "separator is empty"),
        ({"pack_tokens": 1}, "pack_tokens is 1"),
        ({"forward": "{second} is {first}"}, "forward is"),
    ],
)
def test_settings_out_of_range_are_refused(settings, changes, said):
    with pytest.raises(SenriError, match=said):
        settings(**changes)
