"""TensorMemory against a plain loop over rows, heads and tokens, for every rule, normaliser, granularity and order."""

import itertools

import pytest
import torch
from torch import Tensor

from senri.memory import TensorMemory
from senri.memory.features import apply_feature_map

RULES = ("linear", "delta", "gated_delta")
MAPS = (("denominator", "elu_plus_one"), ("denominator", "dpfp"), ("rmsnorm", "l2"), ("rmsnorm", "dpfp"))
CASES = list(itertools.product(RULES, MAPS, ("segment", "token"), ("retrieve_then_update", "update_then_retrieve")))
SEGMENT = 4


def build(rule, maps, granularity, order, **knobs):
    return TensorMemory(
        hidden_size=12, num_heads=4, num_key_value_heads=2, key_dim=3, value_dim=5, rule=rule, normaliser=maps[0],
        feature_map=maps[1], granularity=granularity, order=order, dpfp_order=2,
        **{"segment_length": SEGMENT, **knobs},
    ).double()  # fmt: skip


def reference(memory: TensorMemory, q, k, v, beta, decay=None, mask=None, start=None):
    """Outputs and final (M, z, pending M, pending z) by the definition, one token of one head at a time."""
    config, group = memory.config, memory.num_heads // memory.num_key_value_heads
    batch, heads, seq, _ = k.shape
    segment_length = 1 if config.granularity == "token" else config.segment_length

    def ratio(features, matrix, z):
        if config.normaliser == "rmsnorm":
            return features @ matrix
        return features @ matrix / (features @ z).clamp(min=config.eps)

    outs, finals = {}, []
    for b, h in itertools.product(range(batch), range(heads)):
        phi_k = apply_feature_map(k[b, h], config)
        phi_q = [apply_feature_map(q[b, h * group + g], config) for g in range(group)]
        width = phi_k.shape[-1]
        if start is None:
            matrix, z = k.new_zeros(width, v.shape[-1]), k.new_zeros(width)
        else:
            matrix, z = start[0][b, h], start[1][b, h]
        pending, pending_z, fade, seen = torch.zeros_like(matrix), torch.zeros_like(z), k.new_ones(()), 0
        for t in range(seq):
            if mask is not None and not mask[b, t]:
                for g in range(group):
                    outs[b, h * group + g, t] = k.new_zeros(v.shape[-1])
                continue
            before = (matrix, z)
            alpha = decay[b, h, t] if decay is not None else k.new_ones(())
            fade, pending, pending_z = fade * alpha, pending * alpha, pending_z * alpha
            old = 0.0
            holds_something = config.normaliser == "rmsnorm" or (fade * z * phi_k[t]).sum() > config.eps
            if config.rule != "linear" and holds_something:
                old = ratio(phi_k[t], fade * matrix, fade * z)
            pending = pending + beta[b, h, t] * torch.outer(phi_k[t], v[b, h, t] - old)
            pending_z = pending_z + beta[b, h, t] * phi_k[t]
            after = (fade * matrix + pending, fade * z + pending_z)
            for g in range(group):
                seen_state = before if config.order == "retrieve_then_update" else after
                out = ratio(phi_q[g][t], *seen_state)
                if config.normaliser == "rmsnorm":
                    weight = memory.norm_weight[h * group + g]
                    out = out / (out.square().mean() + config.eps).sqrt() * weight
                outs[b, h * group + g, t] = out
            seen += 1
            if seen % segment_length == 0:
                matrix, z = after
                pending, pending_z = torch.zeros_like(matrix), torch.zeros_like(z)
                fade = torch.ones_like(fade)
        finals.append((matrix, z, pending, pending_z))
    out = torch.stack([outs[key] for key in sorted(outs)]).view(batch, memory.num_heads, seq, -1)
    stacked = [torch.stack(part).unflatten(0, (batch, heads)) for part in zip(*finals, strict=True)]
    return out, stacked


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-9):
    scale = max(1.0, float(wanted.detach().abs().max())) if wanted.numel() else 1.0
    torch.testing.assert_close(got, wanted, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("rule,maps,granularity,order", CASES)
def test_values_state_and_gradients_equal_the_loop(rule, maps, granularity, order, inputs, empty):
    memory = build(rule, maps, granularity, order)
    tensors = inputs(memory, batch=2, seq=11)
    if maps[0] == "rmsnorm":
        torch.nn.init.normal_(memory.norm_weight, mean=1.0)
    state = empty(memory, 2)
    start = torch.rand_like(state["M"]), torch.rand(state["M"].shape[:-1], dtype=torch.float64) + 0.5
    state["M"] = start[0]
    if "z" in state:
        state["z"] = start[1]
    leaves = [*tensors.values(), *start, *memory.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()

    out, new = memory.scan(state=state, **tensors)
    wanted, (matrix, z, pending, pending_z) = reference(memory, **tensors, start=start)

    close(out, wanted)
    expected = {"M": matrix, "z": z, "pending_M": pending, "pending_z": pending_z}
    assert new["count"].tolist() == [11, 11]
    for name, value in expected.items():
        if name in new:
            close(new[name], value)
    weight = torch.randn_like(out)
    losses = [(o * weight).sum() + m.square().sum() for o, m in ((out, new["M"]), (wanted, matrix))]
    for got, want in zip(*(torch.autograd.grad(loss, leaves, allow_unused=True) for loss in losses), strict=True):
        if want is not None or got is not None:
            got = torch.zeros_like(want) if got is None else got
            close(got, torch.zeros_like(got) if want is None else want, 1e-8)


@pytest.mark.parametrize("rule,maps,granularity,order", CASES)
def test_padding_anywhere_equals_the_loop_and_the_row_without_it(rule, maps, granularity, order, inputs, empty):
    memory = build(rule, maps, granularity, order)
    tensors = inputs(memory, batch=3, seq=13)
    mask = torch.ones(3, 13, dtype=torch.bool)
    mask[1, :6] = False
    mask[2, [0, 3, 4, 11, 12]] = False
    out, new = memory.scan(state=empty(memory, 3), mask=mask, **tensors)
    close(out, reference(memory, **tensors, mask=mask)[0])
    assert new["count"].tolist() == [13, 7, 8]
    for row in range(3):
        alone = {name: x[row : row + 1, :, mask[row]] for name, x in tensors.items()}
        alone_out, alone_state = memory.scan(state=empty(memory, 1), **alone)
        close(out[row : row + 1][:, :, mask[row]], alone_out, 1e-11)
        for name, value in alone_state.items():
            close(new[name][row : row + 1], value, 1e-11)


@pytest.mark.parametrize("rule,maps", list(itertools.product(RULES, MAPS)))
@pytest.mark.parametrize("order", ("retrieve_then_update", "update_then_retrieve"))
def test_segments_of_one_token_are_token_granularity(rule, maps, order, inputs, empty):
    by_segment = build(rule, maps, "segment", order, segment_length=1)
    by_token = build(rule, maps, "token", order)
    tensors = inputs(by_segment, batch=2, seq=9)
    out, state = by_segment.scan(state=empty(by_segment, 2), **tensors)
    wanted, token_state = by_token.scan(state=empty(by_token, 2), **tensors)
    close(out, wanted, 1e-11)
    close(state["M"], token_state["M"], 1e-11)
