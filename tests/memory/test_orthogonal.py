"""OrthogonalBasisMemory against a plain loop over blocks, against the single memory, and its sparse state."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from senri.errors import SenriError
from senri.memory import OrthogonalBasisMemory, TensorMemory, state_bytes
from senri.memory.features import apply_feature_map
from senri.memory.sparse import to_dense

MAPS = {
    "denominator": {"normaliser": "denominator", "feature_map": "elu_plus_one"},
    "dpfp": {"normaliser": "denominator", "feature_map": "dpfp", "dpfp_order": 2},
    "rmsnorm": {"normaliser": "rmsnorm", "feature_map": "l2"},
}
RULES, GRANULARITIES = ("linear", "delta", "gated_delta"), ("segment", "token")
ORDERS = ("retrieve_then_update", "update_then_retrieve")
READING = ((2, "component"), (2, "equal"), (None, "component"), (None, "equal"))
KEY, VALUE, SEGMENT = 4, 5, 4
FLOAT = 4


def random_basis(seed, heads=2, size=KEY):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(heads, size, size, generator=generator, dtype=torch.float64))[0]


def build(rule="linear", maps="denominator", kind=OrthogonalBasisMemory, basis=3, **knobs):
    torch.manual_seed(7)
    knobs = {"segment_length": SEGMENT, **MAPS[maps], **knobs}
    memory = kind(16, 4, 2, key_dim=KEY, value_dim=VALUE, rule=rule, **knobs).double().eval()
    if memory.config.normaliser == "rmsnorm":
        torch.nn.init.normal_(memory.norm_weight, mean=1.0)
    if memory.config.calibration == "whiten":
        for name in ("key_mean", "query_mean", "key_whitening", "query_whitening"):
            torch.nn.init.normal_(memory.get_parameter(name))
    if kind is OrthogonalBasisMemory and basis is not None:
        memory.set_basis(random_basis(basis))
    return memory


def calibrated(memory, x, side, head):
    if memory.config.calibration == "none":
        return x
    return (x - memory.get_parameter(f"{side}_mean")[head]) @ memory.get_parameter(f"{side}_whitening")[head]


def loop(memory, q, k, v, beta, decay=None, mask=None):
    """Outputs and every block's M and z, one token of one head at a time."""
    config, options, group = memory.config, memory.options, memory.num_heads // memory.num_key_value_heads
    until_visible = 1 if config.granularity == "token" else config.segment_length
    batch, heads, seq, _ = k.shape
    width = memory.feature_width
    outs, finals = {}, []
    for b, h in itertools.product(range(batch), range(heads)):
        empty = [k.new_zeros(width, VALUE)] * KEY, [k.new_zeros(width)] * KEY
        matrix, z = empty
        pending, pending_z, fade, seen = list(empty[0]), list(empty[1]), k.new_ones(()), 0
        for t in range(seq):
            queries = range(h * group, (h + 1) * group)
            if mask is not None and not mask[b, t]:
                outs.update({(b, head, t): k.new_zeros(VALUE) for head in queries})
                continue
            key = calibrated(memory, k[b, h, t], "key", h)
            block = int((key @ memory.basis[h]).abs().argmax())
            phi, value = apply_feature_map(key, config), v[b, h, t]
            visible = matrix, z
            alpha = k.new_ones(()) if decay is None else decay[b, h, t]
            fade = fade * alpha
            pending, pending_z = [alpha * x for x in pending], [alpha * x for x in pending_z]
            if config.rule != "linear":
                held, denominator = phi @ (fade * matrix[block]), phi @ (fade * z[block])
                if config.normaliser == "rmsnorm":
                    value = value - held
                elif denominator > config.eps:
                    value = value - held / denominator
            pending[block] = pending[block] + beta[b, h, t] * torch.outer(phi, value)
            pending_z[block] = pending_z[block] + beta[b, h, t] * phi
            after = (
                [fade * x + y for x, y in zip(matrix, pending, strict=True)],
                [fade * x + y for x, y in zip(z, pending_z, strict=True)],
            )
            if config.order == "update_then_retrieve":
                visible = after
            for head in queries:
                query = calibrated(memory, q[b, head, t], "query", head)
                sizes = (query @ memory.basis[h]).abs()
                chosen = sizes.argsort(descending=True)[: options.top_k or KEY].tolist()
                phi_q = apply_feature_map(query, config)
                weights = {i: sizes[i] if options.weighting == "component" else 1.0 for i in chosen}
                read = sum(weight * (phi_q @ visible[0][i]) for i, weight in weights.items())
                if config.normaliser == "denominator":
                    below = sum(weight * (phi_q @ visible[1][i]) for i, weight in weights.items())
                    read = read / below.clamp(min=config.eps)
                else:
                    read = read / (read.square().mean() + config.eps).sqrt() * memory.norm_weight[head]
                outs[b, head, t] = read
            seen += 1
            if seen % until_visible == 0:
                matrix, z = after
                pending, pending_z, fade = list(empty[0]), list(empty[1]), k.new_ones(())
        finals.append([torch.stack(x) for x in (matrix, z, pending, pending_z)])
    out = torch.stack([outs[place] for place in sorted(outs)]).view(batch, memory.num_heads, seq, VALUE)
    states = [torch.stack(x).unflatten(0, (batch, heads)) for x in zip(*finals, strict=True)]
    return out, dict(zip(("M", "z", "pending_M", "pending_z"), states, strict=True))


