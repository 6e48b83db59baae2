"""The estimate of a study: a row per model, sums, sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from repalign import null as nulls
from repalign.comparison import DEFAULT_MEASURES, LIMIT
from repalign.comparison.preprocess import Preprocess
from repalign.dataset import Dataset
from repalign.estimate import _extracting as extracting
from repalign.estimate._comparing import Comparison, comparing, try_measures
from repalign.estimate._rates import Rates, measure_rates
from repalign.estimate._room import Need, room, shortages
from repalign.estimate._stimuli import Stimuli
from repalign.measures import is_group, parse_measure, parse_measures
from repalign.measures.measure import Measure
from repalign.sources import Facts, ModelEntry, choose_device, facts_of, parse_spec
from repalign.sources.model import run_dtype
from repalign.sources.source import FILE, MEASURED, UNKNOWN, as_asked_today
from repalign.store import FeatureStore, StoredRepresentation
from repalign.text import duration, named, size

# Importing torch, transformers and timm and opening a dataset, once a run.
START_SECONDS = 4.0
# What a trial of a measure that is no inner product may take; those of groups are many.
TRIAL_SECONDS = 0.1
GROUP_TRIAL_SECONDS = 0.01
COLUMNS = (
    "model",
    "side",
    "parameters",
    "layers",
    "width",
    "download_bytes",
    "weights_bytes_in_memory",
    "memory_bytes",
    "feature_bytes",
    "seconds",
    "complete",
    "parameters_from",
    "layers_from",
    "download_from",
    "seconds_from",
)


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a study needs before it runs.

    table : a row per model with `COLUMNS`; `width` is that of the widest layer. What is not known is missing, and in no
        sum. The columns `*_from` say where a number comes from: "known" (the table of known models, or a recipe), "measured"
        (an extraction in the store, or the rate of this machine), "counted" (the architecture, built without weights),
        "file", "hub" or "unknown". `complete`: the model is in the store and costs nothing.
    comparison : what comparing takes, over all variants.
    warnings : what is short, naming the model.
    """

    table: pd.DataFrame
    comparison: Comparison
    n: int
    device: str
    rates: Rates
    warnings: tuple[str, ...] = ()

    @property
    def download_bytes(self) -> int:
        return int(self._running["download_bytes"].sum())

    @property
    def feature_bytes(self) -> int:
        """What is added to the store."""
        return int(self._running["feature_bytes"].sum())

    @property
    def extract_seconds(self) -> float:
        """Of running all models, without the time of downloads."""
        return float(self._running["seconds"].sum())

    @property
    def compare_seconds(self) -> float:
        return self.comparison.seconds

    @property
    def seconds(self) -> float:
        return START_SECONDS + self.extract_seconds + self.compare_seconds

    @property
    def memory_bytes(self) -> int:
        """The largest that is needed at any time: of one model at a time, or of comparing."""
        return max([self.comparison.memory_bytes, *self._running["memory_bytes"].dropna().astype(int)])

    @property
    def unknown(self) -> dict[str, list[str]]:
        """Models of which a number is not known, and so not counted, by its column."""
        return {
            column: self._running.loc[self._running[column].isna(), "model"].tolist()
            for column in ("download_bytes", "memory_bytes", "feature_bytes", "seconds")
        }

    @property
    def _running(self) -> Any:
        """The rows of models that are to be run."""
        return self.table[~self.table["complete"]]

    def lines(self) -> list[str]:
        """The estimate in sentences, for the terminal."""
        needed = dict(zip(self._running["model"], self._running["memory_bytes"].fillna(0), strict=True))
        out, there = [], len(self.table) - len(self._running)
        if there:
            out.append(f"{there} of {len(self.table)} models are complete in the store and cost nothing")
        if there < len(self.table):
            largest = max(needed, key=lambda name: needed[name])
            out.append(self._told("downloads", "download_bytes", size(self.download_bytes)))
            out.append(self._told("features on disk", "feature_bytes", size(self.feature_bytes)))
            text = f"{size(needed[largest])}, for {largest}"
            out.append(self._told(f"memory on {self.device} while models run", "memory_bytes", text))
            out.append(self._told("running models", "seconds", duration(self.extract_seconds)))
        pairs = self.comparison.layer_pairs
        lost = self.table.loc[self.table["layers"].isna(), "model"].tolist()
        out.append(
            f"comparing {pairs:,} pairs of layers: about {duration(self.compare_seconds)} "
            f"and {size(self.comparison.memory_bytes)} of memory"
            + (f"; without the layers, which are not known, of {named(lost)}" if lost else "")
        )
        if self.comparison.left_out:
            out.append(f"not known and not counted: the time of {named(list(self.comparison.left_out))}")
        out.append(f"in all about {duration(self.seconds)}" + (" and the downloads" if self.download_bytes else ""))
        return [*out, *(f"warning: {w}" for w in self.warnings)]

    def _told(self, what: str, column: str, text: str) -> str:
        unknown = self.unknown[column]
        if len(unknown) == len(self._running):
            return f"{what}: not known"
        return f"{what}: about {text}" + (f"; not known and not counted: {named(unknown)}" if unknown else "")


