"""Maps from the vectors of a new model to those of an old one: how each is fitted, and the file that keeps one.

The forms are those of Drift-Adapter (2025, arXiv 2509.23471): a rotation, an affine map of low rank, and a network on top of a map.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repalign.errors import RepalignError
from repalign.experiments.retrieval import Array, read_vectors, unit
from repalign.experiments.translate import Affine, rotation

NONE, ORTHOGONAL, CENTRED, RIDGE, LOW_RANK, MLP = "none", "orthogonal", "orthogonal, centred", "ridge", "low rank", "residual MLP"
RANK = 32
PENALTIES = np.geomspace(1e-4, 1e2, 13)  # of regressions, times the mean squared length of the rows
FOLDS = 5  # that a penalty is chosen by
HIDDEN, BATCH, RATE, DECAY = 256, 256, 1e-3, 1e-2  # of the network: units, pairs of a step, step and weight decay of AdamW
HELD, EPOCHS, PATIENCE = 0.2, 300, 20  # the share of pairs that stop it; most passes; passes without a gain that it waits
FORM = "repalign-adapter"


def unmapped(x: Array, y: Array) -> Affine:
    """Vectors as they are: what is missing of the other width is zeros, what is too much is cut off."""
    d, width = x.shape[1], y.shape[1]
    return Affine(np.eye(d, width), np.zeros(d), np.zeros(width))


def turned(x: Array, y: Array) -> Affine:
    """The rotation that takes x (m, d1) nearest to y (m, d2), about 0.

    >>> x = np.random.default_rng(0).standard_normal((9, 3))
    >>> bool(np.allclose(turned(x, x[:, ::-1])(x), x[:, ::-1]))
    True
    """
    return Affine(rotation(x, y)[0], np.zeros(x.shape[1]), np.zeros(y.shape[1]))


def turned_about_the_means(x: Array, y: Array) -> Affine:
    """The rotation that takes x nearest to y, both about their means, and the shift between the means."""
    centre, shift = x.mean(0), y.mean(0)
    return Affine(rotation(x - centre, y - shift)[0], centre, shift)


def ridge(x: Array, y: Array) -> Affine:
    """Ridge regression of y (m, d2) on x (m, d1) with a free intercept: the least |y - x W|^2 + p |W|^2, both centred.

    p is chosen of `PENALTIES` by the squared error of five folds.

    >>> x = np.random.default_rng(0).standard_normal((40, 3))
    >>> bool(np.allclose(ridge(x, x @ np.ones((3, 2)))(x), x @ np.ones((3, 2)), atol=1e-3))
    True
    """
    return regressions(x, y, (y.shape[1],))[0]


def low_rank(x: Array, y: Array, rank: int = RANK) -> Affine:
    """Reduced-rank ridge: of what `ridge` fits the first principal components (Izenman 1975); p is chosen for that rank."""
    return regressions(x, y, (rank,))[0]


def regressions(x: Array, y: Array, ranks: tuple[int, ...]) -> list[Affine]:
    """`low_rank` for each of some ranks; that of all dimensions is `ridge`."""
    penalties = PENALTIES * max(float((x**2).sum() / len(x)), np.finfo(float).tiny)
    fold, errors = np.arange(len(x)) % FOLDS, np.zeros((len(penalties), len(ranks)))
    for one in range(FOLDS):
        fit, held = _Spectrum.of(x[fold != one], y[fold != one]), fold == one
        inside, wanted = (x[held] - fit.centre) @ fit.axes, y[held] - fit.shift
        for p, penalty in enumerate(penalties):
            errors[p] += [((wanted - inside @ some) ** 2).sum() for some in fit.coefficients(penalty, ranks)]
    whole, chosen = _Spectrum.of(x, y), penalties[errors.argmin(0)]
    found = [whole.coefficients(p, (rank,))[0] for p, rank in zip(chosen, ranks, strict=True)]
    return [Affine(whole.axes @ some, whole.centre, whole.shift) for some in found]


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Xc'Xc = axes diag(values) axes' of centred rows, turned = axes' Xc'Yc: ridge is W = axes diag(1 / (values + p)) turned."""

    centre: Array
    shift: Array
    axes: Array
    values: Array
    turned: Array

    @classmethod
    def of(cls, x: Array, y: Array) -> _Spectrum:
        centre, shift = x.mean(0), y.mean(0)
        xc, yc = x - centre, y - shift
        if len(x) < x.shape[1]:  # the same values, of an m x m matrix
            values, u = np.linalg.eigh(xc @ xc.T)
            known = values > 1e-13 * values[-1]
            values, axes = values[known], xc.T @ (u[:, known] / np.sqrt(values[known]))
        else:
            values, axes = np.linalg.eigh(xc.T @ xc)
        return cls(centre, shift, axes, np.maximum(values, 0), axes.T @ (xc.T @ yc))

    def coefficients(self, penalty: float, ranks: tuple[int, ...]) -> list[Array]:
        """diag(1 / (values + p)) turned, cut to each of some ranks."""
        from scipy.linalg import eigh

        out, width = [], self.turned.shape[1]
        whole = self.turned / (self.values + penalty)[:, None]
        for rank in ranks:
            if rank >= width:
                out.append(whole)
                continue
            fitted = np.sqrt(self.values)[:, None] * whole
            first = eigh(fitted.T @ fitted, subset_by_index=(width - rank, width - 1))[1]
            out.append(whole @ first @ first.T)
        return out


