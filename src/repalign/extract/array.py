"""Features from a file: `array:path`, with one named array per layer, joined to the dataset on ids.

| file | layers | ids |
| --- | --- | --- |
| .npy | one, "features" | a sidecar file |
| .npz | one per array, `ids` apart (never pickled) | array `ids`, or a sidecar |
| .safetensors | one per tensor, in the order of metadata `layers` | metadata `ids` (a JSON list), or a sidecar |
| .parquet | a column of lists, each; or all numeric columns as one | column `id`, or a sidecar |
| .pt | platonic-rep's {feats (n, layers, d), num_params, bpb}, or tensors by name | a sidecar |

A sidecar is `<file>.ids.txt` (one id per line) or `<file>.ids.json` (a list). Without ids an array is refused, unless
the entry says `ids: rows`: the rows are in the dataset's order, all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError, did_you_mean
from repalign.extract._base import Batch, Context, Layer, ModelEntry, Source, choose, no_modality, versions
from repalign.extract._files import file_digest
from repalign.models import ModelRecord, Spec

KNOWN_FACTS = ("model", "objective", "modality", "pooling", "source", "published_imagenet_top1")


@dataclass(frozen=True)
class ArrayFile:
    """What a file of features holds."""

    layers: dict[str, Tensor]  # each (n, d)
    ids: tuple[str, ...] | None
    facts: dict[str, Any] = field(default_factory=dict)
    n_parameters: int | None = None
    scores: dict[str, float] = field(default_factory=dict)


def revision(spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG001
    path = Path(spec.path)
    if not path.is_file():
        raise RepalignError(
            f"model {spec}: there is no file {path}",
            got="a folder" if path.is_dir() else "nothing",
            remedy="check the path; in a study file it starts from the file's folder",
        )
    beside = [file_digest(p) for p in _sidecars(path) if p.is_file()]
    return "local-" + hashlib.sha256(":".join([file_digest(path), *beside]).encode()).hexdigest()[:16]


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    return ArraySource(spec, entry, context)


def read_array_file(path: str | Path) -> ArrayFile:
    """Read a file of features in any of the forms above; no pickle is ever loaded."""
    path = Path(path)
    readers = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
        ".parquet": _read_parquet,
        ".pt": _read_pt,
        ".pth": _read_pt,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RepalignError(
            f"{path}: not a file of features that can be read",
            expected=", ".join(readers),
            got=path.suffix or "no suffix",
            remedy=did_you_mean(path.suffix, readers),
        )
    if not path.is_file():
        raise RepalignError(f"{path}: there is no such file", remedy="check the path")
    try:
        found = reader(path)
    except RepalignError:
        raise
    except Exception as error:  # each library raises its own kinds for a broken file
        raise RepalignError(
            f"{path}: the file cannot be read",
            expected=f"a whole {path.suffix} file of numbers",
            got=(str(error).splitlines() or [type(error).__name__])[0][:200],
            remedy="write it again; object arrays and pickles are never loaded",
        ) from error
    for name, x in found.layers.items():
        if x.ndim != 2 or 0 in x.shape:
            raise RepalignError(
                f"{path}, layer {name}: not (n, d)",
                expected="two dimensions, one row per stimulus",
                got=f"shape {tuple(x.shape)}",
                remedy="pool or flatten each stimulus to one vector",
            )
    rows = {len(x) for x in found.layers.values()}
    if len(rows) != 1 or not found.layers:
        raise RepalignError(f"{path}: layers of different row counts", expected="one n", got=sorted(rows) or "no layer")
    ids = found.ids if found.ids is not None else _sidecar(path)
    if ids is not None and (len(ids) != rows.copy().pop() or len(set(ids)) != len(ids)):
        raise RepalignError(
            f"{path}: ids do not fit the rows",
            expected=f"{rows.pop()} distinct ids",
            got=f"{len(ids)} ids, {len(set(ids))} distinct",
        )
    return ArrayFile(found.layers, ids, found.facts, found.n_parameters, found.scores)


class ArraySource(Source):
    """Rows of a file, in the dataset's order."""

    kind = None

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context) -> None:
        path = Path(spec.path)
        found = read_array_file(path)
        modality = entry.modality or found.facts.get("modality")
        if modality is None:
            raise no_modality(entry.label, "array")
        self.entry = entry
        self.rows, extra = self._join(path, found, context.dataset_ids)
        self.layers = choose([Layer(n, "array of the file") for n in found.layers], entry.layers, entry.label)
        self.arrays = {layer.name: _wide(found.layers[layer.name]) for layer in self.layers}
        for name, x in self.arrays.items():
            bad = torch.nonzero(~torch.isfinite(x[self.rows]).all(dim=1)).flatten()
            if len(bad):
                row = int(bad[0])
                raise RepalignError(
                    f"model {entry.label}, layer {name}: row of id {context.dataset_ids[row]!r} is not finite",
                    expected="finite numbers",
                    got=f"{len(bad)} rows with NaN or infinity",
                    remedy="leave these stimuli out of the dataset, or repair the file",
                )
        self.weights = file_digest(path)
        self.record = ModelRecord(
            spec=str(spec),
            name=entry.name or path.stem,
            modality=str(modality),
            objective=found.facts.get("objective"),
            n_parameters=found.n_parameters,
            scores=found.scores,
        )
        self.facts = {
            **{f"file_{k}": v for k, v in found.facts.items()},
            "source": "array",
            "rows": "in the dataset's order, as the entry says" if found.ids is None else "joined on ids",
            "rows_not_in_the_dataset": extra,
            "versions": versions("safetensors", "numpy", "pyarrow"),
        }

    def _join(self, path: Path, found: ArrayFile, ids: Sequence[str]) -> tuple[Tensor, int]:
        """The row of every stimulus, and how many rows belong to none."""
        n = len(next(iter(found.layers.values())))
        if found.ids is None:
            if self.entry.ids != "rows":
                raise RepalignError(
                    f"model {self.entry.label}: {path.name} says no ids",
                    expected=f"ids in the file or in {path.name}.ids.txt beside it, one per row",
                    got=f"{n} rows without ids",
                    remedy="write that file, or say `ids: rows` if the rows are in the dataset's order",
                )
            if n != len(ids):
                raise RepalignError(
                    f"model {self.entry.label}: {path.name} has another number of rows than the dataset",
                    expected=f"n = {len(ids)}",
                    got=f"n = {n}",
                    remedy="give the file ids, so that rows can be joined",
                )
            return torch.arange(n), 0
        row_of = {id_: row for row, id_ in enumerate(found.ids)}
        lacking = [id_ for id_ in ids if id_ not in row_of]
        if lacking:
            raise RepalignError(
                f"model {self.entry.label}: {path.name} lacks {len(lacking)} of {len(ids)} stimuli",
                expected=f"ids such as {ids[0]!r}",
                got=f"no row for {', '.join(map(repr, lacking[:3]))}{' ...' if len(lacking) > 3 else ''}",
                remedy="use a subset of the dataset that the file has, or complete the file",
            )
        return torch.tensor([row_of[id_] for id_ in ids]), n - len(ids)

    def forward(self, prepared: Sequence[int]) -> Batch:
        rows = self.rows[torch.tensor(list(prepared))]
        return Batch({name: x[rows] for name, x in self.arrays.items()})


