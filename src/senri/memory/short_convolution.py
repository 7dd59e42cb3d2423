"""Causal depthwise short convolution on queries or keys, with its past in the state so that chunk cuts never show."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from senri.memory.config import MemoryConfig
from senri.memory.dense_channels import DenseChannels
from senri.memory.gates import precise_sigmoid

_SMALL = 1e-4
"""Mean square of a mean that counts as nothing, as that of no token."""

_AROUND = 3
"""Tokens that dense channels of a key are made of: the one before, itself, the next."""


class ShortConvolution(nn.Module):
    """Mix every channel with its own `kernel_size - 1` predecessors: y_t = sum_j weight[j] x_(t - kernel_size + 1 + j).

    `weight` is `[channels, kernel_size]`, the last tap is the token itself. It starts as a pure delay of `delay` tokens
    (0: the identity), or of more in some channels; in a last share of them as a mean of all its tokens that decays. For
    that every token is brought to the same size before, and the mean after: it says what a sentence is about.

    With gates every share of the channels counts as much, at each token, as a linear map of the hidden state says: the
    first token of an answer is found by what a sentence is about, the next ones by those before them. Another one says
    how much a token counts in the mean, as the words that tell sentences apart should. All are 1 at the start.

    It may be bound to the others: each delayed channel is multiplied by 1 + s m, with m one of the mean's and s from
    the hidden state, 1 at the start. The likeness of two such vectors is about the product of how much alike their
    tokens are and how much alike what their sentences are about, as that of role and filler in a tensor product
    (Smolensky 1990, "Tensor product variable binding", section 2), where otherwise it would be their sum.

    Args:
        channels: of all heads.
        kernel_size: taps.
        delay: of the first channels of every head, in tokens.
        shares: of the channels of every head that are delayed by 0, 1, 2, ... further tokens.
        heads: how many heads the channels belong to.
        mean: share of the channels, beside those, that start as a mean.
        mean_decay: factor of a token's weight in it from each token to the next, on either side.
        binds: multiply the delayed channels by the mean.
        looks_ahead: the tokens of the delay count in the mean as those before them do.
        gated_by: size of the hidden states that gates come from; None for no gates.
        dense: makes further channels of every head, behind these, from hidden states and the mean.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        delay: int = 0,
        shares: Sequence[float] = (1.0,),
        heads: int = 1,
        mean: float = 0.0,
        mean_decay: float = 1.0,
        gated_by: int | None = None,
        binds: bool = False,
        looks_ahead: bool = False,
        dense: DenseChannels | None = None,
    ) -> None:
        super().__init__()
        self.sizes = _sizes(channels // heads, shares, mean)  # of the shares in each head
        self.heads, self.delay, self.mean_decay, self.has_mean = heads, delay, mean_decay, bool(mean)
        self.looks_ahead, self.binds = looks_ahead, binds
        self.delays = range(delay, delay + len(shares))  # of each share
        self.weight = nn.Parameter(torch.empty(channels, kernel_size))
        self.gates = None if gated_by is None else nn.Linear(gated_by, heads * self._gates_of_head)
        self.dense = dense
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the weight to pure delays and the mean, the gates to 1."""
        self.weight.zero_()
        by_share = self.weight.unflatten(0, (self.heads, -1)).split(self.sizes, dim=1)
        for delay, weight in zip(self.delays, by_share, strict=False):  # the mean is the last one
            weight[..., weight.shape[-1] - 1 - delay] = 1.0
        if self.has_mean:
            age = torch.arange(self.weight.shape[1] - 1, -1, -1, device=self.weight.device) - self.delay
            taps = torch.where((age >= 0) | self.looks_ahead, self.mean_decay ** age.abs(), 0.0)
            by_share[-1].copy_(taps / taps.norm())  # of whitened channels: as large as a delayed one
        if self.gates is not None:
            nn.init.zeros_(self.gates.weight)
            nn.init.zeros_(self.gates.bias)
        if self.dense is not None:
            self.dense.reset_parameters()

    def forward(
        self,
        x: Tensor,
        past: Tensor,
        mask: Tensor | None = None,
        hidden_states: Tensor | None = None,
        written: Tensor | None = None,
        around: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
            x: `[batch, seq, channels]`.
            past: the inputs before x, `[batch, kernel_size - 1, channels]`, zeros at the start.
            mask: `[batch, seq]`, False for tokens that are not there.
            hidden_states: `[batch, seq, hidden]`, what gates come from.
            written: of the tokens that outputs are of, where these are others, earlier ones.
            around: what dense channels are made of, `[batch, seq, tokens * hidden]`, where that is more.

        Returns:
            The output in x's dtype (at padding zeros, but in dense channels) and the new past in the past's dtype.
        """
        x = self._same_size(x)
        gates: Tensor | None = None
        if self.gates is not None:
            assert hidden_states is not None
            gates = self._gates(hidden_states, x.dtype)
            if self.has_mean:
                salience = gates[..., len(self.sizes) : len(self.sizes) + 1]
                x = x * self._by_channel(F.pad(salience, (len(self.sizes) - 1, 0), value=1.0))
        out, new_past = convolve(x, past, self.weight, mask)
        out = self._same_size(out)
        mean = out.unflatten(-1, (self.heads, -1))[..., -self.sizes[-1] :] if self.has_mean else None
        if gates is None:
            out = self._bound(out, None)
        else:
            gates = gates if written is None else self._gates(written, x.dtype)
            out = self._bound(out, gates[..., -1:]) * self._by_channel(gates[..., : len(self.sizes)])
        if self.dense is not None:
            around = hidden_states if around is None else around
            assert around is not None
            out = torch.cat([out.unflatten(-1, (self.heads, -1)), self.dense(around, mean).to(out.dtype)], dim=-1)
            out = out.flatten(-2)
        return out, new_past

    @property
    def _gates_of_head(self) -> int:
        return len(self.sizes) + self.has_mean + self.binds

    def _bound(self, x: Tensor, strength: Tensor | None) -> Tensor:
        """Bind the delayed channels to the mean, as strongly as `[batch, seq, heads, 1]` says, or 1."""
        if not self.binds:
            return x
        delayed, mean = x.unflatten(-1, (self.heads, -1)).split([sum(self.sizes[:-1]), self.sizes[-1]], dim=-1)
        repeated = mean.repeat(1, 1, 1, -(-delayed.shape[-1] // mean.shape[-1]))[..., : delayed.shape[-1]]
        repeated = repeated if strength is None else strength * repeated
        return torch.cat([delayed * (1 + repeated), mean], dim=-1).flatten(-2)

    def _gates(self, hidden_states: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a factor for each share, then for the mean's tokens, then for what is bound, as far as there are
        these: `[batch, seq, heads, factors]`.
        """
        assert self.gates is not None
        logits: Tensor = self.gates(hidden_states).unflatten(-1, (self.heads, -1))
        return 2 * precise_sigmoid(logits).to(dtype)

    def _same_size(self, x: Tensor) -> Tensor:
        """Bring the channels of the mean to a mean square of 1 in each head."""
        if not self.has_mean:
            return x
        delayed, mean = x.unflatten(-1, (self.heads, -1)).split([sum(self.sizes[:-1]), self.sizes[-1]], dim=-1)
        return torch.cat([delayed, F.rms_norm(mean, mean.shape[-1:], eps=_SMALL)], dim=-1).flatten(-2)

    def _by_channel(self, gates: Tensor) -> Tensor:
        """Give every channel its share's gate: `[batch, seq, heads, shares]` to `[batch, seq, channels]`."""
        shares = zip(gates.split(1, dim=-1), self.sizes, strict=True)
        return torch.cat([gate.expand(*gate.shape[:-1], size) for gate, size in shares], dim=-1).flatten(2)


def convolved_dim(config: MemoryConfig, key_dim: int) -> int:
    """Return how many of a head's channels are convolved; the others are dense ones."""
    if not config.convolution_dense:
        return key_dim
    shares = [*config.convolution_delays, config.convolution_mean]
    return key_dim - _sizes(key_dim, shares, config.convolution_dense)[-1]


def query_convolution(config: MemoryConfig, hidden_size: int, heads: int, key_dim: int) -> ShortConvolution:
    """Return the convolution of queries, which do not wait."""
    return _convolution(config, config.short_convolution, 0, hidden_size, heads, key_dim, 1)


def key_convolution(config: MemoryConfig, hidden_size: int, heads: int, key_dim: int) -> ShortConvolution:
    """Return the convolution of keys, one token late where they are shifted, and as many more as they look ahead."""
    ahead = config.look_ahead
    kernel, delay = config.short_convolution + ahead, int(config.token_shift) + ahead
    return _convolution(config, kernel, delay, hidden_size, heads, key_dim, _AROUND, looks_ahead=ahead > 0)


def _convolution(
    config: MemoryConfig,
    kernel_size: int,
    delay: int,
    hidden_size: int,
    heads: int,
    key_dim: int,
    tokens: int,
    looks_ahead: bool = False,
) -> ShortConvolution:
    convolved = convolved_dim(config, key_dim)
    dense = None
    if config.convolution_dense:
        shares, share = config.convolution_delays, config.convolution_mean
        mean = _sizes(convolved, shares, share)[-1] if share else 0
        dense = DenseChannels(hidden_size, tokens, heads, key_dim - convolved, mean, config.convolution_gates)
    return ShortConvolution(
        heads * convolved,
        kernel_size,
        delay,
        config.convolution_delays,
        heads,
        config.convolution_mean,
        config.convolution_mean_decay,
        hidden_size if config.convolution_gates else None,
        config.convolution_binds,
        looks_ahead,
        dense,
    )


def _sizes(channels: int, shares: Sequence[float], last: float) -> list[int]:
    """Return how many channels each share and then the last one get, which counts only above 0."""
    all_shares = [*shares, *([last] if last else [])]
    ends = [round(channels * share / sum(all_shares)) for share in accumulate(all_shares)]
    return [end - start for start, end in pairwise([0, *ends])]


def shift_tokens(x: Tensor, past: Tensor, mask: Tensor | None = None, late: int | None = None) -> tuple[Tensor, Tensor]:
    """Give every token the vector of one `late` tokens before it, by default as many as there are in the past; else as
    above.
    """
    skipped = 0 if late is None else past.shape[1] - late
    return over_real_tokens(x, past, mask, lambda inputs: inputs[:, skipped : skipped + x.shape[1]])


def convolve(x: Tensor, past: Tensor, weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolve each channel by its own taps, causally; else as above.

    Args:
        x: `[batch, seq, channels]`.
        past: `[batch, taps - 1, channels]`.
        weight: `[outputs, taps]`, as many outputs for each channel, one after another.
        mask: `[batch, seq]`, False for padding.
    """
    taps = weight.to(past.dtype).unsqueeze(1)

    def mix(inputs: Tensor) -> Tensor:
        if inputs.shape[1] < taps.shape[-1]:  # no token
            return inputs.new_zeros(len(inputs), 0, len(taps))
        with torch.autocast(inputs.device.type, enabled=False):  # in the past's dtype, that of the state
            return F.conv1d(inputs.transpose(1, 2), taps, groups=inputs.shape[-1]).transpose(1, 2)

    return over_real_tokens(x, past, mask, mix)


def recent_tokens(ids: Tensor, past: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return for every token it and those before it, as many as there are in the past, `[batch, seq, past]`; else as
    above.

    Args:
        ids: `[batch, seq, 1]`.
        past: `[batch, past, 1]`; -1 where there was none.
        mask: `[batch, seq]`, False for padding.
    """
    return over_real_tokens(ids, past, mask, lambda inputs: inputs[..., 0].unfold(1, past.shape[1], 1)[:, 1:])


def over_real_tokens(
    x: Tensor, past: Tensor, mask: Tensor | None, function: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Apply a causal function of [past, x] as if padding were not there.

    `function` takes `[batch, past + seq, channels]` and returns the seq outputs. Wherever padding stands, real tokens
    see only real predecessors, and the new past is the last real ones.
    """
    length, seq = past.shape[1], x.shape[1]
    if mask is None:
        inputs = torch.cat([past, x.to(past.dtype)], dim=1)
        return function(inputs).to(x.dtype), inputs[:, seq:]
    mask = mask.bool()
    order = mask.logical_not().to(torch.int8).argsort(dim=1, stable=True)
    inputs = torch.cat([past, _rows(x.to(past.dtype), order)], dim=1)
    rank = (mask.cumsum(dim=1) - 1).clamp(min=0)
    out = torch.where(mask.unsqueeze(-1), _rows(function(inputs), rank), 0.0)
    last = mask.sum(dim=1, keepdim=True) + torch.arange(length, device=x.device)
    return out.to(x.dtype), _rows(inputs, last)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
