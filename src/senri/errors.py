"""The one exception a user is meant to see: a sentence that names the thing, what was expected and what to do."""

import difflib
from collections.abc import Iterable


class SenriError(Exception):
    """Bad input or an unmet need of the surroundings, said in one sentence. Commands print it and exit with code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` with the closest of `known`, or the list of all known names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
