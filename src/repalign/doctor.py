"""A look at each layer before it is compared: what about it can mislead a measure, in words to act on.

Each check is cheap, O(n d) but for one Gram matrix of the smaller side. Thresholds are named here with their reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
# Random signs from which the effective dimension of a large layer is estimated.
PROBES = 128
# Values beyond this share of a dtype's largest are about to overflow; entries below its smallest normal have lost digits.
NEAR_MAXIMUM = 0.5
SUBNORMAL_SHARE = 0.05

SEVERITIES = ("note", "warning", "serious")

Say = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Finding:
    """One thing about one layer. `code` names the kind; `message` says what was found, against what, and what to do."""

    model: str
    layer: str
    code: str
    severity: str
    message: str


def examine(x: Tensor, *, model: str, layer: str, stored_dtype: str | None = None, k: int = 10) -> list[Finding]:
    """Everything noteworthy about one layer, x (n, d) in the dtype it is stored in; an empty list if nothing is.

    `stored_dtype` is the dtype that the values went through ("float16", "bfloat16", ...), `k` the neighbourhood that
    duplicates are held against.
    """
    found: list[Finding] = []

    def say(code: str, severity: str, message: str) -> None:
        found.append(Finding(model, layer, code, severity, message))

    wide = x if x.dtype == torch.float64 else x.float()
    if not bool(torch.isfinite(wide.sum())) and not bool((finite := torch.isfinite(wide).all(dim=1)).all()):
        rows = torch.nonzero(~finite).flatten()
        say(
            "non-finite", "serious",
            f"{len(rows)} of {len(x)} rows hold NaN or infinity, the first is row {int(rows[0])}: no measure takes them; "
            "run the model in float32 or leave these stimuli out",
        )  # fmt: skip
        return found
    largest = float(torch.stack(torch.aminmax(wide)).abs().amax())
    _dtype(wide, largest, stored_dtype or str(x.dtype).removeprefix("torch."), say)
    if largest > 0 and not 1e-12 < largest < 1e12:  # so that squares neither overflow nor vanish
        wide, largest = wide / largest, 1.0
    n, d = wide.shape
    centred = wide - wide.mean(dim=0)
    centred.sub_(centred.mean(dim=0))
    spread = torch.linalg.vector_norm(centred, dim=1).double() ** 2  # (n,)
    total = float(spread.sum())
    if total <= (1e-14 * n * d * largest) ** 2 or bool((wide == wide[0]).all()):
        say("constant", "serious", f"all {n} rows are the same: every score with this layer is undefined (nan)")
        return found
    norms = torch.linalg.vector_norm(wide, dim=1).double()
    _rows(wide, norms, spread, total, k, say)
    _columns(centred, total, say)
    _mean_direction(wide, norms, say)
    _dimensions(centred, total, say)
    return found


def summarise(findings: Sequence[Finding]) -> list[str]:
    """One sentence for each kind of finding of each model, over the layers that show it, the gravest first."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in findings:
        groups.setdefault((f.model, f.code), []).append(f)
    ordered = sorted(groups.values(), key=lambda g: -max(SEVERITIES.index(f.severity) for f in g))
    out = []
    for group in ordered:
        worst = max(group, key=lambda f: SEVERITIES.index(f.severity))
        layers = list(dict.fromkeys(f.layer for f in group))
        where = (
            layers[0]
            if len(layers) == 1
            else f"{len(layers)} layers ({layers[0]} to {layers[-1]}), for instance {worst.layer}"
        )
        out.append(f"{worst.model}, {where}: {worst.message}")
    return out


# --- checks --------------------------------------------------------------------------------------


def _dtype(wide: Tensor, largest: float, stored: str, say: Say) -> None:
    dtype = getattr(torch, stored, wide.dtype)
    if dtype not in (torch.float16, torch.bfloat16):
        return
    limits = torch.finfo(dtype)
    name = str(dtype).removeprefix("torch.")
    if largest > NEAR_MAXIMUM * limits.max:
        say(
            "near-overflow", "warning",
            f"values up to {largest:.3g} lie near the largest {name} number ({limits.max:.3g}): some may have "
            "been cut off; extract in bfloat16 or float32",
        )  # fmt: skip
    whole = torch.count_nonzero(wide.abs() >= limits.smallest_normal)
    tiny = int(torch.count_nonzero(wide) - whole) / wide.numel()
    if tiny > SUBNORMAL_SHARE:
        say(
            "subnormal", "warning",
            f"{tiny:.0%} of the entries are below the smallest normal {name} number ({limits.smallest_normal:.2g}) and have "
            "lost digits; extract in float32",
        )  # fmt: skip


