"""The text as a memory saw it, as HTML: every token on a background that says how strongly it was written.

The fragment needs no script and nothing from elsewhere. Its colours are transparent, so that they work on light and on
dark pages; everything that comes from the text is escaped.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_LEVELS = 9
_STRONGEST_ALPHA = 0.75
_LISTED = 12
_OFTEN = 3
_CONTEXT_CHARACTERS = 24
_LAYER_TOKENS = 5000
"""Tokens that the blocks of single layers show in all, which keeps the fragment's size in bounds."""

_REPLACEMENT = "\ufffd"

_SHADES = "\n".join(
    f".written .w{level} {{ background: rgb(230 120 0 / {_STRONGEST_ALPHA * level / _LEVELS:.2f}); }}"
    for level in range(1, _LEVELS + 1)
)
_STYLE = f"""<style>
.written .text {{ white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7; margin: .6rem 0;
  padding: .6rem .8rem; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: 8px;
  max-height: 32rem; overflow-y: auto; }}
.written mark {{ color: inherit; background: none; border-radius: 2px; }}
.written ol {{ padding-left: 1.6rem; }}
.written li {{ overflow-wrap: anywhere; }}
.written .number {{ opacity: .7; font-variant-numeric: tabular-nums; }}
.written .legend {{ font-size: .9rem; }}
.written .legend mark {{ padding: 0 .45rem; }}
{_SHADES}
</style>"""


@dataclass(frozen=True)
class Piece:
    """Whole characters of a text and the tokens `start` to `end` (exclusive) that they come from."""

    text: str
    start: int
    end: int


def join_characters(tokenizer: Any, ids: Sequence[int]) -> list[Piece]:
    """Return the text of every token; tokens that only together are whole characters become one piece.

    A character that the ends of `ids` cut off is left out.

    Args:
        tokenizer: of transformers.
        ids: the tokens.
    """

    def text_of(start: int, end: int) -> str:
        text: str = tokenizer.decode(
            list(ids[start:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    pieces: list[Piece] = []
    before = start = 0
    for end in range(1, len(ids) + 1):
        # Decoded after the piece before it: some tokenizers drop the blank that a text begins with.
        text = text_of(before, end)[len(text_of(before, start)) :]
        is_last = end == len(ids)
        if text.endswith(_REPLACEMENT) and not is_last:
            continue
        text = text.lstrip(_REPLACEMENT) if start == 0 else text
        text = text.rstrip(_REPLACEMENT) if is_last else text
        pieces.append(Piece(text, start, end))
        before, start = start, end
    return pieces


def html_of(tokenizer: Any, ids: Sequence[int], layers: Mapping[int, Sequence[float]]) -> str:
    """Return a self-contained fragment: the most strongly written tokens and words, the text, and one text a layer.

    Args:
        tokenizer: of transformers.
        ids: the tokens to show.
        layers: by layer index, how strongly each token was written; 1 is an average token.
    """
    pieces = join_characters(tokenizer, ids)
    mean = [sum(values) / len(layers) for values in zip(*layers.values(), strict=True)]
    strengths = _of_pieces(pieces, mean)
    shown = _LAYER_TOKENS // len(layers)
    first = next((index for index, piece in enumerate(pieces) if piece.start >= len(ids) - shown), 0)
    last = pieces[first:]
    cut = f", its last {sum(piece.end - piece.start for piece in last):,} tokens" if first else ""
    blocks = [
        f"<details><summary>Layer {layer}{cut}</summary>{_marked(last, _of_pieces(last, values))}</details>"
        for layer, values in layers.items()
    ]
    parts = [
        _STYLE,
        '<div class="written">',
        "<h3>What was written most strongly</h3>",
        _strongest(pieces, strengths),
        _words(pieces, strengths),
        "<h3>The text as the memory saw it</h3>",
        _legend(strengths),
        _marked(pieces, strengths),
        *(blocks if len(layers) > 1 else []),
        "</div>",
    ]
    return "\n".join(parts)


def _of_pieces(pieces: Sequence[Piece], values: Sequence[float]) -> list[float]:
    """Return the mean of each piece's tokens."""
    return [sum(values[piece.start : piece.end]) / (piece.end - piece.start) for piece in pieces]


def _levels(strengths: Sequence[float]) -> list[int]:
    """Return each value's rank in equal steps, 0 for the weakest to `_LEVELS`; equal values get the same."""
    distinct = sorted(strengths)
    place: dict[float, int] = {}
    for index, value in enumerate(distinct):
        place.setdefault(value, index)
    return [place[value] * (_LEVELS + 1) // len(distinct) for value in strengths]


def _marked(pieces: Sequence[Piece], strengths: Sequence[float]) -> str:
    marks = [
        f"<mark class=w{level} title={strength:.2f}>{escape(piece.text, quote=False)}</mark>"
        for piece, strength, level in zip(pieces, strengths, _levels(strengths), strict=True)
    ]
    return f'<div class="text">{"".join(marks)}</div>'


def _legend(strengths: Sequence[float]) -> str:
    scale = "".join(f"<mark class=w{level}>&nbsp;</mark>" for level in range(_LEVELS + 1))
    return (
        f'<p class="legend">weak {scale} strong, by rank among the tokens shown. Point at a token for its number: how '
        f"far it changed the memory, in units of an average token of the reading, over all layers and heads (here from "
        f"{min(strengths):.2f} to {max(strengths):.2f}).</p>"
    )


def _strongest(pieces: Sequence[Piece], strengths: Sequence[float]) -> str:
    ranked = sorted(range(len(pieces)), key=lambda index: -strengths[index])[:_LISTED]
    items = []
    for index in ranked:
        # Enough pieces for the context: each but those of cut-off characters has at least one character.
        before = "".join(piece.text for piece in pieces[max(index - _CONTEXT_CHARACTERS, 0) : index])
        after = "".join(piece.text for piece in pieces[index + 1 : index + 1 + _CONTEXT_CHARACTERS])
        context = f"{_line(before[-_CONTEXT_CHARACTERS:])}<mark class=w{_LEVELS}>{_line(pieces[index].text)}</mark>"
        items.append(
            f'<li><span class="number">{strengths[index]:.2f}</span> … {context}{_line(after[:_CONTEXT_CHARACTERS])} …'
            f"</li>"
        )
    return f"<p>Single tokens, and what stands around them:</p><ol>{''.join(items)}</ol>"


def _words(pieces: Sequence[Piece], strengths: Sequence[float]) -> str:
    """List the words that were written most on average, among those that occur often enough."""
    text = "".join(piece.text for piece in pieces)
    owner = [index for index, piece in enumerate(pieces) for _ in piece.text]
    found: defaultdict[str, list[float]] = defaultdict(list)
    for match in re.finditer(r"[^\W\d_]+", text):
        touched = sorted({owner[place] for place in range(*match.span())})
        found[match[0].lower()].append(sum(strengths[index] for index in touched) / len(touched))
    means = {word: sum(values) / len(values) for word, values in found.items() if len(values) >= _OFTEN}
    ranked = sorted(means, key=lambda word: -means[word])[:_LISTED]
    if not ranked:
        return f"<p>No word occurs {_OFTEN} times in the text shown.</p>"
    words = ", ".join(
        f'{escape(word)} <span class="number">{means[word]:.2f} ({len(found[word])}×)</span>' for word in ranked
    )
    return f"<p>Words written most on average, of those that occur {_OFTEN} times or more: {words}.</p>"


def _line(text: str) -> str:
    return escape(text.replace("\n", "⏎"), quote=False)
