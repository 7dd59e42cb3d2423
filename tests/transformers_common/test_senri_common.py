"""transformers' own common model tests, run on Senri's classes for every family and mixer.

They come from the source distribution of the installed version, downloaded at test time. What they hardly look at, the
state of a memory (reorder, crop, repeat, reset, padding), has its own tests in `tests/models`.
"""

import os
import unittest
from typing import Any, ClassVar

import pytest
import torch
from transformers_sdist import SdistUnavailable, load_common_tests, sdist_tests

from senri.models import SenriConfig, SenriForCausalLM, SenriModel

try:
    common = load_common_tests(sdist_tests())
except SdistUnavailable as error:
    if os.environ.get("CI") == "true":
        raise
    pytest.skip(f"transformers' common tests cannot be had: {error}", allow_module_level=True)

WINDOW = {"sliding_window": 5, "default_layer_type": "sliding_attention", "attention_sink": True}
ALONE = {"memory_layers": [1], "memory": {"combine": "alone", "segment_length": 3}}
GATE = {"memory_layers": [1], **WINDOW, "memory": {"combine": "gate", "segment_length": 3}}
ADD = {
    "memory_layers": [1],
    "memory": {
        "combine": "add",
        "projections": "own",
        "num_heads": 2,
        "key_dim": 8,
        "value_dim": 8,
        "rule": "delta",
        "feature_map": "l2",
        "normaliser": "rmsnorm",
        "granularity": "token",
        "learned_write_strength": True,
        "write_strength": 0.5,
        "token_shift": True,
        "short_convolution": 2,
    },
}
COPY = {"memory_layers": [1], "memory": {**ADD["memory"], "combine": "copy", "learned_read_strength": True}}
MULTI = {"memory_layers": [1], **WINDOW, "memory": {"type": "multi", "segment_length": 3}}
HIERARCHICAL = {"memory_layers": [1], "memory": {"type": "hierarchical", "segment_length": 2, "combine": "alone"}}
ORTHOGONAL = {"memory_layers": [1], **WINDOW, "memory": {"type": "orthogonal", "segment_length": 3}}
SHARED = {"memory_layers": [0, 1], "memory": {**ADD["memory"], "state": "shared"}}


class ModelTester:
    """What the common tests ask: a small configuration and inputs for it."""

    batch_size = 4
    seq_length = 7  # more than two segments and more than the window
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2
    is_training = True

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def get_config(self) -> SenriConfig:
        return SenriConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=37,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **self.settings,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[SenriConfig, dict[str, torch.Tensor]]:
        input_ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class Common(common.ModelTesterMixin, common.GenerationTesterMixin):  # type: ignore[name-defined,misc]
    """The common tests on Senri's classes; a subclass names the configuration."""

    all_model_classes = (SenriModel, SenriForCausalLM)
    settings: ClassVar[dict[str, Any]]

    def setUp(self) -> None:
        self.model_tester = ModelTester(self.settings)


class MemoryAlone(Common):
    """A layer that is a memory alone has no attention weights to show, which the common test does not foresee."""

    def test_attention_outputs(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        attending = self.model_tester.num_hidden_layers - len(config.memory_layers)
        heads, length = self.model_tester.num_attention_heads, self.model_tester.seq_length
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            with torch.no_grad():
                attentions = model(**inputs, output_attentions=True).attentions
            self.assertEqual(len(attentions), attending)
            for weights in attentions:
                self.assertEqual(weights.shape, (self.model_tester.batch_size, heads, length, length))
                torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.slow
class TestLlamaWithoutMemory(Common, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "llama", "num_key_value_heads": 1}


@pytest.mark.slow
class TestLlamaMemoryAlone(MemoryAlone, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "llama", "num_key_value_heads": 1, **ALONE}


class TestLlamaWindowAndMemory(Common, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "llama", "num_key_value_heads": 1, **GATE}


@pytest.mark.slow
class TestLlamaAddedMemory(Common, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "llama", "num_key_value_heads": 1, **ADD}


@pytest.mark.slow
class TestLlamaCopiedMemory(Common, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "llama", "num_key_value_heads": 1, **COPY}

    @unittest.skip("a memory that the head says refuses it (tests/models/test_copied_memory.py)")
    def test_training_gradient_checkpointing_use_reentrant_true(self) -> None:
        pass


@pytest.mark.slow
class TestQwen2WindowAndMemory(Common, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "qwen2", "num_key_value_heads": 1, "qkv_bias": True, **GATE}


@pytest.mark.slow
class TestGPTNeoXWindowAndMemory(Common, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "gpt_neox", "hidden_act": "gelu", **GATE}


@pytest.mark.slow
class TestGPTNeoXMemoryAlone(MemoryAlone, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "gpt_neox", "hidden_act": "gelu", **ALONE}


@pytest.mark.slow
class TestLlamaMultiMemory(Common, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "llama", "num_key_value_heads": 1, **MULTI}


@pytest.mark.slow
class TestGPTNeoXHierarchicalMemoryAlone(MemoryAlone, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "gpt_neox", "hidden_act": "gelu", **HIERARCHICAL}


@pytest.mark.slow
class TestQwen2OrthogonalBasisMemory(Common, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "qwen2", "num_key_value_heads": 1, "qkv_bias": True, **ORTHOGONAL}


@pytest.mark.slow
class TestLlamaSharedState(Common, unittest.TestCase):
    settings: ClassVar = {"base_model_type": "llama", "num_key_value_heads": 1, **SHARED}

    @unittest.skip("a state that layers share refuses it (tests/memory/test_shared_read.py)")
    def test_training_gradient_checkpointing_use_reentrant_true(self) -> None:
        pass
