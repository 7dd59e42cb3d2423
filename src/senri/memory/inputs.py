"""MemoryInputs: from a layer's hidden states to what a memory takes (queries, keys, values, write strength, decay)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from senri.errors import SenriError
from senri.memory.base import LayerState
from senri.memory.channels import channels_last, split_heads
from senri.memory.config import MemoryConfig
from senri.memory.gates import logit, strengths, within_budget
from senri.memory.input_whitening import InputWhitening
from senri.memory.short_convolution import (
    convolved_dim,
    key_convolution,
    query_convolution,
    recent_tokens,
    shift_tokens,
)
from senri.memory.strength_convolution import StrengthConvolution
from senri.memory.turns import turns


@dataclass(frozen=True)
class MemoryTokens:
    """What `Memory.scan` takes: q, k, v `[batch, heads, seq, dim]`, beta and decay `[batch, heads, seq]`.

    q is None where only a write was asked for; None for beta and decay leaves them to the memory's configuration.
    """

    q: Tensor | None
    k: Tensor
    v: Tensor
    beta: Tensor | None
    decay: Tensor | None


class MemoryInputs(nn.Module):
    """Projections, token shift or short convolution, and learned strengths of one layer's memory.

    With `shared` projections q, k and v come from the layer (before rotary positions); a memory that copies gets its
    values, which are codes of tokens, and which tokens these are. With `token_shift` a key is made
    of the token before ("what came before" -> "this"); a row's first token has none before it and writes nothing.
    With `look_ahead` a token is written so many tokens later, with a key that those are part of; with `write_delay`
    later still. With `convolution_dense` some channels of a key are linear maps of the token before it, itself and the
    next one together, those of a query of the token that asks.

    State, by name: `conv_q`, `conv_k` and `conv_beta` `[batch, past, channels]`, the last inputs of the convolutions or
    the shift; `late_states` `[batch, late, hidden_size]`, of tokens that are not written yet (with dense channels of
    one more before them); where values are given, `late_values` `[batch, late, channels]` and `late_ids`
    `[batch, late, 1]`, -1 for none; with any delay `begun` `[batch]`, int64: tokens read, as far as they count; where
    codes are turned `read` `[batch]`, int64: all tokens read; with a budget of writes `written` `[batch, heads]`: the
    sum of all write strengths, each as it was before it fell.
    """

    def __init__(
        self,
        config: MemoryConfig,
        hidden_size: int,
        num_heads: int,
        num_key_value_heads: int,
        key_dim: int,
        value_dim: int,
    ) -> None:
        """Build the inputs for the given (already resolved) sizes."""
        super().__init__()
        self.config, self.hidden_size = config, hidden_size
        self.num_heads, self.num_key_value_heads = num_heads, num_key_value_heads
        self.key_dim, self.value_dim = key_dim, value_dim
        self.convolved_dim = convolved_dim(config, key_dim)  # of a head's channels, those that are no dense ones
        self.whitening = InputWhitening(hidden_size) if config.whitened_inputs else None
        if config.projections == "own":
            self.q_proj = nn.Linear(hidden_size, num_heads * self.convolved_dim)
            self.k_proj = nn.Linear(hidden_size, num_key_value_heads * self.convolved_dim)
            if config.combine != "copy":
                self.v_proj = nn.Linear(hidden_size, num_key_value_heads * value_dim)
        if config.learned_write_strength:
            self.beta_proj = nn.Linear(hidden_size, num_key_value_heads)
            if config.convolved_write_strength:
                taps = config.short_convolution + config.look_ahead  # those of keys
                self.conv_beta = StrengthConvolution(
                    num_key_value_heads, taps, config.look_ahead, config.write_strength_around
                )
        if config.rule == "gated_delta":
            self.decay_proj = nn.Linear(hidden_size, num_key_value_heads)
        if config.short_convolution:
            self.conv_q = query_convolution(config, hidden_size, num_heads, key_dim)
            self.conv_k = key_convolution(config, hidden_size, num_key_value_heads, key_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set every parameter to its start: constant strengths, pure delays, projections as `nn.Linear`."""
        if self.whitening is not None:
            self.whitening.reset_parameters()
        if self.config.projections == "own":
            self.q_proj.reset_parameters()
            self.k_proj.reset_parameters()
            if self.config.combine != "copy":
                self.v_proj.reset_parameters()
        if self.config.learned_write_strength:
            nn.init.zeros_(self.beta_proj.weight)
            nn.init.constant_(self.beta_proj.bias, logit(self.config.write_strength))
            if self.config.convolved_write_strength:
                self.conv_beta.reset_parameters()
        if self.config.rule == "gated_delta":
            nn.init.zeros_(self.decay_proj.weight)
            nn.init.constant_(self.decay_proj.bias, logit(self.config.decay))
        if self.config.short_convolution:
            self.conv_q.reset_parameters()
            self.conv_k.reset_parameters()

    def seen(self, hidden_states: Tensor) -> Tensor:
        """Return what projections, strengths and gates see of hidden states `[..., hidden_size]`."""
        return hidden_states if self.whitening is None else self.whitening(hidden_states)

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> LayerState:
        """Return the state before the first token; empty where there is neither shift nor convolution."""
        state: LayerState = {}
        convolution, late = self.config.short_convolution, self.config.tokens_late
        past = convolution - 1 + self.config.look_ahead if convolution else int(self.config.token_shift)
        if past:
            channels = self.num_key_value_heads * self.convolved_dim
            state["conv_k"] = torch.zeros(batch_size, past, channels, device=device)
        if convolution:
            channels = self.num_heads * self.convolved_dim
            state["conv_q"] = torch.zeros(batch_size, convolution - 1, channels, device=device)
        if self.config.convolved_write_strength:
            state["conv_beta"] = torch.zeros(batch_size, past, self.num_key_value_heads, device=device)
        if late:
            kept = late + bool(self.config.convolution_dense)  # and the one before them
            state["late_states"] = torch.zeros(batch_size, kept, self.hidden_size, device=device)
            if self.config.combine == "copy":
                channels = self.num_key_value_heads * self.value_dim
                state["late_values"] = torch.zeros(batch_size, late, channels, device=device)
                state["late_ids"] = torch.full((batch_size, late, 1), -1.0, device=device)
        if self._unwritten:
            state["begun"] = torch.zeros(batch_size, dtype=torch.int64, device=device)
        if self.config.copy_turns > 1:
            state["read"] = torch.zeros(batch_size, dtype=torch.int64, device=device)
        if self.config.write_budget:
            state["written"] = torch.zeros(batch_size, self.num_key_value_heads, device=device)
        return state

    @property
    def _unwritten(self) -> int:
        """How many of a row's first steps write nothing."""
        return self.config.tokens_late + int(self.config.token_shift)

    def forward(
        self,
        hidden_states: Tensor,
        state: LayerState,
        shared: tuple[Tensor, ...] | None = None,
        mask: Tensor | None = None,
        write_only: bool = False,
    ) -> tuple[MemoryTokens, LayerState]:
        """Make the memory's inputs.

        Args:
            hidden_states: `[batch, seq, hidden_size]`.
            state: of `init_state` or of the call before (further names are ignored).
            shared: the layer's (q, k, v), `[batch, heads, seq, dim]`; (k, v) is enough for `write_only` without short
                convolution. With own projections None, or for a memory that copies (v, ids), these
                `[batch, 1, seq, 1]` in float32, -1 for unknown.
            mask: `[batch, seq]`, False for padding.
            write_only: leave out the queries where the state does not need them.

        Returns:
            The tokens and the new state.

        Raises:
            SenriError: `shared` given or missing against the configuration.
        """
        self._check_given(shared, write_only)
        hidden_states = self.seen(hidden_states)
        asking = None if write_only and not self.config.short_convolution else hidden_states
        if write_only and self.config.short_convolution and mask is None:
            asking = hidden_states[:, 1 - self.config.short_convolution :]  # of queries only the past is kept
        more = hidden_states.shape[1] if mask is None else mask.sum(dim=1)
        new: LayerState = {}
        due = written = hidden_states
        around: Tensor | None = None
        if late := self.config.tokens_late:
            past = state["late_states"].expand(len(hidden_states), -1, -1)
            due, _ = shift_tokens(hidden_states, past, mask, self.config.write_delay)
            written, new["late_states"] = shift_tokens(hidden_states, past, mask, late)
            if self.config.convolution_dense:
                before, following = (shift_tokens(hidden_states, past, mask, late + side)[0] for side in (1, -1))
                around = torch.cat([before, written, following], dim=-1)
        q, k, v = self._project(asking, due, written, shared)
        is_due: Tensor | None = None
        if self.config.tokens_late:
            is_due = self._is_there(state["begun"], hidden_states, mask, self.config.write_delay)
            k = k * is_due[:, None, :, None]
            if shared is not None:
                v, new["late_values"] = channels_last(shift_tokens, v, state["late_values"], mask)
                _, new["late_ids"] = channels_last(shift_tokens, shared[1], state["late_ids"], mask)
        if self.config.short_convolution:
            if q is not None:
                q, new["conv_q"] = channels_last(self.conv_q, q, state["conv_q"], mask, asking)
            k, new["conv_k"] = channels_last(self.conv_k, k, state["conv_k"], mask, due, written, around)
        elif self.config.token_shift:
            k, new["conv_k"] = channels_last(shift_tokens, k, state["conv_k"], mask)
        if self.config.copy_turns > 1:
            v = v * self._turns(_places(state["read"], hidden_states, mask)).to(v.dtype)
            new["read"] = (state["read"] + more).expand(len(k))
        beta = None
        if self.config.learned_write_strength:
            logits = self.beta_proj(due if self.config.convolved_write_strength else written)
            if self.config.convolved_write_strength:
                logits = logits if is_due is None else logits * is_due.unsqueeze(-1)
                past = state["conv_beta"].expand(len(logits), -1, -1)
                logits, new["conv_beta"] = self.conv_beta(logits.to(past.dtype), past, mask)
            beta = strengths(logits)
        decay = None
        if self.config.rule == "gated_delta":
            decay = strengths(self.decay_proj(written))
        if self._unwritten:
            beta = k.new_full(k.shape[:3], self.config.write_strength, dtype=torch.float32) if beta is None else beta
            beta = beta * self._is_there(state["begun"], hidden_states, mask, self._unwritten).unsqueeze(1)
            new["begun"] = (state["begun"] + more).clamp(max=self._unwritten).expand(len(k))
        if beta is not None and self.config.write_budget:
            beta, new["written"] = within_budget(beta, state["written"], self.config.write_budget, mask)
        return MemoryTokens(None if write_only else q, k, v, beta, decay), new

    def queries(self, hidden_states: Tensor, state: LayerState) -> Tensor:
        """Return queries alone, `[batch, num_heads, seq, key_dim]`, of tokens that are not written.

        Args:
            hidden_states: `[batch, seq, hidden_size]`, with own projections.
            state: behind the tokens before, of all rows or of each.
        """
        seen = self.seen(hidden_states)
        q = split_heads(self.q_proj(seen), self.num_heads)
        if self.config.short_convolution:
            q, _ = channels_last(self.conv_q, q, state["conv_q"], None, seen)
        return q

    def recent(self, ids: Tensor, state: LayerState, mask: Tensor | None = None) -> Tensor:
        """Return for each token itself and those before it that are not written yet, `[batch, seq, late]`, -1 for none
        or unknown.

        Args:
            ids: as in `forward`.
            state: behind the tokens before, of all rows or of each.
            mask: as in `forward`.
        """
        return recent_tokens(ids[:, 0], state["late_ids"].expand(len(ids), -1, -1), mask)[0]

    def _project(
        self, asking: Tensor | None, due: Tensor, written: Tensor, shared: tuple[Tensor, ...] | None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return q, k and v; own ones are those of `asking` (the last tokens or all of them, or None), `due` (whose
        keys begin to be made) and `written` (whose keys are made by now).
        """
        if self.config.projections == "own":
            q = None if asking is None else split_heads(self.q_proj(asking), self.num_heads)
            k = split_heads(self.k_proj(due), self.num_key_value_heads)
            if shared is None:
                return q, k, split_heads(self.v_proj(written), self.num_key_value_heads)
            return q, k, shared[0]
        assert shared is not None
        return (shared[0] if len(shared) == 3 else None), shared[-2], shared[-1]

    def _check_given(self, shared: tuple[Tensor, ...] | None, write_only: bool) -> None:
        given = 0 if shared is None else len(shared)
        if self.config.combine == "copy":
            if given != 2:
                raise SenriError(
                    f"memory.combine 'copy' takes values and ids of tokens, (v, ids), but {given} tensors were given."
                )
        elif self.config.projections == "own":
            if given:
                raise SenriError("the layer's q, k, v were given, but memory.projections is 'own': leave them out.")
        elif given != 3 and not (given == 2 and write_only and not self.config.short_convolution):
            wanted = "(k, v)" if write_only and not self.config.short_convolution else "(q, k, v)"
            raise SenriError(f"memory.projections is 'shared' and needs the layer's {wanted}, but {given} were given.")

    def _is_there(self, begun: Tensor, x: Tensor, mask: Tensor | None, late: int) -> Tensor:
        """Return where rows had a token `late` steps ago, `[batch, seq]`."""
        return _places(begun, x, mask) > late

    def _turns(self, places: Tensor) -> Tensor:
        """Return the signs of codes that are written at these places, `[batch, heads, seq, value_dim]`."""
        width = self.num_key_value_heads * self.value_dim
        signs = turns(self.config.copy_turns, width, places.device)[places % self.config.copy_turns]
        return split_heads(signs, self.num_key_value_heads)


def _places(read: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return how many tokens rows have at each token of x, `[batch, seq]`, `read` of them before."""
    present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask.bool()
    return read.unsqueeze(1) + present.cumsum(dim=1)
