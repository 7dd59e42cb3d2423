"""What every memory must do, whatever its kind: one matrix of behaviours over all memories of the registry."""

import itertools

import pytest
import torch

from senri.errors import SenriError
from senri.memory import MEMORIES, Header, MemoryConfig, MemoryState, build_memory, resolve_config, state_bytes

TOKEN_L2 = {"feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token"}
CASES = {
    "tensor": {"type": "tensor"},
    "banks": {"type": "tensor", "options": {"num_memory_banks": 3, "segments_per_bank": 2}},
    "banks_delta_token": {"type": "tensor", "rule": "delta", **TOKEN_L2, "options": {"num_memory_banks": 2}},
    "banks_gated": {"type": "tensor", "rule": "gated_delta", "options": {"num_memory_banks": 2}},
    "least_squares": {"type": "least_squares"},
    "least_squares_elu": {"type": "least_squares", "feature_map": "elu_plus_one", "options": {"ridge": 0.5}},
    "least_squares_sketch": {"type": "least_squares", "options": {"ridge": 0.5, "sketch": 2}},
    "multi": {"type": "multi"},
    "multi_token": {"type": "multi", **TOKEN_L2},
    "multi_linear": {"type": "multi", "rule": "linear", "order": "update_then_retrieve"},
    "multi_gated": {"type": "multi", "rule": "gated_delta", "options": {"num_memories": 2}},
    "multi_learned": {"type": "multi", "options": {"num_memories": 3, "routing": "learned"}},
    "multi_learned_token": {"type": "multi", **TOKEN_L2, "options": {"routing": "learned"}},
    "hierarchical": {"type": "hierarchical"},
    "hierarchical_token": {"type": "hierarchical", **TOKEN_L2, "order": "update_then_retrieve"},
    "orthogonal": {"type": "orthogonal", "options": {"top_k": 2}},
    "orthogonal_delta": {"type": "orthogonal", "rule": "delta", **TOKEN_L2},
    "orthogonal_gated": {"type": "orthogonal", "rule": "gated_delta", "order": "update_then_retrieve"},
}
SHARED = {"tensor", "banks", "multi_linear", "hierarchical", "orthogonal"}
KEY_DIM, VALUE_DIM = 3, 5
every = pytest.mark.parametrize("case", CASES)


def build(case, dtype=torch.float64, **knobs):
    config = resolve_config({"segment_length": 4, **CASES[case], **knobs})
    torch.manual_seed(0)
    memory = build_memory(config, 24, 4, 2, key_dim=KEY_DIM, value_dim=VALUE_DIM).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in memory.named_parameters():
            if name in ("gate_weight", "gate_bias", "attention_scale", "norm_weight"):
                parameter.add_(torch.randn_like(parameter))  # so that a wrong read weight shows
    return memory


def empty(memory, batch):
    state = memory.init_state(batch)
    dtype = next(memory.parameters(), torch.zeros((), dtype=torch.float64)).dtype
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in state.items()}


def part(tensors, begin, end):
    return {name: tensor[:, :, begin:end] for name, tensor in tensors.items()}


def assert_same(got, wanted, tolerance=1e-10):
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, atol=tolerance, rtol=1e-9)


def test_the_matrix_covers_the_registry():
    assert {case["type"] for case in CASES.values()} == set(MEMORIES)


@every
@pytest.mark.parametrize("scope", ("sequence", "batch"))
@pytest.mark.parametrize("batch", (1, 8))
def test_a_scan_equals_its_steps_and_any_cut(case, scope, batch, inputs):
    if scope == "batch" and case not in SHARED:
        return
    memory = build(case, scope=scope)
    tensors = inputs(memory, batch, seq=27)
    whole, wanted = memory.scan(state=empty(memory, batch), **tensors)
    assert whole.any()
    for cuts in ((0, 5, 27), (0, 4, 8, 12, 27), tuple(range(28))):
        state, outs = empty(memory, batch), []
        for begin, end in itertools.pairwise(cuts):
            out, state = memory.scan(state=state, **part(tensors, begin, end))
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 2), whole, atol=1e-9, rtol=1e-9)
        assert_same(state, wanted, 1e-9)


