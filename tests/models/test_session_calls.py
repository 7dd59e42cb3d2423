"""Calls of the model inside a session: masks, rows, settings of generation, forgetting, training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from senri.errors import SenriError
from senri.models import SenriForCausalLM, Session, model_fingerprint

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


@torch.no_grad()
def test_a_mask_of_the_call_alone_hides_nothing_read_before(model: SenriForCausalLM, ids: Tensor) -> None:
    expected = model(ids).logits[:, 15:]
    with model.new_sequence(batch_size=2):
        model(ids[:, :15], attention_mask=torch.ones_like(ids[:, :15]))
        got = model(ids[:, 15:], attention_mask=torch.ones_like(ids[:, 15:])).logits
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_padding_in_a_session_is_refused(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model, mask = build("gate"), torch.ones_like(ids[:1])
    mask[0, :3] = 0
    with model.new_sequence() as session:
        for call in (model, model.generate):
            with pytest.raises(SenriError, match="attention_mask hides tokens"):
                call(ids[:1], attention_mask=mask)
        assert session.tokens_read == 0


def test_another_number_of_rows_is_refused(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("alone")
    with torch.no_grad():
        model(ids, update_memory=True)
        with pytest.raises(SenriError, match=r"has 2 row\(s\), but this call has 1"):
            model(ids[:1], update_memory=True)
        model.reset_memory()
        model(ids[:1], update_memory=True)
        with model.new_sequence(), pytest.raises(SenriError, match=r"new_sequence\(batch_size=2\)"):
            model(ids)


def test_forgetting_inside_a_sequence_keeps_it_open(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("gate")
    with torch.no_grad(), model.new_sequence(batch_size=2) as session:
        model(ids)
        model.reset_memory()
        assert (session.tokens_read, session.memory_bytes()) == (0, 0)
        got = model(ids).logits
        assert session.tokens_read == ids.shape[1]
    with torch.no_grad():
        assert torch.equal(got, model(ids).logits)
    with pytest.raises(SenriError, match="no memory yet"):
        model.get_memory_state()


@pytest.mark.parametrize("given", ["positional", "keyword", "model"])
def test_generation_settings_may_come_in_a_config(
    build: Callable[..., SenriForCausalLM], ids: Tensor, given: str
) -> None:
    model, settings = build("gate"), GenerationConfig(max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0)
    expected = model.generate(ids[:1], settings)
    places = {"positional": ((settings,), {}), "keyword": ((), {"generation_config": settings}), "model": ((), {})}
    args, kwargs = places[given]
    if given == "model":
        model.generation_config = settings
    with model.new_sequence() as session:
        session.read(ids[:1, :20])
        assert torch.equal(model.generate(ids[:1, 20:], *args, **kwargs), expected[:, 20:])
        assert session.tokens_read == expected.shape[1]


def test_a_session_generates_from_its_cache_only(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("gate")
    with model.new_sequence() as session:
        session.read(ids[:1, :20])
        for options in ({"use_cache": False}, {"generation_config": GenerationConfig(use_cache=False)}):
            with pytest.raises(SenriError, match="use_cache=False"):
                model.generate(ids[:1, 20:], **options)
        with pytest.raises(SenriError, match="one sequence at a time"):
            model.generate(ids[:1, 20:], num_beams=2, num_return_sequences=2)
        assert session.tokens_read == 20


def test_generation_in_a_session_returns_what_transformers_returns(
    build: Callable[..., SenriForCausalLM], ids: Tensor
) -> None:
    model, options = build("gate"), {"max_new_tokens": 4, "do_sample": False}
    details = {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids[:1], **options, **details)
    with model.new_sequence() as session:
        session.read(ids[:1, :20])
        got = model.generate(ids[:1, 20:], **options, **details)
        assert torch.equal(got.sequences, expected.sequences[:, 20:])
        torch.testing.assert_close(torch.cat(got.logits), torch.cat(expected.logits), **TOLERANCE)
        assert session.tokens_read == expected.sequences.shape[1]


def test_one_memory_serves_every_row(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    source = Session(memory_model)
    source.read(ids[:1, :10])
    one, two = Session(memory_model), Session(memory_model, batch_size=2)
    for session in (one, two):
        session.set_memory_state(source.get_memory_state())
    two.cache.reorder_cache(torch.tensor([1, 0]))
    torch.testing.assert_close(two.logits(ids)[:1], one.logits(ids[:1]), **TOLERANCE)
    assert two.get_memory_state().batch_size == 2


def test_an_empty_memory_replaces_what_was_there(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    session = Session(memory_model)
    session.read(ids[:1])
    session.set_memory_state(Session(memory_model).get_memory_state())
    assert session.get_memory_state().layers == {}


def test_a_memory_without_windows_is_saved_with_all_its_rows(
    memory_model: SenriForCausalLM, ids: Tensor, tmp_path: Path
) -> None:
    source, session = Session(memory_model, 2), Session(memory_model, 2)
    source.read(ids)
    session.set_memory_state(source.get_memory_state())
    session.save(tmp_path / "book.senri")
    loaded = Session.load(tmp_path / "book.senri", memory_model)
    assert torch.equal(loaded.logits(ids), session.logits(ids))


def test_training_goes_on_over_detached_calls(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    memory_model.train()
    with memory_model.new_sequence(batch_size=2) as session:
        memory_model(ids[:, :15], labels=ids[:, :15]).loss.backward()
        session.detach_()
        memory_model.zero_grad()
        loss = memory_model(ids[:, 15:], labels=ids[:, 15:]).loss
        loss.backward()
    whole = memory_model(ids).logits[:, 15:-1].flatten(0, 1)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(whole, ids[:, 16:].flatten()), **TOLERANCE)
    assert memory_model.model.embed_tokens.weight.grad.abs().sum() > 0


def test_gradient_checkpointing_in_a_session_is_refused(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("gate").train()
    model.activation_checkpointing_enable()
    with model.new_sequence(batch_size=2), pytest.raises(SenriError, match="gradient checkpointing"):
        model(ids)


def test_the_fingerprint_covers_layout_and_weights(build: Callable[..., SenriForCausalLM]) -> None:
    mine = model_fingerprint(build("gate"))
    assert model_fingerprint(build("gate")) == mine
    rope = build("gate")
    rope.config.rope_parameters = {**rope.config.rope_parameters, "rope_theta": 5000.0}
    tuned = build("gate")
    with torch.no_grad():
        tuned.model.layers[1].self_attn.k_proj.weight[0, 0] += 1e-6
    for other in (rope, tuned, build("gate", sliding_window=7), build("gate").bfloat16()):
        assert model_fingerprint(other) != mine


@torch.no_grad()
def test_a_sequence_inside_a_sequence_leaves_the_outer_one_as_it_was(
    build: Callable[..., SenriForCausalLM], ids: Tensor
) -> None:
    model = build("gate")
    with model.new_sequence(batch_size=2) as outer:
        model(ids[:, :15])
        with model.new_sequence() as inner:
            model(ids[:1])
        got = model(ids[:, 15:]).logits
        assert (outer.tokens_read, inner.tokens_read) == (29, 29)
        model.reset_memory()
        assert outer.tokens_read == 0
    torch.testing.assert_close(got, model(ids).logits[:, 15:], **TOLERANCE)


@torch.no_grad()
def test_disabling_a_memory_twice_leaves_it_disabled(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("gate")
    whole = model(ids).logits
    with model.memory_disabled():
        disabled = model(ids).logits
        with model.memory_disabled():
            pass
        assert torch.equal(model(ids).logits, disabled)
    assert torch.equal(model(ids).logits, whole)
    assert not torch.allclose(disabled, whole, **TOLERANCE)
