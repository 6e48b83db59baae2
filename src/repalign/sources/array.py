"""Features from a file: `array:path`, with one named array per layer, joined to the dataset on ids.

Which forms are read, and by which rule, is said in `repalign.features`. Without ids a file is refused, unless the entry says
`rows: true`: the rows are in the dataset's order, all of them. With `kind: rdm` or `kind: kernel` a layer is a matrix (n, n) of
pairs of stimuli: a part holds some of its rows, and as columns all stimuli of the dataset in its order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.features import Found, Reading, file_widths, is_features, names_of, read_file, sidecars
from repalign.files import file_sha256, path_bytes, path_sha256
from repalign.layers import Pairwise
from repalign.models import ModelRecord
from repalign.sources.model import Batch, Context, Layer, LoadedModel, ModelEntry, no_modality, versions
from repalign.sources.source import FILE, UNKNOWN, Answer, Asked, Facts, Source, Spec, StandIn

# Which rule files are read by: what an earlier one took for features, such as an index, is not taken from a store again.
RULE = "features 1"


def reading_of(entry: ModelEntry, n: int | None = None) -> Reading:
    """What an entry says of its file; n stimuli where its rows may be in the dataset's order."""
    n = n if entry.rows or entry.ids == "rows" else None
    return Reading(entry.id, entry.rows, entry.features, entry.vector, entry.axes, entry.kind, n)


class ArrayFile(LoadedModel):
    """Rows of a file, in the dataset's order."""

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        path = Path(spec.path)
        found = read_file(path, reading_of(entry, len(context.dataset_ids)))
        modality = entry.modality or found.facts.get("modality")
        if modality is None:
            raise no_modality(entry, "array")
        self.entry = entry
        self.rows, extra = self._join(path, found, context.dataset_ids)
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

    def _join(self, path: Path, found: Found, ids: Sequence[str]) -> tuple[Tensor, int]:
        """The row of every stimulus, and how many rows belong to none."""
        n, label = found.n, f"model {self.entry.label}"
        if found.ids is None and not (self.entry.rows or self.entry.ids == "rows"):
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
            return torch.arange(n), 0
        row_of = {id_: row for row, id_ in enumerate(found.ids)}
        lacking = [id_ for id_ in ids if id_ not in row_of]
        if lacking:
            raise RepalignError(
                f"{label}: {path.name} lacks {len(lacking)} of {len(ids)} stimuli", expected=f"ids such as {ids[0]!r}",
                got=f"no row for {', '.join(map(repr, lacking[:3]))}{' ...' if len(lacking) > 3 else ''}",
                remedy="use a subset of the dataset that the file has, or complete the file",
            )  # fmt: skip
        return torch.tensor([row_of[id_] for id_ in ids]), n - len(ids)

    def forward(self, prepared: Sequence[int]) -> Batch:
        stimuli = torch.tensor(list(prepared))
        layers = {name: x[self.rows[stimuli]] for name, x in self.arrays.items()}
        return Batch({**layers, **{name: x[stimuli] for name, x in self.by_pairs.items()}})


class Arrays(Source):
    """`array:` files of features."""

    scheme, form, example = "array", "array:path", "array:features.npy"
    is_file = True

    def local_part(self, path: str) -> str | None:
        return path

    def name(self, spec: Spec, entry: ModelEntry) -> str:
        return entry.name or Path(spec.path).stem

    def revision(self, spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG002
        path = Path(spec.path)
        if not is_features(path):
            raise RepalignError(
                f"model {spec}: there is no file {path}", got="a folder" if path.is_dir() else "nothing",
                remedy="check the path; in a study file it starts from the file's folder",
            )  # fmt: skip
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
        from repalign.sources import standins

        return standins.array_file(asked)
