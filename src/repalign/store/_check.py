"""Checking a whole store: every file in it, and in words what is broken and what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repalign.errors import RepalignError
from repalign.store._files import TEMPORARY, Files
from repalign.store._manifest import (
    AGAIN,
    MANIFEST,
    PART,
    Manifest,
    difference,
    disagreement,
    folder_of,
    identity_of_header,
    identity_of_manifest,
    read_manifest,
    shown,
)
from repalign.store._part import BrokenError, Head, read_head, verify
from repalign.store._store import MARKER, FeatureStore
from repalign.text import Progress, silent

PART_AGAIN = "delete it and run the extraction again: only what is missing is computed"
SEAL_IT = (
    "it can be used as it is; to seal it, delete this file and run the extraction again: the parts are kept, and what the "
    "manifest says is found out anew"
)
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
            why, *details = str(error).splitlines()
            if error.__cause__ is None:  # a newer format, with a remedy of its own
                why, remedy = "is of another format", details[-1].removeprefix("  do: ")
            else:
                why, remedy = f"is not a manifest: {error.__cause__}", AGAIN
            return [*found, self._problem(MANIFEST, why, remedy)]
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
            return [self._problem(name, str(error), PART_AGAIN)]
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

    def _manifest(self, manifest: Manifest) -> list[Problem]:
        said = manifest.data
        found = self._place(MANIFEST, identity_of_manifest(said))
        names = [part["file"] for part in said["parts"]]
        for part in said["parts"]:
            found += self._listed(said, part)
        for name in self.heads:
            if name not in names:
                found.append(self._problem(name, "is not in the manifest", FOREIGN))
        if manifest.flaw is not None:
            found.append(self._problem(MANIFEST, str(manifest.flaw), AGAIN))
        if not found and not manifest.is_sealed:
            found.append(self._problem(MANIFEST, "has no seal: a repalign before it knew seals wrote it", SEAL_IT))
        return found

    def _listed(self, manifest: Mapping[str, Any], part: Mapping[str, Any]) -> list[Problem]:
        """A part against what the manifest says of it."""
        name = part["file"]
        if name in self.broken:
            return []
        if name not in self.heads:
            again = "run the extraction again: only what is missing is computed"
            return [self._problem(name, "is missing, but the manifest lists it", again)]
        found = disagreement(manifest, part, self.heads[name])
        if found is None and self.deep:
            found = difference(part["sha256"], self.digests[name], "sha256")
        if found is None:
            return []
        where, here, there = found
        what = f"does not agree with {name}: {where} is {shown(here)} here and {shown(there)} in the part"
        return [self._problem(MANIFEST, what, AGAIN)]
