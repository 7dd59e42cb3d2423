"""Fetches transformers' own common model tests, of the very version that is installed, and makes them importable.

They lie in transformers' source distribution on PyPI and nowhere in the installed package. pip downloads it once into
the user's cache folder; its `tests/` becomes the package `transformers_tests`, a name that nothing else has. The source
distribution leaves out what belongs to other folders (`exporters`, `generation`); empty classes stand in for those, so
the tests of generation are Senri's own (`tests/models`).
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import platformdirs
import transformers
from filelock import FileLock

PACKAGE = "transformers_tests"

DOWNLOAD_SECONDS = 180
"""A download that takes longer counts as failed; the archive has about 11 MB."""


class SdistUnavailable(Exception):
    """The source distribution could not be had; the message says why."""


def sdist_tests(cache_root: Path | None = None) -> Path:
    """Return the folder with the `tests/` of the installed version of transformers, downloading it when missing.

    Raises:
        SdistUnavailable: pip cannot download it.
    """
    root = (cache_root or Path(platformdirs.user_cache_dir("senri"))) / "tests"
    tests = root / f"transformers-{transformers.__version__}" / "tests"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "download.lock"):
        if not tests.is_dir():
            with tempfile.TemporaryDirectory(dir=root) as folder:
                unpacked = _unpack(_download(Path(folder)), Path(folder))
                os.replace(unpacked, tests.parent)
    return tests


def load_common_tests(tests: Path) -> ModuleType:
    """Import `test_modeling_common` from the folder that `sdist_tests` returned."""
    if PACKAGE not in sys.modules:
        package = _module(PACKAGE)
        package.__path__ = [str(tests)]
        for folder, name, stand_in in (
            ("exporters", "test_export", "ExportTesterMixin"),
            ("generation", "test_utils", "GenerationTesterMixin"),
        ):
            if not (tests / folder).is_dir():
                _module(f"{PACKAGE}.{folder}").__path__ = []
                setattr(_module(f"{PACKAGE}.{folder}.{name}"), stand_in, type(stand_in, (), {}))
    return importlib.import_module(f"{PACKAGE}.test_modeling_common")


def _module(name: str) -> ModuleType:
    sys.modules[name] = ModuleType(name)
    return sys.modules[name]


def _download(folder: Path) -> Path:
    wanted = f"transformers=={transformers.__version__}"
    # Only the archive itself: no dependencies, and no environment is built to read its metadata.
    options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options, wanted]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise SdistUnavailable(f"pip did not download {wanted} in {DOWNLOAD_SECONDS} s") from None
    archives = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode != 0 or not archives:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-300:])
        raise SdistUnavailable(f"pip could not download the source distribution of {wanted}: {reason.strip()}")
    return archives[0]


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpack only `tests/` of the archive and return the folder above it."""
    with tarfile.open(archive) as tar:
        top = tar.getnames()[0].split("/")[0]
        members = [member for member in tar.getmembers() if member.name.startswith(f"{top}/tests/")]
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12's Python 3.11.2 has none (PEP 706)
        tar.extractall(folder, members=members)
    return folder / top
