"""Datasets that are made in memory: arrays with ids, and the toy world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from repalign.dataset.columns import Arrays, Column
from repalign.dataset.images import Images, Pixels
from repalign.dataset.kinds import refuse_twins, row_ids
from repalign.dataset.texts import Texts
from repalign.errors import RepalignError


class FromMemory:
    """How a `Dataset` is made in memory."""

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Any], ids: Sequence[str | int], *, name: str | None = None, revision: str | None = None
    ) -> Self:
        """Arrays of shape (n, ...), one per modality, whose row i is the thing that `ids[i]` names."""
        import numpy as np

        name = name or "arrays"
        if not arrays:
            raise RepalignError(f"dataset {name!r}: no arrays", expected="at least one modality", got="none")
        names = tuple(row_ids(ids, f"dataset {name!r}"))
        refuse_twins(names, range(len(names)), f"dataset {name!r}")
        columns: dict[str, Column] = {}
        for modality, value in arrays.items():
            array = np.array(value)  # a copy, so that nobody changes it later
            where = f"dataset {name!r}: modality {modality!r}"
            if array.dtype.kind not in "fiub" or array.ndim < 1:
                raise RepalignError(
                    f"{where} is no array of numbers", expected="a real numeric array of shape (n, ...)",
                    got=f"dtype {array.dtype}, shape {array.shape}",
                    remedy="convert it first; captions and images come from a table or a folder",
                )
            if len(array) != len(names):
                raise RepalignError(
                    f"{where} does not have one row for each id", expected=f"{len(names)} rows, one for each id",
                    got=f"{len(array)} rows", remedy="give one id for each row of every array",
                )
            array.flags.writeable = False
            columns[modality] = Arrays(array)
        return cls(name, names, columns, f"arrays {', '.join(arrays)}", revision)  # type: ignore[call-arg]

    @classmethod
    def toy(cls, n: int = 1024, seed: int = 0, detail: int = 10) -> Self:
        """Scenes of the toy world: an image, a caption and the latents that made them.

        `detail` is how many attributes the caption names, from 1 to 10. The modalities are `image`,
        `text` and `latent` (palette, family, depth, layout).
        """
        if n < 1 or not 1 <= detail <= 10:
            expected = "at least one scene and a detail of 1 to 10 attributes"
            raise RepalignError("the toy world cannot be drawn", expected=expected, got=f"n={n}, detail={detail}")
        from repalign.toyworld import world

        scenes = world.sample(n, seed, detail)
        texts = Texts(tuple((c,) for c in scenes.captions))
        columns = {Images.kind: Pixels(scenes.images), Texts.kind: texts, "latent": Arrays(scenes.latents)}
        ids = tuple(f"scene-{i:05d}" for i in range(n))
        return cls("toy", ids, columns, f"toy world (n={n}, seed={seed}, detail={detail})")  # type: ignore[call-arg]
