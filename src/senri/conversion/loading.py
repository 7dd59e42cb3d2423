"""Open a resolved base with transformers: a checkpoint folder, or a GGUF file (dequantised once, then cached)."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from senri.conversion.families import check_architecture
from senri.conversion.sources import ResolvedBase, default_cache_dir
from senri.errors import SenriError

GGUF_ARCHITECTURES = ("llama", "qwen2")
"""GGUF architectures that transformers reads and Senri converts (transformers has no GGUF reader for GPT-NeoX)."""


def load_base(
    resolved: ResolvedBase, dtype: torch.dtype = torch.float32, cache_dir: str | Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base's weights and tokenizer.

    Args:
        resolved: from `resolve_base`.
        dtype: dtype of the loaded weights.
        cache_dir: where dequantised GGUF files are kept (float32); `default_cache_dir()` if None.

    Raises:
        SenriError: an unsupported architecture, a damaged or incomplete checkpoint, or no tokenizer.
    """
    folder = dequantised_folder(resolved, cache_dir) if resolved.kind == "gguf" else resolved.path
    return _load_folder(folder, resolved.name, dtype)


def dequantised_folder(resolved: ResolvedBase, cache_dir: str | Path | None = None) -> Path:
    """Return a checkpoint folder with the weights of a GGUF file in float32; made once, then taken from the cache.

    Raises:
        SenriError: an architecture that Senri does not convert, a damaged file, or a cache that cannot be written.
    """
    return _dequantised(resolved.path, Path(cache_dir) if cache_dir else default_cache_dir())


def gguf_architecture(path: Path) -> str:
    """Read `general.architecture` from a GGUF header, without reading the weights.

    Raises:
        SenriError: the file is not a whole GGUF file.
    """
    try:
        metadata, _ = read_gguf_metadata(str(path))
    except (ValueError, IndexError, OSError, KeyError) as error:
        raise SenriError(f"{path} is not a readable GGUF file ({error}): download it again.") from None
    except Exception as error:  # struct.error and UnicodeDecodeError of a cut file
        raise SenriError(f"{path} is a damaged GGUF file ({error}): download it again.") from None
    return str(metadata["general.architecture"])


def _load_folder(folder: Path, name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise SenriError(f"the config.json of {name} cannot be used: {_first_line(error)}") from error
    check_architecture(config.model_type, name)
    try:
        # With ignore_mismatched_sizes the report below tells of mismatches; without it transformers only raises.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # safetensors' own errors and OSError alike: a cut or foreign file
        raise SenriError(f"the weights of {name} cannot be read: {_first_line(error)}") from error
    model, report = loaded
    _check_report(name, report)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a missing tokenizer shows as ValueError, OSError, TypeError or ImportError
        raise SenriError(f"the tokenizer of {name} cannot be read: {_first_line(error)}") from error
    return model, tokenizer


def _check_report(name: str, report: dict[str, Any]) -> None:
    for key, *shapes in sorted(report["mismatched_keys"]):
        raise SenriError(
            f"the tensor {key} of {name} has the shape {list(shapes[0])}, but its config.json says {list(shapes[1])}: "
            f"config and weights do not belong together."
        )
    for key in sorted(map(str, report["missing_keys"])):
        raise SenriError(f"the weights of {name} lack the tensor {key}: the checkpoint is incomplete.")


def _dequantised(gguf: Path, cache_dir: Path) -> Path:
    """Return the folder of the dequantised weights of a GGUF file, made once and keyed by the file's content."""
    architecture = gguf_architecture(gguf)
    if architecture not in GGUF_ARCHITECTURES:
        supported = ", ".join(GGUF_ARCHITECTURES)
        raise SenriError(
            f"{gguf} has the GGUF architecture {architecture!r}, but Senri converts only {supported}: "
            "choose another base."
        )
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # transformers reads the file, so another version of it may read it differently
    folder = cache_dir / "dequantised" / f"{digest[:16]}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    except Exception as error:  # a cut file fails in numpy, struct or transformers, each with its own exception
        raise SenriError(
            f"{gguf} cannot be dequantised ({_first_line(error)}): it is cut short or damaged, download it again."
        ) from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if folder.is_dir():  # another process was quicker
            return folder
        raise SenriError(
            f"the cache folder {folder.parent} cannot be written: make room or set SENRI_CACHE."
        ) from error
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
