"""Sliding-window attention equals masked softmax, in outputs and gradients, and never makes an n x n tensor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from senri.errors import SenriError
from senri.ops import sliding_window_attention


def masked_softmax(q, k, v, *, window, key_mask=None, scale=None):
    """The definition: all scores, hidden where the distance is wrong; a row that sees nothing is zero."""
    group, queries, keys = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    visible = ((distance >= 0) & (distance < window))[None, None]
    if key_mask is not None:
        visible = visible & key_mask[:, None, None]
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    weights = scores.exp() * visible
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-300) @ v


def inputs(queries, past=0, *, batch=2, heads=2, group=1, key_dim=8, value_dim=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, heads * group, queries, key_dim),
        (batch, heads, past + queries, key_dim),
        (batch, heads, past + queries, value_dim),
    )
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def with_grads(function, tensors, **options):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*leaves, **options)
    grads = torch.autograd.grad(out.square().sum(), leaves)
    return dict(zip(("out", "dq", "dk", "dv"), (out, *grads), strict=True))


def compare(assert_close, tensors, ratio=1e-10, **options):
    reference = with_grads(masked_softmax, tensors, **options)
    got = with_grads(sliding_window_attention, tensors, **options)
    for name, tensor in reference.items():
        assert_close(name, tensor, got[name], ratio)


@pytest.mark.parametrize("key_dims", [(8, 8), (8, 5)])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(
    ("queries", "past", "window"),
    [(1, 0, 4), (5, 0, 1), (5, 0, 8), (64, 0, 64), (65, 0, 64), (200, 0, 64), (300, 0, 150), (100, 40, 30), (1, 99, 16),
     (1, 3, 16), (70, 200, 300), (130, 63, 64), (1200, 0, 1030)],
)  # fmt: skip
def test_equals_masked_softmax(queries, past, window, group, key_dims, assert_close):
    tensors = inputs(queries, past, group=group, key_dim=key_dims[0], value_dim=key_dims[1])
    compare(assert_close, tensors, window=window)


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 260),
    past=st.integers(0, 200),
    window=st.integers(1, 300),
    group=st.integers(1, 2),
    padding=st.none() | st.integers(0, 300),
    holes=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_size_and_mask(queries, past, window, group, padding, holes, seed, assert_close):
    tensors = inputs(queries, past, heads=1, group=group, key_dim=4, value_dim=4, seed=seed)
    key_mask = None
    if padding is not None:
        key_mask = torch.ones(2, past + queries, dtype=torch.bool)
        key_mask[0, :padding] = False
        if holes:
            key_mask[1] = torch.rand(past + queries, generator=torch.Generator().manual_seed(seed)) > 0.7
    compare(assert_close, tensors, window=window, key_mask=key_mask)


def test_float32_and_scale(assert_close):
    compare(assert_close, inputs(300, dtype=torch.float32), ratio=1e-5, window=100, scale=0.3)
    compare(assert_close, inputs(20, dtype=torch.float32), ratio=1e-5, window=100, scale=0.3)
    compare(assert_close, inputs(1, 30, dtype=torch.float32), ratio=1e-5, window=10, scale=0.3)


@pytest.mark.parametrize("queries", [1, 10, 200])
def test_a_query_that_sees_nothing_gives_zeros(queries):
    tensors = inputs(queries)
    key_mask = torch.zeros(2, queries, dtype=torch.bool)
    key_mask[1] = True
    results = with_grads(sliding_window_attention, tensors, window=64, key_mask=key_mask)
    for name, tensor in results.items():
        assert tensor.isfinite().all(), name
        assert not tensor[0].any(), name
        assert tensor[1].any() or (queries == 1 and name in ("dq", "dk")), name


def test_rows_of_a_batch_do_not_meet():
    q, k, v = inputs(100)
    alone = sliding_window_attention(q[:1], k[:1], v[:1], window=20)
    assert torch.allclose(sliding_window_attention(q, k, v, window=20)[:1], alone, atol=1e-14)


def test_keys_outside_the_window_change_nothing():
    q, k, v = inputs(500)
    before = sliding_window_attention(q, k, v, window=100)
    k[:, :, 200], v[:, :, 200] = 9.0, 9.0
    after = sliding_window_attention(q, k, v, window=100)
    touched = (before != after).any(dim=-1).any(dim=0).any(dim=0)
    assert touched[200:300].all()
    assert not touched[:200].any()
    assert not touched[300:].any()


@pytest.mark.parametrize("piece", [1, 7, 64, 100])
def test_a_cached_past_equals_one_run(piece):
    q, k, v = inputs(150)
    whole = sliding_window_attention(q, k, v, window=40)
    parts = []
    for start in range(0, 150, piece):
        end = min(start + piece, 150)
        seen = slice(max(0, start - 39), end)
        parts.append(sliding_window_attention(q[:, :, start:end], k[:, :, seen], v[:, :, seen], window=40))
    assert torch.allclose(whole, torch.cat(parts, dim=2), atol=1e-12)


def test_no_queries_give_no_outputs():
    q, k, v = inputs(0, 5, value_dim=3)
    assert sliding_window_attention(q, k, v, window=4).shape == (2, 2, 0, 3)


class Largest(TorchDispatchMode):
    """Keeps the element count of the largest tensor that any operation returns, and the sum over all of them."""

    largest = total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                self.total += tensor.numel()
        return result


@pytest.mark.parametrize("masked", [False, True])
def test_memory_grows_with_the_length_not_its_square(masked):
    totals = {}
    for length in (1024, 2048, 4096):
        tensors = inputs(length, batch=1, heads=1, dtype=torch.float32)
        key_mask = torch.ones(1, length, dtype=torch.bool) if masked else None
        with Largest() as mode:
            with_grads(sliding_window_attention, tensors, window=128, key_mask=key_mask)
        assert mode.largest <= max(length * 8, 64 * 4 * 128)
        totals[length] = mode.total
    # Everything forward and backward touch, made and summed: doubling the length doubles it.
    assert totals[4096] - totals[2048] <= 2.02 * (totals[2048] - totals[1024])


def test_compiles_without_a_graph_break():
    q, k, v = inputs(150, group=2)
    key_mask = torch.arange(150)[None].repeat(2, 1) > 20
    compiled = torch.compile(sliding_window_attention, fullgraph=True, backend="eager")
    got = compiled(q, k, v, window=64, key_mask=key_mask)
    assert torch.allclose(got, masked_softmax(q, k, v, window=64, key_mask=key_mask), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"k": torch.ones(2, 2, 4, 8), "v": torch.ones(2, 2, 4, 8)}, "k has 4 tokens but q has 9"),
        ({"key_mask": torch.ones(2, 8, dtype=torch.bool)}, r"key_mask is torch.bool of shape \(2, 8\).*\[2, 9\]"),
        ({"key_mask": torch.ones(2, 9)}, "key_mask is torch.float32"),
        ({"q": torch.ones(2, 3, 9, 8)}, "q has shape"),
    ],
)
def test_bad_input_is_named(change, message):
    q, k, v = inputs(9)
    with pytest.raises(SenriError, match=message):
        sliding_window_attention(**({"q": q, "k": k, "v": v, "window": 4} | change))
