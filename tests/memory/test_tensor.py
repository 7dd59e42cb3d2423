"""Properties of TensorMemory: cuts, rows, causality, scopes, gradients, dtypes, emptiness, a million tokens, recall."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from senri.errors import SenriError
from senri.memory import MemoryConfig, TensorMemory, build_memory, state_bytes

KINDS = {
    "linear": {"rule": "linear"},
    "delta": {"rule": "delta"},
    "delta_l2": {"rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm"},
    "gated": {"rule": "gated_delta"},
    "gated_l2": {"rule": "gated_delta", "feature_map": "silu_l2", "normaliser": "rmsnorm"},
}
GRANULARITIES = ("segment", "token")
ORDERS = ("retrieve_then_update", "update_then_retrieve")
ALL = list(itertools.product(KINDS, GRANULARITIES, ORDERS))


def build(kind="linear", granularity="segment", order="retrieve_then_update", **knobs):
    knobs = {"segment_length": 4, **KINDS[kind], **knobs}
    memory = TensorMemory(24, 4, 2, key_dim=3, value_dim=5, granularity=granularity, order=order, **knobs)
    return memory.double()


def part(tensors, begin, end):
    return {name: tensor[:, :, begin:end] for name, tensor in tensors.items()}


def assert_same_state(got, wanted, atol=1e-10):
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, atol=atol, rtol=1e-9)


@pytest.mark.parametrize("kind,granularity,order", ALL)
@pytest.mark.parametrize("scope", ("sequence", "batch"))
def test_cuts_never_show(kind, granularity, order, scope, inputs, empty):
    if scope == "batch" and granularity == "token":
        return
    memory = build(kind, granularity, order, scope=scope)
    tensors = inputs(memory, batch=2, seq=19)
    whole, wanted = memory.scan(state=empty(memory, 2), **tensors)
    for cuts in ((0, 5, 19), (0, 4, 8, 12, 19), (0, 1, 2, 3, 4, 5, 6, 13, 19), tuple(range(20))):
        state, outs = empty(memory, 2), []
        for begin, end in itertools.pairwise(cuts):
            out, state = memory.scan(state=state, **part(tensors, begin, end))
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 2), whole, atol=1e-9, rtol=1e-9)
        assert_same_state(state, wanted)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mask_and_any_cut(data, inputs, empty):
    kind, granularity, order = data.draw(st.sampled_from(ALL))
    memory = build(kind, granularity, order, segment_length=data.draw(st.integers(1, 7)))
    seq = data.draw(st.integers(1, 16))
    cut = data.draw(st.integers(0, seq))
    mask = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=seq, max_size=seq), min_size=2, max_size=2))
    )
    tensors = inputs(memory, batch=2, seq=seq)
    first, state = memory.scan(state=empty(memory, 2), mask=mask[:, :cut], **part(tensors, 0, cut))
    second, state = memory.scan(state=state, mask=mask[:, cut:], **part(tensors, cut, seq))
    for row in range(2):
        alone = {name: tensor[row : row + 1, :, mask[row]] for name, tensor in tensors.items()}
        wanted, wanted_state = memory.scan(state=empty(memory, 1), **alone)
        got = torch.cat([first, second], 2)[row : row + 1]
        torch.testing.assert_close(got[:, :, mask[row]], wanted, atol=1e-9, rtol=1e-9)
        assert not got[:, :, ~mask[row]].any()
        assert_same_state({name: tensor[row : row + 1] for name, tensor in state.items()}, wanted_state)


@pytest.mark.parametrize("kind,granularity,order", ALL)
def test_write_returns_the_state_of_scan(kind, granularity, order, inputs, empty):
    memory = build(kind, granularity, order)
    tensors = inputs(memory, batch=2, seq=11)
    _, wanted = memory.scan(state=empty(memory, 2), **tensors)
    tensors.pop("q")
    got = memory.write(state=empty(memory, 2), **tensors)
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("kind,granularity,order", ALL)
def test_rows_never_leak(kind, granularity, order, inputs, empty):
    memory = build(kind, granularity, order)
    one, two = inputs(memory, 2, 11, seed=1), inputs(memory, 2, 11, seed=2)
    mixed = {name: torch.stack([one[name][0], two[name][1]]) for name in one}
    out_one, state_one = memory.scan(state=empty(memory, 2), **one)
    out_mixed, state_mixed = memory.scan(state=empty(memory, 2), **mixed)
    assert torch.equal(out_one[0], out_mixed[0])
    assert not torch.allclose(out_one[1], out_mixed[1])
    assert all(torch.equal(state_one[name][0], state_mixed[name][0]) for name in state_one)


@pytest.mark.parametrize("kind,granularity,order", ALL)
@pytest.mark.parametrize("scope", ("sequence", "batch"))
def test_no_output_depends_on_the_future(kind, granularity, order, scope, inputs, empty):
    if scope == "batch" and granularity == "token":
        return
    memory = build(kind, granularity, order, scope=scope)
    tensors = inputs(memory, batch=2, seq=11)
    out, _ = memory.scan(state=empty(memory, 2), **tensors)
    for t in range(11):
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        for name in changed:
            changed[name][:, :, t] *= 0.5
        moved, _ = memory.scan(state=empty(memory, 2), **changed)
        assert torch.equal(moved[:, :, :t], out[:, :, :t])


@pytest.mark.parametrize("kind,granularity", list(itertools.product(KINDS, GRANULARITIES)))
def test_orders_differ_in_the_own_token(kind, granularity, inputs, empty):
    own = {}
    for order in ORDERS:
        memory = build(kind, granularity, order)
        tensors = inputs(memory, batch=1, seq=6)
        out, _ = memory.scan(state=empty(memory, 1), **tensors)
        tensors["v"] = tensors["v"].clone()
        tensors["v"][:, :, 5] += 1.0
        moved, _ = memory.scan(state=empty(memory, 1), **tensors)
        own[order] = bool((moved[:, :, 5] != out[:, :, 5]).any())
    assert own == {"retrieve_then_update": False, "update_then_retrieve": True}


@pytest.mark.parametrize("order", ORDERS)
def test_scope_batch_averages_the_updates_of_all_rows(order, inputs, empty):
    memory = build("linear", "segment", order, scope="batch", normaliser="rmsnorm")
    tensors = inputs(memory, batch=3, seq=10)
    out, state = memory.scan(state=empty(memory, 3), **tensors)
    keys = memory._features(tensors["k"], "key")
    writes = torch.einsum("bht,bhtk,bhtv->bthkv", tensors["beta"], keys, tensors["v"]) / (3 * 4)
    torch.testing.assert_close(state["M"], writes[:, :8].sum(dim=(0, 1)).unsqueeze(0))
    assert state["count"].tolist() == [10]
    seen = writes[:, :8].sum(dim=(0, 1)).expand(3, -1, -1, -1)
    if order == "update_then_retrieve":
        seen = seen + writes[:, 8:10].sum(dim=1)
    reads = memory._features(tensors["q"], "query")[:, :, 9]
    last = torch.einsum("bhk,bhkv->bhv", reads, seen.repeat_interleave(2, dim=1))
    last = last / (last.square().mean(-1, keepdim=True) + memory.config.eps).sqrt()
    torch.testing.assert_close(out[:, :, 9], last)


def test_scope_batch_averages_what_the_rows_decays_leave(inputs, empty):
    memory = build("gated", scope="batch")
    tensors = inputs(memory, batch=2, seq=8)
    tensors["beta"][:, :, 4:] = 0.0
    _, before = memory.scan(state=empty(memory, 2), **part(tensors, 0, 4))
    _, after = memory.scan(state=before, **part(tensors, 4, 8))
    left = tensors["decay"][:, :, 4:].prod(dim=2).mean(dim=0)
    torch.testing.assert_close(after["M"], before["M"] * left[None, :, None, None])


@pytest.mark.parametrize("kind,granularity,order", ALL)
@pytest.mark.parametrize("scope", ("sequence", "batch"))
def test_read_answers_as_a_token_that_writes_nothing(kind, granularity, order, scope, inputs, empty):
    if scope == "batch" and granularity == "token":
        return
    memory = build(kind, granularity, order, scope=scope)
    _, state = memory.scan(state=empty(memory, 2), **inputs(memory, batch=2, seq=10))
    silent = inputs(memory, batch=2, seq=1, seed=5)
    silent["beta"].zero_()
    if "decay" in silent:
        silent["decay"].fill_(1.0)
    out, _ = memory.scan(state=state, **silent)
    torch.testing.assert_close(memory.read(silent["q"], state), out)


def test_scope_batch_of_one_row_scales_by_the_segment(inputs, empty):
    shared, own = build("linear", scope="batch"), build("linear")
    tensors = inputs(shared, batch=1, seq=8)
    _, shared_state = shared.scan(state=empty(shared, 1), **tensors)
    _, own_state = own.scan(state=empty(own, 1), **tensors)
    torch.testing.assert_close(shared_state["M"] * 4, own_state["M"])
    torch.testing.assert_close(shared_state["z"] * 4, own_state["z"])


def written_tokens(memory, tensors, state, at):
    """Which tokens' values the outputs of position `at` have a gradient to."""
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    out, _ = memory.scan(state=state, **tensors)
    names = list(tensors)
    grads = torch.autograd.grad(out[:, :, at].sum(), [tensors[n] for n in names], allow_unused=True)
    return {
        name: set()
        if grad is None
        else set(grad.abs().sum(dim=(0, 1, *range(3, grad.dim()))).nonzero().flatten().tolist())
        for name, grad in zip(names, grads, strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "granularity,order,gradient,tokens",
    [
        ("segment", "retrieve_then_update", "full", range(8)),
        ("segment", "retrieve_then_update", "segment", range(4, 8)),
        ("segment", "retrieve_then_update", "none", ()),
        ("segment", "update_then_retrieve", "full", range(10)),
        ("segment", "update_then_retrieve", "segment", range(4, 10)),
        ("segment", "update_then_retrieve", "none", ()),
        ("token", "retrieve_then_update", "full", range(9)),
        ("token", "retrieve_then_update", "segment", range(8, 9)),
        ("token", "retrieve_then_update", "none", ()),
        ("token", "update_then_retrieve", "full", range(10)),
        ("token", "update_then_retrieve", "segment", range(8, 10)),
        ("token", "update_then_retrieve", "none", ()),
    ],
)
def test_gradients_reach_as_far_as_the_policy_says(kind, granularity, order, gradient, tokens, inputs, empty):
    memory = build(kind, granularity, order, gradient=gradient)
    tensors = inputs(memory, batch=1, seq=11)
    found = written_tokens(memory, tensors, empty(memory, 1), at=9)
    assert found["v"] == set(tokens)
    assert found["k"] == set(tokens)
    assert found["beta"] == set(tokens)
    if "decay" in found and gradient == "none":
        assert not found["decay"]
    assert found["q"] == {9}
    same, _ = build(kind, granularity, order).scan(state=empty(memory, 1), **tensors)
    torch.testing.assert_close(memory.scan(state=empty(memory, 1), **tensors)[0], same)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradient_reaches_an_earlier_call_only_with_full(granularity, inputs, empty):
    reached = {}
    for gradient in ("full", "segment", "none"):
        memory = build("delta", granularity, gradient=gradient)
        tensors = inputs(memory, batch=1, seq=16)
        tensors["v"].requires_grad_()
        _, state = memory.scan(state=empty(memory, 1), **part(tensors, 0, 8))
        out, _ = memory.scan(state=state, **part(tensors, 8, 16))
        loss = out[:, :, -1].sum()
        grad = torch.autograd.grad(loss, tensors["v"])[0] if loss.requires_grad else torch.zeros(1)
        reached[gradient] = bool(grad[:, :, :8].any()) if grad.dim() > 1 else False
    assert reached == {"full": True, "segment": False, "none": False}


@pytest.mark.parametrize("kind,granularity,order", ALL)
def test_bfloat16_keeps_a_float32_state(kind, granularity, order, inputs):
    memory = build(kind, granularity, order).bfloat16()
    tensors = {name: tensor.bfloat16() for name, tensor in inputs(memory, batch=2, seq=11).items()}
    out, state = memory.scan(state=memory.init_state(2), **tensors)
    assert out.dtype == torch.bfloat16
    assert all(tensor.dtype == torch.float32 for name, tensor in state.items() if name != "count")
    exact = {name: tensor.float() for name, tensor in tensors.items()}
    wanted, wanted_state = memory.float().scan(state=memory.init_state(2), **exact)
    assert_same_state(state, wanted_state, atol=1e-6)
    torch.testing.assert_close(out, wanted.bfloat16(), atol=1e-6, rtol=0.01)


@pytest.mark.parametrize("kind,granularity", list(itertools.product(KINDS, GRANULARITIES)))
def test_autocast_does_not_lower_the_state(kind, granularity, inputs):
    memory = build(kind, granularity).float()
    tensors = {name: tensor.float() for name, tensor in inputs(memory, batch=2, seq=11).items()}
    wanted, state = memory.scan(state=memory.init_state(2), **tensors)
    with torch.autocast("cpu", torch.bfloat16):
        out, autocast_state = memory.scan(state=memory.init_state(2), **tensors)
        read = memory.read(tensors["q"], state)
    assert torch.equal(out, wanted)
    assert torch.equal(read, memory.read(tensors["q"], state))
    assert all(torch.equal(autocast_state[name], state[name]) for name in state)


@pytest.mark.parametrize("kind,granularity,order", ALL)
def test_empty_memory_reads_zeros_and_empty_input_changes_nothing(kind, granularity, order, inputs):
    memory = build(kind, granularity, order)
    tensors = inputs(memory, batch=2, seq=3)
    state = memory.init_state(2)
    assert not memory.read(tensors["q"], state).any()
    nothing = part(tensors, 0, 0)
    out, same = memory.scan(state=state, **nothing)
    assert out.shape == (2, 4, 0, 5)
    assert all(torch.equal(same[name], tensor) for name, tensor in state.items())
    masked, same = memory.scan(state=state, mask=torch.zeros(2, 3, dtype=torch.bool), **tensors)
    assert not masked.any()
    assert all(torch.equal(same[name].float(), tensor.float()) for name, tensor in state.items())


@pytest.mark.parametrize("kind,granularity,order", ALL)
def test_extreme_inputs_stay_finite(kind, granularity, order, inputs, empty):
    memory = build(kind, granularity, order).float()
    for scale in (0.0, 1e-12, 1e3):
        tensors = {name: tensor.float() for name, tensor in inputs(memory, batch=1, seq=9).items()}
        for name in ("q", "k", "v"):
            tensors[name] = (tensors[name] * scale).requires_grad_()
        if "decay" in tensors:
            tensors["decay"] = tensors["decay"] * 0.0
        out, state = memory.scan(state=memory.init_state(1), **tensors)
        assert out.isfinite().all()
        assert all(tensor.isfinite().all() for tensor in state.values())
        grads = torch.autograd.grad(out.sum(), [tensors[n] for n in ("q", "k", "v")], allow_unused=True)
        assert all(grad is None or grad.isfinite().all() for grad in grads)


def text_like(batch, heads, seq, dim, generator):
    """Vectors that share a large mean direction, as the keys of language models do."""
    common = 2.0 * torch.randn(1, heads, 1, dim, generator=generator)
    return common + torch.randn(batch, heads, seq, dim, generator=generator)


@pytest.mark.slow
@pytest.mark.parametrize("kind,granularity", [("linear", "segment"), ("delta", "token"), ("delta_l2", "token")])
def test_a_million_tokens_leave_the_state_finite_and_its_size_unchanged(kind, granularity):
    memory = TensorMemory(16, 2, granularity=granularity, segment_length=1024, **KINDS[kind])
    generator = torch.Generator().manual_seed(0)
    state = memory.init_state(1)
    size = state_bytes(state)
    with torch.no_grad():
        for _ in range(16):
            k, v = (text_like(1, 2, 65536, 8, generator) for _ in range(2))
            state = memory.write(k, v, state)
        out = memory.read(k[:, :, :64], state)
    assert state["count"].tolist() == [1 << 20]
    assert state_bytes(state) == size
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert out.isfinite().all()
    assert out.abs().max() < 100 * v.abs().max()


@torch.no_grad()
def recall(memory, common=0.0, pairs=64):
    """Share of written values that are nearest to what their key reads, and their mean cosine to it.

    `common` is the length of a direction that all keys share.
    """
    generator = torch.Generator().manual_seed(0)

    def unit(x):
        return torch.nn.functional.normalize(x, dim=-1)

    k = torch.randn(1, 2, pairs, 64, generator=generator) + common * torch.randn(1, 2, 1, 64, generator=generator)
    k, v = unit(k), unit(torch.randn(1, 2, pairs, 64, generator=generator))
    read = unit(memory.read(k, memory.write(k, v, memory.init_state(1))))
    found = torch.einsum("bhtv,bhsv->bhts", read, v).argmax(-1) == torch.arange(pairs)
    return float(found.float().mean()), float((read * v).sum(-1).mean())


def test_delta_with_unit_keys_recalls_random_pairs_and_linear_with_elu_does_not():
    found, cosine = recall(TensorMemory(128, 2, granularity="token", **KINDS["delta_l2"]))
    linear_found, linear_cosine = recall(TensorMemory(128, 2, granularity="token", **KINDS["linear"]))
    assert found > 0.8 > 0.1 > linear_found
    assert cosine > 0.6 > 0.2 > linear_cosine


def test_the_delta_rule_copes_better_with_keys_that_share_a_direction():
    knobs = {"granularity": "token", "feature_map": "l2", "normaliser": "rmsnorm"}
    delta = recall(TensorMemory(128, 2, rule="delta", **knobs), common=1.0)
    linear = recall(TensorMemory(128, 2, rule="linear", **knobs), common=1.0)
    assert delta[1] > 1.5 * linear[1]


@torch.no_grad()
def test_a_key_written_again_replaces_its_value_under_delta_and_not_under_linear():
    k = torch.nn.functional.normalize(torch.randn(1, 1, 1, 8), dim=-1).repeat(1, 1, 2, 1)
    v = torch.eye(8)[:2].view(1, 1, 2, 8)
    for rule, replaced in (("delta", True), ("linear", False)):
        memory = TensorMemory(8, 1, granularity="token", rule=rule, feature_map="l2", normaliser="rmsnorm")
        read = memory.read(k[:, :, :1], memory.write(k, v, memory.init_state(1))).flatten()
        assert (abs(float(read[0])) < 1e-5) is replaced
        assert read[1] > 1.0


def test_whitening_is_applied_to_keys_and_queries(inputs, empty):
    memory, plain = build(calibration="whiten"), build()
    tensors = inputs(memory, batch=1, seq=8)
    unchanged, _ = memory.scan(state=empty(memory, 1), **tensors)
    torch.testing.assert_close(unchanged, plain.scan(state=empty(plain, 1), **tensors)[0])
    mean, whitening = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64)
    memory.set_calibration(mean, whitening)
    moved = dict(tensors)
    moved["k"] = torch.einsum("bhtd,hde->bhte", tensors["k"] - mean[:, None], whitening)
    by_head = mean.repeat_interleave(2, 0), whitening.repeat_interleave(2, 0)
    moved["q"] = torch.einsum("bhtd,hde->bhte", tensors["q"] - by_head[0][:, None], by_head[1])
    wanted, _ = plain.scan(state=empty(plain, 1), **moved)
    torch.testing.assert_close(memory.scan(state=empty(memory, 1), **tensors)[0], wanted)
    assert set(memory.state_dict()) == {"key_mean", "key_whitening", "query_mean", "query_whitening"}
    with pytest.raises(SenriError, match="key_mean has shape"):
        memory.set_calibration(mean[:1], whitening)
    with pytest.raises(SenriError, match="'whiten'"):
        plain.set_calibration(mean, whitening)


