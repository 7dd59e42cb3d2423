"""The kernels of flash-linear-attention for CUDA, where they mean the same as `naive`. Never required.

They know one head layout (`[batch, seq, heads, dim]`), "update then retrieve", erase equal to beta, half precision and
as many query heads as keys; whatever differs stays with `chunked`.
"""

from functools import cache
from importlib import import_module  # an import statement would make fla a requirement of exported checkpoints
from importlib.util import find_spec

import torch
from torch import Tensor

from senri.ops.inputs import check, erase_or_beta

MAX_KEY_DIM = 256
"""Widest key that the delta kernels hold in shared memory."""


@cache
def installed() -> bool:
    """Whether flash-linear-attention can be imported."""
    return find_spec("fla") is not None


def apply_to(q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, erase: Tensor | None, inclusive: bool) -> bool:
    """Whether the kernels are installed and mean the same as `naive` for these inputs."""
    return (
        q.is_cuda
        and inclusive
        and (erase is None or erase is beta)
        and q.dtype == k.dtype == v.dtype
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape == k.shape
        and k.shape[2] > 0
        and k.shape[3] <= MAX_KEY_DIM
        and installed()
    )


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, beta: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `naive.linear_attention`, inclusive. Returns (out, state)."""
    chunk_simple_gla = import_module("fla.ops.simple_gla").chunk_simple_gla
    check(q, k, v, state, beta, decay, None)
    written = v if beta is None else (v * beta[..., None]).to(v.dtype)
    out, state = chunk_simple_gla(*(_turned(x) for x in (q, k, written)), g=_turned(_log(decay, k)), **_common(state))
    return _turned(out), state


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, beta: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `naive.gated_delta_rule`, inclusive and with erase equal to beta; no decay is the delta rule."""
    check(q, k, v, state, beta, decay, None)
    strength = _turned(erase_or_beta(beta, None, k).to(k.dtype))
    turned = [_turned(x) for x in (q, k, v)]
    if decay is None:
        chunk_delta_rule = import_module("fla.ops.delta_rule").chunk_delta_rule
        out, state = chunk_delta_rule(*turned, beta=strength, **_common(state))
    else:
        chunk_gated_delta_rule = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
        out, state = chunk_gated_delta_rule(*turned, g=_turned(_log(decay, k)), beta=strength, **_common(state))
    return _turned(out), state


def _common(state: Tensor | None) -> dict[str, object]:
    initial = None if state is None else state.float().contiguous()
    return {"scale": 1.0, "initial_state": initial, "output_final_state": True}


def _log(decay: Tensor | None, k: Tensor) -> Tensor:
    if decay is None:
        return torch.zeros(k.shape[:-1], dtype=torch.float32, device=k.device)
    return decay.float().clamp(min=torch.finfo(torch.float32).tiny).log()


def _turned(tensor: Tensor) -> Tensor:
    """Swap heads and seq: `[batch, heads, seq, ...]` to `[batch, seq, heads, ...]` and back."""
    return tensor.transpose(1, 2).contiguous()
