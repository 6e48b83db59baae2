"""Datasets: every source, the fingerprint, what is refused and what is left out."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from repalign.dataset import DISTORTIONS, IN_CELLS, Dataset, DatasetConfig, LeftOut
from repalign.dataset.columns import Files
from repalign.dataset.images import Images, decode_rgb
from repalign.dataset.texts import Texts
from repalign.errors import RepalignError
from repalign.sources.standins import write_dataset
from repalign.study import load_study
from repalign.toyworld import world

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (120, 120, 120)]


@pytest.fixture
def bed(shared: Path) -> Path:
    return shared / "bed" / "flickr8k_dev"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with four small images, a.png to d.png, in a subfolder `images`."""
    (tmp_path / "images").mkdir()
    for name, colour in zip("abcd", COLOURS, strict=True):
        Image.new("RGB", (6, 4), colour).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def four_rows() -> list[dict[str, Any]]:
    return [{"id": n, "image": f"images/{n}.png", "caption": f"picture {n}, plain"} for n in "abcd"]


def open_block(block: dict[str, Any], base: Path) -> Dataset:
    """The dataset of a study file's `dataset:` block."""
    return DatasetConfig.model_validate(block).open(base)


def fails(call: Callable[[], Any], *parts: str) -> None:
    """The call raises a RepalignError whose message has all the parts."""
    with pytest.raises(RepalignError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message, message


# --- the bed: 1000 real photos with five captions ------------------------------------------------


def test_bed_from_jsonl(bed: Path) -> None:
    d = Dataset.from_table(bed / "pairs.jsonl", image="image", text="captions")
    rows = [json.loads(line) for line in (bed / "pairs.jsonl").read_text().splitlines()]
    assert d.n == len(d) == 1000
    assert d.ids == tuple(r["id"] for r in rows)
    assert d.modalities == ("image", "text")
    assert d.revision is None and d.left_out == ()
    assert d.stimuli("text", [999, 0]) == [tuple(rows[999]["captions"]), tuple(rows[0]["captions"])]
    first = [captions[0] for captions in d.stimuli("text", range(1000))]
    assert sum(len(c) for c in first) == 56914  # the bed's own count
    # two photos share their first caption and stay two things
    twice = [i for i, c in enumerate(first) if first.count(c) > 1]
    assert len(twice) == 2 and d.ids[twice[0]] != d.ids[twice[1]]
    image = d.stimuli("image", [1])[0]
    assert (image.mode, image.size) == ("RGB", (224, 224))
    with Image.open(bed / rows[1]["image"]) as plain:
        assert np.array_equal(np.asarray(image), np.asarray(plain))
    about = d.describe()
    assert json.loads(json.dumps(about)) == about
    assert about["captions_per_image"] == {"min": 5, "max": 5}
    assert (about["n"], about["fingerprint"], about["left_out"]) == (1000, d.fingerprint, [])


def test_bed_has_the_photos_that_its_page_names(bed: Path) -> None:
    d = Dataset.from_table(bed / "pairs.jsonl", image="image", text="captions")
    lines = sorted(f"{i}.jpg {h}\n" for i, h in zip(d.ids, d.columns["image"].digests, strict=True))
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert digest == "da673dea0deb8d11d9a3858f490457f1cbd5b11c29da4b026be3ab985b2fb52c"


def test_bed_is_the_same_from_every_format(bed: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (bed / "pairs.jsonl").read_text().splitlines()][:200]
    first = [{"id": r["id"], "image": r["image"], "caption": r["captions"][0]} for r in rows]
    jsonl(tmp_path / "t.jsonl", first)
    pq.write_table(pa.Table.from_pylist(first), tmp_path / "t.parquet")
    with (tmp_path / "t.tsv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["caption", "id", "image"], delimiter="\t")
        writer.writeheader()
        writer.writerows(first)
    whole = Dataset.from_table(bed / "pairs.csv", image="image", text="caption")
    assert whole.n == 1000
    expected = whole.subset([r["id"] for r in rows]).fingerprint
    for name in ("t.jsonl", "t.parquet", "t.tsv"):
        d = Dataset.from_table(tmp_path / name, image="image", text="caption", root=bed)
        assert d.fingerprint == expected, name


def test_bed_captions_one_per_line_are_those_of_the_list(bed: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (bed / "pairs.jsonl").read_text().splitlines()]
    with (tmp_path / "long.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "caption"])
        for k in range(5):  # the lines of an id need not stand together
            writer.writerows([r["id"], r["captions"][k]] for r in rows)
    merged = Dataset.from_table(tmp_path / "long.csv", text="caption")
    listed = Dataset.from_table(bed / "pairs.jsonl", text="captions")
    assert merged.n == 1000
    assert merged.fingerprint == listed.fingerprint


# --- the fingerprint -----------------------------------------------------------------------------


def test_fingerprint_follows_its_written_definition(photos: Path) -> None:
    d = Dataset.from_table(
        jsonl(photos / "t.jsonl", [*four_rows()[:2], {**four_rows()[2], "caption": ["é", "ü"]}]),
        image="image",
        text="caption",
    )

    def sha(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    lines = ['["repalign-dataset-1",null,[["image","image"],["text","text"]]]']
    captions = ['["picture a, plain"]', '["picture b, plain"]', '["é", "ü"]']
    for name, text in zip("abc", captions, strict=True):
        image = sha((photos / "images" / f"{name}.png").read_bytes())
        lines.append(f'["{name}","{image}","{sha(text.encode())}"]')
    assert d.fingerprint == sha(("\n".join(lines) + "\n").encode())


def test_fingerprint_sees_content_and_not_place(photos: Path, tmp_path: Path) -> None:
    def open_table(folder: Path, rows: list[dict[str, Any]], **options: Any) -> str:
        path = jsonl(folder / "t.jsonl", rows)
        return Dataset.from_table(path, image="image", text="caption", **options).fingerprint

    original = open_table(photos, four_rows())
    assert open_table(photos, four_rows(), name="another name") == original
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos / "images", moved / "images")
    assert open_table(moved, four_rows()) == original
    # one caption, an added caption, the order, an id, a missing row
    changed = four_rows()
    changed[2]["caption"] += "."
    longer = four_rows()
    longer[2]["caption"] = [longer[2]["caption"], "again"]
    renamed = four_rows()
    renamed[3]["id"] = "e"
    others = [open_table(photos, r) for r in (changed, longer, renamed, four_rows()[::-1], four_rows()[:3])]
    # one byte of an image file that changes no pixel
    with (moved / "images" / "b.png").open("ab") as file:
        file.write(b"\0")
    others.append(open_table(moved, four_rows()))
    assert len({original, *others}) == len(others) + 1


def test_the_order_of_captions_is_part_of_the_fingerprint() -> None:
    """The first is the one that is taken where one is asked for."""
    one, other = (Texts((captions,)) for captions in (("a cat", "a dog"), ("a dog", "a cat")))
    assert one.digests != other.digests


def test_fingerprint_covers_the_revision_and_the_values() -> None:
    a = np.arange(12.0).reshape(4, 3)

    def fingerprint(array: np.ndarray, revision: str | None = None, modality: str = "x") -> str:
        return Dataset.from_arrays({modality: array}, list("abcd"), revision=revision).fingerprint

    base = fingerprint(a)
    assert fingerprint(np.asfortranarray(a)) == base
    assert fingerprint(a.astype(">f8")) == base  # the order of bytes is not content
    b = a.copy()
    b[2, 1] = np.nextafter(b[2, 1], 9)
    different = [
        fingerprint(b),
        fingerprint(a.astype(np.float32)),
        fingerprint(a[:, :, None]),
        fingerprint(a, revision="v2"),
        fingerprint(a, modality="y"),
    ]
    assert len({base, *different}) == 6
    pair = {"x": a, "y": b}
    swapped = {"y": b, "x": a}
    assert len({Dataset.from_arrays(p, list("abcd")).fingerprint for p in (pair, swapped)}) == 1


# --- subset and sample ---------------------------------------------------------------------------


def numbers(n: int = 50) -> Dataset:
    return Dataset.from_arrays({"x": np.arange(n)[:, None]}, [f"i{k}" for k in range(n)], name="numbers")


def test_subset_keeps_the_given_order() -> None:
    d = numbers()
    s = d.subset(["i7", "i3", "i40"])
    assert s.ids == ("i7", "i3", "i40")
    assert [int(v[0]) for v in s.stimuli("x", [0, 1, 2])] == [7, 3, 40]
    assert s.fingerprint != d.subset(["i3", "i7", "i40"]).fingerprint
    assert d.subset(d.ids).fingerprint == d.fingerprint
    assert d.n == 50 and "subset of 3 ids" in s.source
    fails(lambda: d.subset(["i3", "i77"]), "'numbers' has no id 'i77'", "did you mean 'i7'")
    fails(lambda: d.subset(["zzzzzz"]), "one of its 50 ids, such as 'i0'", "look at `Dataset.ids`")
    fails(lambda: d.subset(["i3", "i3"]), "each once", "'i3' twice")
    fails(lambda: d.subset([]), "at least one id", "got: no id")


def test_sample_is_seeded_ordered_and_nested() -> None:
    d = numbers()
    s = d.sample(10, seed=3)
    assert s.ids == d.sample(10, seed=3).ids != d.sample(10, seed=4).ids
    rows = [int(i[1:]) for i in s.ids]
    assert rows == sorted(rows) and len(set(rows)) == 10
    expected = sorted(np.random.Generator(np.random.PCG64(3)).permutation(50)[:10])
    assert rows == expected
    assert set(s.ids) < set(d.sample(20, seed=3).ids)
    assert d.sample(50, seed=9).ids == d.ids
    assert s.fingerprint == d.subset(s.ids).fingerprint != d.fingerprint
    fails(lambda: d.sample(51), "cannot draw a sample of 51", "1 to 50 rows", "leave the sample out")
    fails(lambda: d.sample(0), "cannot draw a sample of 0")


def test_unknown_modality_and_row() -> None:
    fails(lambda: numbers().stimuli("y", [0]), "no modality 'y'", "expected: x")
    fails(lambda: numbers().stimuli("x", [50]), "no row 50", "0 to 49")
    fails(lambda: numbers().stimuli("x", [-1]), "no row -1")


def test_a_dataset_can_be_read_in_other_threads_and_processes(photos: Path) -> None:
    d = Dataset.from_table(jsonl(photos / "t.jsonl", four_rows()), image="image", text="caption")
    assert pickle.loads(pickle.dumps(d)).fingerprint == d.fingerprint
    for pool in (ThreadPoolExecutor(4), ProcessPoolExecutor(1, mp_context=get_context("spawn"))):
        with pool:
            images = pool.submit(d.stimuli, "image", range(4)).result()
        assert [i.getpixel((0, 0)) for i in images] == COLOURS


# --- what is refused or left out -----------------------------------------------------------------


def damaged(photos: Path) -> Path:
    """Nine rows, of which rows 1 to 7 each lack something."""
    whole = (photos / "images" / "a.png").read_bytes()
    (photos / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[-13] ^= 255  # the checksum of the pixels, before the closing chunk of 12 bytes
    (photos / "images" / "flipped.png").write_bytes(flipped)
    (photos / "images" / "note.jpg").write_text("no image")
    rows = [
        {"id": "good", "image": "images/a.png", "caption": "fine"},
        {"id": "blank", "image": "images/b.png", "caption": "  "},
        {"id": "null", "image": "images/b.png", "caption": None},
        {"id": "absent", "image": "images/none.png", "caption": "x"},
        {"id": "cut", "image": "images/cut.png", "caption": "x"},
        {"id": "note", "image": "images/note.jpg", "caption": "x"},
        {"id": "unnamed", "image": "", "caption": "x"},
        {"id": "flipped", "image": "images/flipped.png", "caption": "x"},
        {"id": "last", "image": "images/d.png", "caption": "fine too"},
    ]
    return jsonl(photos / "damaged.jsonl", rows)


def test_missing_stimuli_are_an_error_that_names_the_row(photos: Path) -> None:
    path = damaged(photos)
    fails(
        lambda: Dataset.from_table(path, image="image", text="caption"),
        "damaged.jsonl: 2 of 9 rows cannot be used",
        "row 1 (id 'blank'): caption missing: '  '",
        "row 2 (id 'null'): caption missing: None",
        'on_missing="drop"',
    )
    fails(
        lambda: Dataset.from_table(path, image="image"),
        "5 of 9 rows cannot be used",
        "row 3 (id 'absent'): image file not found: 'images/none.png'",
        "row 4 (id 'cut'): image cannot be decoded: 'images/cut.png'",
        "row 5 (id 'note'): image cannot be decoded: 'images/note.jpg' (not an image format",
        "row 6 (id 'unnamed'): no image named",
        "row 7 (id 'flipped'): image cannot be decoded: 'images/flipped.png'",
    )


def test_files_of_the_same_bytes_are_decoded_once_and_broken_ones_refused_again(photos: Path, monkeypatch) -> None:
    """Ten variants of a study with distorted photos decoded every photo ten times before any work."""
    decoded, verify = [], Images.verify
    monkeypatch.setattr(Images, "whole", set())
    monkeypatch.setattr(Images, "verify", lambda data: decoded.append(data) or verify(data))
    (photos / "images/b.png").write_bytes((photos / "images/a.png").read_bytes())
    rows = [{"id": name, "image": f"images/{name}.png"} for name in "abcd"]
    path = jsonl(photos / "some.jsonl", rows)
    first = Dataset.from_table(path, id="id", image="image").fingerprint
    assert Dataset.from_table(path, id="id", image="image").fingerprint == first
    assert len(decoded) in (3, 4) and len(set(decoded)) == 3  # in threads, of which two may hold the same bytes at once
    whole = (photos / "images/c.png").read_bytes()
    (photos / "images/c.png").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        fails(lambda: Dataset.from_table(path, id="id", image="image"), "row 2 (id 'c'): image cannot be decoded")
    (photos / "images/c.png").write_bytes(whole)
    assert Dataset.from_table(path, id="id", image="image").fingerprint == first


def test_rows_may_be_left_out_of_every_modality_and_are_counted(photos: Path) -> None:
    d = Dataset.from_table(damaged(photos), image="image", text="caption", on_missing="drop")
    assert d.ids == ("good", "last")
    assert d.stimuli("text", [0, 1]) == [("fine",), ("fine too",)]
    assert [i.getpixel((0, 0)) for i in d.stimuli("image", [0, 1])] == [COLOURS[0], COLOURS[3]]
    assert [x.row for x in d.left_out] == [1, 2, 3, 4, 5, 6, 7]
    assert d.left_out[0] == LeftOut("blank", 1, "caption missing: '  '")
    about = d.describe()
    assert about["n_left_out"] == 7
    assert about["left_out"][2] == {
        "id": "absent",
        "row": 3,
        "reason": "image file not found: 'images/none.png'",
    }
    whole = [{"id": "good", "image": "images/a.png", "caption": "fine"}]
    whole.append({"id": "last", "image": "images/d.png", "caption": "fine too"})
    same = Dataset.from_table(jsonl(photos / "two.jsonl", whole), image="image", text="caption")
    assert same.fingerprint == d.fingerprint  # what was left out is not content
    assert "7 left out" in repr(d)


def test_nothing_left_and_a_misspelt_choice(photos: Path) -> None:
    path = jsonl(photos / "t.jsonl", [{"id": "a", "caption": ""}])
    fails(
        lambda: Dataset.from_table(path, text="caption", on_missing="drop"),
        "no row can be used",
        "row 0 (id 'a')",
    )
    fails(
        lambda: Dataset.from_table(path, text="caption", on_missing="dropp"),
        "on_missing='dropp' is not known",
        "did you mean 'drop'",
    )


@pytest.mark.parametrize("on_missing", ["error", "drop"])
def test_ids_must_be_there_and_unique(photos: Path, on_missing: str) -> None:
    def open_rows(*ids: Any) -> Dataset:
        rows = [
            {"id": i, "image": f"images/{n}.png", "caption": ["x"]} for i, n in zip(ids, "abcd", strict=False)
        ]
        path = jsonl(photos / "t.jsonl", rows)
        return Dataset.from_table(path, image="image", text="caption", on_missing=on_missing)

    fails(
        lambda: open_rows("p", "q", "p"), "t.jsonl: rows 0 and 2 have the same id 'p'", "make the ids unique"
    )
    fails(lambda: open_rows("p", 7, "7"), "rows 1 and 2 have the same id '7'")
    fails(lambda: open_rows("p", ""), "row 1 has an empty id", "got: ''")
    fails(lambda: open_rows("p", None), "row 1 has an empty id", "got: None")
    fails(lambda: open_rows("p", 1.5), "row 1 has an id that is no name", "1.5 (float)")


def test_an_image_that_changes_after_opening_is_noticed(photos: Path) -> None:
    d = Dataset.from_table(jsonl(photos / "t.jsonl", four_rows()), image="image", text="caption")
    Image.new("RGB", (6, 4)).save(photos / "images" / "a.png")
    (photos / "images" / "b.png").unlink()
    fails(lambda: d.stimuli("image", [0]), "'images/a.png' has changed since the dataset was opened")
    fails(lambda: d.stimuli("image", [1]), "'images/b.png' can no longer be read", "put the file back")
    assert len(d.stimuli("image", [2, 3])) == 2


def test_progress_is_reported(photos: Path) -> None:
    calls = []
    path = jsonl(photos / "t.jsonl", four_rows())
    Dataset.from_table(path, image="image", progress=lambda *call: calls.append(call))
    assert calls == [("check images", k, 4) for k in range(5)]


# --- tables --------------------------------------------------------------------------------------


def test_captions_of_several_columns_and_their_gaps(photos: Path) -> None:
    rows = [
        {"id": 1, "a": "one", "b": None, "c": "three", "list": ["x", None, "", None]},
        {"id": 2, "a": "one", "b": "two", "list": ["x", None, "z"]},
    ]
    path = jsonl(photos / "t.jsonl", rows)
    d = Dataset.from_table(path, text=["a", "b", "c"])
    # the third caption is the third caption in every row; at the end a missing one is dropped
    assert d.stimuli("text", [0, 1]) == [("one", "", "three"), ("one", "two")]
    assert d.describe()["captions_per_image"] == {"min": 2, "max": 2}
    assert Dataset.from_table(path, text="list").stimuli("text", [0, 1]) == [("x",), ("x", "", "z")]
    fails(lambda: Dataset.from_table(path, text=["b", "a"]), "row 0 (id '1'): caption missing: None")
    fails(lambda: Dataset.from_table(path, text=["a", "list"]), "row 0, column 'list' holds a list")
    fails(lambda: Dataset.from_table(path, text="id"), "row 0 (id '1'): caption 0 is no text: 1 (int)")


def test_lines_of_one_id_are_merged_if_they_name_one_image(photos: Path) -> None:
    path = photos / "t.csv"
    head = "id,image,caption\n"
    path.write_text(head + 'p,images/a.png,"one, two"\nq,images/b.png,x\np,images/a.png,"says ""hi"""\n')
    d = Dataset.from_table(path, image="image", text="caption")
    assert d.ids == ("p", "q")
    assert d.stimuli("text", [0, 1]) == [("one, two", 'says "hi"'), ("x",)]
    assert d.describe()["captions_per_image"] == {"min": 1, "max": 2}
    path.write_text(head + "p,images/a.png,x\np,images/b.png,y\n")
    fails(
        lambda: Dataset.from_table(path, image="image", text="caption"),
        "rows 0 and 1 have the same id 'p' but name different images",
        "expected: images/a.png, as in row 0",
        "got: images/b.png",
    )
    path.write_text(head + "p,images/a.png,x\np,images/a.png,y\n")
    fails(lambda: Dataset.from_table(path, image="image"), "rows 0 and 1 have the same id 'p'")
    lines = [{"id": "p", "caption": c} for c in ("one", None, "three")]
    d = Dataset.from_table(jsonl(photos / "t.jsonl", lines), text="caption")
    assert d.stimuli("text", [0]) == [("one", "", "three")]  # an empty cell keeps its place
    path.write_text(head + "p,images/a.png,\np,images/a.png,y\n")
    fails(lambda: Dataset.from_table(path, image="image", text="caption"), "row 0 (id 'p'): caption missing")


def test_one_modality_and_row_numbers(photos: Path) -> None:
    path = jsonl(photos / "t.jsonl", four_rows())
    assert Dataset.from_table(path, text="caption").modalities == ("text",)
    d = Dataset.from_table(path, image="image", id=None)
    assert (d.modalities, d.ids) == (("image",), ("00000", "00001", "00002", "00003"))
    assert d.describe()["captions_per_image"] is None
    fails(lambda: Dataset.from_table(path), "no column of stimuli is named", "image=, text= or several")


def test_a_table_must_be_what_it_says(photos: Path) -> None:
    def open_text(name: str, content: str | bytes, **options: Any) -> Dataset:
        path = photos / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return Dataset.from_table(path, **{"text": "caption", **options})

    fails(
        lambda: open_text("t.csv", "id,captoin\na,x\n"),
        "t.csv has no column 'caption'",
        "did you mean 'captoin'",
    )
    fails(lambda: open_text("t.csv", "name,caption\na,x\n"), "no column 'id'", "name, caption")
    fails(
        lambda: open_text("t.csv", "id,caption\na,x,y\n"), "row 0 (line 2)", "2 cells: id, caption", "3 cells"
    )
    fails(lambda: open_text("t.csv", "id,caption,id\na,x,y\n"), "the column 'id' is there twice")
    fails(lambda: open_text("t.csv", 'id,caption\na,"x\n'), "line 2 is not valid CSV")
    fails(lambda: open_text("t.csv", b"id,caption\na,\xff\n"), "t.csv cannot be read", "UTF-8")
    fails(lambda: open_text("t.csv", "id,caption\n"), "t.csv has no rows")
    fails(lambda: open_text("t.csv", ""), "t.csv has no column 'id'")
    fails(
        lambda: open_text("t.jsonl", '{"id": 1, "caption": "x"}\n\n{"id"\n'),
        "row 1 (line 3) is not valid JSON",
    )
    fails(lambda: open_text("t.jsonl", "[1]\n"), "row 0 (line 1) is no JSON object")
    fails(lambda: open_text("t.parquet", "no parquet"), "t.parquet is not a readable Parquet file")
    fails(lambda: open_text("t.xlsx", ""), "a table of unknown format", "got: '.xlsx'")
    fails(lambda: open_text("t.json", ""), "a table of unknown format", "did you mean '.jsonl'")
    fails(
        lambda: Dataset.from_table(photos / "no.csv", text="x"), "there is no table", "nothing by that name"
    )
    url = "id,image\na,https://example.org/a.jpg\n"
    fails(lambda: open_text("t.csv", url, text=None, image="image"), "row 0 names no image file", "download")
    # a byte-order mark, line breaks inside a cell and blank lines at the end are no trouble
    d = open_text("t.csv", '\ufeffid,caption\r\na,"x\ny"\r\n\r\n')
    assert (d.ids, d.stimuli("text", [0])) == (("a",), [("x\ny",)])
    # U+2028 and its like are characters of a caption, not line ends
    d = open_text("t.jsonl", '{"id": "a", "caption": "x\u2028y"}\n')
    assert d.stimuli("text", [0]) == [("x\u2028y",)]


# --- folders -------------------------------------------------------------------------------------


def test_folder_with_notes(photos: Path) -> None:
    images = photos / "images"
    (images / "sub").mkdir()
    shutil.move(images / "d.png", images / "sub" / "d.png")
    for name in ("a", "b", "c", "sub/d"):
        (images / f"{name}.txt").write_text(f"first of {name}\n\n second \n", encoding="utf-8")
    (images / ".hidden.txt").write_text("not a caption")
    d = Dataset.from_folder(images)
    assert d.ids == ("a", "b", "c", "sub/d")
    assert d.stimuli("text", [3]) == [("first of sub/d", "second")]
    assert d.stimuli("image", [3])[0].getpixel((0, 0)) == COLOURS[3]
    assert d.name == "images" and "captions: .txt files" in d.source
    rows = [
        {"id": i, "image": f"images/{i}.png", "caption": [f"first of {i}", "second"]}
        for i in ("a", "b", "c", "sub/d")
    ]
    table = Dataset.from_table(jsonl(photos / "t.jsonl", rows), image="image", text="caption")
    assert table.fingerprint == d.fingerprint
    # an image without a note, a note without an image
    (images / "b.txt").unlink()
    (images / "z.txt").write_text("whose?")
    fails(lambda: Dataset.from_folder(images), "folder 'images'", "row 1 (id 'b'): caption missing: None")
    d = Dataset.from_folder(images, on_missing="drop")
    assert d.ids == ("a", "c", "sub/d")
    assert [(x.id, x.reason) for x in d.left_out] == [
        ("b", "caption missing: None"),
        ("z", "no image named"),
    ]


@pytest.mark.parametrize("form", ["captions.jsonl", "captions.csv"])
def test_folder_with_a_table_of_captions(photos: Path, form: str) -> None:
    images = photos / "images"
    if form.endswith("csv"):
        lines = ["image,caption", *(f"{n}.png,{t}" for n in "abcd" for t in ("one", "two"))]
        (images / form).write_text("\n".join(lines) + "\n")
    else:
        jsonl(images / form, [{"image": f"{n}.png", "captions": ["one", "two"]} for n in "dcba"])
    d = Dataset.from_folder(images)
    assert d.ids == tuple("abcd")
    assert d.stimuli("text", [0, 3]) == [("one", "two")] * 2
    (images / "a.png").rename(images / "e.png")
    fails(lambda: Dataset.from_folder(images), "row 4 (id 'e'): caption missing")
    kept = Dataset.from_folder(images, on_missing="drop")
    assert [(x.id, x.reason) for x in kept.left_out] == [
        ("a", "no image named"),
        ("e", "caption missing: None"),
    ]
    (images / "b.txt").write_text("x")
    fails(lambda: Dataset.from_folder(images), "captions in more than one form", f"{form}, b.txt")


def test_folder_without_captions_and_its_errors(photos: Path, tmp_path: Path) -> None:
    d = Dataset.from_folder(photos / "images")
    assert (d.modalities, d.n) == (("image",), 4)
    Image.new("RGB", (2, 2)).save(photos / "images" / "a.jpg")
    fails(lambda: Dataset.from_folder(photos / "images"), "(images by name)", "the same id 'a'")
    (tmp_path / "empty").mkdir()
    fails(lambda: Dataset.from_folder(tmp_path / "empty"), "folder 'empty' holds no images", "0 other files")
    fails(lambda: Dataset.from_folder(tmp_path / "nowhere"), "there is no folder", "nothing by that name")
    (tmp_path / "empty" / "x.png").write_bytes((photos / "images" / "b.png").read_bytes())
    jsonl(tmp_path / "empty" / "captions.jsonl", [{"image": "x.png", "text": "x"}])
    fails(lambda: Dataset.from_folder(tmp_path / "empty"), "captions.jsonl has no column 'captions'")
    jsonl(tmp_path / "empty" / "captions.jsonl", [{"image": None, "caption": "x"}])
    fails(lambda: Dataset.from_folder(tmp_path / "empty"), "captions.jsonl: row 0 names no image")


# --- arrays --------------------------------------------------------------------------------------


def test_arrays_are_copied_and_kept_as_they_are() -> None:
    a, b = np.arange(8, dtype=np.int16).reshape(4, 2), np.ones((4, 2, 3), np.float32)
    d = Dataset.from_arrays({"spikes": a, "movie": b}, [10, 11, 12, 13])
    a[:] = 0
    assert (d.ids, d.modalities) == (("10", "11", "12", "13"), ("spikes", "movie"))
    row = d.stimuli("spikes", [3])[0]
    assert row.dtype == np.int16 and row.tolist() == [6, 7]
    assert d.stimuli("movie", [0])[0].shape == (2, 3)
    assert (d.kind("spikes"), d.describe()["kinds"]) == ("array", {"spikes": "array", "movie": "array"})
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 1


def test_arrays_that_do_not_fit_are_refused() -> None:
    ids = list("abc")
    fails(lambda: Dataset.from_arrays({"x": np.ones((4, 2))}, ids), "modality 'x'", "3 rows", "got: 4 rows")
    fails(lambda: Dataset.from_arrays({"x": np.array(["p"] * 3)}, ids), "'x' is no array of numbers", "<U1")
    fails(lambda: Dataset.from_arrays({"x": np.float64(1)}, ids), "no array of numbers", "shape ()")
    fails(lambda: Dataset.from_arrays({"x": np.ones((3, 1))}, list("aba")), "rows 0 and 2", "'a'")
    fails(lambda: Dataset.from_arrays({}, ids), "no arrays")
    fails(lambda: Dataset.from_arrays({"x": np.ones((0, 2))}, []), "has no rows")


# --- the toy world -------------------------------------------------------------------------------


def test_toy_scenes_have_an_image_a_caption_and_latents() -> None:
    d = Dataset.toy(n=40, seed=2)
    assert d.modalities == ("image", "text", "latent")
    assert [d.kind(m) for m in d.modalities] == ["image", "text", "array"]
    assert d.ids[0] == "scene-00000" and d.ids[-1] == "scene-00039"
    scenes = world.sample(40, 2, 10)
    rows = [39, 0]
    for image, row in zip(d.stimuli("image", rows), rows, strict=True):
        assert (image.mode, image.size) == ("RGB", (32, 32))
        assert np.array_equal(np.asarray(image), scenes.images[row])
    assert d.stimuli("text", rows) == [(scenes.captions[r],) for r in rows]
    assert np.array_equal(np.stack(d.stimuli("latent", rows)), scenes.latents[rows])
    assert d.describe()["source"] == "toy world (n=40, seed=2, detail=10)"


def test_toy_scenes_are_seeded() -> None:
    d = Dataset.toy(n=30, seed=2)
    assert open_block({"toy": {"n": 30, "seed": 2}}, Path()).fingerprint == d.fingerprint
    assert pickle.loads(pickle.dumps(d)).fingerprint == d.fingerprint
    others = [
        Dataset.toy(30, seed=3),
        Dataset.toy(30, seed=2, detail=3),
        Dataset.toy(29, seed=2),
        d.sample(29),
    ]
    assert len({d.fingerprint, *(o.fingerprint for o in others)}) == 5
    assert others[1].columns["image"].digests == d.columns["image"].digests  # detail is of the caption
    fails(lambda: Dataset.toy(30, detail=11), "toy world cannot be drawn", "1 to 10 attributes", "detail=11")
    fails(lambda: Dataset.toy(0), "toy world cannot be drawn", "n=0")


# --- images --------------------------------------------------------------------------------------


def encoded(tmp_path: Path, image: Image.Image, name: str, **options: Any) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return np.asarray(decode_rgb((tmp_path / name).read_bytes()))


def test_images_are_upright_rgb_over_white(tmp_path: Path) -> None:
    grey = Image.new("L", (3, 2), 77)
    assert encoded(tmp_path, grey, "grey.png").tolist() == [[[77] * 3] * 3] * 2
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    assert encoded(tmp_path, grey, "turned.jpg", exif=turned).shape == (3, 2, 3)
    rgba = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert encoded(tmp_path, rgba, "clear.png").tolist() == [[[255] * 3]]
    half = Image.new("LA", (1, 1), (0, 128))
    assert encoded(tmp_path, half, "half.png").tolist() == [[[127] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    expected = [[[255, 0, 0], [0, 0, 255]]]
    assert encoded(tmp_path, palette, "palette.png").tolist() == expected
    clear = encoded(tmp_path, palette, "palette2.png", transparency=bytes([255, 0]))
    assert clear.tolist() == [[[255, 0, 0], [255, 255, 255]]]
    deep = Image.fromarray(np.array([[0, 257, 25700, 65535]], np.uint16))
    assert encoded(tmp_path, deep, "deep.png")[0, :, 0].tolist() == [0, 1, 100, 255]
    assert encoded(tmp_path, deep, "deep.tif")[0, :, 2].tolist() == [0, 1, 100, 255]


def test_an_image_without_a_defined_range_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "x.tif")
    fails(lambda: Dataset.from_folder(tmp_path), "'x.tif' (pixels of mode 'F' have no defined range)")


# --- the block of a study file -------------------------------------------------------------------


def test_open_dataset_reads_every_source(photos: Path) -> None:
    jsonl(photos / "t.jsonl", four_rows())
    table = open_block({"table": "t.jsonl", "image": "image", "text": "caption"}, photos)
    direct = Dataset.from_table(photos / "t.jsonl", image="image", text="caption")
    assert table.fingerprint == direct.fingerprint
    folder = open_block({"folder": "images", "name": "pictures"}, photos)
    assert (folder.name, folder.n) == ("pictures", 4)
    np.save(photos / "x.npy", np.eye(3))
    (photos / "ids.txt").write_text("p\nq\nr\n\n")
    arrays = open_block({"arrays": {"x": "x.npy"}, "row_ids": "ids.txt"}, photos)
    assert (arrays.ids, arrays.modalities) == (("p", "q", "r"), ("x",))
    rooted = {"table": "t.jsonl", "image": "file", "root": "images"}
    jsonl(photos / "t.jsonl", [{"id": "a", "file": "a.png"}])
    assert open_block(rooted, photos).ids == ("a",)


def test_open_dataset_selects_rows(photos: Path) -> None:
    jsonl(photos / "t.jsonl", four_rows())
    block = {"table": "t.jsonl", "text": "caption"}
    assert open_block({**block, "ids": ["c", "a"]}, photos).ids == ("c", "a")
    (photos / "ids.json").write_text('["d", "b"]')
    assert open_block({**block, "ids": "ids.json"}, photos).ids == ("d", "b")
    sampled = open_block({**block, "sample": {"n": 2, "seed": 5}}, photos)
    assert sampled.ids == Dataset.from_table(photos / "t.jsonl", text="caption").sample(2, 5).ids
    both = open_block({**block, "ids": ["d", "c", "a"], "sample": {"n": 3}}, photos)
    assert both.ids == ("d", "c", "a")
    fails(lambda: open_block({**block, "ids": "no.txt"}, photos), "the ids in no.txt cannot be read")


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({}, ["dataset: exactly one of hub, table, folder, arrays, toy must be given, not none"]),
        ({"table": "t", "folder": "f"}, ["not table and folder"]),
        ({"tabel": "t.csv"}, ["dataset.tabel: there is no field 'tabel'", "did you mean 'table'"]),
        ({"table": "t.csv", "revision": "v1"}, ["'revision' is no option of 'table', which takes files, id, image"]),
        ({"toy": {}, "text": "x"}, ["'text' is no option of 'toy', which takes no options"]),
        ({"toy": {"sed": 1}}, ["dataset.toy.sed: there is no field 'sed'", "did you mean 'seed'"]),
        ({"toy": {"detail": 11}}, ["dataset.toy.detail:", "less than or equal to 10", "got: 11"]),
        ({"toy": {}, "sample": {"m": 1}}, ["dataset.sample", "n"]),
        ({"toy": {}, "sample": {"n": 0}}, ["dataset.sample.n:", "greater than or equal to 1", "got: 0"]),
        ({"arrays": {"x": "x.npy"}}, ["'arrays' needs 'row_ids'"]),
        ({"table": 3}, ["dataset.table:", "expected: a text", "got: the number 3"]),
        ({"table": "no.csv", "text": "x"}, ["there is no table", "starts from the study file's folder"]),
        ({"arrays": {"x": "x.txt"}, "row_ids": ["a"]}, ["the array x.txt cannot be read", ".npy"]),
    ],
)
def test_errors_of_the_block_name_the_field(tmp_path: Path, block: dict[str, Any], parts: list[str]) -> None:
    path = tmp_path / "s.yaml"
    models = ["toy:vision-pixels", "toy:language-bag"]
    path.write_text(yaml.safe_dump({"name": "s", "dataset": block, "models": models}, sort_keys=False))
    fails(lambda: load_study(path).open_dataset(), *parts)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    fails(
        lambda: open_block({"arrays": {"x": "x.npy"}, "row_ids": ["a"]}, tmp_path), "x.npy cannot be read"
    )


def test_config_is_embedded_in_a_larger_model() -> None:
    config = DatasetConfig.model_validate({"hub": "minhuh/prh", "revision": "wit_1024", "image": "image"})
    assert config.kind == "hub"
    assert DatasetConfig.model_validate({"toy": None}).kind == "toy"  # `toy:` without options
    assert DatasetConfig.model_validate({"table": None, "folder": "x"}).kind == "folder"


def test_importing_datasets_is_light() -> None:
    code = "import sys, repalign.dataset, repalign.models; print(*sys.modules)"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )
    heavy = {"torch", "numpy", "pandas", "pyarrow", "PIL", "datasets", "huggingface_hub", "scipy"}
    assert "repalign.dataset" in loaded
    assert not heavy & loaded


# --- every kind of stimuli -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", IN_CELLS)
def test_every_kind_is_made_up_read_named_and_distorted(tmp_path: Path, kind: str) -> None:
    path = write_dataset(tmp_path, {"stimulus": kind}, 12)
    study = DatasetConfig.model_validate({"table": str(path), kind: "stimulus", "sample": {"n": 8}})
    assert study.columns == {kind: ["stimulus"]}
    d = Dataset.from_table(path, **{kind: "stimulus"})
    assert (d.modalities, d.kind(kind), d.n) == ((kind,), kind, 12) and study.open(tmp_path).ids == d.sample(8).ids
    shown = [repr(np.asarray(x).tolist()) for x in d.stimuli(kind, range(12))]
    assert len(set(shown)) >= 11 and len(set(d.columns[kind].digests)) >= 11, "a scene looks as another does"
    sent = pickle.loads(pickle.dumps(d.subset(d.ids[3:5])))
    assert [repr(np.asarray(x).tolist()) for x in sent.stimuli(kind, [0, 1])] == shown[3:5]
    assert sent.columns[kind].digests == d.columns[kind].digests[3:5]
    assert Dataset.from_table(path, **{kind: "stimulus"}).fingerprint == d.fingerprint
    for name in DISTORTIONS.get(kind, ()):
        changed = study.model_validate({**study.model_dump(exclude_unset=True), "distort": {kind: {"kind": name, "amount": 0.9}}})
        other = changed.open(tmp_path)
        assert other.fingerprint != d.sample(8).fingerprint and other.distortions[kind].kind == name
        assert [repr(np.asarray(x).tolist()) for x in other.stimuli(kind, [0])] != [shown[d.ids.index(other.ids[0])]]
    fails(lambda: d.distort(kind, "nonsense", 0.5), f"modality '{kind}'")
    fails(lambda: Dataset.from_table(path, **{kind + "x": "stimulus"}), f"no kind of stimuli '{kind}x'", f"did you mean '{kind}'")


@pytest.mark.parametrize("kind", [name for name, kind in IN_CELLS.items() if issubclass(kind, Files)])
def test_every_kind_of_files_is_checked_and_read_from_folders_and_the_hub(tmp_path: Path, kind: str) -> None:
    path = write_dataset(tmp_path, {"stimulus": kind}, 6)
    d = Dataset.from_table(path, **{kind: "stimulus"})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    folder = tmp_path / "folder"
    folder.mkdir()
    for row in rows:
        file = path.parent / row["stimulus"]
        shutil.copy(file, folder / f"{row['id']}{file.suffix}")
    assert Dataset.from_folder(folder).fingerprint == d.fingerprint
    cells = [{"bytes": (path.parent / row["stimulus"]).read_bytes(), "path": None} for row in rows]
    pq.write_table(pa.table({"id": [row["id"] for row in rows], "stimulus": cells}), tmp_path / "t.parquet")
    assert Dataset.from_hub(tmp_path / "t.parquet", id="id", **{kind: "stimulus"}).fingerprint == d.fingerprint
    first = path.parent / rows[0]["stimulus"]
    first.write_bytes(first.read_bytes()[:20])
    fails(lambda: d.stimuli(kind, [0]), f"{kind} '{rows[0]['stimulus']}' has changed since the dataset was opened")
    fails(lambda: Dataset.from_table(path, **{kind: "stimulus"}), f"row 0 (id 'mock-00000'): {kind} cannot be decoded")
