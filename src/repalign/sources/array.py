"""Features from a file: `array:path`, with one named array per layer, joined to the dataset on ids.

Which forms are read, and by which rule, is said in `repalign.features`. Without ids a file is refused, unless the entry says
`rows: true`: the rows are in the dataset's order, all of them. With `kind: rdm` or `kind: kernel` a layer is a matrix (n, n) of
pairs of stimuli: a part holds some of its rows, and as columns all stimuli of the dataset in its order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from repalign.errors import RepalignError, about, nearby
from repalign.features import Found, Reading, file_rows, file_widths, is_features, names_of, read_file, sidecars
from repalign.files import file_sha256, path_bytes, path_sha256
from repalign.layers import KINDS, Pairwise
from repalign.models import ModelRecord
from repalign.sources.model import Batch, Context, Layer, LoadedModel, ModelEntry, no_modality, versions
from repalign.sources.source import FILE, UNKNOWN, Answer, Asked, Facts, Source, Spec, StandIn, parse_spec

if TYPE_CHECKING:
    from repalign.dataset import Dataset

# Which rule files are read by: what an earlier one took for features, such as an index, is not taken from a store again.
RULE = "features 1"


def reading_of(entry: ModelEntry, n: int | None = None) -> Reading:
    """What an entry says of its file; n stimuli where its rows may be in the dataset's order."""
    n = n if entry.rows or entry.ids == "rows" else None
    return Reading(entry.id, entry.rows, entry.features, entry.vector, entry.axes, entry.kind, n)


def rows_of(entry: ModelEntry, n: int | None = None) -> Found:
    """The rows of an entry's file, by its header; n stimuli where there is a dataset."""
    return file_rows(parse_spec(entry.spec).path, reading_of(entry, n))


def as_read(entry: ModelEntry, dataset: Dataset, *, of_sides: bool, by_position: bool = False) -> ModelEntry:
    """An entry of a study with what nothing hangs on, and a file need not say.

    That is its modality, but where models of two sides read a dataset of several; and that it is paired by position.
    """
    if not parse_spec(entry.spec).source.is_file:
        return entry
    entry = replace(entry, ids="rows") if by_position else entry
    if entry.modality is not None or (of_sides and len(dataset.modalities) > 1):
        return entry
    with suppress(RepalignError):  # the file may be yet to come
        if "modality" in rows_of(entry, dataset.n).facts:
            return entry
    return replace(entry, modality=dataset.modalities[0] if len(dataset.modalities) == 1 else "array")


class ArrayFile(LoadedModel):
    """Rows of a file, in the dataset's order."""

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        path = Path(spec.path)
        found = read_file(path, reading_of(entry, len(context.dataset_ids)))
        modality = entry.modality or found.facts.get("modality")
        if modality is None:
            raise no_modality(entry, "array")
        self.entry = entry
        rows = _rows(entry, path, found, context.dataset_ids)
        self.rows, extra = torch.tensor(rows), found.n - len(rows)
        self.layers = self.choose_layers([Layer(n, "array of the file") for n in found.layers])
        # By the rows of the file; what is given by pairs at once by the stimuli of the dataset, in its columns too.
        self.arrays: dict[str, Tensor] = {}
        self.by_pairs: dict[str, Tensor] = {}
        for name, x in ((layer.name, found.layers[layer.name]) for layer in self.layers):
            if isinstance(x, Pairwise):
                self.by_pairs[name] = x[self.rows].matrix
            else:
                self.arrays[name] = x
        self.weights = path_sha256(path)
        self.record = ModelRecord(
            str(spec), spec.source.name(spec, entry), str(modality), objective=found.facts.get("objective"),
            n_parameters=found.n_parameters, scores=dict(found.scores),
        )  # fmt: skip
        self.facts = {
            **{f"file_{k}": v for k, v in found.facts.items()}, "source": "array",
            "rows": "in the dataset's order, as the entry says" if found.ids is None else "joined on ids",
            "read": found.how, **({"kind": entry.kind} if self.by_pairs else {}), "rows_not_in_the_dataset": extra,
            "versions": versions("safetensors", "numpy", "pyarrow"),
        }  # fmt: skip

    def forward(self, prepared: Sequence[int]) -> Batch:
        stimuli = torch.tensor(list(prepared))
        layers = {name: x[self.rows[stimuli]] for name, x in self.arrays.items()}
        return Batch({**layers, **{name: x[stimuli] for name, x in self.by_pairs.items()}})


