"""Measures: what held-out text says of a model before and after each stage, kept so that none is taken twice."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from senri.evaluation.files import write_bytes
from senri.evaluation.processes import process_state
from senri.models.modeling_senri import SenriForCausalLM
from senri.training.evaluating import evaluating
from senri.training.held_out import held_out_perplexity, memory_use


class Measures:
    """Perplexities of held-out text and the part that memories take, kept in a file so that none is taken twice."""

    def __init__(self, path: Path, documents: list[Tensor], chunk_size: int) -> None:
        self._path, self._documents, self._chunk_size = path, documents, chunk_size
        self.perplexities: dict[str, float] = {}
        self.memory: dict[str, dict[int, dict[str, float]]] = {}
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            self.perplexities = stored["perplexities"]
            self.memory = {
                name: {int(i): use for i, use in layers.items()} for name, layers in stored["memory"].items()
            }

    def take(self, what: str, model: Any, memory: bool = True) -> None:
        """Measure a model, unless an earlier run did."""
        if not self._documents or what in self.perplexities:
            return
        self.perplexities[what] = held_out_perplexity(model, self._documents, self._chunk_size).perplexity
        if memory and isinstance(model, SenriForCausalLM) and model.model.memory_branches():
            with evaluating(model):
                self.memory[what] = memory_use(model, self._documents[0], self._chunk_size)
        if process_state().is_main_process:
            values = {"perplexities": self.perplexities, "memory": self.memory}
            write_bytes(self._path, json.dumps(values, indent=2).encode())
