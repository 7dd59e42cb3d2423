"""Loading a base: incomplete, damaged and unsupported checkpoints are refused; a GGUF file is dequantised once."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from senri.conversion import loading
from senri.conversion.loading import gguf_architecture, load_base
from senri.conversion.sources import ResolvedBase, resolve_base
from senri.errors import SenriError

GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def write_gguf(bases, path: Path, architecture: str = "llama") -> None:
    """Write the tiny Llama as llama.cpp would: its names, its order of rotary dimensions, float32."""
    model = bases.make("llama")
    config, tokenizer = model.config, bases.tokenizer()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types([1] * len(tokenizer))
    writer.add_token_merges(["a b"])
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for projection, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if projection in name:
                split = values.reshape(heads, 2, -1, values.shape[1])
                values = np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))
        for old, new in GGUF_NAMES.items():
            name = name.replace(old, new)
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_gguf(path: Path) -> ResolvedBase:
    return resolve_base(str(path))


def test_a_gguf_gives_the_models_weights_and_chat_template(bases, tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(bases, path)
    assert gguf_architecture(path) == "llama"
    model, tokenizer = load_base(as_gguf(path))
    original = bases.make("llama")
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    assert tokenizer.chat_template == bases.tokenizer().chat_template
    text = "about Grüße\n  x = 1"
    assert tokenizer(text).input_ids == bases.tokenizer()(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert getattr(model.config, "quantization_config", None) is None


def test_a_gguf_is_dequantised_once(bases, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, moved = tmp_path / "tiny.gguf", tmp_path / "moved.gguf"
    write_gguf(bases, path)
    first, _ = load_base(as_gguf(path))
    path.rename(moved)
    monkeypatch.setattr(loading, "GgufConfig", lambda **_: pytest.fail("dequantised a second time"))
    second, tokenizer = load_base(as_gguf(moved), torch.bfloat16)
    assert second.dtype == torch.bfloat16
    assert second.config.to_dict() | {"dtype": None} == first.config.to_dict() | {"dtype": None}
    assert tokenizer.chat_template
    folders = list((own_cache / "dequantised").iterdir())
    assert len(folders) == 1, "leftovers of the dequantisation"


def test_a_gguf_of_another_architecture_is_refused_before_loading(bases, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(bases, path, architecture="falcon")
    with pytest.raises(SenriError, match="'falcon'.*llama, qwen2"):
        load_base(as_gguf(path))


@pytest.mark.parametrize("keep", [0, 3, 20, 2000])
def test_a_cut_gguf_is_refused(bases, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(bases, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SenriError, match=r"tiny\.gguf"):
        load_base(as_gguf(path))


def test_a_gguf_whose_weights_are_cut_is_refused_and_not_cached(bases, tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(bases, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SenriError, match=r"tiny\.gguf cannot be dequantised"):
        load_base(as_gguf(path))
    assert not list(own_cache.rglob("*.safetensors"))


def test_a_folder_gives_model_and_tokenizer(bases, tmp_path: Path) -> None:
    folder = bases.save("qwen2", tmp_path / "base")
    model, tokenizer = load_base(resolve_base(str(folder)), torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert tokenizer.chat_template == bases.tokenizer().chat_template


def test_a_folder_of_another_architecture_is_refused(bases, tmp_path: Path) -> None:
    folder = bases.save("llama", tmp_path / "base")
    values = json.loads((folder / "config.json").read_text())
    for model_type, message in (("mistral", "'mistral'.*llama, qwen2, gpt_neox"), ("no_such", r"config\.json")):
        (folder / "config.json").write_text(json.dumps(values | {"model_type": model_type}))
        with pytest.raises(SenriError, match=message):
            load_base(resolve_base(str(folder)))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_incomplete_and_foreign_weights_are_named(bases, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = bases.save("llama", tmp_path / "missing")
    change_weights(folder, lambda weights: weights.pop(name))
    with pytest.raises(SenriError, match=f"lack the tensor {name}"):
        load_base(resolve_base(str(folder)))
    folder = bases.save("llama", tmp_path / "reshaped")
    change_weights(folder, lambda weights: weights.update({name: torch.zeros(3, 5)}))
    with pytest.raises(SenriError, match=rf"{name}.*\[3, 5\].*\[48, 32\]"):
        load_base(resolve_base(str(folder)))


def test_cut_weights_and_a_missing_tokenizer(bases, tmp_path: Path) -> None:
    folder = bases.save("llama", tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SenriError, match="weights of .* cannot be read"):
        load_base(resolve_base(str(folder)))
    folder = bases.save("llama", tmp_path / "silent")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(SenriError, match="tokenizer of .* cannot be read"):
        load_base(resolve_base(str(folder)))
