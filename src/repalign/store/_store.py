"""The store as a whole: its marker, where an extraction lies, what is complete."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from repalign.errors import RepalignError
from repalign.models import ModelRecord
from repalign.store._files import TEMPORARY, open_files, sweep
from repalign.store._manifest import (
    MANIFEST,
    folder_of,
    identity,
    identity_of_manifest,
    read_manifest,
    readable,
    refuse_other,
)
from repalign.store._part import FORMAT, canonical, parse_json
from repalign.store._stored import BrokenRepresentation, StoredRepresentation
from repalign.store._writer import Writer

log = logging.getLogger(__name__)

MARKER = "repalign-store.json"
KIND = "repalign feature store"
MARKER_TEXT = canonical({"kind": KIND, "format": FORMAT}, "the marker") + "\n"


class FeatureStore:
    """The features of many models on many datasets in one folder, local or behind an fsspec URL.

    Opening makes nothing; the folder appears with the first writer.

    Raises RepalignError if the folder holds other things and is no store, or is of a newer format.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.files = open_files(url)
        self.url = self.files.path()
        self._check_marker()

    def __repr__(self) -> str:
        return f"FeatureStore({self.url!r})"

    def writer(
        self,
        *,
        dataset: Mapping[str, Any],
        record: ModelRecord,
        settings: Mapping[str, Any],
        ids: Sequence[str],
        rows_per_part: int = 256,
    ) -> Writer:
        """A writer of one model on one dataset.

        `dataset` describes it (at least `fingerprint`), `ids` are its rows in order, `settings` are
        all requested options that determine the features. What `record` resolved to must stand in
        its `revision`.
        """
        fingerprint = dataset.get("fingerprint")
        if not isinstance(fingerprint, str) or not re.fullmatch("[0-9a-f]{16,}", fingerprint):
            raise RepalignError(
                "the description of the dataset has no fingerprint",
                expected="64 hex digits under `fingerprint`",
                got=fingerprint,
            )
        if rows_per_part < 1:
            raise RepalignError(
                "a part has at least one row", expected="rows_per_part >= 1", got=rows_per_part
            )
        if not ids or len(set(ids)) != len(ids) or not all(isinstance(id_, str) for id_ in ids):
            raise RepalignError(
                f"the dataset {dataset.get('name', '')!r} cannot be stored by its ids",
                expected="at least one id, each once, all of them text",
                got=f"{len(ids)} ids, {len(set(ids))} different",
            )
        canonical(dict(dataset), f"the description of the dataset {dataset.get('name', '')!r}")
        folder = folder_of(fingerprint, record.spec, record.revision, settings)
        if self.files.size(MARKER) is None:
            self.files.write(MARKER, [MARKER_TEXT.encode()])
        sweep(self.files, "")
        return Writer(self.files, folder, dict(dataset), record, dict(settings), tuple(ids), rows_per_part)

    def find(
        self,
        dataset_fingerprint: str,
        record_spec: str,
        revision: str | None,
        settings: Mapping[str, Any],
    ) -> StoredRepresentation | None:
        """The complete extraction of these, or None.

        One whose manifest is not the one that was written, or of which a part has gone or is cut short, is not
        complete: it is None here, with a warning in the log, and a writer finds what is missing.

        Raises RepalignError if the manifest that lies there is of another extraction.
        """
        folder = folder_of(dataset_fingerprint, record_spec, revision, settings)
        manifest, why = readable(self.files, folder)
        if why is not None:
            log.warning("%s: the extraction is not complete, and its manifest is written anew", why)
        if manifest is None:
            return None
        refuse_other(
            self.files.path(f"{folder}/{MANIFEST}"),
            identity(dataset_fingerprint, record_spec, revision, settings),
            identity_of_manifest(manifest),
            remedy=f"move {self.files.path(folder)} away or delete it, and run the extraction again",
        )
        sizes = self.files.listing(folder)
        for part in manifest["parts"]:
            if sizes.get(part["file"]) != part["size"]:
                what = "has another size than the manifest says" if part["file"] in sizes else "is missing"
                path = self.files.path(f"{folder}/{part['file']}")
                log.warning("%s %s: the extraction is not complete", path, what)
                return None
        return StoredRepresentation(self.files, folder, manifest)

    def representations(self, dataset_fingerprint: str | None = None) -> list[StoredRepresentation]:
        """All complete extractions, or those on one dataset, in the order of their folders.

        One whose manifest was changed since it was written is listed by its bare name, and refuses any use.

        Raises RepalignError for a file in the place of a manifest that is none.
        """
        found = []
        for folder in self.folders():
            manifest = read_manifest(self.files, folder)
            if manifest is None:
                continue
            if dataset_fingerprint in (None, manifest.data["dataset"]["fingerprint"]):
                broken = manifest.flaw is not None
                found.append(
                    BrokenRepresentation(self.files, folder, manifest)
                    if broken
                    else StoredRepresentation(self.files, folder, manifest.data)
                )
        return found

    def whole(self, dataset_fingerprint: str) -> list[StoredRepresentation]:
        """As `representations`, without those whose manifest cannot be believed: for who would make these anew."""
        found = ((folder, readable(self.files, folder)[0]) for folder in self.folders())
        return [
            StoredRepresentation(self.files, folder, manifest)
            for folder, manifest in found
            if manifest is not None and manifest["dataset"]["fingerprint"] == dataset_fingerprint
        ]

    def folders(self) -> Iterator[str]:
        """The folder of every extraction, complete or not: `<dataset>/<model>/<extraction hash>`."""
        for dataset in self._subfolders(""):
            for model in self._subfolders(dataset):
                yield from self._subfolders(model)

    def _subfolders(self, folder: str) -> Iterator[str]:
        for name, size in self.files.listing(folder).items():
            if size is None:
                yield f"{folder}/{name}" if folder else name

    def _check_marker(self) -> None:
        if not self.files.exists():
            return
        if self.files.size(MARKER) is None:
            others = [name for name in self.files.listing() if not TEMPORARY.match(name)]
            if others:
                raise RepalignError(
                    f"{self.url} is not a feature store: it holds other things and no {MARKER}",
                    expected="a store, or an empty or new folder",
                    got=f"{', '.join(others[:3])}{' ...' if len(others) > 3 else ''}",
                    remedy="name another folder",
                )
            return
        try:
            marker = parse_json(bytes(self.files.read(MARKER)))
            version = marker["format"]
            if version == FORMAT and marker["kind"] != KIND:
                raise ValueError(f"kind {marker['kind']!r}")
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RepalignError(
                f"{self.files.path(MARKER)} is not the marker of a feature store",
                expected=MARKER_TEXT.strip(),
                remedy="if the folder is a store, write the expected line into that file",
            ) from error
        if version != FORMAT or isinstance(version, bool):
            raise RepalignError(
                f"{self.url} is a feature store of another format",
                expected=f"format {FORMAT}",
                got=f"format {version}",
                remedy="install a repalign that knows this format (a newer one, if the number is higher)",
            )
