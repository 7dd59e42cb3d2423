"""Settings: names, files and overrides become typed values, and every mistake is one sentence."""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from senri import settings
from senri.conversion import Preset
from senri.errors import SenriError


@dataclass
class Part:
    """A nested section."""

    rule: Literal["linear", "delta"] = "linear"
    strength: float = 1.0
    size: int | None = None


@dataclass
class Sample:
    """A command's settings."""

    name: str
    steps: int = 3
    out: Path = Path("out")
    part: Part = field(default_factory=Part)
    layers: list[int] = field(default_factory=list)
    extra: Part | None = None
    count: int | Literal["all"] = 1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise SenriError(f"steps is {self.steps}, but it must be 0 or more.")


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(text: str | bytes, name: str = "sample.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def message(call: Any, *args: Any) -> str:
    with pytest.raises(SenriError) as caught:
        call(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_values_of_every_kind_arrive_typed(write: Any) -> None:
    path = write(
        "name: a\nout: b/c\nlayers: [1, 2]\npart: {rule: delta, strength: 1e-4, size: null}\nextra: {size: 4}\n"
    )
    got = settings.load_settings(Sample, path, ["steps=5", "part.size=7"])
    assert got == Sample("a", 5, Path("b/c"), Part("delta", 1e-4, 7), [1, 2], Part(size=4))


def test_yaml_reads_an_exponent_without_a_point_as_a_number(write: Any) -> None:
    assert settings.load_yaml(write("a: 1e-4\nb: 2E6\nc: -1e3\nd: e4\n")) == {"a": 1e-4, "b": 2e6, "c": -1e3, "d": "e4"}


def test_an_empty_file_is_an_empty_mapping(write: Any) -> None:
    assert settings.load_yaml(write("# nothing\n")) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1,\n", "is not YAML at line 2"),
        ("- a\n- b\n", "should be a mapping"),
        ("just words\n", "should be a mapping"),
        ("1: a\n", "should be a name"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(write: Any, text: str | bytes, expected: str) -> None:
    path = write(text)
    said = message(settings.load_yaml, path)
    assert str(path) in said
    assert expected in said


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    assert "no such file" in message(settings.load_yaml, tmp_path / "none.yaml")
    assert "cannot be read" in message(settings.load_yaml, tmp_path)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"name": "a", "stepz": 1}, ["unknown key 'stepz'", "did you mean 'steps'"]),
        ({"stepz": 1}, ["unknown key 'stepz'"]),  # more telling than the missing name
        ({"name": "a", "part": {"rulee": "delta"}}, ["unknown key 'part.rulee'", "did you mean 'rule'"]),
        ({"name": "a", "extra": {"sise": 1}}, ["unknown key 'extra.sise'", "did you mean 'size'"]),
        ({"name": "a", "qqqq": 1}, ["unknown key 'qqqq'", "known: count, extra, layers, name, out, part, steps"]),
        ({}, ["'name' is missing"]),
        ({"name": "a", "steps": "5"}, ["'steps' is '5' (str)", "valid integer"]),
        ({"name": "a", "steps": True}, ["'steps' is True (bool)", "valid integer"]),
        ({"name": "a", "steps": 1.5}, ["'steps' is 1.5", "valid integer"]),
        ({"name": "a", "steps": None}, ["'steps' is nothing", "valid integer"]),
        ({"name": 3}, ["'name' is 3 (int)", "valid string"]),
        ({"name": "a", "part": {"rule": "dleta"}}, ["'part.rule' is 'dleta'", "'linear' or 'delta'"]),
        ({"name": "a", "part": {"size": "x"}}, ["'part.size' is 'x'", "valid integer"]),
        ({"name": "a", "part": 4}, ["'part' is 4", "a section"]),
        ({"name": "a", "layers": [1, "b"]}, ["'layers.1' is 'b'", "valid integer"]),
        ({"name": "a", "layers": 1}, ["'layers' is 1", "a list"]),
        ({"name": "a", "count": "many"}, ["'count' is 'many' (str)", "a valid integer or 'all'"]),
        ({"name": "a", "steps": -1}, ["steps is -1, but it must be 0 or more"]),
    ],
)
def test_a_wrong_value_is_one_sentence(values: dict[str, Any], parts: list[str]) -> None:
    said = message(settings.build, Sample, values, "here.yaml")
    assert said.startswith("here.yaml: ")
    for part in parts:
        assert part in said