def join_files(
    x: str | Path, y: str | Path
) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...] | None, str]:
    """The layers of two files with paired rows, their ids if both have some, and a sentence that says how.

    Where both files have ids, the rows of x whose id y has too are kept, in the order of x; else row i goes with row i
    and both need the same number of rows.
    """
    a, b = read_array_file(x), read_array_file(y)
    n_a, n_b = (len(next(iter(f.layers.values()))) for f in (a, b))
    if a.ids is None or b.ids is None:
        if n_a != n_b:
            raise RepalignError(
                f"{x} and {y} have different numbers of rows",
                expected="row i of both describing the same stimulus",
                got=f"n = {n_a} and n = {n_b}",
                remedy=f"give both files ids, for instance {Path(x).name}.ids.txt with one id per line",
            )
        return (
            a.layers,
            b.layers,
            None,
            "row i of one is paired with row i of the other: not both files say ids",
        )
    row_of = {id_: row for row, id_ in enumerate(b.ids)}
    ids = tuple(id_ for id_ in a.ids if id_ in row_of)
    if not ids:
        raise RepalignError(f"{x} and {y} have no id in common", expected="ids such as " + repr(a.ids[0]), got=b.ids[0])
    at = {id_: row for row, id_ in enumerate(a.ids)}
    rows_a, rows_b = torch.tensor([at[i] for i in ids]), torch.tensor([row_of[i] for i in ids])
    left, right = ({n: t[rows] for n, t in f.layers.items()} for f, rows in ((a, rows_a), (b, rows_b)))
    how = f"joined on {len(ids)} ids; {n_a - len(ids)} and {n_b - len(ids)} rows have no partner and are left out"
    return left, right, ids, how


