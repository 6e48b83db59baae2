"""How an extraction is written: its parts, each whole or not at all, and the manifest, once all are there."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError, did_you_mean
from repalign.files import Files, seal_json
from repalign.models import ModelRecord
from repalign.store import format as fmt
from repalign.store.reader import StoredRepresentation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` (excluded) of every layer: the unit of resume and of distribution."""

    index: int
    start: int
    stop: int
    n: int = field(init=False)
    file: str = field(init=False)

    def __post_init__(self) -> None:
        vars(self).update(n=self.stop - self.start, file=f"part-{self.index:05d}.safetensors")


@dataclass(frozen=True, eq=False)
class Writer:
    """Writes the parts of one model on one dataset; made by `FeatureStore.writer`.

    Writers of one extraction may run at once, in threads, processes or machines that share the
    store: a part is replaced whole, and one that is written twice ends as either of the two.
    """

    files: Files
    folder: str
    place: str  # the folder, for people
    identity: dict[str, Any]  # the fields in which all files of the folder agree
    dataset: Mapping[str, Any]
    record: ModelRecord
    settings: Mapping[str, Any]
    ids: tuple[str, ...]
    parts: list[Part]  # in order, all but the last of one number of rows
    _checked: dict[int, fmt.Head] = field(default_factory=dict, repr=False)

    def missing(self) -> list[Part]:
        """The parts that are not there, or are there but cut short or corrupt, in order.

        Every byte of the finished parts is checked. What killed runs left half written is removed.

        Raises RepalignError, naming file and field, if a file in the folder is of another dataset,
        model, revision, weights, settings or division into parts.
        """
        self.files.sweep(self.folder)
        manifest, _ = fmt.readable(self.files, self.folder)
        if manifest is not None:
            stated = fmt.identity_of(manifest)
            fmt.refuse_other(f"{self.place}/{fmt.MANIFEST}", self.identity, stated, folder=self.place)
        expected = {part.file for part in self.parts}
        sizes = self.files.listing(self.folder)
        for file in sizes:
            if fmt.PART.match(file) and file not in expected:
                raise RepalignError(
                    f"{self.place}/{file} is not one of the {len(expected)} parts",
                    expected=f"parts of {self.parts[0].n} rows up to {self.parts[-1].file}", got=file,
                    remedy=f"use the rows per part that this store was begun with, or delete {self.place}",
                )
        return [part for part in self.parts if part.file not in sizes or not self._is_whole(part, sizes[part.file])]

    def write(
        self, part: Part, layers: Mapping[str, Tensor], extras: Mapping[str, Tensor] | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write one part: each layer (part.n, d) in float16, bfloat16, float32 or float64.

        `extras` are numbers per row, (part.n,), stored in float64. `header` says what else
        determines the bytes: `weights_fingerprint` (text, required), `versions` of the libraries, and
        anything that JSON can hold. All of it but `versions` must be the same in all parts.

        Raises RepalignError if layers, shapes or dtypes are not those of the other parts, or if a
        value is NaN or infinite; if the disk is full.
        """
        model, given, extras = self.record.name, dict(header or {}), extras or {}
        if not layers:
            raise RepalignError(f"{model}: {part.file} has no layer", expected="at least one layer")
        for name, x in extras.items():
            self._check(part, name, x, is_layer=False)
        for name, x in layers.items():
            self._check(part, name, x, is_layer=True)
        extras = {name: x.detach().to("cpu", torch.float64) for name, x in extras.items()}
        if not isinstance(given.get("weights_fingerprint"), str):
            raise RepalignError(
                f"{model}: the header of {part.file} has no weights_fingerprint",
                expected="a digest of the loaded weights, as text", got=given.get("weights_fingerprint"),
            )
        versions = given.pop("versions", {})
        fmt.canonical(given, f"{model}: the header of {part.file}")
        head = {
            **self.identity, "extraction": given, "versions": versions, "layers": list(layers), "extras": list(extras),
            "n": len(self.ids), "rows": [part.start, part.stop], "ids": list(self.ids[part.start : part.stop]),
        }  # fmt: skip
        self._refuse_disagreement(part, head, [(name, x.shape[1], fmt.DTYPES[x.dtype]) for name, x in layers.items()])
        chunks, written = fmt.encode(head, layers, extras)
        # Other bytes for a part of a finished extraction: it is not complete until `finish`.
        # Where there is none, another writer may finish meanwhile, with the same bytes: what it writes stays.
        manifest, flaw = fmt.readable(self.files, self.folder)
        stated, is_there = [] if manifest is None else manifest["parts"], manifest is not None or flaw is not None
        if is_there and not any(p["file"] == part.file and p["sha256"] == written.file_sha256 for p in stated):
            if manifest is not None:
                log.warning("%s: %s is written anew", self.place, part.file)
            self.files.remove(f"{self.folder}/{fmt.MANIFEST}")
        self.files.write(f"{self.folder}/{part.file}", *chunks)
        self._checked[part.index] = written

    def take(self, twin: StoredRepresentation) -> bool:
        """Write every missing part with the features of a twin (`FeatureStore.twins`), as if the model had run.

        False, with a warning in the log, where a part of the twin is broken; False where it is divided into other parts.
        """
        if [(p["file"], p["rows"]) for p in twin.manifest["parts"]] != [(p.file, [p.start, p.stop]) for p in self.parts]:
            return False
        for part in self.missing():
            file = f"{twin.folder}/{part.file}"
            try:
                head = fmt.read_head(self.files, file)
                layers = {name: fmt.read_tensor(self.files, file, head, fmt.LAYER + name) for name in head.header["layers"]}
                extras = {name: fmt.read_tensor(self.files, file, head, fmt.EXTRA + name) for name in head.header["extras"]}
            except fmt.BrokenError as error:
                log.warning("%s/%s %s: the model is run instead", self.files.root, file, error)
                return False
            self.write(part, layers, extras, {**head.header["extraction"], "versions": head.header["versions"]})
        return True

    @property
    def is_finished(self) -> bool:
        """Whether there is a manifest that can be believed."""
        return fmt.readable(self.files, self.folder)[0] is not None

    def finish(self, record: ModelRecord, facts: Mapping[str, Any]) -> StoredRepresentation:
        """Write the manifest, which says that the extraction is complete.

        `record` may know more than the one that the writer was opened with (parameters, scores), but
        is of the same spec and revision. `facts` say how the features came about; `mixed` is added where parts were made with
        other versions, threads or processors than others.

        Raises RepalignError if a part is missing or if parts disagree.
        """
        fmt.refuse_other(
            f"the record of {record.name}", self.identity, {**self.identity, "spec": record.spec, "revision": record.revision},
            remedy="finish with the record that the writer was opened with",
        )
        parts = self._all_parts()
        first, versions = next(iter(parts.values())), []
        for head in parts.values():
            if head.header["versions"] not in versions:
                versions.append(head.header["versions"])
        if len(versions) > 1:
            names = sorted({name for one in versions for name in one})
            differ = {name: list(dict.fromkeys(str(one.get(name, "unknown")) for one in versions)) for name in names}
            said = [f"{name} {', '.join(values)}" for name, values in differ.items() if len(values) > 1]
            known = facts["mixed"].split("; ") if "mixed" in facts else []  # of a twin it says the same already
            facts = {**facts, "mixed": "; ".join(dict.fromkeys([*known, *said]))}
        manifest = {
            "format": fmt.MANIFEST_FORMAT, "kind": fmt.KIND, "dataset": self.dataset, "record": record.to_dict(),
            "settings": self.settings, "facts": facts, "n": len(self.ids), "ids": list(self.ids),
            "extraction": first.header["extraction"], "versions": versions,
            "layers": [{"name": n, "width": w, "dtype": d} for n, w, d in first.layers], "extras": first.header["extras"],
            "parts": [
                {"file": name, "rows": h.header["rows"], "size": h.size, "sha256": h.file_sha256, "header_sha256": h.sha256}
                for name, h in parts.items()
            ],
        }  # fmt: skip
        fmt.canonical(manifest, f"the manifest of {record.spec}")
        text = seal_json(manifest, sort_keys=True, ensure_ascii=True, allow_nan=False)
        self.files.write(f"{self.folder}/{fmt.MANIFEST}", text.encode())
        written, _ = fmt.readable(self.files, self.folder)
        assert written is not None
        return StoredRepresentation(self.files, self.folder, written)

    def extras(self) -> dict[str, Tensor]:
        """The numbers per row of all parts, each (n,) in float64, whoever wrote the parts.

        For what is computed from all rows and goes into the record, before `finish`.

        Raises RepalignError if a part is missing or if parts disagree.
        """
        heads = {f"{self.folder}/{file}": head for file, head in self._all_parts().items()}
        names = next(iter(heads.values())).header["extras"]
        read = {name: [fmt.read_tensor(self.files, file, head, fmt.EXTRA + name) for file, head in heads.items()] for name in names}
        return {name: torch.cat(parts) for name, parts in read.items()}

    # ---- what is there already ------------------------------------------------------------------

    def _all_parts(self) -> dict[str, fmt.Head]:
        """Every part by file name, in order, if all are whole and agree."""
        if missing := self.missing():
            raise RepalignError(
                f"{self.record.name}: {len(missing)} of {len(self.parts)} parts are missing in {self.place}",
                got=f"no {', '.join(part.file for part in missing[:5])}{' ...' if len(missing) > 5 else ''}",
                remedy="write the missing parts, then finish",
            )
        for part in self.parts:
            head = self._checked[part.index]
            self._refuse_disagreement(part, head.header, head.layers)
        return {part.file: self._checked[part.index] for part in self.parts}

    def _is_whole(self, part: Part, size: int | None) -> bool:
        """Whether a part of this size is whole and ours; else it has to be written."""
        name = f"{self.folder}/{part.file}"
        try:
            known = self._checked.get(part.index)
            head = fmt.read_head(self.files, name, size)
            if known is None or known.sha256 != head.sha256:
                known = fmt.verify(self.files, name, size)
        except fmt.BrokenError as error:
            if error.problem != "is missing":
                log.warning("%s/%s %s: it will be written again", self.files.root, name, error)
            self._checked.pop(part.index, None)
            return False
        path = f"{self.place}/{part.file}"
        fmt.refuse_other(path, self.identity, fmt.identity_of(known.header), folder=self.place)
        begun = f"use the rows per part that this store was begun with, or delete {self.place}"
        wanted = {"rows": [part.start, part.stop], "ids": list(self.ids[part.start : part.stop])}
        for where, value in wanted.items():  # rows first: other rows have other ids
            fmt.refuse_other(path, {where: value}, {where: known.header[where]}, remedy=begun)
        self._checked[part.index] = known
        return True

    # ---- what may be written --------------------------------------------------------------------

    def _check(self, part: Part, name: str, x: Tensor, *, is_layer: bool) -> None:
        """RepalignError unless a layer is (part.n, d), of a dtype that is stored, and finite; an extra (part.n,).

        Any text that UTF-8 can hold is a name; others would make a file that no reader opens.
        """
        model, where = self.record.name, f"{self.record.name}, layer {name!r}"
        if not isinstance(name, str) or not name:
            raise RepalignError(f"{model}: {name!r} is not a name", expected="text that is not empty")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise RepalignError(f"{model}: the name {name!r} is not valid text: {error.reason}") from error
        if not is_layer:
            if x.shape != (part.n,):
                problem = f"{model}: the extra {name!r} of {part.file} has the wrong shape"
                raise RepalignError(problem, expected=f"({part.n},), one number per row", got=tuple(x.shape))
            return
        if x.ndim != 2 or x.shape[1] == 0:
            raise RepalignError(f"{where}: a layer has two dimensions", expected="shape (rows, d), d > 0", got=tuple(x.shape))
        if x.shape[0] != part.n:
            expected = f"{part.n} rows ({part.start} to {part.stop - 1})"
            raise RepalignError(f"{where}: wrong number of rows for {part.file}", expected=expected, got=f"{len(x)} rows")
        if x.dtype not in fmt.DTYPES:
            known, got = (", ".join(str(d).removeprefix("torch.") for d in dtypes) for dtypes in (fmt.DTYPES, [x.dtype]))
            raise RepalignError(f"{where}: this dtype is not stored", expected=known, got=got)
        good = torch.isfinite(x).all(dim=1)
        if not bool(good.all()):
            row = int((~good).nonzero()[0])
            what = "NaN" if bool(x[row].isnan().any()) else "infinite"
            raise RepalignError(
                f"{where}: the row of id {self.ids[part.start + row]!r} (row {part.start + row}) is {what}",
                expected="finite numbers", got=f"{int((~good).sum())} of {part.n} rows with NaN or infinity",
                remedy="run the model in float32, or in bfloat16 in place of float16, which ends at 65,504; then look at its "
                "input. In a file of features mend the row, or leave the stimulus out of the dataset",
            )

    def _refuse_disagreement(self, part: Part, header: Mapping[str, Any], layers: Sequence[tuple[str, int, str]]) -> None:
        """Refuse a part whose layers, extras or weights are not those of the first part that is there."""
        sizes = {} if self._checked else self.files.listing(self.folder)
        for first in [p for p in self.parts if p.index in self._checked or p.file in sizes]:  # known here, or else on disk
            try:
                head = self._checked.get(first.index) or fmt.read_head(self.files, f"{self.folder}/{first.file}", sizes[first.file])
                break
            except fmt.BrokenError:
                continue
        else:
            return
        who = f"{self.record.name}: {part.file} does not agree with {self.place}/{first.file}"
        expected, got = [name for name, _, _ in head.layers], [name for name, _, _ in layers]
        if got != expected:
            missing, extra = [n for n in expected if n not in got], [n for n in got if n not in expected]
            what = "the layers are in another order"
            if missing or extra:
                what = f"layer {missing[0]!r} is missing" if missing else f"layer {extra[0]!r} is not in the other parts"
            raise RepalignError(
                f"{who}: {what}", expected=f"{len(expected)} layers: {fmt.shown(expected)}",
                got=f"{len(got)} layers: {fmt.shown(got)}",
                remedy=did_you_mean(missing[0], extra) if missing and extra else None,
            )
        for (name, width, dtype), (_, w, d) in zip(head.layers, layers, strict=True):
            if (width, dtype) != (w, d):
                expects, gives = f"width {width}, {dtype}", f"width {w}, {d}"
                raise RepalignError(f"{who}: layer {name!r} differs", expected=expects, got=gives)
        for where in ("extras", "extraction"):
            ours = json.loads(fmt.canonical(header[where], "the header of a part"))
            if found := fmt.difference(head.header[where], ours, where):
                name, a, b = found
                again = f"delete {self.place} and run the extraction again"
                raise RepalignError(
                    f"{who}: {name} differs", expected=f"{name} {fmt.shown(a)}", got=f"{name} {fmt.shown(b)}", remedy=again
                )
