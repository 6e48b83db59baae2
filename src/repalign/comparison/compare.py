"""All layers of many models against all layers of many others, each against chance."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import repalign
import repalign.null as nulls
from repalign.comparison.alignment import ASKED, ENDS, RUN_FILE, Alignment
from repalign.comparison.applicable import applicable
from repalign.comparison.ceilings import check_halves, group_labels, seed_to_seed, split_halves
from repalign.comparison.described import across_pairs, describe_run, machine, mixed, programs, ways
from repalign.comparison.doctor import Examination
from repalign.comparison.kept import TILES, Kept
from repalign.comparison.preprocess import Preprocess
from repalign.comparison.tiles import (
    Settings,
    Tile,
    identity,
    pairs_of,
    side_of,
    versions,
)
from repalign.comparison.work import run_share, run_tiles
from repalign.errors import RepalignError
from repalign.features import SUFFIXES, Reading, feature_files, is_features, join, read_features
from repalign.files import Url, open_files, path_sha256, place_of, read_json
from repalign.layers import FEATURES, kind_of
from repalign.measures import Group, parse_measure, parse_wanted
from repalign.measures.measure import Measure, as_layer
from repalign.models import ModelRecord
from repalign.representation import DEFAULT_MEMORY, MemoryRepresentation, Representation, check_same_dataset
from repalign.text import Progress, silent
from repalign.workers import Share

# Models of one side: by name, paths, or representations.
Models = Mapping[str, Any] | Sequence[Representation | str | Path] | str | Path
DEFAULT_MEASURES = ("MutualKNN(k=10)", "CKA()")
PACKAGE = Path(repalign.__file__).parent


def default_measures(kinds: Iterable[str]) -> list[str]:
    """Measures for layers of these kinds if none is named: `DEFAULT_MEASURES`, with RSA in place of CKA for RDMs."""
    kinds = set(kinds)
    taking = [m for m in (*DEFAULT_MEASURES, "RSA()") if kinds <= parse_measure(m).accepts]
    return taking[: len(DEFAULT_MEASURES)]


def compare(
    x: Models,
    y: Models | None = None,
    measures: Sequence[Measure | Group | str] | Measure | Group | str | None = None,
    null: nulls.Null | str = nulls.Auto(),  # noqa: B008  (frozen)
    *,
    ids: Sequence[Any] | str | None = None,
    rows: bool = False,
    search: str | None = None,
    alpha: float = 0.05,
    preprocess: Preprocess | None = None,
    results: str | Path | Url | None = None,
    executor: Executor | None = None,
    device: str = "cpu",
    memory: int | None = None,
    replicates: Sequence[tuple[Representation, Representation]] = (),
    split_half: int = 0,
    limit: float | None = None,
    progress: Progress = silent,
    describe: Mapping[str, Any] | None = None,
) -> Alignment:
    """Compare every layer of every model of `x` with every layer of every model of `y`.

    Parameters
    ----------
    x, y : models of one dataset: a mapping from names to arrays, frames, lists or mappings of layers, or files, as `pair` takes
        them (a folder is one model, each of its files a layer); paths of files, or of folders in which every file is a model; or
        representations. Without `y`, all models of `x` against each other.
    ids, rows : of arrays and files, how their rows are paired, as in `pair`.
    measures : measures or their names, for instance ``MutualKNN(k=10)`` or ``"CKA()"``; "all" or a family ("kernel")
        stands for all of its measures that apply, the others are listed in the run's `left_out` with the reason. Without,
        `DEFAULT_MEASURES`; RSA instead of one that does not take a layer as it is given.
    null : a null or its name; "auto" takes closed-form moments for every cell of a bilinear measure and the exact
        cyclic group for the search over its layers (n >= 200), and 199 random permutations otherwise.
    search : how the layers are searched, for instance "studentised" (default), "raw" (the published maximum),
        "studentised top-5", "matching" (see `null.Search`).
    alpha : level of the threshold, and so of the calibrated score.
    preprocess : applied to all layers of a model before measuring; nothing by default.
    results : a folder, or an fsspec URL. Finished tiles are kept there, so that a killed run resumes with the missing ones.
    executor : any `concurrent.futures.Executor`; tiles are then computed there.
    device : where layers are prepared and compared, "cpu", "cuda", "cuda:1" and so on; "auto" is a CUDA GPU where there is one.
        An Apple GPU has no float64, in which sums and near ties are settled: where "mps" is asked for the CPU is taken, and the
        run says so.
    memory : bytes for prepared states; a quarter of the machine's by default.
    replicates : pairs of two trainings of one model; their alignment stands in the run's `ceilings`.
    limit : seconds that a measure may take, by trial; above it 19 permutations are drawn instead of all, or it is left out, and
        the run says so. Without one a measure of "all" or of a family has 30, and one that is named is computed in full: what it
        costs, and the remedy, are told before it starts. 0 is no limit, for any.
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
    asked = _asked(
        x, y, measures, null, Reading(ids, rows), search=search, alpha=alpha, preprocess=preprocess, results=results, device=device,
        memory=memory, replicates=replicates, limit=limit,
    )  # fmt: skip
    describe, digest = {**({"how": asked.how} if asked.how else {}), **(describe or {})}, ""
    if asked.folder is not None:
        digest = question_of(asked, split_half, describe, executor)
        if (finished := finished_result(asked.folder, digest, progress)) is not None:
            return finished
    planned = _planned(asked, progress)
    tiles, chosen = planned.tiles, planned.chosen
    if split_half:
        check_halves(tiles, group_labels(asked.null))
    done = run_tiles(
        [*tiles, *planned.twins], planned.kept, executor, asked.memory, progress, planned.examination, chosen.seconds
    )
    scored, of_twins = done[: len(tiles)], done[len(tiles) :]

    table = across_pairs(tiles, scored)
    run = describe_run(asked.x, asked.y, tiles, asked.null, table, describe, executor)
    run |= {"findings": planned.examination.all(progress), "left_out": chosen.left_out, "ceilings": []}
    run["warnings"] = [*asked.told, *chosen.warnings, *mixed(asked.x, asked.y, done), *run["warnings"]]
    run["ways"] = ways(tiles, scored) if any(t.settings.way for t in tiles) else {}
    if planned.twins or split_half:
        halves = split_halves(tiles if split_half else [], split_half, asked.null, asked.folder, asked.memory, progress)
        run["ceilings"] = [*seed_to_seed(planned.twins, of_twins), *halves]
    names = table.loc[table["scope"] == "max", list(ENDS)].reset_index(drop=True)
    alignment = Alignment(table, run, names.assign(draws=[s.draws for s in scored]))
    if asked.folder is not None:
        replace(alignment, run={**run, ASKED: digest}).save(asked.folder)
    return alignment


