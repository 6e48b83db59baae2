"""A representation that lies in a store and is read layer by layer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError, choose
from repalign.files import Files
from repalign.layers import FEATURES, KINDS, Given
from repalign.models import ModelRecord
from repalign.representation import Representation
from repalign.store import format as fmt


class StoredRepresentation(Representation):
    """All layers of one model on one dataset, in a store; nothing is read before it is asked for.

    Every read is checked against the digests in the part, and the part against the manifest.
    """

    def __init__(self, files: Files, folder: str, manifest: dict[str, Any]) -> None:
        self.files, self.folder, self.manifest = files, folder, manifest
        self.record = ModelRecord(**manifest["record"])
        self.name = self.record.name
        self.dataset_name = str(manifest["dataset"].get("name", ""))
        self.dataset_fingerprint = manifest["dataset"]["fingerprint"]
        self.ids, self.n = tuple(manifest["ids"]), len(manifest["ids"])
        self.layers = tuple(layer["name"] for layer in manifest["layers"])
        self.widths = tuple(layer["width"] for layer in manifest["layers"])
        asked = manifest["settings"].get("kind")
        self.kinds = dict.fromkeys(self.layers, asked if asked in KINDS else FEATURES)
        self.extras: tuple[str, ...] = tuple(manifest["extras"])
        self.facts: Mapping[str, Any] = manifest["facts"]
        self._described = {layer["name"]: layer for layer in manifest["layers"]}
        self._heads: dict[str, fmt.Head] = {}
        self._sizes: dict[str, int | None] = {}

    def __repr__(self) -> str:
        return f"StoredRepresentation({self.name!r}, n={self.n}, {len(self.layers)} layers, {self.path!r})"

    @cached_property
    def key(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A digest of the extraction hash and of the seals of the parts, and so of every byte of the arrays.

        An extraction that was made anew on another machine may differ in its last digits, and is then another one.
        """
        seals = [part["header_sha256"] for part in self.manifest["parts"]]
        return hashlib.sha256("\n".join([self.folder.rpartition("/")[2], *seals]).encode()).hexdigest()[:16]

    @property
    def path(self) -> str:
        return f"{self.files.root}/{self.folder}"

    def width(self, layer: str) -> int:
        """d of one layer."""
        self.check_layer(layer)
        return self._described[layer]["width"]

    def dtype(self, layer: str) -> torch.dtype:
        """The dtype in which a layer is stored."""
        self.check_layer(layer)
        return fmt.TORCH_DTYPES[self._described[layer]["dtype"]]

    def with_record(self, record: ModelRecord) -> StoredRepresentation:
        """The same features under a record with another name, family or scores; the store is not changed.

        Raises RepalignError if the record is of another spec or revision.
        """
        for field in ("spec", "revision"):
            ours, other = getattr(self.record, field), getattr(record, field)
            if ours != other:
                problem = f"{self.path} is of another model: {field} differs"
                raise RepalignError(problem, expected=f"{field} {ours}", got=f"{field} {other}")
        return StoredRepresentation(self.files, self.folder, {**self.manifest, "record": record.to_dict()})

    def load(self, layer: str) -> Given:
        """One layer as an (n, d) tensor in its stored dtype, or as the RDM or Kernel that it is.

        RepalignError if a part is missing or broken.
        """
        if layer not in self._described:
            self.check_layer(layer)
        kind, form = self.kinds[layer], self._described[layer]
        out = torch.empty(self.n, form["width"], dtype=fmt.TORCH_DTYPES[form["dtype"]])
        for part in self.manifest["parts"]:
            start, stop = part["rows"]
            out[start:stop] = self._read(part, fmt.LAYER + layer)
        return out if kind == FEATURES else KINDS[kind](out, where=f"{self.name}, layer {layer!r}")

    def extra(self, name: str) -> Tensor:
        """One number per row, (n,) in float64, that was stored with the layers."""
        choose("extra", name, self.extras, f"{self.name}: no extra {name!r} is stored")
        return torch.cat([self._read(part, fmt.EXTRA + name) for part in self.manifest["parts"]])

    def iter_rows(self, layer: str, block: int) -> Iterator[tuple[int, Tensor]]:
        """One layer in blocks of `block` rows (the last may be shorter): (first row, tensor (rows, d)).

        No more than one block and one part are in memory.
        """
        self.check_layer(layer)
        if block < 1:
            raise RepalignError("a block has at least one row", expected="block >= 1", got=block)
        first, waiting = 0, []
        for part in self.manifest["parts"]:
            rows = self._read(part, fmt.LAYER + layer)
            while len(rows):
                take = block - sum(map(len, waiting))
                waiting.append(rows[:take])
                rows = rows[take:]
                if sum(map(len, waiting)) == block:
                    yield first, torch.cat(waiting)
                    first, waiting = first + block, []
        if waiting:
            yield first, torch.cat(waiting)

    def _read(self, part: Mapping[str, Any], tensor: str) -> Tensor:
        name = f"{self.folder}/{part['file']}"
        try:
            if name not in self._heads:  # held to the manifest when it is first read
                self._sizes = self._sizes or self.files.listing(self.folder)
                head = fmt.read_head(self.files, name, self._sizes.get(part["file"]))
                if head.sha256 != part["header_sha256"]:
                    seals = f"header sha256 {part['header_sha256']}", f"header sha256 {head.sha256}"
                    raise fmt.BrokenError("is not the part of which the manifest speaks", *seals)
                if found := fmt.disagreement(self.manifest, part, head):
                    field, here, there = found
                    values = f"{field} {fmt.shown(here)}", f"{field} {fmt.shown(there)}"
                    raise fmt.BrokenError(f"does not agree with the manifest: {field} differs", *values)
                self._heads[name] = head
            return fmt.read_tensor(self.files, name, self._heads[name], tensor)
        except fmt.BrokenError as error:
            raise RepalignError(
                f"{self.name}: {self.files.root}/{name} {error.problem}", expected=error.expected, got=error.got,
                remedy=f"look at the whole store with `repalign check {self.files.root}`, delete that part "
                "and run the extraction again: only what is missing is computed",
            ) from error


class BrokenRepresentation(StoredRepresentation):
    """An extraction whose manifest is not the one that was written.

    It has a place and the name of a model, so that a store can be listed; what only the changed manifest says (scores,
    parameters) is not passed on. Any use of it is a RepalignError that names the file and what differs.
    """

    def __init__(self, files: Files, folder: str, manifest: fmt.Manifest) -> None:
        self.files, self.folder = files, folder
        said = manifest.data["record"]
        self.record = ModelRecord(said["spec"], said["name"], said["modality"], said["revision"])
        self.name = self.record.name
        self._broken = manifest

    def __repr__(self) -> str:
        return f"BrokenRepresentation({self.name!r}, {self.path!r})"

    def __getattr__(self, name: str) -> Any:
        """Any attribute that only a whole one has."""
        if name == "_broken" or name.startswith("__"):
            raise AttributeError(name)
        raise fmt.refusal(self.files, self.folder, self._broken)
