"""Tiny models of every family and mixer, with weights large enough that a wrong state shows in the logits."""

from collections.abc import Callable

import pytest
import torch

from senri.models import SenriConfig, SenriForCausalLM

LINEAR_SEGMENTS = {"rule": "linear", "segment_length": 4, "gate_init": 0.0}
DELTA_TOKENS = {
    "combine": "add",
    "projections": "own",
    "num_heads": 2,
    "num_key_value_heads": 2,
    "key_dim": 8,
    "value_dim": 12,
    "rule": "delta",
    "feature_map": "l2",
    "normaliser": "rmsnorm",
    "granularity": "token",
    "token_shift": True,
    "short_convolution": 3,
    "learned_write_strength": True,
    "write_strength": 0.4,
}
MIXERS = {
    "full": {"memory_layers": []},
    "sliding": {"memory_layers": [], "sliding_window": 6, "default_layer_type": "sliding_attention"},
    "sink": {
        "memory_layers": [],
        "sliding_window": 6,
        "default_layer_type": "sliding_attention",
        "attention_sink": True,
    },
    "alone": {"memory_layers": [1], "memory": {**LINEAR_SEGMENTS, "combine": "alone"}},
    "alone_first": {"memory_layers": [0], "memory": {**LINEAR_SEGMENTS, "combine": "alone", "rule": "delta"}},
    "gate": {
        "memory_layers": [1],
        "sliding_window": 6,
        "default_layer_type": "sliding_attention",
        "memory": {**LINEAR_SEGMENTS, "calibration": "whiten"},
    },
    "gate_full": {"memory_layers": [1], "memory": {**LINEAR_SEGMENTS, "rule": "delta"}},
    "add": {
        "memory_layers": [1],
        "sliding_window": 6,
        "attention_sink": True,
        "default_layer_type": "sliding_attention",
        "memory": {**DELTA_TOKENS, "learned_read_strength": True, "eps": 0.3},
    },
    "copy": {
        "memory_layers": [1],
        "memory": {
            **DELTA_TOKENS,
            "combine": "copy",
            "learned_read_strength": True,
            "eps": 0.3,
            "whitened_inputs": True,
            "token_inputs": True,
            "copy_sharpness": 6.0,
        },
    },
    "gated_delta": {
        "memory_layers": [0, 1],
        "sliding_window": 6,
        "default_layer_type": "sliding_attention",
        "memory": {
            **LINEAR_SEGMENTS,
            "rule": "gated_delta",
            "feature_map": "dpfp",
            "decay": 0.98,
            "order": "update_then_retrieve",
        },
    },
}
WINDOW = {"sliding_window": 6, "default_layer_type": "sliding_attention"}
MIXERS |= {
    "banks": {
        "memory_layers": [1],
        **WINDOW,
        "memory": {**LINEAR_SEGMENTS, "rule": "delta", "options": {"num_memory_banks": 2, "segments_per_bank": 2}},
    },
    "multi": {"memory_layers": [1], **WINDOW, "memory": {"type": "multi", "segment_length": 4, "gate_init": 0.0}},
    "multi_learned": {
        "memory_layers": [1],
        "memory": {**DELTA_TOKENS, "type": "multi", "options": {"num_memories": 3, "routing": "learned"}},
    },
    "hierarchical": {
        "memory_layers": [0],
        **WINDOW,
        "memory": {"type": "hierarchical", "segment_length": 3, "combine": "alone", "order": "update_then_retrieve"},
    },
    "orthogonal": {
        "memory_layers": [1],
        **WINDOW,
        "memory": {**LINEAR_SEGMENTS, "type": "orthogonal", "calibration": "whiten", "options": {"top_k": 3}},
    },
    "shared": {"memory_layers": [0, 2], **WINDOW, "memory": {**DELTA_TOKENS, "state": "shared"}},
    "mixed": {
        "memory_layers": [0, 1, 2],
        "memory": {**LINEAR_SEGMENTS, "type": "multi"},
        "layer_memories": {
            0: {"type": "tensor", "combine": "alone", "rule": "gated_delta", "decay": 0.95},
            2: {"projections": "own", "num_heads": 1, "key_dim": 32, "value_dim": 32, "rule": "linear"},
        },
    },
}
MIXERS["copy_late"] = {
    "memory_layers": [1],
    "memory": {**MIXERS["copy"]["memory"], "look_ahead": 2, "write_delay": 3, "copy_turns": 4},
}
WITH_MEMORY = [name for name, options in MIXERS.items() if options["memory_layers"]]
FAMILIES = ["llama", "qwen2", "gpt_neox"]


def tiny_model(mixer: str, family: str = "llama", seed: int = 0, **options: object) -> SenriForCausalLM:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = SenriConfig(
        base_model_type=family,
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4 if family == "gpt_neox" else 2,
        hidden_act="gelu" if family == "gpt_neox" else "silu",
        max_position_embeddings=256,
        initializer_range=0.2,
        rope_parameters={**rope, "partial_rotary_factor": 0.5} if family == "gpt_neox" else rope,
        qkv_bias=family != "llama",
        o_bias=family == "gpt_neox",
        **{**MIXERS[mixer], **options},
    )
    torch.manual_seed(seed)
    model = SenriForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Fresh ones add nothing, or the same everywhere; here they must.
            if any(
                part in name for part in ("memory_o_proj", ".sink.", "memory_read", "memory_say.repetition", "say.end")
            ):
                parameter.normal_(std=0.5)
    return model


@pytest.fixture
def build() -> Callable[..., SenriForCausalLM]:
    return tiny_model


@pytest.fixture(params=list(MIXERS))
def model(request: pytest.FixtureRequest) -> SenriForCausalLM:
    return tiny_model(request.param)


@pytest.fixture(params=WITH_MEMORY)
def memory_model(request: pytest.FixtureRequest) -> SenriForCausalLM:
    return tiny_model(request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 101, (2, 29), generator=torch.Generator().manual_seed(1))