def _rows(wide: Tensor, norms: Tensor, spread: Tensor, total: float, k: int, say: Say) -> None:
    n = len(wide)
    distinct, counts = torch.unique(wide, dim=0, return_counts=True)
    repeated = int(counts[counts > 1].sum())
    if repeated:
        most = int(counts.max())
        severity = "warning" if most > k or repeated > n / 10 else "note"
        say(
            "duplicates", severity,
            f"{repeated} of {n} rows are exact copies of others ({len(distinct)} distinct, up to {most} alike): they are each "
            f"other's nearest neighbours{f' and fill whole lists of k = {k}' if most > k else ''}; look for repeated "
            "stimuli, or permute whole groups",
        )  # fmt: skip
    zero = int((norms == 0).sum())
    if zero:
        say(
            "zero-rows", "warning",
            f"{zero} of {n} rows are all zero: they have no direction, so cosine neighbours of them are ties that go to the "
            "lower index; leave these stimuli out",
        )  # fmt: skip
    heavy = torch.nonzero((spread > LEVERAGE_SHARE * total) & (spread > LEVERAGE_TIMES_MEAN * total / n)).flatten()
    if len(heavy):
        share = float(spread[heavy].sum()) / total
        say(
            "outlying-rows", "warning",
            f"row {int(heavy[0])}{f' and {len(heavy) - 1} more' if len(heavy) > 1 else ''} of {n} hold {share:.0%} of the "
            "variance: CKA and SVCCA are decided by them; compare with mutual k-NN, or without these stimuli",
        )  # fmt: skip


def _columns(centred: Tensor, total: float, say: Say) -> None:
    n, d = centred.shape
    by_feature = centred.square().sum(dim=0)
    constant = int((by_feature == 0).sum())
    if constant:
        say("constant-columns", "note", f"{constant} of {d} features are constant: they add nothing to any measure")
    if n < d:
        say(
            "n-below-d", "note",
            f"n = {n} stimuli for d = {d} features: biased CKA, CCA and regression are high for unrelated models; read "
            "scores beside their chance level, or use debiased CKA and mutual k-NN",
        )  # fmt: skip
    share = float(by_feature.max()) / total
    if d > 2 and share > ROGUE_SHARE:
        at = int(by_feature.argmax())
        say(
            "rogue-dimension", "warning",
            f"feature {at} of {d} holds {share:.0%} of the variance: distances and CKA see little else; try rank-based "
            "measures, or clip outliers (preprocess: clip)",
        )  # fmt: skip


def _mean_direction(wide: Tensor, norm: Tensor, say: Say) -> None:
    """Mean cosine of all pairs from the sum of unit rows: (|sum|^2 - n) / (n (n - 1))."""
    n = int((norm > 0).sum())
    if n < 2:
        return
    weights = torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1.0), 0.0)
    total = (weights[None].to(wide.dtype) @ wide).double()
    cosine = (float((total**2).sum()) - n) / (n * (n - 1))
    if cosine > MEAN_COSINE:
        say(
            "common-mean", "warning",
            f"the mean cosine of two rows is {cosine:.3f} (above {MEAN_COSINE}): a common direction dominates, and cosine "
            "neighbours hang on the last digits; compare with center=True as well, and never in half precision",
        )  # fmt: skip


def _dimensions(centred: Tensor, total: float, say: Say) -> None:
    """Participation ratio tr(C)^2 / tr(C^2), from the Gram matrix of the smaller side where that is small.

    Else tr(C^2) = E |X X' z|^2 over random signs z is estimated from `PROBES` of them: a relative standard error of
    sqrt(2 / PROBES) for a matrix of rank one, less for all others.
    """
    n, d = centred.shape
    if min(n, d) <= 2 * PROBES:
        products = centred @ centred.T if n < d else centred.T @ centred
        squares = float(torch.linalg.vector_norm(products, dtype=torch.float64)) ** 2
    else:
        signs = torch.randint(0, 2, (n, PROBES), generator=torch.Generator().manual_seed(0)) * 2 - 1
        probed = centred @ (centred.T @ signs.to(centred.device, centred.dtype))
        squares = float(torch.linalg.vector_norm(probed, dtype=torch.float64)) ** 2 / PROBES
    effective = total**2 / squares
    if min(n, d) > LOW_RANK and effective < LOW_RANK:
        say(
            "low-rank", "warning",
            f"the effective number of dimensions is about {effective:.1f} of {min(n - 1, d)}: CKA and RSA compare little more than "
            "one direction; mutual k-NN with center=True sees the rest",
        )  # fmt: skip
    elif effective > n / 2:
        say(
            "full-rank", "note",
            f"the effective number of dimensions is about {effective:.0f} at n = {n}: nearly every direction is taken, so biased "
            "CKA, CCA and SVCCA are high for unrelated models",
        )  # fmt: skip
