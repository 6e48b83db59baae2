"""All layers of many models against all layers of many others, each against chance.

Work is done once per layer (states, and whatever the null keeps beside them), held in a cache bounded in
bytes; a tile is one measure on one pair of models, a pure function of two representations, and the unit of
resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from repalign import null as nulls
from repalign.comparison._ceilings import seed_to_seed, split_halves
from repalign.comparison.alignment import Alignment
from repalign.comparison.applicable import LIMIT, choose
from repalign.comparison.cache import Cache, Settings, default_memory
from repalign.comparison.describe import Examination, across_pairs, describe_run, search_draws
from repalign.comparison.preprocess import Preprocess
from repalign.comparison.streamed import check_memory, is_streamed
from repalign.comparison.tiles import Scored, Tile, compute_tile, pairs_of, run_tiles
from repalign.errors import RepalignError
from repalign.features import Reading, join, read_features
from repalign.files import sweep
from repalign.layers import FEATURES, kind_of
from repalign.measures import Group, parse_measure
from repalign.measures.measure import Measure, as_layer
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation, Representation, check_same_dataset
from repalign.text import Progress, silent

__all__ = [
    "DEFAULT_MEASURES",
    "LIMIT",
    "Cache",
    "Scored",
    "Settings",
    "Tile",
    "compare",
    "compute_tile",
    "default_measures",
    "default_memory",
    "pair",
]

DEFAULT_MEASURES = ("MutualKNN(k=10)", "CKA()")


def default_measures(kinds: Iterable[str]) -> list[str]:
    """What layers of these kinds are compared by where no measure is named: `DEFAULT_MEASURES`, of RDMs RSA for CKA."""
    kinds = set(kinds)
    taking = [m for m in (*DEFAULT_MEASURES, "RSA()") if kinds <= parse_measure(m).accepts]
    return taking[: len(DEFAULT_MEASURES)]


def compare(
    x: Sequence[Representation],
    y: Sequence[Representation] | None = None,
    measures: Sequence[Measure | Group | str] | None = None,
    null: nulls.Null | str = "auto",
    *,
    search: str | None = None,
    alpha: float = 0.05,
    preprocess: Preprocess | None = None,
    results: str | Path | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    memory: int | None = None,
    replicates: Sequence[tuple[Representation, Representation]] = (),
    split_half: int = 0,
    limit: float = LIMIT,
    progress: Progress = silent,
    describe: Mapping[str, Any] | None = None,
) -> Alignment:
    """Compare every layer of every model of `x` with every layer of every model of `y`.

    Parameters
    ----------
    x, y : representations of one dataset. Without `y`, all models of `x` against each other.
    measures : measures or their names, for instance ``MutualKNN(k=10)`` or ``"CKA()"``; "all" or a family ("kernel")
        stands for all of its measures that apply, the others are listed in the run's `left_out` with the reason. Without,
        `DEFAULT_MEASURES`; RSA instead of one that does not take a layer as it is given.
    null : a null or its name; "auto" takes closed-form moments for every cell of a bilinear measure and the exact
        cyclic group for the search over its layers (n >= 200), and 199 random permutations otherwise.
    search : how the layers are searched, for instance "studentised" (default), "raw" (the published maximum),
        "studentised top-5", "matching" (see `null.Search`).
    alpha : level of the threshold, and so of the calibrated score.
    preprocess : applied to all layers of a model before measuring; nothing by default.
    results : a folder. Finished tiles are kept there, so that a killed run resumes with the missing ones.
    executor : any `concurrent.futures.Executor`; tiles are then computed there.
    memory : bytes for prepared states; a quarter of the machine's by default.
    replicates : pairs of two trainings of one model; their alignment stands in the run's `ceilings`.
    limit : seconds that a measure of "all" or of a family may take, by trial; above it 19 permutations are drawn
        instead of all, or it is left out, and the run says so.
    split_half : this many random halvings of the stimuli per pair of models, for the same (`ceilings.split_half`).
    describe : extra entries for the run's description (`name`, `study`, `dataset`, `warnings`).

    Returns
    -------
    Alignment, saved in `results` if given.

    Raises
    ------
    RepalignError : datasets differ, names repeat, a measure is unknown or undefined at this n, or a layer
        holds NaN; the message names the model and the layer.
    """
    x = list(x)
    y = None if y is None else list(y)
    everything = [*x, *(y or ()), *(r for both in replicates for r in both)]
    if not x or y == []:
        raise RepalignError("nothing to compare", expected="at least one model on each side", got="none")
    check_same_dataset(everything)
    _check_names(everything)
    for r in everything:
        (preprocess or Preprocess()).check({f"{r.name}, layer {layer}": r.kind(layer) for layer in r.layers})
    null = nulls.make_null(null) if isinstance(null, str) else null
    n = everything[0].n
    kinds = {kind for r in everything for kind in r.kinds}
    chosen = choose(default_measures(kinds) if measures is None else measures, x, y, null, limit, progress)
    how = _layer_search(search, null)
    folder = None if results is None else Path(results)
    for place in () if folder is None else (folder, *(folder / name for name in ("tiles", "findings", "ceilings"))):
        sweep(place)
    examination = Examination(everything, folder)

    budget = default_memory() if memory is None else memory
    plain = (preprocess is None or preprocess.is_identity) and kinds == {FEATURES}

    def settings(measure: Measure) -> Settings:
        streamed = is_streamed(measure, null, plain, n)
        if not streamed:
            check_memory(measure, n, max(budget, 4 * default_memory()))
        return Settings(chosen.nulls[measure], how, alpha, preprocess or Preprocess(), device, streamed)

    measures = list(chosen.nulls)
    _check_measures(measures)
    how_to = {m: settings(m) for m in measures}
    tiles = [Tile(a, b, m, how_to[m], streams) for m in measures for a, b, streams in pairs_of(x, y, m)]
    if not tiles:
        raise RepalignError("nothing to compare", expected="two models, or one on each side", got=f"{len(x)} model")
    scored = run_tiles(tiles, folder, executor, budget, progress, examination.look)
    table = across_pairs(tiles, scored)
    run = describe_run(x, y, tiles, null, examination.findings(progress), table, describe or {})
    twins = [Tile(a, b, m, how_to[m]) for m in measures for a, b in replicates]
    run["left_out"] = chosen.left_out
    run["warnings"] = [*chosen.warnings, *run["warnings"]]
    run["ceilings"] = [
        *seed_to_seed(twins, run_tiles(twins, folder, executor, budget, progress, examination.look) if twins else []),
        *split_halves(tiles if split_half else [], split_half, folder, progress),
    ]
    alignment = Alignment(table, run, search_draws(tiles, scored))
    if folder is not None:
        alignment.save(folder)
    return alignment


def _layer_search(search: str | None, null: nulls.Null) -> str:
    """The search in full words: the studentised maximum, or the first that the null allows."""
    allowed = null.searches
    if search is None:
        return allowed[0] if allowed else str(nulls.Search())
    how = str(nulls.Search.parse(search))
    if allowed and how not in allowed:
        raise RepalignError(
            f"null {null.name!r} has no layer search {how!r}", expected=" or ".join(allowed), got=search
        )
    return how


def pair(
    x: Any,
    y: Any,
    measures: Sequence[Measure | Group | str] | Measure | str | None = None,
    null: nulls.Null | str = "auto",
    *,
    names: tuple[str, str] = ("x", "y"),
    ids: Sequence[Any] | str | None = None,
    rows: bool = False,
    **options: Any,
) -> Alignment:
    """Compare two models given as arrays, frames or files; the rule for all of them is that of `repalign.features`.

    `x` and `y` are (n, d) arrays (numpy or torch), frames, mappings from layer name to these, lists of them, paths of files, or
    what `read_features` gives. In the place of any array may stand dissimilarities or a kernel as such: `RDM(array)` or
    `Kernel(array)` of (n, n), or of (m, n, n), which are m layers. Layers of one model may be of several kinds, as long as the
    measure takes all of them: RSA of an RDM with features compares it with the RDM that the measure makes of these.
    Rows are joined on ids where both have some: a text or named index, what is called `id` or `ids`. `ids` names the column or
    array that holds them, or is a list of the ids of all rows, for both; `rows` pairs row i with row i whatever ids there are.
    The run's `how` says what was read, how rows were paired and what was left out. `options` go to `compare`.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((300, 20))
    >>> result = pair(x, x @ rng.standard_normal((20, 30)), measures=["CKA()"])
    >>> bool(result.best()["pvalue"][0] < 0.01)
    True
    >>> result.run["how"][0]
    'row i of one is paired with row i of the other: nothing names the rows'
    """
    if isinstance(measures, (str, Measure)):
        measures = [measures]
    found = join([read_features(source, Reading(ids, rows), name=name) for source, name in zip((x, y), names, strict=True)])
    both = [in_memory(layers, name, found.ids) for layers, name in zip(found.layers, names, strict=True)]
    describe = {**(options.pop("describe", None) or {}), "how": list(found.how)}
    return compare([both[0]], [both[1]], measures, null, describe=describe, **options)


def in_memory(layers: Mapping[str, Any], name: str, ids: Sequence[str] | None) -> MemoryRepresentation:
    """Layers of a model that is called `name`; rows without ids are numbered."""
    arrays = {k: as_layer(v, name if len(layers) == 1 and k == "features" else f"{name}, layer {k}") for k, v in layers.items()}
    n = len(next(iter(arrays.values())))
    given = tuple(map(str, range(n))) if ids is None else tuple(ids)
    record = ModelRecord(spec=f"array:{name}", name=name, modality="array")
    kinds = {k: kind_of(v) for k, v in arrays.items() if kind_of(v) != FEATURES}
    fingerprint = f"rows:{n}" if ids is None else hashlib.sha256("\n".join(given).encode()).hexdigest()
    return MemoryRepresentation(record, given, arrays, "arrays", fingerprint, {"kinds": kinds} if kinds else {})


def _check_measures(measures: Sequence[Measure]) -> None:
    names = [repr(m) for m in measures]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        classes = [
            f"{type(m).__module__}.{type(m).__qualname__}"
            for m, name in zip(measures, names, strict=True)
            if name == twice
        ]
        raise RepalignError(
            f"two measures are called {twice}",
            expected="one name per measure: it is what the table says",
            got=" and ".join(classes),
            remedy="rename one of the classes",
        )


def _check_names(representations: Sequence[Representation]) -> None:
    seen: dict[str, Representation] = {}
    for r in representations:
        other = seen.setdefault(r.name, r)
        if other.key != r.key:
            raise RepalignError(
                f"two models are called {r.name!r}",
                expected="one name per model",
                got=f"{other.record.spec} and {r.record.spec}",
                remedy="give one of them another `name`",
            )