def estimate(
    dataset: Dataset,
    x: Sequence[ModelEntry | str],
    y: Sequence[ModelEntry | str] | None = None,
    measures: Sequence[Measure | str] = DEFAULT_MEASURES,
    null: nulls.Null | str = "auto",
    *,
    store: FeatureStore | str | None = None,
    preprocess: Preprocess | None = None,
    variants: int = 1,
    n_compared: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 32,
    limit: float = LIMIT,
    memory: int | None = None,
    rates: Rates | None = None,
    patience: float = 3.0,
) -> Estimate:
    """What extracting these models and comparing them needs; nothing is loaded, trained or downloaded for it.

    x, y : the models of both sides, as `extract` takes them; without y those of x are compared with one another.
    measures, null, preprocess, limit, memory : as `compare` takes them. A group of measures counts at most `limit` for each.
    store : what is complete there costs nothing.
    variants : how often the comparison is made, on the same features; `n_compared` : on so many of the stimuli.
    device, dtype, batch_size : as `extract` takes them.
    rates : of this machine; measured, in some half a second, if not given.
    patience : seconds that the hub is given to answer about models that no table and no file tells of; none are asked for
        where the hub's client is offline (HF_HUB_OFFLINE).

    How each number comes about, and how far off it was: docs/estimates.md.

    Raises RepalignError for a malformed spec, an unknown measure or null, and a device that is not there.
    """
    store = store if isinstance(store, FeatureStore) or store is None else FeatureStore(store)
    sides = [("x", _entries(x)), *([] if y is None else [("y", _entries(y))])]
    entries = [(side, e) for side, some in sides for e in some]
    place = choose_device(device)
    done = {} if store is None else _complete(store, dataset.fingerprint)
    stored = [done.get(_identity(e, dtype)) for _, e in entries]
    asked = [e for (_, e), r in zip(entries, stored, strict=True) if r is None]
    found = iter(facts_of(asked, patience))
    facts = [_of_stored(r) if r is not None else next(found) for r in stored]
    runs = [run_dtype(dtype, f.stored, place, e.label) for (_, e), f in zip(entries, facts, strict=True)]
    needed = {extracting.name_of(run) for run, r in zip(runs, stored, strict=True) if r is None}
    if rates is None:
        rates = measure_rates(place, sorted(needed))
    elif missing := sorted(needed - set(rates.products)):  # those given are of models in another precision
        rates = replace(rates, products={**measure_rates(place, missing).products, **rates.products})
    rows, needs, seen = [], [], set()
    stimuli = Stimuli(dataset)
    for (side, entry), fact, run, r in zip(entries, facts, runs, stored, strict=True):
        again = _identity(entry, dtype) in seen  # on both sides, or twice: made once
        fetched = entry.spec in seen
        seen |= {_identity(entry, dtype), entry.spec}
        row = _row(side, entry, fact, run, stimuli, batch_size, rates, r is not None or again)
        if fetched and row["download_bytes"] is not None:
            row["download_bytes"] = 0
        rows.append(row)
        if not row["complete"]:
            needs.append(Need(row["model"], *(row[c] or 0 for c in ("memory_bytes", "feature_bytes", "download_bytes"))))
    compared = _compared(sides, facts, measures, null, preprocess, variants, n_compared or dataset.n, limit, memory, rates)
    there = room(None if store is None else str(store.url), place)
    warnings = tuple(shortages(needs, compared.memory_bytes, there))
    return Estimate(_table(rows), compared, dataset.n, place, rates, warnings)


def _entries(models: Sequence[ModelEntry | str]) -> list[ModelEntry]:
    return [ModelEntry(m) if isinstance(m, str) else m for m in models]


def _name(entry: ModelEntry) -> str:
    spec = parse_spec(entry.spec)
    return spec.source.name(spec, entry)


