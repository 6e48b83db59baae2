"""A stand-in dataset: scenes of the toy world as image files and captions, in a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from repalign.errors import RepalignError, did_you_mean
from repalign.standins.captions import distinct, make_awkward, words_of, write_captions
from repalign.standins.folders import made_once
from repalign.toyworld import render, world

KINDS = ("image", "text")
TABLE = "pairs.jsonl"
GREY = 4  # the row whose images have no colour
LARGEST = 2.0  # of images of unequal sizes, in sides of the toy world's


def write_dataset(
    folder: str | Path,
    columns: Mapping[str, str],
    n: int,
    *,
    id: str = "id",
    captions: int = 1,
    unequal: bool = False,
    seed: int = 0,
) -> Path:
    """A JSONL table of n rows and its image files; the path of the table, for `Dataset.from_table`.

    `columns` maps names of columns to "image" or "text". All of a row show one scene, the row's number gives which. A
    cell of text is a string, or with `captions` above 1 a list of so many different strings; a number in the column's
    name is the number of words ("caption_20"). Images are PNG and, every third, JPEG, 32 x 32 pixels or with `unequal` of
    16 to 64 to a side.

    Some rows are awkward: 1 has quotation marks, 2 letters beyond ASCII, 3 a first caption of two words, 4 an image
    without colour, 5 the captions of row 0.

    Lies in a folder of its own in `folder`, whole or not at all; one of the same arguments is used again. Raises
    RepalignError for arguments out of range and for a folder that cannot be written.
    """
    _check(columns, n, id, captions, seed)
    arguments = {"columns": dict(columns), "n": n, "id": id, "captions": captions, "unequal": unequal, "seed": seed}
    return made_once(Path(folder), f"dataset-{n}", arguments, lambda to: _write(to, **arguments)) / TABLE


def _write(
    folder: Path, columns: Mapping[str, str], n: int, id: str, captions: int, unequal: bool, seed: int
) -> None:
    rows: list[dict[str, object]] = [{id: f"mock-{i:05d}"} for i in range(n)]
    _, scenes = world.content(n, seed)
    for column, kind in columns.items():
        if kind == "image":
            cells: Sequence[object] = _images(folder, column, scenes, unequal, seed)
        else:
            cells = _captions(column, scenes, captions, seed)
        for row, cell in zip(rows, cells, strict=True):
            row[column] = cell
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / TABLE).write_text("".join(lines), encoding="utf-8", newline="\n")


def _captions(column: str, scenes: world.Attributes, count: int, seed: int) -> list[str] | list[list[str]]:
    """A string of each row, or `count` different ones."""
    written = zip(*(write_captions(scenes, seed, column, number) for number in range(count)), strict=True)
    rows = [list(row) for row in written]
    make_awkward(rows, counted=words_of(column) is not None)
    rows = [distinct(row) for row in rows]
    return rows if count > 1 else [row[0] for row in rows]


def _images(folder: Path, column: str, scenes: world.Attributes, unequal: bool, seed: int) -> list[str]:
    """Image files of a column, by their names in the folder."""
    from PIL import Image

    pixels = render.draw(
        scenes, world.stream(seed, f"stand-in picture {column}"), world.stream(seed, f"stand-in pixels {column}")
    )
    sizes = np.full((len(pixels), 2), render.SIDE)
    if unequal:
        rng = world.stream(seed, f"stand-in sizes {column}")
        sizes = rng.integers(render.SIDE // 2, round(LARGEST * render.SIDE) + 1, sizes.shape)
    name = f"images-{len(list(folder.iterdir()))}"  # a column's own name need not be one that a folder can have
    (folder / name).mkdir()
    out = []
    for i, (array, (width, height)) in enumerate(zip(pixels, sizes.tolist(), strict=True)):
        image = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
        image = image.convert("L") if i == GREY else image
        out.append(f"{name}/{i:05d}.{'jpg' if i % 3 == 2 else 'png'}")
        image.save(folder / out[-1], quality=95)
    return out


def _check(columns: Mapping[str, str], n: int, id: str, captions: int, seed: int) -> None:
    for column, kind in columns.items():
        if kind not in KINDS:
            raise RepalignError(
                f"stand-in dataset: column {column!r} is of no known kind",
                expected=" or ".join(KINDS),
                got=kind,
                remedy=did_you_mean(kind, KINDS),
            )
    if id in columns:
        raise RepalignError("stand-in dataset: the column of ids is one of the stimuli too", got=repr(id))
    for what, value, least in (("n", n, 1), ("captions", captions, 1), ("seed", seed, 0)):
        if value < least:
            raise RepalignError(f"stand-in dataset: {what} is out of range", expected=f"at least {least}", got=value)
