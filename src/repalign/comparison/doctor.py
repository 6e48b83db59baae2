"""A look at each layer before it is compared: what about it can mislead a measure, and what to do.

Each check is cheap, O(n d) but for one Gram matrix of the smaller side. Thresholds are named here with their reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repalign.comparison.alignment import keep, kept, kept_in
from repalign.files import Url
from repalign.layers import RDM, SINK, Given, Pairwise, as_layer
from repalign.measures.numerics.precision import Layer, Products, frobenius, layer_of
from repalign.measures.numerics.rows import Deviations
from repalign.representation import Representation, ahead
from repalign.text import Progress, telling

# A row whose squared distance from the mean is this share of all rows' sum, and far above the average, drives CKA: with
# one of 1,000 points moved away, CKA between a space and itself falls from 1 to 0.15.
LEVERAGE_SHARE = 0.1
LEVERAGE_TIMES_MEAN = 20.0
# Above this mean pairwise cosine, half precision loses neighbours (17 % of lists agree at 0.97 in bfloat16), and float32
# begins to lose some at 0.999.
MEAN_COSINE = 0.9
# One dimension with this share of all variance decides Euclidean and cosine neighbours almost alone.
ROGUE_SHARE = 0.5
# Below this participation ratio a space is nearly a line or a plane, and its neighbours say little more.
LOW_RANK = 3.0
# Rows of the Gram matrix from which the effective dimension is estimated.
PROBES = 64
# Values beyond this share of a dtype's largest are about to overflow; entries below its smallest normal have lost digits.
NEAR_MAXIMUM = 0.5
SUBNORMAL_SHARE = 0.05

# Of an RDM: with more than this share of all pairs tied with another, ranks compare little more than the ties.
TIED_PAIRS = 0.5
# Of a kernel: eigenvalues below minus this share of the largest are no rounding. They are looked for up to this n (n^3).
INDEFINITE = 1e-4
SPECTRUM_MAX_N = 2000
# A token that is RULING_TOKEN times as long as the mean of the others and has RULING_SHARE of all norms of its text rules the mean
# over tokens. Debiased CKA with a vision model, without that token and with it (docs/tokens.md): up to 1.6 times and a share
# of .14 they differ by 30 % at most, at 2.3 times and .07 by 7 %, from 2.2 times and .17 on by a factor of two or more.
RULING_TOKEN, RULING_SHARE = SINK, 0.15

APART = 128  # models whose findings are a file each
MANY = "many-"  # how the name of a file begins that has those of several
SEVERITIES = ("note", "warning", "serious")

Told = Iterator[tuple[str, str, str]]  # code, severity and message of each finding


@dataclass(frozen=True)
class Finding:
    """One thing about one layer. `code` names the kind; `message` says what was found, against what, and what to do."""

    model: str
    layer: str
    code: str
    severity: str
    message: str

    @property
    def level(self) -> int:
        """How grave it is: its place among SEVERITIES; a warning's where a stored result has a word that is not one of them."""
        return SEVERITIES.index(self.severity) if self.severity in SEVERITIES else 1


def examine(
    x: Given, *, model: str, layer: str, stored_dtype: str | None = None, k: int = 10, facts: Mapping[str, Any] | None = None
) -> list[Finding]:
    """Everything noteworthy about one layer, x (n, d) in the dtype it is stored in; an empty list if nothing is.

    x may be an `RDM` or a `Kernel`, which has other things to look at.

    `stored_dtype` is the dtype that the values went through ("float16", "bfloat16", ...), `k` the neighbourhood that
    duplicates are held against. `facts` are those of the extraction: they tell which tokens a mean over tokens is made of.
    """
    told: list[Iterable[tuple[str, str, str]]] = []
    if isinstance(x, Pairwise):
        told.append(_pairs(x, k))
    else:
        work, facts = torch.float64 if x.dtype == torch.float64 else torch.float32, facts or {}
        held = layer_of(x) if x.dtype == work else Layer(x)
        found = held.deviations if x.dtype == work else Deviations.of(x, work)
        if not math.isfinite(found.largest):
            bad = torch.nonzero(~torch.isfinite(x).all(dim=1)).flatten()
            return [Finding(model, layer, "non-finite", "serious", (
                f"{len(bad)} of {len(x)} rows hold NaN or infinity, the first is row {int(bad[0])}: no measure takes them; "
                "run the model in float32 or leave these stimuli out"
            ))]  # fmt: skip
        seen, dtype = _facts(found, held.made), getattr(torch, stored_dtype or "", x.dtype)
        if dtype in (torch.float16, torch.bfloat16):
            told.append(_digits(x, seen.largest, dtype, found.blocks))
        if "token_norms" in facts:
            told.append(_tokens(facts["token_norms"].get(layer, {}), facts))
        if seen.constant:
            message = f"all {len(x)} rows are the same: every score with this layer is undefined (nan)"
            told.append([("constant", "serious", message)])
        else:
            told += [_rows(x, seen, k), _space(seen)]
    return [Finding(model, layer, *one) for some in told for one in some]


