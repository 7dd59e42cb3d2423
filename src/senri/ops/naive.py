"""The definition of every memory operation: a loop over tokens that reads like the formula. Slow; tests compare to it.

    M_t = decay_t (I - erase_t k_t k_t^T) M_{t-1} + beta_t k_t v_t^T
    o_t = q_t M_t  (inclusive)   or   q_t M_{t-1}  (not inclusive)

Linear attention: Katharopoulos et al. 2020 (arXiv 2006.16236), section 3.2; delta rule: Schlag et al. 2021
(arXiv 2102.11174), section 4.2; gated delta rule: Yang et al. 2024 (arXiv 2412.06464), equation 10.

Shapes, of all functions: q `[batch, query_heads, seq, key_dim]`, k `[batch, heads, seq, key_dim]`,
v `[batch, heads, seq, value_dim]`, state `[batch, heads, key_dim, value_dim]` (None is zeros), beta, decay and erase
`[batch, heads, seq]`. query_heads is a multiple of heads: query head i reads state `i // (query_heads // heads)`.
Out is `[batch, query_heads, seq, value_dim]` in q's dtype; the state is float32 (float64 for float64 inputs).
All raise SenriError when shapes do not fit.
"""

import torch
from torch import Tensor

from senri.ops.inputs import Inputs, erase_or_beta, full_precision, prepare


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    beta: Tensor | None = None,
    decay: Tensor | None = None,
    inclusive: bool = True,
) -> tuple[Tensor, Tensor]:
    """Add beta k v^T to a decaying state; see the module for shapes. Returns (out, state)."""
    return _scan(prepare(q, k, v, state, beta=beta, decay=decay), inclusive)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    beta: Tensor | None = None,
    erase: Tensor | None = None,
    inclusive: bool = True,
) -> tuple[Tensor, Tensor]:
    """Take out what the key held, then write; see the module for shapes. Returns (out, state)."""
    return gated_delta_rule(q, k, v, state, beta=beta, erase=erase, inclusive=inclusive)


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
) -> tuple[Tensor, Tensor]:
    """Delta rule on a decaying state; see the module for shapes. Returns (out, state)."""
    erase = erase_or_beta(beta, erase, k)
    return _scan(prepare(q, k, v, state, beta=beta, decay=decay, erase=erase), inclusive)


def _scan(inputs: Inputs, inclusive: bool) -> tuple[Tensor, Tensor]:
    if inputs.seq == 0:
        return inputs.ungroup(inputs.q.new_zeros(*inputs.q.shape[:-1], inputs.v.shape[-1])), inputs.state
    ones = torch.ones_like(inputs.k[..., 0])
    beta = ones if inputs.beta is None else inputs.beta
    decay = ones if inputs.decay is None else inputs.decay
    erase = torch.zeros_like(ones) if inputs.erase is None else inputs.erase

    identity = torch.eye(inputs.k.shape[-1], dtype=ones.dtype, device=ones.device)
    state, reads = inputs.state, []
    tokens = (inputs.k.unbind(2), inputs.v.unbind(2), beta.unbind(2), decay.unbind(2), erase.unbind(2))
    with full_precision(ones.device):
        for q_t, k_t, v_t, beta_t, decay_t, erase_t in zip(inputs.q.unbind(3), *tokens, strict=True):
            before = state
            transition = decay_t[..., None, None] * (identity - erase_t[..., None, None] * _outer(k_t, k_t))
            state = transition @ state + beta_t[..., None, None] * _outer(k_t, v_t)
            reads.append(q_t @ (state if inclusive else before))
    return inputs.ungroup(torch.stack(reads, dim=3)), state


def _outer(column: Tensor, row: Tensor) -> Tensor:
    return column[..., :, None] * row[..., None, :]
