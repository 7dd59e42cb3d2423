"""Only the answers: the short way gives the loss and the gradients of the long one."""

import pytest
import torch

from senri.errors import SenriError
from senri.models import SenriConfig, SenriForCausalLM
from senri.training.answers import AnswersOnly
from senri.training.frozen_base import lower_states
from senri.training.parameters import choose_trained

from .conftest import MEMORIES, SIZES, tiny_model
from .test_language_modelling import assert_same, gradients

IDS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
QUESTIONS, ANSWERS = torch.tensor([29, 31]), torch.tensor([35, 36])


@pytest.mark.parametrize("layers", [(2,), (1, 3)])
@pytest.mark.parametrize("combine", MEMORIES)
def test_the_short_way_equals_running_all_layers(combine: str, layers: tuple[int, ...]) -> None:
    model = tiny_model(combine, layers)
    choose_trained(model, "mixers")
    plain = AnswersOnly(model, 8, "full", False, shortened=False)(IDS, QUESTIONS, ANSWERS)
    wanted = gradients(model, plain["loss"])
    assert wanted
    start = layers[0]
    states = lower_states(model, IDS, start, 8)
    short = AnswersOnly(model, 8, "full", True, start)(IDS, QUESTIONS, ANSWERS, states)
    assert torch.isclose(short["loss"], plain["loss"], rtol=1e-6)
    assert short["correct"] == plain["correct"]
    assert_same(gradients(model, short["loss"]), wanted)


def test_rows_of_different_lengths_do_not_touch_each_other() -> None:
    model = tiny_model("add")
    objective = AnswersOnly(model, 64, "full", False)
    alone = [objective(IDS[i : i + 1], QUESTIONS[i : i + 1], ANSWERS[i : i + 1])["loss"] for i in range(2)]
    tokens = 40 - ANSWERS
    together = objective(IDS, QUESTIONS, ANSWERS)["loss"]
    mean = sum(loss * count for loss, count in zip(alone, tokens, strict=True)) / tokens.sum()
    assert torch.isclose(together, mean, rtol=1e-5)


def test_the_answer_hangs_on_the_memory_alone() -> None:
    model = tiny_model("add", (2,))
    other = IDS.clone()
    other[:, :20] = 7
    objective = AnswersOnly(model, 64, "full", False)
    before, after = (objective(ids, QUESTIONS, ANSWERS)["loss"] for ids in (IDS, other))
    assert not torch.isclose(before, after)
    with model.memory_disabled():
        objective = AnswersOnly(model, 64, "full", False, shortened=False)
        before, after = (objective(ids, QUESTIONS, ANSWERS)["loss"] for ids in (IDS, other))
    assert torch.equal(before, after)


def test_a_question_that_fits_into_the_window_has_its_sink() -> None:
    model = tiny_model("gate", (2,))
    model.config.sliding_window = 16  # longer than the questions, which lie beyond it
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 16
    losses = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        losses.append(AnswersOnly(model, 64, "full", False)(IDS, QUESTIONS, ANSWERS)["loss"])
    assert torch.isclose(*losses, rtol=1e-6)
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.self_attn.sink.score, 3.0)
    assert not torch.isclose(AnswersOnly(model, 64, "full", False)(IDS, QUESTIONS, ANSWERS)["loss"], losses[0])


def test_a_model_without_memory_is_refused() -> None:
    with pytest.raises(SenriError, match="no memory"):
        AnswersOnly(SenriForCausalLM(SenriConfig(**SIZES)), 8, "full", False)
