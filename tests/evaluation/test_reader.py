import pytest
import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from senri.evaluation import CacheReader, kv_cache_bytes, open_reader
from senri.evaluation.reader import without_memory
from senri.models import SenriConfig, SenriForCausalLM, Session

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
IDS = torch.randint(0, 50, (1, 40), generator=torch.Generator().manual_seed(3))


def models():
    torch.manual_seed(0)
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**SIZES)).eval(),
        "gpt_neox": GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)).eval(),
        "mistral": MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8)).eval(),
    }


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mistral"])
def test_any_model_is_read_in_chunks_as_at_once(name):
    model = models()[name]
    with torch.no_grad():
        wanted = model(IDS, use_cache=False).logits
    reader = CacheReader(model)
    got = torch.cat([reader.logits(chunk) for chunk in IDS.split(7, dim=1)], dim=1)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert reader.tokens_read == 40
    assert reader.logits(IDS[:, :3], logits_to_keep=2).shape == (1, 2, 50)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mistral"])
def test_forks_part_ways(name):
    model = models()[name]
    reader = CacheReader(model)
    reader.read(IDS[:, :20])
    twin = reader.fork()
    twin.read(IDS[:, :5])
    assert (reader.tokens_read, twin.tokens_read) == (20, 25)
    with torch.no_grad():
        wanted = model(IDS[:, :30], use_cache=False).logits[:, -1]
    torch.testing.assert_close(reader.read(IDS[:, 20:30]), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mistral"])
def test_generation_follows_what_was_read(name):
    model = models()[name]
    mask = torch.ones_like(IDS)
    whole = model.generate(
        IDS, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, 40:]
    reader = CacheReader(model)
    reader.read(IDS[:, :33])
    twin = reader.fork()
    new = twin.generate(IDS[:, 33:], max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert new.tolist() == whole.tolist()
    assert twin.tokens_read == 45
    assert reader.tokens_read == 33


def test_a_cache_is_counted():
    model = models()["llama"]
    reader = CacheReader(model)
    assert reader.window_bytes() == 0
    reader.read(IDS)
    assert reader.window_bytes() == kv_cache_bytes(model.config, 40, torch.float32)
    assert reader.memory_bytes() == 0


def test_a_senri_model_gets_a_session_and_its_memory_can_be_switched_off():
    torch.manual_seed(0)
    config = SenriConfig(
        **SIZES,
        sliding_window=8,
        default_layer_type="sliding_attention",
        memory_layers=[1],
        memory={"segment_length": 4, "gate_init": 0.0},
    )
    model = SenriForCausalLM(config).eval()
    assert isinstance(open_reader(model), Session)
    on = open_reader(model).read(IDS)
    with without_memory(model):
        off = open_reader(model).read(IDS)
    assert not torch.allclose(on, off)
    torch.testing.assert_close(open_reader(model).read(IDS), on)
    with without_memory(models()["llama"]):
        pass
