"""Log-likelihood of a continuation after a context, for many short pairs; counted as lm-eval counts it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from senri.errors import SenriError
from senri.evaluation.reader import Reader


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of a context (at least one) and of what follows it."""

    context: list[int]
    continuation: list[int]

    def within(self, positions: int) -> "EncodedPair":
        """Leave out the context's first tokens where a model has not enough positions, as lm-eval does."""
        room = max(positions + 1 - len(self.continuation), 1)
        return EncodedPair(self.context[-room:], self.continuation)


@dataclass(frozen=True)
class PairScore:
    """How well a continuation was predicted.

    Attributes:
        nats: sum of its tokens' negative log-likelihoods.
        tokens: how many there are.
        is_greedy: whether each is the likeliest token there.
    """

    nats: float
    tokens: int
    is_greedy: bool


def encode_pair(tokenizer: Any, context: str, continuation: str) -> EncodedPair:
    """Tokenise a context and its continuation together, then cut where the context alone would end.

    Blanks at the end of the context belong to the continuation, because tokenizers join a blank to the word after it.
    An empty context becomes the tokenizer's beginning-of-text token, or its end-of-text token where it has none.

    Raises:
        SenriError: nothing to score, or no token to begin with.
    """
    blanks = len(context) - len(context.rstrip())
    if blanks:
        continuation = context[-blanks:] + continuation
        context = context[:-blanks]
    if not context:
        ids = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        pair = EncodedPair([prefix_token(tokenizer)], ids)
    else:
        # With the special tokens that the tokenizer adds of itself, as lm-eval does.
        whole = tokenizer(context + continuation)["input_ids"]
        begin = len(tokenizer(context)["input_ids"])
        pair = EncodedPair(whole[:begin], whole[begin:])
    if not pair.continuation:
        raise SenriError(f"the continuation {continuation!r} has no token to score.")
    return pair


def prefix_token(tokenizer: Any) -> int:
    """Return the token that stands before a text: beginning-of-text, else end-of-text.

    Raises:
        SenriError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise SenriError("the tokenizer names neither a beginning-of-text nor an end-of-text token: add one to it.")


@torch.no_grad()
def score_pairs(model: Any, pairs: Sequence[EncodedPair]) -> list[PairScore]:
    """Score a batch of pairs in one forward pass, padded at the right.

    What stands at the right of a token cannot change its logits in a causal model, so no attention mask is needed.

    Args:
        model: any causal language model of transformers.
        pairs: the batch; of similar length, so that little is padding.
    """
    rows = [(pair.context + pair.continuation)[:-1] for pair in pairs]
    longest = max(map(len, rows))
    # Any token will do as padding: nothing is read there.
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    keep = longest - min(len(pair.context) for pair in pairs) + 1
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
    first = longest - keep
    scores = []
    for row, pair in zip(logits, pairs, strict=True):
        begin = len(pair.context) - 1 - first
        scores.append(_score(row[begin : begin + len(pair.continuation)], pair.continuation))
    return scores


def score_after(reader: Reader, pair: EncodedPair) -> PairScore:
    """Score a pair after what a reader has read; the reader goes on, so give it a fork."""
    ids = torch.tensor([(pair.context + pair.continuation)[:-1]])
    return _score(reader.logits(ids, logits_to_keep=len(pair.continuation))[0], pair.continuation)


def _score(logits: Tensor, continuation: list[int]) -> PairScore:
    """Score `[tokens, vocabulary]`."""
    targets = torch.tensor(continuation, device=logits.device)
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    greedy = bool((logits.argmax(dim=-1) == targets).all())
    return PairScore(float(losses.double().sum()), len(continuation), greedy)
