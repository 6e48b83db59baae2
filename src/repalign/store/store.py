"""The store as a whole: its marker, where an extraction lies, what is complete."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from repalign.errors import RepalignError
from repalign.files import STALE_AFTER, TEMPORARY, Url, open_files
from repalign.files.claims import CLAIMS
from repalign.models import ModelRecord
from repalign.store import format as fmt
from repalign.store.reader import BrokenRepresentation, StoredRepresentation
from repalign.store.writer import Part, Writer

log = logging.getLogger(__name__)

MARKER = "repalign-store.json"
STORE_KIND = "repalign feature store"
MARKER_TEXT = f'{{"format":{fmt.FORMAT},"kind":"{STORE_KIND}"}}\n'


@dataclass(frozen=True)
class Kept:
    """What a store keeps of one model on one dataset, whole or not.

    model, spec : the model, by the name that it was extracted under and by its spec. layers, dtypes : empty where no manifest
    says them. written : when its last file was, in the seconds of `time.time`. is_live : a run may be writing it.
    """

    folder: str
    model: str
    spec: str
    dataset: str
    layers: tuple[str, ...]
    dtypes: tuple[str, ...]
    nbytes: int
    written: float
    is_live: bool


class FeatureStore:
    """The features of many models on many datasets in one folder, local or behind an fsspec URL.

    Opening makes nothing; the folder appears with the first writer.

    Raises RepalignError if the folder holds other things and is no store, or is of a newer format.
    """

    def __init__(self, url: str | os.PathLike[str] | Url) -> None:
        self.files = open_files(url)
        self.url = str(self.files.root)
        found = {MARKER: None} if self.is_there else self.files.listing()
        others = [name for name in found if name != CLAIMS and not TEMPORARY.match(name)]
        if MARKER in others:  # if not at first, then another run has written it since
            self._check_marker()
        elif others:
            raise RepalignError(
                f"{self.url} is not a feature store: it holds other things and no {MARKER}",
                expected="a store, or an empty or new folder",
                got=f"{', '.join(others[:3])}{' ...' if len(others) > 3 else ''}", remedy="name another folder",
            )

    def __repr__(self) -> str:
        return f"FeatureStore({self.url!r})"

    @property
    def is_there(self) -> bool:
        return self.files.size(MARKER) is not None

    def writer(
        self, *, dataset: Mapping[str, Any], record: ModelRecord, settings: Mapping[str, Any], ids: Sequence[str],
        rows_per_part: int = 256,
    ) -> Writer:  # fmt: skip
        """A writer of one model on one dataset.

        `dataset` describes it (at least `fingerprint`), `ids` are its rows in order, `settings` are
        all requested options that determine the features. What `record` resolved to must stand in
        its `revision`.
        """
        fingerprint, name = dataset.get("fingerprint"), dataset.get("name", "")
        if not isinstance(fingerprint, str) or not re.fullmatch("[0-9a-f]{16,}", fingerprint):
            problem = "the description of the dataset has no fingerprint"
            raise RepalignError(problem, expected="64 hex digits under `fingerprint`", got=fingerprint)
        if rows_per_part < 1:
            raise RepalignError("a part has at least one row", expected="rows_per_part >= 1", got=rows_per_part)
        if not ids or len(set(ids)) != len(ids) or not all(isinstance(id_, str) for id_ in ids):
            raise RepalignError(
                f"the dataset {name!r} cannot be stored by its ids",
                expected="at least one id, each once, all of them text",
                got=f"{len(ids)} ids, {len(set(ids))} different",
            )
        fmt.canonical(dict(dataset), f"the description of the dataset {name!r}")
        identity, folder = fmt.identify(fingerprint, record.spec, record.revision, settings)
        if self.files.size(MARKER) is None:
            self.files.write(MARKER, MARKER_TEXT.encode())
        self.files.sweep()
        starts = range(0, len(ids), rows_per_part)
        parts = [Part(i, s, min(s + rows_per_part, len(ids))) for i, s in enumerate(starts)]
        place = f"{self.url}/{folder}"
        return Writer(self.files, folder, place, identity, dict(dataset), record, dict(settings), tuple(ids), parts)

    def find(
        self, dataset_fingerprint: str, record_spec: str, revision: str | None, settings: Mapping[str, Any]
    ) -> StoredRepresentation | None:
        """The complete extraction of these, or None.

        One whose manifest is not the one that was written, or of which a part has gone or is cut short, is not
        complete: it is None here, with a warning in the log, and a writer finds what is missing.

        Raises RepalignError if the manifest that lies there is of another extraction.
        """
        identity, folder = fmt.identify(dataset_fingerprint, record_spec, revision, settings)
        manifest, why = fmt.readable(self.files, folder)
        if why is not None:
            log.warning("%s: the extraction is not complete, and its manifest is written anew", why)
        if manifest is None:
            return None
        fmt.refuse_other(f"{self.url}/{folder}/{fmt.MANIFEST}", identity, fmt.identity_of(manifest), folder=f"{self.url}/{folder}")
        sizes = self.files.listing(folder)
        for part in manifest["parts"]:
            if sizes.get(part["file"]) != part["size"]:
                what = "has another size than the manifest says" if part["file"] in sizes else "is missing"
                log.warning("%s/%s/%s %s: the extraction is not complete", self.url, folder, part["file"], what)
                return None
        return StoredRepresentation(self.files, folder, manifest)

    def representations(self, dataset_fingerprint: str | None = None) -> list[StoredRepresentation]:
        """All complete extractions, or those on one dataset, in the order of their folders.

        One whose manifest was changed since it was written is listed by its bare name, and refuses any use.

        Raises RepalignError for a file in the place of a manifest that is none.
        """
        out = []
        for folder in self.folders():
            manifest = fmt.read_manifest(self.files, folder)
            if manifest is None or dataset_fingerprint not in (None, manifest.data["dataset"]["fingerprint"]):
                continue
            if manifest.flaw is None:
                out.append(StoredRepresentation(self.files, folder, manifest.data))
            else:
                out.append(BrokenRepresentation(self.files, folder, manifest))
        return out

    def twins(
        self, dataset: Mapping[str, Any], record_spec: str, revision: str | None, settings: Mapping[str, Any]
    ) -> list[StoredRepresentation]:
        """As `find`, but on other datasets, of which the model has read the very stimuli that it would read of this one.

        `dataset` is as `Dataset.describe` has it. Of every dataset of the store one folder is listed.
        """
        identity, folder = fmt.identify(dataset["fingerprint"], record_spec, revision, settings)
        slug, out = folder.split("/")[1], []
        for other in [name for name in self.folders(1) if name != folder.split("/")[0]]:
            for name, size in self.files.listing(f"{other}/{slug}").items():
                manifest = fmt.readable(self.files, f"{other}/{slug}/{name}")[0] if size is None else None
                if manifest is not None and fmt.sees_the_same(manifest, dataset):
                    about = fmt.identity_of(manifest)
                    if {**about, "dataset_fingerprint": dataset["fingerprint"]} == identity:
                        out.append(self.find(about["dataset_fingerprint"], record_spec, revision, settings))
        return [found for found in out if found is not None]

    def whole(self, dataset: Mapping[str, Any]) -> list[StoredRepresentation]:
        """As `representations`, of models to which another dataset would show the same, too (`twins`).

        Without those whose manifest cannot be believed: for those who would make these anew.
        """
        found = ((folder, fmt.readable(self.files, folder)[0]) for folder in self.folders())
        return [
            StoredRepresentation(self.files, folder, manifest)
            for folder, manifest in found
            if manifest is not None and fmt.sees_the_same(manifest, dataset)
        ]

    def folders(self, depth: int = 3) -> list[str]:
        """The folder of every extraction, complete or not: `<dataset>/<model>/<extraction hash>`; or those above it."""
        if depth == 0:
            return [""]
        above = ((folder, self.files.listing(folder)) for folder in self.folders(depth - 1))
        found = ((folder, name) for folder, names in above for name, size in names.items() if size is None)
        return [f"{folder}/{name}".lstrip("/") for folder, name in found if not TEMPORARY.match(name)]

    def contents(self) -> list[Kept]:
        """Everything that is kept, with its size and age, in the order of the folders."""
        return [self._kept(folder) for folder in self.folders()]

    def delete(self, kept: Kept) -> None:
        """Remove what is kept of a model: first the manifest, so that nothing that is half gone passes for complete.

        Raises RepalignError if a run may be writing it.
        """
        if self._kept(kept.folder).is_live:
            raise RepalignError(
                f"{kept.model} in {self.url} may be at work: it is not complete, and was written to within the last hour",
                expected="a finished extraction, or one that was left alone", got=kept.folder,
                remedy="let that run end, or wait for an hour after it was stopped",
            )  # fmt: skip
        self.files.sweep()  # what a removal that was cut off left
        self.files.remove(f"{kept.folder}/{fmt.MANIFEST}")
        self.files.remove_folder(kept.folder)

    def _kept(self, folder: str) -> Kept:
        """One that is written has a temporary file that somebody holds, or no manifest yet."""
        files = {name: size for name, size in self.files.listing(folder).items() if size is not None}
        dataset, spec, _ = folder.split("/")  # as far as nothing else says it
        name, layers = spec, []
        try:
            manifest = fmt.readable(self.files, folder)[0]
        except RepalignError:  # of a newer format
            manifest = None
        if manifest is not None:
            name, spec, layers = manifest["record"]["name"], manifest["record"]["spec"], manifest["layers"]
            dataset = str(manifest["dataset"].get("name") or dataset)
        elif part := next(filter(fmt.PART.match, files), None):
            with suppress(fmt.BrokenError, RepalignError):
                name = spec = fmt.read_head(self.files, f"{folder}/{part}").header["spec"]
        last = [fmt.MANIFEST] if fmt.MANIFEST in files else list(files)
        written = max((self.files.modified(f"{folder}/{file}") for file in last), default=0.0)
        held = any(TEMPORARY.match(f) and not self.files.is_abandoned(f"{folder}/{f}") for f in files)
        is_live = held or (fmt.MANIFEST not in files and time.time() - written < STALE_AFTER)
        dtypes = tuple(dict.fromkeys(layer["dtype"] for layer in layers))
        names = tuple(layer["name"] for layer in layers)
        return Kept(folder, name, spec, dataset, names, dtypes, sum(files.values()), written, is_live)

    def _check_marker(self) -> None:
        try:
            marker = fmt.parse_json(bytes(self.files.read(MARKER)))
            version = marker["format"]
            if version == fmt.FORMAT and marker["kind"] != STORE_KIND:
                raise ValueError(f"kind {marker['kind']!r}")
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RepalignError(
                f"{self.url}/{MARKER} is not the marker of a feature store", expected=MARKER_TEXT.strip(),
                remedy="if the folder is a store, write the expected line into that file",
            ) from error
        if version != fmt.FORMAT or isinstance(version, bool):
            raise RepalignError(
                f"{self.url} is a feature store of another format", expected=f"format {fmt.FORMAT}",
                got=f"format {version}",
                remedy="install a repalign that knows this format (a newer one, if the number is higher)",
            )
