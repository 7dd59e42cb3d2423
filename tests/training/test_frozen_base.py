"""The outputs of frozen layers, kept on disk."""

from pathlib import Path

import pytest
import torch

from senri.errors import SenriError
from senri.models import SenriForCausalLM
from senri.training.frozen_base import FrozenBase, first_trained_layer
from senri.training.language_modelling import LanguageModelling
from senri.training.parameters import choose_trained

from .conftest import tiny_model
from .test_language_modelling import assert_same, gradients

ROWS = list(torch.randint(0, 256, (3, 25), generator=torch.Generator().manual_seed(0)))


def make(model: SenriForCausalLM, folder: Path, dtype: str = "float32", identity: str = "rows") -> FrozenBase:
    return FrozenBase(model, ROWS, folder, dtype, identity, segment_tokens=8)


@pytest.fixture
def model() -> SenriForCausalLM:
    model = torch.nn.Module.to(tiny_model("gate"), torch.float32)
    choose_trained(model, "mixers")
    return model


def test_training_from_there_equals_training_from_the_tokens(model: SenriForCausalLM, tmp_path: Path) -> None:
    plain = LanguageModelling(model, 8, "full", True)(torch.stack(ROWS))["loss"]
    wanted = gradients(model, plain)
    kept = make(model, tmp_path)
    assert kept.start_layer == 2
    states = torch.stack([kept[row] for row in range(3)])
    loss = LanguageModelling(model, 8, "full", True, kept.start_layer)(torch.stack(ROWS), states)["loss"]
    assert torch.equal(loss, plain)
    assert_same(gradients(model, loss), wanted)


def test_half_precision_is_close(model: SenriForCausalLM, tmp_path: Path) -> None:
    whole, half = make(model, tmp_path / "whole")[1], make(model, tmp_path / "half", "float16")[1]
    assert torch.allclose(half, whole, rtol=1e-3, atol=1e-3)
    assert not torch.equal(half, whole)


def test_what_is_there_is_not_computed_again(model: SenriForCausalLM, tmp_path: Path) -> None:
    first = make(model, tmp_path)[1]
    reopened = make(model, tmp_path)
    model.model.forward = None  # type: ignore[assignment, method-assign]  # would fail if it were called
    assert torch.equal(reopened[1], first)
    with pytest.raises(TypeError):
        reopened[0]


def test_other_rows_or_other_weights_begin_anew(model: SenriForCausalLM, tmp_path: Path) -> None:
    first = make(model, tmp_path)[1]
    assert not make(model, tmp_path, identity="other rows")._is_there.any()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.add_(0.1)
    assert not torch.equal(make(model, tmp_path, identity="other rows")[1], first)


def test_numbers_beyond_half_precision_are_refused(model: SenriForCausalLM, tmp_path: Path) -> None:
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e6)
    with pytest.raises(SenriError, match="frozen_base_dtype=float32"):
        make(model, tmp_path, "float16")[0]


def test_dropout_is_off_where_layers_are_frozen(model: SenriForCausalLM, tmp_path: Path) -> None:
    wanted = make(model.eval(), tmp_path / "evaluating")[1]
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert torch.equal(make(model.train(), tmp_path / "training")[1], wanted)
    assert model.training


def test_the_first_trained_layer(model: SenriForCausalLM) -> None:
    assert first_trained_layer(model) == 2
    choose_trained(model, "all")
    assert first_trained_layer(model) == 0
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(SenriError, match="nothing would be learnt"):
        first_trained_layer(model)
