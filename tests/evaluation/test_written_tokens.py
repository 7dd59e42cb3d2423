import re
from html.parser import HTMLParser

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from senri.evaluation.written_tokens import html_of, join_characters


def make_tokenizer(decoder, pre_tokenizer, vocabulary) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="?"))
    tokenizer.decoder, tokenizer.pre_tokenizer = decoder, pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Texts(HTMLParser):
    """Collects the shown texts, and the marks in them."""

    def __init__(self):
        super().__init__()
        self.blocks, self.marks, self.tags, self.is_text = [], [], [], False

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if tag == "div":
            self.is_text = values.get("class") == "text"
            if self.is_text:
                self.blocks.append("")
                self.marks.append([])
        if tag == "mark" and self.is_text:
            self.marks[-1].append((int(values["class"][1:]), float(values["title"])))

    def handle_endtag(self, tag):
        if tag == "div":
            self.is_text = False

    def handle_data(self, data):
        if self.is_text:
            self.blocks[-1] += data


def shown(html: str) -> Texts:
    parser = Texts()
    parser.feed(html)
    return parser


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_text_stands_there_whole_and_escaped(byte_tokenizer):
    text = 'if a < b && c > d:\n\n  <script>alert("1 & 2")</script>\t&amp; \u00e4\u6f22\U0001f600 </div></details>'
    ids = encode(byte_tokenizer, text)
    html = html_of(byte_tokenizer, ids, {3: [1.0] * len(ids), 5: [2.0] * len(ids)})
    found = shown(html)
    assert found.blocks == [text] * 3
    assert "script" not in found.tags
    assert "\ufffd" not in html
    assert html.count("<div") == html.count("</div")
    assert "http" not in html and "url(" not in html


def test_tokens_that_look_like_html_are_text():
    vocabulary = ["?", "<script>", "&amp;", "</div>", "word"]
    tokenizer = make_tokenizer(decoders.Fuse(), pre_tokenizers.WhitespaceSplit(), vocabulary)
    html = html_of(tokenizer, [1, 2, 3, 4] * 3, {0: [float(number) for number in range(12)]})
    assert shown(html).blocks == ["<script>&amp;</div>word" * 3]
    assert "script" not in shown(html).tags
    assert html.count("<div") == html.count("</div") == 2


def test_tokens_of_one_character_are_one_piece(byte_tokenizer):
    text = "a\u00e4\U0001f600b"
    pieces = join_characters(byte_tokenizer, encode(byte_tokenizer, text))
    assert [(piece.text, piece.start, piece.end) for piece in pieces] == [
        ("a", 0, 1),
        ("\u00e4", 1, 3),
        ("\U0001f600", 3, 7),
        ("b", 7, 8),
    ]


def test_a_character_that_an_end_cuts_off_is_left_out(byte_tokenizer):
    ids = encode(byte_tokenizer, "\U0001f600ab\u6f22")[2:-1]
    pieces = join_characters(byte_tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == "ab"
    assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].end) == (0, len(ids))


def test_blanks_stay_with_a_tokenizer_that_drops_the_first():
    vocabulary = ["?", "\u2581one", "\u2581two", "\u2581three"]
    tokenizer = make_tokenizer(decoders.Metaspace(), pre_tokenizers.Metaspace(), vocabulary)
    pieces = join_characters(tokenizer, [1, 2, 3, 2])
    assert [piece.text for piece in pieces] == ["one", " two", " three", " two"]


def test_the_background_is_the_rank_and_the_title_the_number(byte_tokenizer):
    ids = encode(byte_tokenizer, "abcdefghij" * 2)
    strengths = torch.arange(20).flip(0).square().float().tolist()
    marks = shown(html_of(byte_tokenizer, ids, {0: strengths})).marks
    assert len(marks) == 1  # a single layer is the text itself
    assert [title for _, title in marks[0]] == strengths
    assert [level for level, _ in marks[0]] == [9, 9, 8, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0]


def test_layers_are_averaged_and_have_a_block_each(byte_tokenizer):
    ids = encode(byte_tokenizer, "ab")
    html = html_of(byte_tokenizer, ids, {4: [1.0, 3.0], 7: [2.0, 0.5]})
    marks = shown(html).marks
    assert [[title for _, title in block] for block in marks] == [[1.5, 1.75], [1.0, 3.0], [2.0, 0.5]]
    assert [[level for level, _ in block] for block in marks] == [[0, 5], [0, 5], [5, 0]]
    assert re.findall(r"<summary>(.*?)</summary>", html) == ["Layer 4", "Layer 7"]


def test_the_pieces_of_a_character_count_their_mean(byte_tokenizer):
    marks = shown(html_of(byte_tokenizer, encode(byte_tokenizer, "\u00e4b"), {0: [1.0, 2.0, 5.0]})).marks
    assert [title for _, title in marks[0]] == [1.5, 5.0]


def test_the_strongest_tokens_are_listed_with_what_is_around_them(byte_tokenizer):
    text = "x" * 40 + "<&\nQ" + "y" * 40
    strengths = [1.0] * len(text)
    strengths[text.index("Q")] = 9.0
    html = html_of(byte_tokenizer, encode(byte_tokenizer, text), {0: strengths})
    items = re.findall(r"<li>(.*?)</li>", html)
    around = "x" * 21 + "&lt;&amp;\u23ce<mark class=w9>Q</mark>" + "y" * 24
    assert items[0] == f'<span class="number">9.00</span> \u2026 {around} \u2026'
    assert len(items) == 12


def test_the_words_written_most_on_average_are_listed(byte_tokenizer):
    text = "cat dog Cat dog cat dog emu emu don't"
    strengths = [5.0 if character in "Cc" else 2.0 if character in "dog" else 0.5 for character in text]
    html = html_of(byte_tokenizer, encode(byte_tokenizer, text), {0: strengths})
    listed = re.search(r"Words written most.*?: (.*)\.</p>", html)[1]
    words = re.findall(r"(\w+) <span class=\"number\">([\d.]+) \((\d+)\u00d7\)", listed)
    assert words == [("cat", "2.00", "3"), ("dog", "2.00", "3")]
    assert "No word occurs 3 times" in html_of(byte_tokenizer, encode(byte_tokenizer, "one two"), {0: [1.0] * 7})


@pytest.mark.parametrize("layers", [1, 3, 24])
def test_two_thousand_tokens_stay_below_300_kilobytes(byte_tokenizer, layers):
    text = ("A sentence of <some> words, & then \u00e4 more.\n" * 60)[:1900]
    ids = encode(byte_tokenizer, text)[:2000]
    strengths = torch.rand(layers, len(ids)).tolist()
    html = html_of(byte_tokenizer, ids, dict(enumerate(strengths)))
    assert len(html.encode()) < 300_000
    blocks = shown(html).blocks
    assert len(blocks) == (1 if layers == 1 else layers + 1)
    assert all(block and blocks[0].endswith(block) for block in blocks)
    assert ("last 208 tokens" in html) == (layers == 24)
