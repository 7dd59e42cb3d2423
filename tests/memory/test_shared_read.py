"""Layers that read another layer's state: as causal, as exact and as trainable as the layer that writes it."""

import copy
import itertools

import pytest
import torch
from transformers import DynamicCache

from senri.errors import SenriError
from senri.memory import MemoryConfig
from senri.memory.branch import MemoryBranch
from senri.memory.shared_read import SharedReader
from senri.memory.sparse import to_dense
from senri.mixers.cache_senri import SenriMemoryLayer
from senri.models import SenriConfig, SenriForCausalLM, Session

SIZES = {"hidden_size": 12, "num_heads": 4, "num_key_value_heads": 2, "key_dim": 3, "value_dim": 5}
TOKENS = {"rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token"}
KINDS = {
    "delta": TOKENS,
    "segments": {"rule": "linear", "order": "update_then_retrieve"},
    "gated": {"rule": "gated_delta", "learned_write_strength": True, "write_strength": 0.5},
    "convolved": {**TOKENS, "short_convolution": 3, "token_shift": True},
    "whitened": {**TOKENS, "whitened_inputs": True},
    "gated_keys": {**TOKENS, "short_convolution": 3, "convolution_mean": 0.5, "convolution_gates": True},
    "banks": {"rule": "delta", "options": {"num_memory_banks": 2, "segments_per_bank": 1}},
    "multi": {"type": "multi", "options": {"num_memories": 2, "routing": "learned"}},
    "hierarchical": {"type": "hierarchical", **TOKENS},
    "orthogonal": {"type": "orthogonal", "options": {"top_k": 2}},
}
every = pytest.mark.parametrize("kind", KINDS)
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def pair(kind):
    """A writing branch and a reader of its state, in float64."""
    torch.manual_seed(0)
    config = MemoryConfig(state="shared", projections="own", segment_length=4, **KINDS[kind])
    modules = MemoryBranch(config, **SIZES), SharedReader(config, **SIZES)
    return tuple(module.double().eval() for module in modules)


def fresh(module, batch):
    state = module.init_state(batch)
    return {name: x.double() if x.is_floating_point() else x for name, x in state.items()}


def texts(batch=2, seq=15):
    """What the writing layer and the reading layer see of the same tokens."""
    return torch.randn(2, batch, seq, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).unbind(0)


def padded(batch=2, seq=15):
    mask = torch.ones(batch, seq, dtype=torch.bool)
    mask[0, :4] = mask[1, 6] = False
    return mask


def run(writer, reader, hidden, reading, cuts, mask=None):
    written, past, outs = fresh(writer, hidden.shape[0]), fresh(reader, hidden.shape[0]), []
    for begin, end in itertools.pairwise(cuts):
        piece = None if mask is None else mask[:, begin:end]
        _, written, write = writer.run(hidden[:, begin:end], written, mask=piece)
        out, past = reader(reading[:, begin:end], past, write, piece)
        outs.append(out)
    return torch.cat(outs, dim=2), written, past


@every
@pytest.mark.parametrize("with_padding", (False, True))
@pytest.mark.parametrize("cuts", ((0, 15), (0, 5, 15), (0, 4, 8, 12, 15), tuple(range(16))), ids=len)
def test_a_reader_asks_what_the_writer_wrote_with_its_own_queries(kind, with_padding, cuts):
    writer, reader = pair(kind)
    hidden, reading = texts()
    mask = padded() if with_padding else None
    got, written, _ = run(writer, reader, hidden, reading, cuts, mask)
    start = fresh(writer, 2)
    tokens, inputs = writer.inputs(hidden, start, None, mask)
    q, _ = reader.inputs(reading, fresh(reader, 2), mask)
    memory_state = {name: x for name, x in start.items() if name not in inputs}
    wanted, after = writer.memory.scan(q, tokens.k, tokens.v, memory_state, tokens.beta, tokens.decay, mask)
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
    assert wanted.any()
    for name, tensor in to_dense(after).items():
        torch.testing.assert_close(to_dense(written)[name], tensor, atol=1e-10, rtol=0)


@every
def test_a_reader_with_the_writers_queries_reads_what_the_writer_reads(kind):
    writer, reader = pair(kind)
    for name, parameter in reader.inputs.named_parameters():
        parameter.data.copy_(writer.inputs.get_parameter(name))
    hidden, _ = texts()
    out, _, write = writer.run(hidden, fresh(writer, 2))
    assert torch.equal(reader(hidden, fresh(reader, 2), write)[0], out)


