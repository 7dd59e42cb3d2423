"""`senri serve`: the OpenAI-compatible server of transformers for a Senri model."""

import importlib.util
import socket
import sys
from pathlib import Path

from senri.cli.opening import model_type_of, quieten
from senri.errors import SenriError

_NEEDED = ("fastapi", "uvicorn", "openai")


def serve(*, model: str, host: str = "127.0.0.1", port: int = 8000, device: str = "auto") -> None:
    """Serve a model at /v1/chat/completions and /v1/completions until Ctrl-C.

    Args:
        model: folder of a converted model; requests name it as it is written here.
        host: address to listen at.
        port: port to listen at.
        device: where the model runs, such as cpu or cuda:0.
    """
    # No Path in what follows: the server compares the names in requests letter by letter, and Path drops a leading ./
    if model_type_of(Path(model)) != "senri":
        raise SenriError(f"{model} is not a Senri model: run senri convert on it first.")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SenriError(f"the server needs {', '.join(missing)}: run pip install 'senri[serve]'.")
    _check_free(host, port)
    run_server(["serve", model, "--host", host, "--port", str(port), "--device", device])


def run_server(words: list[str]) -> None:
    """Run transformers' own command line with Senri's class where its server looks for it."""
    import transformers.processing_utils  # noqa: F401 - replaces sys.modules["transformers"], so it must come first
    from huggingface_hub.constants import HF_HUB_CACHE

    from senri.models import SenriForCausalLM

    # The server takes the class from the package by name (cli/serving/model_manager.py, 5.23), not from the registry.
    setattr(sys.modules["transformers"], SenriForCausalLM.__name__, SenriForCausalLM)
    # /v1/models lists the Hub's cache and fails where there is none.
    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    from transformers.cli.transformers import app

    quieten()
    host, port = (words[words.index(flag) + 1] for flag in ("--host", "--port"))
    print(f"serving on http://{host}:{port}/v1; requests name the model {words[1]!r}.", flush=True)
    app(words, standalone_mode=False)


def _check_free(host: str, port: int) -> None:
    if not 0 < port < 1 << 16:
        raise SenriError(f"port is {port}, but it must be between 1 and 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server itself does: a port left a moment ago counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SenriError(f"{host}:{port} cannot be listened at ({error.strerror}): choose another --port.") from error