@every
def test_padding_is_as_if_it_were_not_there(case, inputs):
    memory = build(case)
    tensors = inputs(memory, batch=3, seq=19)
    mask = torch.ones(3, 19, dtype=torch.bool)
    mask[1, :6] = False
    mask[2, [0, 3, 4, 11, 18]] = False
    out, state = memory.scan(state=empty(memory, 3), mask=mask, **tensors)
    asked = {**tensors}.pop("q")[:, :, -1:]
    reads = memory.read(asked, state)
    for row in range(3):
        alone = {name: x[row : row + 1, :, mask[row]] for name, x in tensors.items()}
        wanted, alone_state = memory.scan(state=empty(memory, 1), **alone)
        torch.testing.assert_close(out[row : row + 1][:, :, mask[row]], wanted)
        assert not out[row][:, ~mask[row]].any()
        torch.testing.assert_close(reads[row : row + 1], memory.read(asked[row : row + 1], alone_state))


@every
def test_write_returns_the_state_of_scan(case, inputs):
    memory = build(case)
    tensors = inputs(memory, batch=2, seq=11)
    _, wanted = memory.scan(state=empty(memory, 2), **tensors)
    tensors.pop("q")
    assert_same(memory.write(state=empty(memory, 2), **tensors), wanted, 0)


@every
@pytest.mark.parametrize("scope", ("sequence", "batch"))
def test_read_answers_as_a_token_that_writes_nothing(case, scope, inputs):
    if scope == "batch" and case not in SHARED:
        return
    memory = build(case, scope=scope)
    _, state = memory.scan(state=empty(memory, 2), **inputs(memory, batch=2, seq=10))
    silent = inputs(memory, batch=2, seq=1, seed=5)
    silent["beta"].zero_()
    if "decay" in silent:
        silent["decay"].fill_(1.0)
    out, _ = memory.scan(state=state, **silent)
    torch.testing.assert_close(memory.read(silent["q"], state), out)


@every
def test_no_output_depends_on_the_future_and_some_on_the_past(case, inputs):
    memory = build(case)
    tensors = inputs(memory, batch=2, seq=14)
    out, _ = memory.scan(state=empty(memory, 2), **tensors)
    for t in range(14):
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        for name in changed:
            changed[name][:, :, t] *= -0.5 if name in ("q", "k", "v") else 0.5
        moved, _ = memory.scan(state=empty(memory, 2), **changed)
        assert torch.equal(moved[:, :, :t], out[:, :, :t])
        if t == 0:
            assert not torch.allclose(moved[:, :, 5:], out[:, :, 5:])


@every
def test_rows_never_leak(case, inputs):
    memory = build(case)
    one, two = inputs(memory, 2, 11, seed=1), inputs(memory, 2, 11, seed=2)
    mixed = {name: torch.stack([one[name][0], two[name][1]]) for name in one}
    out_one, state_one = memory.scan(state=empty(memory, 2), **one)
    out_mixed, state_mixed = memory.scan(state=empty(memory, 2), **mixed)
    torch.testing.assert_close(out_one[0], out_mixed[0])
    assert not torch.allclose(out_one[1], out_mixed[1])
    q = one["q"][:1]
    first_rows = [{name: x[:1] for name, x in state.items()} for state in (state_one, state_mixed)]
    torch.testing.assert_close(memory.read(q, first_rows[0]), memory.read(q, first_rows[1]))


@every
def test_reset_forgets_everything(case, inputs):
    memory = build(case, torch.float32)
    tensors = {name: x.float() for name, x in inputs(memory, 1, 9).items()}
    memory.update(tensors["k"], tensors["v"])
    first = memory.retrieve(tensors["q"])
    assert first.any()
    memory.update(tensors["v"][..., :KEY_DIM].contiguous(), tensors["v"])
    assert not torch.allclose(memory.retrieve(tensors["q"]), first)
    memory.reset()
    assert not memory.retrieve(tensors["q"]).any()
    memory.update(tensors["k"], tensors["v"])
    assert torch.equal(memory.retrieve(tensors["q"]), first)


