"""The loss finding: kept runs, haystacks with their questions, and the pointer that needs no layer above the memory."""

import copy
import os
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml

from senri.errors import SenriError
from senri.mixers import CopiedMemory
from senri.models import SenriForCausalLM
from senri.training import ConfigManager, ThreeStageTrainer
from senri.training.callbacks import read_metrics
from senri.training.parameters import choose_trained, trained_names
from senri.training.recall.batches import FindingBatches
from senri.training.recall.finding import Finding
from senri.training.recall.haystacks import aligned
from senri.training.recall.kept import KeptRuns, Run
from senri.training.rows import TrainingRows
from senri.training.stage_data import finding_of_stage

from .conftest import RECALL_LAYER, RECALL_TEXT, recall_config, recall_recipe, stop_in_call, tiny_model
from .test_language_modelling import assert_same, gradients


@pytest.fixture
def model(recall_model: SenriForCausalLM) -> SenriForCausalLM:
    choose_trained(recall_model, "finding")
    return recall_model


def objective(model: SenriForCausalLM, batches: FindingBatches) -> Finding:
    config = recall_config().finding
    return Finding(model, RECALL_LAYER, replace(config, meeting=0.7, text_weight=1.7), batches.kinds, first_weight=2.5)


WINDOWS = [torch.arange(20, 31)[None], torch.arange(50, 56)[None]]  # of a model that sees 8 tokens back


def kept_runs(
    model: SenriForCausalLM, runs: list[Run], folder: Path, dtype: str = "float32", outputs: bool = True
) -> KeptRuns:
    return KeptRuns(model, runs, WINDOWS, RECALL_LAYER, folder, dtype, outputs=outputs, half=False)


def test_kept_runs_are_what_the_layers_give(
    model: SenriForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senri.training.recall.kept._ROWS", 2)  # more than one batch
    runs = [Run((1, 2, 3, 4, 5), 2), Run((9, 8, 7)), Run((5, 5, 5, 5), 1), Run((4, 5, 6, 7), answer=3), Run((3, 2))]
    kept = kept_runs(model, runs, tmp_path)
    for number, run in enumerate(runs):  # the reference runs each alone, with its window
        window = WINDOWS[number // 2 % 2]
        assert torch.equal(kept.window(number), window[0])
        ids = torch.cat([window, torch.tensor([run.ids])], dim=1)
        behind = window.shape[1] + run.skip
        (states,), (outputs,) = kept.states([number]), kept.outputs([number])
        with torch.no_grad(), model.memory_disabled():
            positions = model.config.sliding_window + torch.arange(ids.shape[1])[None]
            wanted = model.model(ids, position_ids=positions, stop_layer=RECALL_LAYER, use_cache=False)[0]
            assert torch.allclose(states, wanted[0, behind:], atol=1e-5)
            logits = model(ids, position_ids=positions, use_cache=False).logits[0, behind:]
            first = max(run.answer - 1 - run.skip, 0)
            assert torch.allclose(model.lm_head(outputs)[first:], logits[first:], atol=1e-4)
        assert not outputs[:first].any()
    together = kept_runs(model, runs, tmp_path / "other", outputs=False).states([2, 0, 1])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, kept.states([2, 0, 1]), strict=True))


def test_what_is_kept_is_not_computed_again(model: SenriForCausalLM, tmp_path: Path) -> None:
    runs = [Run((1, 2, 3)), Run((4, 5))]
    first = kept_runs(model, runs, tmp_path).states([0])[0]
    with torch.no_grad():  # a memory that learns changes nothing of what is kept
        model.model.layers[RECALL_LAYER].self_attn.memory.inputs.k_proj.weight.add_(1)
    again = kept_runs(model, runs, tmp_path)
    forward, model.model.forward = model.model.forward, None  # type: ignore[assignment, method-assign]
    assert torch.equal(again.states([0])[0], first)
    with pytest.raises(TypeError):
        again.states([1])
    model.model.forward = forward  # type: ignore[method-assign]
    assert not kept_runs(model, runs[:1], tmp_path)._is_there.any()
    with pytest.raises(SenriError, match="too large for float16"), torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e7)
        kept_runs(model, runs, tmp_path, "float16", outputs=False).states([0])


