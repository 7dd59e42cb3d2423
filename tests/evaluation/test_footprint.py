import pytest
import torch
from transformers import DynamicCache, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from senri.evaluation import kv_cache_bytes, process_bytes, read_chunks


@pytest.mark.parametrize("head_dim", [8, 12])
def test_formula_equals_the_bytes_of_a_real_llama_cache(head_dim):
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
    )
    assert measured(LlamaForCausalLM(config), 11) == kv_cache_bytes(config, 11, torch.float32)


def test_formula_equals_the_bytes_of_a_real_neox_cache():
    config = GPTNeoXConfig(
        vocab_size=20, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4
    )
    assert measured(GPTNeoXForCausalLM(config), 7) == kv_cache_bytes(config, 7, torch.float32)


def measured(model, tokens: int) -> int:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long), past_key_values=cache)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_half_precision_takes_half_the_bytes():
    config = LlamaConfig()
    assert 2 * kv_cache_bytes(config, 100, torch.bfloat16) == kv_cache_bytes(config, 100, torch.float32)


class FakeSession:
    def __init__(self):
        self.tokens_read, self.seen = 0, []

    def read(self, input_ids):
        self.tokens_read += input_ids.shape[1]
        self.seen += input_ids[0].tolist()

    def memory_bytes(self):
        return 100

    def window_bytes(self):
        return min(self.tokens_read, 4) * 10


def test_reading_reports_each_chunk_and_reads_no_further_than_asked():
    session = FakeSession()
    records = read_chunks(session, torch.arange(7)[None].split(3, dim=1))
    first = next(records)
    assert session.seen == [0, 1, 2]
    rest = list(records)
    assert session.seen == list(range(7))
    assert [record.tokens for record in [first, *rest]] == [3, 6, 7]
    assert [record.chunk_tokens for record in [first, *rest]] == [3, 3, 1]
    assert [record.window_bytes for record in [first, *rest]] == [30, 40, 40]
    assert first.state_bytes == 100
    assert first.tokens_per_second == first.chunk_tokens / first.seconds


def test_process_memory_grows_with_what_is_allocated():
    before = process_bytes()
    block = torch.ones(16_000_000)
    assert process_bytes() - before > 0.8 * block.nbytes
