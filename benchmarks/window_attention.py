"""Time per token of sliding-window attention at two lengths, beside torch's SDPA with an n x n mask.

    python benchmarks/window_attention.py [--window 1024 --heads 9 --dim 64 ...]

Linear time means a ratio of 1; the target is at most 1.2. Runs of all contestants alternate, so that a busy machine
slows them alike; medians are printed.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor

from senri.ops import sliding_window_attention

TARGET_RATIO = 1.2


def main(
    short: int = 4096, long: int = 32768, window: int = 1024, heads: int = 9, dim: int = 64, repeats: int = 5
) -> None:
    """Print microseconds per token at both lengths and their ratio.

    Args:
        short: tokens of the short run, also of the peer's.
        long: tokens of the long run.
        window: tokens that a query sees.
        heads: heads of queries, keys and values.
        dim: width of a head.
        repeats: runs of each, after one that does not count.
    """

    def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sliding_window_attention(q, k, v, window=window)

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    contestants: list[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor], int]] = [
        ("senri.ops.sliding_window_attention", windowed, short),
        ("senri.ops.sliding_window_attention", windowed, long),
        ("torch SDPA, n x n mask", masked, short),
    ]
    times: list[list[float]] = [[] for _ in contestants]
    with torch.inference_mode():
        inputs = {length: tuple(torch.randn(1, heads, length, dim) for _ in range(3)) for length in (short, long)}
        for repeat in range(repeats + 1):
            for seconds, (_, function, length) in zip(times, contestants, strict=True):
                start = time.perf_counter()
                function(*inputs[length])
                if repeat:
                    seconds.append(time.perf_counter() - start)
    per_token = [median(seconds) / length * 1e6 for seconds, (_, _, length) in zip(times, contestants, strict=True)]
    print(f"window {window}, {heads} heads of {dim}, float32, {torch.get_num_threads()} threads, {repeats} runs")
    for microseconds, (name, _, length) in zip(per_token, contestants, strict=True):
        print(f"{name:36} {length:>7,} tokens {microseconds:9.2f} us/token")
    print(f"per token, {long:,} against {short:,}: {per_token[1] / per_token[0]:.2f} (target at most {TARGET_RATIO})")
    print(f"torch SDPA against Senri at {short:,}: {per_token[2] / per_token[0]:.2f} times the time")


if __name__ == "__main__":
    auto_cli(main)