@dataclass(frozen=True, eq=False)
class Bent:
    """z -> affine(z) + max((z - centre) inner + bias, 0) outer, of rows z (n, d1): inner (d1, h), bias (h,), outer (h, d2)."""

    affine: Affine
    inner: Array
    bias: Array
    outer: Array

    def __call__(self, z: Array) -> Array:
        return self.affine(z) + np.maximum((z - self.affine.centre) @ self.inner + self.bias, 0) @ self.outer


def residual_mlp(x: Array, y: Array, seed: int = 0) -> Bent:
    """What a rotation about the means leaves of y (m, d2), by a network of one hidden layer (torch, AdamW, squared error).

    A fifth of the pairs is held out and stops it; where the network does not help them it is 0. The same seed gives the same map.
    """
    import torch

    affine, draw = turned_about_the_means(x, y), torch.Generator().manual_seed(seed)
    left, d = y - affine(x), x.shape[1]
    spread = max(float(np.sqrt(((x - affine.centre) ** 2).mean())), np.finfo(float).tiny)
    size = max(float(np.sqrt((left**2).mean())), np.finfo(float).tiny)  # inputs and targets about 1
    given, wanted = (torch.from_numpy(z).float() for z in ((x - affine.centre) / spread, left / size))
    order = torch.randperm(len(x), generator=draw)
    held, train = order[: max(1, round(HELD * len(x)))], order[max(1, round(HELD * len(x))) :]
    inner = (torch.randn(d, HIDDEN, generator=draw) / d**0.5).requires_grad_()
    bias, outer = (torch.zeros(shape, requires_grad=True) for shape in ((HIDDEN,), (HIDDEN, y.shape[1])))
    parts = (inner, bias, outer)
    optimiser = torch.optim.AdamW(parts, lr=RATE, weight_decay=DECAY)

    def error(rows: torch.Tensor) -> torch.Tensor:
        return ((given[rows] @ inner + bias).relu() @ outer - wanted[rows]).square().mean()

    best, kept, waited = float(error(held).detach()), [p.detach().clone() for p in parts], 0
    for _ in range(EPOCHS):
        for rows in train[torch.randperm(len(train), generator=draw)].split(BATCH):
            optimiser.zero_grad()
            error(rows).backward()
            optimiser.step()
        now, waited = float(error(held).detach()), waited + 1
        if now < best:
            best, kept, waited = now, [p.detach().clone() for p in parts], 0
        if waited >= PATIENCE:
            break
    first, middle, last = (p.double().numpy() for p in kept)
    return Bent(affine, first / spread, middle, last * size)


FITS: dict[str, Callable[[Array, Array], Affine | Bent]] = {
    NONE: unmapped, ORTHOGONAL: turned, CENTRED: turned_about_the_means, RIDGE: ridge, LOW_RANK: low_rank, MLP: residual_mlp,
}  # fmt: skip
REGRESSIONS = (RIDGE, LOW_RANK)  # which need two pairs or more for each dimension of the old model
PARTS = (("weights", "centre", "shift"), ("inner", "bias", "outer"))  # of a file: of every adapter, of a network besides


