import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from senri.data import Corpus, open_corpus
from senri.errors import SenriError

SPLITS = ("train", "validation", "test")


def opened(source, split, held_out=(0.2, 0.1), seed=0, unwrap=False) -> Corpus:
    return open_corpus(source, split, held_out=held_out, seed=seed, unwrap=unwrap)


def names(corpus: Corpus) -> list[str]:
    return [name for name, _ in corpus.texts()]


def texts(corpus: Corpus) -> list[str]:
    return ["".join(pieces) for _, pieces in corpus.texts()]


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    (folder / "more").mkdir(parents=True)
    for number in range(20):
        (folder / ("more" if number > 15 else ".") / f"book{number:02}.txt").write_text(f"Text of book {number}.\n")
    return folder


def test_splits_are_disjoint_complete_and_of_the_size_asked_for(books: Path):
    parts = {split: names(opened(books, split)) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 14, "validation": 4, "test": 2}
    assert len({name for part in parts.values() for name in part}) == 20
    assert parts == {split: names(opened(books, split)) for split in SPLITS}
    assert parts["validation"] != names(opened(books, "validation", seed=1))
    assert sorted(parts["train"]) != parts["train"]


def test_texts_begin_anew_and_belong_to_their_names(books: Path):
    corpus = opened(books, "train")
    for name, text in zip(names(corpus), texts(corpus), strict=True):
        assert text == (books / name).read_text()
    assert texts(corpus) == texts(corpus)
    assert corpus.name == "books (train)"


@pytest.mark.parametrize(
    ("count", "held_out", "sizes"),
    [
        (2, (0.01, 0.0), (1, 1, 0)),
        (3, (0.01, 0.01), (1, 1, 1)),
        (2, (0.1, 0.1), (1, 1, 0)),
        (4, (0.45, 0.45), (1, 2, 1)),
        (1, (0.1, 0.0), (1, 0, 0)),
        (5, (0.0, 0.4), (3, 0, 2)),
    ],
)
def test_small_folders_keep_a_document_to_train_on_and_one_to_validate(
    tmp_path: Path, count: int, held_out: tuple[float, float], sizes: tuple[int, int, int]
):
    for number in range(count):
        (tmp_path / f"{number}.txt").write_text("text")
    for split, size in zip(SPLITS, sizes, strict=True):
        if size:
            assert len(names(opened(tmp_path, split, held_out))) == size
        else:
            with pytest.raises(SenriError, match=f"{count} documents.*{split}"):
                opened(tmp_path, split, held_out)


def test_without_shares_all_of_a_source_is_the_split(books: Path):
    for split in SPLITS:
        assert len(names(opened(books, split, (0, 0)))) == 20


def test_a_manifest_decides(books: Path):
    rows = {"book03": "train", "book05.txt": "train", "more/book17": "valid", "book07": "test", "gone": "excluded"}
    lines = "".join(f"Title\t{file}\t{split}\n" for file, split in (rows | {"book09": "excluded"}).items())
    (books / "MANIFEST.tsv").write_text(f"title\tfile\tsplit\n{lines}")
    assert sorted(names(opened(books, "train"))) == ["book03.txt", "book05.txt"]
    assert names(opened(books, "validation", (0, 0))) == ["more/book17.txt"]
    assert names(opened(books, "test")) == ["book07.txt"]


def test_a_manifest_of_other_columns_is_none(books: Path):
    (books / "MANIFEST.tsv").write_text("id\ttitle\nbook03\tThree\n")
    assert len(names(opened(books, "train"))) == 14


def test_a_manifest_that_fits_no_file_or_split_is_refused(books: Path):
    (books / "MANIFEST.tsv").write_text("file\tsplit\nbook03\ttrain\nbook99\ttrain\n")
    with pytest.raises(SenriError, match="MANIFEST.tsv.*'book99'"):
        opened(books, "train")
    (books / "MANIFEST.tsv").write_text("file\tsplit\nbook03\ttrain\n")
    with pytest.raises(SenriError, match="20 documents.*test in MANIFEST.tsv.*source of its own"):
        opened(books, "test")


