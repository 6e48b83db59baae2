"""Checking a whole store: every file in it, and in words what is broken and what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repalign.errors import RepalignError
from repalign.progress import Progress, silent
from repalign.store._files import TEMPORARY, Files
from repalign.store._manifest import (
    MANIFEST,
    PART,
    difference,
    folder_of,
    identity_of_header,
    identity_of_manifest,
    read_manifest,
    shown,
)
from repalign.store._part import BrokenError, Head, read_head, verify
from repalign.store._store import MARKER, FeatureStore

AGAIN = "delete it and run the extraction again: only what is missing is computed"
FOREIGN = "move it out of the store; repalign does not read it"


@dataclass(frozen=True)
class Problem:
    """Something in a store that is not as it should be: where, what, and what to do."""

    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path} {self.problem}\n  do: {self.remedy}"


def check(url: str | os.PathLike[str], deep: bool = True, progress: Progress = silent) -> list[Problem]:
    """Everything that is wrong in a store, in the order of the folders; an empty list if nothing is.

    `deep` reads every byte; without it headers, sizes and names are checked, not the contents.

    Raises RepalignError if there is no store at this place.
    """
    store = FeatureStore(url)
    if not store.files.exists() or store.files.size(MARKER) is None:
        raise RepalignError(
            f"there is no feature store at {store.url}", expected=f"a folder with a {MARKER} in it"
        )
    folders = list(store.folders())
    total = sum(1 for f in folders for name in store.files.listing(f) if PART.match(name))
    counter = _Counter(progress, f"checking {store.url}", total)
    problems = _strangers(store.files)
    for folder in folders:
        problems += _Folder(store.files, folder, deep, counter).problems()
    counter.end()
    return problems


class _Counter:
    def __init__(self, progress: Progress, task: str, total: int) -> None:
        self.progress, self.task, self.total, self.done = progress, task, total, 0
        progress(task, 0, total)

    def step(self) -> None:
        self.done += 1
        if self.done < self.total:
            self.progress(self.task, self.done, self.total)

    def end(self) -> None:
        if self.total:
            self.progress(self.task, self.total, self.total)


def _strangers(files: Files) -> list[Problem]:
    """What does not belong at the three upper levels."""
    found: list[Problem] = []
    folders = [""]
    for _ in range(3):
        below = []
        for folder in folders:
            for name, size in files.listing(folder).items():
                full = f"{folder}/{name}" if folder else name
                if size is None:
                    below.append(full)
                elif full != MARKER:
                    found += _stranger(files, full)
        folders = below
    return found


def _stranger(files: Files, name: str) -> list[Problem]:
    if TEMPORARY.match(name.rpartition("/")[2]):
        if not files.is_stale(name):
            return []  # somebody is writing it now
        return [Problem(files.path(name), "is a half-written file of a run that was cut off", "delete it")]
    return [Problem(files.path(name), "does not belong in a feature store", FOREIGN)]


class _Folder:
    """The check of one extraction."""

    def __init__(self, files: Files, folder: str, deep: bool, counter: _Counter) -> None:
        self.files, self.folder, self.deep, self.counter = files, folder, deep, counter
        self.heads: dict[str, Head] = {}
        self.digests: dict[str, str] = {}
        self.broken: set[str] = set()

    def problems(self) -> list[Problem]:
        names = self.files.listing(self.folder)
        found: list[Problem] = []
        for name in names:
            if PART.match(name):
                found += self._part(name)
                self.counter.step()
            elif name != MANIFEST:
                found += _stranger(self.files, f"{self.folder}/{name}")
        try:
            manifest = read_manifest(self.files, self.folder)
        except RepalignError as error:
            return [*found, self._problem(MANIFEST, f"is not a manifest: {error.__cause__}", AGAIN)]
        found += self._unfinished() if manifest is None else self._manifest(manifest)
        return found

    def _problem(self, name: str, problem: str, remedy: str) -> Problem:
        return Problem(self.files.path(f"{self.folder}/{name}" if name else self.folder), problem, remedy)

    def _part(self, name: str) -> list[Problem]:
        full = f"{self.folder}/{name}"
        try:
            if self.deep:
                verified = verify(self.files, full)
                self.heads[name], self.digests[name] = verified.head, verified.sha256
            else:
                self.heads[name] = read_head(self.files, full)
        except (BrokenError, RepalignError) as error:
            self.broken.add(name)
            return [self._problem(name, str(error), AGAIN)]
        return self._place(name, identity_of_header(self.heads[name].header))

    def _place(self, name: str, stated: Mapping[str, Any]) -> list[Problem]:
        """A file states what it is of, and that says where it belongs."""
        home = folder_of(
            stated["dataset_fingerprint"], stated["spec"], stated["revision"], stated["settings"]
        )
        if home == self.folder:
            return []
        return [self._problem(name, f"is of another extraction: it belongs in {home}", FOREIGN)]

    def _unfinished(self) -> list[Problem]:
        heads = list(self.heads.values())
        if not heads:
            state = "no part is whole"
        else:
            rows = sum(h.header["rows"][1] - h.header["rows"][0] for h in heads)
            state = f"{rows} of {heads[0].header['n']} rows are there"
        remedy = "run the extraction again: it goes on where it stopped; or delete the folder"
        return [self._problem("", f"is not complete: there is no {MANIFEST}, {state}", remedy)]

    def _manifest(self, manifest: Mapping[str, Any]) -> list[Problem]:
        found = self._place(MANIFEST, identity_of_manifest(manifest))
        names = [part["file"] for part in manifest["parts"]]
        for part in manifest["parts"]:
            found += self._listed(manifest, part)
        for name in self.heads:
            if name not in names:
                found.append(self._problem(name, "is not in the manifest", FOREIGN))
        rows = [part["rows"] for part in manifest["parts"]]
        starts, stops = [r[0] for r in rows], [r[1] for r in rows]
        if manifest["n"] != len(manifest["ids"]) or [0, *stops] != [*starts, manifest["n"]]:
            what = f"does not cover its rows: n is {manifest['n']}, {len(manifest['ids'])} ids, parts {rows}"
            found.append(self._problem(MANIFEST, what, AGAIN))
        return found

    def _listed(self, manifest: Mapping[str, Any], part: Mapping[str, Any]) -> list[Problem]:
        """A part against what the manifest says of it."""
        name = part["file"]
        if name in self.broken:
            return []
        if name not in self.heads:
            again = "run the extraction again: only what is missing is computed"
            return [self._problem(name, "is missing, but the manifest lists it", again)]
        head = self.heads[name]
        start, stop = part["rows"]
        says = {
            "rows": [start, stop],
            "n": manifest["n"],
            "ids": manifest["ids"][start:stop],
            "extras": manifest["extras"],
            "extraction": manifest["extraction"],
            "layers": _layers(manifest["layers"]),
            "size": part["size"],
            "header_sha256": part["header_sha256"],
            "sha256": part["sha256"] if self.deep else None,
        }
        shows = {field: head.header[field] for field in ("rows", "n", "ids", "extras", "extraction")} | {
            "layers": [list(layer) for layer in head.layers],
            "size": head.size,
            "header_sha256": head.sha256,
            "sha256": self.digests.get(name),
        }
        for field in says:  # in this order: the first difference is the one that explains the others
            different = difference(says[field], shows[field], field)
            if different:
                where, a, b = different
                what = f"does not agree with {name}: {where} is {shown(a)} here and {shown(b)} in the part"
                return [self._problem(MANIFEST, what, AGAIN)]
        return []


def _layers(layers: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [[layer["name"], layer["width"], layer["dtype"]] for layer in layers]