def close(got, wanted, tolerance=1e-10):
    torch.testing.assert_close(got, wanted, atol=tolerance * max(1.0, float(wanted.detach().abs().max())), rtol=0)


@pytest.mark.parametrize("rule,maps,granularity,order",
                         list(itertools.product(RULES, MAPS, GRANULARITIES, ORDERS)))  # fmt: skip
@pytest.mark.parametrize("calibration", ("none", "whiten"))
def test_values_state_and_gradients_equal_the_loop(rule, maps, granularity, order, calibration, inputs, empty):
    top_k, weighting = READING[ORDERS.index(order) + 2 * GRANULARITIES.index(granularity)]
    memory = build(rule, maps, granularity=granularity, order=order, calibration=calibration, top_k=top_k,
                   weighting=weighting)  # fmt: skip
    tensors = inputs(memory, batch=1, seq=11)
    leaves = [*tensors.values(), *(p for p in memory.parameters() if p.requires_grad)]
    for leaf in leaves:
        leaf.requires_grad_()
    out, new = memory.scan(state=empty(memory, 1), **tensors)
    wanted, state = loop(memory, **tensors)
    close(out, wanted)
    dense = to_dense(new)
    for name in state.keys() & dense.keys():
        close(dense[name], state[name])
    weight = torch.randn_like(out)
    losses = [(o * weight).sum() + s["M"].square().sum() for o, s in ((out, dense), (wanted, state))]
    for got, want in zip(*(torch.autograd.grad(loss, leaves) for loss in losses), strict=True):
        close(got, want, 1e-8)


@pytest.mark.parametrize("top_k,weighting", READING)
def test_padding_equals_the_loop(top_k, weighting, inputs, empty):
    memory = build("delta", top_k=top_k, weighting=weighting)
    tensors = inputs(memory, batch=2, seq=11)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0, :3] = mask[1, 5] = mask[1, 10] = False
    out, state = memory.scan(state=empty(memory, 2), mask=mask, **tensors)
    wanted, wanted_state = loop(memory, **tensors, mask=mask)
    close(out, wanted)
    close(to_dense(state)["M"], wanted_state["M"])


@pytest.mark.parametrize("maps,granularity,order", list(itertools.product(MAPS, GRANULARITIES, ORDERS)))
def test_reading_all_blocks_alike_is_the_single_memory(maps, granularity, order, inputs, empty):
    knobs = {"granularity": granularity, "order": order}
    memory = build("linear", maps, weighting="equal", **knobs)
    single = build("linear", maps, TensorMemory, **knobs)
    tensors = inputs(memory, batch=2, seq=19)
    out, state = memory.scan(state=empty(memory, 2), **tensors)
    wanted, single_state = single.scan(state=empty(single, 2), **tensors)
    close(out, wanted)
    close(memory.read(tensors["q"], state), single.read(tensors["q"], single_state))
    dense = to_dense(state)
    for name in {"M", "z", "pending_M", "pending_z"} & dense.keys():
        close(dense[name].sum(dim=2), single_state[name])
    trained = memory.train().scan(state=empty(memory, 2), **tensors)[0]
    close(trained, wanted)


@pytest.mark.parametrize("rule,maps,granularity,order",
                         list(itertools.product(RULES, MAPS, GRANULARITIES, ORDERS)))  # fmt: skip
