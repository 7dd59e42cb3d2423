"""Choose the form: one step for one token, fla's kernels on CUDA where they apply, chunks otherwise.

Contract, shapes and errors are those of `naive`.
"""

from torch import Tensor

from senri.ops import chunked, fla_kernels, recurrent


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
    """Linear attention; see `naive.linear_attention`. Returns (out, state)."""
    if k.shape[-2:-1] == (1,):
        return recurrent.linear_attention(q, k, v, state, beta=beta, decay=decay, inclusive=inclusive)
    if fla_kernels.apply_to(q, k, v, None, None, inclusive):
        return fla_kernels.linear_attention(q, k, v, state, beta, decay)
    return chunked.linear_attention(q, k, v, state, beta=beta, decay=decay, inclusive=inclusive)


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
    """Delta rule; see `naive.delta_rule`. Returns (out, state)."""
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
    """Gated delta rule; see `naive.gated_delta_rule`. Returns (out, state)."""
    if k.shape[-2:-1] == (1,):
        return recurrent.gated_delta_rule(q, k, v, state, beta=beta, decay=decay, erase=erase, inclusive=inclusive)
    if fla_kernels.apply_to(q, k, v, beta, erase, inclusive):
        return fla_kernels.gated_delta_rule(q, k, v, state, beta, decay)
    return chunked.gated_delta_rule(q, k, v, state, beta=beta, decay=decay, erase=erase, inclusive=inclusive)
