"""DenseChannels: the part of a query or key that is a sum of linear maps of several hidden states at once."""

import torch
from torch import Tensor, nn

from senri.memory.gates import precise_sigmoid


class DenseChannels(nn.Module):
    """Channels of every head that look at several tokens together: sum_j W_j x_j + V m + b.

    A depthwise convolution gives each channel one token of its own; that a place begins here, and that it is the place
    asked for, only the tokens on both sides and what the sentence is about say together. With a gate all of them count
    as much as a linear map of the states says; 1 at the start.

    Args:
        hidden_size: of one state.
        tokens: states that are looked at.
        heads: how many heads there are.
        channels: of these in each head.
        mean: size of the mean m of each head; 0 for none.
        gated: whether there is a gate.
    """

    def __init__(self, hidden_size: int, tokens: int, heads: int, channels: int, mean: int, gated: bool) -> None:
        super().__init__()
        self.heads, self.channels = heads, channels
        self.states = nn.Linear(tokens * hidden_size, heads * channels)
        self.mean = nn.Parameter(torch.empty(heads, channels, mean)) if mean else None
        self.gates = nn.Linear(tokens * hidden_size, heads) if gated else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the maps to random ones that keep the size of whitened states, the gate to 1."""
        nn.init.normal_(self.states.weight, std=self.states.in_features**-0.5)
        nn.init.zeros_(self.states.bias)
        if self.mean is not None:
            nn.init.normal_(self.mean, std=self.mean.shape[-1] ** -0.5)
        if self.gates is not None:
            nn.init.zeros_(self.gates.weight)
            nn.init.zeros_(self.gates.bias)

    def forward(self, states: Tensor, mean: Tensor | None) -> Tensor:
        """Return the channels, `[batch, seq, heads, channels]`.

        Args:
            states: `[batch, seq, tokens * hidden_size]`, one token's after another's.
            mean: `[batch, seq, heads, mean]`, where there is one.
        """
        out: Tensor = self.states(states).unflatten(-1, (self.heads, self.channels))
        if self.mean is not None:
            assert mean is not None
            out = out + torch.einsum("bshm,hcm->bshc", mean, self.mean.to(mean.dtype))
        if self.gates is not None:
            out = out * (2 * precise_sigmoid(self.gates(states)).to(out.dtype)).unsqueeze(-1)
        return out
