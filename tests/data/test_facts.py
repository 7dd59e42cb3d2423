import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from senri.data.facts import KINDS, Fact, FactMaker, Split, ask
from senri.data.facts.schemas import Schema, schemas_for
from senri.data.facts.slots import Slots, as_sentence, with_article
from senri.data.facts.values import VALUES, code
from senri.data.facts.words import split_of, words_for
from senri.errors import SenriError

SPLITS = get_args(Split)
NEEDLES = ("numbers", "words", "uuids", "codes")
CONFIG = Path(__file__).parents[2] / "config" / "evaluation.yaml"
# Of the two formats of the needle test, which both splits have.
SECRET = re.compile(r"\bsecret (number|word|UUID|key)\b", re.IGNORECASE)
SPOKEN_WITH_A_VOWEL = re.compile(r"(?!uni|use|UUID|uku|eu|one\b)[aeiou]|hour|honest|heir|8|11|18")


def all_schemas(split: Split) -> list[Schema]:
    return [*chain.from_iterable(schemas_for(split).values())]


def samples_of(schema: Schema, count: int = 40, alone: bool = False) -> Iterator[Fact]:
    rng = random.Random(f"{schema.kind} {schema.name}")
    return (schema.make(rng, alone) for _ in range(count))


def texts(fact: Fact) -> tuple[str, str, str]:
    return fact.sentence, fact.question, fact.completion


def wordings(split: Split) -> set[str]:
    """All templates of a split, without the names of their slots and the sign at the end."""
    templates = chain.from_iterable(
        (*schema.sentences, *schema.questions, *schema.completions)
        + tuple(chain.from_iterable((one.sentence, one.question, one.completion) for one in schema.formats))
        for schema in all_schemas(split)
    )
    return {re.sub(r"\{.*?\}", "{}", text).lower().rstrip(".?:") for text in templates}


# What a maker promises.


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("same_kind", [False, True])
def test_the_generator_alone_decides_what_is_made(split, same_kind):
    def made(seed: int) -> list[Fact]:
        return FactMaker(split, KINDS).make(random.Random(seed), 20, same_kind=same_kind)

    assert made(1) == made(1)
    assert made(1) != made(2)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("same_kind", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_keys_and_answers_of_a_sample_are_distinct(split, same_kind, seed):
    facts = FactMaker(split, KINDS).make(random.Random(seed), 60, same_kind=same_kind)
    assert len(facts) == 60
    assert len({fact.answer.casefold() for fact in facts}) == 60
    keys = [f" {fact.key.casefold()} " for fact in facts]
    assert not [(one, other) for i, one in enumerate(keys) for j, other in enumerate(keys) if i != j and one in other]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_maker_makes_the_kinds_that_it_was_told(split, kind):
    assert {fact.kind for fact in FactMaker(split, [kind]).make(random.Random(0), 30)} == {kind}


def test_a_sample_is_of_one_kind_or_mixed():
    maker = FactMaker("train", KINDS)
    mixed = [{fact.kind for fact in maker.make(random.Random(seed), 30)} for seed in range(10)]
    same = [{fact.kind for fact in maker.make(random.Random(seed), 30, same_kind=True)} for seed in range(30)]
    assert min(len(kinds) for kinds in mixed) >= 4
    assert {len(kinds) for kinds in same} == {1}
    assert set.union(*same) == {*KINDS}


def test_facts_of_one_kind_differ_in_their_keys_and_not_in_what_they_tell():
    facts = FactMaker("test", ["facts"]).make(random.Random(3), 8, same_kind=True)
    questions = {schema.name: schema.questions for schema in schemas_for("test")["facts"]}
    fitting = [
        name
        for name, templates in questions.items()
        if all(any(re.fullmatch(as_pattern(text), fact.question) for text in templates) for fact in facts)
    ]
    assert len(fitting) == 1


def as_pattern(template: str) -> str:
    return ".+".join(re.escape(text) for text in re.split(r"\{.*?\}", as_sentence(template)))


def test_a_schema_without_further_answers_gives_way_to_others():
    # No schema of ordinary sentences has as many for tests as these.
    assert len(FactMaker("test", ["facts"]).make(random.Random(1), 3000, same_kind=True)) == 3000


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_more_answers_than_can_be_learnt_by_heart(kind):
    assert len(FactMaker("train", [kind]).make(random.Random(0), 10_000)) == 10_000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("training", ["facts"]), "there is no split 'training' of facts: did you mean 'train'?"),
        (("train", ["fact"]), "there is no kind 'fact' of facts: did you mean 'facts'?"),
        (("train", []), "kinds is empty"),
        (("train", "facts"), "write ['facts']"),
    ],
)
def test_an_unknown_split_or_kind_is_named(arguments, told):
    with pytest.raises(SenriError, match=re.escape(told)):
        FactMaker(*arguments)


