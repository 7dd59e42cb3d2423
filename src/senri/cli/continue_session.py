"""A second process (`python -m senri.cli.continue_session`): load a session, read more tokens, write the logits."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from senri.errors import SenriError

if TYPE_CHECKING:
    from torch import Tensor


def continued_elsewhere(model: Path, session: Path, input_ids: "Tensor") -> "Tensor":
    """Return the logits `[1, seq, vocabulary]` that a fresh process gets for `[1, seq]` tokens after a session file.

    It computes with as many threads as this one, since another number may round differently.

    Raises:
        SenriError: the process failed; carries the last line it said.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="senri-") as folder:
        tokens, logits = Path(folder) / "tokens.safetensors", Path(folder) / "logits.safetensors"
        save_file({"input_ids": input_ids}, tokens)
        words = [str(model), str(session), str(tokens), str(logits), str(torch.get_num_threads())]
        done = subprocess.run(
            [sys.executable, "-m", "senri.cli.continue_session", *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise SenriError(f"the second process could not continue the session: {said[-1]}")
        return load_file(logits)["logits"]


def _main() -> None:
    model, session, tokens, logits = map(Path, sys.argv[1:5])
    import torch
    from safetensors.torch import load_file, save_file

    from senri.cli.opening import open_model
    from senri.models import Session

    torch.set_num_threads(int(sys.argv[5]))
    live = Session.load(session, open_model(model)[0])
    save_file({"logits": live.logits(load_file(tokens)["input_ids"]).contiguous()}, logits)


if __name__ == "__main__":
    _main()