@dataclass(frozen=True, eq=False)
class Adapter:
    """A map of vectors of the new model into the space of the old one.

    kind : a name of `FITS`. map : what was fitted. is_unit : rows are made length 1 before and after, as cosine sees them.
    pairs : that it was fitted on. model : what the new model is called, if somebody said it.
    """

    kind: str
    map: Affine | Bent
    is_unit: bool
    pairs: int
    model: str = ""

    @property
    def parts(self) -> dict[str, Array]:
        """Its numbers by name."""
        first, more = PARTS
        affine = self.map.affine if isinstance(self.map, Bent) else self.map
        found = {name: getattr(affine, name) for name in first}
        return found if affine is self.map else {**found, **{name: getattr(self.map, name) for name in more}}

    @property
    def widths(self) -> tuple[int, int]:
        """Of the new model and of the old one."""
        new, old = self.parts["weights"].shape
        return new, old

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its numbers and what is said of them."""
        sha = hashlib.sha256(json.dumps([self.kind, self.is_unit, self.pairs, self.model]).encode())
        for part in self.parts.values():
            sha.update(np.ascontiguousarray(part, dtype="<f8").tobytes())
        return sha.hexdigest()

    def transform(self, vectors: Array, model: str = "") -> Array:
        """Vectors (n, d_new) in the space of the old model, (n, d_old). `model` : what made them, if somebody says it.

        Raises RepalignError for vectors of another width, of another model, or with numbers that are not finite.
        """
        vectors = np.asarray(vectors, dtype=float)
        new, old = self.widths
        if vectors.ndim != 2 or vectors.shape[1] != new:
            got, own = f"shape {vectors.shape}", ": these look like vectors of the old model" * (vectors.shape[-1] == old)
            raise RepalignError(f"the vectors do not fit the adapter{own}", expected=f"(n, {new}), of the new model", got=got)
        if model and self.model and model != self.model:
            raise RepalignError("the vectors are of another model than the adapter", expected=self.model, got=model,
                                remedy="fit an adapter for this model: repalign migrate")  # fmt: skip
        if not np.isfinite(vectors).all():
            raise RepalignError("NaN or infinite values in the vectors", expected="every entry finite")
        mapped = self.map(unit(vectors) if self.is_unit else vectors)
        return unit(mapped) if self.is_unit else mapped

    def save(self, path: Path) -> None:
        """Write it as a safetensors file: its numbers in float64, the rest and the fingerprint in the metadata."""
        from safetensors.numpy import save

        from repalign.files import write_file

        about = {FORM: "1", "kind": self.kind, "is_unit": str(int(self.is_unit)), "pairs": str(self.pairs), "model": self.model,
                 "fingerprint": self.fingerprint}  # fmt: skip
        write_file(path, save({name: np.ascontiguousarray(x, dtype=np.float64) for name, x in self.parts.items()}, about))

    @classmethod
    def load(cls, path: Path) -> Adapter:
        """The adapter of a file. Raises RepalignError for a file that is none, or is not as it was written."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                about = file.metadata() or {}
                parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise RepalignError(f"{path} cannot be read as an adapter", expected="a file of repalign migrate --adapter",
                                got=str(error)) from error  # fmt: skip
        first, more = PARTS
        if about.get(FORM) != "1" or set(parts) not in ({*first}, {*first, *more}):
            raise RepalignError(f"{path} is no adapter", expected="a file of repalign migrate --adapter",
                                got=f"safetensors with {', '.join(sorted(parts)) or 'nothing'}")  # fmt: skip
        affine = Affine(*(parts[name] for name in first))
        bent = Bent(affine, *(parts[name] for name in more)) if more[0] in parts else affine
        found = cls(about["kind"], bent, about["is_unit"] == "1", int(about["pairs"]), about["model"])
        if found.fingerprint != about["fingerprint"]:
            raise RepalignError(f"{path} is not as it was written", expected=f"SHA-256 {about['fingerprint']}",
                                got=found.fingerprint, remedy="fit it again: repalign migrate --adapter")  # fmt: skip
        return found


def adapt_file(
    adapter: Path, vectors: Any, to: Path, *, model: str = "", layer: str | None = None, id: str | None = None
) -> tuple[Adapter, int, Path | None]:
    """Map a file of vectors into a .npy file of float32, with a file of ids beside it if there are any: FILE.ids.txt.

    Gives the adapter, the number of vectors, and the file of ids. Raises RepalignError for what `Adapter.transform` refuses.
    """
    from repalign.features import sidecars
    from repalign.files import write_file

    if to.suffix != ".npy":
        raise RepalignError(f"{to} is no .npy file", expected="a name that ends in .npy", got=to.suffix or "no ending")
    found, read = Adapter.load(adapter), read_vectors({"the vectors": vectors}, layer, id)
    data = io.BytesIO()
    np.save(data, found.transform(read.arrays[0], model).astype(np.float32), allow_pickle=False)
    write_file(to, data.getvalue())
    if read.ids is None:
        return found, len(read.arrays[0]), None
    sidecar = sidecars(to)[0]
    write_file(sidecar, "\n".join(read.ids) + "\n")
    return found, len(read.ids), sidecar
