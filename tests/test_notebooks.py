"""Every notebook runs from top to bottom, in an empty folder, without the network, and leaves what it speaks of."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
LEFT = {
    "01_model": ["model/config.json", "reading.senri"],
    "02_training": ["runs/first/model/config.json", "runs/first/report.html", "runs/stopped/model/config.json"],
    "03_evaluation": ["results/report.html"],
    "04_analysis": ["cleaned.senri", "results/report.html"],
}
PICTURES = {"01_model": 3, "02_training": 2, "03_evaluation": 4, "04_analysis": 8}


def test_every_notebook_is_known() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(LEFT)


@pytest.mark.parametrize("name", LEFT)
def test_outputs_are_stripped(name: str) -> None:
    cells = [cell for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEFT)
def test_the_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on a busy machine the threads of tiny models only wait for each other
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for path in LEFT[name]:
        assert (tmp_path / path).is_file(), path
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= PICTURES.get(name, 0)
