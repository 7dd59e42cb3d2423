"""convert: a closed gate and a long window leave the base's logits; what is written comes back; targets are guarded."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from senri.conversion import CalibrationSettings, Preset, convert, load_preset
from senri.conversion import output as output_module
from senri.errors import SenriError
from senri.memory import MemoryConfig

CLOSED = -60.0
TOKENS = 40


def settings(**changes) -> CalibrationSettings:
    values = {
        "tokens": 512,
        "sequence_length": 64,
        "block_characters": 1024,
        "seed": 0,
        "solve_gate": False,
        "gate_low": 0.01,
        "gate_high": 0.99,
        "relative_floor": 1e-4,
    }
    return CalibrationSettings(**(values | changes))


def gate(**memory) -> Preset:
    kept = {"combine": "gate", "gate_init": CLOSED, "segment_length": 8}
    return Preset(memory_layers=[0, 2], sliding_window=64, memory=MemoryConfig(**(kept | memory)))


def logits(model, rows: int = 2) -> torch.Tensor:
    ids = torch.randint(0, 256, (rows, TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def test_closed_gate_and_long_window_give_the_bases_logits(bases, base_kind: str, tmp_path: Path) -> None:
    folder = bases.save(base_kind, tmp_path / "base")
    result = convert(folder, gate(), calibration=settings())
    assert (logits(result.model) - logits(bases.make(base_kind))).abs().max() <= 1e-4


@pytest.mark.parametrize("default_layer_type", ["full_attention", "sliding_attention"])
def test_the_window_changes_only_tokens_beyond_it(bases, tmp_path: Path, default_layer_type: str) -> None:
    folder = bases.save("llama", tmp_path / "base")
    preset = gate()
    preset.sliding_window, preset.default_layer_type = 16, default_layer_type
    converted, base = logits(convert(folder, preset, calibration=settings()).model), logits(bases.make("llama"))
    assert (converted[:, :16] - base[:, :16]).abs().max() <= 1e-4
    assert (converted[:, 20:] - base[:, 20:]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
def test_an_added_branch_starts_as_the_base(bases, tmp_path: Path, kind: str) -> None:
    folder = bases.save(kind, tmp_path / "base")
    memory = MemoryConfig(combine="add", projections="own", num_heads=2, num_key_value_heads=2, key_dim=5, value_dim=7)
    result = convert(folder, Preset(memory_layers=[1], memory=memory), calibration=settings())
    assert (logits(result.model) - logits(bases.make(kind))).abs().max() <= 1e-4


@pytest.mark.parametrize("sees_tokens", [False, True])
def test_a_memory_that_the_head_says_starts_with_whitening_and_codes(bases, tmp_path: Path, sees_tokens: bool) -> None:
    sizes = {"num_heads": 2, "num_key_value_heads": 2, "key_dim": 5, "value_dim": 8}
    kind = {"combine": "copy", "projections": "own", "normaliser": "rmsnorm", "learned_read_strength": True}
    memory = MemoryConfig(
        **kind, **sizes, whitened_inputs=True, token_inputs=sees_tokens, copy_sharpness=9.0, calibration="whiten"
    )
    preset = Preset(memory_layers=[1], memory=memory)
    result = convert(bases.save("llama", tmp_path / "base"), preset, calibration=settings())
    mixer = result.model.model.layers[1].self_attn
    embeddings = result.model.model.embed_tokens.weight.detach()
    phases = embeddings @ mixer.memory_codes.frequencies.detach().T
    assert 1.0 < phases.var(0).mean() < 20.0, phases.var(0)  # 0.25 for each of 32 directions
    whitening = mixer.memory.inputs.whitening.weight
    assert whitening.shape == ((64, 64) if sees_tokens else (32, 32))
    assert not torch.equal(whitening[-32:, -32:], torch.eye(32))
    assert mixer.memory.memory.key_mean.any()  # of keys made as the memory makes them
    if sees_tokens:  # of the embeddings of a text, which hidden states have much in common with
        assert whitening[:32, -32:].abs().max() > 1e-3
    sources = {row.name.split("self_attn.")[1]: row.source for row in result.table.rows if row.action == "created"}
    assert "measured on" in sources["memory.inputs.whitening.weight"]
    assert sources["memory_codes.sharpness"] == "memory.copy_sharpness 9.0"
    with result.model.memory_disabled():
        assert (logits(result.model) - logits(bases.make("llama"))).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "sizes",
    [{}, {"num_heads": 1, "num_key_value_heads": 1, "key_dim": 32, "value_dim": 32}],
    ids=["as base", "one head"],
)
def test_a_memory_in_place_of_attention_starts_from_the_bases_projections(bases, tmp_path: Path, sizes: dict) -> None:
    folder = bases.save("llama_tied_biases", tmp_path / "base") if not sizes else bases.save("llama", tmp_path / "base")
    memory = MemoryConfig(combine="alone", projections="own", order="update_then_retrieve", **sizes)
    model = convert(folder, Preset(memory_layers=[1], memory=memory), calibration=settings()).model
    attention = (bases.make("llama" if sizes else "llama_tied_biases")).model.layers[1].self_attn
    inputs = model.model.layers[1].self_attn.memory.inputs
    x = torch.randn(1, 3, 32)
    torch.testing.assert_close(inputs.q_proj(x), attention.q_proj(x))
    expected = attention.k_proj(x)
    if sizes:  # key head 0 serves query heads 0 and 1, key head 1 the others
        expected = expected.unflatten(-1, (2, 8))[:, :, [0, 0, 1, 1]].flatten(2)
    torch.testing.assert_close(inputs.k_proj(x), expected)
    torch.testing.assert_close(model.model.layers[1].self_attn.o_proj.weight, attention.o_proj.weight)


def test_shared_and_own_projections_start_a_lone_memory_alike(bases, tmp_path: Path) -> None:
    folder = bases.save("llama", tmp_path / "base")
    own, shared = (
        convert(folder, Preset(memory_layers=[1], memory=MemoryConfig(combine="alone", projections=projections)))
        for projections in ("own", "shared")
    )
    torch.testing.assert_close(logits(own.model), logits(shared.model))


def test_what_is_written_comes_back(bases, base_kind: str, tmp_path: Path) -> None:
    folder, out = bases.save(base_kind, tmp_path / "base"), tmp_path / "model"
    preset = tmp_path / "own.yaml"
    preset.write_text("memory_layers: [1]\nsliding_window: 16\nmemory: {calibration: whiten}\n")
    result = convert(folder, preset, out, overrides=["memory.segment_length=8"], calibration=settings(solve_gate=True))
    again = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(again), logits(result.model), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(out).chat_template == bases.tokenizer().chat_template
    assert again.generation_config.repetition_penalty == 1.25, "the base's generation_config.json was lost"
    saved = load_preset(out / "preset.yaml")
    assert (saved, saved.memory.segment_length, saved.base) == (result.preset, 8, str(folder))
    record = json.loads((out / "conversion.json").read_text())
    assert record["base"] == {
        "name": str(folder),
        "origin": "folder",
        "architecture": result.model.config.base_model_type,
    }
    assert record["calibration"]["tokens"] == 512
    assert len(record["calibration"]["gates"]["1"]) == 4
    assert not list(tmp_path.glob(".model*")), "leftovers beside the output"


def test_the_table_counts_every_parameter_once(bases, base_kind: str, tmp_path: Path) -> None:
    result = convert(bases.save(base_kind, tmp_path / "base"), gate(calibration="whiten"), calibration=settings())
    base, table = bases.make(base_kind), result.table
    assert table.total("kept", "converted", "created") == sum(p.numel() for p in result.model.parameters())
    assert table.total("kept", "converted") == sum(p.numel() for p in base.parameters())
    assert table.total("left out") == 0
    rows = {row.name: row for row in table.rows}
    fused = "gpt_neox.layers.*.attention.query_key_value.weight"
    key = rows["model.layers.*.self_attn.k_proj.weight"]
    is_neox = base_kind.startswith("gpt_neox")
    assert (key.action, key.source) == (("converted", fused) if is_neox else ("kept", key.name))
    assert (key.tensors, rows["model.layers.*.self_attn.memory_gate.weight"].action) == (3, "created")
    whitening = rows["model.layers.*.self_attn.memory.memory.key_whitening"]
    assert (whitening.tensors, whitening.source) == (2, "measured on 512 tokens of python-reference")
    assert result.table.render().row_count == len(table.rows) + 2 + is_neox - (not table.total("kept"))


def test_the_table_is_whole_in_a_narrow_terminal(bases, base_kind: str, tmp_path: Path) -> None:
    result = convert(bases.save(base_kind, tmp_path / "base"), gate(calibration="whiten"), calibration=settings())
    console = Console(width=80, file=io.StringIO())
    console.print(result.table.render())
    shown = console.file.getvalue()
    assert "…" not in shown
    assert "2 x " in shown
    assert "measured on 512 tokens" in shown


def test_the_same_seed_gives_the_same_model(bases, tmp_path: Path) -> None:
    folder = bases.save("llama", tmp_path / "base")
    memory = MemoryConfig(combine="alone", projections="own", num_heads=2, key_dim=5, value_dim=7)
    models = []
    for caller_seed in (1, 2):
        torch.manual_seed(caller_seed)
        models.append(convert(folder, Preset(memory_layers=[1], memory=memory), calibration=settings()).model)
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], tensor, rtol=0, atol=0)


def test_dtype_of_the_output(bases, tmp_path: Path) -> None:
    folder, out = bases.save("llama", tmp_path / "base"), tmp_path / "model"
    convert(folder, gate(calibration="whiten"), out, calibration=settings(), dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    with pytest.raises(SenriError, match="dtype is 'float46'.*'float16'"):
        convert(folder, gate(), dtype="float46")


def test_only_a_senri_model_or_an_empty_folder_is_replaced(bases, tmp_path: Path) -> None:
    folder, out = bases.save("llama", tmp_path / "base"), tmp_path / "model"
    out.mkdir()
    convert(folder, gate(), out, calibration=settings())
    (out / "stale.txt").write_text("of the earlier conversion")
    convert(folder, gate(segment_length=16), out, calibration=settings())
    assert not (out / "stale.txt").exists()
    assert json.loads((out / "config.json").read_text())["memory"]["segment_length"] == 16
    with pytest.raises(SenriError, match="not a Senri model"):
        convert(folder, gate(), folder, calibration=settings())
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    (tmp_path / "file").write_text("")
    with pytest.raises(SenriError, match="is a file"):
        convert(folder, gate(), tmp_path / "file", calibration=settings())


def test_a_full_disk_leaves_the_earlier_model(bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = bases.save("llama", tmp_path / "base"), tmp_path / "model"
    convert(folder, gate(), out, calibration=settings())
    before = (out / "config.json").read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output_module.tempfile, "mkdtemp", full)
    with pytest.raises(SenriError, match="No space left on device"):
        convert(folder, gate(segment_length=16), out, calibration=settings())
    assert (out / "config.json").read_text() == before


def test_a_failure_while_filling_leaves_the_earlier_model_and_no_leftovers(bases, tmp_path: Path) -> None:
    folder, out = bases.save("llama", tmp_path / "base"), tmp_path / "model"
    convert(folder, gate(), out, calibration=settings())

    def fill(new: Path) -> None:
        (new / "config.json").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(SenriError, match="No space left on device"):
        output_module.write_folder(out, fill)
    assert json.loads((out / "config.json").read_text())["model_type"] == "senri"
    assert not list(tmp_path.glob(".model*"))


def test_a_senri_model_is_no_base(bases, tmp_path: Path) -> None:
    out = tmp_path / "model"
    convert(bases.save("llama", tmp_path / "base"), gate(), out, calibration=settings())
    with pytest.raises(SenriError, match="already a Senri model"):
        convert(out, gate())


def test_places_that_cannot_be_written_are_refused_before_any_work(bases, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SenriError, match="file cannot be written to"):
        convert("./nowhere", gate(), tmp_path / "file" / "model")


def test_a_calibration_text_that_is_too_short_is_refused(bases, tmp_path: Path) -> None:
    base, text = bases.save("llama", tmp_path / "base"), tmp_path / "short.txt"
    text.write_text("a b c")
    with pytest.raises(SenriError, match=r"short\.txt has 5 tokens, but whitening keys of 8"):
        convert(base, gate(calibration="whiten"), calibration=settings(), calibration_text=text)
    sunk = Preset(sliding_window=5, default_layer_type="sliding_attention", attention_sink=True)
    with pytest.raises(SenriError, match=r"short\.txt gives 5 tokens in a row.*window of 5"):
        convert(base, sunk, calibration=settings(), calibration_text=text)
    convert(base, replace(sunk, sliding_window=4), calibration=settings(), calibration_text=text)


def test_layers_beyond_the_last_are_refused(bases, tmp_path: Path) -> None:
    with pytest.raises(SenriError, match="memory_layers has 3"):
        convert(bases.save("llama", tmp_path / "base"), Preset(memory_layers=[3]))
