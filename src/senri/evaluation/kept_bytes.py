"""Bytes that one sequence keeps: what was measured, what the formula says, and what full attention would keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from senri.evaluation.footprint import LayerShape, kv_cache_bytes


@dataclass(frozen=True)
class KeptBytes:
    """What a model keeps after any number of tokens.

    Args:
        shapes: of its layers, by its configuration.
        config: that of its decoder.
        dtype: of its weights.
        measured: what was found after each length, ascending: `tokens`, and `layers` with `key_value_bytes` and
            `state_bytes` of each.
    """

    shapes: Sequence[LayerShape]
    config: Any
    dtype: torch.dtype
    measured: Sequence[dict[str, Any]]

    @property
    def totals(self) -> dict[int, int]:
        """What was measured over all layers, by the number of tokens."""
        return {one["tokens"]: total_bytes(one) for one in self.measured}

    def formula(self, tokens: int) -> int:
        """Return what the model keeps by its configuration; a state of unknown size counts nothing."""
        return sum(shape.total_bytes(tokens) for shape in self.shapes)

    def full_attention(self, tokens: int) -> int:
        """Return what full attention of the same shape keeps."""
        return kv_cache_bytes(self.config, tokens, self.dtype)

    def first_below(self, longest: int) -> int | None:
        """Return the first number of tokens at which the formula is below full attention; None if not by `longest`.

        What full attention keeps more than the formula never shrinks as tokens come, so halving finds it.
        """
        if self.formula(longest) >= self.full_attention(longest):
            return None
        low, high = 0, longest
        while high - low > 1:
            middle = (low + high) // 2
            is_below = self.formula(middle) < self.full_attention(middle)
            low, high = (low, middle) if is_below else (middle, high)
        return high

    def disagreements(self) -> list[str]:
        """Return a sentence for every layer and length whose measured bytes are not the formula's."""
        sentences = []
        for index, shape in enumerate(self.shapes):
            for one in self.measured:
                found, tokens = one["layers"][index], one["tokens"]
                pairs = {"keys and values": (found["key_value_bytes"], shape.key_value_bytes(tokens))}
                if shape.state_bytes is not None:
                    pairs["memory state"] = (found["state_bytes"], shape.state_bytes)
                for name, (is_there, expected) in pairs.items():
                    may_be_less = shape.is_sparse and name == "memory state"
                    if is_there > expected or (is_there < expected and not may_be_less):
                        sentences.append(
                            f"Layer {index} ({shape.kind}): after {tokens:,} tokens its {name} take {is_there:,} "
                            f"bytes, but the formula says {expected:,}."
                        )
        return sentences

    def limits(self) -> list[str]:
        """Return a sentence for every layer of which the formula cannot say all."""
        sentences = []
        for index, shape in enumerate(self.shapes):
            if shape.is_sparse:
                sentences.append(
                    f"Layer {index} stores only what was written; its formula is the most that it can take."
                )
            if shape.state_bytes is None:
                sentences.append(
                    f"Layer {index} has a state whose size its configuration does not tell; it is only measured."
                )
        return sentences


def total_bytes(measurement: dict[str, Any]) -> int:
    """Return what a measurement found over all layers."""
    return sum(layer["key_value_bytes"] + layer["state_bytes"] for layer in measurement["layers"])