@every
def test_gradients_of_a_read_reach_the_writers_projections_and_its_input(kind):
    writer, reader = pair(kind)
    hidden, reading = (x.requires_grad_() for x in texts())
    out = run(writer, reader, hidden, reading, (0, 6, 15))[0]
    names = ["k_proj.weight", "v_proj.weight", *(["beta_proj.weight", "decay_proj.weight"] if kind == "gated" else [])]
    leaves = [hidden, reading, reader.inputs.q_proj.weight, *(writer.inputs.get_parameter(name) for name in names)]
    gradients = torch.autograd.grad(out.square().sum(), [*leaves, writer.inputs.q_proj.weight], allow_unused=True)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients[:-1])
    assert gradients[-1] is None or not gradients[-1].any()


@every
def test_under_a_frozen_writer_a_reader_reads_the_state_as_it_is(kind):
    writer, reader = pair(kind)
    hidden, reading = texts()
    state = run(writer, reader, hidden, reading, (0, 15))[1]
    writer.memory.freeze()
    more, asking = (x[:, :5] for x in (reading, hidden))
    _, after, write = writer.run(more, state)
    memory_state = {name: x for name, x in state.items() if name not in writer.inputs.init_state(2)}
    assert all(torch.equal(after[name], x) for name, x in memory_state.items())
    past = fresh(reader, 2)
    got = reader(asking, past, write)[0]
    q, _ = reader.inputs(asking, past, None)
    assert torch.equal(got, writer.memory.read(q, memory_state))
    assert got.any()


def test_a_reader_without_its_writer_says_so():
    _, reader = pair("delta")
    with pytest.raises(SenriError, match="without the layer that writes it"):
        reader(texts()[1], fresh(reader, 2), None)


def test_a_reader_keeps_nothing_but_the_past_of_its_convolution():
    assert pair("delta")[1].init_state(2) == {}
    assert {name: x.shape for name, x in pair("convolved")[1].init_state(2).items()} == {"conv_q": (2, 2, 12)}


MODELS = {
    "add": {"combine": "add", "num_heads": 2, "num_key_value_heads": 2, "key_dim": 8, "value_dim": 12, **TOKENS},
    "add_multi": {"combine": "add", "type": "multi", "segment_length": 4, "options": {"num_memories": 2}},
    "gate": {"combine": "gate", "rule": "linear", "segment_length": 4, "gate_init": 0.0},
    "alone": {"combine": "alone", "rule": "delta", "segment_length": 4},
    "convolved": {"combine": "add", "short_convolution": 3, "token_shift": True, **TOKENS},
}
every_model = pytest.mark.parametrize("kind", MODELS)


def build(kind, layers=(0, 2), **memory):
    config = SenriConfig(
        vocab_size=53, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, sliding_window=6,
        default_layer_type="sliding_attention", memory_layers=list(layers),
        memory={"state": "shared", "projections": "own", **MODELS[kind], **memory},
    )  # fmt: skip
    torch.manual_seed(0)
    model = SenriForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "memory_o_proj" in name:  # a fresh one adds nothing; here it must
                parameter.normal_(std=0.5)
    return model


@pytest.fixture
def ids():
    return torch.randint(0, 53, (2, 23), generator=torch.Generator().manual_seed(1))


def in_chunks(model, ids, size, cache):
    chunks = ids.split(size, dim=1)
    return torch.cat([model(chunk, past_key_values=cache, use_cache=True).logits for chunk in chunks], dim=1)


@every_model
def test_a_session_keeps_one_state_for_all_layers_that_share_it(kind, ids, tmp_path):
    model = build(kind, layers=(0, 1, 2))
    session = Session(model, batch_size=2)
    session.logits(ids[:, :14])
    layers = session.get_memory_state().layers
    matrices = {index: "M" in state for index, state in layers.items()}
    assert matrices == {0: True} | ({1: False, 2: False} if kind == "convolved" else {})
    session.save(tmp_path / "shared.senri")
    rest = session.logits(ids[:, 14:])
    torch.testing.assert_close(rest, model(ids).logits[:, 14:], **TOLERANCE)
    assert torch.equal(Session.load(tmp_path / "shared.senri", model).logits(ids[:, 14:]), rest)


@torch.no_grad()
@every_model
@pytest.mark.parametrize("size", (1, 5))
def test_chunks_equal_the_whole(kind, size, ids):
    model = build(kind)
    torch.testing.assert_close(
        in_chunks(model, ids, size, DynamicCache(config=model.config)), model(ids).logits, **TOLERANCE
    )


