"""MemoryInputs and MemoryBranch: cuts, padding, token shift, learned strengths, sizes, and the whitened start."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from senri.errors import SenriError
from senri.memory import MemoryBranch, MemoryConfig
from senri.memory.gates import within_budget
from senri.memory.input_starts import start_from_whitening
from senri.memory.short_convolution import ShortConvolution

HIDDEN = 16
KINDS = {
    "shared": {"segment_length": 4},
    "shared_shift": {"segment_length": 4, "token_shift": True},
    "shared_convolution": {"segment_length": 4, "short_convolution": 3},
    "own_shift": {"segment_length": 4, "projections": "own", "token_shift": True},
    "recall": {
        "combine": "add", "rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token",
        "projections": "own", "num_heads": 4, "num_key_value_heads": 2, "key_dim": 6, "value_dim": 5,
        "token_shift": True, "short_convolution": 4, "learned_write_strength": True, "write_strength": 0.4,
    },
    "gated_keys": {
        "combine": "add", "rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token",
        "projections": "own", "num_heads": 4, "num_key_value_heads": 2, "key_dim": 6, "value_dim": 5,
        "token_shift": True, "short_convolution": 5, "convolution_delays": [0.3, 0.3], "convolution_mean": 0.4,
        "convolution_gates": True,
    },
    "ahead": {
        "combine": "add", "rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token",
        "projections": "own", "num_heads": 4, "num_key_value_heads": 2, "key_dim": 6, "value_dim": 5,
        "token_shift": True, "short_convolution": 5, "convolution_delays": [0.3, 0.3], "convolution_mean": 0.4,
        "convolution_gates": True, "learned_write_strength": True, "write_strength": 0.4, "look_ahead": 3,
        "convolved_write_strength": True, "convolution_binds": True,
        "write_delay": 2,
    },
    "dense": {
        "combine": "add", "rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token",
        "projections": "own", "num_heads": 4, "num_key_value_heads": 2, "key_dim": 8, "value_dim": 5,
        "token_shift": True, "short_convolution": 5, "convolution_delays": [0.2, 0.2],
        "convolution_mean": 0.2, "convolution_dense": 0.4, "convolution_gates": True, "convolution_binds": True,
        "look_ahead": 3, "write_delay": 2, "learned_write_strength": True, "write_strength": 0.4,
    },
    "delayed": {
        "combine": "add", "rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token",
        "projections": "own", "num_heads": 4, "num_key_value_heads": 2, "key_dim": 6, "value_dim": 5, "write_delay": 2,
        "learned_write_strength": True, "write_strength": 0.4,
    },
    "ahead_in_segments": {
        "segment_length": 4, "projections": "own", "short_convolution": 2, "look_ahead": 1, "write_delay": 1,
        "rule": "gated_delta",
    },
    "dense_alone": {
        "segment_length": 4, "projections": "own", "token_shift": True, "short_convolution": 2, "look_ahead": 1,
        "convolution_delays": [0.5], "convolution_dense": 0.5,
    },
    "whitened": {
        "combine": "add", "rule": "delta", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token",
        "projections": "own", "token_shift": True, "short_convolution": 3, "convolution_gates": True,
        "whitened_inputs": True, "learned_write_strength": True, "write_strength": 0.4,
    },
    "falling": {
        "segment_length": 4, "projections": "own", "short_convolution": 3, "look_ahead": 2, "token_shift": True,
        "learned_write_strength": True, "convolved_write_strength": True, "write_strength": 0.4,
        "write_budget": 1.2,
    },
    "falling_alone": {
        "segment_length": 4, "projections": "own", "learned_write_strength": True, "write_strength": 0.4,
        "write_budget": 0.9,
    },
    "gated": {"rule": "gated_delta", "projections": "own", "learned_write_strength": True, "write_strength": 0.5},
    "batch": {"scope": "batch", "segment_length": 4, "token_shift": True, "order": "update_then_retrieve"},
}  # fmt: skip


def build(kind, seed=0):
    torch.manual_seed(seed)
    branch = MemoryBranch(MemoryConfig(**KINDS[kind]), HIDDEN, 4, 2, 4, 4)
    for name, parameter in branch.named_parameters():
        if "proj.weight" in name or ".conv_" in name or ".whitening" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return branch.double()


def double(state):
    return {name: x.double() if x.is_floating_point() else x for name, x in state.items()}


def tokens(branch, batch, seq, seed=1):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, seq, HIDDEN, generator=generator, dtype=torch.float64)
    if branch.config.projections == "own":
        return hidden, None
    return hidden, tuple(
        torch.randn(batch, heads, seq, 4, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)
    )


def run(branch, hidden, shared, state, mask=None):
    with torch.no_grad():
        return branch(hidden, state, shared=shared, mask=mask)


def part(hidden, shared, begin, end):
    return hidden[:, begin:end], None if shared is None else tuple(x[:, :, begin:end] for x in shared)


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_never_show(kind):
    branch = build(kind)
    hidden, shared = tokens(branch, 2, 13)
    whole, wanted = run(branch, hidden, shared, double(branch.init_state(2)))
    assert whole.shape == (2, branch.num_heads, 13, branch.value_dim)
    for cuts in ((0, 6, 13), (0, 1, 2, 3, 9, 13), tuple(range(14))):
        state, outs = double(branch.init_state(2)), []
        for begin, end in itertools.pairwise(cuts):
            out, state = run(branch, *part(hidden, shared, begin, end), state)
            outs.append(out)
        torch.testing.assert_close(torch.cat(outs, 2), whole)
        assert state.keys() == wanted.keys() == branch.init_state(2).keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(state[name], tensor)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "batch"])
@pytest.mark.parametrize("cut", (0, 3, 8))
def test_padding_changes_nothing(kind, cut):
    branch = build(kind)
    hidden, shared = tokens(branch, 3, 13)
    mask = torch.ones(3, 13, dtype=torch.bool)
    mask[1, :5] = False
    mask[2, [0, 4, 5, 11, 12]] = False
    state, outs = double(branch.init_state(3)), []
    for begin, end in ((0, cut), (cut, 13)):
        out, state = run(branch, *part(hidden, shared, begin, end), state, mask[:, begin:end])
        outs.append(out)
    out = torch.cat(outs, 2)
    for row in range(3):
        kept = mask[row]
        alone = None if shared is None else tuple(x[row : row + 1][:, :, kept] for x in shared)
        wanted, wanted_state = run(branch, hidden[row : row + 1, kept], alone, double(branch.init_state(1)))
        torch.testing.assert_close(out[row : row + 1][:, :, kept], wanted)
        for name, tensor in wanted_state.items():
            torch.testing.assert_close(state[name][row : row + 1], tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_write_gives_the_state_of_forward(kind):
    branch = build(kind)
    hidden, shared = tokens(branch, 2, 13)
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[0, :4] = False
    _, wanted = run(branch, hidden, shared, double(branch.init_state(2)), mask)
    with torch.no_grad():
        got = branch.write(hidden, double(branch.init_state(2)), shared=shared, mask=mask)
        assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
        if shared is not None and kind != "shared_convolution":
            got = branch.write(hidden, double(branch.init_state(2)), shared=shared[1:], mask=mask)
            assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())


def test_token_shift_writes_the_value_under_the_key_before():
    branch = build("shared_shift")
    hidden, (q, k, v) = tokens(branch, 1, 4)
    _, state = run(branch, hidden, (q, k, v), double(branch.init_state(1)))
    phi = F.elu(k) + 1
    torch.testing.assert_close(state["M"], torch.einsum("bhtk,bhtv->bhkv", phi[:, :, :3], v[:, :, 1:]))
    torch.testing.assert_close(state["z"], phi[:, :, :3].sum(2))


@pytest.mark.parametrize("kind", ("shared_shift", "recall"))
def test_the_first_token_writes_nothing_and_later_ones_do(kind):
    branch = build(kind)
    hidden, shared = tokens(branch, 1, 4)
    _, first = run(branch, *part(hidden, shared, 0, 1), double(branch.init_state(1)))
    assert first["begun"].all()
    assert not first["M"].any()
    assert first["count"].tolist() == [1]
    state = first
    for t in range(1, 4):
        _, state = run(branch, *part(hidden, shared, t, t + 1), state)
    assert state["M"].any()


def test_short_convolution_equals_conv1d_and_starts_as_a_delay():
    x = torch.randn(2, 9, 6)
    for delay in (0, 1):
        convolution = ShortConvolution(6, 4, delay)
        past = torch.zeros(2, 3, 6)
        out, _ = convolution(x, past)
        assert torch.equal(out, F.pad(x, (0, 0, delay, 0))[:, :9])
        torch.nn.init.normal_(convolution.weight)
        out, past = convolution(x, past)
        wanted = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), convolution.weight.unsqueeze(1), groups=6).transpose(1, 2)
        torch.testing.assert_close(out, wanted)
        assert torch.equal(past, x[:, -3:])


def test_shares_of_every_heads_channels_start_with_other_delays():
    convolution = ShortConvolution(16, 5, 1, shares=(2.0, 1.0, 1.0), heads=2)
    x = torch.randn(2, 9, 16)
    out, _ = convolution(x, torch.zeros(2, 4, 16))
    for first, delay in ((0, 1), (4, 2), (6, 3), (8, 1), (12, 2), (14, 3)):
        channels = slice(first, first + (4 if delay == 1 else 2))
        assert torch.equal(out[..., channels], F.pad(x, (0, 0, delay, 0))[:, :9, channels])


def test_a_last_share_of_the_channels_starts_as_a_mean_that_decays():
    for delay in (0, 1):
        convolution = ShortConvolution(16, 5, delay, shares=(1.0, 1.0), heads=2, mean=2.0, mean_decay=0.5)
        x = torch.randn(2, 9, 16)
        out, _ = convolution(x, torch.zeros(2, 4, 16))
        taps = torch.tensor([0.5**age for age in range(5 - delay)])
        taps = taps / taps.norm()
        tokens = x.unflatten(-1, (2, 8))[..., 4:]
        tokens = tokens * (tokens.square().mean(-1, keepdim=True) + 1e-4).rsqrt()
        for head, first in ((0, 0), (1, 8)):
            assert torch.equal(out[..., first : first + 2], F.pad(x, (0, 0, delay, 0))[:, :9, first : first + 2])
            for t in range(9):
                ages = [age for age in range(len(taps)) if t - delay - age >= 0]
                mean = sum((taps[age] * tokens[:, t - delay - age, head] for age in ages), torch.zeros(2, 4))
                wanted = mean * (mean.square().mean(-1, keepdim=True) + 1e-4).rsqrt()
                torch.testing.assert_close(out[:, t, first + 4 : first + 8], wanted)


def test_gates_weigh_shares_and_tokens_and_start_at_one():
    sizes = {"delay": 1, "shares": (1.0, 1.0), "heads": 2, "mean": 2.0, "mean_decay": 0.5}
    plain, gated = ShortConvolution(16, 5, **sizes), ShortConvolution(16, 5, gated_by=3, **sizes)
    x, hidden, past = torch.randn(2, 9, 16), torch.randn(2, 9, 3), torch.randn(2, 4, 16)
    assert torch.equal(gated(x, past, None, hidden)[0], plain(x, past)[0])
    torch.nn.init.normal_(gated.gates.weight)
    out, new_past = gated(x, past, None, hidden)
    gates = 2 * gated.gates(hidden).sigmoid()  # of each head: both delays, the mean, and how much a token counts in it
    salient, means = x.unflatten(-1, (2, 8)).clone(), slice(4, 8)
    salient[..., means] = F.rms_norm(salient[..., means], (4,), eps=1e-4) * gates.unflatten(-1, (2, 4))[..., 3:]
    inputs = torch.cat([past, salient.flatten(2)], dim=1).transpose(1, 2)
    wanted = F.conv1d(inputs, gated.weight.unsqueeze(1), groups=16)
    wanted = wanted.transpose(1, 2).unflatten(-1, (2, 8))
    wanted[..., means] = F.rms_norm(wanted[..., means], (4,), eps=1e-4)
    for share, channels in enumerate((slice(0, 2), slice(2, 4), means)):
        wanted[..., channels] *= gates.unflatten(-1, (2, 4))[..., share, None]
    torch.testing.assert_close(out, wanted.flatten(2))
    assert torch.equal(new_past, salient.flatten(2)[:, -4:])


@pytest.mark.parametrize(("kind", "late"), [("ahead", 5), ("delayed", 2)])
def test_a_token_is_written_late_as_it_would_have_been_at_once(kind, late):
    branch, seq, ahead = build(kind), 14, KINDS[kind].get("look_ahead", 0)
    plain = MemoryBranch(MemoryConfig(**KINDS[kind] | {"look_ahead": 0, "write_delay": 0}), HIDDEN, 4, 2, 4, 4).double()
    if ahead:  # the last taps of a key's convolution are of the tokens behind; without them it is as if it had none
        with torch.no_grad():
            branch.inputs.conv_k.weight[:, -ahead:] = 0
            branch.inputs.conv_beta.weight[:, -ahead:] = 0
    convolutions = [
        name for name in branch.state_dict() if ahead and name.endswith(("conv_k.weight", "conv_beta.weight"))
    ]
    own_taps = {name: branch.state_dict()[name][:, :-ahead] for name in convolutions}
    plain.load_state_dict(branch.state_dict() | own_taps)
    hidden, _ = tokens(branch, 1, seq)
    with torch.no_grad():
        waited, state = branch.inputs(hidden, double(branch.init_state(1)))
        at_once, _ = plain.inputs(hidden, double(plain.init_state(1)))
    for name in ("k", "v", "beta"):
        torch.testing.assert_close(getattr(waited, name)[:, :, late:], getattr(at_once, name)[:, :, :-late])
    torch.testing.assert_close(waited.q, at_once.q)
    assert not waited.beta[:, :, :late].any() and waited.beta[:, :, late + 1 :].all()
    assert state["begun"].tolist() == [late + int(branch.config.token_shift)]
    torch.testing.assert_close(state["late_states"], hidden[:, -late:])


def test_a_write_strength_is_the_larger_of_two_sums_over_the_tokens_around():
    sizes = KINDS["recall"] | {"look_ahead": 2}
    plain = MemoryBranch(MemoryConfig(**sizes), HIDDEN, 4, 2, 4, 4).double()
    branch = MemoryBranch(MemoryConfig(**sizes, convolved_write_strength=True), HIDDEN, 4, 2, 4, 4).double()
    torch.nn.init.normal_(plain.inputs.beta_proj.weight)
    assert not branch.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    hidden, _ = tokens(branch, 2, 9)
    with torch.no_grad():
        wanted, _ = plain.inputs(hidden, double(plain.init_state(2)))
        found, _ = branch.inputs(hidden, double(branch.init_state(2)))
        torch.testing.assert_close(found.beta, wanted.beta)  # at the start they do not count
        torch.nn.init.normal_(branch.inputs.conv_beta.weight)
        found, _ = branch.inputs(hidden, double(branch.init_state(2)))
        logits = branch.inputs.beta_proj(hidden)
    weight, taps = branch.inputs.conv_beta.weight, 4 + 2
    for step in range(3, 9):  # of the token two before it, which is not the first
        for head in range(2):
            sums = [
                sum(
                    logits[:, step - age, head] * weight[2 * head + side, taps - 1 - age]
                    for age in range(taps)
                    if step >= age
                )
                for side in range(2)
            ]
            torch.testing.assert_close(found.beta[:, head, step], torch.maximum(*sums).sigmoid())


@pytest.mark.parametrize("kind", ["falling", "falling_alone"])
def test_odds_of_writing_fall_as_the_budget_by_what_was_written(kind):
    branch, budget = build(kind), KINDS[kind]["write_budget"]
    even = MemoryBranch(MemoryConfig(**KINDS[kind] | {"write_budget": 0}), HIDDEN, 4, 2, 4, 4).double()
    even.load_state_dict(branch.state_dict())
    hidden, _ = tokens(branch, 2, 12)
    hidden[1] *= 3  # rows and heads write unlike much
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, :4] = mask[1, 6] = False
    with torch.no_grad():
        wanted, _ = even.inputs(hidden, double(even.init_state(2)), None, mask)
        found, state = branch.inputs(hidden, double(branch.init_state(2)), None, mask)
    fallen = 0
    for row, head in itertools.product(range(2), range(2)):
        written = 0.0
        for step in range(12):
            beta = float(wanted.beta[row, head, step])
            written += beta * int(mask[row, step])
            odds = beta / (1 - beta) * budget / max(written, budget)
            fallen += written > 1.5 * budget
            assert float(found.beta[row, head, step]) == pytest.approx(odds / (1 + odds), abs=1e-12)
        assert float(state["written"][row, head]) == pytest.approx(written, abs=1e-12)
    assert fallen > 4


def test_tokens_that_are_hardly_written_leave_the_budget_to_others():
    written, budget = torch.zeros(1, 1), 100.0
    faint, whole = torch.full((1, 1, 1 << 20), 1e-9), torch.full((1, 1, 50), 0.9)
    _, written = within_budget(faint, written, budget, None)
    kept, written = within_budget(whole, written, budget, None)
    torch.testing.assert_close(kept, whole)
    lowered, _ = within_budget(whole, written + 855.0, budget, None)
    assert float(lowered[0, 0, 0]) == pytest.approx(0.5, abs=1e-3)  # odds of 9 by a sum of nine budgets


def test_a_merged_memory_has_written_what_both_have():
    branch = MemoryBranch(MemoryConfig(**KINDS["falling"]), HIDDEN, 4, 2, 4, 4)
    with torch.no_grad():
        first, second = (branch.write(torch.randn(1, length, HIDDEN), branch.init_state(1)) for length in (7, 9))
    merged = branch.memory.merge([first, second])["written"]
    torch.testing.assert_close(merged, first["written"] + second["written"])


@pytest.mark.parametrize("around", [1, 2])
def test_a_write_strength_starts_as_the_mean_of_the_tokens_before_or_behind(around):
    sizes = KINDS["recall"] | {"look_ahead": 2, "convolved_write_strength": True}
    alone, branch = (
        MemoryBranch(MemoryConfig(**sizes, write_strength_around=reach), HIDDEN, 4, 2, 4, 4).double()
        for reach in (0, around)
    )
    branch.load_state_dict({**alone.state_dict(), "inputs.conv_beta.weight": branch.inputs.conv_beta.weight})
    torch.nn.init.normal_(branch.inputs.beta_proj.weight)
    hidden, _ = tokens(branch, 2, 12)
    with torch.no_grad():
        found, _ = branch.inputs(hidden, double(branch.init_state(2)))
        logits = branch.inputs.beta_proj(hidden)
    for step in range(5, 12):  # of the token two before it
        own = step - 2
        sides = logits[:, own - around : own + 1].mean(1), logits[:, own : own + around + 1].mean(1)
        torch.testing.assert_close(found.beta[:, :, step], torch.maximum(*sides).sigmoid())


def test_a_mean_that_looks_ahead_starts_with_all_its_taps():
    config = MemoryConfig(**KINDS["ahead"] | {"convolution_mean_decay": 0.5})
    branch = MemoryBranch(config, HIDDEN, 4, 2, 4, 4)
    weight = branch.inputs.conv_k.weight.view(2, 6, 8)
    taps = torch.tensor([0.5 ** abs(age) for age in range(3, -5, -1)])
    torch.testing.assert_close(weight[:, -2:], (taps / taps.norm()).expand(2, 2, 8))
    for channel, delay in ((0, 4), (2, 5)):  # of the tokens it looks ahead, the shift, and the share's own
        assert weight[0, channel].tolist() == [float(tap == 7 - delay) for tap in range(8)]
    assert branch.inputs.conv_q.weight.shape == (24, 5)


@pytest.mark.parametrize(("kind", "late"), [("dense", 5), ("dense_alone", 1)])
def test_dense_channels_sum_maps_of_the_tokens_around_and_of_the_mean(kind, late):
    inputs = build(kind).inputs
    hidden, _ = tokens(build(kind), 2, 15)
    with torch.no_grad():
        found, _ = inputs(hidden, double(inputs.init_state(2)))
    for (channels, heads, tensor), states_of in zip(
        ((inputs.conv_k, inputs.num_key_value_heads, found.k), (inputs.conv_q, inputs.num_heads, found.q)),
        (lambda step: [step - late - 1, step - late, step - late + 1], lambda step: [step]),
        strict=True,
    ):
        convolved, own = tensor[..., : inputs.convolved_dim], tensor[..., inputs.convolved_dim :]
        assert own.shape[-1] == channels.dense.channels > 0 and convolved.shape[-1] == sum(channels.sizes)
        weight = channels.dense.states.weight.view(heads, -1, len(states_of(0)), HIDDEN)
        bias = channels.dense.states.bias.view(heads, -1)
        for step, row, head in itertools.product((7, 8, 14), (0, 1), range(heads)):
            seen = hidden[row, states_of(step)]
            wanted = bias[head] + sum(weight[head, :, place] @ seen[place] for place in range(len(seen)))
            if channels.has_mean:
                gates = 2 * channels.gates(seen[len(seen) // 2]).sigmoid().view(heads, -1)[head]
                mean = convolved[row, head, step, -channels.sizes[-1] :] / gates[len(channels.sizes) - 1]
                wanted = wanted + channels.dense.mean[head] @ mean
            if channels.dense.gates is not None:
                wanted = wanted * 2 * channels.dense.gates(seen.flatten()).sigmoid()[head]
            torch.testing.assert_close(own[row, head, step], wanted)


def test_dense_channels_of_the_first_token_see_nothing_before_it():
    inputs = build("dense").inputs
    hidden, _ = tokens(build("dense"), 1, 8)
    keys = inputs(hidden, double(inputs.init_state(1)))[0].k[:, :, 5]  # of the token that is written five tokens late
    before = inputs.conv_k.dense.states.weight[:, :HIDDEN]
    with torch.no_grad():
        before.add_(1.0)
    torch.testing.assert_close(inputs(hidden, double(inputs.init_state(1)))[0].k[:, :, 5], keys)


def test_dense_channels_start_as_one_map_of_the_token_and_of_the_one_that_asks():
    generator = torch.Generator().manual_seed(0)
    inputs = MemoryBranch(MemoryConfig(**KINDS["dense"]), HIDDEN, 4, 2, 8, 5).inputs
    text = torch.randn(4000, HIDDEN, generator=generator) @ torch.randn(HIDDEN, HIDDEN, generator=generator) + 3.0
    start_from_whitening(inputs, text.mean(0), text.T.cov(), generator)
    white = inputs.conv_q.dense.states(text).view(4000, 4, -1)
    torch.testing.assert_close(white.flatten(1).T.cov()[:3, :3], torch.eye(3), atol=0.05, rtol=0)
    torch.testing.assert_close(white.mean(0), torch.zeros_like(white[0]), atol=1e-3, rtol=0)
    around = torch.cat([text[:-2], text[1:-1], text[2:]], dim=-1)
    keys = inputs.conv_k.dense.states(around).view(3998, 2, -1)
    torch.testing.assert_close(keys.repeat_interleave(2, dim=1), white[1:-1], atol=1e-3, rtol=1e-3)
    assert not inputs.conv_k.dense.mean.any() and not inputs.conv_q.dense.mean.any()


def test_what_is_bound_is_multiplied_by_the_mean():
    sizes = {"delay": 1, "shares": (2.0, 1.0), "heads": 2, "mean": 2.0, "mean_decay": 0.5, "gated_by": 3}
    plain, bound = ShortConvolution(20, 5, **sizes), ShortConvolution(20, 5, binds=True, **sizes)
    x, hidden, past = torch.randn(2, 9, 20), torch.randn(2, 9, 3), torch.randn(2, 4, 20)
    torch.nn.init.normal_(bound.gates.weight)
    weight = bound.gates.weight.detach().unflatten(0, (2, 5))
    with torch.no_grad():
        plain.gates.weight.copy_(weight[:, :4].flatten(0, 1))
    wanted = plain(x, past, None, hidden)[0].unflatten(-1, (2, 10)).clone()
    gates = 2 * bound.gates(hidden).sigmoid().unflatten(-1, (2, 5))
    mean = wanted[..., 6:] / gates[..., 2:3]  # before its own gate
    for channel in range(6):
        wanted[..., channel] *= 1 + gates[..., 4] * mean[..., channel % 4]
    torch.testing.assert_close(bound(x, past, None, hidden)[0], wanted.flatten(2))
    ungated = ShortConvolution(20, 5, binds=True, **sizes | {"gated_by": None})(x, past)[0].unflatten(-1, (2, 10))
    other = ShortConvolution(20, 5, **sizes | {"gated_by": None})(x, past)[0].unflatten(-1, (2, 10))
    torch.testing.assert_close(ungated[..., 5], other[..., 5] * (1 + other[..., 7]))


def test_writing_alone_keeps_the_last_queries():
    """Of queries only the convolution's past is made; it is the one that reading leaves."""
    branch = MemoryBranch(MemoryConfig(**KINDS["recall"]), HIDDEN, 4, 2, 4, 4)
    for seq in (1, 2, 12):
        hidden = torch.randn(2, seq, HIDDEN)
        before = branch.write(torch.randn(2, 2, HIDDEN), branch.init_state(2))
        written, read = branch.write(hidden, before), branch(hidden, before)[1]
        assert written.keys() == read.keys()
        for name in written:
            torch.testing.assert_close(written[name], read[name])


