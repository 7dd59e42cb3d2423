"""The lists of words that facts are made from, each parted into words for training and words for tests."""

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal
from zlib import crc32

import yaml

Split = Literal["train", "test"]

# libyaml reads the files about ten times as fast, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_TEST_SHARE = 4
"""One word of so many is for tests."""


def split_of(word: str) -> Split:
    """Return which split a word is for.

    The word alone decides, so that one that stands in two lists is on the same side in both, and no word changes sides
    when others are added.
    """
    return "train" if crc32(word.casefold().encode()) % _TEST_SHARE else "test"


@cache
def words_for(split: Split) -> dict[str, tuple[str, ...]]:
    """Return the lists of a split by name; `first` holds the first names of women and men."""
    lists = {
        name: tuple(word for word in _entries(text) if split_of(word) == split)
        for path in package_files("words")
        for name, text in read_yaml(path).items()
    }
    return {**lists, "first": (*lists["woman"], *lists["man"])}


def package_files(folder: str) -> list[Traversable]:
    """Return the files in a folder of this package, by name."""
    folders = files("senri.data.facts").joinpath(folder).iterdir()
    return sorted((path for path in folders if path.name.endswith(".yaml")), key=lambda path: path.name)


def read_yaml(path: Traversable) -> dict[str, Any]:
    """Read a YAML file of this package."""
    read: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    return read


def _entries(text: str) -> list[str]:
    return [" ".join(entry.split()) for entry in text.split(",")]
