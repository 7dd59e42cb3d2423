"""Tiny random bases, made with transformers and saved to temporary folders, and a cache folder of the test's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
SIZES = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    # Wide enough that attention is not near-uniform: a wrong head order must show in the logits.
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**(SIZES | {"num_key_value_heads": 2} | changes)))


def tiny_qwen2(**changes: object) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(Qwen2Config(**(SIZES | {"num_key_value_heads": 2, "tie_word_embeddings": True} | changes)))


def tiny_gpt_neox(**changes: object) -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**(SIZES | changes)))


BASES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "llama_tied_biases": lambda: tiny_llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=12),
    "qwen2": tiny_qwen2,
    "gpt_neox": tiny_gpt_neox,
    "gpt_neox_sequential": lambda: tiny_gpt_neox(
        use_parallel_residual=False, rope_parameters={"rope_theta": 500.0, "partial_rotary_factor": 0.5}
    ),
    "gpt_neox_no_bias": lambda: tiny_gpt_neox(attention_bias=False, tie_word_embeddings=True),
}


def make_base(kind: str) -> PreTrainedModel:
    """A random base. Biases and norms are random too: transformers starts them at 0 and 1, which hides mistakes."""
    torch.manual_seed(0)
    model = BASES[kind]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name and "bias" not in name))
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and one for "ab"."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_base(kind: str, folder: Path) -> Path:
    model = make_base(kind)
    model.generation_config.repetition_penalty = 1.25
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


class Bases:
    """What the tests make their bases with."""

    kinds = tuple(BASES)
    llama = staticmethod(tiny_llama)
    qwen2 = staticmethod(tiny_qwen2)
    gpt_neox = staticmethod(tiny_gpt_neox)
    make = staticmethod(make_base)
    save = staticmethod(save_base)
    tokenizer = staticmethod(tiny_tokenizer)


@pytest.fixture
def bases() -> Bases:
    return Bases()


@pytest.fixture(params=Bases.kinds)
def base_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SENRI_CACHE", str(folder))
    return folder
