"""The fast form of every memory operation: chunks of tokens at once, a loop only over chunks. Equals `naive`.

Inside a chunk that starts from state M, with G_ti = decay_{i+1} ... decay_t (G_t from the start of the chunk):

    M_t = G_t M + sum_{i<=t} G_ti k_i u_i^T                   u_i: what token i really adds
    (I + A) U = diag(beta) V - diag(erase G) K M              A_ti = erase_t G_ti (k_t . k_i), i < t

Linear attention has no erase, so A = 0. The delta rule solves the unit-triangular system once per chunk for both
right-hand sides (the WY form: Yang et al. 2024, arXiv 2406.06484, section 3.2; with decay arXiv 2412.06464, section
3.3), here with erase apart from beta. What does not depend on M is done for all chunks in one batch before the loop,
reads after it.
Shapes are those of `naive`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.ops.inputs import Inputs, erase_or_beta, full_precision, prepare

CHUNK_SIZE = 64
"""Tokens per chunk. Work inside a chunk grows with it, the number of states kept and of loop steps shrinks with it;
they meet near the usual key and value size of a head (64)."""


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    beta: Tensor | None = None,
    decay: Tensor | None = None,
    inclusive: bool = True,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor]:
    """As `naive.linear_attention`, `chunk_size` tokens at a time. Returns (out, state)."""
    return _scan(prepare(q, k, v, state, beta=beta, decay=decay), inclusive, chunk_size)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    beta: Tensor | None = None,
    erase: Tensor | None = None,
    inclusive: bool = True,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor]:
    """As `naive.delta_rule`, `chunk_size` tokens at a time. Returns (out, state)."""
    return gated_delta_rule(q, k, v, state, beta=beta, erase=erase, inclusive=inclusive, chunk_size=chunk_size)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    beta: Tensor | None = None,
    decay: Tensor | None = None,
    erase: Tensor | None = None,
    inclusive: bool = True,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor]:
    """As `naive.gated_delta_rule`, `chunk_size` tokens at a time. Returns (out, state)."""
    erase = erase_or_beta(beta, erase, k)
    return _scan(prepare(q, k, v, state, beta=beta, decay=decay, erase=erase), inclusive, chunk_size)


def _scan(inputs: Inputs, inclusive: bool, chunk_size: int) -> tuple[Tensor, Tensor]:
    if chunk_size < 1:
        raise SenriError(f"chunk_size is {chunk_size}, but it must be at least 1.")
    seq = inputs.seq
    if seq == 0:
        return inputs.ungroup(inputs.q.new_zeros(*inputs.q.shape[:-1], inputs.v.shape[-1])), inputs.state
    size = min(chunk_size, seq)
    with full_precision(inputs.k.device):
        # [batch, heads, chunks, size, dim]; q [batch, heads, chunks, group, size, dim]
        q = _chunks(inputs.q, size, dim=3).transpose(2, 3)
        k = _chunks(inputs.k, size)
        writes = _chunks(inputs.v if inputs.beta is None else inputs.v * inputs.beta[..., None], size)
        decays = None if inputs.decay is None else _Decays(_chunks(inputs.decay, size, fill=1.0))

        if inputs.erase is None:
            added, states, state = _add(k, writes, inputs.state, decays)
        else:
            added, states, state = _erase_and_add(k, writes, _chunks(inputs.erase, size), inputs.state, decays)
        out = _read(q, k, added, states, decays, inclusive)
    return inputs.ungroup(out.transpose(2, 3).flatten(3, 4)[:, :, :, :seq]), state


class _Decays:
    """Products of decays inside chunks, from `[batch, heads, chunks, size]`. Made from logs, so that nothing overflows.

    Attributes:
        between: `[..., size, size]`, G_ti from just after token i to token t; 0 above the diagonal, 1 on it.
        from_start: `[..., size]`, G_t from the start of the chunk to token t.
    """

    def __init__(self, decay: Tensor) -> None:
        size = decay.shape[-1]
        # A decay of 0 becomes the smallest normal number: its log is finite, and the product is still 0 in effect.
        log = decay.clamp(min=torch.finfo(decay.dtype).tiny).log()
        ones = torch.ones(size, size, dtype=torch.bool, device=decay.device)
        # Sums of their own for every start, not differences of one running sum: differences lose the small logs that
        # follow a large one.
        sums = log[..., :, None].expand(*log.shape, size).masked_fill(ones.triu(), 0.0).cumsum(-2)
        self.between = sums.masked_fill(ones.triu(1), -torch.inf).exp()
        self.from_start = log.cumsum(-1).exp()
        self.to_end = self.between[..., -1, :]
        self.whole = self.from_start[..., -1]


def _add(k: Tensor, writes: Tensor, state: Tensor, decays: _Decays | None) -> tuple[Tensor, Tensor, Tensor]:
    """Linear rule. Returns what tokens add, the state at the start of every chunk, and the final state."""
    if decays is None:
        sums = (k.mT @ writes).cumsum(2) + state[:, :, None]
        states = torch.cat([state[:, :, None], sums[:, :, :-1]], dim=2)
        return writes, states, sums[:, :, -1]
    updates = (k * decays.to_end[..., None]).mT @ writes
    starts = []
    for update, whole in zip(updates.unbind(2), decays.whole[..., None, None].unbind(2), strict=True):
        starts.append(state)
        state = torch.addcmul(update, whole, state)
    return writes, torch.stack(starts, dim=2), state


def _erase_and_add(
    k: Tensor, writes: Tensor, erase: Tensor, state: Tensor, decays: _Decays | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Delta rule. Returns what tokens add, the state at the start of every chunk, and the final state."""
    erasing = k * erase[..., None]
    overlap = erasing @ k.mT
    late = k
    if decays is not None:
        overlap = overlap * decays.between
        erasing = erasing * decays.from_start[..., None]
        late = k * decays.to_end[..., None]
    # Unit lower triangular: the solver reads only what is below the diagonal of `overlap`.
    solved = torch.linalg.solve_triangular(
        overlap, torch.cat([writes, erasing], dim=-1), upper=False, unitriangular=True
    )
    own, from_state = solved.split([writes.shape[-1], k.shape[-1]], dim=-1)

    shape = state.shape
    state = state.flatten(0, 1)
    wholes = [None] * k.shape[2] if decays is None else decays.whole[..., None, None].flatten(0, 1).unbind(1)
    pieces = (piece.flatten(0, 1).unbind(1) for piece in (own, from_state, late.mT))
    added, starts = [], []
    # unbind, not indexing: the backward of every index fills a tensor of the full length.
    for whole, own_n, from_state_n, late_n in zip(wholes, *pieces, strict=True):
        starts.append(state)
        added_n = torch.baddbmm(own_n, from_state_n, state, alpha=-1)
        state = torch.baddbmm(state if whole is None else whole * state, late_n, added_n)
        added.append(added_n)
    added_all, starts_all = torch.stack(added, dim=1), torch.stack(starts, dim=1)
    return torch.unflatten(added_all, 0, shape[:2]), torch.unflatten(starts_all, 0, shape[:2]), state.view(shape)