def _wide(x: Tensor) -> Tensor:
    """float64 as it is, all else (half precision, whole numbers) as float32."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


# --- one reader per form -----------------------------------------------------------------------


def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def _read_npy(path: Path) -> ArrayFile:
    return ArrayFile({"features": _tensor(np.load(path, allow_pickle=False))}, None)


def _read_npz(path: Path) -> ArrayFile:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    ids = arrays.pop("ids", None)
    return ArrayFile({n: _tensor(x) for n, x in arrays.items()}, None if ids is None else tuple(map(str, ids)))


def _read_safetensors(path: Path) -> ArrayFile:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        names = json.loads(metadata["layers"]) if "layers" in metadata else sorted(file.keys())
        layers = {name: file.get_tensor(name) for name in names}
    ids = tuple(map(str, json.loads(metadata["ids"]))) if "ids" in metadata else None
    facts = {k: metadata[k] for k in KNOWN_FACTS if k in metadata}
    scores = {}
    if "published_imagenet_top1" in facts:
        try:
            scores["imagenet_top1"] = float(facts["published_imagenet_top1"])
        except ValueError:
            facts["imagenet_top1"] = "not a number in the file's metadata"
    return ArrayFile(layers, ids, facts, scores=scores)


def _read_parquet(path: Path) -> ArrayFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    ids = tuple(map(str, table["id"].to_pylist())) if "id" in table.column_names else None
    columns = [c for c in table.column_names if c != "id"]
    lists = [c for c in columns if pa.types.is_nested(table.schema.field(c).type)]
    layers = {c: _tensor(np.array(table[c].to_pylist(), dtype=np.float64)) for c in lists}
    numeric = [c for c in columns if pa.types.is_floating(t := table.schema.field(c).type) or pa.types.is_integer(t)]
    if numeric:
        layers["features"] = _tensor(np.stack([table[c].to_numpy() for c in numeric], axis=1).astype(np.float64))
    return ArrayFile(layers, ids)


def _read_pt(path: Path) -> ArrayFile:
    held = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(held, Tensor):
        return ArrayFile(_stack(held), None)
    if not isinstance(held, Mapping):
        raise RepalignError(f"{path}: holds neither a tensor nor named tensors", got=type(held).__name__)
    if "feats" not in held:
        layers = {str(k): v for k, v in held.items() if isinstance(v, Tensor) and v.ndim == 2}
        return ArrayFile(layers, None)
    feats = held["feats"]
    layers = _stack(feats) if isinstance(feats, Tensor) else {f"layer.{i}": x for i, x in enumerate(feats)}
    scores = {"bits_per_byte": float(_mean(held["bpb"]))} if held.get("bpb") is not None else {}
    count = held.get("num_params")
    return ArrayFile(layers, None, {"source": "platonic-rep"}, None if count is None else int(count), scores)


def _stack(x: Tensor) -> dict[str, Tensor]:
    """(n, layers, d) as layers; (n, d) as one."""
    return {f"layer.{i}": x[:, i] for i in range(x.shape[1])} if x.ndim == 3 else {"features": x}


def _mean(x: Any) -> float:
    return float(torch.as_tensor(x, dtype=torch.float64).mean())


def _sidecar(path: Path) -> tuple[str, ...] | None:
    text, listed = _sidecars(path)
    if text.is_file():
        return tuple(line.strip() for line in text.read_text("utf-8-sig").splitlines() if line.strip())
    if listed.is_file():
        return tuple(map(str, json.loads(listed.read_text("utf-8-sig"))))
    return None


def _sidecars(path: Path) -> tuple[Path, Path]:
    """Where the ids of a file that holds none may lie."""
    return path.with_name(path.name + ".ids.txt"), path.with_name(path.name + ".ids.json")
