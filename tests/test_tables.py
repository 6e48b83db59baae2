"""Tables that people have: every form of file, every door that takes one, and what may stand in it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repalign.competence import read_labels, read_scores
from repalign.competence.corpus import Corpus
from repalign.dataset import Dataset
from repalign.dataset.texts import Texts
from repalign.errors import RepalignError
from repalign.null import Groups
from repalign.tables import read_table

Rows = list[dict[str, str]]


def write_csv(path: Path, rows: Rows, end: str = "\n", mark: str = "", quoting: int = csv.QUOTE_MINIMAL) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        writer = csv.DictWriter(file, list(rows[0]), lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(rows)


def write_lines(path: Path, lines: list[str], end: str = "\n", mark: str = "") -> None:
    path.write_bytes((mark + "".join(line + end for line in lines)).encode())


def write_tsv(path: Path, rows: Rows, **how: str) -> None:
    write_lines(path, ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)], **how)


def write_jsonl(path: Path, rows: Rows, **how: str) -> None:
    write_lines(path, [json.dumps(row) for row in rows], **how)


def write_parquet(path: Path, rows: Rows, kind: pa.DataType | None = None) -> None:
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in rows[0]}
    pq.write_table(pa.table({n: c.cast(kind) if kind is not None else c for n, c in columns.items()}), path)


BOM = "\ufeff"
FORMS: dict[str, tuple[str, Callable[[Path, Rows], None]]] = {
    "csv": (".csv", write_csv),
    "csv, all quoted": (".csv", lambda p, r: write_csv(p, r, quoting=csv.QUOTE_ALL)),
    "csv of Windows": (".csv", lambda p, r: write_csv(p, r, end="\r\n", mark=BOM)),
    "CSV": (".CSV", write_csv),
    "tsv": (".tsv", write_tsv),
    "tsv of Windows": (".tsv", lambda p, r: write_tsv(p, r, end="\r\n", mark=BOM)),
    "jsonl": (".jsonl", write_jsonl),
    "jsonl of Windows": (".jsonl", lambda p, r: write_jsonl(p, r, end="\r\n", mark=BOM)),
    "parquet": (".parquet", write_parquet),
    "parquet, large texts": (".parquet", lambda p, r: write_parquet(p, r, pa.large_string())),
    "parquet, categories": (".parquet", lambda p, r: write_parquet(p, r, pa.dictionary(pa.int32(), pa.string()))),
}
# What means "nothing" elsewhere, numbers that are names, and characters that end lines elsewhere.
WORDS = ["None", "NA", "N/A", "nan", "NaN", "null", "NULL", "#N/A", "-", "inf", "007", "1e5", "true", "1.0", "a\u2028b"]
WORDS += ["a\x0cb", "é ", "#x"]


@pytest.fixture(params=FORMS)
def table(request, tmp_path: Path) -> Callable[[Rows], Path]:
    suffix, write = FORMS[request.param]

    def made(rows: Rows) -> Path:
        write(tmp_path / f"t{suffix}", rows)
        return tmp_path / f"t{suffix}"

    return made


def test_words_are_kept_as_they_stand_by_every_door(table) -> None:
    """As a group, a label, an id, a caption, a document and the name of a model."""
    ids = [f"i{k}" for k in range(2 * len(WORDS))]
    path = table([{"id": i, "group": WORDS[k // 2], "model": i} for k, i in enumerate(ids)])
    assert Groups.from_file(path, ids).labels == tuple(k // 2 for k in range(len(ids)))
    assert read_labels(path, ids, "group") == [WORDS[k // 2] for k in range(len(ids))]
    assert list(Corpus.from_table(path, "group")) == [WORDS[k // 2] for k in range(len(ids))]
    captions = Dataset.from_table(path, text="group").stimuli("text", range(len(ids)))
    assert [c for (c,) in captions] == read_labels(path, ids, "group")
    path = table([{"id": word, "label": "ab"[k % 2], "score": str(k)} for k, word in enumerate(WORDS)])
    assert Dataset.from_table(path, text="label").ids == tuple(WORDS)
    assert read_labels(path, WORDS) == ["ab"[k % 2] for k in range(len(WORDS))]
    assert [s.model for s in read_scores(path, {"score": "s"}, model="id")] == [w.strip() for w in WORDS]


def test_nothing_is_nothing(table) -> None:
    cells = [("a", "x", "g"), ("b", "", ""), ("c", " ", "g")]
    path = table([dict(zip(("id", "label", "group"), row, strict=True)) for row in cells])
    assert read_labels(path, ["a"]) == ["x"]
    for missing in "bc":
        with pytest.raises(RepalignError, match=rf"labels do not fit the stimuli(.|\n)*the first is '{missing}'"):
            read_labels(path, ["a", missing])
    with pytest.raises(RepalignError, match="'b' has no group"):
        Groups.from_file(path, ["a", "b", "c"])
    with pytest.raises(RepalignError, match=r"row 1 \(id 'b'\): caption missing"):
        Dataset.from_table(path, text="label")
    assert Dataset.from_table(path, text="label", on_missing="drop").ids == ("a",)


def test_null_and_nan_of_parquet_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {"id": pa.array([1, 2, 3]), "label": pa.array(["None", None, "x"]), "number": pa.array([1, None, 3])}
    pq.write_table(pa.table({**columns, "group": pa.array([1.5, float("nan"), 1.5])}), path)
    assert read_labels(path, ["1", "3"]) == ["None", "x"] and read_labels(path, ["1", "3"], "number") == ["1", "3"]
    with pytest.raises(RepalignError, match="'2' has no group"):
        Groups.from_file(path, ["1", "2", "3"])
    pq.write_table(pa.table({"id": pa.array(["a", None, None]), "group": ["x", "x", "y"], "label": ["x", "x", "y"]}), path)
    for read in (Groups.from_file, read_labels, lambda p, _: Dataset.from_table(p, text="group")):
        with pytest.raises(RepalignError, match=r"t\.parquet: row 1 has (no id|an empty id)"):
            read(path, ["a"])


QUOTES = [
    '"Winter is what the sign says', 'a 5" pipe and a sign that says "', '"all of it"', '"', '""', "'", 'say ""', '"a", "b"',
    "a, b", "a; b", "\\", "=HYPERLINK(1)", "a\u0085b", "a\x1cb", "'a\"b", "  two ",
]  # fmt: skip


@pytest.mark.parametrize("how", [{}, {"end": "\r\n"}, {"mark": BOM}])
@pytest.mark.parametrize("first", ["caption", "id"])
def test_a_quotation_mark_in_a_tsv_is_itself(tmp_path: Path, how: dict, first: str) -> None:
    rows = [{"caption": c, "id": str(k)} for k, c in enumerate(QUOTES)]
    write_tsv(tmp_path / "t.tsv", [{first: r[first], **r} for r in rows], **how)
    write_jsonl(tmp_path / "t.jsonl", rows)
    got = Dataset.from_table(tmp_path / "t.tsv", text="caption")
    assert [c for (c,) in got.stimuli("text", range(got.n))] == QUOTES
    assert got.fingerprint == Dataset.from_table(tmp_path / "t.jsonl", text="caption").fingerprint
    assert list(Corpus.from_table(tmp_path / "t.tsv", "caption")) == QUOTES


BROKEN = {
    "a cell over two lines": (
        ".tsv", 'caption\tid\n"a dog\nand a cat"\t0\na bird\t1\n', r"row 0 \(line 2\) does not fit(.|\n)*do: a TSV has no"),
    "a cell over two lines, last": (".tsv", "id\tcaption\n0\ta dog\nand a cat\n1\ta bird\n", r"row 1 \(line 3\) does not fit"),
    "a line break of Macs in a cell": (".tsv", "id\tcaption\n0\ta dog\rand a cat\n", r"line 2 has a line break in a cell"),
    "a tsv that is quoted as csv": (".tsv", 'id\tcaption\n0\t"he said ""no"""\n', r"row 0, column 'caption' is quoted as in CSV"),
    "a tab too many": (".tsv", "id\tcaption\n0\ta\tb\n", r"expected: 2 cells: id, caption\n  got: 3 cells"),
    "a cell too many": (".csv", "id,caption\n0,a\n1,a,b\n", r"row 1 \(line 3\) does not fit(.|\n)*got: 3 cells"),
    "a cell too few": (".csv", "id,caption\n0,a\n1\n", r"row 1 \(line 3\) does not fit(.|\n)*got: 1 cells"),
    "a comma at the end": (".csv", "id,caption\n0,a,\n", r"row 0 \(line 2\) does not fit"),
    "an open quotation": (".csv", 'id,caption\n0,"a\n1,b\n', r"is not valid CSV"),
    "text after a quotation": (".csv", 'id,caption\n0,"a" b\n', r"line 2 is not valid CSV"),
    "a column twice": (".csv", "id,caption,id\n0,a,b\n", r"the column 'id' is there twice"),
    "a column twice, with blanks": (".tsv", "id\tcaption\t id \n0\ta\tb\n", r"the column 'id' is there twice"),
    "a field twice": (".jsonl",
        '{"caption": "a"}\n{"caption": "a", "x": 1, "caption": "b"}\n',
        r"row 1 \(line 2\) is not valid JSON\n  got: the field 'caption'"),
    "no JSON": (".jsonl", '{"caption": "a"}\n\n{"caption": \n', r"row 1 \(line 3\) is not valid JSON"),
    "no object": (".jsonl", '["a"]\n', r"row 0 \(line 1\) is no JSON object"),
    "deep JSON": (".jsonl", "[" * 100_000, r"row 0 \(line 1\) is not valid JSON"),
    "Latin-1": (".csv", b"id,caption\n0,a\n1,caf\xe9\n", r"line 3 is not in UTF-8(.|\n)*byte 0xe9(.|\n)*Latin-1"),
    "Latin-1 in a tsv": (".tsv", b"id\tcaption\n0\tcaf\xe9\n", r"line 2 is not in UTF-8"),
    "Latin-1 in JSON": (".jsonl", b'{"id": "caf\xe9"}\n', r"line 1 is not in UTF-8"),
    "UTF-16": (".csv", "id,caption\n0,a\n".encode("utf-16"), r"is in UTF-16"),
    "UTF-16 without a mark": (".csv", "id,caption\n0,a\n".encode("utf-16-le"), r"NUL"),
    "half a pair in bytes": (".csv", b"id,caption\n0,a \xed\xa0\xbd\n", r"line 2 is not in UTF-8"),
    "NUL": (".csv", "id,caption\n0,a\0b\n", r"row 0 \(line 2\), column 'caption' holds a NUL"),
    "NUL in a tsv": (".tsv", "id\tcaption\n0\ta\n1\t\0\n", r"row 1 \(line 3\), column 'caption' holds a NUL"),
    "no parquet": (".parquet", b"PAR1 nothing PAR1", r"is not a readable Parquet file"),
    "another suffix": (".xlsx", b"", r"a table of unknown format(.|\n)*\.csv, \.tsv, \.jsonl, \.ndjson, \.parquet"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_table_is_told_with_its_row(tmp_path: Path, case: str) -> None:
    suffix, content, words = BROKEN[case]
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    doors = [
        lambda: read_table(path), lambda: Dataset.from_table(path, text="caption"), lambda: Groups.from_file(path, ["0"]),
        lambda: read_labels(path, ["0"]), lambda: read_scores(path), lambda: list(Corpus.from_table(path, "caption")),
    ]  # fmt: skip
    for door in doors[: 5 if suffix == ".xlsx" else 6]:
        with pytest.raises(RepalignError, match=rf"t{suffix}(.|\n)*{words}"):
            door()


def test_parquet_that_is_no_text_names_row_and_column(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"id": ["a", "b"], "caption": bad}), tmp_path / "t.parquet")
    with pytest.raises(RepalignError, match=r"t\.parquet: row 1, column 'caption' is no text in UTF-8"):
        Dataset.from_table(tmp_path / "t.parquet", text="caption")
    many = pa.Array.from_buffers(pa.string(), 2001, pa.array([b"ok"] * 2000 + [b"caf\xe9"]).buffers())  # in two batches
    pq.write_table(pa.table({"id": list(map(str, range(2001))), "caption": many}), tmp_path / "t.parquet")
    with pytest.raises(RepalignError, match=r"t\.parquet: row 2000, column 'caption'"):
        Dataset.from_table(tmp_path / "t.parquet", text="caption")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"])
    pq.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(RepalignError, match="the column 'id' is there twice"):
        read_table(tmp_path / "t.parquet")


