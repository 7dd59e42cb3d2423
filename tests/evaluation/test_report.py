import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as mpl_image

from senri.errors import SenriError
from senri.evaluation import files
from senri.evaluation.figures import human_bytes, png_bytes, reading_figure, spectrum_figure
from senri.evaluation.footprint import ReadingRecord
from senri.evaluation.report import Picture, Report, Table, write_report


def records(count: int = 20, chunk: int = 512) -> list[ReadingRecord]:
    return [
        ReadingRecord(
            tokens=chunk * (index + 1),
            chunk_tokens=chunk,
            seconds=1.7 + 0.1 * (index % 3),
            state_bytes=1_000_000,
            window_bytes=min(index + 1, 2) * 20_000_000,
            process_bytes=10**9,
        )
        for index in range(count)
    ]


@pytest.fixture
def report() -> Report:
    figure = reading_figure(records(), lambda tokens: tokens * 46_080)
    return Report(
        title="Reading <a text>",
        summary=["It read 10,240 tokens.", "It is small."],
        command=["senri", "demo", "--out", "my results", "text=a b"],
        settings={"tokens": 10_240},
        results={"tokens": 10_240, "seed": 0},
        warnings=["perplexity is odd"],
        tables=[Table("Perplexity", ["model", "value"], [["base", "12.0"]], note="lower is better")],
        pictures=[Picture("reading", figure, "bytes and speed")],
    )


def test_page_needs_nothing_else_and_says_how_it_was_made(tmp_path: Path, report: Report):
    page = write_report(tmp_path / "deep" / "out", report)
    text = page.read_text()
    assert "senri demo --out &#39;my results&#39; &#39;text=a b&#39;" in text
    assert "Reading &lt;a text&gt;" in text
    assert "perplexity is odd" in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    parser = HTMLParser()
    parser.feed(text)
    assert sorted(path.name for path in page.parent.iterdir()) == ["reading.png", "report.html", "report.json"]


def test_json_repeats_settings_results_and_versions(tmp_path: Path, report: Report):
    write_report(tmp_path, report)
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["settings"] == {"tokens": 10_240}
    assert values["results"]["seed"] == 0
    assert {"senri", "python", "torch", "transformers"} <= set(values["versions"])
    assert str(tmp_path) not in json.dumps(values)


def test_reading_figure_shows_the_exact_numbers():
    figure = reading_figure(records(), lambda tokens: tokens * 46_080)
    left, right = figure.axes[:2]
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert any("471.9 MB" in label for label in labels)
    assert any("41.0 MB" in label for label in labels)
    assert any("1.0 MB" in label for label in labels)
    assert right.get_ylim()[0] == 0
    assert left.get_xlabel() == right.get_xlabel() == "tokens read"


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_figures_of_any_length_become_pictures(count: int):
    pixels = mpl_image.imread(io.BytesIO(png_bytes(reading_figure(records(count), lambda tokens: tokens * 46_080))))
    assert pixels.ndim == 3
    assert pixels.std() > 0


def test_spectrum_figure_takes_empty_memories_and_any_number_of_layers():
    spectra = {f"layer {index}": np.geomspace(1, 1e-3, 8)[None].repeat(3, 0) * (index > 0) for index in range(4)}
    assert png_bytes(spectrum_figure(spectra)).startswith(b"\x89PNG")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "report.json"
    path.write_bytes(b"old")

    def full_disk(self, content):
        with self.open("wb") as stream:
            stream.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(SenriError, match="No space left"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_written_for_people():
    assert [human_bytes(value) for value in (0, 999, 1_500, 34_600_000, 2e9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "34.6 MB",
        "2.0 GB",
    ]
