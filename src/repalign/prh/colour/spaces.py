"""A space of colours, wherever it comes from: pixels, words or perception; distances between colours, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.files import Url, place_of, write_file
from repalign.layers import RDM, as_features
from repalign.measures import RSA, Measure, MutualKNN, Procrustes
from repalign.null import Permutations
from repalign.prh.colour import colours
from repalign.prh.colour.colours import ColourOptions
from repalign.sources import ModelEntry, extract
from repalign.text import Progress, silent

__all__ = [
    "ColourSpace", "Layout", "align", "mds", "perceptual_space", "pixel_space", "score", "score_layout", "spelling_space",
    "vector_space", "word_space",
]  # fmt: skip


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
        return colours.cielab(self.rgb)

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
    photos = colours.shuffled(photos, options.shuffle, options.seed)
    if options.palette == "grid":
        palette = colours.grid_palette(photos, options.levels, options.bin_colour)
    else:
        palette = colours.word_palette(photos, words, colours.named_colours(words))
    counts = colours.count_pairs(palette, options, progress=progress)
    kept, kernel = colours.kernel_of(counts, options)
    inner = counts[np.ix_(kept, kept)]
    off = ~np.eye(len(kept), dtype=bool)
    facts = {
        "photos": len(photos), "pairs": int(counts.sum()) // 2, "colours": len(kept),
        "share_of_pixels_kept": float(counts[kept].sum() / counts.sum()),
        "share_of_pairs_never_seen": float((inner[off] == 0).mean()),
        "negative_share": colours.negative_share(kernel),
    }  # fmt: skip
    distances = {"pmi": colours.dissimilarity(kernel, options.largest)}
    return ColourSpace(name, tuple(palette.ids[i] for i in kept), palette.rgb[kept], distances, "pmi", facts)


def word_space(
    model: ModelEntry | str, words: Sequence[str], options: ColourOptions, folder: str | Path | Url, *,
    progress: Progress = silent, **extraction: Any,
) -> ColourSpace:
    """The language side: Euclidean distances between colour words in every layer of a text model.

    Each word stands in every template; a layer's vector of a word is the mean over the templates of its pooled
    representations. One more layer, "last m", is the last m layers side by side. `folder` gets the sentences and the
    features; `extraction` goes to `extract` (`device`, `dtype`, `batch_size`).
    """  # fmt: skip
    entry = ModelEntry(model) if isinstance(model, str) else model
    folder = place_of(folder)
    rgb = colours.named_colours(words)
    lines = [json.dumps({"id": w, "sentences": [t.format(w) for t in options.templates]}) for w in words]
    write_file(folder / "colour_words.jsonl", "\n".join(lines) + "\n")
    with TemporaryDirectory() as own:  # a dataset is read from this machine
        here = folder if isinstance(folder, Path) else Path(own)
        if here is not folder:
            write_file(here / "colour_words.jsonl", "\n".join(lines) + "\n")
        dataset = Dataset.from_table(here / "colour_words.jsonl", id="id", text="sentences", name="colour words")
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
    return vector_space("spelling", words, colours.named_colours(words), layers)


def perceptual_space(like: ColourSpace) -> ColourSpace:
    """CIELAB (Delta E*ab), and plain RGB as the layer to beat, for the colours of another space."""
    both = {"cielab": like.lab, "rgb": like.rgb}
    return replace(vector_space("perception", like.ids, like.rgb, both), layout_layer="cielab")


# --- layouts ----------------------------------------------------------------------------------------


_AT_ONCE = 25  # fits between two reports of progress


@dataclass(frozen=True, eq=False)
class Layout:
    """`points` (n, c); `stress`, Kruskal's stress-1 of the points against the distances (for "nonmetric" as SMACOF
    reports it, against the fitted disparities); `fits`, of how many the best was kept.
    """

    points: np.ndarray
    stress: float
    fits: int


def mds(distances: np.ndarray, options: ColourOptions, *, progress: Progress = silent) -> Layout:
    """Multidimensional scaling of distances (n, n): the best of `n_fits` random starts of SMACOF, or classical scaling.

    SMACOF is scikit-learn's (de Leeuw 1977; nonmetric: Kruskal 1964, which takes a distance of 0 as missing). Classical
    scaling (Torgerson 1952) is the leading eigenvectors of -H D^2 H / 2, those of negative eigenvalues left out as zeros;
    it needs one fit.
    """
    d = np.asarray(distances, float)
    c = options.n_components
    if d.ndim != 2 or d.shape[0] != d.shape[1] or len(d) <= c or not np.isfinite(d).all():
        raise RepalignError("distances that MDS cannot take", expected=f"finite (n, n) with n > {c}", got=f"shape {d.shape}")
    if options.mds == "classical":
        points = _classical(d, c)
        return Layout(points, _stress(points, d), 1)
    from sklearn.manifold import smacof

    seeds = np.random.SeedSequence([options.seed, 3]).generate_state(-(-options.n_fits // _AT_ONCE))
    best, least = np.zeros((len(d), c)), np.inf
    progress("mds", 0, options.n_fits)
    for i, seed in enumerate(seeds):
        count = min(_AT_ONCE, options.n_fits - i * _AT_ONCE)
        found: Any = smacof(
            d, metric=options.mds == "metric", n_components=c, n_init=count, max_iter=options.max_iter,
            random_state=int(seed) % 2**31,
        )  # fmt: skip
        if found[1] < least:
            best, least = found[0], float(found[1])
        progress("mds", min((i + 1) * _AT_ONCE, options.n_fits), options.n_fits)
    return Layout(best, _stress(best, d) if options.mds == "metric" else least, options.n_fits)


def _classical(d: np.ndarray, c: int) -> np.ndarray:
    squared = d**2
    gram = -(squared - squared.mean(axis=0) - squared.mean(axis=1)[:, None] + squared.mean()) / 2
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, ::-1][:, :c] * np.sqrt(np.maximum(values[::-1][:c], 0))


def _stress(points: np.ndarray, d: np.ndarray) -> float:
    from scipy.spatial.distance import pdist, squareform

    fitted, given = pdist(points), squareform(d, checks=False)
    return float(np.sqrt(((fitted - given) ** 2).sum() / (fitted**2).sum()))


def align(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Points moved onto a target by the best translation, scale, rotation and reflection; and the disparity that is left.

    min over s, R, t of |s X R + t - Y|_F, R orthogonal (Kabsch 1976, Umeyama 1991). A reflection is allowed, as the paper
    does by fitting z and -z: in three dimensions that is the same. Disparity = |s X R + t - Y|^2 / |Y - mean Y|^2, in
    [0, 1], that of `scipy.spatial.procrustes`. Points of fewer dimensions than the target are padded with zeros.
    """
    from scipy.spatial import procrustes

    x, y = np.asarray(points, float), np.asarray(target, float)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise RepalignError("layouts that do not fit", expected="one row per colour", got=f"{x.shape} and {y.shape}")
    if not np.ptp(x, axis=0).any() or not np.ptp(y, axis=0).any():
        raise RepalignError("a layout whose points are all one", expected="points that differ", got="no spread")
    width, centre = max(x.shape[1], y.shape[1]), y.mean(axis=0)
    _, moved, disparity = procrustes(*(np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in (y, x)))
    return moved[:, : y.shape[1]] * np.linalg.norm(y - centre) + centre, float(disparity)


