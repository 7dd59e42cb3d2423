"""Banks of TensorMemory against a plain loop over tokens, against the single memory, and which bank is written when."""

import itertools

import pytest
import torch

from senri.memory import TensorMemory
from senri.memory.features import apply_feature_map

MAPS = {
    "denominator": {"normaliser": "denominator", "feature_map": "elu_plus_one"},
    "rmsnorm": {"normaliser": "rmsnorm", "feature_map": "l2"},
}
RULES, GRANULARITIES = ("linear", "delta", "gated_delta"), ("segment", "token")
ORDERS = ("retrieve_then_update", "update_then_retrieve")
BANKS, SEGMENT, SEGMENTS_PER_BANK = 3, 2, 2
ROUND = BANKS * SEGMENT * SEGMENTS_PER_BANK


def build(rule="linear", maps="denominator", granularity="segment", order="retrieve_then_update", **knobs):
    banks = {"num_memory_banks": BANKS, "segments_per_bank": SEGMENTS_PER_BANK}
    knobs = {"segment_length": SEGMENT, **banks, **MAPS[maps], **knobs}
    memory = TensorMemory(12, 4, 2, key_dim=3, value_dim=5, rule=rule, granularity=granularity, order=order, **knobs)
    if maps == "rmsnorm":
        torch.manual_seed(0)
        torch.nn.init.normal_(memory.norm_weight, mean=1.0)
    return memory.double()


def loop(memory, q, k, v, beta, decay=None, mask=None):
    """Outputs, every bank's M and z and what is pending, one token of one head at a time."""
    config, options = memory.config, memory.options
    banks, group = options.num_memory_banks, memory.num_heads // memory.num_key_value_heads
    until_visible = 1 if config.granularity == "token" else config.segment_length
    batch, heads, seq, _ = k.shape
    outs, finals = {}, []
    for b, h in itertools.product(range(batch), range(heads)):
        keys = apply_feature_map(k[b, h], config)
        matrix, z = [k.new_zeros(3, 5)] * banks, [k.new_zeros(3)] * banks
        pending, pending_z, fade = [k.new_zeros(3, 5)] * banks, [k.new_zeros(3)] * banks, [k.new_ones(())] * banks
        seen = 0
        for t in range(seq):
            queries = [h * group + g for g in range(group)]
            if mask is not None and not mask[b, t]:
                outs.update({(b, head, t): k.new_zeros(5) for head in queries})
                continue
            bank = seen // config.segment_length // options.segments_per_bank % banks
            visible = sum(matrix), sum(z)

            alpha = k.new_ones(()) if decay is None else decay[b, h, t]
            fade[bank], pending[bank], pending_z[bank] = (x[bank] * alpha for x in (fade, pending, pending_z))
            held, denominator = keys[t] @ (fade[bank] * matrix[bank]), keys[t] @ (fade[bank] * z[bank])
            if config.normaliser == "denominator":
                held = held / denominator if denominator > config.eps else torch.zeros_like(held)
            old = 0.0 if config.rule == "linear" else held
            pending[bank] = pending[bank] + beta[b, h, t] * torch.outer(keys[t], v[b, h, t] - old)
            pending_z[bank] = pending_z[bank] + beta[b, h, t] * keys[t]

            matrices = [fade[i] * matrix[i] + pending[i] for i in range(banks)]
            columns = [fade[i] * z[i] + pending_z[i] for i in range(banks)]
            if config.order == "update_then_retrieve":
                visible = sum(matrices), sum(columns)
            for head in queries:
                query = apply_feature_map(q[b, head, t], config)
                read = query @ visible[0]
                if config.normaliser == "denominator":
                    read = read / (query @ visible[1]).clamp(min=config.eps)
                else:
                    read = read / (read.square().mean() + config.eps).sqrt() * memory.norm_weight[head]
                outs[b, head, t] = read
            seen += 1
            if seen % until_visible == 0:
                matrix, z = matrices, columns
                pending, pending_z = [k.new_zeros(3, 5)] * banks, [k.new_zeros(3)] * banks
                fade = [k.new_ones(())] * banks
        # only the bank at turn has an unfinished segment, so what is pending is kept without saying whose it is
        finals.append([torch.stack(matrix), torch.stack(z), sum(pending), sum(pending_z)])
    out = torch.stack([outs[place] for place in sorted(outs)]).view(batch, memory.num_heads, seq, 5)
    states = [torch.stack(parts).unflatten(0, (batch, heads)) for parts in zip(*finals, strict=True)]
    return out, dict(zip(("M", "z", "pending_M", "pending_z"), states, strict=True))


def close(got, wanted, tolerance=1e-10):
    torch.testing.assert_close(got, wanted, atol=tolerance * max(1.0, float(wanted.detach().abs().max())), rtol=0)