@torch.no_grad()
@every_model
def test_the_reading_layer_depends_on_what_the_writing_layer_keeps(kind, ids):
    model = build(kind)
    before = model(ids).logits
    attention = model.model.layers[0].self_attn
    cut_off = [p for name, p in attention.named_parameters() if "memory_o_proj" in name or "gate" in name]
    for parameter in cut_off:  # the writing layer itself no longer uses its memory
        parameter.fill_(0.0 if parameter.dim() == 2 else -100.0)
    if not cut_off:
        attention.o_proj.weight.zero_()
    without = model(ids).logits
    attention.memory.inputs.v_proj.weight.mul_(-0.5)
    assert not torch.allclose(without, before)
    assert not torch.allclose(model(ids).logits[:, 8:], without[:, 8:], **TOLERANCE)


@every_model
def test_gradient_checkpointing_gives_the_same_gradients(kind, ids):
    model = build(kind, layers=(0, 1, 2)).train()

    def gradients():
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    wanted = gradients()
    assert all(wanted[f"model.layers.0.self_attn.memory.inputs.{name}.weight"].any() for name in ("k_proj", "v_proj"))
    model.activation_checkpointing_enable({"use_reentrant": False})
    got = gradients()
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@every_model
def test_checkpointing_that_would_lose_gradients_is_refused(kind, ids):
    model = build(kind, layers=(0, 1, 2)).train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    loss = model(ids, labels=ids, use_cache=False).loss
    with pytest.raises(SenriError, match="'use_reentrant': False"):
        loss.backward()


@torch.no_grad()
@every_model
def test_a_frozen_model_keeps_its_state_and_still_answers_from_it(kind, ids):
    model = build(kind)
    session = Session(model, batch_size=2)
    session.logits(ids[:, :12])
    empty = Session(model, batch_size=2)
    empty.logits(ids[:, :12])
    empty.set_memory_state(Session(model, batch_size=2).get_memory_state())
    before = session.get_memory_state().layers[0]
    model.freeze()
    remembering, forgetting = (one.logits(ids[:, 12:]) for one in (session, empty))
    after = session.get_memory_state().layers[0]
    past = model.model.memory_branches()[0].inputs.init_state(2)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before if name not in past)
    assert not torch.allclose(remembering[:, -1], forgetting[:, -1], **TOLERANCE)
    assert "M" not in empty.get_memory_state().layers.get(0, {}) or not empty.get_memory_state().layers[0]["M"].any()
    model.unfreeze()
    session.logits(ids)
    assert not torch.equal(session.get_memory_state().layers[0]["count"], before["count"])


def test_freezing_a_layer_that_only_reads_is_refused():
    model = build("add")
    for call in (model.freeze, model.unfreeze):
        with pytest.raises(SenriError, match=r"layer 2 writes no memory: those that do are \[0\]"):
            call(layers=[2])
    assert not model.model.memory_branches()[0].memory.frozen
    model.freeze(layers=[0])
    assert model.model.memory_branches()[0].memory.frozen


@torch.no_grad()
@every_model
@pytest.mark.parametrize("removed", (2, 5, 9, 13, 17))
def test_a_crop_over_a_freeze_is_exact(kind, removed, ids):
    model = build(kind)

    def read_on(cache, until):
        """Read to `until`, frozen from token 8 to 16."""
        for begin, end, frozen in ((0, 4, False), (4, 8, False), (8, 16, True), (16, 20, False)):
            model.freeze() if frozen else model.unfreeze()
            if begin < until:
                model(ids[:, begin : min(end, until)], past_key_values=cache, use_cache=True)
        model.unfreeze()
        return cache

    cache = model.model.adopt(DynamicCache(config=model.config))
    cache.activate_past_recording()
    cache = copy.deepcopy(read_on(cache, 20))
    cache.crop(-removed)
    wanted = read_on(model.model.adopt(DynamicCache(config=model.config)), 20 - removed)
    for one, other in zip(cache.layers, wanted.layers, strict=True):
        if isinstance(one, SenriMemoryLayer):
            assert one.memory_state.keys() == other.memory_state.keys()
            for name, tensor in other.memory_state.items():
                torch.testing.assert_close(one.memory_state[name], tensor, **TOLERANCE)
    rest = [in_chunks(model, ids[:, 20 - removed :], 4, one) for one in (cache, wanted)]
    torch.testing.assert_close(*rest, **TOLERANCE)