def _identity(entry: ModelEntry, dtype: str) -> str:
    """What an extraction depends on, but for the revision, which only the hub or the files' bytes could tell."""
    return json.dumps([str(parse_spec(entry.spec)), entry.settings(dtype)], sort_keys=True)


def _complete(store: FeatureStore, fingerprint: str) -> dict[str, StoredRepresentation]:
    """All extractions of a dataset that are whole, by their identity."""
    out = {}
    for r in store.whole(fingerprint):
        spec, settings = r.manifest["record"]["spec"], r.manifest["settings"]
        if store.find(fingerprint, spec, r.record.revision, settings) is not None:
            out[json.dumps([spec, as_asked_today(spec, settings, r.facts)], sort_keys=True)] = r
    return out


def _of_stored(r: StoredRepresentation) -> Facts:
    return Facts(
        parameters=r.record.n_parameters,
        widths=r.widths,
        names=r.layers,
        download_bytes=0,
        parameters_from=UNKNOWN if r.record.n_parameters is None else MEASURED,
        layers_from=MEASURED,
        download_from=FILE,
    )


def _row(
    side: str,
    entry: ModelEntry,
    facts: Facts,
    run: torch.dtype,
    stimuli: Stimuli,
    batch_size: int,
    rates: Rates,
    complete: bool,
) -> dict[str, Any]:
    work = _work(entry, facts, stimuli, batch_size)
    seconds = 0.0 if complete else extracting.seconds(facts, work, run, rates)
    return {
        "model": _name(entry),
        "side": side,
        "parameters": facts.parameters,
        "layers": None if facts.widths is None else len(facts.widths),
        "width": max(facts.widths) if facts.widths else None,
        "download_bytes": 0 if complete else facts.download_bytes,
        "weights_bytes_in_memory": 0 if complete else extracting.weights_bytes(facts, run),
        "memory_bytes": 0 if complete else extracting.memory_bytes(facts, work, run),
        "feature_bytes": extracting.feature_bytes(facts, stimuli.dataset.n, entry.store_dtype),
        "seconds": seconds,
        "complete": complete,
        "parameters_from": facts.parameters_from,
        "layers_from": facts.layers_from,
        "download_from": facts.download_from,
        "seconds_from": UNKNOWN if seconds is None else MEASURED,
    }


def _work(entry: ModelEntry, facts: Facts, stimuli: Stimuli, batch_size: int) -> extracting.Work:
    n = stimuli.dataset.n
    if facts.kind == "image":
        return extracting.Work(n, batch_size, facts.tokens, stimuli.image_seconds(entry) or 0.0)
    return extracting.Work(n, batch_size, stimuli.tokens(entry) if facts.kind == "text" else None, 0.0)


def _compared(
    sides: Sequence[tuple[str, Sequence[ModelEntry]]],
    facts: Sequence[Facts],
    measures: Sequence[Measure | str],
    null: nulls.Null | str,
    preprocess: Preprocess | None,
    variants: int,
    n: int,
    limit: float,
    memory: int | None,
    rates: Rates,
) -> Comparison:
    """Models whose layers are not known are left out."""
    remaining = iter(facts)
    widths = [[f.widths for _ in some if (f := next(remaining)).widths is not None] for _, some in sides]
    alone = [m if isinstance(m, Measure) else parse_measure(m) for m in measures if not is_group(m)]
    groups = parse_measures([m for m in measures if isinstance(m, str) and is_group(m)])
    of_groups = frozenset(groups) - frozenset(alone)
    chosen = list(dict.fromkeys([*alone, *groups]))
    every = sorted(d for side in widths for w in side for d in w)
    middle = every[len(every) // 2] if every else 1
    costs = try_measures(alone, n, middle, TRIAL_SECONDS)
    costs |= try_measures(sorted(of_groups, key=repr), n, middle, GROUP_TRIAL_SECONDS)
    null = nulls.make_null(null) if isinstance(null, str) else null
    return comparing(
        widths[0],
        widths[1] if len(widths) > 1 else None,
        n,
        chosen,
        rates.cpu,
        null=null,
        preprocess=preprocess,
        variants=variants,
        memory=memory,
        costs=costs,
        limit=limit,
        limited=of_groups,
    )


def _table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    whole = ("parameters", "layers", "width", *(c for c in COLUMNS if "bytes" in c))
    types = {**dict.fromkeys(whole, "Int64"), "seconds": "float64", "complete": "bool"}
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(types)