@pytest.mark.parametrize("rule,maps,granularity,order", list(itertools.product(RULES, MAPS, GRANULARITIES, ORDERS)))
def test_values_state_and_gradients_equal_the_loop(rule, maps, granularity, order, inputs, empty):
    memory = build(rule, maps, granularity, order)
    tensors = inputs(memory, batch=2, seq=ROUND + 3)
    leaves = [leaf.requires_grad_() for leaf in (*tensors.values(), *memory.parameters())]
    out, new = memory.scan(state=empty(memory, 2), **tensors)
    wanted, state = loop(memory, **tensors)
    close(out, wanted)
    for name in state.keys() & new.keys():
        close(new[name], state[name])
    assert new["segments"].tolist() == [ROUND // SEGMENT + 1] * 2
    weight = torch.randn_like(out)
    losses = [(o * weight).sum() + s["M"].square().sum() for o, s in ((out, new), (wanted, state))]
    for got, want in zip(*(torch.autograd.grad(loss, leaves) for loss in losses), strict=True):
        close(got, want, 1e-9)


@pytest.mark.parametrize("maps,granularity,order", list(itertools.product(MAPS, GRANULARITIES, ORDERS)))
def test_under_the_linear_rule_banks_are_the_single_memory_in_pieces(maps, granularity, order, inputs, empty):
    banks = build("linear", maps, granularity, order)
    single = build("linear", maps, granularity, order, num_memory_banks=1)
    tensors = inputs(banks, batch=2, seq=ROUND + 5)
    out, state = banks.scan(state=empty(banks, 2), **tensors)
    wanted, single_state = single.scan(state=empty(single, 2), **tensors)
    close(out, wanted)
    close(banks.read(tensors["q"], state), single.read(tensors["q"], single_state))
    for name in {"M", "z"} & single_state.keys():
        close(state[name].sum(dim=2), single_state[name])
    for name in {"pending_M", "pending_z"} & single_state.keys():
        close(state[name], single_state[name])
    assert not any(torch.allclose(state["M"][:, :, i], single_state["M"]) for i in range(BANKS))


@pytest.mark.parametrize("rule", ("delta", "gated_delta"))
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_write_changes_only_the_bank_whose_turn_it_is(rule, granularity, inputs, empty):
    memory = build(rule, granularity=granularity)
    tensors = inputs(memory, batch=1, seq=ROUND + SEGMENT * SEGMENTS_PER_BANK)
    state = empty(memory, 1)
    for start in range(0, tensors["k"].shape[2], SEGMENT):
        before = state["M"]
        _, state = memory.scan(state=state, **{name: x[:, :, start : start + SEGMENT] for name, x in tensors.items()})
        changed = (state["M"] != before).flatten(3).any(-1)[0, 0].tolist()
        turn = start // (SEGMENT * SEGMENTS_PER_BANK) % BANKS
        assert changed == [bank == turn for bank in range(BANKS)]


def test_a_delta_write_takes_away_only_what_its_own_bank_holds(empty):
    memory = TensorMemory(4, 1, rule="delta", granularity="token", segment_length=1, num_memory_banks=2,
                          segments_per_bank=1, **MAPS["rmsnorm"]).double()  # fmt: skip
    key = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).view(1, 1, 1, 4)
    values = torch.arange(12, dtype=torch.float64).view(3, 1, 1, 1, 4) + 1
    state = empty(memory, 1)
    for value in values[:2]:
        state = memory.write(key, value, state)
    close(state["M"][0, 0, :, 0], values[:2].view(2, 4))  # the second write did not see the first
    state = memory.write(key, values[2], state)
    close(state["M"][0, 0, :, 0], torch.stack([values[2], values[1]]).view(2, 4))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("segments_per_bank", (1, 2))
def test_every_update_of_a_notebook_counts_as_one_segment(granularity, segments_per_bank, inputs):
    banks = build(granularity=granularity, num_memory_banks=2, segments_per_bank=segments_per_bank).float()
    single = build(granularity=granularity, num_memory_banks=1).float()
    for call, seq in enumerate((1, 7, 2, 5, 3, 11)):
        before = None if banks.state is None else banks.state["M"]
        tensors = {name: x.float() for name, x in inputs(banks, batch=1, seq=seq, seed=call).items()}
        for memory in (banks, single):
            memory.update(tensors["k"], tensors["v"], tensors["beta"])
        turn = call // segments_per_bank % 2
        written = banks.state["M"] if before is None else banks.state["M"] - before
        assert written[:, :, turn].any() and not written[:, :, 1 - turn].any()
        torch.testing.assert_close(banks.retrieve(tensors["q"]), single.retrieve(tensors["q"]))
        assert banks.state["segments"].tolist() == [call + 1]
    assert banks.state["count"].tolist() == [29]


@pytest.mark.parametrize("rule,granularity,order", list(itertools.product(RULES, GRANULARITIES, ORDERS)))
def test_padding_moves_no_boundary(rule, granularity, order, inputs, empty):
    memory = build(rule, granularity=granularity, order=order)
    tensors = inputs(memory, batch=2, seq=ROUND + 4)
    mask = torch.ones(2, ROUND + 4, dtype=torch.bool)
    mask[0, :3] = False
    mask[1, [1, 2, 5, 9, 15]] = False
    out, state = memory.scan(state=empty(memory, 2), mask=mask, **tensors)
    wanted, wanted_state = loop(memory, **tensors, mask=mask)
    close(out, wanted)
    for name in wanted_state.keys() & state.keys():
        close(state[name], wanted_state[name])
    assert state["segments"].tolist() == [(ROUND + 1) // SEGMENT, (ROUND - 1) // SEGMENT]
