"""Settings: a YAML file and `dotted.key=value` words become a typed, checked dataclass; also finds `config/`.

Hyperparameters live in `config/` alone. A command describes its settings as a plain dataclass and calls
`load_settings`; whatever is wrong in the file or in an override is one `SenriError` sentence.
"""

import copy
import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from senri.errors import SenriError, nearest

T = TypeVar("T")

_YAML_SUFFIXES = (".yaml", ".yml")


class _Loader(yaml.SafeLoader):
    """`SafeLoader` that reads `1e-4` as a number, as YAML 1.2 does (PyYAML follows YAML 1.1 and reads a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def config_dir() -> Path:
    """Return the folder `config/`: inside an installed package, or at the root of the source tree.

    Raises:
        SenriError: neither exists.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "config", package.parents[1] / "config")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise SenriError(f"no config folder at {candidates[0]} or {candidates[1]}: install Senri again.")


def preset_names() -> list[str]:
    """Return the names of the presets in `config/presets`, sorted."""
    return _names_in(config_dir() / "presets")


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; an empty file is an empty mapping.

    Raises:
        SenriError: the file is missing, cannot be read, is not YAML, or is not a mapping of names to values.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SenriError(f"{path}: no such file.") from None
    except UnicodeDecodeError:
        raise SenriError(f"{path} is not UTF-8 text, but it should be a YAML file.") from None
    except OSError as error:
        raise SenriError(f"{path} cannot be read: {error.strerror}.") from None
    values = _parse(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SenriError(f"{path} holds {_described(values)}, but it should be a mapping of names to values.")
    for key in values:
        if not isinstance(key, str):
            raise SenriError(f"{path}: the key {_described(key)} should be a name.")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return a copy of `values` with every `dotted.key=value` word set; a value is read as YAML.

    `memory.rule=delta` sets `rule` of the section `memory`, which is made when it is not there.

    Raises:
        SenriError: a word has no `=`, an empty key, a value that is not YAML, or goes into
            something that is no section.
    """
    result = copy.deepcopy(dict(values))
    for word in overrides:
        dotted, equals, text = word.partition("=")
        parts = dotted.strip().split(".")
        if not equals or not all(parts):
            raise SenriError(f"override {word!r} should look like key=value or section.key=value.")
        section = result
        for depth, part in enumerate(parts[:-1], start=1):
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                where = ".".join(parts[:depth])
                raise SenriError(f"override {word!r}: {where!r} is {_described(section)}, which is not a section.")
        section[parts[-1]] = _parse(text, f"override {word!r}")
    return result


def build(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Make the dataclass `cls` from `values`, checking names and types; nothing is converted silently ("5" is no int).

    Args:
        cls: a stdlib dataclass; its fields may be dataclasses too.
        values: plain data, as YAML gives it.
        source: where the values come from; the error begins with it.

    Raises:
        SenriError: an unknown key (with the nearest known one), a missing key, a wrong type or a refused value.
    """
    # Validated as JSON: strict there still means that a mapping may become a dataclass and a string a Path.
    # The list is there because pydantic takes a config only for types that cannot carry one of their own.
    adapter = TypeAdapter(list[cls], config=ConfigDict(extra="forbid", strict=True))  # type: ignore[valid-type]
    try:
        return adapter.validate_json(json.dumps([values], default=str))[0]
    except SenriError as error:
        raise SenriError(f"{source}: {error}") from None
    except ValidationError as error:
        raise SenriError(f"{source}: {_sentence(cls, values, error)}") from None


def load_settings(cls: type[T], name_or_path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read settings by name (a preset, or a file of `config/` such as `read`) or by path, and apply overrides.

    Raises:
        SenriError: no such name (with the nearest) or file, or anything that `load_yaml`, `apply_overrides` or
            `build` refuse.
    """
    path = find(name_or_path)
    source = str(path) if not overrides else f"{path} with {' '.join(overrides)}"
    return build(cls, apply_overrides(load_yaml(path), overrides), source)


def find(name_or_path: str | Path, *folders: str) -> Path:
    """Return the file of a preset, of a command's settings, or the path itself when it is one.

    Args:
        name_or_path: a name without suffix, or a path.
        folders: of `config/`, where names are looked for; the presets and `config/` itself if none are given.

    Raises:
        SenriError: an unknown name, with the nearest known one.
    """
    word = str(name_or_path)
    if Path(word).suffix in _YAML_SUFFIXES or os.sep in word:
        return Path(word)
    places = [config_dir() / folder for folder in folders or ("presets", "")]
    for place in places:
        path = place / f"{word}.yaml"
        if path.is_file():
            return path
    known = [name for place in places for name in _names_in(place)]
    what = folders[0].removesuffix("s") if folders else "preset or settings"
    raise SenriError(f"no {what} named {word!r} (a file's path ends in .yaml): {nearest(word, known)}")


def save_resolved(settings: Any, path: str | Path) -> None:
    """Write a settings dataclass as YAML, whole or not at all; `load_settings` reads the same values back.

    Raises:
        SenriError: the file cannot be written.
    """
    path = Path(path)
    plain = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SenriError(f"{path} cannot be written: {error.strerror}.") from error


def _names_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SenriError(f"{source} is not YAML{where}: {getattr(error, 'problem', None) or error}.") from None


def _described(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"


def _sentence(cls: type, values: Mapping[str, Any], error: ValidationError) -> str:
    """Say the most telling of pydantic's complaints: an unknown key explains a missing one, so it goes first."""
    problems = error.errors(include_url=False)
    problem = next((entry for entry in problems if entry["type"] == "unexpected_keyword_argument"), problems[0])
    parts = _key_parts(cls, problem)
    key = ".".join(map(str, parts))
    if problem["type"] == "unexpected_keyword_argument":
        known = [field.name for field in dataclasses.fields(_class_at(cls, parts[:-1]) or cls)]
        return f"unknown key {key!r}: {nearest(str(parts[-1]), known)}"
    expected = " or ".join(dict.fromkeys(_expected(entry) for entry in problems if _key_parts(cls, entry) == parts))
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"the key {key!r} is missing: add it."
    if problem["type"] in ("value_error", "assertion_error"):
        return f"{key!r}: {expected}" if key else expected
    return f"{key!r} is {_described(problem['input'])}, but it should be {expected}."


def _expected(problem: ErrorDetails) -> str:
    """Return pydantic's words for what should be there, with YAML's names for JSON's kinds."""
    words = re.sub(r"^(Input should be|Value error,|Assertion failed,) ", "", problem["msg"])
    return {"a valid array": "a list", "an object": "a section of names and values"}.get(words, words)


def _key_parts(cls: type, problem: ErrorDetails) -> list[int | str]:
    """Return the error's place without the list that `build` adds and without the tags of a union's members."""
    parts: list[int | str] = []
    for part in problem["loc"][1:]:
        owner = _class_at(cls, parts)
        is_last_unknown = problem["type"] == "unexpected_keyword_argument" and part == problem["loc"][-1]
        if owner is not None and part not in get_type_hints(owner) and not is_last_unknown:
            continue
        if owner is None and isinstance(part, str) and _is_leaf(cls, parts):
            continue
        parts.append(part)
    return parts


def _is_leaf(cls: type, parts: list[int | str]) -> bool:
    """Tell whether the field at `parts` is no mapping, so that a further word in a place can only be a union's tag."""
    hint = _hint_at(cls, parts)
    return not any(getattr(kind, "__origin__", kind) in (dict, Mapping) for kind in (hint, *get_args(hint)))


def _hint_at(cls: type, parts: Sequence[int | str]) -> Any:
    hint: Any = cls
    for part in parts:
        owner = _dataclass_in(hint)
        hint = get_type_hints(owner).get(str(part)) if owner is not None else None
    return hint


def _class_at(cls: type, parts: Sequence[int | str]) -> type | None:
    return _dataclass_in(_hint_at(cls, parts))


def _dataclass_in(hint: Any) -> type | None:
    """Return the dataclass that a hint such as `Part | None` or `list[Part]` speaks of."""
    kinds = (hint, *get_args(hint))
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)