def test_learned_strengths_start_at_their_configured_value_and_learn():
    branch = MemoryBranch(MemoryConfig(**KINDS["gated"], decay=0.97), HIDDEN, 4, 2, 4, 4)
    hidden = torch.randn(2, 3, HIDDEN)
    made, _ = branch.inputs(hidden, branch.init_state(2))
    torch.testing.assert_close(made.beta, torch.full((2, 2, 3), 0.5))
    torch.testing.assert_close(made.decay, torch.full((2, 2, 3), 0.97))
    out, state = branch(hidden, branch.init_state(2))
    (state["pending_M"].square().sum() + out.sum()).backward()
    assert branch.inputs.beta_proj.weight.grad.any()
    assert branch.inputs.decay_proj.weight.grad.any()


def test_own_sizes_replace_the_bases():
    branch = build("recall")
    assert (branch.num_heads, branch.num_key_value_heads, branch.key_dim, branch.value_dim) == (4, 2, 6, 5)
    assert branch.inputs.q_proj.weight.shape == (24, HIDDEN)
    assert branch.inputs.q_proj.bias is not None
    assert branch.inputs.v_proj.bias is not None
    assert branch.init_state(3)["M"].shape == (3, 2, 6, 5)


@pytest.mark.parametrize("heads,key_dim", ((2, 4), (4, 16)))
def test_the_whitened_start_sees_white_and_maps_queries_as_keys(heads, key_dim):
    config = MemoryConfig(
        combine="add", projections="own", num_heads=2 * heads, num_key_value_heads=heads, key_dim=key_dim, value_dim=4
    )
    inputs = MemoryBranch(config, HIDDEN, 4, 2, 4, 4).inputs.double()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(500, HIDDEN, generator=generator, dtype=torch.float64)
    hidden = hidden @ torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64) + 5.0
    covariance = torch.cov(hidden.T, correction=0)
    start_from_whitening(inputs, hidden.mean(0), covariance, torch.Generator().manual_seed(1))
    keys = inputs.k_proj(hidden)
    torch.testing.assert_close(keys.mean(0), torch.zeros_like(keys[0]))
    values = inputs.v_proj(hidden)
    torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]))
    if heads * key_dim <= HIDDEN:
        torch.testing.assert_close(
            torch.cov(keys.T, correction=0), torch.eye(heads * key_dim).double(), atol=0.05, rtol=0
        )
    queries = inputs.q_proj(hidden).view(500, heads, 2, key_dim)
    torch.testing.assert_close(queries[:, :, 0], keys.view(500, heads, key_dim))
    torch.testing.assert_close(queries[:, :, 1], keys.view(500, heads, key_dim))
    again = inputs.k_proj.weight.clone()
    start_from_whitening(inputs, hidden.mean(0), covariance, torch.Generator().manual_seed(1))
    assert torch.equal(inputs.k_proj.weight, again)