def _frame(fact: Fact) -> str:
    return fact.sentence.replace(fact.answer, "").casefold().replace(fact.key.casefold(), "")


@pytest.mark.parametrize("kind", KINDS)
def test_facts_in_one_wording_differ_in_key_and_answer_alone(kind):
    for seed in range(12):
        facts = FactMaker("train", [kind]).make(random.Random(seed), 6, same_kind=True, same_wording=True)
        plain = FactMaker("train", [kind]).make(random.Random(seed), 6, same_kind=True)
        frames, others = ({_frame(fact) for fact in some} for some in (facts, plain))
        if kind in ("numbers", "uuids", "words", "codes"):
            assert len(frames) == 1 < len(others), frames
        assert len({fact.key for fact in facts}) == len({fact.answer for fact in facts}) == 6


@pytest.mark.parametrize("same_kind", [False, True])
def test_too_few_or_too_many_facts_are_refused(monkeypatch, same_kind):
    ailments = [schema for schema in schemas_for("test")["facts"] if schema.name == "illness"]
    monkeypatch.setattr("senri.data.facts.maker.schemas_for", lambda split: {"facts": ailments})
    maker = FactMaker("test", ["facts"])
    with pytest.raises(SenriError, match="count is 0"):
        maker.make(random.Random(0), 0, same_kind=same_kind)
    all_of_them = len(words_for("test")["ailment"])
    assert len(maker.make(random.Random(0), all_of_them, same_kind=same_kind)) == all_of_them
    with pytest.raises(SenriError, match=f"only {all_of_them} of {all_of_them + 1} facts of the kinds facts have"):
        maker.make(random.Random(0), all_of_them + 1, same_kind=same_kind)


# Splits.


def test_no_word_of_a_list_is_in_both_splits():
    train, test = ({word.casefold() for words in words_for(split).values() for word in words} for split in SPLITS)
    assert train and test
    assert train.isdisjoint(test)


def test_every_list_has_words_for_both_splits_and_each_once():
    for name, words in words_for("train").items():
        others = words_for("test")[name]
        assert len(words) >= 12 and len(others) >= 5, name
        assert len({*words}) == len(words) and len({*others}) == len(others), name
    first, last = (words_for("train")[name] + words_for("test")[name] for name in ("first", "last"))
    assert len({*first}) == len(first) >= 150
    assert len(last) >= 100


def test_a_word_is_for_tests_or_not_whatever_list_it_stands_in_and_however_it_is_written():
    assert split_of("Heron") == split_of("heron")
    assert {split_of(word) for word in words_for("test")["town"]} == {"test"}


def test_no_wording_is_in_both_splits_but_those_of_the_needle_test():
    shared = wordings("train") & wordings("test")
    assert shared == {
        "the secret {} for {} is: {}",
        "what is the secret {} for {} mentioned above",
        "the secret {} for {} is",
        "the secret key is: {}",
        "what is the secret key mentioned above",
        "the secret key is",
    }


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_facts_hold_no_name_of_the_other_split(split, other):
    lists = words_for(other)
    foreign = {word for name in ("first", "last", "town", "country", "street", "ship") for word in lists[name]}
    pattern = re.compile(rf"\b({'|'.join(sorted(map(re.escape, foreign)))})\b")
    for schema in all_schemas(split):
        for fact in samples_of(schema):
            assert not pattern.search(" ".join(texts(fact))), fact


def test_labels_of_values_are_in_one_split_alone():
    for kind in NEEDLES:
        train, test = ({*schemas_for(split)[kind][0].slots["label"]} for split in SPLITS)
        assert train and test and train.isdisjoint(test)


def test_rulers_wording_is_for_tests_alone():
    assert not [text for text in wordings("train") if "special magic" in text]
    asked = {
        kind: [fact for fact in samples_of(schemas_for("test")[kind][0], 200) if "special magic" in fact.sentence]
        for kind in NEEDLES
    }
    for kind, name in zip(NEEDLES, ("number", "word", "uuid", "code"), strict=True):
        assert asked[kind]
        for fact in asked[kind]:
            assert fact.sentence == f"One of the special magic {name}s for {fact.key} is: {fact.answer}."
            assert fact.question == f"What is the special magic {name} for {fact.key} mentioned in the provided text?"


