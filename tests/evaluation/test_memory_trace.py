import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from senri.errors import SenriError
from senri.evaluation.memory_part import MemorySettings, memory_outcome, memory_units
from senri.evaluation.memory_trace import MemoryTrace, gates, held_state, record_memory, writing_branches
from senri.evaluation.subject import Subject
from senri.evaluation.units import Scratch
from senri.memory.sparse import to_dense
from senri.models import SenriConfig, SenriForCausalLM, Session

SEGMENTS = {"segment_length": 4, "gate_init": 0.5}
DELTA = {
    "combine": "add",
    "projections": "own",
    "num_heads": 2,
    "num_key_value_heads": 2,
    "key_dim": 8,
    "value_dim": 12,
    "rule": "delta",
    "feature_map": "l2",
    "normaliser": "rmsnorm",
    "granularity": "token",
    "token_shift": True,
    "short_convolution": 3,
    "learned_write_strength": True,
    "write_strength": 0.4,
}
MEMORIES = {
    "linear segments": {"memory": SEGMENTS},
    "linear tokens": {"memory": {**SEGMENTS, "granularity": "token", "write_strength": 0.7}},
    "delta segments": {"memory": {**SEGMENTS, "rule": "delta", "order": "update_then_retrieve"}},
    "delta tokens with z": {"memory": {**SEGMENTS, "rule": "delta", "granularity": "token"}},
    "delta tokens": {"memory": DELTA},
    "late tokens": {"memory": {**DELTA, "look_ahead": 2, "write_delay": 3}},
    "gated segments": {"memory": {**SEGMENTS, "rule": "gated_delta", "feature_map": "dpfp", "decay": 0.9}},
    "gated tokens": {"memory": {**DELTA, "rule": "gated_delta", "decay": 0.9}},
    "gated tokens with z": {"memory": {**SEGMENTS, "rule": "gated_delta", "granularity": "token", "decay": 0.9}},
    "segments of one": {
        "memory": {**DELTA, "rule": "gated_delta", "decay": 0.9, "granularity": "segment", "segment_length": 1}
    },
    "alone": {"memory": {**SEGMENTS, "combine": "alone", "rule": "delta", "calibration": "whiten"}},
    "banks": {"memory": {**SEGMENTS, "rule": "delta", "options": {"num_memory_banks": 2, "segments_per_bank": 2}}},
    "multi": {"memory": {**SEGMENTS, "type": "multi"}},
    "multi learned": {"memory": {**DELTA, "type": "multi", "options": {"num_memories": 3, "routing": "learned"}}},
    "hierarchical": {"memory": {"type": "hierarchical", "segment_length": 3, "combine": "alone"}},
    "orthogonal": {"memory": {**SEGMENTS, "type": "orthogonal", "rule": "delta", "options": {"top_k": 3}}},
    "shared": {"memory": {**DELTA, "state": "shared"}, "memory_layers": [0, 2]},
    "batch": {"memory": {**SEGMENTS, "scope": "batch", "rule": "delta"}},
}
GATED = [name for name, options in MEMORIES.items() if options["memory"].get("rule") == "gated_delta"]
TOKENS = 21


