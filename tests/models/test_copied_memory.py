"""A memory whose reads are said at the head: what is mixed, what stays the base's, and codes that tell tokens apart."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from senri.errors import SenriError
from senri.memory import MemoryConfig
from senri.memory.token_codes import TokenCodes
from senri.memory.turns import turns
from senri.mixers.saying import Saying
from senri.models import SenriForCausalLM

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.mark.parametrize("ends", [None, 7, [7, 9]])
@pytest.mark.parametrize("mixer", ["copy", "copy_late"])
@torch.no_grad()
def test_the_head_says_a_mixture_of_the_model_and_of_what_was_read(
    build: Callable[..., SenriForCausalLM], ids: Tensor, mixer: str, ends: Any
) -> None:
    """Against a loop over positions and tokens."""
    model = build(mixer, eos_token_id=ends)
    ids = ids.clone()
    ids[0, 27] = 7  # a message that has ended does not keep an answer from ending
    memory, found = model.model.layers[1].self_attn, []
    memory.memory_say.sure.fill_(0.7)
    memory.memory_say.prior.fill_(0.4)
    if memory.memory_say.followed is not None:
        memory.memory_say.followed.weight.fill_(-9.0)
        memory.memory_say.followed.bias.fill_(3.0)
    memory.register_forward_hook(lambda module, _args, _out: found.append(module.found))
    said = model(ids).logits
    (read, strength, seen, shown), embeddings = found[0], model.model.embed_tokens.weight
    late, turn_count = model.config.memory_config_of(1).tokens_late, model.config.memory_config_of(1).copy_turns
    assert (shown is None) == (late == 0)
    with model.memory_disabled():
        alone = model(ids).logits.softmax(-1)
    phases = [memory.memory_codes.frequencies @ embedding for embedding in embeddings]
    codes = [torch.cat([phase.cos(), phase.sin()]) for phase in phases]
    half, turned_back, shares = len(codes[0]) // 2, set(), list[float]()
    for row, position in ((0, 0), (0, 28), (1, 7), (1, 20)):
        turned = [
            read[row, position] * torch.tensor([(-1.0) ** (turn & (at % half)).bit_count() for at in range(2 * half)])
            for turn in range(turn_count)
        ]
        by_turn = torch.stack(
            [torch.stack([F.cosine_similarity(one, code, dim=0) for code in codes]) for one in turned]
        )
        read_says = (6.0 * by_turn.amax(0)).softmax(-1)
        best = int(by_turn.amax(1).argmax())
        turned_back.add(best)
        by_base = alone[row, position] ** 0.4
        read_says = read_says * by_base
        if shown is not None:
            assert shown[0].std() > 0.1
            waiting = ids[row, max(position - late + 1, 0) : position + 1].unique()
            waiting = waiting if ends is None else waiting[waiting != 7]
            before = read_says.sum()
            lowered = shown[0][row, position]
            for token in waiting.tolist():
                share = torch.ones(1)
                if turn_count > 1:  # what stands behind it takes some of that off
                    after = by_turn[(int(by_turn[:, token].argmax()) + 1) % turn_count]
                    others = [one for one in range(len(codes)) if one not in waiting]
                    share = (-9.0 * after[others].max() + 3.0).sigmoid()
                    shares.append(float(share))
                read_says[token] *= (-lowered * share)[0].exp()
            read_says *= before / read_says.sum()  # the end's share is of all that was read
        if ends is not None:
            end = memory.memory_say.end(torch.cat([seen[row, position], turned[best]])).sigmoid()
            assert 0.001 < end < 0.999
            read_says = read_says * (1 - end)
            read_says[7] += end[0] * by_base[7]
        read_says = read_says / read_says.sum()
        share = (strength[row, position, 0] + 0.7 * read_says.max().log()).sigmoid()
        wanted = share * read_says + (1 - share) * alone[row, position]
        torch.testing.assert_close(said[row, position].exp(), wanted, **TOLERANCE)
    assert turn_count == 1 or (len(turned_back) > 1 and max(shares) - min(shares) > 0.1)


@torch.no_grad()
def test_no_layer_hears_the_memory(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("copy")
    with model.memory_disabled():
        base, logits = model.model(ids).last_hidden_state, model(ids).logits
    assert torch.equal(model.model(ids).last_hidden_state, base)
    assert not torch.allclose(model(ids).logits, logits.log_softmax(-1), **TOLERANCE)
    model.model.layers[1].self_attn.memory_read.proj.bias.fill_(-60.0)
    torch.testing.assert_close(model(ids).logits, logits.log_softmax(-1), **TOLERANCE)


@pytest.mark.parametrize(("mixer", "ends"), [("copy", None), ("copy_late", 7)])
@torch.no_grad()
def test_positions_that_are_kept_are_the_same(
    build: Callable[..., SenriForCausalLM], ids: Tensor, mixer: str, ends: int | None
) -> None:
    model = build(mixer, eos_token_id=ends)
    whole = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, whole[:, -3:], **TOLERANCE)
    some = torch.tensor([2, 20])
    torch.testing.assert_close(model(ids, logits_to_keep=some).logits, whole[:, some], **TOLERANCE)


def test_everything_of_it_learns(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("copy")
    model(ids, labels=ids).loss.backward()
    mixer = model.model.layers[1].self_attn
    parts = (mixer.memory_codes.frequencies, mixer.memory_codes.sharpness, mixer.memory_read.proj.weight)
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
    embeddings = model.model.embed_tokens.weight
    assert codes._table(embeddings) is codes._table(embeddings)
    codes.frequencies.mul_(0.5)
    changed = model(ids).logits
    assert not torch.allclose(changed, before, **TOLERANCE)
    codes.frequencies.mul_(2)
    torch.testing.assert_close(model(ids).logits, before, **TOLERANCE)


@torch.no_grad()
def test_codes_of_tokens_have_nothing_in_common() -> None:
    """Embeddings that are nearly the same, in directions of very unequal size, and a read that holds others too."""
    generator = torch.Generator().manual_seed(0)
    size = torch.logspace(-3, 0, 64)
    embeddings = torch.randn(300, 64, generator=generator) * size + 2.0
    codes = TokenCodes(64, 256, 28.0, 0.02)
    codes.initialise(embeddings)
    values = codes.codes(embeddings)
    torch.testing.assert_close(values.square().mean(-1), torch.ones(300))
    likeness = values @ values.T / 256
    assert likeness.fill_diagonal_(0).abs().max() < 0.4 and likeness.abs().mean() < 0.06
    read = 0.3 * values[7] + 0.25 * values[8] + 0.1 * values[9:40].sum(0) / 31**0.5
    said, back, _ = codes(read, embeddings)
    assert said.argmax() == 7
    assert torch.equal(back, read)
    torch.testing.assert_close(said.exp().sum(-1), torch.tensor(1.0))


@torch.no_grad()
def test_a_word_of_the_question_is_said_where_something_else_follows_it() -> None:
    """Both were read, as was a third token; the first of them is in the question."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(50, 64, generator=generator)
    codes, saying = TokenCodes(64, 256, 28.0, 1.0, turn_count=8), Saying(0.2, 16, 256, None, waits=True, turns=True)
    assert saying.followed is not None
    values, signs, alone = codes.codes(embeddings), turns(8, 256), torch.zeros(1, 50)
    first, follows, other = values[4] * signs[7], values[9] * signs[0], values[30] * signs[3]
    read = (0.5 * first + 0.45 * follows + 0.4 * other)[None]

    def said(*question: int) -> int:
        recent = torch.tensor([[*question, -1]])
        found, _, behind = codes(read, embeddings, recent)
        shown = (torch.full((1, 1), 5.0), recent)
        return int(saying(found, alone, torch.zeros(1, 1), None, shown, behind)[0].argmax())

    assert (said(), said(4), said(4, 9)) == (4, 9, 30), "before it is learnt, the question's words are said less"
    saying.followed.weight.fill_(-40.0)
    saying.followed.bias.fill_(11.0)
    assert said(4) == 4
    assert said(4, 9) == 30, "what follows is the question's as well"