def test_answers_point_to_the_same_tokens() -> None:
    assert aligned([3, 4], [1, 3, 4, 5, 3, 4]) == [4, 5]  # a sentence may say it twice: the last time
    assert aligned([9, 3, 4], [1, 3, 4]) == [-1, 1, 2]
    assert aligned([9], [1, 2]) == [-1]
    assert aligned([7, 8], [1, 2]) == [-1, -1]


def test_a_haystack_holds_what_is_asked_for(
    finding_batches: Any, recall_rows: TrainingRows, bytes_tokenizer: Any
) -> None:
    batches, ended = finding_batches(), False
    assert [window.shape[1] for window in batches._haystacks.windows] == [9, 5]  # in turn
    flat = torch.cat(list(recall_rows.tokens))
    kinds, found = set(), set()
    for step in range(12):
        batch = batches([{"number": 3 * step}])
        ids, asked = batch["ids"][0], batch["kinds"] >= 0
        targets, points = batch["targets"][asked], batch["points"][asked]
        there = points >= 0
        ends = targets == bytes_tokenizer.eos_token_id
        copied = there & ~ends
        assert copied.any() and torch.equal(ids[points[copied]], targets[copied])
        # Where an answer ends, what follows it in the text is met.
        before = points[:, :-1][ends[:, 1:]]
        assert torch.equal(points[ends], torch.where(before >= 0, before + 1, -1))
        ended |= bool(ends.any())
        assert not (batch["points"][~asked] >= 0).any()
        assert batch["states"].shape == (1, len(ids), 32) and int((~asked).sum()) >= 2
        assert int(asked.sum()) <= 5 + 3
        # What came with a fact is told from the haystack, which is one stretch of the text without it.
        of_facts = batch["points"][asked & (batch["kinds"] < len(batches.kinds) - 1)]
        assert batch["hidden"][of_facts[of_facts >= 0]].all()
        haystack = ids[~batch["hidden"]]
        assert any(torch.equal(flat[at : at + len(haystack)], haystack) for at in range(len(flat)))
        # Questions give nothing away: what goes in ends before the answer's last token, and nothing is asked before.
        assert (batch["targets"][:, 0] < 0).all()
        kinds |= {batches.kinds[kind] for kind in batch["kinds"][asked].tolist()}
        # The states lie where their tokens do: plain text has those of the frozen base.
        whole = torch.cat([recall_rows.frozen_base[row] for row in range(5)])  # type: ignore[index]
        (starts,) = torch.where((whole == batch["states"][0, 0]).all(-1))
        found.add(int(starts[0]) if len(starts) else -1)
        if len(starts):
            assert ids[0] == flat[starts[0]]
    assert "passages" in kinds and len(kinds) > 3 and len(found) > 6 and ended


def test_facts_stand_where_a_sentence_ends(haystacks: Any, bytes_tokenizer: Any) -> None:
    made = haystacks()
    for fact in made._facts:
        said = bytes_tokenizer.decode(list(fact.ids))
        around = said[:8] + said[-3:]  # as the text goes on there without it
        assert said[7] == "." and around in RECALL_TEXT, said
    inside = 0
    for number in range(0, 30, 3):
        drawn = made.draw(number, passages=False)
        for _, begin in drawn.asked:
            behind_another = begin > 0 and bool(drawn.hidden[begin - 1])
            # Near the end of a stretch no other sentence may end.
            no_more = "." not in bytes_tokenizer.decode(drawn.ids[begin:][~drawn.hidden[begin:]])
            assert begin == 0 or behind_another or no_more or bytes_tokenizer.decode(drawn.ids[begin - 1]) == "."
            inside += begin > 0 and not behind_another and not no_more
    assert inside > 10


@pytest.mark.parametrize("share", [0, 1])
def test_groups_may_share_a_wording(haystacks: Any, bytes_tokenizer: Any, share: int) -> None:
    made = haystacks(alike_share=1, same_wording_share=share, kinds={"numbers": 1.0}, aftermath=7)
    assert all(bytes_tokenizer.decode(list(fact.ids[-7:])) in RECALL_TEXT for fact in made._facts)  # the text behind
    common = []  # characters that all sentences of a group begin and end with
    for group in made._groups:
        said = [bytes_tokenizer.decode(list(made._facts[fact].ids[8:-7])) for fact in group]
        said = [re.sub(r"\d+", "#", sentence) for sentence in said]
        ends = os.path.commonprefix([sentence[::-1] for sentence in said])
        common.append(len(os.path.commonprefix(said)) + len(ends))
    assert (min(common) >= 12) == bool(share), common