def compare_share(
    share: Share, x: Models, y: Models | None = None,
    measures: Sequence[Measure | Group | str] | Measure | Group | str | None = None,
    null: nulls.Null | str = nulls.Auto(),  # noqa: B008  (frozen)
    *, results: str | Path | Url, executor: Executor | None = None, progress: Progress = silent, **options: Any,
) -> tuple[int, int, tuple[int, ...]]:  # fmt: skip
    """Do one share of what `compare` of the same arguments does, and keep it in `results`.

    Gives how many groups of comparisons are missing then, of how many, and the shares in which they are. When none is, `compare`
    finds all of them there. `split_half` and `describe` are of `compare` alone.
    """
    about = {k: v for k, v in options.items() if k not in ("split_half", "describe", "ids", "rows")}
    reading = Reading(options.get("ids"), options.get("rows", False))
    asked = _asked(x, y, measures, null, reading, results=results, **about)
    planned = _planned(asked, progress)
    assert planned.kept is not None
    missing, of = run_share(
        share, [*planned.tiles, *planned.twins], planned.kept, executor, asked.memory, progress, planned.examination
    )
    return len(missing), of, share.owners(missing, of)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What `compare` is asked, read and found to be right. `told` is what a reader must know, `how` how rows were paired."""

    x: list[Representation]
    y: list[Representation] | None
    measures: Sequence[Measure | Group | str]
    null: nulls.Null
    search: str | None
    alpha: float
    preprocess: Preprocess | None
    device: str
    replicates: Sequence[tuple[Representation, Representation]]
    limit: float | None
    folder: Path | Url | None
    kinds: dict[str, str]
    memory: int
    how: list[str]
    told: list[str]


@dataclass(frozen=True, eq=False)
class _Planned:
    """What is to be compared: every tile, and what is known before any is computed."""

    tiles: list[Tile]
    twins: list[Tile]  # of two trainings of one model
    chosen: Any
    examination: Examination
    kept: Kept | None


def _asked(
    x: Models, y: Models | None, measures: Any, null: nulls.Null | str, reading: Reading, *, search: str | None = None,
    alpha: float = 0.05, preprocess: Preprocess | None = None, results: str | Path | Url | None = None, device: str = "cpu",
    memory: int | None = None, replicates: Sequence[tuple[Representation, Representation]] = (), limit: float | None = None,
) -> _Asked:  # fmt: skip
    """The arguments of `compare`. Raises RepalignError for what is wrong with them."""
    if isinstance(measures, (str, Measure, Group)):
        measures = [measures]
    (x, *others), how = as_models([x] if y is None else [x, y], reading)
    y = others[0] if others else None
    models = [*x, *(y or ()), *(r for both in replicates for r in both)]
    if not x or y == []:
        raise RepalignError("nothing to compare", expected="at least one model on each side", got="none")
    check_same_dataset(models)
    by_name: dict[str, Representation] = {}
    for r in models:
        other = by_name.setdefault(r.name, r)
        if other is not r and other.key != r.key:
            specs = f"{other.record.spec} and {r.record.spec}"
            remedy = "give one of them another `name`"
            raise RepalignError(f"two models are called {r.name!r}", expected="one name per model", got=specs, remedy=remedy)
    preprocess = None if preprocess is None or preprocess.is_identity else preprocess
    kinds = {f"{r.name}, layer {layer}": r.kinds[layer] for r in models for layer in r.layers}
    if preprocess is not None:
        preprocess.check(kinds)
    null = nulls.make_null(null) if isinstance(null, str) else null
    device, of_device = _device_of(device)
    budget = DEFAULT_MEMORY if memory is None else memory
    measures = default_measures(kinds.values()) if measures is None else measures
    folder = None if results is None else place_of(results)
    for place in () if folder is None else (folder, *(folder / name for name in (TILES, "findings", "ceilings"))):
        open_files(place).sweep()
    return _Asked(
        x, y, measures, null, search, alpha, preprocess, device, replicates, limit, folder, kinds, budget, how, of_device
    )  # fmt: skip


def _planned(asked: _Asked, progress: Progress) -> _Planned:
    """The work of `compare`. Raises RepalignError for measures that cannot be computed here."""
    x, y, plain = asked.x, asked.y, asked.preprocess is None and set(asked.kinds.values()) == {FEATURES}
    chosen = applicable(
        asked.measures, x, y, asked.null, asked.kinds, plain=plain, search=asked.search,
        memory=max(asked.memory, 4 * DEFAULT_MEMORY), limit=asked.limit, progress=progress, device=asked.device,
    )  # fmt: skip
    settings = {
        m: Settings(used, chosen.search, asked.alpha, asked.preprocess, asked.device, way.name)
        for m, (way, used) in chosen.how.items()
    }
    tiles = [Tile(a, b, m, s, streams) for m, s in settings.items() for a, b, streams in pairs_of(x, y, m)]
    twins = [Tile(a, b, m, s) for m, s in settings.items() for a, b in asked.replicates]
    if not tiles:
        raise RepalignError("nothing to compare", expected="two models, or one on each side", got=f"{len(x)} model")
    models = [*x, *(y or ()), *(r for both in asked.replicates for r in both)]
    kept = None if asked.folder is None else Kept(open_files(asked.folder))
    return _Planned(tiles, twins, chosen, Examination(models, asked.folder), kept)


def pair(
    x: Any, y: Any, measures: Sequence[Measure | Group | str] | Measure | Group | str | None = None,
    null: nulls.Null | str = nulls.Auto(),  # noqa: B008  (frozen)
    *, names: tuple[str, str] = ("x", "y"), ids: Sequence[Any] | str | None = None, rows: bool = False,
    interval: str | None = None, **options: Any,
) -> Alignment:  # fmt: skip
    """Compare two models given as arrays, frames or files; `repalign.features` states the one rule for all of them.

    `x` and `y` are (n, d) arrays (numpy or torch), frames, mappings from layer name to these, lists of them, paths of files, or
    what `read_features` gives. In the place of any array may stand dissimilarities or a kernel as such: `RDM(array)` or
    `Kernel(array)` of (n, n), or of (m, n, n), which are m layers. Layers of one model may be of several kinds, as long as the
    measure takes all of them: RSA of an RDM with features compares it with the RDM that the measure makes of these.
    Rows are joined on ids where both have some: a text or named index, what is called `id` or `ids`. `ids` names the column or
    array that holds them, or is a list of the ids of all rows, for both; `rows` pairs row i with row i whatever ids there are.
    The run's `how` says what was read, how rows were paired and what was left out. `interval` adds the 95 % interval over stimuli
    at the best pair of layers: "jackknife", "subsample", or "auto", the right one for each measure (`comparison.intervals`).
    `options` go to `compare`.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((300, 20))
    >>> result = pair(x, x @ rng.standard_normal((20, 30)), measures=["CKA()"])
    >>> bool(result.best()["pvalue"][0] < 0.01)
    True
    >>> result.run["how"][0]
    'row i of one is paired with row i of the other: nothing names the rows'
    """
    ((one,), (other,)), how = as_models([{names[0]: x}, {names[1]: y}], Reading(ids, rows))
    describe = {"how": how, **(options.pop("describe", None) or {})}
    found = compare([one], [other], measures, null, describe=describe, **options)
    if interval is not None:
        from repalign.comparison.intervals import with_intervals

        about = {k: options[k] for k in ("preprocess", "progress") if k in options}
        found = with_intervals(found, one, other, interval, nulls.make_null(null) if isinstance(null, str) else null, **about)
        if options.get("results") is not None:
            found.save(options["results"])
    return found


def as_models(sides: Sequence[Models], reading: Reading) -> tuple[list[list[Representation]], list[str]]:
    """The models of all sides, with paired rows, and what was read, in words; none for representations.

    Raises RepalignError for what is no model, and where representations and other things meet.
    """
    kept = [list(side) if not isinstance(side, (Mapping, str, Path)) else side for side in sides]
    every = [one for side in kept for one in (side if isinstance(side, list) else [side])]
    if all(isinstance(one, Representation) for one in every):
        return kept, []  # type: ignore[return-value]
    named = [dict(side) if isinstance(side, Mapping) else model_files(side) for side in kept]
    sources = [(i, name, *one) for i, side in enumerate(named) for name, given in side.items() for one in _parts(given)]
    if not sources:
        return [[] for _ in sides], []
    found = join([read_features(one, reading, name=f"{name}, {part}" if part else name) for _, name, part, one in sources])
    layers: list[dict[str, dict[str, Any]]] = [{} for _ in sides]
    for (i, name, part, _), some in zip(sources, found.layers, strict=True):
        own = {part if len(some) == 1 else f"{part}.{k}": v for k, v in some.items()} if part else some
        layers[i].setdefault(name, {}).update(own)
    return [[in_memory(some, name, found.ids) for name, some in side.items()] for side in layers], list(found.how)


def model_files(side: Any) -> dict[str, Path]:
    """Files by their names; a folder stands for all files of features in it. Of equal names the whole path is the name."""
    given = [side] if isinstance(side, (str, Path)) else side
    if others := [type(one).__name__ for one in given if not isinstance(one, (str, Path))]:
        raise RepalignError(
            "this is no list of models", expected="representations, or paths; arrays have names: {'mine': x, 'theirs': y}",
            got=others[0],
        )  # fmt: skip
    paths = [file for one in given for file in _files_in(Path(one))]
    stems = Counter(path.stem for path in paths)
    return {path.stem if stems[path.stem] == 1 else str(path): path for path in paths}


def _parts(given: Any) -> list[tuple[str, Any]]:
    """What a model is read from, each with the name of a layer: one thing without a name, or the files of a folder."""
    if isinstance(given, (str, Path)) and Path(given).is_dir() and not is_features(Path(given)):
        return [(path.stem, path) for path in _files_in(Path(given))]
    return [("", given)]


def _files_in(path: Path) -> list[Path]:
    """The files of features in a folder, by name; a file is itself."""
    if not path.exists():
        raise RepalignError(f"{path}: there is no such file or folder", expected="files of features, or folders of these")
    if is_features(path) or not path.is_dir():
        return [path]
    files = feature_files(path)
    if not files:
        raise RepalignError(f"{path}: no file of features in this folder", expected=" ".join(SUFFIXES), got="none")
    return files


def in_memory(layers: Mapping[str, Any], name: str, ids: Sequence[str] | None) -> MemoryRepresentation:
    """Layers of a model that is called `name`; rows without ids are numbered."""
    arrays = {k: as_layer(v, name if len(layers) == 1 and k == "features" else f"{name}, layer {k}") for k, v in layers.items()}
    n = len(next(iter(arrays.values())))
    given = tuple(map(str, range(n))) if ids is None else tuple(ids)
    record = ModelRecord(spec=f"array:{name}", name=name, modality="array")
    kinds = {k: kind_of(v) for k, v in arrays.items() if kind_of(v) != FEATURES}
    fingerprint = f"rows:{n}" if ids is None else hashlib.sha256("\n".join(given).encode()).hexdigest()
    return MemoryRepresentation(record, given, arrays, "arrays", fingerprint, {"kinds": kinds} if kinds else {})


def _device_of(asked: str) -> tuple[str, list[str]]:
    """The device that computes, and what is to be said of it."""
    if asked == "cpu":
        return asked, []
    from repalign.sources import choose_device

    device = choose_device(asked)
    if not device.startswith("mps"):
        return device, []
    said = "compared on the CPU: an Apple GPU has no float64, in which measures settle sums and near ties"
    return "cpu", [] if asked == "auto" else [said]


# --- a result that is there already --------------------------------------------------------------


def question_of(asked: _Asked, split_half: int, describe: Mapping[str, Any], executor: Executor | None) -> str:
    """A digest of all that a result and its description follow from: what is compared and how, this program and this machine.

    The keys of all tiles follow from it, and cost many times as much.
    """
    sides = [
        None if side is None else [[*side_of(r), r.widths, asdict(r.record), dict(r.facts)] for r in side]
        for side in (asked.x, asked.y)
    ]
    twins = [[side_of(r) for r in both] for both in asked.replicates]
    measures = [parse_wanted(m) if isinstance(m, str) else m for m in asked.measures]
    how = identity(measures, asked.null, asked.search, asked.alpha, asked.preprocess, asked.device, asked.told, asked.limit)
    facts = [versions(), _code(), programs(), machine(executor), sides, twins, split_half, how, describe]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """A digest of this program, so that what it says is never older than it."""
    return path_sha256(PACKAGE, PACKAGE.rglob("*.py"))


def finished_result(folder: Path | Url, asked: str, progress: Progress) -> Alignment | None:
    """The result in a folder if it is the answer to this question and whole. Then no tile is looked at."""
    try:
        run, has_seal = read_json(folder / RUN_FILE)
        if not has_seal or run.get(ASKED) != asked or "intervals" in run:  # which a later step has added
            return None
        found = Alignment.load(folder)
    except RepalignError:  # it is written anew
        return None
    n = int((found.table["scope"] == "max").sum())
    progress("compare", n, n, f"{n:,} of {n:,} parts were done in an earlier run, and are taken")
    return found
