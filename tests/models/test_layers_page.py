"""docs/layers.md tells the truth: its examples run, and its state sizes are those that the command prints."""

import re
from pathlib import Path

import pytest
import torch

from senri.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"input_ids": torch.arange(40).unsqueeze(0)}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    assert (tmp_path / "notes.senri").is_file()


@pytest.mark.parametrize("name", ["infini", "multi_memory", "hierarchical"])
def test_the_sizes_are_those_that_the_command_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "size", name]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
    whole, matrices, halved = re.findall(r"[\d,]{5,}", row)
    assert f"memory of one sequence at its fullest: {whole} bytes" in printed
    assert f"{halved} if it were kept at 16 bits" in printed
    assert matrices in printed
