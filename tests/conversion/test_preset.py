"""Presets: read from YAML, checked, and refused in one sentence."""

from pathlib import Path

import pytest

from senri.conversion.families import convert_config
from senri.conversion.preset import Preset, load_preset
from senri.errors import SenriError

YAML = """
base: somewhere
memory_layers: [0, 2]
sliding_window: 64
default_layer_type: sliding_attention
memory:
  rule: delta
  segment_length: 32
"""


def test_a_file_is_read_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(YAML)
    preset = load_preset(path, ["memory.segment_length=8", "sliding_window=16"])
    assert (preset.memory.rule, preset.memory.segment_length, preset.sliding_window) == ("delta", 8, 16)
    assert (preset.base, preset.memory_layers, preset.default_layer_type) == ("somewhere", [0, 2], "sliding_attention")


def test_what_a_file_leaves_out_is_the_default_of_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(YAML.replace("  rule: delta\n", ""))
    assert load_preset(path).memory.rule == "linear"
    assert load_preset(path, ["memory.type=multi"]).memory.rule == "delta"
    assert load_preset(path, ["memory.type=multi", "memory.rule=linear"]).memory.rule == "linear"
    with pytest.raises(SenriError, match="did you mean 'multi'"):
        load_preset(path, ["memory.type=mutli"])


def test_a_ready_made_preset_passes_through_but_takes_no_overrides() -> None:
    preset = Preset(memory_layers=[1])
    assert load_preset(preset) is preset
    with pytest.raises(SenriError, match=r"sliding_window=4"):
        load_preset(preset, ["sliding_window=4"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sliding_window=0", "sliding_window is 0"),
        ("sliding_window=-3", "sliding_window is -3"),
        ("sliding_window=null", "sliding_window is not set"),
        ("memory_layers=[-1]", "memory_layers has -1"),
        ("memory_layers=[1, 1]", "layer 1 twice"),
        ("memory.rule=detla", "delta"),
        ("memory_layer=[1]", "memory_layers"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(YAML)
    with pytest.raises(SenriError, match=message):
        load_preset(path, [override])


def test_a_layer_beyond_the_bases_last_is_refused(bases) -> None:
    with pytest.raises(SenriError, match="memory_layers has 3, but the base's layers are 0 to 2"):
        convert_config(bases.llama().config, Preset(memory_layers=[3]))
