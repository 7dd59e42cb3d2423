"""Lines of a hard-wrapped text joined to paragraphs again, as in Project Gutenberg's books; the text comes in pieces.

A line is joined to the next one when it is about as long as the text is wide: what ended it was then the page's width.
Shorter lines (verse, headings, lists, the last of a paragraph), columns of tables and what is indented further than the
line before stay as they are. A text that is not wrapped, such as one with a paragraph a line, is left alone.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

# The width is judged from the beginning of the text. It also bounds what is held in memory of a line without end.
_SAMPLE_CHARACTERS = 1 << 18
# Nobody wraps prose narrower than this, and lines that differ more are paragraphs.
_WIDTHS = range(50, 121)
# So large a share of the lines is at most as long as the width; longer ones are slips.
_QUANTILE = 0.9
_SHORTEST, _LONGEST = 0.75, 1.25  # of a wrapped line, as shares of the width
_COLUMNS = re.compile(r"\S(?:\t| {3,})\S")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_DASHES = ("-", "\N{EM DASH}", "\N{EN DASH}")


def unwrap(pieces: Iterable[str]) -> Iterator[str]:
    """Join the lines of each paragraph with a blank, or with nothing after a dash.

    Args:
        pieces: a text in pieces of any size; their sizes do not change the result.
    """
    pieces = iter(pieces)
    beginning = ""
    while len(beginning) < _SAMPLE_CHARACTERS and (piece := next(pieces, None)) is not None:
        beginning += piece
    text = chain((beginning,), pieces)
    width = wrap_width(beginning[:_SAMPLE_CHARACTERS])
    return text if width is None else _gathered(_joined(text, width))


def wrap_width(text: str) -> int | None:
    """Return the usual length of the lines within a paragraph, or None for a text that is not wrapped.

    Args:
        text: the beginning of it; a part that has many lines.
    """
    lines = [line.rstrip() for line in text.split("\n")]
    inner = [len(line) for line, following in pairwise(lines) if line and following]
    if not inner:
        return None
    width = _usual(inner)
    # Elsewhere, too, a wrapped text has no long lines; one with a paragraph a line may have a few verses.
    is_wrapped = width in _WIDTHS and _usual([len(line) for line in lines if line]) <= _LONGEST * width
    return width if is_wrapped else None


def _usual(lengths: list[int]) -> int:
    return sorted(lengths)[int(_QUANTILE * (len(lengths) - 1))]


def _joined(pieces: Iterable[str], width: int) -> Iterator[str]:
    joined = False
    for line, following in pairwise(chain(_lines(pieces), ("",))):
        text = line.lstrip() if joined else line
        joined = _is_wrapped(line, following, width)
        if joined:
            text = text.rstrip()
            text += "" if text.endswith(_DASHES) else " "
        yield text


def _gathered(lines: Iterable[str]) -> Iterator[str]:
    """Yield pieces of many lines, as a file is read: whoever takes them has less to put together."""
    gathered: list[str] = []
    characters = 0
    for line in lines:
        gathered.append(line)
        characters += len(line)
        if characters >= _SAMPLE_CHARACTERS:
            yield "".join(gathered)
            gathered, characters = [], 0
    if gathered:
        yield "".join(gathered)


def _is_wrapped(line: str, following: str, width: int) -> bool:
    if not line.endswith("\n") or not following.strip():
        return False
    text = line.rstrip()
    return (
        _SHORTEST * width <= len(text) <= _LONGEST * width
        and _indentation(following) <= _indentation(line)
        and not _COLUMNS.search(text)
    )


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Yield lines with their breaks; one that is longer than the sample comes in parts, of which the last has it."""
    rest = ""
    for piece in pieces:
        lines = _LINE.findall(rest + piece)
        rest = lines.pop() if lines and not lines[-1].endswith("\n") else ""
        yield from lines
        if len(rest) > _SAMPLE_CHARACTERS:
            yield rest
            rest = ""
    if rest:
        yield rest
