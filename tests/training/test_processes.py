"""Two processes at the same global batch give the loss curve of one."""

import subprocess
import sys
from pathlib import Path

from senri.training import ConfigManager, ThreeStageTrainer
from senri.training.callbacks import read_metrics


def curve(folder: Path) -> list[tuple[str, int, float]]:
    return [(line["stage"], line["step"], round(line["loss"], 5)) for line in read_metrics(folder / "metrics.jsonl")]


def test_two_processes_give_the_curve_of_one(recipe_file: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "senri", "train"]
    words = ["--config", str(recipe_file), "experiment.name=two"]
    found = subprocess.run([*command, *words], capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr[-3000:]
    one = ThreeStageTrainer(ConfigManager(recipe_file, ["experiment.name=one"])).train()
    assert one.finished
    two = curve(one.folder.parent / "two")
    assert len(two) == 12 and two == curve(one.folder)
    assert found.stdout.count("the trained model is in") == 1  # only the main process speaks
