"""Weight maps: the split of GPT-NeoX's fused projection, and the refusal of tensors that do not fit."""

import pytest
import torch
from transformers import GPT2Config

from senri.conversion.families import convert_config
from senri.conversion.preset import Preset
from senri.conversion.weights import convert_weights, group_name, split_fused_qkv
from senri.errors import SenriError


def test_fused_rows_are_interleaved_per_head() -> None:
    heads, head_dim = 3, 2
    # row = 100 * head + 10 * (0 for q, 1 for k, 2 for v) + position in the head
    rows = [100 * h + 10 * part + d for h in range(heads) for part in range(3) for d in range(head_dim)]
    q, k, v = split_fused_qkv(torch.tensor(rows), heads)
    assert q.tolist() == [0, 1, 100, 101, 200, 201]
    assert k.tolist() == [10, 11, 110, 111, 210, 211]
    assert v.tolist() == [20, 21, 120, 121, 220, 221]


def test_split_projections_give_the_base_attentions_own_q_k_v(bases) -> None:
    base = bases.make("gpt_neox")
    attention = base.gpt_neox.layers[1].attention
    x = torch.randn(2, 5, 32)
    fused = attention.query_key_value(x).view(2, 5, -1, 3 * attention.head_size).transpose(1, 2)
    weights = convert_weights(base.state_dict(), base.config)
    for part, name in zip(fused.chunk(3, dim=-1), ("q_proj", "k_proj", "v_proj"), strict=True):
        prefix = f"model.layers.1.self_attn.{name}"
        own = torch.nn.functional.linear(x, weights[f"{prefix}.weight"], weights[f"{prefix}.bias"])
        torch.testing.assert_close(own.view(2, 5, 4, 8).transpose(1, 2), part)


def test_llama_and_qwen2_keep_their_names_and_tied_heads_are_left_out(bases) -> None:
    llama = bases.make("llama")
    assert convert_weights(llama.state_dict(), llama.config).keys() == llama.state_dict().keys()
    qwen2 = bases.make("qwen2")
    assert convert_weights(qwen2.state_dict(), qwen2.config).keys() == qwen2.state_dict().keys() - {"lm_head.weight"}


def test_gpt_neox_names_are_llamas(bases) -> None:
    base = bases.make("gpt_neox")
    groups = {group_name(name) for name in convert_weights(base.state_dict(), base.config)}
    attention = {f"model.layers.*.self_attn.{p}_proj.{kind}" for p in "qkvo" for kind in ("weight", "bias")}
    mlp = {f"model.layers.*.mlp.{p}.{kind}" for p in ("dense_h_to_4h", "dense_4h_to_h") for kind in ("weight", "bias")}
    norms = {
        f"{norm}.{kind}"
        for norm in ("model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm", "model.norm")
        for kind in ("weight", "bias")
    }
    assert groups == attention | mlp | norms | {"model.embed_tokens.weight", "lm_head.weight"}


def test_config_fields_of_each_family(bases) -> None:
    preset = Preset(memory_layers=[1], sliding_window=16)
    llama = convert_config(bases.llama(attention_bias=True, head_dim=12).config, preset, "somewhere")
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias, llama.head_dim) == (True, True, False, 12)
    assert (llama.base_model_type, llama.base_name_or_path, llama.memory_layers) == ("llama", "somewhere", [1])
    assert llama.layer_types == ["full_attention", "hybrid_sliding", "full_attention"]
    qwen2 = convert_config(bases.qwen2().config, preset)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.num_key_value_heads, qwen2.tie_word_embeddings) == (
        True,
        False,
        2,
        True,
    )
    neox = convert_config(bases.gpt_neox(use_parallel_residual=False, layer_norm_eps=1e-3).config, preset)
    assert (neox.use_parallel_residual, neox.layer_norm_eps, neox.o_bias) == (False, 1e-3, True)
    assert neox.rope_parameters["partial_rotary_factor"] == 0.25


def test_unknown_architecture_is_refused_with_the_supported_ones() -> None:
    with pytest.raises(SenriError, match=r"'gpt2'.*llama, qwen2, gpt_neox"):
        convert_config(GPT2Config(), Preset())
    with pytest.raises(SenriError, match=r"'gpt2'.*llama, qwen2, gpt_neox"):
        convert_weights({}, GPT2Config())


def test_own_window_and_unknown_activation_are_refused(bases) -> None:
    with pytest.raises(SenriError, match="use_sliding_window"):
        convert_config(bases.qwen2(use_sliding_window=True, sliding_window=8, max_window_layers=1).config, Preset())
    config = bases.llama().config
    config.hidden_act = "sillu"
    with pytest.raises(SenriError, match=r"hidden_act 'sillu'.*'silu'"):
        convert_config(config, Preset())


def test_quantised_base_is_refused(bases) -> None:
    config = bases.llama().config
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(SenriError, match="quantised"):
        convert_config(config, Preset())


def test_tensors_that_do_not_fit_the_config_are_named(bases) -> None:
    base = bases.make("llama")
    name = "model.layers.0.self_attn.k_proj.weight"
    weights = base.state_dict()
    with pytest.raises(SenriError, match=rf"{name} has the shape \[1, 2\].*\[16, 32\]"):
        convert_weights(weights | {name: torch.zeros(1, 2)}, base.config)
    with pytest.raises(SenriError, match=f"lacks the tensor {name}"):
        convert_weights({key: value for key, value in weights.items() if key != name}, base.config)
    with pytest.raises(SenriError, match=r"tensor extra\.weight"):
        convert_weights(weights | {"extra.weight": torch.zeros(1)}, base.config)
