"""A space of colours, wherever it comes from: pixels, words or perception; distances between colours, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.files import write_text
from repalign.prh.colour.cielab import cielab, named_colours
from repalign.prh.colour.options import ColourOptions
from repalign.prh.colour.pairs import count_pairs, grid_palette, shuffled, word_palette
from repalign.prh.colour.pmi import dissimilarity, kernel_of, negative_share
from repalign.sources import ModelEntry, extract
from repalign.text import Progress, silent


@dataclass(frozen=True, eq=False)
class ColourSpace:
    """Distances between the same n colours in one or more layers.

    `ids` name the colours, `rgb` (n, 3) in [0, 1] shows them, `distances` holds an (n, n) matrix per layer, `layout_layer`
    is the layer that is drawn, `facts` say how it came about.
    """

    name: str
    ids: tuple[str, ...]
    rgb: np.ndarray
    distances: Mapping[str, np.ndarray]
    layout_layer: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.ids)

    @property
    def lab(self) -> np.ndarray:
        """CIELAB coordinates (n, 3)."""
        return cielab(self.rgb)

    def subset(self, ids: Sequence[str]) -> ColourSpace:
        """The colours of these ids, in this order."""
        missing = [i for i in ids if i not in self.ids]
        if missing:
            raise RepalignError(f"{self.name}: no colour {missing[0]!r}", expected=f"some of {self.n} colours", got=missing[0])
        at = [self.ids.index(i) for i in ids]
        kept = {layer: d[np.ix_(at, at)] for layer, d in self.distances.items()}
        return replace(self, ids=tuple(ids), rgb=self.rgb[at], distances=kept)


def pixel_space(
    photos: Sequence[np.ndarray], options: ColourOptions, words: Sequence[str] = (), *, name: str = "pixels",
    progress: Progress = silent,
) -> ColourSpace:
    """The vision side: colours are close that stand near each other in photos, d = max K_PMI - K_PMI.

    `photos` are uint8 arrays (h, w, 3), as `read_photos` gives them; `words` the palette where `options.palette` is "words".
    """  # fmt: skip
    photos = shuffled(photos, options.shuffle, options.seed)
    if options.palette == "grid":
        palette = grid_palette(photos, options.levels, options.bin_colour)
    else:
        palette = word_palette(photos, words, named_colours(words))
    counts = count_pairs(palette, options, progress=progress)
    kept, kernel = kernel_of(counts, options)
    inner = counts[np.ix_(kept, kept)]
    off = ~np.eye(len(kept), dtype=bool)
    facts = {
        "photos": len(photos),
        "pairs": int(counts.sum()) // 2,
        "colours": len(kept),
        "share_of_pixels_kept": float(counts[kept].sum() / counts.sum()),
        "share_of_pairs_never_seen": float((inner[off] == 0).mean()),
        "negative_share": negative_share(kernel),
    }
    distances = {"pmi": dissimilarity(kernel, options.largest)}
    return ColourSpace(name, tuple(palette.ids[i] for i in kept), palette.rgb[kept], distances, "pmi", facts)


def word_space(
    model: ModelEntry | str, words: Sequence[str], options: ColourOptions, folder: str | Path, *, progress: Progress = silent,
    **extraction: Any,
) -> ColourSpace:
    """The language side: Euclidean distances between colour words in every layer of a text model.

    Each word stands in every template; a layer's vector of a word is the mean over the templates of its pooled
    representations. One more layer, "last m", is the last m layers side by side. `folder` gets the sentences and the
    features; `extraction` goes to `extract` (`device`, `dtype`, `batch_size`).
    """  # fmt: skip
    entry = ModelEntry(model) if isinstance(model, str) else model
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rgb = named_colours(words)
    lines = [json.dumps({"id": w, "sentences": [t.format(w) for t in options.templates]}) for w in words]
    write_text(folder / "colour_words.jsonl", "\n".join(lines) + "\n")
    dataset = Dataset.from_table(folder / "colour_words.jsonl", id="id", text="sentences", name="colour words")
    entries = [replace(entry, caption=i) for i in range(len(options.templates))]
    found = extract(dataset, entries, str(folder / "store"), progress=progress, **extraction)
    layers = {n: np.mean([r.load(n).double().numpy() for r in found], axis=0) for n in found[0].layers}
    facts = {k: found[0].facts[k] for k in ("pooling", "tokens", "last_layer") if k in found[0].facts}
    return vector_space(found[0].record.name, words, rgb, layers, options.last, facts)


def vector_space(
    name: str, words: Sequence[str], rgb: np.ndarray, layers: Mapping[str, np.ndarray], last: int = 1,
    facts: Mapping[str, Any] | None = None,
) -> ColourSpace:
    """Euclidean distances between given vectors, (n, d) per layer: static word vectors, say. As in `word_space`, the last
    `last` layers side by side are a layer of their own if there are more than one.
    """  # fmt: skip
    from scipy.spatial.distance import pdist, squareform

    arrays = {layer: np.asarray(x, float) for layer, x in layers.items()}
    wrong = {layer: x.shape for layer, x in arrays.items() if x.ndim != 2 or len(x) != len(words)}
    if wrong or not arrays or not all(np.isfinite(x).all() for x in arrays.values()):
        raise RepalignError(
            f"{name}: no vectors of these words", expected=f"finite arrays ({len(words)}, d)", got=wrong or "nothing, or NaN"
        )
    drawn = next(reversed(arrays))
    if last > 1 and len(arrays) > 1:
        few = list(arrays)[-last:]
        drawn = f"last {len(few)}"
        arrays[drawn] = np.concatenate([arrays[layer] for layer in few], axis=1)
    distances = {layer: squareform(pdist(x)) for layer, x in arrays.items()}
    return ColourSpace(name, tuple(words), np.asarray(rgb, float), distances, drawn, dict(facts or {}))


def spelling_space(words: Sequence[str], n: int = 2) -> ColourSpace:
    """Control without meaning: how often each run of up to n letters stands in a word, ends marked; one layer per length.

    Names of like colours may be spelled alike ("greenish", "lightgreen"): what a text model has beyond chance but not
    beyond this may be spelling.
    """
    layers = {}
    for length in range(1, n + 1):
        runs = [[f"<{w}>"[i : i + length] for i in range(len(w) + 3 - length)] for w in words]
        known = {run: j for j, run in enumerate(sorted({r for row in runs for r in row}))}
        layers[f"runs of {length}"] = np.zeros((len(words), len(known)))
        for i, row in enumerate(runs):
            for run in row:
                layers[f"runs of {length}"][i, known[run]] += 1
    return vector_space("spelling", words, named_colours(words), layers)


def perceptual_space(like: ColourSpace) -> ColourSpace:
    """CIELAB (Delta E*ab), and plain RGB as the layer to beat, for the colours of another space."""
    both = {"cielab": like.lab, "rgb": like.rgb}
    return replace(vector_space("perception", like.ids, like.rgb, both), layout_layer="cielab")
