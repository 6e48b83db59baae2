"""Writing one extraction: the missing parts, each whole or not at all, and the manifest last."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.models import ModelRecord
from repalign.store._files import Files, sweep
from repalign.store._manifest import (
    MANIFEST,
    PART,
    difference,
    identity,
    identity_of_header,
    identity_of_manifest,
    manifest_text,
    readable,
    refuse_other,
    shown,
)
from repalign.store._part import (
    DTYPES,
    EXTRA,
    FORMAT,
    BrokenError,
    Head,
    Verified,
    canonical,
    described,
    encode,
    read_head,
    read_tensor,
    verify,
)
from repalign.store._rules import Part, check_layer, check_same_layers, to_store
from repalign.store._stored import StoredRepresentation

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Writer:
    """Writes the parts of one model on one dataset; made by `FeatureStore.writer`.

    Writers of one extraction may run at once, in threads, processes or machines that share the
    store: a part is replaced whole, and one that is written twice ends as either of the two.
    """

    files: Files
    folder: str
    dataset: Mapping[str, Any]
    record: ModelRecord
    settings: Mapping[str, Any]
    ids: tuple[str, ...]
    rows_per_part: int
    _checked: dict[int, Verified] = field(default_factory=dict, repr=False)

    @property
    def parts(self) -> list[Part]:
        """All parts, in order. Every part but the last has `rows_per_part` rows."""
        starts = range(0, len(self.ids), self.rows_per_part)
        return [Part(i, s, min(s + self.rows_per_part, len(self.ids))) for i, s in enumerate(starts)]

    @property
    def identity(self) -> dict[str, Any]:
        return identity(self.dataset["fingerprint"], self.record.spec, self.record.revision, self.settings)

    def missing(self) -> list[Part]:
        """The parts that are not there, or are there but cut short or corrupt, in order.

        Every byte of the finished parts is checked. What killed runs left half written is removed.

        Raises RepalignError, naming file and field, if a file in the folder is of another dataset,
        model, revision, weights, settings or division into parts.
        """
        sweep(self.files, self.folder)
        self._refuse_other_files()
        return [part for part in self.parts if self._check(part) is None]

    def write(
        self,
        part: Part,
        layers: Mapping[str, Tensor],
        extras: Mapping[str, Tensor] | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one part: each layer (part.n, d) in float16, bfloat16, float32 or float64.

        `extras` are numbers per row, (part.n,), stored in float64. `header` says what else
        determines the bytes: `weights_fingerprint` (text, required), `versions` of the libraries, and
        anything that JSON can hold. All of it but `versions` must be the same in all parts.

        Raises RepalignError if layers, shapes or dtypes are not those of the other parts, or if a
        value is NaN or infinite; if the disk is full.
        """
        extras = {name: to_store(self.record.name, part, name, x) for name, x in (extras or {}).items()}
        if not layers:
            raise RepalignError(
                f"{self.record.name}: {part.file} has no layer", expected="at least one layer"
            )
        for name, x in layers.items():
            check_layer(self.record.name, part, self.ids, name, x)
        head = self._header(part, list(layers), list(extras), dict(header or {}))
        shapes = [(name, x.shape[1], DTYPES[x.dtype]) for name, x in layers.items()]
        self._refuse_disagreement(part, head, shapes)
        chunks = encode(head, layers, extras)
        written = described(chunks)
        self._withdraw_manifest(part, written)
        self.files.write(self._name(part.file), chunks)
        self._checked[part.index] = written

    def finish(self, record: ModelRecord, facts: Mapping[str, Any]) -> StoredRepresentation:
        """Write the manifest, which says that the extraction is complete.

        `record` may know more than the one that the writer was opened with (parameters, scores), but
        is of the same spec and revision. `facts` say how the features came about.

        Raises RepalignError if a part is missing or if parts disagree.
        """
        refuse_other(
            f"the record of {record.name}",
            self.identity,
            identity(self.dataset["fingerprint"], record.spec, record.revision, self.settings),
            remedy="finish with the record that the writer was opened with",
        )
        parts = self._all_parts()
        text = manifest_text(
            dataset=self.dataset,
            record=record.to_dict(),
            settings=self.settings,
            facts=facts,
            ids=self.ids,
            parts=parts,
        )
        self.files.write(self._name(MANIFEST), [text.encode()])
        manifest, _ = readable(self.files, self.folder)
        assert manifest is not None
        return StoredRepresentation(self.files, self.folder, manifest)

    def extras(self) -> dict[str, Tensor]:
        """The numbers per row of all parts, each (n,) in float64, whoever wrote the parts.

        For what is computed from all rows and goes into the record, before `finish`.

        Raises RepalignError if a part is missing or if parts disagree.
        """
        heads = {file: part.head for file, part in self._all_parts().items()}
        names = next(iter(heads.values())).header["extras"]
        return {
            name: torch.cat(
                [
                    read_tensor(self.files, self._name(file), head, EXTRA + name)
                    for file, head in heads.items()
                ]
            )
            for name in names
        }

    # ---- what is there already ------------------------------------------------------------------

    def _name(self, file: str) -> str:
        return f"{self.folder}/{file}"

    def _all_parts(self) -> dict[str, Verified]:
        """Every part by file name, in order, if all are whole and agree."""
        missing = self.missing()
        if missing:
            raise RepalignError(
                f"{self.record.name}: {len(missing)} of {len(self.parts)} parts are missing in "
                f"{self.files.path(self.folder)}",
                got=f"no {', '.join(part.file for part in missing[:5])}{' ...' if len(missing) > 5 else ''}",
                remedy="write the missing parts, then finish",
            )
        for part in self.parts:
            head = self._checked[part.index].head
            self._refuse_disagreement(part, head.header, head.layers)
        return {part.file: self._checked[part.index] for part in self.parts}

    def _check(self, part: Part) -> Verified | None:
        """The part if it is whole and ours; None if it has to be written."""
        name = self._name(part.file)
        try:
            known = self._checked.get(part.index)
            head = read_head(self.files, name)
            if known is None or known.head.sha256 != head.sha256:
                known = verify(self.files, name)
        except BrokenError as error:
            if error.problem != "is missing":
                log.warning("%s %s: it will be written again", self.files.path(name), error)
            self._checked.pop(part.index, None)
            return None
        self._refuse_other_part(part, known.head)
        self._checked[part.index] = known
        return known

    def _refuse_other_part(self, part: Part, head: Head) -> None:
        path = self.files.path(self._name(part.file))
        folder = self.files.path(self.folder)
        refuse_other(
            path,
            self.identity,
            identity_of_header(head.header),
            remedy=f"move {folder} away or delete it, and run the extraction again",
        )
        wanted = {"rows": [part.start, part.stop], "ids": list(self.ids[part.start : part.stop])}
        for name, value in wanted.items():  # rows first: other rows have other ids
            refuse_other(
                path,
                {name: value},
                {name: head.header[name]},
                remedy=f"use the rows per part that this store was begun with, or delete {folder}",
            )

    def _refuse_other_files(self) -> None:
        """Refuse the manifest of another extraction, and whole parts beyond the last one."""
        manifest, _ = readable(self.files, self.folder)
        path = self.files.path(self.folder)
        if manifest is not None:
            refuse_other(
                self.files.path(self._name(MANIFEST)),
                self.identity,
                identity_of_manifest(manifest),
                remedy=f"move {path} away or delete it, and run the extraction again",
            )
        expected = {part.file for part in self.parts}
        for file in self.files.listing(self.folder):
            if PART.match(file) and file not in expected:
                raise RepalignError(
                    f"{self.files.path(self._name(file))} is not one of the {len(expected)} parts",
                    expected=f"parts of {self.rows_per_part} rows up to {self.parts[-1].file}",
                    got=file,
                    remedy=f"use the rows per part that this store was begun with, or delete {path}",
                )

    def _withdraw_manifest(self, part: Part, written: Verified) -> None:
        """Other bytes for a part of a finished extraction: it is not complete until `finish`."""
        manifest, _ = readable(self.files, self.folder)
        if manifest is None:
            self.files.remove(self._name(MANIFEST))
            return
        if not any(p["file"] == part.file and p["sha256"] == written.sha256 for p in manifest["parts"]):
            log.warning("%s: %s is written anew", self.files.path(self.folder), part.file)
            self.files.remove(self._name(MANIFEST))

    def _reference(self) -> tuple[Part, Head] | None:
        """The first part that is known here, or else on disk: what the others have to agree with."""
        for part in self.parts:
            if part.index in self._checked:
                return part, self._checked[part.index].head
        for part in self.parts:
            try:
                return part, read_head(self.files, self._name(part.file))
            except BrokenError:
                continue
        return None

    # ---- what may be written --------------------------------------------------------------------

    def _header(
        self, part: Part, layers: list[str], extras: list[str], given: dict[str, Any]
    ) -> dict[str, Any]:
        if not isinstance(given.get("weights_fingerprint"), str):
            raise RepalignError(
                f"{self.record.name}: the header of {part.file} has no weights_fingerprint",
                expected="a digest of the loaded weights, as text",
                got=given.get("weights_fingerprint"),
            )
        versions = given.pop("versions", {})
        canonical(given, f"{self.record.name}: the header of {part.file}")
        return {
            **self.identity,
            "extraction": given,
            "versions": versions,
            "layers": layers,
            "extras": extras,
            "n": len(self.ids),
            "rows": [part.start, part.stop],
            "ids": list(self.ids[part.start : part.stop]),
            "format": FORMAT,
        }

    def _refuse_disagreement(
        self, part: Part, header: Mapping[str, Any], layers: Sequence[tuple[str, int, str]]
    ) -> None:
        """Refuse a part whose layers, extras or weights are not those of the first part."""
        reference = self._reference()
        if reference is None:
            return
        first, head = reference
        who = f"{self.record.name}: {part.file} does not agree with {self.files.path(self._name(first.file))}"
        check_same_layers(who, [name for name, _, _ in head.layers], [name for name, _, _ in layers])
        for (name, width, dtype), (_, w, d) in zip(head.layers, layers, strict=True):
            if (width, dtype) != (w, d):
                raise RepalignError(
                    f"{who}: layer {name!r} differs",
                    expected=f"width {width}, {dtype}",
                    got=f"width {w}, {d}",
                )
        for field_ in ("extras", "extraction"):
            found = difference(head.header[field_], _as_json(header[field_]), field_)
            if found:
                name, a, b = found
                raise RepalignError(
                    f"{who}: {name} differs",
                    expected=f"{name} {shown(a)}",
                    got=f"{name} {shown(b)}",
                    remedy=f"delete {self.files.path(self.folder)} and run the extraction again",
                )


def _as_json(value: object) -> object:
    return json.loads(canonical(value, "the header of a part"))
