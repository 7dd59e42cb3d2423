"""One more key with a given score and value, through fused attention, against a softmax written out."""

import pytest
import torch
from torch import Tensor

from senri.ops import sliding_window_attention


def reference(q: Tensor, k: Tensor, v: Tensor, window: int, scores: Tensor, value: Tensor, scale: float) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v, value = (x.repeat_interleave(group, dim=-3) for x in (k, v, value[None, :, None]))
    queries, keys = q.shape[2], k.shape[2]
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    logits = (scale * q @ k.transpose(-1, -2)).masked_fill((distance < 0) | (distance >= window), -torch.inf)
    weights = torch.cat([logits, scores[..., None]], dim=-1).softmax(dim=-1)
    return weights[..., :-1] @ v + weights[..., -1:] * value


@pytest.mark.parametrize(("queries", "keys", "window"), [(1, 7, 4), (5, 5, 9), (40, 40, 6), (200, 230, 17)])
def test_a_sink_is_one_more_key(queries: int, keys: int, window: int) -> None:
    generator = torch.Generator().manual_seed(queries)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    inputs = (random(2, 4, queries, 8), random(2, 2, keys, 8), random(2, 2, keys, 8))
    scores, value = random(2, 4, queries), random(2, 8)
    got = sliding_window_attention(*inputs, window=window, scale=0.4, sink=(scores, value))
    expected = reference(*inputs, window, scores, value, 0.4)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    everything = (*inputs, scores, value)
    for mine, theirs in zip(
        torch.autograd.grad((got * weights).sum(), everything),
        torch.autograd.grad((expected * weights).sum(), everything),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


def test_a_hidden_sink_changes_nothing() -> None:
    q, k, v = torch.randn(3, 1, 2, 30, 8)
    hidden = (torch.full((1, 2, 30), -1000.0), torch.randn(2, 8))
    plain = sliding_window_attention(q, k, v, window=7)
    torch.testing.assert_close(sliding_window_attention(q, k, v, window=7, sink=hidden), plain)