def test_a_passage_is_asked_for_where_it_stands(finding_batches: Any, recall_rows: TrainingRows) -> None:
    batches = finding_batches(growth=1.0001)
    flat = torch.cat(list(recall_rows.tokens))
    seen = 0
    for step in range(12):
        batch = batches([{"number": 3 * step}])
        for row in (batch["kinds"] == len(batches.kinds) - 1).nonzero()[:, 0]:
            asked = batch["targets"][row] >= 0
            points = batch["points"][row][asked]
            assert len(points) == 10
            # As in the text: each but where a fact was put in between follows the one before.
            assert ((points[1:] - points[:-1]) >= 1).all()
            said = batch["targets"][row][asked]
            assert any(torch.equal(flat[at : at + 10], said) for at in range(len(flat) - 9))
            seen += 1
    assert seen > 6


def test_haystacks_are_decided_by_seed_and_number_and_grow(finding_batches: Any) -> None:
    first, again, other = (finding_batches(seed)([{"number": 3}]) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["ids"], other["ids"])
    lengths = [finding_batches()([{"number": 3 * step}])["ids"].shape[1] for step in range(12)]
    assert max(lengths[:2]) < max(lengths[6:])
    assert finding_batches()([{"number": 3000}])["ids"].shape[1] <= 160 + 4 * 200


PRIOR = 0.3
"""More than the recipe's, so that it shows."""

END = 256
"""The byte tokenizer's end of text."""