@pytest.mark.parametrize("split", SPLITS)
def test_both_splits_have_the_formats_of_the_needle_test(split):
    formats: dict[str, Any] = yaml.safe_load(CONFIG.read_text())["needle"]["formats"]
    named = formats["named"]
    for kind, name in zip(NEEDLES, ("number", "word", "UUID", "key"), strict=True):
        found = [fact for fact in samples_of(schemas_for(split)[kind][0], 200) if SECRET.search(fact.sentence)]
        assert found
        for fact in found:
            filled = {"kind": name, "key": fact.key, "value": fact.answer}
            assert fact.sentence == named["needle"].format(**filled)
            prompt, _ = ask(fact, "question")
            assert named["question"].format(**filled) == f"{prompt} {fact.completion}"


@pytest.mark.parametrize("split", SPLITS)
def test_the_format_without_a_key_is_for_a_fact_that_is_alone(split):
    training = yaml.safe_load(CONFIG.read_text())["needle"]["formats"]["training"]
    maker = FactMaker(split, ["codes"])
    rng = random.Random(0)
    found = [fact for _ in range(200) for fact in maker.make(rng, 1) if fact.key == "secret key"]
    assert found
    for fact in found:
        assert fact.sentence == training["needle"].format(value=fact.answer)
        assert ask(fact, "question")[0] == training["question"]
    assert not [fact for fact in maker.make(rng, 500) if fact.key == "secret key"]


# Wordings.


@pytest.mark.parametrize("split", SPLITS)
def test_every_schema_is_filled_and_its_answer_can_be_copied_from_the_sentence(split):
    for schema in all_schemas(split):
        for fact in samples_of(schema):
            assert fact.answer in fact.sentence, fact
            assert fact.answer not in fact.question and fact.answer not in fact.completion, fact
            assert fact.answer == fact.answer.strip() != ""
            for text in texts(fact):
                assert not re.search(r"[{}]|\s\s|^\s|\s$", text), text
                assert fact.key.casefold() in text.casefold(), fact


@pytest.mark.parametrize("split", SPLITS)
def test_every_template_can_be_filled(split):
    rng = random.Random(0)
    for schema in all_schemas(split):
        templates = (*schema.sentences, *schema.questions, *schema.completions, *chain(*schema.slots.values()))
        for template in templates:
            # The patterns of codes are filled before their slots, so that signs in them do not count here.
            assert Slots(rng, words_for(split), schema.slots).fill(template), (schema.name, template)


@pytest.mark.parametrize("split", SPLITS)
def test_articles_and_capitals_are_right(split):
    for schema in all_schemas(split):
        for fact in samples_of(schema):
            for text in texts(fact):
                for article, word in re.findall(r"\b(an?) ([\w-]+)", text, re.IGNORECASE):
                    spoken_with_a_vowel = re.match(
                        r"(?!uni|use|UUID|uku|eu|one\b)[aeiou]|hour|honest|heir|8|11|18", word
                    )
                    assert (article.lower() == "an") == (spoken_with_a_vowel is not None), text
                assert not text[0].islower() or "-" in text.split()[0], text
                assert not re.search(r"\b(a|an|the) (a|an|the)\b", text, re.IGNORECASE), text


@pytest.mark.parametrize("kind", NEEDLES)
def test_values_have_many_wordings(kind):
    for split, least in (("train", 12), ("test", 6)):
        (schema,) = schemas_for(split)[kind]
        for templates in (schema.sentences, schema.questions, schema.completions):
            assert len({*templates}) >= least


def test_sentences_have_many_wordings():
    for split, least, completions in (("train", 8, 4), ("test", 2, 1)):
        for kind, schemas in (("names", 10), ("facts", 60)):
            found = schemas_for(split)[kind]
            assert len(found) >= schemas
            for schema in found:
                assert len({*schema.sentences}) >= least and len({*schema.questions}) >= least, schema.name
                assert len({*schema.completions}) >= completions, schema.name


def test_keys_have_one_to_six_words_and_come_from_several_sources():
    lengths = {
        len(fact.key.split())
        for kind in ("numbers", "facts")
        for schema in schemas_for("train")[kind]
        for fact in samples_of(schema, 100)
    }
    assert {1, 2, 3, 4, 5, 6} <= lengths


def test_answers_are_short():
    longest = max(len(fact.answer.split()) for schema in all_schemas("train") for fact in samples_of(schema, 100))
    assert longest <= 14


