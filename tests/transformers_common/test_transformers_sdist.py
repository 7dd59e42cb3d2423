"""The fetching of transformers' tests: what is unpacked, what is kept, and what is said when it fails."""

import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import transformers
import transformers_sdist


@pytest.fixture
def pip_downloads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace pip by something that writes a small archive; the list collects its command lines."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        top = f"transformers-{transformers.__version__}"
        for name in ("tests/test_modeling_common.py", "src/transformers/__init__.py"):
            (folder / "made" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "made" / name).write_text("")
        with tarfile.open(folder / f"{top}.tar.gz", "w:gz") as tar:
            tar.add(folder / "made", arcname=top)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_the_tests_alone_are_unpacked_and_downloaded_once(tmp_path: Path, pip_downloads: list[list[str]]) -> None:
    tests = transformers_sdist.sdist_tests(tmp_path)
    assert os.listdir(tests) == ["test_modeling_common.py"]
    assert os.listdir(tests.parent) == ["tests"]
    assert transformers_sdist.sdist_tests(tmp_path) == tests
    assert len(pip_downloads) == 1
    assert f"transformers=={transformers.__version__}" in pip_downloads[0]
    assert sorted(os.listdir(tmp_path / "tests")) == ["download.lock", tests.parent.name]


def test_a_failed_download_gives_pips_reason_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(transformers_sdist.SdistUnavailable, match="No matching distribution"):
        transformers_sdist.sdist_tests(tmp_path)
    assert os.listdir(tmp_path / "tests") == ["download.lock"]