# --- scores -----------------------------------------------------------------------------------------


def score(x: ColourSpace, y: ColourSpace, options: ColourOptions, k: int) -> list[dict[str, Any]]:
    """Every layer of one space against every layer of another, on the colours that both have.

    Two measures: "RSA", Spearman's correlation of the two spaces' distances over all pairs of colours, and "MutualKNN",
    the share of k nearest neighbours in common (chance k / (n - 1)). Each against `n_draws` permutations of the colours:
    one row per pair of layers, with its p-value, and in `pvalue_layers` the family-wise p-value over all of these pairs.
    """
    common = [i for i in x.ids if i in set(y.ids)]
    if len(common) <= max(3, k):
        raise RepalignError(
            f"{x.name} and {y.name} share too few colours", expected=f"more than {max(3, k)}", got=len(common),
            remedy="use a smaller min_count or k, or the palette 'words' on both sides",
        )  # fmt: skip
    x, y = x.subset(common), y.subset(common)
    of_x, of_y = ({layer: RDM(d) for layer, d in s.distances.items()} for s in (x, y))
    rsa, knn = RSA(dissimilarity="euclidean"), MutualKNN(k=k, similarity="euclidean")
    return _judged("RSA", rsa, x, y, of_x, of_y, options) + _judged(f"MutualKNN(k={k})", knn, x, y, of_x, of_y, options)


def score_layout(points: np.ndarray, x: ColourSpace, y: ColourSpace, options: ColourOptions) -> list[dict[str, Any]]:
    """`Procrustes` distance, in [0, sqrt 2] and 0 at best, of a layout of x from CIELAB, against permutations."""
    laid, target = {f"layout of {x.layout_layer}": as_features(points)}, {"cielab": as_features(x.lab)}
    return _judged("Procrustes", Procrustes(), x, y, laid, target, options)


def _judged(
    label: str, measure: Measure, x: ColourSpace, y: ColourSpace, of_x: Mapping[str, Any], of_y: Mapping[str, Any],
    options: ColourOptions,
) -> list[dict[str, Any]]:  # fmt: skip
    null = Permutations(n_draws=options.n_draws, seed=options.seed)
    a, b = ([measure.prepare(layer) for layer in layers.values()] for layers in (of_x, of_y))
    judged = null.judge(measure, null.prepare(measure, a), null.prepare(measure, b))
    cells = {name: getattr(judged.cells, name) for name in ("statistic", "null_mean", "null_std", "z", "pvalue")}
    numbers = {**cells, "pvalue_layers": judged.found.stepdown, "threshold": judged.cells.threshold}
    return [
        {
            "space_x": x.name, "layer_x": layer_x, "space_y": y.name, "layer_y": layer_y, "n": x.n, "measure": label,
            **{name: float(values[i, j]) for name, values in numbers.items()},
            "null": null.name, "n_draws": judged.n_draws, "seed": options.seed,
        }
        for i, layer_x in enumerate(of_x) for j, layer_y in enumerate(of_y)
    ]  # fmt: skip