def slow_loss(model: SenriForCausalLM, batch: dict[str, torch.Tensor], sharpness: float) -> torch.Tensor:
    """Each question read token by token from the memory behind the text; shares and losses in loops."""
    layer: Any = model.model.layers[RECALL_LAYER]
    mixer, embed = layer.self_attn, model.model.embed_tokens
    branch = mixer.memory
    copied = isinstance(mixer, CopiedMemory)
    groups, ahead = branch.num_heads // branch.num_key_value_heads, branch.config.tokens_late
    ids = batch["ids"][0].tolist()

    def seen(states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        states = layer.input_layernorm(states)
        return torch.cat([states, embed(ids)], dim=-1) if branch.config.token_inputs else states

    text = seen(batch["states"], batch["ids"])
    given = mixer.given(embed(batch["ids"]), batch["ids"]) if copied else None
    tokens, _ = branch.inputs(text, branch.init_state(1), given)
    steps, segment = tokens.k.shape[2], branch.config.segment_length
    end = steps - steps % segment if branch.config.granularity == "segment" else steps
    keys = tokens.k.repeat_interleave(groups, dim=1)[0, :, ahead:end]
    strengths = tokens.beta.repeat_interleave(groups, dim=1)[0, :, ahead:end]
    values = (given[0] if copied else tokens.v).repeat_interleave(groups, dim=1)[0]
    values = (values * branch.memory.norm_weight[:, None]).transpose(0, 1).flatten(1).detach()
    values = values if copied else values - values.mean(0)
    behind = {**branch(text, branch.init_state(1), given)[1], **faint_memory(branch, tokens, batch)}
    finding, mixtures, plain_text, meeting, met, heard = [], [], [], 0.0, 0.0, 0.0
    for row, targets in enumerate(batch["targets"]):
        tail = seen(batch["asking"][row : row + 1], batch["asking_ids"][row : row + 1])
        some = tail.new_zeros(1, branch.num_key_value_heads, tail.shape[1], branch.value_dim)
        q = branch.inputs(tail, behind, (some, some[:, :1, :, :1]) if copied else None)[0].q
        read = branch.memory.read(q, behind).transpose(1, 2)
        places = (targets >= 0).nonzero()[:, 0].tolist()
        is_text = int(batch["kinds"][row]) < 0
        pointed, mixed, found = [], [], 0.0
        for order, place in enumerate(places):
            weight = 2.5 if order == 0 else 1.0
            one, point = read[0, place].flatten(), int(batch["points"][row, place])
            with torch.no_grad():
                plain = model.lm_head(batch["outputs"][row, place]).softmax(-1)
                penalty = torch.ones_like(plain)
            if copied and ahead:
                so_far = torch.cat([batch["before"][row], batch["asking_ids"][row, : place + 1]])
                shown = so_far[-ahead:].unique()
                shown = shown[shown != END]
                lowered = mixer.memory_say.repetition(branch.inputs.seen(tail[0, place]))
                penalty[shown] = (-lowered).exp()
            eps = branch.config.eps
            products = torch.stack(
                [unit(key, eps) @ unit(asked, eps) for asked, key in zip(q[0, :, place], keys, strict=True)]
            )
            raw = [
                unit(asked, eps).float() @ behind["M"][0, head // groups] for head, asked in enumerate(q[0, :, place])
            ]
            size = torch.cat(raw).square().mean()
            noise = sum(
                (products[head, at] * strengths[head, at]) ** 2 / branch.num_heads
                for head in range(branch.num_heads)
                for at in range(keys.shape[1])
                if not batch["hidden"][at]
            )
            clear = (size / (size + (batch["times_longer"] - 1) * noise)).sqrt()
            candidates = [at for at in range(len(ids)) if not copied or at == ids.index(ids[at])]
            turned = in_every_turn(one, branch.config.copy_turns)
            likeness = torch.stack(
                [torch.stack([F.cosine_similarity(x, values[at], dim=0) for x in turned]).amax() for at in candidates]
            )
            possible = plain[batch["ids"][0]] ** PRIOR * penalty[batch["ids"][0]].detach()
            shares = likeness.mul(sharpness * clear).exp() * possible[candidates]
            shares = shares / shares.sum()
            ends = not is_text and int(targets[place]) == END
            right = [
                order
                for order, at in enumerate(candidates)
                if not ends and (ids[at] == targets[place] or (at == point and not copied))
                if is_text or point < keys.shape[1]  # it is written by now
            ]
            share = shares[right].sum() if right else shares.new_tensor(0.0)
            if right and not is_text:
                pointed.append(-weight * share.log())
                found += weight
            said = share.detach()
            strength = mixer.memory_read.logits(
                read[:, place : place + 1].detach(), branch.inputs.seen(tail[:, place : place + 1])
            )
            if copied:
                every, back = said_by_codes(mixer.memory_codes, embed.weight, [x.detach() for x in turned])
                end = mixer.memory_say.end(torch.cat([branch.inputs.seen(tail[0, place]), back])).sigmoid()
                by_base = plain**mixer.memory_say.prior
                every = every * by_base
                if ahead and branch.config.copy_turns > 1:  # what stands behind a token takes some of that off
                    each = in_each_turn(mixer.memory_codes, embed.weight, [x.detach() for x in turned])
                    others = [token for token in range(len(plain)) if token not in shown]
                    after = each[:, others].amax(-1)[(each[:, shown].argmax(0) + 1) % len(turned)]
                    follow = mixer.memory_say.followed
                    share = (follow.weight[0] * after.detach() + follow.bias).sigmoid()
                    penalty = penalty.index_copy(0, shown, (-lowered * share).exp())
                every = every * penalty * every.sum() / (every * penalty).sum()
                every = every * (1 - end) + end * by_base * F.one_hot(torch.tensor(END), len(every))
                every = every / every.sum()
                said = every[targets[place]]
                strength = strength + mixer.memory_say.sure * every.max().log()
            strength = strength.mean().sigmoid()
            log_mixed = (strength * said + (1 - strength) * plain[targets[place]]).log()
            if right or is_text or (ends and copied):
                (plain_text if is_text else mixed).append(-(1 if is_text else weight) * log_mixed)
                heard += 0 if is_text else weight
            if 0 <= point < keys.shape[1]:
                share_of_answer = weight / (1.5 + len(places))
                meets = products.mean(0).mul(sharpness).exp() * possible[: keys.shape[1]]
                meeting = meeting - share_of_answer * (meets[point] / meets.sum()).log()
                met += share_of_answer
        if pointed:
            finding.append((torch.stack(pointed).sum(), found))
        if mixed:
            mixtures.append(torch.stack(mixed).sum())
    weight = sum(share for _, share in finding)
    found = sum(loss for loss, _ in finding) / weight + sum(mixtures) / heard
    return found + 1.7 * torch.stack(plain_text).mean() + 0.7 * meeting / met


def faint_memory(branch: Any, tokens: Any, batch: dict[str, torch.Tensor]) -> Any:
    """Return the memory behind a text, written step by step, facts with lower strengths."""
    state = branch.memory.init_state(1)
    for step in range(tokens.k.shape[2]):
        token = step - branch.config.tokens_late
        strength = tokens.beta[:, :, step : step + 1]
        if token >= 0 and batch["hidden"][token] and strength.any():  # the first token is never written
            strength = (strength.logit() - batch["fainter"]).sigmoid()
        state = branch.memory.write(
            tokens.k[:, :, step : step + 1], tokens.v[:, :, step : step + 1], state, strength, None
        )
    return state


def unit(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Scale to unit length, as the feature map does and then the memory."""
    for _ in range(2):
        x = x / x.norm(dim=-1, keepdim=True).clamp(min=eps)
    return x


def in_every_turn(read: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Return a read with the signs of each turn."""
    half = len(read) // 2
    return [
        read * torch.tensor([(-1.0) ** (turn & (at % half)).bit_count() for at in range(len(read))])
        for turn in range(count)
    ]


def in_each_turn(codes: Any, embeddings: torch.Tensor, turned: list[torch.Tensor]) -> torch.Tensor:
    """Return how like each token's code the turned reads are, `[turns, vocabulary]`."""
    phases = [codes.frequencies @ one for one in embeddings.detach()]
    each = [torch.cat([phase.cos(), phase.sin()]) for phase in phases]
    return torch.stack([torch.stack([F.cosine_similarity(read, code, dim=0) for code in each]) for read in turned])


def said_by_codes(
    codes: Any, embeddings: torch.Tensor, turned: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probability of each token, and the turned read that is most like one."""
    likeness = in_each_turn(codes, embeddings, turned)
    return likeness.amax(0).mul(codes.sharpness).softmax(0), turned[int(likeness.amax(1).argmax())]


def copying(**changes: Any) -> SenriForCausalLM:
    """A memory that is said at the head, beside the same layers as `recall_model`'s."""
    model = torch.nn.Module.to(tiny_model("copy", (RECALL_LAYER,), **changes), torch.float32)
    choose_trained(model, "finding")
    return model


TOGETHER = {"type": "least_squares", "granularity": "segment", "segment_length": 50}


def partly_written(batch: dict[str, torch.Tensor]) -> bool:
    """Whether some of what is asked for stands in segments of 50 tokens that are full, and some does not."""
    points, written = batch["points"][batch["kinds"] >= 0], batch["ids"].shape[1] // 50 * 50
    return bool(((points >= 0) & (points < written)).any()) and bool((points >= written).any())


@pytest.mark.parametrize("combine", ["add", "copy", "copy that waits", "copy that writes together"])
def test_the_loss_is_that_of_reading_everything_for_each_question(
    finding_batches: Any, model: SenriForCausalLM, combine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("senri.training.recall.answers_said._TOGETHER", 5)  # more than one piece
    batches = finding_batches()
    batch = batches([{"number": 0}])
    if "together" in combine:  # some of what is asked for is not written yet
        batch = next(one for number in range(99) if partly_written(one := batches([{"number": number}])))
    if combine != "add":
        waits = {"look_ahead": 3, "write_delay": 2, "whitened_inputs": True, "token_inputs": True, "copy_turns": 4}
        sketched = TOGETHER | {"options": {"ridge": 0.5, "sketch": 6}}
        model = copying(**(waits if "waits" in combine else sketched if "together" in combine else {}))
    double = copy.deepcopy(model).double()
    if "waits" in combine:  # strengths must see what projections see
        torch.nn.init.normal_(double.model.layers[RECALL_LAYER].self_attn.memory_say.repetition.weight, std=0.3)
        torch.nn.init.constant_(double.model.layers[RECALL_LAYER].self_attn.memory_say.followed.weight, -9.0)
        torch.nn.init.constant_(double.model.layers[RECALL_LAYER].self_attn.memory_say.followed.bias, 3.0)
        torch.nn.init.normal_(double.model.layers[RECALL_LAYER].self_attn.memory.inputs.whitening.weight, std=0.2)
    if combine != "add":
        torch.nn.init.constant_(double.model.layers[RECALL_LAYER].self_attn.memory_say.sure, 0.6)
        torch.nn.init.constant_(double.model.layers[RECALL_LAYER].self_attn.memory_say.prior, 0.3)
        torch.nn.init.normal_(double.model.layers[RECALL_LAYER].self_attn.memory_say.end.weight, std=0.3)
    batch = {name: part.double() if part.is_floating_point() else part for name, part in batch.items()}
    found = objective(double, batches)(**batch)
    mine = gradients(double, found["loss"])
    wanted = slow_loss(double, batch, 8.0)
    assert torch.isclose(found["loss"].double(), wanted.double(), rtol=1e-5), (found["loss"], wanted)
    assert_same(mine, gradients(double, wanted), 1e-4)
    assert (batch["targets"] >= 0).sum() > 5
    assert batch["times_longer"] > 1 and batch["fainter"] > 0.1 and 0 < batch["hidden"].float().mean() < 1
    assert (
        0 <= found["correct"] <= 1
        and -1 <= found["cosine"] <= 1
        and 0 < found["kept"] < 1
        and 0 < found["asked"] < 1
        and 0 < found["text"] < 1
    )


def test_a_budget_of_writes_is_not_spent_in_training(finding_batches: Any) -> None:
    model, tight = copying(), copying(write_budget=0.01)
    tight.load_state_dict(model.state_dict())
    batches = finding_batches()
    batch = batches([{"number": 0}])
    one, other = (objective(each, batches)(**batch) for each in (model, tight))
    assert all(torch.allclose(one[name], figure, rtol=1e-4) for name, figure in other.items())
    assert_same(gradients(model, one["loss"]), gradients(tight, other["loss"]), 1e-4)


@pytest.mark.parametrize("combine", ["add", "copy"])
def test_queries_meet_their_keys_before_there_is_a_memory(
    finding_batches: Any, model: SenriForCausalLM, combine: str
) -> None:
    batches = finding_batches(meeting_first=2, longest=400, hidden=[1, 9], tokens_per_fact=10)
    model = copying() if combine == "copy" else model
    alone = batches([{"number": 3}])
    assert alone["meeting_alone"] and not batches([{"number": 6}])["meeting_alone"]
    assert len({*alone["points"].flatten().tolist()}) > 40  # of nine facts, not of one
    loss_of = Finding(model, RECALL_LAYER, replace(recall_config().finding, meeting=1.0), batches.kinds, 2.5)
    found = loss_of(**alone)
    wanted = loss_of(**{**alone, "meeting_alone": torch.tensor(False)})
    loss_of.settings = replace(loss_of.settings, meeting=0.0)
    read = loss_of(**{**alone, "meeting_alone": torch.tensor(False)})
    assert torch.isclose(found["loss"], wanted["loss"] - read["loss"], rtol=1e-4)
    assert found["met"] == wanted["met"] and found.keys() == {"loss", "met", "length"}
    found["loss"].backward()
    branch = model.model.layers[RECALL_LAYER].self_attn.memory
    assert branch.inputs.q_proj.weight.grad.any() and branch.inputs.beta_proj.weight.grad is None


def test_a_memory_that_finds_is_told_from_one_that_does_not(finding_batches: Any, model: SenriForCausalLM) -> None:
    """Training on the same haystacks: more is found, and read strengths part."""
    batches = finding_batches(growth=1.0001)
    loss_of = objective(model, batches)
    loss_of.settings = replace(loss_of.settings, prior=0.0)  # this model finds answers impossible
    some = [batches([{"number": 3 * step}]) for step in range(4)]
    rows = model.lm_head.weight.detach()
    for batch in some:  # a model that knows how plain text goes on, and no answer
        known = torch.where(batch["kinds"][:, None] < 0, 1.0, -1.0)[..., None] * rows[batch["targets"].clamp(min=0)]
        batch["outputs"] = 20 * known / known.square().sum(-1, keepdim=True).sqrt() / rows.norm(dim=-1).mean()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)

    def figures() -> dict[str, float]:
        with torch.no_grad():
            every = [loss_of(**batch) for batch in some]
        return {name: sum(float(one[name]) for one in every) / len(every) for name in ("correct", "asked", "text")}

    before = figures()
    for step in range(120):
        optimiser.zero_grad()
        loss_of(**some[step % 4])["loss"].backward()
        optimiser.step()
    after = figures()
    assert after["correct"] > before["correct"] + 0.2, (before, after)
    assert after["asked"] > after["text"] + 0.2, after


def test_only_what_finds_is_trained(model: SenriForCausalLM) -> None:
    prefix = f"model.layers.{RECALL_LAYER}.self_attn."
    names = {name.removeprefix(prefix) for name in trained_names(model)}
    assert names == {
        *(f"memory.inputs.{name}_proj.{kind}" for name in ("q", "k", "beta") for kind in ("weight", "bias")),
        *("memory.inputs.conv_q.weight", "memory.inputs.conv_k.weight"),
        *("memory_read.proj.weight", "memory_read.proj.bias", "memory_read.found"),
    }
    copied = {name.removeprefix(prefix) for name in trained_names(copying())}
    said = (f"memory_say.{name}" for name in ("sure", "prior", "end.weight", "end.bias"))
    assert copied == names | {"memory_codes.sharpness", *said}


def test_only_what_says_a_read_learns_to_be_heard() -> None:
    model = copying(look_ahead=3, write_delay=2, copy_turns=4)
    choose_trained(model, "hearing")
    prefix = f"model.layers.{RECALL_LAYER}.self_attn."
    assert {name.removeprefix(prefix) for name in trained_names(model)} == {
        *("memory_read.proj.weight", "memory_read.proj.bias", "memory_read.found", "memory_codes.sharpness"),
        *(f"memory_say.{name}" for name in ("sure", "prior", "end.weight", "end.bias")),
        *(f"memory_say.{name}.{kind}" for name in ("repetition", "followed") for kind in ("weight", "bias")),
    }


def test_a_chat_ends_with_the_end_of_text(
    haystacks: Any, bytes_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    monkeypatch.setattr(bytes_tokenizer, "chat_template", template, raising=False)
    for asked in (one for of_fact in haystacks(styles={"chat": 1.0})._about for one in of_fact):
        assert asked.ids[-1] == bytes_tokenizer.eos_token_id and asked.points[-1] == asked.points[-2] + 1
        assert bytes_tokenizer.decode(list(asked.ids[: asked.answer])).endswith(">")
        assert len(asked.points) > 2 and all(point >= 0 for point in asked.points[:-1])


def test_what_does_not_fit_is_refused(
    haystacks: Any, bytes_tokenizer: Any, recall_rows: TrainingRows, tmp_path: Path
) -> None:
    with pytest.raises(SenriError, match="another kind in its layers"):
        Finding(tiny_model("gate", (2,)), 2, recall_config().finding, (), 0.5)
    with pytest.raises(SenriError, match="learned_read_strength to true"):
        Finding(tiny_model("add", (2,)), 2, recall_config().finding, (), 0.5)
    with pytest.raises(SenriError, match="set styles.chat to 0"):
        haystacks(styles={"chat": 1.0})
    with pytest.raises(SenriError, match="too few for a text of"):
        haystacks(longest=100_000)
    with pytest.raises(SenriError, match=r"window_tokens is \[5, 0\]"):
        haystacks(window_tokens=[5, 0])
    recall_rows.frozen_base = None
    with pytest.raises(SenriError, match="frozen_base=true"):
        haystacks()


def finding_recipe(recipe_file: Path) -> Path:
    path = recall_recipe(recipe_file)
    recipe = yaml.safe_load(path.read_text())
    stages = recipe["training"]["stages"]
    stages["full"] = stages["memory"] | {"enabled": True}
    stages["memory"] = {"loss": "finding", "train": "finding", "max_steps": 6, "learning_rate": 5.0e-3}
    stages["distill"] = {"enabled": True, "loss": "values", "train": "values", "max_steps": 3, "learning_rate": 5.0e-3}
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def test_ways_to_ask_are_drawn_by_their_weights() -> None:
    config = replace(
        recall_config().haystacks, styles={"question": 4.0, "begun": 1.0, "chat": 1.0, "verbatim": 0.0}, asked=2
    )
    rng = random.Random(0)
    drawn = [config.draw_styles(rng) for _ in range(3000)]
    assert all(len({*some}) == 2 and "verbatim" not in some for some in drawn)
    for style, wanted in (("question", 4 / 6), ("begun", 1 / 6), ("chat", 1 / 6)):  # the first by its weight alone
        assert abs(sum(some[0] == style for some in drawn) / 3000 - wanted) < 0.04
    after_question = [some[1] for some in drawn if some[0] == "question"]
    assert abs(after_question.count("chat") / len(after_question) - 0.5) < 0.04
    assert len(replace(config, asked=9).draw_styles(rng)) == 3


def test_hearing_is_learnt_behind_finding(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the longest texts, with a memory from the first step on and a weight of plain text of its own."""
    path = finding_recipe(recipe_file)
    recipe = yaml.safe_load(path.read_text())
    recipe["training"]["stages"]["full"] |= {"loss": "finding", "train": "hearing", "max_steps": 2}
    recipe["training"]["stages"]["distill"]["enabled"] = False
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    settings = recall_config().finding
    stages = ConfigManager(path, []).recipe.training.stages
    hearing = finding_of_stage(settings, stages.full)
    assert finding_of_stage(settings, stages.memory) == settings
    assert hearing == replace(
        settings,
        meeting_first=0,
        lengths=replace(settings.lengths, first=160),
        text_weight=settings.hearing_text_weight,
    )
    weights, build = [], Finding.__init__

    def spy(self: Finding, model: Any, layer: int, config: Any, *rest: Any) -> None:
        weights.append(config.text_weight)
        build(self, model, layer, config, *rest)

    monkeypatch.setattr(Finding, "__init__", spy)
    lines = read_metrics(ThreeStageTrainer(ConfigManager(path, [])).train().folder / "metrics.jsonl")
    meets = [(line["stage"], "correct" in line) for line in lines]
    assert meets == [*[("memory", False)] * 2, *[("memory", True)] * 4, *[("full", True)] * 2]
    assert weights == [settings.text_weight, settings.hearing_text_weight]
    least = settings.lengths.shortest_share * settings.lengths.longest
    assert all(line["length"] >= least for line in lines if line["stage"] == "full")


def test_the_recipe_says_finds_and_recalls_and_goes_on_where_it_was(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, grows = finding_recipe(recipe_file), list[float]()

    def run(name: str) -> list[tuple[str, float]]:
        outcome = ThreeStageTrainer(ConfigManager(recipe, [f"experiment.name={name}"])).train()
        assert outcome.finished and [stage.name for stage in outcome.stages] == ["distill", "memory", "full"]
        lines = read_metrics(outcome.folder / "metrics.jsonl")
        grows[:] = [line["length"] for line in lines if line["stage"] == "memory"]
        return [(line["stage"], line["loss"]) for line in lines]

    whole = run("whole")
    assert [stage for stage, _ in whole].count("memory") == 6
    assert max(grows[:2]) < max(grows[2:]), grows  # in the order of their numbers
    stop_in_call(monkeypatch, Finding, 5)
    with pytest.raises(ZeroDivisionError):
        run("cut")
    monkeypatch.undo()
    assert run("cut") == whole
    for word, message in (
        ("training.stages.memory.train=memory", "train finding or hearing"),
        ("training.stages.full.train=hearing", "train finding or hearing"),
        ("training.recall.finding.fainter=-1", "finding.fainter is -1"),
        ("training.recall.finding.text_weight=-1", "finding.text_weight is -1"),
        ("training.recall.finding.hearing_text_weight=-1", "finding.hearing_text_weight is -1"),
        ("training.stages.memory.max_steps=null", "set max_steps"),
    ):
        with pytest.raises(SenriError, match=message):
            ConfigManager(recipe, [word])


def test_a_recipe_of_a_copying_memory_runs_to_its_file(recipe_file: Path) -> None:
    path = recall_recipe(recipe_file)
    words = [
        *("model.changes.memory.combine=copy", "model.changes.memory.whitened_inputs=true"),
        *("model.changes.memory.num_heads=2", "model.changes.memory.num_key_value_heads=2"),
        *("training.stages.memory.loss=finding", "training.stages.memory.train=finding"),
    ]
    with pytest.raises(SenriError, match="with memory.combine 'copy' none does"):
        ThreeStageTrainer(ConfigManager(path, [words[0], *words[2:4], "experiment.name=heard"])).train()
    outcome = ThreeStageTrainer(ConfigManager(path, words)).train()
    assert outcome.finished
    kept = safetensors.torch.load_file(outcome.folder / "memory.safetensors")
    own = {name.split("self_attn.")[1]: tensor for name, tensor in kept.items()}
    start = SenriForCausalLM.from_pretrained(outcome.folder / "start")
    codes = start.model.layers[RECALL_LAYER].self_attn.memory_codes
    assert torch.equal(own["memory_codes.frequencies"], codes.frequencies)  # never learnt, and kept
    assert not torch.equal(own["memory.inputs.whitening.weight"], torch.eye(32))
    model = SenriForCausalLM.from_pretrained(outcome.folder / "model")
    assert all(torch.equal(parameter, kept[name]) for name, parameter in model.named_parameters() if name in kept)