def test_a_single_file_is_one_split(tmp_path: Path):
    path = tmp_path / "book.txt"
    path.write_text("text\n")
    assert texts(opened(path, "train")) == ["text\n"]
    assert texts(opened(path, "validation", (0, 0))) == ["text\n"]
    with pytest.raises(SenriError, match="book.txt.*single text.*validation"):
        opened(path, "validation")


@pytest.mark.parametrize("held_out", [(0.5, 0.5), (-0.1, 0.1), (0.1,)])
def test_shares_that_leave_nothing_are_refused(books: Path, held_out: tuple[float, ...]):
    with pytest.raises(SenriError, match="held_out"):
        opened(books, "train", held_out)


def test_fingerprint_changes_with_the_text_and_nothing_else(books: Path):
    first = opened(books, "train")
    assert first.fingerprint == opened(str(books), "train").fingerprint
    others = [opened(books, "validation"), opened(books, "train", seed=1), opened(books, "train", unwrap=True)]
    (books / names(first)[3]).write_text("Other text.\n")
    others.append(opened(books, "train"))
    assert len({corpus.fingerprint for corpus in (first, *others)}) == 5


def test_unwrap_joins_the_lines_of_each_document(tmp_path: Path):
    line = "Eight words of a line that is as wide as a page, "
    (tmp_path / "a.txt").write_text(f"{line}so to say.\n" * 4 + "End.\n")
    assert texts(opened(tmp_path, "train", (0, 0), unwrap=True)) == [f"{line}so to say. " * 4 + "End.\n"]
    assert texts(opened(tmp_path, "train", (0, 0)))[0].count("\n") == 5


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    asked = []

    def load_dataset(repository, *, split, streaming):
        assert streaming
        asked.append((repository, split))
        return ({"text": f"{split} text {number}"} for number in range(200))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_pg19_has_splits_of_its_own(hub: list[tuple[str, str]]):
    corpora = [opened("pg19", split) for split in SPLITS]
    assert hub == []  # nothing is asked for before it is read
    assert [texts(corpus)[3] for corpus in corpora] == [f"{split} text 3" for split in SPLITS]
    assert hub == [("emozilla/pg19", split) for split in SPLITS]
    assert len({corpus.fingerprint for corpus in corpora}) == 3
    assert corpora[0].fingerprint == opened("pg19", "train", (0, 0), seed=5).fingerprint


def test_the_pile_is_shared_out_by_a_hash(hub: list[tuple[str, str]]):
    parts = [texts(opened("pile", split)) for split in SPLITS]
    assert {*hub} == {("monology/pile-uncopyrighted", "train")}
    assert sorted(text for part in parts for text in part) == sorted(f"train text {number}" for number in range(200))
    assert [len(part) for part in parts] == [pytest.approx(size, abs=15) for size in (140, 40, 20)]
    assert parts[1] != texts(opened("pile", "validation", seed=1))
    assert len(texts(opened("pile", "train", (0, 0)))) == 200
    prints = {opened("pile", split, seed=seed).fingerprint for split in SPLITS for seed in (0, 1)}
    assert len(prints) == 6


def test_a_hub_that_cannot_be_reached_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch):
    def offline(*_args, **_options):
        raise ConnectionError("no network\nand more")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(SenriError, match=r"emozilla/pg19 .*\(no network\): name a local"):
        texts(opened("pg19", "train"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SenriError, match=r"pip install 'senri\[train\]'"):
        texts(opened("pg19", "train"))


def test_equal_documents_of_the_pile_are_in_one_split(monkeypatch: pytest.MonkeyPatch):
    rows = [{"text": hashlib.md5(str(number % 20).encode()).hexdigest()} for number in range(60)]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_names, **_options: iter(rows)))
    parts = [set(texts(opened("pile", split))) for split in SPLITS]
    assert sum(map(len, parts)) == 20
