"""A text corpus: documents one after another, read as they are needed and as often as they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repalign.dataset import Dataset
from repalign.errors import RepalignError, choose, first_line, require
from repalign.files import file_sha256
from repalign.tables import FORMATS, bad_text, iter_rows

HUB = "hub:"  # what a name on the hub begins with, among names of files
WHOLE, LINES = "whole", "lines"


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order.

    `open` starts a new pass over the documents; `source` says where they come from; `n` is their number where it is
    known before they are read. Two passes must give the same documents: a run that is resumed checks that. `sha256` gives
    the digest of what is at hand, a file or a list; None where only a pass over the documents would tell.
    """

    source: str
    open: Callable[[], Iterator[str]]
    n: int | None = None
    sha256: Callable[[], str | None] = lambda: None

    def __iter__(self) -> Iterator[str]:
        return self.open()

    @classmethod
    def of(cls, documents: Iterable[str], source: str = "documents") -> Corpus:
        """Documents that are at hand, or made one by one: an iterator is streamed, and can be read once."""
        if isinstance(documents, str):
            raise RepalignError(
                "a corpus is a series of documents", expected="strings, one per document", got="one string",
                remedy="put it into a list",
            )  # fmt: skip
        if not isinstance(documents, Iterator):
            if not isinstance(documents, Sized):
                return cls(source, lambda: iter(documents))
            return cls(source, lambda: iter(documents), len(documents), lambda: _sha256(documents))
        unread = [documents]

        def once() -> Iterator[str]:
            if not unread:
                raise RepalignError(
                    f"{source}: an iterator is read once", got="a second pass", remedy="give a list, or a new iterator"
                )
            return unread.pop()

        return cls(source, once)

    @classmethod
    def from_text(cls, path: str | Path, documents: str = WHOLE) -> Corpus:
        """A UTF-8 text file. `documents`: "whole" (the file is one), "lines" (each line is one, without its line end;
        blank lines are none), or the text that stands between documents, such as "<|endoftext|>", which belongs to none.
        """
        path = _file(path)
        if not documents:
            raise RepalignError(
                f"{path}: how are its documents told apart?",
                expected=f'"{WHOLE}", "{LINES}", or the text between two of them', got="an empty text"
            )

        def read() -> Iterator[str]:
            with path.open(encoding="utf-8", newline="") as handle:
                try:
                    if documents == LINES:
                        yield from (line for line in (raw.rstrip("\r\n") for raw in handle) if line.strip())
                    elif documents == WHOLE:
                        yield handle.read()
                    else:
                        yield from _separated(handle, documents)
                except ValueError as error:  # of decoding
                    got = first_line(error)
                    raise RepalignError(f"{path} cannot be read", expected="text in UTF-8", got=got) from error

        return cls(f"{path.name}, documents: {documents}", read, sha256=lambda: file_sha256(path))

    @classmethod
    def from_table(cls, path: str | Path, column: str = "text") -> Corpus:
        """One column of a table (.jsonl, .csv, .tsv, .parquet), a document per row, read row by row."""
        path = _file(path)
        if path.suffix.lower() not in FORMATS:
            raise RepalignError(f"{path} is no table", expected=f"one of {', '.join(FORMATS)}", got=path.suffix or "none")

        def read() -> Iterator[str]:
            rows = iter_rows(path, (column,))
            if header := next(rows):
                _cell(header, column, path, 0)
            for number, row in enumerate(rows):
                yield _text(row, column, path, number)

        return cls(f"{path.name}, column {column}", read, sha256=lambda: file_sha256(path))

    @classmethod
    def from_dataset(cls, dataset: Dataset, modality: str = "text", caption: int = 0) -> Corpus:
        """The texts of a dataset, a document per row; of several captions the one of that number."""
        if dataset.kind(modality) != "text":
            raise RepalignError(
                f"dataset {dataset.name!r}: modality {modality!r} is no text", expected="text",
                got=dataset.kind(modality)
            )

        def read() -> Iterator[str]:
            for row, id_ in enumerate(dataset.ids):
                texts = dataset.stimuli(modality, [row])[0]
                if caption >= len(texts):
                    raise RepalignError(
                        f"dataset {dataset.name!r}: row {id_!r} has no caption {caption}",
                        expected=f"caption from 0 to {len(texts) - 1}", got=caption
                    )
                yield texts[caption]

        return cls(f"{dataset.name}, {modality} {caption}, fingerprint {dataset.fingerprint}", read, dataset.n)

    @classmethod
    def from_hub(
        cls, path: str, column: str = "text", *, split: str = "train", config: str | None = None,
        revision: str | None = None, data_files: str | Sequence[str] | None = None,
    ) -> Corpus:  # fmt: skip
        """A column of a dataset of the Hugging Face hub, or of a local folder of data files, read as a stream."""

        def read() -> Iterator[str]:
            require(f"corpus {path}", "models", "datasets")
            from datasets import load_dataset

            rows = load_dataset(path, config, split=split, revision=revision, data_files=data_files, streaming=True)
            yield from (_text(row, column, path, number) for number, row in enumerate(rows))

        said = ", ".join(x for x in (path, config, split, revision and f"revision {revision}") if x)
        return cls(f"{said}, column {column}", read)


def _sha256(documents: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in documents:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def named_corpus(
    name: str, column: str | None = None, *, documents: str | None = None, split: str | None = None,
    revision: str | None = None,
) -> Corpus:  # fmt: skip
    """A corpus as a command or a study names it: `hub:org/name`, a table by its suffix, or any other file as text."""
    if name.startswith(HUB):
        return Corpus.from_hub(name.removeprefix(HUB), column or "text", split=split or "train", revision=revision)
    if Path(name).suffix.lower() in FORMATS:
        return Corpus.from_table(name, column or "text")
    return Corpus.from_text(name, documents or WHOLE)


def as_corpus(corpus: Corpus | Dataset | Iterable[str]) -> Corpus:
    """A corpus as it is, the texts of a dataset, or documents that are at hand."""
    if isinstance(corpus, Corpus):
        return corpus
    return Corpus.from_dataset(corpus) if isinstance(corpus, Dataset) else Corpus.of(corpus)


def _file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise RepalignError(f"there is no corpus {path}", expected="a file", got="a folder" if path.is_dir() else "nothing")
    return path


def _separated(handle: Any, separator: str, size: int = 1 << 20) -> Iterator[str]:
    """What stands between separators; empty pieces are none. At most one document and a block are in memory."""
    rest = ""
    while block := handle.read(size):
        *whole, rest = (rest + block).split(separator)
        yield from (piece for piece in whole if piece)
    if rest:
        yield rest


def _cell(row: Any, column: str, where: object, number: int) -> Any:
    names = [str(k) for k in row] if isinstance(row, dict) else []
    choose("column", column, names, f"{where}: row {number} has no column {column!r}")
    return row[column]


def _text(row: Any, column: str, where: object, number: int) -> str:
    value = _cell(row, column, where, number)
    problem = bad_text(value) if isinstance(value, str) else f"{value!r:.60}"
    if problem:
        raise RepalignError(
            f"{where}: row {number} has no text in column {column!r}",
            expected="a string", got=problem, remedy="leave such rows out of the file",
        )  # fmt: skip
    return value