def _rows(entry: ModelEntry, path: Path, found: Found, ids: Sequence[str]) -> list[int]:
    """The row of every stimulus. RepalignError for one without, and for a file whose rows nothing names."""
    n, label = found.n, f"model {entry.label}"
    if found.ids is None and not (entry.rows or entry.ids == "rows"):
        could = found.candidates
        told = (f"; {names_of(could)} could be", f"say `id: {could[0].name}`") if could else ("", "write that file")
        raise RepalignError(
            f"{label}: {path.name} says no ids",
            expected=f"ids in the file or in {path.name}.ids.txt beside it, one per row", got=f"{n} rows without ids{told[0]}",
            remedy=f"{told[1]}, or say `ids: rows` if the rows are in the dataset's order",
        )  # fmt: skip
    if found.ids is None and n != len(ids):
        raise RepalignError(
            f"{label}: {path.name} has another number of rows than the dataset", expected=f"n = {len(ids)}", got=f"n = {n}",
            remedy="give the file ids, so that rows can be joined",
        )  # fmt: skip
    if found.ids is None:
        return list(range(n))
    row_of = {id_: row for row, id_ in enumerate(found.ids)}
    lacking = [id_ for id_ in ids if id_ not in row_of]
    if lacking:
        raise RepalignError(
            f"{label}: {path.name} lacks {len(lacking)} of {len(ids)} stimuli", expected=f"ids such as {ids[0]!r}",
            got=f"no row for {', '.join(map(repr, lacking[:3]))}{' ...' if len(lacking) > 3 else ''}",
            remedy="use a subset of the dataset that the file has, or complete the file",
        )  # fmt: skip
    return [row_of[id_] for id_ in ids]


class Arrays(Source):
    """`array:` files of features."""

    scheme, form, example = "array", "array:path", "array:features.npy"
    is_file = True

    def local_part(self, path: str) -> str | None:
        return path

    def name(self, spec: Spec, entry: ModelEntry) -> str:
        return entry.name or Path(spec.path).stem

    def check(self, spec: Spec, entry: ModelEntry) -> None:
        """Whether the file is there, and its header and ids can be read."""
        super().check(spec, entry)
        path = Path(spec.path)
        if not is_features(path):
            raise RepalignError(
                f"model {spec}: there is no file {path}", got="a folder" if path.is_dir() else "nothing", remedy=nearby(path),
            )  # fmt: skip
        if (entry.rows or entry.ids == "rows") and entry.kind not in KINDS:  # which of three axes they are only the data tells
            entry = replace(entry, axes=entry.axes or "nld")
        rows_of(entry)

    def check_data(self, spec: Spec, entry: ModelEntry, facts: Facts, dataset: Dataset) -> None:  # noqa: ARG002
        found = rows_of(entry, dataset.n)
        with about("ids"):
            _rows(entry, Path(spec.path), found, dataset.ids)
        if entry.modality is None and "modality" not in found.facts:
            with about("modality"):
                raise no_modality(entry, self.scheme)

    def revision(self, spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG002
        path = Path(spec.path)
        beside = [file_sha256(p) for p in sidecars(path) if p.is_file()]
        return "local-" + hashlib.sha256(":".join([RULE, path_sha256(path), *beside]).encode()).hexdigest()[:16]

    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:  # noqa: ARG002
        """Widths of all layers without reading them; None where a form has no header that says them, or the file is broken."""
        path = Path(spec.path)
        if not is_features(path):
            return Facts()
        try:
            found = file_widths(path, reading_of(entry))
        except Exception:  # each library raises its own kinds for a broken file; the run will say what is wrong
            found = None
        said = {} if found is None else {"widths": tuple(found.values()), "names": tuple(found)}
        return Facts(
            **said, file_bytes=path_bytes(path), download_bytes=0, reads_array=True, download_from=FILE,
            layers_from=UNKNOWN if found is None else FILE,
        )  # fmt: skip

    load = ArrayFile

    def stand_in(self, asked: Asked) -> StandIn:
        from repalign.sources import standin_models

        return standin_models.array_file(asked)
