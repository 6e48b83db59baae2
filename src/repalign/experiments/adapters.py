"""Maps from the vectors of a new model to those of an old one: how each is fitted, and the file that keeps one."""

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
from repalign.experiments.translate import Affine, ridge, rotation

NONE, ORTHOGONAL, CENTRED, RIDGE, LOW_RANK = "none", "orthogonal", "orthogonal, centred", "ridge", "low rank"
RANK = 32
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


def low_rank(x: Array, y: Array, rank: int = RANK) -> Affine:
    """Reduced-rank ridge: `ridge`, and of what it fits the first principal components (Izenman 1975)."""
    whole = ridge(x, y)
    fitted = (x - whole.centre) @ whole.weights
    axes = np.linalg.eigh(fitted.T @ fitted)[1][:, ::-1][:, :rank]
    return Affine(whole.weights @ axes @ axes.T, whole.centre, whole.shift)


FITS: dict[str, Callable[[Array, Array], Affine]] = {
    NONE: unmapped, ORTHOGONAL: turned, CENTRED: turned_about_the_means, RIDGE: ridge, LOW_RANK: low_rank,
}  # fmt: skip
REGRESSIONS = (RIDGE, LOW_RANK)  # which need two pairs or more for each dimension of the old model


@dataclass(frozen=True, eq=False)
class Adapter:
    """A map of vectors of the new model into the space of the old one.

    kind : a name of `FITS`. is_unit : rows are made length 1 before and after, as cosine sees them. pairs : that it was fitted on.
    model : what the new model is called, if somebody said it.
    """

    kind: str
    affine: Affine
    is_unit: bool
    pairs: int
    model: str = ""

    @property
    def widths(self) -> tuple[int, int]:
        """Of the new model and of the old one."""
        new, old = self.affine.weights.shape
        return new, old

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its numbers and what is said of them."""
        sha = hashlib.sha256(json.dumps([self.kind, self.is_unit, self.pairs, self.model]).encode())
        for part in (self.affine.weights, self.affine.centre, self.affine.shift):
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
        mapped = self.affine(unit(vectors) if self.is_unit else vectors)
        return unit(mapped) if self.is_unit else mapped

    def save(self, path: Path) -> None:
        """Write it as a safetensors file: weights, centre, shift in float64, the rest and the fingerprint in the metadata."""
        from safetensors.numpy import save

        from repalign.files import write_file

        parts = {"weights": self.affine.weights, "centre": self.affine.centre, "shift": self.affine.shift}
        about = {FORM: "1", "kind": self.kind, "is_unit": str(int(self.is_unit)), "pairs": str(self.pairs), "model": self.model,
                 "fingerprint": self.fingerprint}  # fmt: skip
        write_file(path, save({name: np.ascontiguousarray(x, dtype=np.float64) for name, x in parts.items()}, about))

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
        if about.get(FORM) != "1" or set(parts) != {"weights", "centre", "shift"}:
            raise RepalignError(f"{path} is no adapter", expected="a file of repalign migrate --adapter",
                                got=f"safetensors with {', '.join(sorted(parts)) or 'nothing'}")  # fmt: skip
        found = cls(about["kind"], Affine(**parts), about["is_unit"] == "1", int(about["pairs"]), about["model"])
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