def test_bfloat16_modules_keep_a_float32_state():
    for kind in KINDS:
        branch = build(kind).bfloat16()
        hidden, shared = tokens(branch, 2, 7)
        shared = None if shared is None else tuple(x.bfloat16() for x in shared)
        out, state = run(branch, hidden.bfloat16(), shared, branch.init_state(2))
        assert out.dtype == torch.bfloat16
        assert {x.dtype for name, x in state.items() if name not in ("count", "begun", "read")} == {torch.float32}
        assert out.isfinite().all()


def test_rows_of_a_shared_state_may_grow_from_one():
    branch = build("batch")
    hidden, shared = tokens(branch, 1, 6)
    _, state = run(branch, hidden, shared, double(branch.init_state(1)))
    hidden, shared = tokens(branch, 3, 5)
    out, state = run(branch, hidden, shared, state)
    assert out.shape[0] == 3
    assert state["M"].shape[0] == 1
    assert state["conv_k"].shape[0] == 3


def test_what_is_given_must_fit_the_projections():
    shared, own = build("shared"), build("own_shift")
    hidden, qkv = tokens(shared, 2, 5)
    with pytest.raises(SenriError, match=r"needs the layer's \(q, k, v\), but 0 were given"):
        shared(hidden, shared.init_state(2))
    with pytest.raises(SenriError, match=r"needs the layer's \(q, k, v\), but 2 were given"):
        build("shared_convolution").write(hidden, build("shared_convolution").init_state(2), shared=qkv[1:])
    with pytest.raises(SenriError, match="projections is 'own'"):
        own(hidden, own.init_state(2), shared=qkv)
    with pytest.raises(SenriError, match="shared projections"):
        start_from_whitening(shared.inputs, torch.zeros(HIDDEN), torch.eye(HIDDEN))
    with pytest.raises(SenriError, match=rf"hidden_size is {HIDDEN}"):
        start_from_whitening(own.inputs, torch.zeros(3), torch.eye(3))
    with pytest.raises(SenriError, match="num_key_value_heads"):
        MemoryBranch(MemoryConfig(projections="own", num_heads=3), HIDDEN, 4, 2, 4, 4)


def test_reset_parameters_restores_the_start():
    branch = build("recall").float()
    branch.reset_parameters()
    fresh = MemoryBranch(MemoryConfig(**KINDS["recall"]), HIDDEN, 4, 2, 4, 4)
    for name in ("inputs.conv_q.weight", "inputs.conv_k.weight", "inputs.beta_proj.weight", "memory.norm_weight"):
        assert torch.equal(branch.get_parameter(name), fresh.get_parameter(name))
