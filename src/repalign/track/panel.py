"""Frozen references: layers of models on one set of stimuli, which a training is held against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from repalign.errors import RepalignError, choose, did_you_mean
from repalign.files import DamagedError, read_bytes, write_file
from repalign.layers import as_features, check_paired
from repalign.sources.model import named_by

LAST, ALL, BEST = "last", "all", "best"
BEST_BY = 10  # neighbours that layers are chosen by
FORMAT = "repalign-panel-1"
REMEDY = "make the panel again, or copy its file again"
Layers = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Panel:
    """References on n stimuli: `references[model][layer]` is an (n, d) tensor, whose row i belongs to `ids[i]`.

    named : whether ids were given. Without, rows are numbered, and are paired by position.

    >>> panel = Panel.of({"target": torch.arange(6.0).view(3, 2)}, ids=["a", "b", "c"])
    >>> panel.subset(["c", "a"]).references["target"]["features"].tolist()
    [[4.0, 5.0], [0.0, 1.0]]
    """

    ids: tuple[str, ...]
    references: Mapping[str, Layers]
    named: bool = True
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # of each model: what its features are

    def __post_init__(self) -> None:
        if not self.references:
            raise RepalignError("a panel without references", expected="at least one model", got="none")
        for name, layers in self.references.items():
            for layer, x in layers.items():
                check_paired(len(as_features(x, f"{name}, layer {layer}")), len(self.ids), f"{name}, layer {layer}", "the panel")

    @classmethod
    def of(cls, references: Mapping[str, Any], *, ids: Sequence[Any] | None = None, layers: Any = ALL) -> Panel:
        """From arrays, mappings of layers, frames, or files of features, by the name of each model.

        ids : of all rows, where the features name them nowhere. layers : which layers of each model: "all", "last", names or
        patterns, "best", or any of these by the name of a model. The best layer of a model is that with the highest z of mutual
        10-NN, in the mean over the other models of the panel, of each its best layer.

        Rows are joined on ids. Raises RepalignError for rows that cannot be paired, and for layers that are not there.
        """
        from repalign.features import join, read_features

        if not isinstance(references, Mapping) or not references:
            raise RepalignError("these are no references", expected="{name: array, mapping of layers, or file}",
                                got=repr(references).splitlines()[0][:80])  # fmt: skip
        said = {} if ids is None else {"id": list(ids)}
        joined = join([read_features(one, name=name, **said) for name, one in references.items()])
        by_name = dict(zip(references, joined.layers, strict=True))
        chosen = _with_best({name: list(some) for name, some in by_name.items()}, layers, lambda name, layer: by_name[name][layer])
        found: dict[str, Any] = {name: {k: some[k] for k in _chosen(name, list(some), chosen)} for name, some in by_name.items()}
        named = tuple(map(str, range(joined.n))) if joined.ids is None else joined.ids
        return cls(named, found, joined.ids is not None)

    @classmethod
    def from_store(
        cls, store: Any, models: Sequence[str] | None = None, layers: Any = LAST, *, dataset: str | None = None
    ) -> Panel:
        """From a feature store: all of its models, or those named; by default the last layer of each.

        layers : as in `of`. dataset : the name of the dataset, where the store holds several.

        Raises RepalignError for a model or layer that is not there, and for several datasets.
        """
        from repalign.representation import check_same_dataset
        from repalign.store import FeatureStore

        store = store if isinstance(store, FeatureStore) else FeatureStore(store)
        there = store.representations()
        if dataset is not None:
            choose("dataset", dataset, {r.dataset_name for r in there}, f"{store.url}: no dataset {dataset!r}")
        there = [r for r in there if dataset in (None, r.dataset_name)]
        for name in models or ():
            choose("model", name, {r.name for r in there}, f"{store.url}: no model {name!r}")
        wanted = [r for r in there if models is None or r.name in models]
        if not wanted:
            raise RepalignError(f"{store.url} holds no complete model", expected="features", got="none")
        if len({r.name for r in wanted}) < len(wanted):
            sets = ", ".join(sorted({r.dataset_name for r in wanted}))
            raise RepalignError(f"{store.url}: a model is kept several times", expected="one data set, read in one way", got=sets,
                                remedy="name the dataset, or give the features themselves")  # fmt: skip
        check_same_dataset(wanted)
        order = {name: i for i, name in enumerate(models or ())}
        wanted.sort(key=lambda r: order.get(r.name, 0))
        by_name = {r.name: r for r in wanted}
        chosen = _with_best({r.name: r.layers for r in wanted}, layers, lambda name, layer: by_name[name].load(layer))
        found: dict[str, Any] = {r.name: {k: r.load(k) for k in _chosen(r.name, r.layers, chosen)} for r in wanted}
        facts = {r.name: {"spec": r.record.spec, "revision": r.record.revision, "dataset": r.dataset_name} for r in wanted}
        return cls(wanted[0].ids, found, facts=facts)

    @property
    def n(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        told = ", ".join(f"{name} ({len(layers)})" for name, layers in self.references.items())
        return f"Panel(n={self.n}, {told})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, names and numbers: equal digests, equal panels."""
        sha = hashlib.sha256(json.dumps([FORMAT, self.named, self.ids, dict(self.facts)], sort_keys=True).encode())
        for name, layers in self.references.items():
            for layer, x in layers.items():
                sha.update(json.dumps([name, layer, list(x.shape), str(x.dtype)]).encode())
                sha.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return sha.hexdigest()

    def subset(self, ids: Iterable[Any]) -> Panel:
        """The same references on some of the stimuli, in the order of `ids`. RepalignError for an id that is not there."""
        wanted, row = tuple(map(str, ids)), {one: i for i, one in enumerate(self.ids)}
        if lost := [one for one in wanted if one not in row]:
            raise RepalignError(f"the panel has no id {lost[0]!r}", expected=f"ids such as {self.ids[0]!r}", got=lost[0],
                                remedy=did_you_mean(lost[0], self.ids))  # fmt: skip
        if len(set(wanted)) < len(wanted) or not wanted:
            raise RepalignError("a subset has each id once", expected="different ids", got=f"{len(wanted)} ids")
        at = torch.tensor([row[one] for one in wanted])
        some = {name: {k: x[at] for k, x in layers.items()} for name, layers in self.references.items()}
        return Panel(wanted, some, True, self.facts)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with all of it, under a seal that `load` checks."""
        from safetensors.torch import save

        tensors, models = {}, {}
        for i, (name, layers) in enumerate(self.references.items()):
            models[name] = list(layers)
            tensors |= {f"{i}.{k}": x.detach().cpu().contiguous() for k, x in enumerate(layers.values())}
        about = {"models": models, "ids": self.ids, "named": self.named, "facts": dict(self.facts)}
        write_file(Path(path), save(tensors, {"format": FORMAT, "about": json.dumps(about), "digest": self.digest}))
        return Path(path)

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether a file is a panel, of any version."""
        path = Path(path)
        if not path.is_file() or path.suffix != ".safetensors":
            return False
        with path.open("rb") as handle:
            head = handle.read(min(int.from_bytes(handle.read(8), "little"), 1 << 26))
        return b'"format":"repalign-panel-' in head.replace(b'": "', b'":"')

    @classmethod
    def load(cls, path: str | Path) -> Panel:
        """Read what `save` has written. DamagedError for a file that is no panel, of another version, or not what was written."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = Path(path)
        data = read_bytes(path, REMEDY)
        try:
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
            tensors = load(data)
        except (ValueError, SafetensorError, AttributeError) as error:
            raise DamagedError(path, "is no whole safetensors file", got=str(error)[:120], remedy=REMEDY) from error
        if (got := metadata.get("format")) != FORMAT:
            raise DamagedError(path, "is no panel of this version", expected=FORMAT, got=got or "a file without a panel",
                               remedy="make the panel with this version of repalign")  # fmt: skip
        try:
            about = json.loads(metadata["about"])
            models = enumerate(about["models"].items())
            found = {name: {k: tensors[f"{i}.{j}"] for j, k in enumerate(layers)} for i, (name, layers) in models}
            panel = cls(tuple(about["ids"]), found, about["named"], about["facts"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(path, "is no whole panel", got=repr(error)[:120], remedy=REMEDY) from error
        if panel.digest != metadata.get("digest"):
            raise DamagedError(path, "is not what was written", expected=f"digest {metadata.get('digest')}",
                               got=f"digest {panel.digest}", remedy=REMEDY)  # fmt: skip
        return panel


def _with_best(there: Mapping[str, Sequence[str]], layers: Any, load: Callable[[str, str], Any]) -> Any:
    """The layers that are asked for, by model, with the name of the best one in the place of "best"."""
    asked = {name: layers.get(name, LAST) if isinstance(layers, Mapping) else layers for name in there}
    wanted = [name for name, one in asked.items() if isinstance(one, str) and one == BEST and BEST not in there[name]]
    if not wanted:
        return layers
    if len(there) < 2:
        raise RepalignError("nothing says which layer is best", expected="at least two models, which are compared with each other",
                            got="one", remedy="name a layer, or say 'last'")  # fmt: skip
    import numpy as np

    import repalign.null as nulls
    from repalign.measures import MutualKNN

    first = as_features(load(*next((name, some[0]) for name, some in there.items())))
    measure, null = MutualKNN(k=max(1, min(BEST_BY, len(first) // 2))), nulls.Closed()
    prepared = {}
    for name, some in there.items():
        prepared[name] = null.prepare(measure, [measure.prepare(as_features(load(name, k))) for k in some])
    out = dict(asked)
    for name in wanted:
        others = [null.judge(measure, prepared[name], prepared[other]).cells.z.max(axis=1) for other in there if other != name]
        out[name] = there[name][int(np.nan_to_num(np.mean(others, axis=0), nan=-np.inf).argmax())]
    return out


def _chosen(model: str, there: Sequence[str], layers: Any) -> list[str]:
    """The names of layers that are asked for, in the order in which the model has them."""
    wanted = layers.get(model, LAST) if isinstance(layers, Mapping) else layers
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    found = set()
    for one in wanted:
        some = list(there) if one == ALL else [there[-1]] if one == LAST and LAST not in there else named_by(one, there)
        if not some:
            choose("layer", str(one), there, f"{model}: no layer {one!r}")
        found |= set(some)
    return [name for name in there if name in found]
