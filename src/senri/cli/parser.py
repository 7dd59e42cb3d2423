"""Typed functions become commands: parameters before the `*` are words, the others options, the docstring the help."""

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser

from senri.errors import SenriError, nearest

Command = Callable[..., None]


class Parser(ArgumentParser):
    """A parser whose complaint is one sentence, raised and not printed."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong with the words of the command line.

        Raises:
            SenriError: always.
        """
        raise SenriError(_one_sentence(message))


def new_parser(description: str) -> Parser:
    """Return an empty parser for a command or a group of commands."""
    return Parser(prog="senri", description=description, formatter_class=argparse.HelpFormatter)


def add_command(group: Any, name: str, command: Command) -> None:
    """Add a function as a command of a group.

    A parameter before the `*` becomes a word in its place, `*words` any number of them, a keyword-only one an option
    (`max_rank` is `--max-rank`), a `bool` a switch.

    Args:
        group: what `add_subcommands` returned.
        name: how the command is called.
        command: a typed function with a docstring in Google's style.
    """
    docstring = parse_docstring(inspect.getdoc(command) or "")
    texts = {one.arg_name.lstrip("*"): _filled(one.description) for one in docstring.params}
    summary = (docstring.short_description or "").rstrip(".")
    parser = new_parser("\n\n".join(filter(None, [docstring.short_description, docstring.long_description])))
    hints = get_type_hints(command)
    for parameter in inspect.signature(command).parameters.values():
        _add_argument(parser, parameter, hints[parameter.name], texts.get(parameter.name, ""))
    group.add_subcommand(name, parser, help=summary)


def refuse_empty_values(words: Sequence[str]) -> None:
    """Refuse `--text ""`, as an unset variable of a shell leaves it: an empty path would mean the folder at hand.

    Raises:
        SenriError: an option's value is empty.
    """
    for before, word in pairwise(["", *words]):
        flag = word.removesuffix("=") if word.endswith("=") else before if not word.strip() else ""
        if flag.startswith("--"):
            raise SenriError(f"{flag} is empty: give it a value, or leave it out.")


def call(command: Command, values: Any) -> None:
    """Call a command's function with what its parser found."""
    words: list[Any] = []
    options: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        value = getattr(values, parameter.name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.extend(value)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            options[parameter.name] = value
        else:
            words.append(value)
    command(*words, **options)


def _add_argument(parser: Parser, parameter: inspect.Parameter, hint: Any, text: str) -> None:
    if parameter.kind is parameter.VAR_POSITIONAL:
        # Read as plain words: a name such as `a.senri` or `key=value` is no YAML to be interpreted.
        parser.add_argument(parameter.name, nargs="*", type=_word(hint), default=[], help=text)
        return
    if parameter.kind is not parameter.KEYWORD_ONLY:
        parser.add_argument(parameter.name, type=_word(hint), help=text)
        return
    flag = "--" + parameter.name.replace("_", "-")
    if hint is bool:
        parser.add_argument(flag, action="store_true", help=text)
    elif parameter.default is parameter.empty:
        parser.add_argument(flag, type=_word(hint), required=True, help=text)
    else:
        parser.add_argument(flag, type=hint, default=parameter.default, help=text)


def _word(hint: Any) -> Any:
    return Path if hint is Path else str if hint is str else hint


def _filled(text: str | None) -> str:
    # argparse reads % as a format.
    return " ".join((text or "").split()).rstrip(".").replace("%", "%%")


def _one_sentence(message: str) -> str:
    """Say what jsonargparse says, in the words of a person who typed a command."""
    text = " ".join(message.split())
    for typed, plain in (("<class 'int'>", "whole number"), ("<class 'float'>", "number")):
        text = text.replace(typed, plain)
    if found := re.search(r"the following arguments are required: (.+)", text):
        names = [one.strip().rpartition(".")[2] for one in found[1].split(",")]
        return f"missing: {', '.join(names)} (see --help)."
    if found := re.search(r"invalid choice: '(.*)' \(choose from (.+)\)", text):
        known = re.findall(r"\w+", found[2])
        return f"unknown command {found[1]!r}: {nearest(found[1], known)} (see --help)."
    if found := re.search(r'expected "[\w.]+" to be one of \{(.+)\}, but it was not provided', text):
        return f"missing: a command, one of {', '.join(re.split(', *', found[1]))} (see --help)."
    if found := re.search(r"unrecognized arguments: (--.*)", text):
        return f"unknown option {found[1]} (see --help)."
    if found := re.search(r'^Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)$', text):
        flag = "--" + found[1].rpartition(".")[2].replace("_", "-")
        kinds = re.findall(r"Expected an? (.+?)(?=\.? Got| - Expected| Given|$)", text)
        allowed = " or ".join(_literals(kind) for kind in kinds if "NoneType" not in kind)
        return f"{flag} is {found[2]!r}, but it should be {allowed}."
    if found := re.search(r"unrecognized arguments: ([\w.]+=.*)", text):
        return f"{found[1]} stands apart: put all key=value words together, after the options."
    return text if text.endswith((".", ")")) else f"{text}."


def _literals(kind: str) -> str:
    found = re.fullmatch(r"typing\.Literal\[(.+)\]", kind)
    return found[1].replace(", ", " or ") if found else f"a {kind}"