@torch.no_grad()
def test_equal_tokens_in_several_places_do_not_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(50, 64, generator=generator)
    codes = TokenCodes(64, 256, 28.0, 1.0, turn_count=8)
    values, places = codes.codes(embeddings), torch.tensor([3, 12, 21, 30, 6])
    signs = turns(8, 256)[places % 8]
    of_one = turns(8, 256) * values[7]
    torch.testing.assert_close(of_one @ of_one.T, 256 * torch.eye(8), atol=1e-3, rtol=0)  # all are orthogonal
    tokens, shares = torch.tensor([7, 7, 7, 7, 9]), torch.tensor([0.3, 0.3, 0.3, 0.3, 0.5])
    read = (shares[:, None] * signs * values[tokens]).sum(0)
    said, back, _ = codes(read[None], embeddings)
    assert said.argmax() == 9
    torch.testing.assert_close(back[0], read * signs[4])
    unturned = (shares[:, None] * values[tokens]).sum(0)
    assert TokenCodes(64, 256, 28.0, 1.0)(unturned[None], embeddings)[0].argmax() == 7


@torch.no_grad()
def test_what_is_written_are_the_codes_of_the_tokens(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    """Whether tokens come as ids, as embeddings, or beside the states of a stretch of layers."""
    model = build("copy")
    mixer = model.model.layers[1].self_attn
    embeddings = model.model.embed_tokens(ids)
    codes, given = mixer.memory_codes.codes(embeddings), []
    mixer.memory.inputs.register_forward_hook(lambda _module, _args, out: given.append(out[0].v))
    wanted = model(ids).logits
    torch.testing.assert_close(given[0].transpose(1, 2).flatten(2), codes)
    torch.testing.assert_close(model(inputs_embeds=embeddings).logits, wanted, **TOLERANCE)
    lower = model.model(ids, stop_layer=1).last_hidden_state
    above = model.model(ids, inputs_embeds=lower, start_layer=1).last_hidden_state
    torch.testing.assert_close(model.say(above), wanted, **TOLERANCE)
    with pytest.raises(SenriError, match="pass input_ids beside inputs_embeds"):
        model.model(inputs_embeds=lower, start_layer=1)
    with pytest.raises(ValueError, match="exactly one"):
        model.model(ids, inputs_embeds=embeddings)


@torch.no_grad()
def test_codes_are_turned_by_place(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    """By how many tokens were read when they are written, however calls are cut."""
    model = build("copy_late")
    mixer, given = model.model.layers[1].self_attn, []
    late, width = mixer.memory.config.tokens_late, 2 * len(mixer.memory_codes.frequencies)
    codes = mixer.memory_codes.codes(model.model.embed_tokens(ids))
    mixer.memory.inputs.register_forward_hook(lambda _module, _args, out: given.append(out[0].v))
    cache = None
    for begin, end in ((0, 3), (3, 17), (17, ids.shape[1])):
        cache = model(ids[:, begin:end], past_key_values=cache, use_cache=True).past_key_values
    written = torch.cat(given, dim=2).transpose(1, 2).flatten(2)
    assert not written[:, :late].any()
    for place in range(late, ids.shape[1]):
        signs = [(-1.0) ** (((place + 1) % 4) & (at % (width // 2))).bit_count() for at in range(width)]
        torch.testing.assert_close(written[:, place], codes[:, place - late] * torch.tensor(signs))


@torch.no_grad()
def test_keys_and_strengths_know_the_token(build: Callable[..., SenriForCausalLM], ids: Tensor) -> None:
    model = build("copy")
    mixer, embeddings, given = model.model.layers[1].self_attn, model.model.embed_tokens(ids), []
    mixer.memory.inputs.register_forward_hook(lambda _module, args, _out: given.append(args[0]))
    model(ids)
    lower = model.model(ids, stop_layer=1).last_hidden_state
    states = model.model.layers[1].input_layernorm(lower)
    torch.testing.assert_close(given[0], torch.cat([states, embeddings], dim=-1), **TOLERANCE)
    seen = mixer.memory.inputs.seen(given[0])
    others = mixer.memory.inputs.seen(mixer.seen(states, embeddings.flip(1)))
    assert not torch.allclose(mixer.memory_read.proj(seen), mixer.memory_read.proj(others), **TOLERANCE)


def test_what_copying_needs_is_asked_for() -> None:
    with pytest.raises(SenriError, match="set memory.learned_read_strength to true"):
        MemoryConfig(combine="copy", projections="own", normaliser="rmsnorm")
    with pytest.raises(SenriError, match="'copy' keeps the base whole and needs memory.projections 'own'"):
        MemoryConfig(combine="copy", normaliser="rmsnorm", learned_read_strength=True)
    with pytest.raises(SenriError, match="token_inputs needs memory.combine 'copy'"):
        MemoryConfig(combine="add", projections="own", token_inputs=True)
    with pytest.raises(SenriError, match="copy_sharpness is 0.0"):
        MemoryConfig(copy_sharpness=0.0)
    with pytest.raises(SenriError, match="copy_prior is -0.1"):
        MemoryConfig(copy_prior=-0.1)
    with pytest.raises(SenriError, match="copy_turns is 6, but it must be a power of two"):
        MemoryConfig(copy_turns=6)
    with pytest.raises(SenriError, match="set memory.combine to 'copy'"):
        MemoryConfig(copy_turns=4)
    with pytest.raises(SenriError, match="all heads have 7 numbers together"):
        TokenCodes(4, 7, 28.0, 0.02)
