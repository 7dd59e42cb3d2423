import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from senri.errors import SenriError
from senri.evaluation.health import causality_probe, note_of, warning_of
from senri.models import SenriConfig, SenriForCausalLM

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.randint(0, 50, (1, 40), generator=torch.Generator().manual_seed(3))


def test_suspicious_values_are_named():
    assert "leak" in warning_of(4.9)
    assert "untrained" in warning_of(5000.0)
    assert "untrained" in warning_of(math.inf)
    assert "not a number" in warning_of(math.nan)
    assert warning_of(40.96) is None


def test_a_good_value_still_asks_for_a_look_at_the_split():
    assert "split" in note_of(12.0)
    assert note_of(40.0) is None
    assert note_of(3.0) is None


@pytest.mark.parametrize("changed", ["same", "different"])
def test_a_causal_model_passes(changed):
    torch.manual_seed(0)
    ids = IDS.clone()
    if changed == "same":
        ids[0, 0] = ids[0, 20]  # the replacement must differ all the same
    for model in (
        LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3)),
        SenriForCausalLM(
            SenriConfig(
                **SIZES,
                initializer_range=0.3,
                sliding_window=8,
                default_layer_type="sliding_attention",
                memory_layers=[1],
                memory={"segment_length": 4, "gate_init": 0.0},
            )
        ),
    ):
        probe = causality_probe(model.eval(), ids)
        assert probe.is_causal
        assert probe.warning is None
        assert probe.position == 20


class Bidirectional(torch.nn.Module):
    """Every logit depends on every token."""

    config = LlamaConfig(**SIZES)
    device = torch.device("cpu")

    def forward(self, input_ids, use_cache):
        mean = torch.nn.functional.one_hot(input_ids, 50).float().mean(dim=1, keepdim=True)
        return type("Out", (), {"logits": mean.expand(-1, input_ids.shape[1], -1)})


class Deaf(Bidirectional):
    def forward(self, input_ids, use_cache):
        return type("Out", (), {"logits": torch.ones(*input_ids.shape, 50)})


def test_a_model_that_looks_ahead_is_caught():
    probe = causality_probe(Bidirectional(), IDS)
    assert not probe.is_causal
    assert "looks ahead" in probe.warning


def test_a_model_that_does_not_read_is_caught():
    assert "does not read" in causality_probe(Deaf(), IDS).warning


def test_too_few_tokens_are_refused():
    with pytest.raises(SenriError, match="at least 3"):
        causality_probe(Deaf(), IDS[:, :2])