def grouped(findings: Iterable[Finding]) -> list[tuple[Finding, list[str], int]]:
    """The gravest finding of each kind of each model, the layers that show it, and how often; the gravest kind first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.model, f.code), []).append(f)
    worst = [max(group, key=lambda f: f.level) for group in groups.values()]
    found = [(w, list(dict.fromkeys(f.layer for f in group)), len(group)) for w, group in zip(worst, groups.values(), strict=True)]
    return sorted(found, key=lambda one: -one[0].level)


def summarise(findings: Sequence[Finding]) -> list[str]:
    """One sentence for each kind of finding of each model, over the layers that show it, the gravest first."""
    out = []
    for worst, layers, _ in grouped(findings):
        several = f"{len(layers)} layers ({layers[0]} to {layers[-1]}), for instance {worst.layer}"
        out.append(f"{worst.model}, {layers[0] if len(layers) == 1 else several}: {worst.message}")
    return out


# --- layers of features --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Facts:
    """Quantities for the checks, collected in one pass over blocks of rows; all but `largest` in the unit of the deviations."""

    n: int
    d: int
    largest: float
    norms: Tensor  # (n,) of the rows
    spread: Tensor  # (n,) squared distances of the rows from their mean
    total: float  # sum of these
    by_feature: Tensor  # (d,) sums of squares about the mean
    directions: Tensor  # (d,) sum of the rows at unit length
    squares: float  # tr(K^2) of the centred rows' Gram matrix K, from a sample of its rows
    constant: bool


def _facts(found: Deviations, made: Products | None) -> _Facts:
    """made : the products of all centred rows, if they are there."""
    (n, d), device = found.x.shape, found.about.device
    few = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:PROBES].sort().values.to(found.x.device)
    directions, by_feature, squares, probes = torch.zeros_like(found.about), torch.zeros_like(found.about), 0.0, None
    if made is None:
        probes = found.some(few).T
    else:
        squares = frobenius(made.gram[few]) ** 2 * (made.unit / found.unit) ** 4
    norms, spread = (torch.empty(n, dtype=torch.float64, device=device) for _ in range(2))
    scratch = found.about.new_empty(found.x[found.blocks[0]].shape)
    for b in found.blocks:
        wide = found.wide(b)
        norms[b] = norm = torch.linalg.vector_norm(wide, dim=1)
        directions += torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1.0), 0.0) @ wide
        rows = found.some(b, scratch[: b.stop - b.start])
        if probes is not None:
            squares += float((rows @ probes).square_().sum(dtype=torch.float64))
        spread[b] = torch.linalg.vector_norm(rows, dim=1)
        by_feature += rows.square_().sum(dim=0)
    spread.square_()
    total = float(spread.sum())
    constant = total <= (1e-14 * n * d * found.largest / found.unit) ** 2
    means = by_feature.double(), directions.double(), squares * n / len(few)
    return _Facts(n, d, found.largest, norms, spread, total, *means, constant=constant)


def _digits(x: Tensor, largest: float, dtype: torch.dtype, rows: Sequence[slice]) -> Told:
    """Values that half precision cut off or lost."""
    limits, name = torch.finfo(dtype), str(dtype).removeprefix("torch.")
    if largest > NEAR_MAXIMUM * limits.max:
        yield "near-overflow", "warning", (
            f"values up to {largest:.3g} lie near the largest {name} number ({limits.max:.3g}): some may have "
            "been cut off; extract in bfloat16 or float32"
        )
    # The bits of a float32 without its sign grow with its size. Less one, those of 0 are the largest.
    count, least = 0, np.float32(limits.smallest_normal).view(np.uint32) - 1
    scratch = np.empty((rows[0].stop, x.shape[1]), np.uint32)
    for b in rows:
        size = np.bitwise_and(x[b].float().cpu().numpy().view(np.uint32), 0x7FFFFFFF, out=scratch[: b.stop - b.start])
        count += np.count_nonzero(np.subtract(size, 1, out=size) < least)
    tiny = count / x.numel()
    if tiny > SUBNORMAL_SHARE:
        yield "subnormal", "warning", (
            f"{tiny:.0%} of the entries are below the smallest normal {name} number ({limits.smallest_normal:.2g}) and have "
            "lost digits; extract in float32"
        )


def _tokens(norms: Mapping[str, float], facts: Mapping[str, Any]) -> Told:
    """Whether one token rules the mean over tokens: the first, or another."""
    first, longest, share = (norms.get(name, 0.0) for name in ("first", "longest", "share"))
    counts, weighs = facts.get("first_token") == "counts", longest > RULING_TOKEN and share > RULING_SHARE
    single = int(facts.get("texts_of_one_token", 0))
    by_first = counts and first > RULING_TOKEN
    if weighs and by_first:
        remedy = "extract with `sink: skip`" if facts.get("causal") else "compare with `pooling: cls` or `last`"
        yield "sink", "warning", (
            f"the first token of a text is {first:.3g} times as long as its others and has {share:.0%} of their norms, on average: "
            f"the mean is ruled by it; {remedy}"
        )
    if not counts and first > RULING_TOKEN and single:
        yield "sink-alone", "warning", (
            f"{single} texts are one token, the first, which is {first:.3g} times as long as others: these rows are not like the "
            "rest; put the texts into a prompt (`prompt: \"A photo of {caption}\"`)"
        )
    if weighs and not by_first:
        yield "ruling-token", "warning", (
            f"one token of a text is {longest:.3g} times as long as the others in its mean and has {share:.0%} of their norms, on "
            "average: the mean is ruled by it; compare with other layers, or with `pooling: last`"
        )


def _rows(x: Tensor, facts: _Facts, k: int) -> Told:
    n, norms, spread, total = facts.n, facts.norms, facts.spread, facts.total
    # Copies have one norm: few other rows share theirs.
    _, same, among = torch.unique(norms, return_inverse=True, return_counts=True)
    candidates = x[among[same] > 1].to(torch.float64)
    counts = torch.unique(candidates, dim=0, return_counts=True)[1] if len(candidates) else norms.new_empty(0)
    repeated = int(counts[counts > 1].sum())
    if repeated:
        distinct, most = n - repeated + int((counts > 1).sum()), int(counts.max())
        yield "duplicates", "warning" if most > k or repeated > n / 10 else "note", (
            f"{repeated} of {n} rows are exact copies of others ({distinct} distinct, up to {most} alike): they are each "
            f"other's nearest neighbours{f' and fill whole lists of k = {k}' if most > k else ''}; look for repeated "
            "stimuli, or permute whole groups"
        )
    if zero := int((norms == 0).sum()):
        yield "zero-rows", "warning", (
            f"{zero} of {n} rows are all zero: they have no direction, so cosine neighbours of them are ties that go to the "
            "lower index; leave these stimuli out"
        )
    heavy = torch.nonzero((spread > LEVERAGE_SHARE * total) & (spread > LEVERAGE_TIMES_MEAN * total / n)).flatten()
    if len(heavy):
        share, more = float(spread[heavy].sum()) / total, f" and {len(heavy) - 1} more" if len(heavy) > 1 else ""
        yield "outlying-rows", "warning", (
            f"row {int(heavy[0])}{more} of {n} hold {share:.0%} of the "
            "variance: CKA and SVCCA are decided by them, and their cells by draws where the other layer has them too; compare "
            "with mutual k-NN, or without these stimuli"
        )


def _space(facts: _Facts) -> Told:
    """Features, the mean direction, and the number of dimensions."""
    n, d, by_feature = facts.n, facts.d, facts.by_feature
    if constant := int((by_feature == 0).sum()):
        yield "constant-columns", "note", f"{constant} of {d} features are constant: they add nothing to any measure"
    if n < d:
        yield "n-below-d", "note", (
            f"n = {n} stimuli for d = {d} features: biased CKA, CCA and regression are high for unrelated models; read "
            "scores beside their chance level, or use debiased CKA and mutual k-NN"
        )
    share = float(by_feature.max()) / facts.total
    if d > 2 and share > ROGUE_SHARE:
        yield "rogue-dimension", "warning", (
            f"feature {int(by_feature.argmax())} of {d} holds {share:.0%} of the variance: distances and CKA see little else; try "
            "rank-based measures, or clip outliers (preprocess: clip)"
        )
    # The mean cosine of all pairs from the sum of unit rows: (|sum|^2 - m) / (m (m - 1)).
    m = int((facts.norms > 0).sum())
    cosine = (float((facts.directions**2).sum()) - m) / (m * (m - 1)) if m > 1 else 0.0
    if cosine > MEAN_COSINE:
        yield "common-mean", "warning", (
            f"all vectors point nearly the same way (mean cosine {cosine:.3f}, above {MEAN_COSINE}), so neighbours by cosine "
            "depend on rounding; take MutualKNN(center=True), and not half precision"
        )
    # The participation ratio tr(K)^2 / tr(K^2) of the centred Gram matrix, tr(K^2) from `PROBES` of its rows.
    effective = facts.total**2 / facts.squares
    if min(n, d) > LOW_RANK and effective < LOW_RANK:
        yield "low-rank", "warning", (
            f"the layer has about {effective:.1f} effective dimensions of {min(n - 1, d)}: CKA and RSA compare little more than "
            "one direction; MutualKNN(center=True) sees the rest"
        )
    elif effective > n / 2:
        yield "full-rank", "note", (
            f"the effective number of dimensions is about {effective:.0f} at n = {n}: nearly every direction is taken, so biased "
            "CKA, CCA and SVCCA are high for unrelated models"
        )


# --- layers given by pairs -----------------------------------------------------------------------


def _pairs(x: Pairwise, k: int) -> Told:
    n = len(x)
    if x.is_constant:
        yield "constant", "serious", f"all {n} stimuli are alike: every score with this layer is undefined (nan)"
    elif isinstance(x, RDM):
        alike = (x.matrix == 0).sum(dim=1) - 1
        repeated, most = int((alike > 0).sum()), int(alike.max()) + 1
        if repeated:
            yield "duplicates", "warning" if most > k or repeated > n / 10 else "note", (
                f"{repeated} of {n} stimuli have another at dissimilarity 0 (up to {most} alike): they are each other's "
                "nearest neighbours, ties by lower index; look for repeated stimuli, or permute whole groups"
            )
        upper = x.matrix.cpu().numpy()[np.triu_indices(n, 1)]
        counts = np.unique(upper, return_counts=True)[1]
        tied = int(counts[counts > 1].sum()) / max(1, len(upper))
        if tied > TIED_PAIRS:
            yield "tied-pairs", "note", (
                f"{tied:.0%} of the {len(upper):,} dissimilarities are tied with another ({len(counts):,} different): a model RDM "
                'of few values; RSA(comparison="rho_a") or RSAKendall do not favour ties, and neighbours are a matter of order here'
            )
    elif n <= SPECTRUM_MAX_N:  # a kernel
        values = torch.linalg.eigvalsh(x.matrix.cpu().double())
        low, high = float(values[0]), float(values[-1])
        if low < -INDEFINITE * high:
            yield "indefinite", "warning", (
                f"the kernel has eigenvalues down to {low / high:.2g} of the largest: it is not a matrix of products of any "
                "vectors, so that scores need not keep to their range and Euclidean neighbours mean little; look at how it was made"
            )


# --- all layers of some models -------------------------------------------------------------------


class Examination:
    """The doctor's findings on every layer, which is looked at once: when it is read for the measures, or at the end.

    found : findings by model and by layer; kept in the folder of the tiles, if there is one, by a representation's key. Those of
        up to `APART` models are a file each, those of more some models a file.
    looks : whether a layer is looked at when it is read. Of many models each worker reads many: they leave it to the end.
    """

    def __init__(
        self, models: Sequence[Representation] = (), folder: Path | Url | None = None, *, looks: bool = True
    ) -> None:  # fmt: skip
        self.models, self.looks = {r.name: r for r in models}, looks
        self.folder = None if folder is None else folder / "findings"
        self.keys = {} if folder is None else {r.name: r.key for r in models}
        self.share = max(1, -(-len(self.models) // APART))
        self.found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        if self.folder is not None:
            there = self._many() if self.share > 1 else {key: kept(self.folder / f"{key}.json", key) for key in self.keys.values()}
            self.found = {name: there.get(key) or {} for name, key in self.keys.items()}
        self.kept = {name for name, found in self.found.items() if found}
        self.waiting: list[str] = []  # models whose findings are not in a file yet

    def read(self, r: Representation) -> Iterator[tuple[str, Given]]:
        """All layers, as they are stored, with their names.

        Each is read while the one before is worked on: reading and digests leave the arithmetic units idle.
        """
        self.found.setdefault(r.name, {})
        return zip(r.layers, ahead(map(r.load, r.layers)), strict=True)

    def look(self, r: Representation, name: str, stored: Given, x: Given) -> Given:
        """A layer x that was read as `stored`; it is examined unless that was done."""
        found = self.found[r.name]
        if self.looks and name not in found:
            dtype = r.facts.get("store_dtype") or str(stored.dtype).removeprefix("torch.")
            told = examine(x, model=r.name, layer=name, stored_dtype=dtype, facts=r.facts)
            found[name] = [asdict(f) for f in told]
        return x

    def done(self, r: Representation) -> None:
        """Keep what was found, once all layers of a model were looked at; in their order, whoever was first."""
        if r.name not in self.kept and len(self.found[r.name]) == len(r.layers):
            self.found[r.name] = {name: self.found[r.name][name] for name in r.layers}
            self._keep(r.name)

    def all(self, progress: Progress) -> list[dict[str, Any]]:
        """All findings, model by model; what nobody has looked at is looked at now."""
        unseen = [r for name, r in self.models.items() if len(self.found.get(name, {})) < len(r.layers)]
        for r in telling(unseen, "examine", progress):
            for name, stored in self.read(r):
                self.look(r, name, stored, as_layer(stored, f"{r.name}, layer {name}"))
            self.done(r)
        for name, key in self.keys.items():
            if name not in self.kept and not (self.folder / f"{key}.json").is_file():  # type: ignore[operator]
                self._keep(name)  # what workers with a disk of their own have found
        self._write()
        return [{**f, "model": name} for name, r in self.models.items() for layer in r.layers for f in self.found[name][layer]]

    def _keep(self, name: str) -> None:
        if name in self.keys:
            self.kept.add(name)
            self.waiting.append(name)
            if len(self.waiting) >= self.share:
                self._write()

    def _write(self) -> None:
        if not self.waiting or self.folder is None:
            return
        found = {self.keys[name]: self.found[name] for name in self.waiting}
        if self.share > 1:
            key = MANY + hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]
            found = {key: found}
        for key, value in found.items():
            keep(self.folder / f"{key}.json", key, value)
        self.waiting = []

    def _many(self) -> dict[str, dict[str, Any]]:
        """What is in the folder, by the keys of representations."""
        assert self.folder is not None
        there, own = kept_in(self.folder), set(self.keys.values())
        out = {key: value for key, value in there.items() if key in own}
        for key, value in there.items():
            out |= value if key.startswith(MANY) else {}
        return out
