"""What is measured: a model, its tokenizer, a name for tables, and perhaps a session that it starts from."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from senri.evaluation.files import content_digest
from senri.evaluation.reader import Reader, open_reader
from senri.memory.state import fingerprint
from senri.models import SenriForCausalLM, Session

_MODEL_FILES = ("*.safetensors", "*.bin", "config.json", "tokenizer.json")


@dataclass(frozen=True)
class Subject:
    """A model under measurement.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        name: what tables and reports call it.
        source: folder or Hub id that it was loaded from; lets lm-eval find the tokenizer and a second run its results.
        session: every reading starts from a copy of it; only for Senri models.
    """

    model: Any
    tokenizer: Any
    name: str
    source: str = ""
    session: Session | None = None

    @property
    def is_senri(self) -> bool:
        """Whether the model has Senri's sessions."""
        return isinstance(self.model, SenriForCausalLM)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = self.model.device
        return device

    @property
    def context(self) -> int:
        """Tokens that the model attends to at once: its window, or the positions it was trained for.

        A configuration that names none gives 2,048, as lm-eval assumes.
        """
        config = self.model.config
        window = getattr(config, "sliding_window", None) if self.is_senri else None
        return int(window or getattr(config, "max_position_embeddings", None) or 2048)

    def reader(self) -> Reader:
        """Return a fresh reader; with a session, a copy of it."""
        return self.session.fork() if self.session is not None else open_reader(self.model)

    def identity(self) -> str:
        """Return a digest that changes with the model's files or weights, configuration, dtype, and the session.

        It is the same where the model lies in another folder.

        Raises:
            SenriError: a file of the model that cannot be read.
        """
        facts: dict[str, Any] = {
            "config": self.model.config.to_diff_dict(),
            "dtype": str(self.model.dtype),
            "session": None if self.session is None else self._session_identity(self.session),
        }
        source = Path(self.source)
        if not self.source:
            facts["weights"] = fingerprint({}, dict(self.model.named_parameters()))
        elif source.is_dir():
            files = [path for pattern in _MODEL_FILES for path in source.glob(pattern)]
            facts["files"] = content_digest(files, source)
        else:
            facts["source"] = content_digest([source], source.parent) if source.is_file() else self.source
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    @staticmethod
    def _session_identity(session: Session) -> str:
        return fingerprint({"tokens_read": session.tokens_read}, session.get_memory_state().to_tensors())
