"""The whole experiment: spaces, scores, controls and layouts, in one result that is kept as text files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repalign.comparison.alignment import csv_text, from_csv_cell
from repalign.dataset import Dataset
from repalign.files import FILES, Url, check_files, file_sha256, place_of, read_bytes, read_json, seal_json, write_file
from repalign.prh.colour import spaces
from repalign.prh.colour.colours import WORDS, ColourOptions, named_colours, read_photos
from repalign.prh.colour.spaces import ColourSpace
from repalign.sources import ModelEntry
from repalign.text import Progress, silent, telling

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CONTROLS", "ColourResult", "run_colour"]

# Radius in pixels and shuffle: near to far, the pixels of each photo in other places, the pixels of all photos mixed.
CONTROLS = (
    (1.0, "none"), (2.0, "none"), (4.0, "none"), (8.0, "none"), (16.0, "none"), (math.inf, "none"), (4.0, "within"),
    (4.0, "across"),
)  # fmt: skip
_TABLES = ("scores", "controls", "layouts")
_TEXT = ("space", "id", "space_x", "layer_x", "space_y", "layer_y", "measure", "null", "shuffle")
_COUNTS = ("n", "n_draws", "seed")


@dataclass(frozen=True, eq=False)
class ColourResult:
    """`scores` one row per pair of layers and measure; `controls` the same for pixels under each radius and shuffle;
    `layouts` one row per colour of each layout, moved onto CIELAB; `run` the options and how each space came about.
    """

    scores: pd.DataFrame
    controls: pd.DataFrame
    layouts: pd.DataFrame
    run: dict[str, Any]

    def save(self, folder: str | Path | Url) -> Path | Url:
        """scores.csv, controls.csv, layouts.csv and run.json with their digests; equal results give equal bytes."""
        folder = place_of(folder)
        for name in _TABLES:
            write_file(folder / f"{name}.csv", csv_text(getattr(self, name)))
        files = {f"{name}.csv": file_sha256(folder / f"{name}.csv") for name in _TABLES}
        write_file(folder / "run.json", seal_json({**self.run, FILES: files}))
        return folder

    @classmethod
    def load(cls, folder: str | Path | Url) -> ColourResult:
        """What `save` wrote. Raises RepalignError where a file is missing, or not what was written."""
        import pandas as pd

        folder = place_of(folder)
        run, _ = read_json(folder / "run.json")
        check_files(folder, run.pop(FILES, {}))

        def table(name: str) -> pd.DataFrame:
            frame = pd.read_csv(BytesIO(read_bytes(folder / f"{name}.csv")), dtype=str, keep_default_na=False)
            for column, cells in frame.items():
                if column in _TEXT:
                    frame[column] = cells.map(from_csv_cell)
                else:  # by Python's float, which gives back every digit
                    kind = int if column in _COUNTS else float
                    frame[column] = [kind(v) if v else math.nan for v in cells]
            return frame

        return cls(*map(table, _TABLES), run)


def run_colour(
    dataset: Dataset, models: Sequence[ModelEntry | str] = (), options: ColourOptions | None = None,
    folder: str | Path | Url = "colour", *, words: Sequence[str] = WORDS, column: str = "image",
    controls: Sequence[tuple[float, str]] = CONTROLS, progress: Progress = silent, **extraction: Any,
) -> ColourResult:  # fmt: skip
    """Pixels of a dataset's photos and colour words of text models, against CIELAB and against each other.

    Spaces: "pixels" on the grid, "pixels by word" (every pixel at its nearest word), each model, and "spelling", a
    control. Each is scored against CIELAB and RGB, pixels by word also against each model and the spelling; each is laid
    out. The result is saved in `folder`, where sentences and features are kept too.

    `words` are names of the xkcd survey; `extraction` goes to `extract` (`device`, `dtype`, `batch_size`). Raises
    RepalignError for words without a colour, too few colours, and whatever extraction refuses.
    """
    import pandas as pd

    options = options or ColourOptions()
    folder = place_of(folder)
    named_colours(words)  # an unknown word is told before any work
    photos = read_photos(dataset, options.size, column, progress=progress)
    grid, worded = (options.model_copy(update={"palette": palette}) for palette in ("grid", "words"))
    pixels = spaces.pixel_space(photos, grid, progress=progress)
    by_word = spaces.pixel_space(photos, worded, words, name="pixels by word", progress=progress)
    speaking = [spaces.word_space(m, words, options, folder, progress=progress, **extraction) for m in models]
    speaking.append(spaces.spelling_space(words))

    rows = spaces.score(pixels, spaces.perceptual_space(pixels), options, options.k)
    for space in (by_word, *speaking):
        rows += spaces.score(space, spaces.perceptual_space(space), options, options.k_words)
    for space in speaking:
        rows += spaces.score(by_word, space, options, options.k_words)
    layouts, fitted = [], {}
    for space in (pixels, by_word, *speaking):
        laid, fitted[space.name], judged = _laid_out(space, options, progress)
        layouts += laid
        rows += judged
    controlled = _controls(photos, options, controls, progress)
    run = {
        "what": "colour experiment",
        "options": {k: "inf" if v == math.inf else v for k, v in options.model_dump().items()},
        "words": list(words),
        "dataset": dataset.describe(),
        "spaces": {s.name: {"n": s.n, **s.facts, "layout": fitted[s.name]} for s in (pixels, by_word, *speaking)},
        "versions": {p: version(p) for p in ("numpy", "scipy", "scikit-learn", "pillow")},
    }
    result = ColourResult(pd.DataFrame(rows), pd.DataFrame(controlled), pd.DataFrame(layouts), run)
    result.save(folder)
    return result


def _laid_out(
    space: ColourSpace, options: ColourOptions, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, Any]]]:
    """A row per colour, facts of the fit, and its score."""
    perception = spaces.perceptual_space(space)
    found = spaces.mds(space.distances[space.layout_layer], options, progress=progress)
    moved, disparity = spaces.align(found.points, space.lab)
    numbers = np.hstack([space.rgb, space.lab, moved])
    rows = [
        {"space": space.name, "id": i, **{f"{c}_{kind}": float(v) for (c, kind), v in zip(_KINDS, row, strict=True)}}
        for i, row in zip(space.ids, numbers, strict=True)
    ]
    facts = {"layer": space.layout_layer, "fits": found.fits, "stress": found.stress, "disparity": disparity}
    return rows, facts, spaces.score_layout(found.points, space, perception, options)


# Columns of a layout: sRGB, CIELAB, and the place in the layout in the unit of CIELAB.
_KINDS = [(c, kind) for kind, cs in (("srgb", "rgb"), ("cielab", "Lab"), ("layout", "Lab")) for c in cs]


def _controls(
    photos: Sequence[np.ndarray], options: ColourOptions, controls: Sequence[tuple[float, str]], progress: Progress
) -> list[dict[str, Any]]:
    rows = []
    for radius, shuffle in telling(controls, "controls", progress):
        changed = options.model_copy(update={"palette": "grid", "radius": radius, "shuffle": shuffle})
        space = spaces.pixel_space(photos, changed)
        judged = spaces.score(space, spaces.perceptual_space(space), changed, changed.k)
        facts = {k: space.facts[k] for k in ("share_of_pairs_never_seen", "negative_share")}
        rows += [{"radius": radius, "shuffle": shuffle, **facts, **row} for row in judged]
    return rows