def test_in_training_it_is_a_tensor_memory_bit_for_bit(rule, maps, granularity, order, inputs, empty):
    knobs = {"granularity": granularity, "order": order, "calibration": "whiten"}
    memory, single = build(rule, maps, top_k=1, **knobs).train(), build(rule, maps, TensorMemory, **knobs)
    single.load_state_dict(memory.state_dict(), strict=False)
    tensors = inputs(memory, batch=2, seq=11)
    out, state = memory.scan(state=empty(memory, 2), **tensors)
    wanted, single_state = single.scan(state=empty(single, 2), **tensors)
    assert torch.equal(out, wanted)
    assert state.keys() == single_state.keys()
    assert all(torch.equal(state[name], single_state[name]) for name in state)
    assert torch.equal(memory.read(tensors["q"], state), single.read(tensors["q"], single_state))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), count=st.integers(1, 6))
def test_every_token_lands_in_the_block_of_its_largest_component(seed, size, count):
    memory = OrthogonalBasisMemory(size, 1, granularity="token", segment_length=1, **MAPS["rmsnorm"]).double().eval()
    basis = random_basis(seed, 1, size)
    memory.set_basis(basis)
    k, v = torch.randn(2, 1, 1, count, size, generator=torch.Generator().manual_seed(seed)).double()
    state = memory.init_state(1)
    state = {name: x.double() if x.is_floating_point() else x for name, x in state.items()}
    landed = set()
    for t in range(count):
        before = to_dense(state)["M"]
        state = memory.write(k[:, :, t : t + 1], v[:, :, t : t + 1], state)
        changed = (to_dense(state)["M"] - before).flatten(3).any(dim=-1)[0, 0].nonzero().flatten().tolist()
        assert changed == [int((basis[0].T @ k[0, 0, t]).abs().argmax())]
        landed.update(changed)
    assert state["touched"][0, 0].nonzero().flatten().tolist() == sorted(landed)
    assert state["M"].shape[1] == len(landed)


def test_a_state_of_training_is_refused_in_evaluation(inputs, empty):
    memory = build("delta").train()
    tensors = inputs(memory, batch=1, seq=9)
    state = memory.scan(state=empty(memory, 1), **tensors)[1]
    memory.eval()
    for call in (lambda: memory.scan(state=state, **tensors), lambda: memory.read(tensors["q"], state)):
        with pytest.raises(SenriError, match=r"made in training, .*reset_memory\(\).*\.$"):
            call()


@pytest.mark.parametrize("rule", ("linear", "delta"))
def test_in_training_a_routed_state_is_the_sum_of_its_blocks(rule, inputs, empty):
    memory, single = build(rule), build(rule, kind=TensorMemory)
    tensors = inputs(memory, batch=2, seq=10)
    routed = memory.scan(state=empty(memory, 2), **tensors)[1]
    dense = to_dense(routed)
    summed = {name: x.sum(dim=2) if name in ("M", "z", "pending_M", "pending_z") else x for name, x in dense.items()}
    memory.train()
    more = inputs(memory, batch=2, seq=7, seed=1)
    close(memory.read(more["q"], routed), single.read(more["q"], summed))
    out, state = memory.scan(state=routed, **more)
    wanted, single_state = single.scan(state=summed, **more)
    close(out, wanted)
    assert state.keys() == single_state.keys()
    for name in state:
        close(state[name], single_state[name])


def test_a_basis_must_be_orthogonal_and_fit():
    memory, good = build(basis=None), random_basis(5)
    assert torch.equal(memory.basis, torch.eye(KEY, dtype=torch.float64).expand(2, -1, -1))
    for wrong in (random_basis(0, 3), random_basis(0, 2, KEY + 1), good[:, :, :3]):
        with pytest.raises(SenriError, match="the basis has shape"):
            memory.set_basis(wrong)
    skewed = good.clone()
    skewed[1, 0, 0] += 0.01
    for wrong in (2 * good, skewed, torch.full_like(good, float("nan"))):
        with pytest.raises(SenriError, match="not orthogonal"):
            memory.set_basis(wrong)
    assert torch.equal(memory.basis, torch.eye(KEY, dtype=torch.float64).expand(2, -1, -1))
    memory.set_basis(good)
    assert torch.equal(memory.basis, good)
    memory.set_basis(good[0])
    assert torch.equal(memory.basis, good[:1].expand(2, -1, -1))
    assert not memory.basis.requires_grad


