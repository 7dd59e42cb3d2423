"""What a recipe trains on and is measured by: its texts, cut into sequences, some of them with needles."""

import random
from typing import Any

import datasets
import numpy as np
from torch import Tensor

from senri.conversion.sources import default_cache_dir
from senri.data.blocks import fingerprint, token_blocks
from senri.data.corpus import Corpus, Split, open_corpus
from senri.data.other_texts import (
    beginning_tokens,
    code_tokens,
    contents_tokens,
    noise_tokens,
    reference_tokens,
)
from senri.data.packing import pack
from senri.data.pairs import PairTemplates, read_training_sentences
from senri.errors import SenriError, nearest
from senri.evaluation.processes import process_state
from senri.evaluation.settings import default_settings
from senri.training.config import Recipe
from senri.training.held_out import document_tokens
from senri.training.needle_blocks import NeedleMixing, with_needles
from senri.training.recall.haystack_config import HaystackConfig
from senri.training.rows import TrainingRows, whole_batches

_SOURCE_BLOCKS = 8
"""Blocks of text that sentences of noise and words of tables of contents are taken from."""


def training_rows(recipe: Recipe, tokenizer: Any) -> tuple[TrainingRows, str]:
    """Return the training sequences of a recipe, and a digest of what they are.

    Raises:
        SenriError: a text or needle format that cannot be found or read, or too little text.
    """
    training, experiment = recipe.training, recipe.experiment
    if (sentences := experiment.data.sentences) is not None:
        assert sentences.path is not None
        templates = PairTemplates(sentences.first, sentences.second, sentences.forward, sentences.backward)
        texts = [sentence.text for sentence in read_training_sentences(sentences.path, templates)]
        packed = pack(texts, tokenizer, training.max_length, experiment.seed, sentences.separator)
        blocks = datasets.Dataset.from_dict({"input_ids": packed.tolist()})
        return TrainingRows(whole_batches(blocks, training.batch_size), answers=False), str(packed.sum())
    with process_state().main_process_first():  # the others find its cache
        blocks = token_blocks(
            corpus_of(recipe, "train"),
            tokenizer,
            training.max_length,
            cache=experiment.data.cache or default_cache_dir() / "tokens",
            tokens=experiment.data.tokens,
            block_characters=experiment.data.block_characters,
        )
        blocks = with_needles(blocks, tokenizer, _needle_mixing(recipe), experiment.seed)
    if any(stage.loss in ("values", "finding", "recall") for stage in training.stages.enabled.values()):
        assert training.recall is not None
        # One long text, which samples are cut from; haystacks from its beginning, which is of many documents.
        other = _other_rows(blocks, tokenizer, recipe, training.recall.haystacks)
        only = blocks.select_columns("input_ids").shuffle(seed=recipe.experiment.seed)
        first = datasets.Dataset.from_dict({"input_ids": other}, features=only.features)
        rows = TrainingRows(datasets.concatenate_datasets([first, only]), answers=False)
        return rows, fingerprint(blocks._fingerprint, other)
    if training.answers_only:
        blocks = blocks.select(np.flatnonzero(np.asarray(blocks["answer_start"]) >= 0))
    rows = TrainingRows(whole_batches(blocks, training.batch_size), answers=training.answers_only)
    return rows, str(blocks._fingerprint)


def _other_rows(blocks: Any, tokenizer: Any, recipe: Recipe, config: HaystackConfig) -> list[list[int]]:
    """Return rows as long as blocks: noise, each of other sentences of the text, tables of contents, code, the Python
    reference, and beginnings of documents.
    """
    rng = random.Random(f"{recipe.experiment.seed}-other-rows")
    length = len(blocks[0]["input_ids"])
    sentences = {"sentences": config.noise_sentences, "longest": config.noise_characters}

    def some_text() -> str:
        some = rng.sample(range(len(blocks)), min(_SOURCE_BLOCKS, len(blocks)))
        return " ".join(tokenizer.decode(blocks[one]["input_ids"]) for one in some)

    rows = [noise_tokens(tokenizer, some_text(), length, rng, **sentences) for _ in range(config.noise)]
    entries = config.contents_entries
    rows += [contents_tokens(tokenizer, some_text(), length, rng, entries=entries) for _ in range(config.contents)]
    long = code_tokens(tokenizer, config.code * length, rng)
    long += reference_tokens(tokenizer, config.reference * length)
    if config.beginnings:
        corpus = corpus_of(recipe, "train")
        long += beginning_tokens(tokenizer, corpus, config.beginnings * length, config.beginning_tokens)
    return rows + [long[start : start + length] for start in range(0, len(long), length)]


def _needle_mixing(recipe: Recipe) -> NeedleMixing:
    needles, formats = recipe.experiment.needles, default_settings().needle.formats
    if needles.format not in formats:
        raise SenriError(f"experiment.needles.format is {needles.format!r}: {nearest(needles.format, formats)}")
    return NeedleMixing(
        ratio=needles.ratio,
        format=formats[needles.format],
        values=needles.values,
        needles=needles.needles,
        question_context=needles.question_context,
    )


def corpus_of(recipe: Recipe, split: Split) -> Corpus:
    """Return the documents of one split of a recipe's text.

    Raises:
        SenriError: they cannot be found or read.
    """
    data = recipe.experiment.data
    own = {"train": data.train, "validation": data.validation, "test": data.test}[split]
    source = own or data.train
    assert source is not None
    separate = data.validation is not None and data.test is not None
    shares = (0.0, 0.0) if separate or (own is not None and split != "train") else tuple(data.held_out)
    return open_corpus(source, split, held_out=(shares[0], shares[1]), seed=recipe.experiment.seed, unwrap=data.unwrap)


def held_out_documents(recipe: Recipe, tokenizer: Any) -> list[Tensor]:
    """Return the beginnings of validation documents, `[1, seq]` each; none where a recipe names no text."""
    data = recipe.experiment.data
    if data.sentences is not None and data.validation is None:
        return []
    return document_tokens(
        corpus_of(recipe, "validation"), tokenizer, recipe.experiment.evaluation, data.block_characters
    )
