"""The state a cache carries: what transformers' own tests do not see."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from senri.mixers.cache_senri import SenriMemoryLayer
from senri.models import SenriForCausalLM

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def run_in_chunks(model: SenriForCausalLM, ids: Tensor, size: int, cache: object, mask: Tensor | None = None) -> Tensor:
    pieces = []
    for start in range(0, ids.shape[1], size):
        piece = ids[:, start : start + size]
        piece_mask = None if mask is None else mask[:, : start + piece.shape[1]]
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)[:, start : start + piece.shape[1]]
        out = model(piece, attention_mask=piece_mask, position_ids=positions, past_key_values=cache, use_cache=True)
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3, 7, 32])
def test_chunks_equal_one_forward(model: SenriForCausalLM, ids: Tensor, size: int) -> None:
    whole = model(ids, use_cache=False).logits
    torch.testing.assert_close(run_in_chunks(model, ids, size, DynamicCache(config=model.config)), whole, **TOLERANCE)
    torch.testing.assert_close(run_in_chunks(model, ids, size, DynamicCache()), whole, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3, 7, 32])
def test_static_cache_equals_one_forward(model: SenriForCausalLM, ids: Tensor, size: int) -> None:
    whole = model(ids, use_cache=False).logits
    cache = StaticCache(config=model.config, max_cache_len=40)
    torch.testing.assert_close(run_in_chunks(model, ids, size, cache), whole, **TOLERANCE)
    cache.reset()
    torch.testing.assert_close(run_in_chunks(model, ids, size, cache), whole, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3, 7, 32])
def test_left_padding_changes_nothing(model: SenriForCausalLM, ids: Tensor, size: int) -> None:
    pads = 5
    padded = torch.cat([torch.zeros(2, pads, dtype=torch.long), ids], dim=1)
    padded[1] = torch.cat([ids[1], ids[1, :pads]])  # the second row is full
    mask = torch.ones_like(padded)
    mask[0, :pads] = 0
    expected = model(ids[:1], use_cache=False).logits
    full_row = model(padded[1:], use_cache=False).logits
    got = run_in_chunks(model, padded, size, DynamicCache(config=model.config), mask)
    torch.testing.assert_close(got[:1, pads:], expected, **TOLERANCE)
    torch.testing.assert_close(got[1:], full_row, **TOLERANCE)


@torch.no_grad()
def test_packed_sequences_do_not_leak(model: SenriForCausalLM, ids: Tensor) -> None:
    first, second, third = ids[0, :11], ids[0, 11:13], ids[0, 13:]
    positions = torch.cat([torch.arange(len(part)) for part in (first, second, third)])[None]
    packed = model(ids[:1], position_ids=positions, use_cache=False).logits[0]
    apart = torch.cat([model(part[None], use_cache=False).logits[0] for part in (first, second, third)])
    torch.testing.assert_close(packed, apart, **TOLERANCE)


@torch.no_grad()
def test_no_logit_moves_with_a_later_token(model: SenriForCausalLM, ids: Tensor) -> None:
    changed = ids.clone()
    changed[:, 17] = (changed[:, 17] + 1) % 101
    before, after = model(ids, use_cache=False).logits, model(changed, use_cache=False).logits
    torch.testing.assert_close(before[:, :17], after[:, :17], **TOLERANCE)
    assert not torch.allclose(before[:, 17:], after[:, 17:], **TOLERANCE)


@torch.no_grad()
def test_the_memory_reaches_beyond_the_window(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 101
    with memory_model.memory_disabled():
        reach = 3 * (memory_model.config.sliding_window or 99)
        if reach < ids.shape[1]:
            same = memory_model(ids).logits[:, reach:], memory_model(changed).logits[:, reach:]
            torch.testing.assert_close(*same, **TOLERANCE)
    assert not torch.allclose(memory_model(ids).logits[:, -1], memory_model(changed).logits[:, -1], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("removed", [0, 1, 2, 5, 9, 12])
def test_crop_is_exact(memory_model: SenriForCausalLM, ids: Tensor, removed: int) -> None:
    cache = memory_model.model.adopt(DynamicCache(config=memory_model.config))
    run_in_chunks(memory_model, ids[:, :10], 10, cache)
    cache.activate_past_recording()
    cache = copy.deepcopy(cache)
    run_in_chunks(memory_model, ids[:, 10:22], 5, cache)
    cache.crop(-removed)
    kept = 22 - removed
    rest = run_in_chunks(memory_model, ids[:, kept:], 3, cache)
    torch.testing.assert_close(rest, memory_model(ids).logits[:, kept:], **TOLERANCE)


def test_crop_without_recording_is_refused(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    cache = memory_model(ids, use_cache=True).past_key_values
    layer = next(layer for layer in cache.layers if isinstance(layer, SenriMemoryLayer))
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        layer.crop(-1)


@torch.no_grad()
def test_rows_follow_reorder_repeat_and_select(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    def after(change: str, rows: list[int]) -> None:
        cache = memory_model(ids[:, :15], use_cache=True).past_key_values
        if change == "reorder":
            cache.reorder_cache(torch.tensor(rows))
        elif change == "repeat":
            cache.batch_repeat_interleave(2)
        else:
            cache.batch_select_indices(torch.tensor(rows))
        got = run_in_chunks(memory_model, ids[rows][:, 15:], 4, cache)
        torch.testing.assert_close(got, memory_model(ids).logits[rows][:, 15:], **TOLERANCE)

    after("reorder", [1, 0])
    after("reorder", [1, 1])
    after("repeat", [0, 0, 1, 1])
    after("select", [1])


@torch.no_grad()
def test_reset_forgets(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    cache = memory_model(ids, use_cache=True).past_key_values
    cache.reset()
    torch.testing.assert_close(
        run_in_chunks(memory_model, ids, 32, cache), memory_model(ids, use_cache=False).logits, **TOLERANCE
    )


@torch.no_grad()
def test_rows_never_leak(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    other = ids.clone()
    other[1] = (other[1] + 7) % 101
    torch.testing.assert_close(memory_model(ids).logits[0], memory_model(other).logits[0], **TOLERANCE)


@torch.no_grad()
def test_every_call_starts_afresh(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    first = memory_model(ids, use_cache=True).logits
    torch.testing.assert_close(memory_model(ids, use_cache=True).logits, first)


@torch.no_grad()
def test_the_state_is_float32_under_bf16(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    cache = memory_model.bfloat16()(ids, use_cache=True).past_key_values
    for layer in cache.layers:
        if isinstance(layer, SenriMemoryLayer):
            kinds = {tensor.dtype for tensor in layer.memory_state.values()}
            assert kinds <= {torch.float32, torch.int64, torch.bool}


def test_gradients_flow_through_the_cache(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    memory_model.train()
    whole = memory_model(ids, use_cache=False).logits[:, 16:].square().mean()
    expected = torch.autograd.grad(whole, memory_model.model.embed_tokens.weight)[0]
    cache = DynamicCache(config=memory_model.config)
    memory_model(ids[:, :16], past_key_values=cache)
    second = memory_model(ids[:, 16:], past_key_values=cache).logits.square().mean()
    got = torch.autograd.grad(second, memory_model.model.embed_tokens.weight)[0]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_state_shared_by_the_batch_follows_its_rows(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    memory = {"scope": "batch", "segment_length": 4, "order": "update_then_retrieve", "token_shift": True}
    model = build("alone", memory={"combine": "alone", **memory})
    whole = model(ids, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    run_in_chunks(model, ids[:, :14], 3, cache)  # within a segment, so rows have writes of their own pending
    cache.reorder_cache(torch.tensor([1, 0]))
    got = run_in_chunks(model, ids[[1, 0]][:, 14:], 3, cache)
    torch.testing.assert_close(got, whole[[1, 0]][:, 14:], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_packed_sequences_do_not_leak_through_a_default_cache(
    model: SenriForCausalLM, ids: Tensor, training: bool
) -> None:
    positions = torch.cat([torch.arange(11), torch.arange(18)])[None]
    model.train(training)
    apart = torch.cat([model(ids[:1, :11]).logits, model(ids[:1, 11:]).logits], dim=1)
    packed = model(ids[:1], position_ids=positions)
    torch.testing.assert_close(packed.logits, apart, **TOLERANCE)
    assert packed.past_key_values is None


@torch.no_grad()
def test_a_disabled_memory_can_be_cropped(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    cache = DynamicCache(config=memory_model.config)
    run_in_chunks(memory_model, ids[:, :10], 10, cache)
    cache.activate_past_recording()
    with memory_model.memory_disabled():
        run_in_chunks(memory_model, ids[:, 10:16], 6, cache)
    expected = run_in_chunks(memory_model, ids[:, 16:], 4, copy.deepcopy(cache))
    with memory_model.memory_disabled():
        run_in_chunks(memory_model, ids[:, :7], 3, cache)
    cache.crop(-7)
    torch.testing.assert_close(run_in_chunks(memory_model, ids[:, 16:], 4, cache), expected, **TOLERANCE)


@torch.no_grad()
def test_crop_after_a_reorder_goes_back_in_the_new_rows(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    cache = memory_model.model.adopt(DynamicCache(config=memory_model.config))
    cache.activate_past_recording()
    run_in_chunks(memory_model, ids[:, :20], 5, cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(-7)
    got = run_in_chunks(memory_model, ids[[1, 0]][:, 13:], 3, cache)
    torch.testing.assert_close(got, memory_model(ids).logits[[1, 0]][:, 13:], **TOLERANCE)


@torch.no_grad()
def test_a_static_cache_keeps_its_addresses(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    cache = StaticCache(config=memory_model.config, max_cache_len=40)

    def addresses() -> list[int]:
        layers = [layer for layer in cache.layers if isinstance(layer, SenriMemoryLayer)]
        return [tensor.data_ptr() for layer in layers for tensor in layer.memory_state.values()]

    run_in_chunks(memory_model, ids[:, :12], 12, cache)
    before = addresses()
    run_in_chunks(memory_model, ids[:, 12:], 5, cache)
    cache.reset()
    assert addresses() == before
