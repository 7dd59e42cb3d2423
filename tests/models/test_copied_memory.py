"""A memory whose reads are said at the head: what is mixed, what stays the base's, and how codes are solved."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.memory import MemoryConfig
from senri.mixers import TokenCodes
from senri.models import SenriForCausalLM

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@torch.no_grad()
def test_the_head_says_a_mixture_of_the_model_and_of_what_was_read(
    build: Callable[..., SenriForCausalLM], ids: Tensor
) -> None:
    """Against a loop over positions and tokens."""
    model = build("copy")
    mixer, found = model.model.layers[1].self_attn, []
    mixer.register_forward_hook(lambda module, _args, _out: found.append(module.found))
    said = model(ids).logits
    (read, strength), embeddings = found[0], model.lm_head.weight
    with model.memory_disabled():
        alone = model(ids).logits.softmax(-1)
    codes = [mixer.memory_codes.weight @ (embedding - embeddings.mean(0)) for embedding in embeddings]
    for row, position in ((0, 0), (0, 28), (1, 7)):
        likeness = torch.stack([F.cosine_similarity(read[row, position], code, dim=0) for code in codes])
        share = strength[row, position].sigmoid()
        wanted = share * (6.0 * likeness).softmax(-1) + (1 - share) * alone[row, position]
        torch.testing.assert_close(said[row, position].exp(), wanted, **TOLERANCE)


@torch.no_grad()
def test_no_layer_hears_the_memory(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("copy")
    with model.memory_disabled():
        base, logits = model.model(ids).last_hidden_state, model(ids).logits
    assert torch.equal(model.model(ids).last_hidden_state, base)
    assert not torch.allclose(model(ids).logits, logits.log_softmax(-1), **TOLERANCE)
    model.model.layers[1].self_attn.memory_read.proj.bias.fill_(-60.0)
    torch.testing.assert_close(model(ids).logits, logits.log_softmax(-1), **TOLERANCE)


@torch.no_grad()
def test_positions_that_are_kept_are_the_same(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("copy")
    whole = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, whole[:, -3:], **TOLERANCE)
    some = torch.tensor([2, 20])
    torch.testing.assert_close(model(ids, logits_to_keep=some).logits, whole[:, some], **TOLERANCE)


def test_everything_of_it_learns(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("copy")
    model(ids, labels=ids).loss.backward()
    mixer = model.model.layers[1].self_attn
    parts = (mixer.memory_codes.weight, mixer.memory_codes.sharpness, mixer.memory_read.proj.weight)
    assert all(part.grad.any() for part in (*parts, mixer.memory.inputs.k_proj.weight))


def test_gradient_checkpointing_that_would_lose_gradients_is_refused(
    build: Callable[..., SenriForCausalLM], ids: Tensor
) -> None:
    model = build("copy").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(SenriError, match="gradients of a memory that the head says"):
        model(ids, labels=ids, use_cache=False)
    plain = build("copy").train()
    plain(ids, labels=ids, use_cache=False).loss.backward()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(ids, labels=ids, use_cache=False).loss.backward()
    for (name, mine), (_, wanted) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, msg=name, **TOLERANCE)


@torch.no_grad()
def test_codes_are_kept_until_something_changes(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("copy")
    codes, before = model.model.layers[1].self_attn.memory_codes, model(ids).logits
    assert codes.codes(model.lm_head.weight) is codes.codes(model.lm_head.weight)
    codes.weight.mul_(-1)
    changed = model(ids).logits
    assert not torch.allclose(changed, before, **TOLERANCE)
    codes.weight.mul_(-1)
    torch.testing.assert_close(model(ids).logits, before, **TOLERANCE)


@torch.no_grad()
def test_codes_are_solved_from_values() -> None:
    """Values that are a map of embeddings, and noise, are told apart by the codes."""
    generator = torch.Generator().manual_seed(0)
    embeddings, turn = torch.randn(50, 8, generator=generator) + 2.0, torch.randn(8, 12, generator=generator)
    tokens = torch.randint(0, 50, (2000,), generator=generator)
    values = embeddings[tokens] @ turn + 0.3 * torch.randn(2000, 12, generator=generator) + 1.0
    codes = TokenCodes(8, 12, 20.0)
    codes.initialise(embeddings, values, tokens, 1e-6)
    torch.testing.assert_close(codes.weight, turn.T, atol=0.05, rtol=0)
    said = codes(values - values.mean(0), embeddings)
    assert (said.argmax(-1) == tokens).float().mean() > 0.95
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(2000))


def test_what_copying_needs_is_asked_for() -> None:
    with pytest.raises(SenriError, match="set memory.learned_read_strength to true"):
        MemoryConfig(combine="copy", projections="own", normaliser="rmsnorm")
    with pytest.raises(SenriError, match="'copy' keeps the base whole and needs memory.projections 'own'"):
        MemoryConfig(combine="copy", normaliser="rmsnorm", learned_read_strength=True)
    with pytest.raises(SenriError, match="copy_sharpness is 0.0"):
        MemoryConfig(copy_sharpness=0.0)
