"""HierarchicalMemory between its two ends: the single memory (gate shut) and MultiMemory (gate open)."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from senri.memory import HierarchicalMemory, MultiMemory, TensorMemory
from senri.memory.features import apply_feature_map

MAPS = {
    "denominator": {"normaliser": "denominator", "feature_map": "elu_plus_one"},
    "rmsnorm": {"normaliser": "rmsnorm", "feature_map": "l2"},
}
GRANULARITIES, ROUTINGS = ("segment", "token"), ("round_robin", "learned")
ORDERS = ("retrieve_then_update", "update_then_retrieve")
PARTS, SEGMENT, SEQ = 3, 3, 14
SHUT, OPEN = -1e3, 1e3


def build(kind=HierarchicalMemory, rule="linear", maps="denominator", routing="round_robin", bias=0.3, **knobs):
    knobs = {"segment_length": SEGMENT, **MAPS[maps], **knobs}
    if kind is not TensorMemory:
        knobs |= {"num_memories": PARTS, "routing": routing}
    torch.manual_seed(0)
    memory = kind(12, 4, 2, key_dim=3, value_dim=5, rule=rule, **knobs).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("norm_weight", "attention_scale", "gate_weight", "router"):
            if hasattr(memory, name):
                parameter = getattr(memory, name)
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
        if kind is HierarchicalMemory:
            memory.gate_bias.fill_(bias)
    return memory.double()


def close(got, wanted, tolerance=1e-10):
    torch.testing.assert_close(got, wanted, atol=tolerance * max(1.0, float(wanted.detach().abs().max())), rtol=0)


@pytest.mark.parametrize("maps,granularity,order,routing",
                         list(itertools.product(MAPS, GRANULARITIES, ORDERS, ROUTINGS)))  # fmt: skip
def test_the_coarse_memory_is_the_single_memory_of_the_same_text(maps, granularity, order, routing, inputs, empty):
    knobs = {"maps": maps, "granularity": granularity, "order": order}
    memory, single = build(routing=routing, bias=SHUT, **knobs), build(TensorMemory, **knobs)
    tensors = inputs(memory, batch=2, seq=SEQ)
    out, state = memory.scan(state=empty(memory, 2), **tensors)
    wanted, single_state = single.scan(state=empty(single, 2), **tensors)
    close(out, wanted)
    close(memory.read(tensors["q"], state), single.read(tensors["q"], single_state))


@pytest.mark.parametrize("rule", ("delta", "gated_delta"))
@pytest.mark.parametrize("maps", MAPS)
def test_the_coarse_memory_is_the_sum_of_the_fine_ones_under_every_rule(rule, maps, inputs, empty):
    memory, single = build(rule=rule, maps=maps, bias=SHUT), build(TensorMemory, rule=rule, maps=maps)
    tensors = inputs(memory, batch=2, seq=PARTS * SEGMENT)
    state = memory.scan(state=empty(memory, 2), **tensors)[1]
    summed = {**empty(single, 2), **{name: state[name].sum(dim=2) for name in ("M", "z") if name in state}}
    close(memory.read(tensors["q"], state), single.read(tensors["q"], summed))


@pytest.mark.parametrize("rule", ("linear", "delta", "gated_delta"))
@pytest.mark.parametrize("maps,granularity,order,routing",
                         list(itertools.product(MAPS, GRANULARITIES, ORDERS, ROUTINGS)))  # fmt: skip
def test_with_the_gate_open_it_is_the_multi_memory(rule, maps, granularity, order, routing, inputs, empty):
    knobs = {"rule": rule, "maps": maps, "granularity": granularity, "order": order, "routing": routing}
    memory, multi = build(bias=OPEN, **knobs), build(MultiMemory, **knobs)
    multi.load_state_dict(memory.state_dict(), strict=False)
    tensors = inputs(memory, batch=2, seq=SEQ)
    out, state = memory.scan(state=empty(memory, 2), **tensors)
    wanted, multi_state = multi.scan(state=empty(multi, 2), **tensors)
    close(out, wanted)
    assert state.keys() == multi_state.keys()
    assert all(torch.equal(state[name], multi_state[name]) for name in state)


def read_by_hand(memory, q, state, gate):
    """One query head after the other: coarse plus gate times (attention to fine ones minus coarse)."""
    config, group = memory.config, memory.num_heads // memory.num_key_value_heads
    outs = []
    for head, token in itertools.product(range(memory.num_heads), range(q.shape[2])):
        query, one = apply_feature_map(q[0, head, token], config), head // group
        matrices, summaries = state["M"][0, one], state["summary"][0, one]
        means = summaries[:, :-1] / summaries[:, -1:].clamp(min=config.eps)
        attention = (memory.attention_scale[head] * (means @ F.normalize(query, dim=0))).softmax(dim=0)
        share = gate(head, F.normalize(query, dim=0))
        weights = (1 - share) + share * PARTS * attention
        numerator = query @ torch.einsum("p,pfv->fv", weights, matrices)
        if config.normaliser == "denominator":
            outs.append(numerator / (query @ (weights @ state["z"][0, one])).clamp(min=config.eps))
        else:
            outs.append(numerator / (numerator.square().mean() + config.eps).sqrt() * memory.norm_weight[head])
    return torch.stack(outs).view(1, memory.num_heads, q.shape[2], -1)


@pytest.mark.parametrize("maps,routing", list(itertools.product(MAPS, ROUTINGS)))
def test_between_the_ends_coarse_and_fine_are_mixed_by_the_gate_of_each_query(maps, routing, inputs, empty):
    memory = build(rule="delta", maps=maps, routing=routing)
    tensors = inputs(memory, batch=1, seq=2 * SEGMENT)
    state = memory.scan(state=empty(memory, 1), **tensors)[1]

    def gate(head, query):
        return torch.sigmoid(query @ memory.gate_weight[head] + memory.gate_bias[head])

    leaves = [memory.gate_weight, memory.gate_bias, memory.attention_scale, tensors["q"].requires_grad_()]
    got, wanted = memory.read(tensors["q"], state), read_by_hand(memory, tensors["q"], state, gate)
    close(got, wanted)
    weight = torch.randn_like(got)
    gradients = [torch.autograd.grad((out * weight).sum(), leaves, retain_graph=True) for out in (got, wanted)]
    for one, other in zip(*gradients, strict=True):
        close(one, other, 1e-9)


@torch.no_grad()
def test_reads_are_continuous_in_the_gate_in_training_and_evaluation(inputs, empty):
    memory = build(rule="delta")
    tensors = inputs(memory, batch=1, seq=PARTS * SEGMENT)
    state, reads = memory.scan(state=empty(memory, 1), **tensors)[1], []
    for bias in torch.linspace(-12, 12, 481).tolist():
        memory.gate_bias.fill_(bias)
        one, other = (memory.train(training).read(tensors["q"], state) for training in (True, False))
        assert torch.equal(one, other)
        reads.append(one)
    reads = torch.stack(reads)
    steps, span = (reads[1:] - reads[:-1]).abs().max(), (reads.amax(0) - reads.amin(0)).max()
    assert 0 < steps < 0.05 * span


@pytest.mark.parametrize("threshold", (0.0, 0.3, 0.5, 0.7, 1.0))
def test_while_text_is_generated_the_gate_is_open_above_the_threshold_and_else_shut(threshold, inputs, empty):
    memory = build(rule="delta", expansion_threshold=threshold)
    tensors = inputs(memory, batch=1, seq=PARTS * SEGMENT)
    state = memory.scan(state=empty(memory, 1), **tensors)[1]
    decisions = []

    def gate(head, query):
        logit = query @ memory.gate_weight[head] + memory.gate_bias[head]
        decisions.append(bool(torch.sigmoid(logit) > threshold))
        return float(decisions[-1])

    memory.deciding = True
    close(memory.read(tensors["q"], state), read_by_hand(memory, tensors["q"], state, gate))
    assert set(decisions) == {0.0: {True}, 1.0: {False}}.get(threshold, {True, False})
    generated = memory.scan(state=empty(memory, 1), **tensors)
    memory.deciding = False
    weighed = memory.scan(state=empty(memory, 1), **tensors)
    assert not torch.allclose(generated[0], weighed[0])
    assert all(torch.equal(generated[1][name], weighed[1][name]) for name in weighed[1])
