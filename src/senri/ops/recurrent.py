"""One token of every memory operation: what decoding runs. Equals one turn of `naive`'s loop, shapes too.

Written so that no key_dim x key_dim matrix is made:

    M' = decay M + k (beta v - erase decay M^T k)^T
"""

from torch import Tensor

from senri.errors import SenriError
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
    """As `naive.linear_attention` for exactly one token. Returns (out, state)."""
    return _step(prepare(q, k, v, state, beta=beta, decay=decay), inclusive)


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
    """As `naive.delta_rule` for exactly one token. Returns (out, state)."""
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
    """As `naive.gated_delta_rule` for exactly one token. Returns (out, state)."""
    erase = erase_or_beta(beta, erase, k)
    return _step(prepare(q, k, v, state, beta=beta, decay=decay, erase=erase), inclusive)


def _step(inputs: Inputs, inclusive: bool) -> tuple[Tensor, Tensor]:
    if inputs.seq != 1:
        raise SenriError(f"k has {inputs.seq} tokens, but the recurrent form takes exactly 1: use the chunked form.")
    k, q = inputs.k, inputs.q.squeeze(3)  # [batch, heads, 1, key_dim], [batch, heads, group, key_dim]
    with full_precision(k.device):
        kept = inputs.state if inputs.decay is None else inputs.decay[..., None] * inputs.state
        added = inputs.v if inputs.beta is None else inputs.beta[..., None] * inputs.v
        if inputs.erase is not None:
            added = added - inputs.erase[..., None] * (k @ kept)
        state = kept + k.mT * added
        out = q @ (state if inclusive else inputs.state)
    return inputs.ungroup(out[..., None, :]), state
