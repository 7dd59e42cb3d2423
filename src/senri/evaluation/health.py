"""Is a result to be believed? What a suspicious perplexity may mean, and a probe for a model that looks ahead."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from senri.errors import SenriError

LEAK_BELOW = 5.0
"""Text that a small language model has not learnt by heart stays above this; a target that leaks does not."""

CHECK_SPLIT_BELOW = 30.0
"""A small model that gets below this on prose may be good, or may have seen the text in training."""

UNTRAINED_ABOVE = 1000.0
"""A trained model does not get above this on text of its language; mismatched weights or tokens do."""

# Logits of one float32 forward differ by about this much (relative to their largest) between sums in another order.
_TOLERANCE = 1e-4


def warning_of(perplexity: float) -> str | None:
    """Return what a wrong-looking perplexity may mean, or None."""
    if math.isnan(perplexity):
        return "perplexity is not a number: the weights or the state hold values that are not finite."
    if perplexity < LEAK_BELOW:
        return f"perplexity {perplexity:.2f} is below {LEAK_BELOW:g}: a target may leak, or a mask may be broken."
    if perplexity > UNTRAINED_ABOVE:
        return f"perplexity {perplexity:.0f} is above {UNTRAINED_ABOVE:g}: the weights look untrained."
    return None


def note_of(perplexity: float) -> str | None:
    """Return what a good perplexity still leaves to be checked, or None."""
    if LEAK_BELOW <= perplexity <= CHECK_SPLIT_BELOW:
        return (
            f"perplexity between {LEAK_BELOW:g} and {CHECK_SPLIT_BELOW:g}: plausible for a trained model; check that "
            f"the text was in no training split."
        )
    return None


@dataclass(frozen=True)
class CausalityProbe:
    """What happened when one token was changed.

    Attributes:
        position: of the changed token.
        tokens: length of the probe.
        change_before: largest change of a logit at an earlier position, relative to the largest logit; 0 in theory.
        change_after: the same from the changed token on; above 0, or the model does not read at all.
    """

    position: int
    tokens: int
    change_before: float
    change_after: float

    @property
    def is_causal(self) -> bool:
        """Whether no earlier logit moved by more than rounding, while later ones did move."""
        return self.change_before <= _TOLERANCE < self.change_after

    @property
    def warning(self) -> str | None:
        """Return what is wrong, or None."""
        if self.is_causal:
            return None
        if self.change_before > _TOLERANCE:
            return (
                f"changing token {self.position} moved logits before it (by {self.change_before:.1e} of the largest): "
                f"the model looks ahead, so its scores mean nothing."
            )
        return f"changing token {self.position} moved no later logit: the model does not read its input."


@torch.no_grad()
def causality_probe(model: Any, ids: Tensor) -> CausalityProbe:
    """Change one token in the middle of a text and compare the logits of two full forwards.

    Args:
        model: any causal language model of transformers.
        ids: `[1, seq]`, at least 3 tokens.

    Raises:
        SenriError: fewer tokens.
    """
    length = ids.shape[1]
    if length < 3:
        raise SenriError(f"the causality probe needs at least 3 tokens, but has {length}.")
    position = length // 2
    ids = ids.to(model.device)
    changed = ids.clone()
    changed[0, position] = (
        ids[0, 0] if ids[0, 0] != ids[0, position] else (ids[0, position] + 1) % model.config.vocab_size
    )
    before, after = (model(input_ids=one, use_cache=False).logits[0].float() for one in (ids, changed))
    change = (before - after).abs().amax(dim=-1) / before.abs().max()
    return CausalityProbe(position, length, float(change[:position].max()), float(change[position:].max()))
