"""Checking a whole store: every file in it, and in words what is broken and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from repalign.errors import RepalignError
from repalign.files import TEMPORARY, Files, Unreachable, Url
from repalign.files.claims import CLAIMS
from repalign.store import format as fmt
from repalign.store.store import MARKER, FeatureStore
from repalign.text import Progress, silent

MISSING_AGAIN = "run the extraction again: only what is missing is computed"
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


def check(url: str | os.PathLike[str] | Url, deep: bool = True, progress: Progress = silent) -> list[Problem]:
    """Everything that is wrong in a store, in the order of the folders; an empty list if nothing is.

    `deep` reads every byte; without it headers, sizes and names are checked, not the contents.

    Raises RepalignError if there is no store at this place.
    """
    store = FeatureStore(url)
    files = store.files
    if files.size(MARKER) is None:
        raise RepalignError(f"there is no feature store at {store.url}", expected=f"a folder with a {MARKER} in it")
    folders = store.folders()
    total = sum(1 for f in folders for name in files.listing(f) if fmt.PART.match(name))
    done = count()

    def step() -> None:
        progress(f"checking {store.url}", next(done), total)

    step()
    above = [f"{folder}/{name}".lstrip("/") for depth in range(3) for folder in store.folders(depth)
             for name, size in files.listing(folder).items() if size is not None]  # fmt: skip
    own = (MARKER, f"{CLAIMS}/")  # what runs at work tell one another is nobody's concern
    problems = [problem for name in above if not name.startswith(own) for problem in _stranger(files, name)]
    for folder in folders:
        problems += _Folder(files, folder, deep, step).problems()
    return problems


def _stranger(files: Files, name: str) -> Iterator[Problem]:
    """A file that does not belong in a store, unless somebody is writing it now."""
    path = f"{files.root}/{name}"
    if not TEMPORARY.match(name.rpartition("/")[2]):
        yield Problem(path, "does not belong in a feature store", FOREIGN)
    elif files.is_abandoned(name):
        yield Problem(path, "is a half-written file of a run that was cut off", "delete it")


class _Folder:
    """The check of one extraction."""

    def __init__(self, files: Files, folder: str, deep: bool, step: Callable[[], None]) -> None:
        self.files, self.folder, self.deep, self.step = files, folder, deep, step
        self.heads: dict[str, fmt.Head] = {}
        self.broken: set[str] = set()

    def problems(self) -> Iterator[Problem]:
        for name, size in self.files.listing(self.folder).items():
            if fmt.PART.match(name):
                try:
                    self.heads[name] = (fmt.verify if self.deep else fmt.read_head)(self.files, f"{self.folder}/{name}", size)
                    yield from self._place(name, self.heads[name].header)
                except Unreachable:
                    raise
                except (fmt.BrokenError, RepalignError) as error:
                    self.broken.add(name)
                    yield self._problem(name, str(error), f"delete it and {MISSING_AGAIN}")
                self.step()
            elif name != fmt.MANIFEST:
                yield from _stranger(self.files, f"{self.folder}/{name}")
        try:
            manifest = fmt.read_manifest(self.files, self.folder)
        except Unreachable:
            raise
        except RepalignError as error:
            if error.__cause__ is None:  # a newer format, with a remedy of its own
                remedy = str(error).splitlines()[-1].removeprefix("  do: ")
                yield self._problem(fmt.MANIFEST, "is of another format", remedy)
            else:
                yield self._problem(fmt.MANIFEST, f"is not a manifest: {error.__cause__}", fmt.AGAIN)
            return
        if manifest is not None:
            yield from self._manifest(manifest)
            return
        state, heads = "no part is whole", [h.header for h in self.heads.values()]
        if heads:
            state = f"{sum(h['rows'][1] - h['rows'][0] for h in heads)} of {heads[0]['n']} rows are there"
        remedy = "run the extraction again: it resumes; or delete the folder"
        yield self._problem("", f"is not complete: there is no {fmt.MANIFEST}, {state}", remedy)

    def _problem(self, name: str, problem: str, remedy: str) -> Problem:
        return Problem(f"{self.files.root}/{self.folder}/{name}".rstrip("/"), problem, remedy)

    def _place(self, name: str, file: Mapping[str, Any]) -> Iterator[Problem]:
        """A file states its extraction, and so its folder."""
        _, *stated = fmt.identity_of(file).values()
        home = fmt.identify(*stated)[1]
        if home != self.folder:
            yield self._problem(name, f"is of another extraction: it belongs in {home}", FOREIGN)

    def _manifest(self, manifest: fmt.Manifest) -> list[Problem]:
        data = manifest.data
        found = [*self._place(fmt.MANIFEST, data), *(problem for part in data["parts"] for problem in self._listed(data, part))]
        names = [part["file"] for part in data["parts"]]
        found += [self._problem(name, "is not in the manifest", FOREIGN) for name in self.heads if name not in names]
        if manifest.flaw is not None:
            found.append(self._problem(fmt.MANIFEST, str(manifest.flaw), fmt.AGAIN))
        if not found and data["format"] != fmt.MANIFEST_FORMAT:
            found.append(self._problem(fmt.MANIFEST, "has no seal: a repalign before it knew seals wrote it", SEAL_IT))
        return found

    def _listed(self, manifest: Mapping[str, Any], part: Mapping[str, Any]) -> Iterator[Problem]:
        """A part against what the manifest says of it."""
        name = part["file"]
        if name not in self.heads:
            if name not in self.broken:
                yield self._problem(name, "is missing, but the manifest lists it", MISSING_AGAIN)
            return
        found = fmt.disagreement(manifest, part, self.heads[name])
        if found is None and self.deep:
            found = fmt.difference(part["sha256"], self.heads[name].file_sha256, "sha256")
        if found is not None:
            where, here, there = found
            what = f"does not agree with {name}: {where} is {fmt.shown(here)} here and {fmt.shown(there)} in the part"
            yield self._problem(fmt.MANIFEST, what, fmt.AGAIN)
