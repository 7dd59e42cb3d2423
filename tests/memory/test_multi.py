"""MultiMemory against K memories kept apart in a plain loop over tokens, and what its attention promises."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from senri.memory import MultiMemory, TensorMemory
from senri.memory.features import apply_feature_map

MAPS = {
    "denominator": {"normaliser": "denominator", "feature_map": "elu_plus_one"},
    "rmsnorm": {"normaliser": "rmsnorm", "feature_map": "l2"},
}
RULES, GRANULARITIES = ("linear", "delta", "gated_delta"), ("segment", "token")
ORDERS, ROUTINGS = ("retrieve_then_update", "update_then_retrieve"), ("round_robin", "learned")
PARTS, SEGMENT, SEQ = 3, 3, 11
CASES = list(itertools.product(RULES, MAPS, GRANULARITIES, ORDERS, ROUTINGS))


def build(rule="linear", maps="denominator", granularity="segment", order="retrieve_then_update",
          routing="round_robin", **knobs):  # fmt: skip
    knobs = {"segment_length": SEGMENT, "num_memories": PARTS, "routing": routing, **MAPS[maps], **knobs}
    torch.manual_seed(0)
    memory = MultiMemory(12, 4, 2, key_dim=3, value_dim=5, rule=rule, granularity=granularity, order=order, **knobs)
    torch.nn.init.normal_(memory.attention_scale, mean=2.0)
    if maps == "rmsnorm":
        torch.nn.init.normal_(memory.norm_weight, mean=1.0)
    return memory.double()


def single_like(memory):
    """A TensorMemory with the knobs that a MultiMemory shares with it."""
    config = memory.config
    knobs = {name: getattr(config, name) for name in ("rule", "normaliser", "feature_map", "granularity", "order")}
    single = TensorMemory(12, 4, 2, key_dim=3, value_dim=5, segment_length=config.segment_length, **knobs).double()
    if config.normaliser == "rmsnorm":
        single.norm_weight = memory.norm_weight
    return single


class OneMemory:
    """One of the K memories of one head: what it shows and what waits for the end of the segment."""

    def __init__(self, config):
        self.config = config
        self.shown = [torch.zeros(size, dtype=torch.float64) for size in ((3, 5), (3,), (3,), ())]
        self.empty_waiting()

    def empty_waiting(self):
        self.waiting = [torch.zeros_like(x) for x in self.shown]
        self.left = torch.ones((), dtype=torch.float64)

    def after(self):
        """M, z, the sum of unit keys and the sum of their strengths with all writes."""
        return [self.left * shown + waiting for shown, waiting in zip(self.shown, self.waiting, strict=True)]

    def write(self, key, value, strength, alpha):
        self.left = self.left * alpha
        self.waiting = [alpha * x for x in self.waiting]
        if self.config.rule != "linear":
            held, denominator = key @ (self.left * self.shown[0]), key @ (self.left * self.shown[1])
            if self.config.normaliser == "rmsnorm":
                value = value - held
            elif denominator > self.config.eps:
                value = value - held / denominator
        unit = key / key.norm()
        added = torch.outer(key, value), key, unit, torch.ones_like(strength)
        self.waiting = [waiting + strength * x for waiting, x in zip(self.waiting, added, strict=True)]

    def commit(self):
        self.shown = self.after()
        self.empty_waiting()


def loop(memory, q, k, v, beta, decay=None, mask=None):
    """Outputs and the state, one token of one head at a time."""
    config, group = memory.config, memory.num_heads // memory.num_key_value_heads
    until_visible = 1 if config.granularity == "token" else config.segment_length
    batch, heads, seq, _ = k.shape
    outs, finals = {}, []
    for b, h in itertools.product(range(batch), range(heads)):
        memories, seen = [OneMemory(config) for _ in range(PARTS)], 0
        for t in range(seq):
            queries = range(h * group, (h + 1) * group)
            if mask is not None and not mask[b, t]:
                outs.update({(b, head, t): k.new_zeros(5) for head in queries})
                continue
            key = apply_feature_map(k[b, h, t], config)
            before = [one.shown for one in memories]
            if memory.options.routing == "learned":
                shares = (key / key.norm() @ memory.router[h]).softmax(dim=-1)
            else:
                shares = F.one_hot(torch.tensor(seen // config.segment_length % PARTS), PARTS).double()
            for one, share in zip(memories, shares, strict=True):
                alpha = k.new_ones(()) if decay is None else decay[b, h, t] ** share
                one.write(key, v[b, h, t], beta[b, h, t] * share, alpha)
            visible = before if config.order == "retrieve_then_update" else [one.after() for one in memories]
            for head in queries:
                outs[b, head, t] = read(memory, head, apply_feature_map(q[b, head, t], config), visible)
            seen += 1
            if seen % until_visible == 0:
                for one in memories:
                    one.commit()
        shown, waiting = ([getattr(one, name) for one in memories] for name in ("shown", "waiting"))
        named = {}
        for prefix, parts in (("", shown), ("pending_", waiting)):
            stacked = [torch.stack(x) for x in zip(*parts, strict=True)]
            # in turn, only one memory has an unfinished segment: it is kept without saying whose it is
            if prefix and memory.options.routing == "round_robin":
                stacked = [x.sum(dim=0) for x in stacked]
            named[prefix + "M"], named[prefix + "z"] = stacked[:2]
            named[prefix + "summary"] = torch.cat([stacked[2], stacked[3].unsqueeze(-1)], dim=-1)
        finals.append(named)
    out = torch.stack([outs[place] for place in sorted(outs)]).view(batch, memory.num_heads, seq, 5)
    state = {name: torch.stack([one[name] for one in finals]).unflatten(0, (batch, heads)) for name in finals[0]}
    return out, state


def read(memory, head, query, visible):
    """Read as attention over memories says: weights on numerators and denominators, then one division."""
    config = memory.config
    likeness = [query / query.norm() @ keys / count.clamp(min=config.eps) for _, _, keys, count in visible]
    weights = PARTS * (memory.attention_scale[head] * torch.stack(likeness)).softmax(dim=0)
    numerator = sum(weight * (query @ one[0]) for weight, one in zip(weights, visible, strict=True))
    if config.normaliser == "rmsnorm":
        return numerator / (numerator.square().mean() + config.eps).sqrt() * memory.norm_weight[head]
    denominator = sum(weight * (query @ one[1]) for weight, one in zip(weights, visible, strict=True))
    return numerator / denominator.clamp(min=config.eps)


def close(got, wanted, tolerance=1e-10):
    torch.testing.assert_close(got, wanted, atol=tolerance * max(1.0, float(wanted.detach().abs().max())), rtol=0)


@pytest.mark.parametrize("rule,maps,granularity,order,routing", CASES)
def test_values_state_and_gradients_equal_the_loop(rule, maps, granularity, order, routing, inputs, empty):
    memory = build(rule, maps, granularity, order, routing)
    tensors = inputs(memory, batch=1, seq=SEQ)
    leaves = [leaf.requires_grad_() for leaf in (*tensors.values(), *memory.parameters())]
    out, new = memory.scan(state=empty(memory, 1), **tensors)
    wanted, state = loop(memory, **tensors)
    close(out, wanted)
    compared = state.keys() & new.keys()
    assert {"M", "summary"} <= compared
    for name in compared:
        close(new[name], state[name])
    weight = torch.randn_like(out)
    losses = [
        (o * weight).sum() + s["M"].square().sum() + s["summary"].square().sum()
        for o, s in ((out, new), (wanted, state))
    ]
    for got, want in zip(*(torch.autograd.grad(loss, leaves) for loss in losses), strict=True):
        close(got, want, 1e-8)


@pytest.mark.parametrize("granularity,order,routing", list(itertools.product(GRANULARITIES, ORDERS, ROUTINGS)))
def test_padding_neither_writes_nor_takes_a_turn(granularity, order, routing, inputs, empty):
    memory = build("gated_delta", "denominator", granularity, order, routing)
    tensors = inputs(memory, batch=2, seq=SEQ)
    mask = torch.ones(2, SEQ, dtype=torch.bool)
    mask[0, :4] = False
    mask[1, [1, 5, 6, 10]] = False
    out, state = memory.scan(state=empty(memory, 2), mask=mask, **tensors)
    wanted, wanted_state = loop(memory, **tensors, mask=mask)
    close(out, wanted)
    for name in wanted_state.keys() & state.keys():
        close(state[name], wanted_state[name])


@pytest.mark.parametrize("maps,granularity,order,routing", [case[1:] for case in CASES if case[0] == "linear"])
def test_under_the_linear_rule_the_parts_add_up_to_one_memory(maps, granularity, order, routing, inputs, empty):
    memory = build("linear", maps, granularity, order, routing)
    single = single_like(memory)
    tensors = inputs(memory, batch=2, seq=SEQ)
    out, state = memory.scan(state=empty(memory, 2), **tensors)
    wanted, single_state = single.scan(state=empty(single, 2), **tensors)
    for name in {"M", "z"} & single_state.keys():
        close(state[name].sum(dim=2), single_state[name])
    assert not torch.allclose(out, wanted)
    torch.nn.init.zeros_(memory.attention_scale)
    close(memory.scan(state=empty(memory, 2), **tensors)[0], wanted)
    close(memory.read(tensors["q"], state), single.read(tensors["q"], single_state))


@torch.no_grad()
@pytest.mark.parametrize("routing", ROUTINGS)
def test_reads_are_continuous_in_the_attention_scale(routing, inputs, empty):
    memory = build("delta", routing=routing)
    tensors = inputs(memory, batch=1, seq=3 * SEGMENT)
    state = memory.scan(state=empty(memory, 1), **tensors)[1]
    reads = []
    for scale in torch.linspace(-20, 20, 801).tolist():
        memory.attention_scale.fill_(scale)
        reads.append(memory.read(tensors["q"], state))
    reads = torch.stack(reads)
    steps, span = (reads[1:] - reads[:-1]).abs().max(), (reads.amax(0) - reads.amin(0)).max()
    assert 0 < steps < 0.1 * span


@pytest.mark.parametrize("routing", ROUTINGS)
def test_training_evaluation_and_generation_read_alike(routing, inputs, empty):
    memory = build("delta", routing=routing)
    tensors = inputs(memory, batch=1, seq=SEQ)
    outs = [memory.train(training).scan(state=empty(memory, 1), **tensors)[0] for training in (True, False)]
    memory.deciding = True
    outs.append(memory.scan(state=empty(memory, 1), **tensors)[0])
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[1], outs[2])


@pytest.mark.parametrize("maps", MAPS)
def test_a_sharp_attention_reads_only_the_memory_whose_keys_are_like_the_query(maps, empty):
    memory = build("linear", maps, num_memories=2, eps=1e-12)
    torch.nn.init.constant_(memory.attention_scale, 1e4)
    keys = 4 * torch.tensor([[1.0, -1, -1], [-1, 1, -1]], dtype=torch.float64).repeat_interleave(SEGMENT, 0)
    values = torch.randn(1, 2, 2 * SEGMENT, 5, dtype=torch.float64)
    state = memory.write(keys.expand(1, 2, -1, -1).contiguous(), values, empty(memory, 1))
    single = single_like(memory)
    for number, part in enumerate((slice(0, SEGMENT), slice(SEGMENT, None))):
        q = keys[part][:1].expand(1, 4, 1, 3).contiguous()
        alone = single.write(keys[part].expand(1, 2, -1, -1).contiguous(), values[:, :, part], empty(single, 1))
        close(memory.read(q, state), single.read(q, alone), 1e-5)
        other = {**state, "M": state["M"].clone()}
        other["M"][:, :, 1 - number] = 100.0
        close(memory.read(q, other), memory.read(q, state), 1e-9)


@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("written", (1, 2))
def test_an_empty_part_takes_no_share_of_a_read(maps, written, inputs, empty):
    many, few = (build("delta", maps, num_memories=number, eps=1e-12) for number in (4, written))
    few.load_state_dict(many.state_dict())
    tensors = inputs(many, batch=2, seq=written * SEGMENT)
    states = [memory.scan(state=empty(memory, 2), **tensors)[1] for memory in (many, few)]
    assert not states[0]["M"][:, :, written:].any()
    close(many.read(tensors["q"], states[0]), few.read(tensors["q"], states[1]), 1e-6)


@pytest.mark.parametrize("granularity,order", list(itertools.product(GRANULARITIES, ORDERS)))
def test_a_summary_is_the_mean_of_the_unit_keys_written(granularity, order, inputs, empty):
    memory = build("delta", "rmsnorm", granularity, order)
    tensors = inputs(memory, batch=1, seq=PARTS * SEGMENT)
    state = memory.scan(state=empty(memory, 1), **{**tensors, "beta": torch.ones_like(tensors["beta"])})[1]
    means = F.normalize(tensors["k"], dim=-1).unflatten(2, (PARTS, SEGMENT)).mean(dim=3)
    close(state["summary"][..., :-1] / state["summary"][..., -1:], means)
    assert torch.equal(state["summary"][..., -1], torch.full((1, 2, PARTS), float(SEGMENT), dtype=torch.float64))
