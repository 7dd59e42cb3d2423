"""Writes that are visible at once (`granularity: token`): a whole run through the operations of `senri.ops`."""

import torch
from torch import Tensor

from senri.memory.config import MemoryConfig
from senri.memory.reading import join_state, join_values, reciprocal, split_state
from senri.ops import delta_rule, gated_delta_rule, linear_attention


def token_scan(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, beta: Tensor, decay: Tensor | None, config: MemoryConfig
) -> tuple[Tensor, Tensor]:
    """Read and write a run of tokens one after the other.

    With `gradient: segment` the run is split every `segment_length` tokens and the state carried over a split, and into
    the run, is detached.

    Args:
        q: query features `[batch, heads, seq, feature]`.
        k: key features `[batch, kv_heads, seq, feature]`.
        v: values `[batch, kv_heads, seq, value_dim]`.
        state: joined state `[batch, kv_heads, feature, width]` (see `senri.memory.reading`).
        beta: write strength `[batch, kv_heads, seq]`, 0 for padding.
        decay: `[batch, kv_heads, seq]`, 1 for padding; only with the rule `gated_delta`.
        config: rule, normaliser, order, gradient.

    Returns:
        The joined reads `[batch, heads, seq, width]` and the new joined state.
    """
    if config.gradient != "segment":
        return _scan(q, k, v, state, beta, decay, config)
    reads = []
    pieces = [torch.split(part, config.segment_length, dim=2) for part in (q, k, v, beta)]
    decays = [None] * len(pieces[0]) if decay is None else torch.split(decay, config.segment_length, dim=2)
    for q_piece, k_piece, v_piece, beta_piece, decay_piece in zip(*pieces, decays, strict=True):
        read, state = _scan(q_piece, k_piece, v_piece, state.detach(), beta_piece, decay_piece, config)
        reads.append(read)
    return torch.cat(reads, dim=2), state


def _scan(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, beta: Tensor, decay: Tensor | None, config: MemoryConfig
) -> tuple[Tensor, Tensor]:
    inclusive = config.order == "update_then_retrieve"
    if config.rule == "linear":
        return linear_attention(q, k, join_values(v, config), state, beta=beta, decay=decay, inclusive=inclusive)
    matrix, z = split_state(state, config)
    erase, read_z, new_z = beta, None, None
    if z is not None:
        ones, z_column = v.new_ones(*v.shape[:-1], 1), z.unsqueeze(-1)
        before, _ = linear_attention(k, k, ones, z_column, beta=beta, decay=decay, inclusive=False)
        denominator = before.squeeze(-1) if decay is None else before.squeeze(-1) * decay
        erase = beta * reciprocal(denominator, config.eps)
        read_z, new_z = linear_attention(q, k, ones, z_column, beta=beta, decay=decay, inclusive=inclusive)
    if decay is None:
        read, matrix = delta_rule(q, k, v, matrix, beta=beta, erase=erase, inclusive=inclusive)
    else:
        read, matrix = gated_delta_rule(q, k, v, matrix, beta=beta, decay=decay, erase=erase, inclusive=inclusive)
    if read_z is None or new_z is None:
        return read, matrix
    return torch.cat([read, read_z], dim=-1), join_state(matrix, new_z.squeeze(-1))
