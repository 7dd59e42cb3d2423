"""A byte-level tokenizer and tiny models in evaluation mode, as subjects."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from senri.evaluation import Subject
from senri.models import SenriConfig, SenriForCausalLM

SIZES = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for every byte, and one for the end of a text."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary | {"<eos>": len(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture(scope="session")
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def senri_subject(bytes_tokenizer: PreTrainedTokenizerFast) -> Subject:
    torch.manual_seed(0)
    config = SenriConfig(
        **SIZES,
        sliding_window=16,
        default_layer_type="sliding_attention",
        memory_layers=[1],
        memory={"segment_length": 8, "gate_init": 0.0},
        eos_token_id=256,
    )
    return Subject(SenriForCausalLM(config).eval(), bytes_tokenizer, "tiny senri")


@pytest.fixture(scope="session")
def base_subject(bytes_tokenizer: PreTrainedTokenizerFast) -> Subject:
    torch.manual_seed(1)
    config = LlamaConfig(**SIZES, max_position_embeddings=64, eos_token_id=256)
    return Subject(LlamaForCausalLM(config).eval(), bytes_tokenizer, "tiny llama")