@every
def test_saved_and_loaded_it_goes_on_as_if_it_had_not_stopped(case, inputs, tmp_path):
    memory = build(case, torch.float32)
    tensors = {name: x.float() for name, x in inputs(memory, 2, 23).items()}
    whole, _ = memory.scan(state=memory.init_state(2), **tensors)
    _, state = memory.scan(state=memory.init_state(2), **part(tensors, 0, 13))
    kept = MemoryState({3: state}, Header("memory", "base", "0" * 64, "float32", 13, memory.config.rule, case))
    kept.save(tmp_path / "kept.senri")
    loaded = MemoryState.load(tmp_path / "kept.senri")
    assert loaded.nbytes == kept.nbytes == state_bytes(state)
    rest, _ = memory.scan(state=loaded.layers[3], **part(tensors, 13, 23))
    torch.testing.assert_close(rest, whole[:, :, 13:], atol=1e-5, rtol=1e-5)
    assert torch.equal(rest, memory.scan(state=state, **part(tensors, 13, 23))[0])
    assert len(loaded.inspect()) == len(kept.inspect()) > 0
    assert all(row.difference == 0 and row.cosine > 0.99 for row in loaded.diff(kept) if row.norm)


@every
def test_gradients_are_those_of_finite_differences(case, inputs):
    memory = build(case)
    tensors = inputs(memory, batch=1, seq=6)
    leaves = [x.requires_grad_() for x in tensors.values()] + [p for p in memory.parameters() if p.requires_grad]

    def outputs(*given):
        out, state = memory.scan(state=empty(memory, 1), **dict(zip(tensors, given, strict=False)))
        return out, *(x for x in state.values() if x.is_floating_point() and x.requires_grad)

    assert torch.autograd.gradcheck(outputs, leaves, atol=1e-6)
    reached = torch.autograd.grad(outputs(*leaves)[0].square().sum(), leaves, allow_unused=True)
    assert all(grad is not None and grad.isfinite().all() for grad in reached)


@every
def test_a_frozen_memory_reads_and_does_not_change(case, inputs):
    memory = build(case)
    tensors = inputs(memory, batch=2, seq=10)
    _, state = memory.scan(state=empty(memory, 2), **tensors)
    before = {name: x.clone() for name, x in state.items()}
    memory.freeze()
    more = inputs(memory, batch=2, seq=7, seed=3)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 0] = False
    out, same = memory.scan(state=state, mask=mask, **more)
    assert_same(same, before, 0)
    torch.testing.assert_close(out[:, :, 1:], memory.read(more["q"], state)[:, :, 1:])
    assert not out[0, :, 0].any()
    more.pop("q")
    assert_same(memory.write(state=state, **more), before, 0)
    memory.unfreeze()
    assert not torch.equal(memory.write(state=state, **more)["count"], before["count"])


@every
def test_a_frozen_notebook_memory_keeps_what_it_holds(case, inputs):
    memory = build(case, torch.float32, clean_every=1)
    tensors = {name: x.float() for name, x in inputs(memory, 1, 9).items()}
    memory.update(tensors["k"], tensors["v"])
    before = {name: x.clone() for name, x in memory.state.items()}
    memory.freeze()
    memory.update(tensors["v"][..., :KEY_DIM].contiguous(), tensors["v"])
    assert_same(memory.state, before, 0)


@every
def test_cleaning_keeps_the_strongest_directions(case, inputs):
    memory = build(case)
    tensors = inputs(memory, batch=2, seq=40)
    _, state = memory.scan(state=empty(memory, 2), **tensors)
    cleaned, stats = memory.clean(state, 1.0, max_rank=1)
    assert stats.original_rank >= 2
    assert stats.retained_rank == 1
    assert torch.linalg.matrix_rank(cleaned["M"]).max() == 1
    untouched, _ = memory.clean(state, 1.0)
    torch.testing.assert_close(untouched["M"], state["M"])
    assert memory.scan(state=cleaned, **tensors)[0].isfinite().all()