def _read(q: Tensor, k: Tensor, added: Tensor, states: Tensor, decays: _Decays | None, inclusive: bool) -> Tensor:
    """Read every chunk: `[batch, heads, chunks, group, size, value_dim]`, from its start state and its own tokens."""
    group, size = q.shape[3:5]
    rows = q.flatten(3, 4)
    scores = torch.unflatten(rows @ k.mT, 3, (group, size))
    if decays is None:
        scores = scores.tril(0 if inclusive else -1)
        return torch.unflatten(scores.flatten(3, 4) @ added + rows @ states, 3, (group, size))
    between, from_start = decays.between, decays.from_start
    if not inclusive:  # token t reads the state of token t - 1: every row moves down by one
        between = F.pad(between, (0, 0, 1, 0))[..., :-1, :]
        from_start = F.pad(from_start, (1, 0), value=1.0)[..., :-1]
    scores = scores * between[..., None, :, :]
    from_states = torch.unflatten(rows @ states, 3, (group, size)) * from_start[..., None, :, None]
    return torch.unflatten(scores.flatten(3, 4) @ added, 3, (group, size)) + from_states


def _chunks(tensor: Tensor, size: int, dim: int = 2, fill: float = 0.0) -> Tensor:
    """Split `dim` (the tokens) in `[chunks, size]`, filled up at the end: zeros as key and value change no state."""
    missing = -tensor.shape[dim] % size
    if missing:
        tensor = F.pad(tensor, (0, 0) * (tensor.dim() - dim - 1) + (0, missing), value=fill)
    return torch.unflatten(tensor, dim, (-1, size))
