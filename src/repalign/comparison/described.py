"""The table of a comparison, and what its run.json says: p over pairs of models, warnings, methods, versions, machine."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch

import repalign.null as nulls
from repalign.comparison.alignment import MOCK_OF
from repalign.comparison.tiles import Scored, Tile
from repalign.comparison.ways import WAYS
from repalign.errors import version_of
from repalign.models import COMPETENCES
from repalign.representation import Representation
from repalign.text import named
from repalign.workers import count_of, threads_of

JOINT = 2**18  # draws of many pairs of models that are aligned at once
LIBRARIES = ("numpy", "scipy", "torch", "transformers", "timm", "sentence-transformers", "safetensors", "pyarrow")


def across_pairs(tiles: Sequence[Tile], scored: Sequence[Scored]) -> pd.DataFrame:
    """The whole table, with p-values adjusted over the pairs of models of each measure; `scored` are the first in theirs."""
    table = scored[0].table.iloc[: scored[-1].stop]
    firsts = np.cumsum([0, *(s.stop - s.start for s in scored)])[:-1]  # the rows of scope "max"
    adjusted = {name: np.full(len(table), np.nan) for name in ("p_maxt", "p_holm", "p_bh", "p_by")}
    p, statistic = (table[name].to_numpy()[firsts] for name in ("pvalue", "statistic"))
    of_measure: dict[int, list[int]] = {}
    for i, tile in enumerate(tiles):
        of_measure.setdefault(id(tile.measure), []).append(i)
    for which in of_measure.values():
        closeness, at = tiles[which[0]].measure.closeness(statistic[which]), firsts[which]
        if all(len(scored[i].draws) for i in which):
            adjusted["p_maxt"][at] = nulls.max_t(closeness, _joint_draws(tiles, scored, which, closeness))
        for rule in ("holm", "bh", "by"):
            adjusted[f"p_{rule}"][at] = nulls.adjusted(p[which], rule)
    return table.assign(**adjusted)


def _joint_draws(
    tiles: Sequence[Tile], scored: Sequence[Scored], which: Sequence[int], closeness: np.ndarray
) -> Callable[[slice], Iterator[np.ndarray]]:  # fmt: skip
    """Some draws of the tiles of one measure, some pairs of models at a time, aligned where every model is relabelled."""
    streams = [tiles[i].streams for i in which]
    by_model = nulls.ONE_SIDE not in streams
    align = tiles[which[0]].settings.null.joint(streams, tiles[which[0]].x.n) if by_model else None
    few = max(1, JOINT // len(scored[which[0]].draws))

    def blocks(at: slice) -> Iterator[np.ndarray]:
        for start in range(0, len(which), few):
            part = slice(start, start + few)
            if align is None:
                yield np.stack([scored[i].draws[at] for i in which[part]])
            else:
                yield align(closeness[part], np.stack([scored[i].draws for i in which[part]]), streams[part], at)

    return blocks


def describe_run(
    x: Sequence[Representation], y: Sequence[Representation] | None, tiles: Sequence[Tile], null: nulls.Null,
    table: pd.DataFrame, extra: Mapping[str, Any], executor: Executor | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The run: models, dataset, measures, null, versions and machine, as run.json holds it."""
    first, settings = x[0], tiles[0].settings
    preprocess, groups = settings.preprocess, settings.null.groups
    by_measure = {t.measure: t.settings for t in tiles}
    dataset = {"name": first.dataset_name, "n": first.n, "fingerprint": first.dataset_fingerprint, "left_out": []}
    searched = dict(iter(table.loc[table["scope"] == "max", ["measure", "n_draws", "statistic"]].groupby("measure", sort=False)))
    methods = {
        repr(m): {"method": WAYS[s.way].by or s.null.name, "n_draws": int(searched[repr(m)]["n_draws"].iloc[0])}
        for m, s in by_measure.items()
    }
    return {
        "repalign": version_of("repalign"),
        "versions": programs(),
        "machine": {"device": settings.device, **machine(executor)},
        "name": extra.get("name"), "mock": any(r.dataset_name.startswith(MOCK_OF) for r in x), "study": extra.get("study"),
        **({"how": list(extra["how"])} if "how" in extra else {}),
        "dataset": extra.get("dataset") or dataset,
        "models": [
            {
                **asdict(r.record), "layers": list(r.layers) if preprocess is None else preprocess.layer_names(r.layers),
                "widths": list(r.widths), "facts": dict(r.facts),
            }
            for r in {r.name: r for r in (*x, *(y or ()))}.values()
        ],
        "sides": {"x": [r.name for r in x], "y": [r.name for r in (x if y is None else y)]},
        "measures": list(methods),
        "about": {repr(m): asdict(m.facts) for m in by_measure},
        "null": {
            "method": null.name, "seed": null.seed, "by_measure": methods,
            "relabelled": "one side" if tiles[0].streams == nulls.ONE_SIDE else "every model",
            "groups": None if null.groups is None else {
                "shuffle": null.groups.shuffle, "n_groups": len(null.groups.members), "digest": null.groups.digest,
                "least_p": 1 / null.groups.n_relabellings,
            },
        },
        "search": settings.search, "alpha": settings.alpha,
        "preprocess": None if preprocess is None else asdict(preprocess),
        "warnings": [*extra.get("warnings", ()), *_warnings(searched, groups, settings.alpha)],
        "competences": {c.name: {"label": c.label, "lower_is_better": c.lower_is_better} for c in COMPETENCES.values()},
    }  # fmt: skip


