"""Long sequences in segments: the same loss and gradients as one pass over the whole."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from senri.models import SenriForCausalLM
from senri.training.language_modelling import LanguageModelling

from .conftest import MEMORIES, SIZES, tiny_model

IDS = torch.randint(0, 256, (2, 33), generator=torch.Generator().manual_seed(0))


def gradients(model: SenriForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def whole_loss(model: SenriForCausalLM, ids: Tensor) -> Tensor:
    logits = model(ids, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], bound: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert error < bound, (name, float(error))


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("combine", MEMORIES)
def test_segments_equal_one_pass_in_loss_and_all_gradients(combine: str, checkpointing: bool) -> None:
    model = tiny_model(combine)
    wanted_loss = whole_loss(model, IDS)
    wanted = gradients(model, wanted_loss)
    loss = LanguageModelling(model, 7, "full", checkpointing)(IDS)["loss"]
    assert torch.isclose(loss, wanted_loss, rtol=1e-6)
    assert_same(gradients(model, loss), wanted)


def test_detached_segments_have_the_same_loss_and_other_gradients() -> None:
    model = tiny_model("alone")
    whole = LanguageModelling(model, 8, "full", True)(IDS)["loss"]
    full = gradients(model, whole)
    cut = LanguageModelling(model, 8, "segment", True)(IDS)["loss"]
    assert torch.isclose(cut, whole)
    truncated = gradients(model, cut)
    name = "model.layers.3.self_attn.memory.inputs.v_proj.weight"
    assert (truncated[name] - full[name]).norm() > 0.01 * full[name].norm()


def test_a_detached_segment_has_the_gradients_of_a_state_that_was_given() -> None:
    model = tiny_model("alone")
    objective = LanguageModelling(model, 16, "segment", False)
    found = gradients(model, objective(IDS)["loss"])
    cache: Any = None
    wanted: dict[str, Tensor] = {}
    for begin in (0, 16):
        out = model(IDS[:, begin : begin + 16], past_key_values=cache, use_cache=True)
        loss = F.cross_entropy(
            out.logits.flatten(0, 1).float(), IDS[:, begin + 1 : begin + 17].flatten(), reduction="sum"
        )
        for name, gradient in gradients(model, loss / 64).items():
            wanted[name] = wanted.get(name, 0) + gradient
        cache = out.past_key_values
        for layer in cache.layers:
            if getattr(layer, "keys", None) is not None:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
            if hasattr(layer, "detach_"):
                layer.detach_()
    assert_same(found, wanted)


def test_each_row_starts_with_an_empty_state() -> None:
    model = tiny_model("add")
    objective = LanguageModelling(model, 8, "full", False)
    alone = [objective(row.unsqueeze(0))["loss"] for row in IDS]
    together = objective(IDS)["loss"]
    assert torch.isclose(together, torch.stack(alone).mean(), rtol=1e-6)
    again = objective(IDS[:1])["loss"]
    assert torch.equal(again, alone[0])


def test_the_divergence_from_a_base_is_a_share_of_the_loss() -> None:
    model = tiny_model("gate")
    torch.manual_seed(2)
    base = LlamaForCausalLM(LlamaConfig(**SIZES)).double().eval()
    plain = LanguageModelling(model, 8, "full", False)(IDS)["loss"]
    mixed = LanguageModelling(model, 8, "full", False, base=base, kl_weight=0.25)(IDS)["loss"]
    mine = model(IDS[:, :-1], use_cache=False).logits.float().log_softmax(-1)
    theirs = base(IDS[:, :-1]).logits.float().log_softmax(-1)
    divergence = (theirs.exp() * (theirs - mine)).sum(-1).mean()
    assert torch.isclose(mixed, 0.75 * plain + 0.25 * divergence, rtol=1e-4)
    assert all(parameter.grad is None for parameter in base.parameters())