def build(name: str) -> SenriForCausalLM:
    config = SenriConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        sliding_window=6,
        default_layer_type="sliding_attention",
        **{"memory_layers": [1], **MEMORIES[name]},
    )
    torch.manual_seed(0)
    model = SenriForCausalLM(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "memory_o_proj" in parameter_name or "_proj.weight" in parameter_name:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(params=MEMORIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 101, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def read(model: SenriForCausalLM, ids: torch.Tensor, size: int) -> tuple[MemoryTrace, list[torch.Tensor], Session]:
    session = Session(model)
    with record_memory(model) as trace:
        logits = [session.logits(chunk) for chunk in ids.split(size, dim=1)]
    return trace, logits, session


def all_written(state: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
    """Everything that is in a state, committed or waiting for its segment's end, `[heads, parts, feature, value]`."""
    dense = to_dense(state)
    matrix, pending = dense["M"][0], dense.get("pending_M")
    heads = matrix.shape[0]
    if pending is not None and pending[0].dim() < matrix.dim():
        matrix = matrix.sum(dim=1)  # one part at a time has an unfinished segment: compare the sum of all
    if "pending_decay" in dense:
        matrix = matrix * dense["pending_decay"][0][..., None, None]
    total = matrix if pending is None else matrix + pending[0] * scale
    return total.reshape(heads, -1, *total.shape[-2:]).double()


def test_how_strongly_a_token_is_written_is_the_change_of_the_matrices(name, ids):
    """Reading token by token, the state is compared before and after each; the recording reads in chunks."""
    model = build(name)
    trace, _, _ = read(model, ids, 7)
    recorded = trace.take_writes()
    assert list(recorded) == trace.layers == [min(model.config.memory_layers)]
    layer = trace.layers[0]
    config = model.config.memory_config_of(layer)
    scale = 1 / config.segment_length if config.scope == "batch" else 1.0
    session, before, wanted = Session(model), None, []
    for index, token in enumerate(ids.split(1, dim=1)):
        session.read(token)
        after = all_written(session.memory_layers[layer].memory_state, scale)
        before = torch.zeros_like(after) if before is None else before
        if recorded[layer].decay is not None:
            before = before * recorded[layer].decay[:, index, None, None, None]
        wanted.append((after - before).flatten(1).norm(dim=1))
        before = after
    torch.testing.assert_close(recorded[layer].change.double(), torch.stack(wanted, dim=1), rtol=2e-4, atol=2e-5)
    assert recorded[layer].change[:, 1 + config.tokens_late :].min() > 0


TOGETHER = {**DELTA, "type": "least_squares", "granularity": "segment"}


def test_of_tokens_that_are_written_together_it_is_what_each_adds(ids, monkeypatch):
    for length, like in ((1, "delta tokens"), (4, None)):
        monkeypatch.setitem(MEMORIES, "together", {"memory": {**TOGETHER, "segment_length": length}})
        recorded = [read(build("together"), ids, size)[0].take_writes()[1] for size in (1, 7, TOKENS)]
        for one in recorded[1:]:
            torch.testing.assert_close(one.change, recorded[0].change)
            torch.testing.assert_close(one.strength, recorded[0].strength)
        assert recorded[0].change.shape == (2, TOKENS - TOKENS % length)
        if like:
            torch.testing.assert_close(recorded[0].change, read(build(like), ids, 7)[0].take_writes()[1].change)
    model = build("together")
    session = Session(model)
    session.read(ids[:, :6])  # two tokens of a segment that the recording finishes
    with record_memory(model) as trace:
        session.read(ids[:, 6:])
    torch.testing.assert_close(trace.take_writes()[1].change, recorded[0].change[:, 6:])
    # The four tokens of the first segment, written into nothing: least squares in the words of the definition.
    model = build("together")
    memory, seen = model.model.layers[1].self_attn.memory.memory, []
    with memory.watch(lambda run, before: seen.append(run)):
        Session(model).read(ids[:, :4])
    keys, values, strength = (part[0].double() for part in (seen[0].keys, seen[0].values, seen[0].strength))
    inverse = torch.linalg.inv(keys @ keys.mT + torch.diag_embed((1 - strength) / strength.clamp(min=1e-9)))
    wanted = (inverse @ values).norm(dim=-1) * keys.norm(dim=-1)
    torch.testing.assert_close(recorded[0].change[:, :4].double(), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gated segments", "multi", "orthogonal"])
def test_what_is_recorded_does_not_depend_on_the_chunks(name, ids):
    model = build(name)
    one, other = (read(model, ids, size)[0].take_writes()[1] for size in (1, TOKENS))
    torch.testing.assert_close(one.change, other.change, rtol=2e-4, atol=2e-5)


def test_strength_and_decay_are_those_that_were_used(name, ids):
    model = build(name)
    trace, _, _ = read(model, ids, 8)
    layer = trace.layers[0]
    seen = []
    hook = model.model.layers[layer].self_attn.memory.inputs.register_forward_hook(
        lambda module, args, output: seen.append(output[0])
    )
    Session(model).read(ids)
    hook.remove()
    writes, config = trace.take_writes()[layer], model.config.memory_config_of(layer)
    beta = seen[0].beta
    wanted = torch.full_like(writes.strength, config.write_strength) if beta is None else beta[0]
    torch.testing.assert_close(writes.strength, wanted.detach(), rtol=1e-4, atol=1e-5)
    if config.token_shift:
        assert not writes.strength[:, 0].any()
    assert (writes.decay is None) == (name not in GATED)
    if writes.decay is not None:
        torch.testing.assert_close(writes.decay, seen[0].decay[0].detach(), rtol=1e-4, atol=1e-5)


def test_recording_changes_no_bit_and_leaves_the_model_as_it_was(name, ids):
    model = build(name)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    plain = Session(model)
    silent = [plain.logits(chunk) for chunk in ids.split(5, dim=1)]
    attributes = [set(vars(module)) for module in model.modules()]
    _, recorded, session = read(model, ids, 5)
    for one, other in zip(silent, recorded, strict=True):
        assert torch.equal(one, other)
    for index, layer in plain.memory_layers.items():
        for key, tensor in (layer.memory_state or {}).items():
            assert torch.equal(tensor, session.memory_layers[index].memory_state[key])
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert [set(vars(module)) for module in model.modules()] == attributes


def test_an_error_while_recording_leaves_the_model_as_it_was(ids):
    model = build("delta tokens")
    attributes = [set(vars(module)) for module in model.modules()]
    with pytest.raises(ZeroDivisionError), record_memory(model):
        raise ZeroDivisionError
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(module._forward_hooks for module in model.modules())


def test_taking_begins_anew(ids):
    model = build("linear segments")
    session = Session(model)
    with record_memory(model) as trace:
        session.read(ids[:, :8])
        assert trace.take_writes()[1].change.shape == (2, 8)
        assert trace.take_writes() == {}
        session.read(ids[:, 8:])
        assert trace.take_writes()[1].change.shape == (2, TOKENS - 8)


def test_a_frozen_memory_writes_nothing(ids):
    model = build("gated tokens")
    for branch in writing_branches(model).values():
        branch.memory.freeze()
    trace, _, _ = read(model, ids, 6)
    writes = trace.take_writes()[1]
    assert not writes.change.any() and not writes.strength.any()
    assert (writes.decay == 1).all()
    assert writes.change.shape == (2, TOKENS)


def test_what_a_state_holds(ids):
    model = build("linear segments")
    _, _, session = read(model, ids, 6)
    state = session.memory_layers[1].memory_state
    held = held_state(state, 2)
    assert held.norm == pytest.approx(state["M"][0].flatten(1).norm(dim=1).tolist(), rel=1e-5)
    assert held.z_norm == pytest.approx(state["z"][0].norm(dim=1).tolist(), rel=1e-5)
    values = torch.linalg.svdvals(state["M"][0].double())
    shares = values / values.sum(dim=1, keepdim=True)
    ranks = torch.exp(-(shares * shares.log()).sum(dim=1)).tolist()
    assert held.effective_rank == pytest.approx(ranks, rel=1e-4)


def test_several_matrices_of_a_head_are_put_together(name, ids):
    model = build(name)
    trace, _, session = read(model, ids, 6)
    layer = trace.layers[0]
    state = session.memory_layers[layer].memory_state
    held = held_state(state, 2)
    matrix = to_dense(state)["M"][0]
    assert held.norm == pytest.approx(matrix.flatten(1).norm(dim=1).tolist(), rel=1e-5)
    assert all(1 <= rank <= min(matrix.shape[-2:]) for rank in held.effective_rank)
    assert (held.z_norm is None) == ("z" not in state)


def test_an_empty_state_holds_nothing():
    model = build("banks")
    held = held_state(model.model.memory_branches()[1].init_state(1), 2)
    assert held.norm == held.effective_rank == held.z_norm == [0.0, 0.0]


def test_gates_are_the_memorys_share_of_a_head():
    model = build("linear segments")
    with torch.no_grad():
        model.model.layers[1].self_attn.memory_gate.weight.copy_(torch.tensor([0.0, 100.0, -100.0, 0.5]))
    assert gates(model)[1] == pytest.approx([0.5, 1.0, 0.0, 0.6224593], abs=1e-6)
    assert gates(build("alone")) == gates(build("delta tokens")) == {}


def test_how_large_an_added_memory_is(ids):
    model = build("shared")
    trace, _, _ = read(model, ids, TOKENS)
    shares = trace.take_shares()
    seen = {}
    hooks = [
        getattr(model.model.layers[layer].self_attn, part).register_forward_hook(
            lambda module, args, output, key=(layer, part): seen.update({key: output[0].norm(dim=-1).mean().item()})
        )
        for layer in (0, 2)
        for part in ("o_proj", "memory_o_proj")
    ]
    Session(model).read(ids)
    for hook in hooks:
        hook.remove()
    wanted = {layer: seen[layer, "memory_o_proj"] / seen[layer, "o_proj"] for layer in (0, 2)}
    assert shares == pytest.approx(wanted, rel=1e-4)
    assert trace.take_shares() == {0: 0.0, 2: 0.0}


def test_models_without_a_memory_are_refused():
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    bare = SenriForCausalLM(SenriConfig(**sizes, num_attention_heads=2, memory_layers=[]))
    for model in (llama, bare):
        with pytest.raises(SenriError, match="no memory to look into"), record_memory(model):
            pass


class Letters:
    """A tokenizer of one token a character."""

    def __call__(self, text, *, add_special_tokens, verbose):
        return {"input_ids": [ord(character) % 101 for character in text]}

    def decode(self, ids, **_):
        return "".join(chr(number) if number > 31 else "-" for number in ids)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("THE <B> OF A TEXT & MORE OF IT THAT IS READ. " * 4)
    return str(path)


def settings(text: str | None, **changes: object) -> MemorySettings:
    values = {"tokens": 50, "chunk_size": 7, "every": 20, "shown_tokens": 30, "block_characters": 64}
    return MemorySettings(text=text, **{**values, **changes})


def measure(model: SenriForCausalLM, chosen: MemorySettings, session: Session | None = None):
    subject = Subject(model, Letters(), "tiny", session=session)
    (unit,) = memory_units(subject, chosen)
    advanced = []
    result = unit.run(Scratch(None, float("inf"), advanced.append))
    assert sum(advanced) == unit.size
    assert max(advanced) <= chosen.chunk_size
    return memory_outcome(subject, chosen, [json.loads(json.dumps(result))])


def test_the_part_shows_every_memory(name, text):
    model = build(name)
    outcome = measure(model, settings(text))
    looks = outcome.results["looks"]
    assert [look["tokens"] for look in looks] == [20, 40, 50]
    layer = str(min(model.config.memory_layers))
    assert all(list(look["layers"]) == [layer] for look in looks)
    assert looks[0]["layers"][layer]["norm"] != looks[1]["layers"][layer]["norm"]
    assert (looks[0]["layers"][layer]["decay"] is None) == (name not in GATED)
    assert outcome.counts == {"readings": 1, "tokens": 50, "looks": 3, "shown_tokens": 30}
    assert [row[0] for row in outcome.tables[0].rows] == [str(one) for one in model.config.memory_layers]
    assert all(len(row) == len(outcome.tables[0].columns) for row in outcome.tables[0].rows)
    assert not outcome.warnings
    assert "&lt;" in outcome.html and "<B>" not in outcome.html
    titles = {axes.get_title(loc="left") for axes in outcome.pictures[0].figure.axes}
    combine = model.config.memory_config_of(int(layer)).combine
    assert ("gate: the memory's share of a head, in percent" in titles) == (combine == "gate")
    assert ("norm of the memory's output / attention's" in titles) == (combine == "add")
    assert ("decay (alpha)" in titles) == (name in GATED)


def test_what_is_shown_are_the_last_tokens_in_units_of_the_mean(text):
    model = build("linear segments")
    outcome = measure(model, settings(text))
    ids = Letters()(Path(text).read_text(), add_special_tokens=False, verbose=False)["input_ids"][:50]
    change = read(model, torch.tensor([ids]), 50)[0].take_writes()[1].change
    wanted = (change / change.mean(dim=1, keepdim=True)).mean(dim=0)[-30:].tolist()
    shown = outcome.results["shown"]
    assert shown["ids"] == ids[-30:]
    assert shown["strengths"]["1"] == pytest.approx(wanted, abs=1e-3)
    means = [look["layers"]["1"]["change"] for look in outcome.results["looks"]]
    for part, mean in zip(change.split(20, dim=1), means, strict=True):
        assert mean == pytest.approx(part.mean(dim=1).tolist(), rel=1e-3)


def test_a_session_goes_on_and_a_short_text_is_read_whole(text, ids):
    model = build("delta tokens")
    session = Session(model)
    session.read(ids)
    outcome = measure(model, settings(text, tokens="all", every=100), session)
    assert [look["tokens"] for look in outcome.results["looks"]] == [TOKENS + 100, TOKENS + 180]
    assert session.tokens_read == TOKENS


def test_an_empty_memory_is_a_warning(text):
    model = build("linear tokens")
    for branch in writing_branches(model).values():
        branch.memory.freeze()
    assert "nothing stands in M" in measure(model, settings(text)).warnings[0]


def test_the_part_refuses_models_without_a_memory(text):
    other = SimpleNamespace(name="base", is_senri=False)
    with pytest.raises(SenriError, match="base has no memory"):
        memory_units(other, settings(text))


@pytest.mark.parametrize("field", ["tokens", "chunk_size", "every", "shown_tokens", "block_characters"])
def test_wrong_settings_are_refused(field):
    with pytest.raises(SenriError, match=f"{field} is 0"):
        settings(None, **{field: 0})


@pytest.mark.parametrize("shown", [30, 60])  # the last tokens, and all fifty
def test_what_is_shown_of_a_memory_that_waits_stands_at_its_own_token(text, shown):
    late, plain = build("late tokens"), build("delta tokens")
    weights = late.state_dict()
    taps = "model.layers.1.self_attn.memory.inputs.conv_k.weight"
    weights[taps][:, -2:] = 0
    plain.load_state_dict(weights | {taps: weights[taps][:, :-2]})
    one, other = (
        torch.tensor(measure(model, settings(text, shown_tokens=shown)).results["shown"]["strengths"]["1"])
        for model in (late, plain)
    )
    assert len(one) == len(other) == min(shown, 50)
    assert not one[-5:].any() and one[1:-5].all()
    torch.testing.assert_close(one[:-5] / one[1], other[:-5] / other[1], atol=0, rtol=2e-2)
