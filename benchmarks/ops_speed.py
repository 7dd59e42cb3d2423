"""Forward and backward of the chunked operations, beside their loops over tokens and softmax attention.

    python benchmarks/ops_speed.py [--length 2048 --heads 9 --dim 64 ...]

Runs alternate, so that a busy machine slows all alike; medians are printed.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor

from senri.ops import chunked, naive


def _out(operation: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor, **strengths: Tensor) -> Tensor:
    return operation(*tensors, **strengths)[0]


def main(length: int = 2048, batch: int = 1, heads: int = 9, dim: int = 64, repeats: int = 3) -> None:
    """Print milliseconds of forward + backward.

    Args:
        length: tokens.
        batch: rows.
        heads: heads of queries, keys and values.
        dim: width of a head.
        repeats: runs of each, after one that does not count.
    """
    q, k, v = (torch.randn(batch, heads, length, dim) for _ in range(3))
    k = F.normalize(k, dim=-1)
    beta, decay = torch.rand(batch, heads, length), 1 - 0.1 * torch.rand(batch, heads, length)
    leaves = [leaf.requires_grad_() for leaf in (q, k, v, beta, decay)]

    contestants: dict[str, Callable[[], Tensor]] = {
        "softmax: torch SDPA, causal": partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    }
    for form_name, form in (("chunked", chunked), ("naive", naive)):
        contestants |= {
            f"linear_attention, {form_name}": partial(_out, form.linear_attention, q, k, v, beta=beta),
            f"delta_rule, {form_name}": partial(_out, form.delta_rule, q, k, v, beta=beta),
            f"gated_delta_rule, {form_name}": partial(_out, form.gated_delta_rule, q, k, v, beta=beta, decay=decay),
        }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, function in contestants.items():
            start = time.perf_counter()
            torch.autograd.grad(function().sum(), leaves, allow_unused=True)
            if repeat:
                times[name].append(time.perf_counter() - start)
    print(
        f"forward + backward of {batch} x {length} tokens, {heads} heads of {dim}, float32, "
        f"{torch.get_num_threads()} threads, {repeats} runs"
    )
    for name, seconds in times.items():
        print(f"{name:30} {median(seconds) * 1e3:10.1f} ms")


if __name__ == "__main__":
    auto_cli(main)
