"""Datasets that are made in memory: arrays with ids, and the toy world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from repalign.dataset._columns import Arrays, Column, Pixels, Texts
from repalign.dataset._core import Dataset
from repalign.dataset._rows import check_unique, row_id
from repalign.errors import RepalignError


def from_arrays(
    arrays: Mapping[str, Any], ids: Sequence[str | int], name: str, revision: str | None
) -> Dataset:
    """See `Dataset.from_arrays`."""
    import numpy as np

    if not arrays:
        raise RepalignError(f"dataset {name!r}: no arrays", expected="at least one modality", got="none")
    names = tuple(row_id(value, i, f"dataset {name!r}") for i, value in enumerate(ids))
    check_unique(names, range(len(names)), f"dataset {name!r}")
    columns: dict[str, Column] = {}
    for modality, value in arrays.items():
        array = np.array(value)  # a copy, so that nobody changes it later
        if array.dtype.kind not in "fiub" or array.ndim < 1:
            raise RepalignError(
                f"dataset {name!r}: modality {modality!r} is no array of numbers",
                expected="a real numeric array of shape (n, ...)",
                got=f"dtype {array.dtype}, shape {array.shape}",
                remedy="convert it first; captions and images come from a table or a folder",
            )
        if len(array) != len(names):
            raise RepalignError(
                f"dataset {name!r}: modality {modality!r} does not have one row for each id",
                expected=f"{len(names)} rows, one for each id",
                got=f"{len(array)} rows",
                remedy="give one id for each row of every array",
            )
        array.flags.writeable = False
        columns[modality] = Arrays(array)
    if not names:
        raise RepalignError(f"dataset {name!r} has no rows", expected="at least one row", got="none")
    source = f"arrays {', '.join(arrays)}"
    return Dataset(name=name, ids=names, columns=columns, source=source, revision=revision)


def toy(n: int, seed: int, detail: int) -> Dataset:
    """See `Dataset.toy`."""
    if n < 1 or not 1 <= detail <= 10:
        raise RepalignError(
            "the toy world cannot be drawn",
            expected="at least one scene and a detail of 1 to 10 attributes",
            got=f"n={n}, detail={detail}",
        )
    from repalign.toyworld import world

    scenes = world.sample(n, seed, detail)
    return Dataset(
        name="toy",
        ids=tuple(f"scene-{i:05d}" for i in range(n)),
        columns={
            "image": Pixels(scenes.images),
            "text": Texts(tuple((c,) for c in scenes.captions)),
            "latent": Arrays(scenes.latents),
        },
        source=f"toy world (n={n}, seed={seed}, detail={detail})",
    )
