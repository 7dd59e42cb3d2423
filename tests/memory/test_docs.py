"""docs/memory.md tells the truth: its examples run, its knobs and sizes are the real ones."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from senri.memory import MemoryBranch, MemoryConfig, state_bytes

PAGE = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert "10 0 norm" in capsys.readouterr().out


def test_every_knob_is_listed_with_its_default():
    table = PAGE.split("## Knobs")[1].split("## Sizes")[0]
    sizes = ("num_heads", "num_key_value_heads", "key_dim", "value_dim")
    for field in dataclasses.fields(MemoryConfig):
        row = re.search(rf"^\|[^|]*`{field.name}`[^|]*\| ([^|]*) \|", table, re.MULTILINE)
        assert row, field.name
        if field.name not in sizes:
            default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            assert row[1].strip("`") == default.replace("1e-06", "1e-6"), field.name


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"rule": "gated_delta"},
        {"feature_map": "dpfp", "dpfp_order": 2, "token_shift": True},
        {"normaliser": "rmsnorm", "granularity": "token", "short_convolution": 4, "token_shift": True},
    ],
)
def test_sizes_follow_the_formulas(knobs):
    config = MemoryConfig(**knobs)
    h, query_heads, key_dim, d = 3, 9, 64, 64
    f = 2 * key_dim * config.dpfp_order if config.feature_map == "dpfp" else key_dim
    written = 4 * h * f * d + (4 * h * f if config.normaliser == "denominator" else 0)
    wanted = written * (2 if config.granularity == "segment" else 1) + 8
    wanted += 4 * h if config.rule == "gated_delta" else 0
    p = config.short_convolution - 1 if config.short_convolution else int(config.token_shift)
    wanted += 4 * p * h * key_dim + (4 * p * query_heads * key_dim if config.short_convolution else 0)
    wanted += 1 if config.token_shift else 0
    branch = MemoryBranch(config, 576, query_heads, h, key_dim, d)
    assert state_bytes(branch.init_state(1)) == wanted
    if not knobs:
        assert f"{wanted:,} bytes per layer" in PAGE
    shared = tuple(torch.randn(1, n, 3, 64) for n in (query_heads, h, h))
    with torch.no_grad():
        _, state = branch(torch.randn(1, 3, 576), branch.init_state(1), shared=shared)
    assert state_bytes(state) == wanted