@pytest.mark.parametrize("top_k,weighting", READING)
def test_a_permuted_basis_only_renames_the_blocks(top_k, weighting, inputs, empty):
    order = torch.tensor([2, 0, 3, 1])
    plain, permuted = (build("delta", basis=None, top_k=top_k, weighting=weighting) for _ in range(2))
    permuted.set_basis(torch.eye(KEY)[:, order])
    tensors = inputs(plain, batch=2, seq=13)
    out, state = plain.scan(state=empty(plain, 2), **tensors)
    same, renamed = permuted.scan(state=empty(permuted, 2), **tensors)
    close(same, out)
    close(to_dense(renamed)["M"], to_dense(state)["M"][:, :, order])
    assert torch.equal(renamed["touched"], state["touched"][:, :, order])
    permuted.set_basis(random_basis(1))
    assert not torch.allclose(permuted.scan(state=empty(permuted, 2), **tensors)[0], out)


@pytest.mark.parametrize("maps,granularity", list(itertools.product(MAPS, GRANULARITIES)))
def test_untouched_basis_memories_take_no_bytes(maps, granularity):
    memory = build("linear", maps, basis=None, granularity=granularity).float()
    table, counts = 1 * 2 * KEY * 1, 8
    per_part = memory.feature_width * VALUE + (memory.feature_width if "z" in memory.init_state(1) else 0)
    per_part *= FLOAT * (2 if granularity == "segment" else 1)
    state = memory.init_state(1)
    assert state_bytes(state) == table + counts
    dense = table + counts + 2 * KEY * per_part
    touched = set()
    for step, (first, second) in enumerate([(0, 0), (0, 1), (0, 0), (3, 1), (2, 2), (1, 1), (1, 3), (2, 0)]):
        k = torch.full((1, 2, 1, KEY), 0.1)
        k[0, 0, 0, first] = k[0, 1, 0, second] = 2.0 + step
        state = memory.write(k, torch.ones(1, 2, 1, VALUE), state)
        touched |= {(0, first), (1, second)}
        assert state_bytes(state) == table + counts + len(touched) * per_part <= dense
    assert len(touched) == 2 * KEY and state_bytes(state) == dense
    for seed in range(3):
        k = torch.randn(1, 2, 40, KEY, generator=torch.Generator().manual_seed(seed))
        state = memory.write(k, torch.ones(1, 2, 40, VALUE), state)
        assert state_bytes(state) == dense


@torch.no_grad()
@pytest.mark.parametrize("rule,granularity", list(itertools.product(("linear", "gated_delta"), GRANULARITIES)))
def test_a_call_longer_than_one_piece_equals_small_cuts(rule, granularity, inputs, empty):
    memory = build(rule, granularity=granularity, order="update_then_retrieve", top_k=3, segment_length=100)
    tensors = inputs(memory, batch=2, seq=1100)
    mask = torch.ones(2, 1100, dtype=torch.bool)
    mask[0, 500:520] = mask[1, :30] = False
    out, state = memory.scan(state=empty(memory, 2), mask=mask, **tensors)
    carried, outs = empty(memory, 2), []
    for start in range(0, 1100, 137):
        part = slice(start, start + 137)
        piece, carried = memory.scan(
            state=carried, mask=mask[:, part], **{name: x[:, :, part] for name, x in tensors.items()}
        )
        outs.append(piece)
    close(torch.cat(outs, dim=2), out, 1e-9)
    assert carried.keys() == state.keys()
    for name in state:
        close(carried[name], state[name], 1e-9) if state[name].is_floating_point() else None
        assert state[name].is_floating_point() or torch.equal(carried[name], state[name])
    reads = torch.cat([memory.read(q, state) for q in tensors["q"].split(90, dim=2)], dim=2)
    close(memory.read(tensors["q"], state), reads)


@torch.no_grad()
@pytest.mark.parametrize("seq", (3, 700))
def test_a_notebook_update_of_any_length_is_one_segment(seq, inputs):
    memory = build("delta").float()
    tensors = {name: x.float() for name, x in inputs(memory, batch=1, seq=seq).items()}
    memory.update(tensors["k"], tensors["v"], tensors["beta"])
    longer = build("delta", segment_length=seq).float()
    tensors.pop("q")
    wanted = longer.write(state=longer.init_state(1), **tensors)
    assert not memory.state["pending_M"].any() and memory.state["M"].any()
    torch.testing.assert_close(memory.state["M"], wanted["M"])
    torch.testing.assert_close(memory.state["z"], wanted["z"])


def test_an_empty_memory_can_be_cleaned(empty):
    memory = build()
    cleaned, stats = memory.clean(empty(memory, 1), 0.95)
    assert not to_dense(cleaned)["M"].any()
    assert (stats.original_rank, stats.retained_rank, stats.energy_retained) == (0, 0, 1.0)