def test_merge_adds_and_only_for_the_linear_rule(inputs, empty):
    memory = build()
    one, two = inputs(memory, 1, 8, seed=1), inputs(memory, 1, 8, seed=2)
    states = [memory.write(t["k"], t["v"], empty(memory, 1), t["beta"]) for t in (one, two)]
    both = {name: torch.cat([one[name], two[name]], 2) for name in one}
    wanted = memory.write(both["k"], both["v"], empty(memory, 1), both["beta"])
    assert_same_state(memory.merge(states), wanted)
    with pytest.raises(SenriError, match="'delta' cannot be merged"):
        build("delta").merge(states)


@pytest.mark.parametrize("granularity,order", list(itertools.product(GRANULARITIES, ORDERS)))
def test_a_step_compiles_to_one_graph(granularity, order, inputs):
    memory = build("linear", granularity, order).float()
    tensors = {name: tensor.float() for name, tensor in inputs(memory, batch=2, seq=1).items()}
    mask = torch.tensor([[True], [False]])

    def step(state):
        return memory.scan(state=state, mask=mask, **tensors)

    explained = torch._dynamo.explain(step)(memory.init_state(2))
    assert explained.graph_break_count == 0


@pytest.mark.parametrize(
    "change,message",
    [
        ({"k": (2, 2, 6, 4)}, "k of the memory has shape"),
        ({"q": (2, 3, 6, 3)}, "q of the memory has shape"),
        ({"beta": (2, 4, 6)}, "beta of the memory has shape"),
        ({"decay": (2, 2, 6)}, "only 'gated_delta' decays"),
        ({"mask": (2, 7)}, "mask of the memory has shape"),
    ],
)
def test_wrong_shapes_are_named(change, message, inputs):
    memory = build()
    tensors = inputs(memory, batch=2, seq=6) | {name: torch.ones(shape) for name, shape in change.items()}
    with pytest.raises(SenriError, match=message):
        memory.scan(state=memory.init_state(2), **tensors)


def test_wrong_sizes_are_named():
    with pytest.raises(SenriError, match="3 rows, but the call has 2"):
        build().read(torch.ones(2, 4, 1, 3), build().init_state(3))
    with pytest.raises(SenriError, match="cannot be split"):
        TensorMemory(10, 3)
    with pytest.raises(SenriError, match="not a multiple"):
        TensorMemory(12, 3, 2)
    with pytest.raises(SenriError, match="value_dim of the memory is 0"):
        TensorMemory(12, 3, value_dim=0)
    with pytest.raises(SenriError, match=r"memory\.rul'.*did you mean 'rule'"):
        TensorMemory(12, 3, rul="delta")
    with pytest.raises(SenriError, match=r"memory\.type is 'tensr': did you mean 'tensor'"):
        build_memory(MemoryConfig(type="tensr"), 12, 3)
