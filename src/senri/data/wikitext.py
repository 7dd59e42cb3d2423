"""WikiText: the pages of its token files, and the text that its tokens stand for."""

import re
from pathlib import Path

from senri.data.rows import hub_rows, read_rows
from senri.errors import SenriError

# A page begins with a heading of the first level: " = Title = ".
_TITLE = re.compile(r"^ = [^=].* = ?$", re.MULTILINE)

_BRACKETS = ((r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"))
_QUOTES = ('"', "'")
_REPLACEMENTS = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def wikitext_pages(source: str | None) -> list[str]:
    """Return the pages of a WikiText file, in its tokens.

    Args:
        source: a token file such as wiki.test.tokens, a .jsonl file with a text named `page`, or None for the test
            split of WikiText-2 from the Hub, by page.

    Raises:
        SenriError: the file is missing, or has no heading of a page.
    """
    if source is None:
        rows = hub_rows("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test")
        return [str(row["page"]) for row in rows]
    path = Path(source)
    if path.suffix == ".jsonl":
        return [str(row["page"]) for row in read_rows(path, ("page",))]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SenriError(f"data {source!r} cannot be read: name a token file of WikiText.") from error
    starts = [found.start() for found in _TITLE.finditer(text)]
    if not starts:
        raise SenriError(f"data {source!r} has no page heading (a line ' = Title = '): name a token file of WikiText.")
    # What stands before the first heading, blank lines as a rule, belongs to its page.
    bounds = [0, *starts[1:], len(text)]
    return [text[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]


def detokenise(page: str) -> str:
    """Return a page as it would be written: the rules of the data set's benchmarks (Megatron-LM, lm-eval), in order."""
    text = page.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", r"/'[0-9]/", text)
    for mark in "-,.":
        text = text.replace(f" @{mark}@ ", mark)
    for mark in ":;.!?,":
        text = text.replace(f" {mark} ", f"{mark} ")
    for begin, end in _BRACKETS:
        text = re.sub(rf"{begin}\s*([^{end}]*?)\s*{end}", _inside(begin, end), text)
    for quote in _QUOTES:
        text = re.sub(rf"{quote}\s*([^{quote}]*?)\s*{quote}", rf"{quote}\1{quote}", text)
    for before, after in _REPLACEMENTS:
        text = text.replace(before, after)
    return text


def _inside(begin: str, end: str) -> str:
    """Return a replacement that leaves out the blanks inside brackets."""
    return begin.removeprefix("\\") + r"\1" + end.removeprefix("\\")