def test_overrides_make_sections_and_leave_the_original_alone() -> None:
    values = {"a": {"b": 1}, "n": None}
    got = settings.apply_overrides(values, ["a.b=2", "a.c=[1, 2]", "n.x=true", "new.deep.key=a=b", "e="])
    assert got == {"a": {"b": 2, "c": [1, 2]}, "n": {"x": True}, "new": {"deep": {"key": "a=b"}}, "e": None}
    assert values == {"a": {"b": 1}, "n": None}


@pytest.mark.parametrize("word", ["steps", "=3", "a..b=3", ".a=1", "a.=1", "steps=[1", "name.deep=1"])
def test_a_malformed_override_is_refused_and_named(word: str) -> None:
    assert repr(word) in message(settings.apply_overrides, {"name": "a"}, [word])


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.lists(st.from_regex(r"[a-z]{1,4}", fullmatch=True), min_size=1, max_size=3), scalars)
def test_an_override_sets_exactly_the_value_that_was_written(keys: list[str], value: Any) -> None:
    word = f"{'.'.join(keys)}={yaml.safe_dump(value, default_flow_style=True, allow_unicode=False, width=10**6)}"
    got: Any = settings.apply_overrides({}, [word])
    for key in keys:
        got = got[key]
    assert got == value


def test_save_resolved_writes_what_load_settings_reads(tmp_path: Path) -> None:
    sample = Sample("名", 5, Path("b/c"), Part("delta", 1e-7, 7), [1, 2])
    path = tmp_path / "resolved.yaml"
    settings.save_resolved(sample, path)
    assert settings.load_settings(Sample, path) == sample
    assert os.listdir(tmp_path) == ["resolved.yaml"]


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "resolved.yaml"
    settings.save_resolved(Sample("old"), path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    said = message(settings.save_resolved, Sample("new"), path)
    assert str(path) in said
    assert "No space left" in said
    assert settings.load_settings(Sample, path).name == "old"
    assert os.listdir(tmp_path) == ["resolved.yaml"]


def test_an_unknown_name_says_the_nearest() -> None:
    assert "did you mean 'smollm_infini'" in message(settings.load_settings, Sample, "smolm_infini")
    assert "did you mean 'evaluation'" in message(settings.load_settings, Sample, "evaluaton")


def test_config_is_found_beside_the_package_or_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (settings.config_dir() / "presets" / "smollm_infini.yaml").is_file()
    package = tmp_path / "site-packages" / "senri"
    (package / "config").mkdir(parents=True)
    monkeypatch.setattr(settings, "__file__", str(package / "settings.py"))
    assert settings.config_dir() == (package / "config").resolve()
    (package / "config").rmdir()
    assert "no config folder" in message(settings.config_dir)


@pytest.mark.parametrize("name", settings.preset_names())
def test_every_preset_is_a_valid_memory(name: str) -> None:
    preset = settings.load_settings(Preset, name)
    assert preset.memory_layers == sorted(set(preset.memory_layers))
    assert (preset.sliding_window is None) == (preset.default_layer_type == "full_attention")
    written = settings.load_yaml(settings.find(name))["memory"]
    assert written == {key: dataclasses.asdict(preset.memory)[key] for key in written}


def test_presets_are_named() -> None:
    bases = {"smollm_infini", "smollm_memory_only", "smollm2_delta_branch", "pythia_infini_70m"}
    assert bases | {"qwen_infini", "qwen_orthogonal"} <= set(settings.preset_names())


@pytest.mark.parametrize("path", sorted(settings.config_dir().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_config_is_a_mapping(path: Path) -> None:
    assert settings.load_yaml(path)
