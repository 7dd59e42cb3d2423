"""What every form of the recurrence does first: check the inputs, bring them to one dtype and group the query heads."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from senri.errors import SenriError


@dataclass(frozen=True)
class Inputs:
    """Checked inputs in the computing dtype (float32, or float64 when q, k or v is).

    q is `[batch, heads, group, seq, key_dim]` with the heads of k: all queries of a group read the same state.
    The others are as the caller gave them; `None` means 1 for beta and decay and "nothing is erased" for erase.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    beta: Tensor | None
    decay: Tensor | None
    erase: Tensor | None
    out_dtype: torch.dtype

    @property
    def seq(self) -> int:
        """Number of tokens."""
        return self.k.shape[2]

    def ungroup(self, out: Tensor) -> Tensor:
        """Turn `[batch, heads, group, seq, value_dim]` into `[batch, query_heads, seq, value_dim]` in q's dtype."""
        return out.flatten(1, 2).to(self.out_dtype)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    beta: Tensor | None = None,
    decay: Tensor | None = None,
    erase: Tensor | None = None,
) -> Inputs:
    """Check shapes (see `check`) and cast. A state of `None` is the empty one (zeros)."""
    check(q, k, v, state, beta, decay, erase)
    batch, heads, _, key_dim = k.shape
    dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.promote_types(v.dtype, torch.float32))
    if state is None:
        state = torch.zeros(batch, heads, key_dim, v.shape[-1], dtype=dtype, device=k.device)
    return Inputs(
        q=torch.unflatten(q.to(dtype), 1, (heads, q.shape[1] // heads)),
        k=k.to(dtype),
        v=v.to(dtype),
        state=state.to(dtype),
        beta=None if beta is None else beta.to(dtype),
        decay=None if decay is None else decay.to(dtype),
        erase=None if erase is None else erase.to(dtype),
        out_dtype=q.dtype,
    )


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    beta: Tensor | None,
    decay: Tensor | None,
    erase: Tensor | None,
) -> None:
    """Check every shape of a recurrence.

    Raises:
        SenriError: a shape that does not fit; the sentence names the argument, its shape and the expected one.
    """
    check_heads(q, k, v)
    batch, heads, seq, key_dim = k.shape
    if q.shape[2] != seq:
        raise SenriError(f"q has {q.shape[2]} tokens but k has {seq}: a recurrence needs one query per key.")
    for name, strength in (("beta", beta), ("decay", decay), ("erase", erase)):
        if strength is not None:
            _check_shape(name, strength, (batch, heads, seq))
    if state is not None:
        _check_shape("state", state, (batch, heads, key_dim, v.shape[-1]))


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Check that q, k and v are `[batch, heads, seq, dim]` and fit each other (q may have a multiple of k's heads).

    Raises:
        SenriError: names the argument, its shape and the expected one.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise SenriError(f"{name} has shape {tuple(tensor.shape)}, but it must be [batch, heads, seq, dim].")
    batch, heads, seq, key_dim = k.shape
    _check_shape("v", v, (batch, heads, seq, v.shape[-1]))
    if q.shape[0] != batch or q.shape[3] != key_dim or heads == 0 or q.shape[1] == 0 or q.shape[1] % heads:
        raise SenriError(
            f"q has shape {tuple(q.shape)}, but with k of shape {tuple(k.shape)} it must be "
            f"[{batch}, a multiple of {heads}, seq, {key_dim}]."
        )


def erase_or_beta(beta: Tensor | None, erase: Tensor | None, k: Tensor) -> Tensor:
    """Return what the delta rule erases with: `erase`, else beta, else ones."""
    if erase is not None:
        return erase
    return torch.ones(k.shape[:-1], dtype=k.dtype, device=k.device) if beta is None else beta


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off for the computation: a state summed over many tokens needs float32."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise SenriError(f"{name} has shape {tuple(tensor.shape)}, but it must be {list(expected)} to fit k.")
