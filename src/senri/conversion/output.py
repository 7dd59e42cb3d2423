"""Writing a converted model: everything into a temporary folder beside the target, which then takes its place."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from senri.errors import SenriError


def check_target(out: Path) -> None:
    """Refuse, before any work is done, a place that cannot be written or holds anything but a Senri model.

    Raises:
        SenriError: `out` is a file, a folder that holds something else, or lies where nothing can be written.
    """
    if out.is_file():
        raise SenriError(f"{out} is a file: name a folder for the converted model.")
    check_writable(next(parent for parent in out.absolute().parents if parent.exists()))
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        is_senri = json.loads((out / "config.json").read_text(encoding="utf-8")).get("model_type") == "senri"
    except (OSError, ValueError, AttributeError):
        is_senri = False
    if not is_senri:
        raise SenriError(f"the folder {out} holds something that is not a Senri model: name a new or empty folder.")


def check_writable(folder: Path) -> None:
    """Try to write into a folder; nothing stays there.

    Raises:
        SenriError: it is a file, or the system refuses (permissions say too little: a disk may be read-only).
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SenriError(
            f"{folder} cannot be written to ({error.strerror}): name a place in another folder."
        ) from error


def write_folder(out: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder and put it in the place of `out`; what was there stays until the new one is whole.

    Args:
        out: the folder to write.
        fill: writes the files into the folder it is given.

    Raises:
        SenriError: `out` may not be replaced (see `check_target`), or the disk is full or not writable.
    """
    check_target(out)
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        fill(new)
        if out.exists():
            os.replace(out, old)
        os.replace(new, out)
    except (OSError, SafetensorError) as error:
        if temporary is not None and (temporary / "old").exists() and not out.exists():
            os.replace(temporary / "old", out)
        reason = getattr(error, "strerror", None) or str(error)
        raise SenriError(f"the model cannot be written to {out}: {reason}.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
