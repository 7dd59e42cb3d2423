"""Generation with a memory: every way of decoding gives what decoding without a cache gives."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from senri.models import SenriForCausalLM

NEW = 12


def generate(model: SenriForCausalLM, ids: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    out = model.generate(
        ids, max_new_tokens=NEW, min_new_tokens=NEW, return_dict_in_generate=True, output_logits=True, **options
    )
    return out.sequences, torch.stack(out.logits, dim=1)


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], atol=5e-5, rtol=1e-3)


def test_greedy_with_cache_equals_without(model: SenriForCausalLM, ids: Tensor) -> None:
    expected = generate(model, ids, do_sample=False, use_cache=False)
    assert_same(generate(model, ids, do_sample=False), expected)
    assert_same(generate(model, ids, do_sample=False, prefill_chunk_size=3), expected)


def test_sampling_with_cache_equals_without(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    torch.manual_seed(5)
    expected = generate(memory_model, ids, do_sample=True, use_cache=False)
    torch.manual_seed(5)
    assert_same(generate(memory_model, ids, do_sample=True), expected)


def test_beams_with_cache_equal_without(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    options = {"num_beams": 4, "num_return_sequences": 2, "do_sample": False, "max_new_tokens": NEW}
    expected = memory_model.generate(ids, use_cache=False, **options)
    assert torch.equal(memory_model.generate(ids, **options), expected)


def test_left_padded_batch_equals_single_rows(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    short = ids[:1, 9:]
    padded = torch.cat([torch.zeros(1, 9, dtype=torch.long), short], dim=1)
    batch = torch.cat([padded, ids[1:]])
    mask = torch.ones_like(batch)
    mask[0, :9] = 0
    _, logits = generate(memory_model, batch, attention_mask=mask, do_sample=False)
    _, first = generate(memory_model, short, do_sample=False)
    _, second = generate(memory_model, ids[1:], do_sample=False)
    torch.testing.assert_close(logits, torch.cat([first, second]), atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("draft", ["same", "other", "prompt_lookup"])
def test_assisted_decoding_equals_greedy(
    memory_model: SenriForCausalLM, build: Callable[..., SenriForCausalLM], ids: Tensor, draft: str
) -> None:
    # A prompt that repeats itself gives prompt lookup something to propose.
    prompt = torch.cat([ids[:1], ids[:1, :20]], dim=1)
    expected = generate(memory_model, prompt, do_sample=False)
    if draft == "prompt_lookup":
        options: dict[str, object] = {"prompt_lookup_num_tokens": 3}
    else:
        options = {"assistant_model": copy.deepcopy(memory_model) if draft == "same" else build("full", seed=3)}
    assert_same(generate(memory_model, prompt, do_sample=False, **options), expected)


def test_a_conversation_goes_on_from_its_cache(memory_model: SenriForCausalLM, ids: Tensor) -> None:
    first = memory_model.generate(ids[:1, :12], max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    prompt = torch.cat([first.sequences, ids[:1, 12:]], dim=1)
    expected = generate(memory_model, prompt, do_sample=False)
    assert_same(generate(memory_model, prompt, do_sample=False, past_key_values=first.past_key_values), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["alone", "gate", "gate_full", "add", "copy", "gated_delta"])
def test_static_compiled_generation_equals_eager(
    build: Callable[..., SenriForCausalLM], ids: Tensor, mixer: str
) -> None:
    model = build(mixer)
    expected = generate(model, ids, do_sample=False)
    assert_same(generate(model, ids, do_sample=False, cache_implementation="static"), expected)
    torch.compiler.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids).logits, model(ids).logits, atol=5e-5, rtol=1e-3)


def test_memories_decide_only_while_text_is_generated(
    build: Callable[..., SenriForCausalLM], ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, gates = build("hierarchical"), []
    memory = model.model.layers[0].self_attn.memory.memory
    expansion = type(memory).expansion

    def seen(self: object, queries: Tensor) -> Tensor:
        gates.append(expansion(self, queries))
        return gates[-1]

    monkeypatch.setattr(type(memory), "expansion", seen)
    with torch.no_grad():
        memory.gate_weight.normal_(std=20.0)
        model(ids)
        model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        model(ids)
    first, *generated, last = gates
    assert all(bool(((gate > 0) & (gate < 1)).any()) for gate in (first, last))
    assert set(torch.cat([gate.flatten() for gate in generated]).tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(ids, max_new_tokens=0)
    assert not memory.deciding