def test_values_have_the_shapes_of_their_kinds():
    maker, rng = FactMaker("train", ["numbers"]), random.Random(0)
    lengths = [len(fact.answer) for fact in maker.make(rng, 400)]
    assert {*lengths} == {3, 4, 5, 6, 7, 8, 9, 10}
    assert lengths.count(7) > 150
    for fact in FactMaker("train", ["uuids"]).make(rng, 50):
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", fact.answer)
    codes = [fact.answer for fact in FactMaker("train", ["codes"]).make(rng, 200)]
    assert [one for one in codes if re.fullmatch(r"KEY-[A-Z]{3}\d{5}", one)]
    assert len({re.sub(r"[a-z]+", "a", re.sub(r"\d", "0", re.sub("[A-Z]", "A", one))) for one in codes}) > 10
    words = {*words_for("train")["noun"], *words_for("train")["adjective"], *words_for("train")["material"]}
    for fact in FactMaker("train", ["words"]).make(rng, 50):
        assert {*fact.answer.split("-")} <= words


# Parts.


def test_a_fact_is_asked_for_in_four_styles():
    fact = Fact("Ada lives in Rome.", "Where does Ada live?", "in Rome", "Ada", "facts", "Ada lives")
    assert ask(fact, "question") == ("\nQuestion: Where does Ada live?\nAnswer:", " in Rome")
    assert ask(fact, "completion") == ("\nAda lives", " in Rome")
    assert ask(fact, "begun") == ("\nWhere does Ada live? Ada lives", " in Rome")
    said = replace(fact, sentence="Since May Ada lives in Rome.")
    assert ask(said, "verbatim") == ("\nSince May Ada lives", " in Rome")
    # Without the one it is about, or glued to what stands before, the beginning of the sentence does not ask for it.
    for sentence in ("It is in Rome that Ada lives.", "Ada lives <in Rome>."):
        answer = "in Rome"
        assert ask(replace(fact, sentence=sentence, answer=answer), "verbatim") == ask(fact, "completion")
    with pytest.raises(SenriError, match="there is no style 'questions' of asking: did you mean 'question'?"):
        ask(fact, "questions")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("otter", "an otter"),
        ("blue pot", "a blue pot"),
        ("honest baker", "an honest baker"),
        ("hourglass", "an hourglass"),
        ("horse", "a horse"),
        ("unique id", "a unique id"),
        ("umbrella", "an umbrella"),
        ("ukulele", "a ukulele"),
        ("UUID", "a UUID"),
        ("euphonium", "a euphonium"),
        ("8", "an 8"),
        ("11", "an 11"),
        ("110", "a 110"),
    ],
)
def test_a_noun_has_the_article_that_is_spoken(noun, expected):
    assert with_article(noun) == expected


def test_sentences_begin_with_a_capital_and_made_up_words_stay_as_they_are():
    assert as_sentence("the owl sleeps.") == "The owl sleeps."
    assert as_sentence("silver-otter -> 7") == "silver-otter -> 7"


def test_a_slot_keeps_what_was_drawn_and_a_digit_asks_for_another():
    lists = {"town": ("Lund", "Bath"), "woman": (), "man": (), "first": ()}
    slots = Slots(random.Random(0), lists, {"way": ("from {town} to {town2}",)})
    way = slots.fill("{way}")
    assert way in ("from Lund to Bath", "from Bath to Lund")
    assert slots.fill("{way}, {town}") == f"{way}, {way.split()[1]}"


def test_pronouns_follow_the_first_name():
    lists = {"first": ("Ada", "Otto"), "man": ("Otto",)}
    filled = {Slots(random.Random(seed), lists, {}).fill("{first} {he} {his} {him}") for seed in range(20)}
    assert filled == {"Ada she her her", "Otto he his him"}


def test_capitals_articles_and_ranges_are_filled():
    slots = Slots(random.Random(0), {"animal": ("guinea pig",), "colour": ("orange",)}, {})
    assert slots.fill("the {Animal} in {a colour} box") == "the Guinea Pig in an orange box"
    assert 5 <= int(slots.fill("{5-7}")) <= 7
    with pytest.raises(KeyError):
        slots.fill("{ghost}")


def test_a_pattern_becomes_a_code():
    assert re.fullmatch(r"A-[A-Z][0-9][a-z0-9][0-9a-f]", code("A-@#&%", random.Random(0)))


def test_times_and_dates_are_real_ones():
    rng = random.Random(0)
    days = {VALUES["date"](rng) for _ in range(5000)}
    assert {"February 28", "28 February", "the 31st of May", "the 3rd of June", "the 12th of July"} <= days
    assert not [day for day in days if re.search(r"\b(29|30|31)\b.*February|February (29|30|31)|31 (April|June)", day)]
    times = {VALUES["time"](rng) for _ in range(5000)}
    assert {
        "half past twelve in the afternoon",
        "half past six in the morning",
        "a quarter to nine in the evening",
    } <= times
    assert not [time for time in times if re.search(r"^(0|1[3-9]|2\d)[:.]\d\d (am|pm|in)|:[6-9]\d", time)]
