"""What stands beside the scores: findings, p-values over all pairs of models, and what was run."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from repalign import null as nulls
from repalign.comparison.alignment import is_mock
from repalign.comparison.doctor import examine
from repalign.comparison.streamed import METHOD as STREAMED
from repalign.comparison.tiles import Scored, Tile, keep, kept
from repalign.layers import Given
from repalign.models import COMPETENCES
from repalign.representation import Representation
from repalign.text import Progress

LIBRARIES = ("numpy", "scipy", "torch", "transformers", "timm", "sentence-transformers", "safetensors", "pyarrow")


class Examination:
    """The doctor's look at every layer, once: while it is in memory for the measures, or afterwards.

    Findings are kept beside the tiles.
    """

    def __init__(self, representations: Sequence[Representation], folder: Path | None) -> None:
        self.representations = list({r.key: r for r in representations}.values())
        self.folder = folder
        self.seen: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for r in self.representations:
            found = None if self.folder is None else kept(self._path(self.folder, r), r.key)
            if found is not None:
                self.seen[r.key] = found

    def look(self, r: Representation, layer: str, x: Given, dtype: torch.dtype) -> None:
        """Examine one layer, x, stored in this dtype, unless that was done."""
        layers = self.seen.setdefault(r.key, {})
        if layer in layers:
            return
        stored = r.facts.get("store_dtype") or str(dtype).removeprefix("torch.")
        layers[layer] = [asdict(f) for f in examine(x, model=r.name, layer=layer, stored_dtype=stored, facts=r.facts)]
        if self.folder is not None and len(layers) == len(r.layers):
            keep(self._path(self.folder, r), r.key, layers)

    def findings(self, progress: Progress) -> list[dict[str, Any]]:
        """All findings, model by model in their order; what nobody has looked at is looked at now."""
        missing = [
            (r, layer) for r in self.representations for layer in r.layers if layer not in self.seen.get(r.key, {})
        ]
        for done, (r, layer) in enumerate(missing):
            progress("examine", done, len(missing))
            stored = r.load(layer)
            self.look(r, layer, stored, stored.dtype)
        if missing:
            progress("examine", len(missing), len(missing))
        return [
            {**f, "model": r.name} for r in self.representations for layer in r.layers for f in self.seen[r.key][layer]
        ]

    def _path(self, folder: Path, r: Representation) -> Path:
        return folder / "findings" / f"{r.key}.json"


def across_pairs(tiles: Sequence[Tile], scored: Sequence[Scored]) -> pd.DataFrame:
    """The whole table, with p-values adjusted over the pairs of models of each measure."""
    table = pd.concat([s.rows for s in scored], ignore_index=True)
    is_max = table["scope"] == "max"  # one row per tile, in order
    for measure in dict.fromkeys(repr(t.measure) for t in tiles):
        which = [i for i, t in enumerate(tiles) if repr(t.measure) == measure]
        at = table.index[is_max & (table["measure"] == measure)]
        p, observed = (table.loc[at, c].to_numpy() for c in ("pvalue", "statistic"))
        null, streams = tiles[which[0]].settings.null, [tiles[i].streams for i in which]
        observed = tiles[which[0]].measure.closeness(observed)  # as the draws are
        if all(len(scored[i].draws) for i in which):
            draws = null.joint(observed, np.stack([scored[i].draws for i in which]), streams, tiles[which[0]].x.n)
            table.loc[at, "p_maxt"] = nulls.max_t(observed, draws)
        table.loc[at, "p_holm"] = nulls.holm(p)
        table.loc[at, "p_bh"] = nulls.benjamini_hochberg(p)
        table.loc[at, "p_by"] = nulls.benjamini_yekutieli(p)
    return table


def search_draws(tiles: Sequence[Tile], scored: Sequence[Scored]) -> pd.DataFrame:
    """The null draws of every layer search, one row per tile."""
    names = [(repr(t.measure), t.x.name, t.y.name) for t in tiles]
    frame = pd.DataFrame(names, columns=["measure", "model_x", "model_y"])
    return frame.assign(draws=[s.draws for s in scored])


def describe_run(
    x: Sequence[Representation],
    y: Sequence[Representation] | None,
    tiles: Sequence[Tile],
    null: nulls.Null,
    findings: list[dict[str, Any]],
    table: pd.DataFrame,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    models = {r.name: r for r in (x if y is None else [*x, *y])}
    first, settings = x[0], tiles[0].settings
    measures = list(dict.fromkeys(repr(t.measure) for t in tiles))
    by_measure = {repr(t.measure): t.settings for t in tiles}
    warnings = list(extra.get("warnings", ()))
    groups = settings.null.groups
    if groups is not None and groups.n_relabellings < 1 / settings.alpha:
        warnings.append(
            f"the groups allow {groups.n_relabellings:.0f} relabellings: p >= {1 / groups.n_relabellings:.2g}, so that nothing "
            f"can be found at alpha = {settings.alpha:g}; shuffle whole groups, or use more groups"
        )
    for measure, pairs in table[table["scope"] == "max"].groupby("measure", sort=False):
        draws = int(pairs["n_draws"].iloc[0])
        sentence = nulls.multiplicity_warning(draws, len(pairs), settings.alpha) if draws else None
        if sentence is not None:
            warnings.append(f"{measure}: {sentence}")
        undefined = int(pairs["statistic"].isna().sum())
        if undefined:
            warnings.append(f"{measure}: undefined for {undefined} of {len(pairs)} pairs of models (a constant layer?)")
    return {
        "repalign": _version("repalign"),
        "versions": {name: _version(name) for name in LIBRARIES},
        "machine": _machine(settings.device),
        "name": extra.get("name"),
        "mock": is_mock(table),
        "study": extra.get("study"),
        **({"how": list(extra["how"])} if "how" in extra else {}),
        "dataset": extra.get("dataset")
        or {"name": first.dataset_name, "n": first.n, "fingerprint": first.dataset_fingerprint, "left_out": []},
        "models": [
            {
                **r.record.to_dict(),
                "layers": settings.preprocess.layer_names(r.layers),
                "widths": [int(w) for w in _widths(r)],
                "facts": dict(r.facts),
            }
            for r in models.values()
        ],
        "sides": {"x": [r.name for r in x], "y": [r.name for r in (x if y is None else y)]},
        "measures": measures,
        "about": {repr(t.measure): t.measure.facts.to_dict() for t in tiles},
        "null": {
            "method": null.name,
            "seed": null.seed,
            "by_measure": {
                m: {
                    "method": STREAMED if s.streamed else s.null.name,
                    "n_draws": 0 if s.streamed else s.null.count(first.n),
                }
                for m, s in by_measure.items()
            },
            "relabelled": "one side" if tiles[0].streams == nulls.ONE_SIDE else "every model",
            "groups": None if null.groups is None else _groups(null.groups),
        },
        "search": settings.search,
        "alpha": settings.alpha,
        "preprocess": None if settings.preprocess.is_identity else asdict(settings.preprocess),
        "findings": findings,
        "warnings": warnings,
        "competences": {c.name: {"label": c.label, "lower_is_better": c.lower_is_better} for c in COMPETENCES.values()},
    }


def _machine(device: str) -> dict[str, Any]:
    """What the last digits of the scores depend on beside the versions."""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _groups(groups: nulls.Groups) -> dict[str, Any]:
    return {"shuffle": groups.shuffle, "n_groups": len(groups.members), "digest": groups.digest}


def _widths(r: Representation) -> list[int]:
    known = getattr(r, "widths", None)
    return list(known) if known else [r.load(layer).shape[1] for layer in r.layers]


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
