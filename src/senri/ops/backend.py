"""Choose the form: one step for one token, chunks for more. Same contract as `naive`."""

from torch import Tensor

from senri.ops import chunked, recurrent


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
    form = recurrent if k.shape[-2] == 1 else chunked
    return form.linear_attention(q, k, v, state, beta=beta, decay=decay, inclusive=inclusive)


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
    form = recurrent if k.shape[-2] == 1 else chunked
    return form.delta_rule(q, k, v, state, beta=beta, erase=erase, inclusive=inclusive)


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
    form = recurrent if k.shape[-2] == 1 else chunked
    return form.gated_delta_rule(q, k, v, state, beta=beta, decay=decay, erase=erase, inclusive=inclusive)