@every
def test_a_bfloat16_model_keeps_a_float32_state(case, inputs):
    memory = build(case, torch.bfloat16)
    tensors = {name: x.bfloat16() for name, x in inputs(memory, batch=2, seq=11).items()}
    out, state = memory.scan(state=memory.init_state(2), **tensors)
    assert out.dtype == torch.bfloat16
    assert {x.dtype for x in state.values()} <= {torch.float32, torch.int64, torch.bool}
    exact = {name: x.float() for name, x in tensors.items()}
    wanted, wanted_state = memory.float().scan(state=memory.init_state(2), **exact)
    assert_same(state, wanted_state, 1e-6)
    torch.testing.assert_close(out, wanted.bfloat16(), atol=1e-6, rtol=0.01)


@every
def test_an_empty_memory_reads_zeros_and_empty_input_changes_nothing(case, inputs):
    memory = build(case)
    tensors = inputs(memory, batch=2, seq=3)
    state = empty(memory, 2)
    assert not memory.read(tensors["q"], state).any()
    out, same = memory.scan(state=state, **part(tensors, 0, 0))
    assert out.shape == (2, 4, 0, VALUE_DIM)
    assert_same(same, state, 0)
    masked, same = memory.scan(state=state, mask=torch.zeros(2, 3, dtype=torch.bool), **tensors)
    assert not masked.any()
    assert_same(same, state, 0)


@every
def test_a_full_memory_keeps_its_size(case, inputs):
    memory = build(case)
    sizes = []
    state = empty(memory, 1)
    for seed in range(6):
        _, state = memory.scan(state=state, **inputs(memory, 1, 64, seed=seed))
        sizes.append(state_bytes(state))
    assert sizes[-1] == sizes[2]
    table = state["touched"].nbytes if "touched" in state else 0
    assert sizes[-1] <= state_bytes(memory.allocate(state)) + table


@every
def test_states_of_the_linear_rule_add_up(case, inputs):
    memory = build(case)
    states = [memory.write(state=empty(memory, 1), **_without_q(inputs(memory, 1, 8, seed=seed))) for seed in (1, 2)]
    if memory.config.rule != "linear":
        with pytest.raises(SenriError, match="cannot be merged"):
            memory.merge(states)
        return
    merged = memory.merge(states)
    assert merged["count"].item() == 16
    total = sum(memory.allocate(state)["M"] for state in states)
    torch.testing.assert_close(memory.allocate(merged)["M"], total)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "mutli"}, "did you mean 'multi'"),
        ({"type": "multi", "options": {"num_memory": 2}}, r"memory\.options\.num_memory'.*did you mean 'num_memories'"),
        ({"type": "multi", "options": {"num_memories": 0}}, r"num_memories is 0, but it must be at least 1"),
        ({"type": "multi", "options": {"num_memories": 2.5}}, r"num_memories is 2.5 \(float\), but it must be int"),
        ({"type": "multi", "options": {"routing": "lerned"}}, "did you mean 'learned'"),
        ({"type": "hierarchical", "options": {"expansion_threshold": 2.0}}, "expansion_threshold is 2.0"),
        ({"type": "orthogonal", "options": {"top_k": 0}}, "top_k is 0"),
        ({"options": {"segments_per_bank": 0}}, "segments_per_bank is 0"),
        ({"options": [1]}, "a section of names and values"),
    ],
)
def test_wrong_options_are_named(values, message):
    with pytest.raises(SenriError, match=message):
        resolve_config(values)


def test_the_delta_rule_is_the_default_of_multi_memories():
    assert resolve_config({"type": "multi"}).rule == resolve_config({"type": "hierarchical"}).rule == "delta"
    assert resolve_config({"type": "multi", "rule": "linear"}).rule == "linear"
    assert resolve_config({}).rule == MemoryConfig().rule == "linear"


def _without_q(tensors):
    tensors.pop("q")
    return tensors
