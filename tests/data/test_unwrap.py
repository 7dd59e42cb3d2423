import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from senri.data import unwrap as unwrap_module
from senri.data.unwrap import unwrap, wrap_width

PROSE = [
    "It was about first-drink time, as the captain of the Tsuen-Chau, bound for Shanghai and Japan ports, observed to "
    "his friend Cesare Domenico, a good British subject born at Malta. They sat on the coolest corner in Port Said.",
    "Their table commanded both the cross-way and the short, glaring vista of desert dust and starved young acacias "
    "which led to the black hulks of shipping in the Canal, and the sounds contended with a thin strumming.",
]
VERSE = "    The Owl and the Pussy-cat went to sea\n    In a beautiful pea-green boat,\n    They took some honey"
TABLE = "\n".join(f"Chapter {number:<40}{number * 17}    of the whole book" for number in range(4))
NESTED = "He wrote the letter that follows on the same evening, without a pause:\n    My dear friend, it is time."


def wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, 72, break_on_hyphens=False)


def joined(text: str, piece: int = 1 << 20) -> str:
    return "".join(unwrap(text[start : start + piece] for start in range(0, len(text), piece)))


def test_lines_of_a_paragraph_are_joined_and_paragraphs_stay_apart():
    text = "\n\n".join(map(wrapped, PROSE)) + "\n"
    assert text.count("\n") > 6
    assert joined(text) == "\n\n".join(PROSE) + "\n"


@pytest.mark.parametrize("kept", [VERSE, TABLE, NESTED, "CHAPTER I\nThe beginning"])
def test_short_lines_columns_and_indented_lines_stay(kept: str):
    body = "\n\n".join(map(wrapped, PROSE * 5))
    assert joined(f"{body}\n\n{kept}\n\n{body}") == "\n\n".join([*PROSE * 5, kept, *PROSE * 5])


def test_indented_prose_is_joined_without_its_indentation():
    body = "\n\n".join(map(wrapped, PROSE * 5))
    letter = textwrap.indent(wrapped(PROSE[0]), "    ")
    assert joined(f"{body}\n\n{letter}\n").endswith(f"\n\n    {PROSE[0]}\n")


def test_no_blank_comes_behind_a_dash_at_the_end_of_a_line():
    body = "\n\n".join(map(wrapped, PROSE * 5))
    broken = "He said that he had seen nothing of the kind since he came from the sea-\nside, and he looked at us--"
    assert joined(f"{body}\n\n{broken}\nnobody") == "\n\n".join([*PROSE * 5, broken.replace("-\n", "-") + "\nnobody"])


def test_text_that_is_not_wrapped_is_left_alone():
    lines = [*PROSE, "A line that is about as long as a page is wide, but no more than it.", "Another one."]
    assert wrap_width("\n".join(PROSE)) is None
    assert joined("\n\n".join(["\n".join(lines), *PROSE * 3])) == "\n\n".join(["\n".join(lines), *PROSE * 3])
    assert joined("\n".join(["Shall I compare thee to a summer's day?"] * 9)).count("\n") == 8
    assert joined("") == ""


@given(piece=st.integers(1, 200), sample=st.integers(150, 400))
def test_result_does_not_depend_on_how_the_text_is_pieced(piece: int, sample: int):
    text = "\n\n".join([*map(wrapped, PROSE), VERSE, "x" * 900, wrapped(PROSE[0])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unwrap_module, "_SAMPLE_CHARACTERS", sample)
        whole = joined(text)
        assert joined(text, piece) == whole
    assert "x" * 900 in whole and PROSE[0] in whole


def test_a_line_without_end_is_not_held_in_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unwrap_module, "_SAMPLE_CHARACTERS", 500)
    given_out = 0

    def pieces():
        nonlocal given_out
        yield "\n\n".join(map(wrapped, PROSE * 2))
        for _ in range(100):
            given_out += 1
            yield "x" * 100

    first = next(part for part in unwrap(pieces()) if "xxx" in part)
    assert given_out < 30 and len(first) < 2000
