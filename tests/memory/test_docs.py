"""docs/memory.md tells the truth: its examples run, its knobs and sizes are the real ones."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from senri.memory import MEMORIES, MemoryBranch, MemoryConfig, resolve_config, state_bytes

PAGE = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MEMORIES, "average", None)  # the page's own memory leaves the registry again
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
            value = getattr(MemoryConfig(), field.name)
            default = str(value).lower() if isinstance(value, bool) else str(value)
            assert row[1].strip("`") == default.replace("1e-06", "1e-6"), field.name


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"rule": "gated_delta"},
        {"feature_map": "dpfp", "dpfp_order": 2, "token_shift": True},
        {"normaliser": "rmsnorm", "granularity": "token", "short_convolution": 4, "token_shift": True},
        {
            **{"normaliser": "rmsnorm", "granularity": "token", "short_convolution": 4, "projections": "own"},
            **{"combine": "copy", "learned_read_strength": True, "look_ahead": 2, "write_delay": 3},
            **{"learned_write_strength": True, "write_strength": 0.5, "convolved_write_strength": True},
        },
        {"type": "least_squares", "segment_length": 7, "token_shift": True},
        {"type": "least_squares", "options": {"sketch": 5}},
    ],
)
def test_sizes_follow_the_formulas(knobs):
    config = resolve_config(knobs)
    h, query_heads, key_dim, d = 3, 9, 64, 64
    f = 2 * key_dim * config.dpfp_order if config.feature_map == "dpfp" else key_dim
    written = 4 * h * f * d + (4 * h * f if config.normaliser == "denominator" else 0)
    together = config.type == "least_squares"
    wanted = written * (2 if config.granularity == "segment" and not together else 1) + 8
    wanted += 4 * (config.segment_length - 1) * h * (f + d + 1) if together else 0
    wanted += 4 * h * config.options.get("sketch", 0) * f
    wanted += 4 * h if config.rule == "gated_delta" else 0
    p = config.short_convolution - 1 if config.short_convolution else int(config.token_shift)
    wanted += 4 * (p + config.look_ahead) * h * key_dim
    wanted += 4 * p * query_heads * key_dim if config.short_convolution else 0
    wanted += 4 * (p + config.look_ahead) * h if config.convolved_write_strength else 0
    late = config.look_ahead + config.write_delay
    wanted += 4 * late * 576 + (4 * late * (h * d + 1) if config.combine == "copy" else 0)
    wanted += 8 if config.token_shift or late else 0
    branch = MemoryBranch(config, 576, query_heads, h, key_dim, d)
    assert state_bytes(branch.init_state(1)) == wanted
    if not knobs:
        assert f"{wanted:,} bytes per layer" in PAGE
    shared = tuple(torch.randn(1, n, 3, 64) for n in (query_heads, h, h))
    shared = (shared[2], torch.ones(1, 1, 3, 1)) if config.combine == "copy" else shared
    with torch.no_grad():
        _, state = branch(torch.randn(1, 3, 576), branch.init_state(1), shared=shared)
    assert state_bytes(state) == wanted


@pytest.mark.parametrize(
    ("values", "parts", "in_turn", "summary"),
    [
        ({"options": {"num_memory_banks": 3}}, 3, True, False),
        ({"options": {"num_memory_banks": 2}, "rule": "gated_delta"}, 2, True, False),
        ({"type": "multi"}, 4, True, True),
        ({"type": "multi", "options": {"routing": "learned", "num_memories": 2}}, 2, False, True),
        ({"type": "hierarchical", "feature_map": "l2", "normaliser": "rmsnorm", "granularity": "token"}, 4, True, True),
        ({"type": "orthogonal"}, 64, False, False),
    ],
)
def test_sizes_of_memories_with_parts_follow_the_formulas(values, parts, in_turn, summary):
    config = resolve_config(values)
    h, f, d = 3, 64, 64
    has_z, segments = config.normaliser == "denominator", config.granularity == "segment"
    one = 4 * h * f * d + (4 * h * f if has_z else 0) + (4 * h * (f + 1) if summary else 0)
    one_pending = one + (4 * h if config.rule == "gated_delta" else 0)
    wanted = parts * one + (one_pending * (1 if in_turn else parts) if segments else 0) + 8 + (8 if in_turn else 0)
    branch = MemoryBranch(config, 576, 9, h, f, d).eval()
    assert state_bytes(branch.allocate(branch.init_state(1))) == wanted
