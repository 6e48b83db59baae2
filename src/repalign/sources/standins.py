"""Tiny stand-ins for any model and any dataset, so that a whole study can be tried out in seconds without a network.

`stand_in`: a model of the same kind as that of an entry; `write_dataset`: a table of generated images and captions;
`stand_in_scores`: how good such models would be. Each lies in a folder that is made once.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from repalign import files
from repalign.dataset import CELLS, kinds
from repalign.dataset.columns import Wanted
from repalign.errors import RepalignError, choose
from repalign.models import COMPETENCES, known_models
from repalign.sources.model import ModelEntry
from repalign.sources.source import Asked, parse_spec
from repalign.toyworld import recipes, world

DEPTHS = (2, 5)
WIDTHS = (16, 48)  # multiples of 8: heads of an even number of features, as rotary positions need
INNER = (24, 120)  # of the two layers behind attention; its steps are fine, so that no two sizes are one
KNOWN_SIZES = {"text": (8.5, 11.0), "image": (6.7, 9.2)}  # log10 of parameters: what counts as small and as large


# --- folders that are made once ------------------------------------------------------------------


def made_once(parent: Path, name: str, arguments: Mapping[str, Any], write: Callable[[Path], object]) -> Path:
    """The folder of these arguments in `parent`, absolute; `write` fills it if it is not there.

    Its name ends in a digest of the arguments and of the code that makes it, so that folders of other arguments stay
    beside it.
    """
    told = json.dumps([name, dict(arguments), _code()], sort_keys=True)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip("-.") or "model"
    folder = Path(parent).expanduser().absolute() / f"{readable}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"
    return files.made_once(folder, write)


@cache
def _code() -> str:
    """A digest of the code that makes stand-ins: what other code made does not pass for what today's would."""
    ours = [Path(__file__), Path(__file__).with_name("standin_models.py"), *sorted(Path(kinds.__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in ours)).hexdigest() + recipes.revision()


def seed_of(*parts: str | int) -> int:
    """A seed that follows from the parts alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:6], "little")


# --- how large a stand-in is ---------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Blocks, features, features inside of a block, and the seed of the weights."""

    depth: int
    width: int
    inner: int
    seed: int

    @property
    def n_parameters(self) -> int:
        """Numbers in the blocks: 4 d^2 of attention and 2 d m behind it, each."""
        return self.depth * (4 * self.width**2 + 2 * self.width * self.inner)

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(f"block.{i}" for i in range(self.depth))


def level_of(name: str) -> float:
    """How large a model is among its like, from 0 to 1: from its parameters where it is known, else from its name's digest."""
    known = next((k for k in known_models() if name in (k.name, k.spec)), None)
    if known is None:
        return seed_of("level", name) % 1000 / 999
    low, high = KNOWN_SIZES[known.modality]
    return min(1.0, max(0.0, (math.log10(known.parameters) - low) / (high - low)))


def shape_of(name: str, seed: int) -> Shape:
    """The shape of the stand-in of a model of this name: larger models have larger ones, so that trends are in the usual order."""
    level = level_of(name)

    def between(low: int, high: int) -> int:
        return low + round(level * (high - low))

    width = 8 * between(WIDTHS[0] // 8, WIDTHS[1] // 8)
    return Shape(between(*DEPTHS), width, between(*INNER), seed_of("weights", name, seed))


# --- an entry with a stand-in --------------------------------------------------------------------


def model_folder(asked: Asked, kind: str, write: Callable[[Path, Shape], object], **more: object) -> tuple[Path, Shape]:
    """The folder of a stand-in of some kind, and its shape."""
    shape = shape_of(asked.name, asked.seed)
    arguments = {"spec": str(asked.spec), "kind": kind, "shape": asdict(shape), **more}
    return made_once(asked.folder, asked.name, arguments, lambda to: write(to, shape)), shape


def stand_in(
    entry: ModelEntry, modality: str, folder: str | Path, *, ids: Sequence[str] = (), seed: int = 0
) -> tuple[ModelEntry, tuple[str, ...]]:
    """The entry with a tiny local model in place of the real one, and notes on what of it cannot be kept.

    * `entry`: the real model's; all its fields but the spec stay, and options that the stand-in lacks are changed: a layer
      beyond its last one is its last one, a layer by a name that it has not is left out, and a pooling of maps is the mean
      over tokens. Each such change is a note, in words that follow the model's name.
    * `modality`: what it reads, "image" or "text", where its source takes both; for `torch:` and `array:` any column.
    * `folder`: models are written there, each in a folder of its own, whole or not at all, and used again.
    * `ids`: of the dataset's stimuli, for a file of features.

    Each source says what stands in for its models (`Source.stand_in`); depth, width and seed follow from the name.

    Raises RepalignError for what a run would refuse too and that can be told without the model: a spec of no known form,
    names that timm or the toy world do not have, a modality that has to be said.
    """
    spec = parse_spec(entry.spec)
    name = spec.source.name(spec, entry)
    found = spec.source.stand_in(Asked(entry, spec, name, modality, Path(folder), tuple(ids), seed))
    layers, notes = _fitting(entry.layers, found.layers)
    pooling = found.poolings.get(entry.pooling or "", entry.pooling)
    if pooling != entry.pooling:
        notes = (*notes, f"pooling {entry.pooling} is {pooling}: the stand-in is a transformer")
    if spec.file is not None and not spec.source.is_file and not spec.file.exists():
        notes = (f"there is no {spec.file}", *notes)
    made = replace(
        entry, spec=found.spec, name=name, layers=layers, pooling=pooling, scores={**found.scores, **entry.scores},
        n_parameters=found.n_parameters if entry.n_parameters is None else entry.n_parameters,
        id=None, rows=False, features=None, vector=None, axes=None,  # of the real file: a stand-in is plain, and has ids
    )  # fmt: skip
    return made, (*found.notes, *notes)


def _fitting(wanted: tuple[int | str, ...] | None, there: tuple[str, ...]) -> tuple[tuple[int | str, ...] | None, tuple[str, ...]]:
    """The layers that the stand-in has for those that are asked of the real model, and a note on each that it lacks."""
    if wanted is None:
        return None, ()
    kept, notes = [], []
    for w in wanted:
        found = _clipped(w, there)
        if found is None:
            notes.append(f"layer {w!r} is left out: the stand-in has {there[0]} to {there[-1]}")
            continue
        kept.append(found)
        if found != w:
            notes.append(f"layer {w!r} is {found!r}: the stand-in has {len(there)} layers")
    if not kept:
        return None, (*notes, "all layers of the stand-in are taken")
    return tuple(dict.fromkeys(kept)), tuple(notes)


def _clipped(wanted: int | str, there: tuple[str, ...]) -> int | str | None:
    """An index within range; a name that is there; of "block.31" or "stage.3" the last of the numbered; None of others."""
    if isinstance(wanted, int):
        return min(max(wanted, -len(there)), len(there) - 1)
    numbered = [name for name in there if re.fullmatch(r"block\.\d+", name)]
    asked = re.fullmatch(r"(?:block|stage)\.(\d+)", wanted)
    if wanted in there or not asked or not numbered:
        return wanted if wanted in there else None
    return numbered[min(int(asked[1]), len(numbered) - 1)]


# --- the dataset ---------------------------------------------------------------------------------

TABLE = "pairs.jsonl"


def write_dataset(
    folder: str | Path, columns: Mapping[str, str], n: int, *, id: str = "id", captions: int = 1, unequal: bool = False,
    seed: int = 0,
) -> Path:  # fmt: skip
    """A JSONL table of n rows and its image files; the path of the table, for `Dataset.from_table`.

    `columns` maps names of columns to kinds of stimuli, such as "image" and "text". All of a row show one scene, the row's
    number gives which. A cell of text is a string, or with `captions` above 1 a list of so many different strings; a number
    in the column's name is the number of words ("caption_20"). Images are PNG and, every third, JPEG, 32 x 32 pixels or
    with `unequal` of 16 to 64 to a side.

    Some rows are awkward: 1 has quotation marks, 2 letters beyond ASCII, 3 a first caption of two words, 4 an image
    without colour, 5 the captions of row 0.

    Lies in a folder of its own in `folder`, whole or not at all; one of the same arguments is used again. Raises
    RepalignError for arguments out of range and for a folder that cannot be written.
    """
    for column, kind in columns.items():
        choose("kind", kind, CELLS, f"stand-in dataset: column {column!r} is of no known kind")
    if id in columns:
        raise RepalignError("stand-in dataset: the column of ids is one of the stimuli too", got=repr(id))
    for what, value, least in (("n", n, 1), ("captions", captions, 1), ("seed", seed, 0)):
        if value < least:
            raise RepalignError(f"stand-in dataset: {what} is out of range", expected=f"at least {least}", got=value)
    arguments = {"columns": dict(columns), "n": n, "id": id, "captions": captions, "unequal": unequal, "seed": seed}

    def write(to: Path) -> None:
        rows: list[dict[str, object]] = [{id: f"mock-{i:05d}"} for i in range(n)]
        _, scenes = world.content(n, seed)
        for column, kind in columns.items():
            cells = CELLS[kind].made_up(Wanted(to, column, scenes, seed, captions, unequal))
            for row, cell in zip(rows, cells, strict=True):
                row[column] = cell
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (to / TABLE).write_text("".join(lines), encoding="utf-8", newline="\n")

    return made_once(Path(folder), f"dataset-{n}", arguments, write) / TABLE


# --- scores --------------------------------------------------------------------------------------

# The worst and the best of a scale, by its unit or its own name; a scale of the user's own is taken for one of shares.
SCALES: dict[str, tuple[float, float]] = {
    "bit/byte": (1.6, 0.6), "bit/character": (1.6, 0.6), "bit/word": (9.0, 4.0), "bit/token": (6.0, 2.0), "nat/token": (4.0, 1.5),
    "%": (20.0, 90.0), "share": (0.2, 0.9), "perplexity": (60.0, 5.0), "vtab_solved": (0.0, 19.0),
}  # fmt: skip
SCORE_NOISE = 0.04  # standard deviation, in units of the scale


def stand_in_scores(names: Sequence[str], models: Sequence[str], seed: int = 0) -> dict[str, dict[str, float]]:
    """Scores by the name of the score, then by the model's label: what a study's files would say.

    They get better with the size of the stand-in, up to noise: bits per byte fall and accuracies, in [0, 1], rise. A name
    that is in no list of competences gets shares. `n_parameters` is about that of the stand-in's blocks.
    """
    return {name: {model: _score(name, model, seed) for model in models} for name in names}


def _score(name: str, model: str, seed: int) -> float:
    if name == "n_parameters":
        return float(shape_of(model, seed).n_parameters)
    unit = COMPETENCES[name].unit if name in COMPETENCES else "share"
    worst, best = SCALES.get(name) or SCALES.get(unit, SCALES["share"])
    rng = np.random.Generator(np.random.PCG64(seed_of("score", name, model, seed)))
    quality = min(1.0, max(0.0, level_of(model) + SCORE_NOISE * rng.standard_normal()))
    value = worst + quality * (best - worst)
    return float(round(value)) if name == "vtab_solved" else round(value, 4)