def _warnings(searched: Mapping[str, pd.DataFrame], groups: nulls.Groups | None, alpha: float) -> Iterator[str]:
    if groups is not None and groups.n_relabellings < 1 / alpha:
        yield (
            f"the groups allow {groups.n_relabellings:.0f} relabellings: p >= {1 / groups.n_relabellings:.2g}, so that nothing "
            f"can be found at alpha = {alpha:g}; shuffle whole groups, or use more groups"
        )
    few: dict[int, list[str]] = {}
    for measure, pairs in searched.items():
        draws = int(pairs["n_draws"].iloc[0])
        if draws and (draws + 1) * alpha * (1 + 1e-9) < 1:
            few.setdefault(draws, []).append(measure.partition("(")[0])
        if undefined := int(pairs["statistic"].isna().sum()):
            yield f"{measure}: undefined for {undefined} of {len(pairs)} pairs of models (a constant layer?)"
    for draws, names in few.items():
        enough = math.ceil(1 / alpha - 1e-9) - 1
        yield (
            f"{draws} shuffles give no p below {1 / (draws + 1):.2g}, so that nothing can be found at alpha = {alpha:g} "
            f"({named(names)}); {enough} are enough, for {(enough + 1) / (draws + 1):.2g} times the work"
        )


def mixed(x: Sequence[Representation], y: Sequence[Representation] | None, scored: Sequence[Scored]) -> Iterator[str]:
    """What was made under several settings, by runs that were resumed elsewhere: the last digits are a mix of theirs."""
    made = list(dict.fromkeys(one.made or "not known" for one in scored))
    if len(made) > 1:
        yield f"scores were computed under several settings ({'; '.join(made)}): their last digits are a mix"
    mixed = {r.name: said for r in [*x, *(y or ())] if (said := r.facts.get("mixed"))}
    for said in dict.fromkeys(mixed.values()):
        names = [name for name, one in mixed.items() if one == said]
        yield f"features of {named(names)} were extracted under several settings ({said}): their last digits are a mix"


def ways(tiles: Sequence[Tile], scored: Sequence[Scored]) -> dict[str, Any]:
    """How measures were computed that are not dense: in a sentence, and the intervals of what is an estimate."""
    out: dict[str, Any] = {}
    for tile, one in zip(tiles, scored, strict=False):
        if tile.settings.way:
            way = out.setdefault(repr(tile.measure), {"way": tile.settings.way, "method": one.about.get("method")})
            for row in one.about.get("intervals", ()):
                way.setdefault("intervals", []).append({"model_x": tile.x.name, "model_y": tile.y.name, **row})
    return out


def programs() -> dict[str, str | None]:
    return {name: version_of(name) for name in LIBRARIES}


def machine(executor: Executor | None) -> dict[str, Any]:
    """What the last digits of the scores depend on, besides the versions."""
    return {
        "threads": threads_of(executor), "workers": count_of(executor), "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(), "system": platform.system(),
        "python": platform.python_version(),
    }  # fmt: skip
