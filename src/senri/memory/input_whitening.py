"""InputWhitening: what a memory's projections, strengths and gates see of a layer's hidden states."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senri.memory.calibration import whitening_matrix


class InputWhitening(nn.Module):
    """Centre and whiten hidden states `[..., hidden_size]`, by moments of real text; the identity before.

    A layer's states vary a hundred times more in some directions than in others. An optimiser that moves every weight
    by the same step turns a map of such states mostly by their loudest directions; here all of them are as loud.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the map to the identity."""
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def initialise(self, mean: Tensor, covariance: Tensor) -> None:
        """Set the map from the mean `[hidden_size]` and covariance `[hidden_size, hidden_size]` of hidden states."""
        # Rounded so that a model in bfloat16 has the very map that others were trained on.
        weight = whitening_matrix(covariance.double().cpu()).bfloat16().double()
        self.weight.copy_(weight)
        self.bias.copy_(-(weight @ mean.double().cpu()))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return `[..., hidden_size]`."""
        return F.linear(hidden_states, self.weight, self.bias)
