"""HierarchicalMemory: fine memories under a coarse one; a learned gate says per query how far to look into the fine."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.features import l2
from senri.memory.multi import MultiMemory, MultiOptions


@dataclass
class HierarchicalOptions(MultiOptions):
    """Options of `HierarchicalMemory`: those of `MultiMemory` for the fine memories, and

    Args:
        expansion_threshold: while text is generated, queries whose gate exceeds this look into the fine memories whole
            and the others not at all; in [0, 1].
    """

    expansion_threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.expansion_threshold <= 1.0:
            raise SenriError(
                f"memory.options.expansion_threshold is {self.expansion_threshold}, but it must be between 0 and 1."
            )


class HierarchicalMemory(MultiMemory):
    """The coarse memory is the sum of the fine ones, so it needs no state: it reads as all of them with equal weights.

    With g = sigmoid(w . query + b), per query head, a fine memory counts 1 + g (parts * attention - 1): g = 0 is the
    coarse memory, g = 1 the attention to fine ones of `MultiMemory`. g is continuous in training and in evaluation;
    while text is generated it is 0 or 1 (`expansion_threshold`).

    Parameters, besides those of `MultiMemory`: `gate_weight` `[num_heads, feature]`, `gate_bias` `[num_heads]`.
    """

    Options = HierarchicalOptions
    options: HierarchicalOptions

    def make_parameters(self) -> None:
        """Create the gate."""
        super().make_parameters()
        self.gate_weight = nn.Parameter(torch.empty(self.num_heads, self.feature_width))
        self.gate_bias = nn.Parameter(torch.empty(self.num_heads))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin half way between coarse and fine, whatever the query."""
        super().reset_parameters()
        nn.init.zeros_(self.gate_weight)
        nn.init.zeros_(self.gate_bias)

    def read_weights(self, queries: Tensor, attention: Tensor) -> Tensor:
        """Move from equal weights to those of the attention as far as the gate is open."""
        return 1.0 + self.expansion(queries) * (super().read_weights(queries, attention) - 1.0)

    def expansion(self, queries: Tensor) -> Tensor:
        """Return the gate, `[batch, num_key_value_heads, 1, group, seq]`, for queries as in `read_weights`."""
        one = l2(queries[:, :, :1], self.config)
        weight: Any = self.gate_weight.to(one.dtype).view(one.shape[1], 1, one.shape[3], one.shape[-1], 1)
        logits = (one @ weight).squeeze(-1) + self.gate_bias.to(one.dtype).view(one.shape[1], 1, one.shape[3], 1)
        gate: Tensor = logits.sigmoid()
        return torch.where(gate > self.options.expansion_threshold, 1.0, 0.0) if self.deciding else gate
