"""Check feature stores, results, or a study's folder that holds both, for damaged and unfinished files.

Every sealed file is held to its seal, every table to its description in run.json, every tile to its name. Nothing here
trusts a byte that it reads: whatever lies in a folder ends as a line about it, never as an exception.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from repalign.comparison.alignment import DRAWS_FILE, RUN_FILE, TABLE_FILE, Alignment
from repalign.comparison.kept import REMEDY, TILES, opened
from repalign.errors import RepalignError
from repalign.files import (
    AGAIN,
    FILES,
    TEMPORARY,
    DamagedError,
    Unreachable,
    Url,
    check_files,
    check_seal,
    open_files,
    parse_parquet,
    place_of,
    read_bytes,
    read_json,
    read_parquet,
    walk,
)
from repalign.store import MARKER, Problem
from repalign.store import check as check_store
from repalign.text import Progress, silent, telling

KEPT = ("findings", "ceilings")  # folders of a result, besides the tiles: what a run goes on from
VARIANTS_FILE, FIGURES_FILE, BITS = "variants.parquet", "files.json", "competence"
SEAL_IT = "it can be used as it is; the same command run again writes it with a seal"
OLD = "was written before such files had seals: nothing shows whether it is whole"


def check(folder: str | os.PathLike[str] | Url, deep: bool = True, progress: Progress = silent) -> list[Problem]:
    """Everything that is wrong in the stores and results under a folder or URL, or in a file of these; empty if nothing is.

    `deep` goes to `repalign.store.check`; results are always read whole.

    Raises RepalignError if there is nothing at this place that repalign writes.
    """
    path = place_of(folder)
    if path.is_file():
        return _guarded(_file, path)
    stores, results = find(path)
    if not stores and not results:
        raise RepalignError(
            f"{path}: no feature store and no result",
            expected=f"a folder with a {MARKER}, a {RUN_FILE}, or finished tiles in it",
            got="nothing of that kind" if path.is_dir() else "no such folder",
            remedy="name the folder that `repalign run` printed",
        )  # fmt: skip
    in_store = functools.partial(check_store, deep=deep, progress=progress)
    problems = [one for store in stores for one in _guarded(in_store, store)]
    for place in telling(results, "checking results", progress):
        problems += _guarded(_result, place)
    return problems


def find(folder: Path | Url) -> tuple[list[Path | Url], list[Path | Url]]:
    """The feature stores under a folder, and the folders that hold something of results."""
    stores, results, kept = [], [], (TILES, *KEPT)
    for here, inside, names in walk(folder):
        if MARKER in names or _holds_parts(here):
            stores.append(here)
            inside.clear()
            continue
        inside.sort()
        written = [here / name for name in names if name.endswith((".json", ".html"))]
        if {TABLE_FILE, DRAWS_FILE, RUN_FILE, VARIANTS_FILE, FIGURES_FILE} & set(names) or TILES in inside:
            results.append(here)
            inside[:] = [name for name in inside if name not in kept]
        elif (here.name == BITS and written) or any(map(_is_sealed, written)):
            results.append(here)
    return stores, results


def _holds_parts(folder: Path | Url) -> bool:
    """Whether it is a store that has lost its marker; behind a URL a store is known by the marker alone."""
    return isinstance(folder, Path) and any(folder.glob("*/*/*/part-*.safetensors"))


def _is_sealed(path: Path | Url) -> bool:
    try:
        return check_seal(read_bytes(path), path)
    except DamagedError:
        return True  # `check` reports it


def _guarded(look: Callable[[Path | Url], Iterable[Problem]], path: Path | Url) -> list[Problem]:
    """Problems found by `look`; if it fails in an unforeseen way, that is the problem."""
    try:
        return list(look(path))
    except DamagedError as error:
        return [Problem(error.path, error.problem, error.remedy)]
    except Unreachable:  # which says nothing of the file
        raise
    except RepalignError as error:
        first, *rest = str(error).splitlines()
        remedy = next((line.removeprefix("  do: ") for line in rest if line.startswith("  do: ")), AGAIN)
        return [Problem(str(path), first.removeprefix(str(path)).lstrip(": "), remedy)]
    except Exception as error:
        return [Problem(str(path), f"cannot be checked: {type(error).__name__}: {error}", AGAIN)]


def _result(folder: Path | Url) -> Iterator[Problem]:
    """A results folder, a folder of figures, or one of bits per byte."""
    there = open_files(folder).listing()
    files = [folder / name for name, size in there.items() if size is not None]
    for path in files:
        if TEMPORARY.match(path.name):
            yield from _cut_off(path)
        elif path.name not in (TABLE_FILE, DRAWS_FILE, RUN_FILE) and path.suffix in (".json", ".parquet", ".html"):
            yield from _guarded(_file, path)
    if {TABLE_FILE, RUN_FILE} & {path.name for path in files}:
        yield from _guarded(_tables, folder)
    elif TILES in there:
        yield Problem(str(folder), "is not finished: there is no table", "run the same command again: it goes on")
    for name in (TILES, *KEPT):  # each under the name that it states; those from before seals no run reads
        for path in sorted((folder / name).iterdir()) if name in there else ():
            look = _cut_off if TEMPORARY.match(path.name) else _tiles if name == TILES else _file
            found = (problem for problem in _guarded(look, path) if problem.problem != OLD)
            yield from (problem if look is _cut_off else replace(problem, remedy=REMEDY) for problem in found)


def _cut_off(path: Path | Url) -> Iterator[Problem]:
    if open_files(path.parent).is_abandoned(path.name):
        yield Problem(str(path), "is a half-written file of a run that was cut off", "run again, or delete it")


def _tables(folder: Path | Url) -> Iterator[Problem]:
    """The files of which run.json speaks; an alignment is loaded as every reader loads it."""
    run, has_seal = read_json(folder / RUN_FILE, AGAIN)
    if "what" not in run:  # which another experiment than an alignment says of itself
        Alignment.load(folder)
    elif has_seal:
        check_files(folder, run[FILES])
    if not has_seal:
        yield Problem(str(folder / RUN_FILE), OLD, SEAL_IT)


def _tiles(path: Path | Url) -> Iterator[Problem]:
    data = read_bytes(path)
    if path.suffix == ".parquet" and not parse_parquet(data, path, REMEDY)[2]:
        yield Problem(str(path), OLD, SEAL_IT)
    else:
        opened(data, path, path.name)


def _file(path: Path | Url) -> Iterator[Problem]:
    """One file by itself: its seal, and if it speaks of others, theirs."""
    if path.suffix == ".parquet":
        _, about, has_seal = read_parquet(path)
        if path.name == VARIANTS_FILE and has_seal:
            if FILES not in about:
                raise DamagedError(path, "is not the table of all variants")
            check_files(path.parent, json.loads(about[FILES]), path.name)
    elif path.suffix == ".html":
        check_seal(read_bytes(path), path)
        return  # a page without one is of an earlier version, or somebody else's
    elif path.suffix == ".json":
        value, has_seal = read_json(path)
        if path.parent.name in KEPT and has_seal and value.get("key") != path.stem:
            raise DamagedError(path, f"is not the file of this name: it is {value.get('key')!r}")
        entry = FILES if path.name == FIGURES_FILE else "kind" if path.parent.name == BITS else None
        if has_seal and entry is not None and entry not in value:
            raise DamagedError(path, f"is another file: it has no entry {entry!r}")
        if has_seal and isinstance(value.get(FILES), dict):
            check_files(path.parent, value[FILES], path.name)
    else:
        raise RepalignError(f"{path} is no file that repalign seals", expected="a folder, or a .parquet or .json file")
    if not has_seal:
        yield Problem(str(path), OLD, SEAL_IT)