def test_blanks_around_the_names_of_columns_do_not_count(tmp_path: Path) -> None:
    for name, text in (("t.csv", " id , caption\n a , b\n"), ("t.tsv", "\n id\tcaption \n a \t b\n")):
        (tmp_path / name).write_text(text)
        table = read_table(tmp_path / name)
        assert table.columns == ["id", "caption"] and table.rows == [{"id": " a ", "caption": " b"}]


HALF = "so nice \ud83d"  # half an emoji, cut by a scraper; legal in JSON
ODD = {"half a pair": (HALF, "half a character, .*ud83d"), "another half": ("\udfff", "half a character"), "NUL": ("a\0b", "a NUL")}


@pytest.mark.parametrize("kind", ODD)
def test_a_text_that_no_file_can_hold_is_told_with_its_row(tmp_path: Path, kind: str) -> None:
    odd, words = ODD[kind]
    path = tmp_path / "t.jsonl"

    def rows(**second: object) -> Path:
        first = {"id": "a", "text": "a dog", "image": "a.png", "group": "g"}
        write_jsonl(path, [first, {"id": "b", "text": "c", "image": "b.png", **second}])  # type: ignore[dict-item]
        return path

    refused = {
        "a caption": lambda: Dataset.from_table(rows(text=odd), text="text"),
        "a later caption": lambda: Dataset.from_table(rows(text=["fine", odd]), text="text"),
        "a caption of the hub's library": lambda: Dataset.from_hub(rows(text=odd), text="text", id="id"),
        "an id": lambda: Dataset.from_table(rows(id=odd), text="text"),
        "a path": lambda: Dataset.from_table(rows(image=odd), image="image"),
        "a document": lambda: list(Corpus.from_table(rows(text=odd))),
        "an id of groups": lambda: Groups.from_file(rows(id=odd, group="g"), ["a"]),
        "an id of labels": lambda: read_labels(rows(id=odd, group="g"), ["a"], "group"),
        "an id in memory": lambda: Dataset.from_arrays({"x": [[1.0], [2.0]]}, ["a", odd]),
        "an id of a dataset": lambda: Dataset("d", ("a", odd), {"text": Texts((("a",), ("b",)))}, "here"),
        "a caption in memory": lambda: Dataset("d", ("a", "b"), {"text": Texts((("a",), (odd,)))}, "here").fingerprint,
    }  # fmt: skip
    if kind == "NUL":  # it has a digest; a table with it was refused
        del refused["a caption in memory"]
    else:
        del refused["a caption of the hub's library"]  # pyarrow reads no such JSON, and the library says so
    for door, call in refused.items():
        with pytest.raises(RepalignError, match=rf"row 1(.|\n)*{words}"):
            call()
            pytest.fail(door)
    assert Dataset.from_table(rows(text=odd), text="text", on_missing="drop").ids == ("a",)


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes")
def test_a_file_whose_name_is_no_text_is_told(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    with pytest.raises(RepalignError, match=r"row 0 has an id with half a character, .*udce9"):
        Dataset.from_folder(tmp_path)


def test_captions_in_files_end_where_lines_end(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("one\u2028line\r\nanother\x0cline\n".encode())
    assert Dataset.from_folder(tmp_path).stimuli("text", [0]) == [("one\u2028line", "another\x0cline")]


def test_a_csv_of_the_hubs_library_has_no_words_for_nothing(tmp_path: Path) -> None:
    ids = ("None", "NA", "007", "1e5", "x")
    write_csv(tmp_path / "t.csv", [{"id": w, "caption": w} for w in ids])
    got = Dataset.from_hub(tmp_path / "t.csv", id="id", text="caption")
    assert got.ids == ids and got.stimuli("text", [1, 2]) == [("NA",), ("007",)]
    assert got.fingerprint == Dataset.from_table(tmp_path / "t.csv", text="caption").fingerprint


NOT_LOADED = {
    "t.jsonl": b'{"id": "a", "caption": "so nice \\ud83d"}\n', "u.jsonl": b'{"id": \n', "t.csv": b"id,caption\na,caf\xe9\n",
    "u.csv": b"id,caption\na,b\nc,d,e\n", "v.csv": b"id,caption,id\na,b,c\n", "t.parquet": b"no",
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_LOADED)
def test_what_the_hubs_library_cannot_load_is_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(NOT_LOADED[name])
    with pytest.raises(RepalignError, match=rf"{name}(.|\n)*(got|do): "):
        Dataset.from_hub(tmp_path / name, id="id", text="caption")
