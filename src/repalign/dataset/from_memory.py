"""Datasets of what is in memory: lists of texts, pictures and arrays, and datasets of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from repalign.dataset.images import is_picture
from repalign.dataset.kinds import IN_CELLS, assemble, kinds_with, row_ids
from repalign.errors import RepalignError, is_of
from repalign.text import silent


class FromMemory:
    """How a `Dataset` is made of stimuli in memory; of frames it is `from_table`."""

    @classmethod
    def of(
        cls, *, ids: Iterable[str | int] | None = None, name: str | None = None, files: Mapping[str, Iterable[Any]] | None = None,
        values: Mapping[str, Iterable[Any]] | None = None, **stimuli: Iterable[Any],
    ) -> Self:  # fmt: skip
        """A dataset of lists of stimuli, row i of all of them the same thing: `Dataset.of(image=pictures, text=captions)`.

        `text` holds strings, or lists of them, where a row has several; `image` pictures of Pillow, arrays of bytes (height,
        width, 3), or paths. Arrays and tensors of other numbers, of one shape, are stimuli of kind "array" by any name: a torch
        module reads them as they are. What a function of yours reads has a name of yours: `files={"audio": paths}`, or of their
        bytes, and `values={"molecule": smiles}`, texts, numbers, lists or arrays of any shape. Without `ids` these are row
        numbers.

        Raises RepalignError: lists of unequal length, what is no text, picture or array, a picture that cannot be read.
        """
        name, given = name or "memory", {"files": files or {}, "values": values or {}}
        named_kinds = kinds_with(given, stimuli, f"dataset {name!r}")
        lists = {m: _listed(some, m) for of_kind in (stimuli, *given.values()) for m, some in of_kind.items()}
        n = max(map(len, lists.values()), default=0)
        told = ", ".join(lists) + ("; ids are row numbers" if ids is None else "")
        named = row_ids([f"{i:05d}" for i in range(n)] if ids is None else list(ids), f"dataset {name!r}")
        lengths = {"ids": len(named), **{modality: len(values) for modality, values in lists.items()}}
        if set(lengths.values()) != {n}:
            raise RepalignError(
                f"dataset {name!r}: lists of unequal length", expected="a stimulus of each in every row",
                got=", ".join(f"{length} {modality}" for modality, length in lengths.items()),
            )  # fmt: skip
        as_arrays = {m for m in stimuli if _is_array(lists[m][0]) and not (m in IN_CELLS and is_picture(lists[m][0]))}
        kinds = {m: k for m, k in named_kinds.items() if m in lists and m not in as_arrays}
        cells = {m: [kind.cell([x], [m], i, m, Path()) for i, x in enumerate(lists[m])] for m, kind in kinds.items()}
        arrays = {m: _stacked(values, f"dataset {name!r}: {m}") for m, values in lists.items() if m not in kinds}
        source = f"lists in memory ({told})"
        made: Any = cls(*assemble(name, named, cells, f"dataset {name!r}", source, "error", silent, kinds=kinds))
        more = made.from_arrays(arrays, named).columns if arrays else {}
        return replace(made, columns={m: {**made.columns, **more}[m] for m in lists})

    @classmethod
    def from_torch(
        cls, data: Any, *, ids: Iterable[str | int] | None = None, name: str | None = None, **fields: int | str
    ) -> Self:  # fmt: skip
        """A dataset of a torch `Dataset`, or of that of a `DataLoader`, in its own order: `Dataset.from_torch(cifar, image=0)`.

        `fields` say where in an item a stimulus stands: a place in a tuple, or a key. Without any, the first of a tuple is taken,
        as in (image, label), or the item that is no tuple, under the name `image`, or `text` if it is one. Stimuli are what
        `of` takes, and are held in memory.
        """
        data = data.dataset if is_of(data, "torch", "DataLoader") else data
        items: list[Any] = list(data) if is_of(data, "torch", "IterableDataset") else [data[i] for i in range(len(data))]
        first: Any = items[0] if items else None
        if not fields and isinstance(first, dict):
            raise RepalignError(
                "nothing says which fields of the items are stimuli", expected="image=KEY, text=KEY or both", got="none",
                remedy=f"the keys are {', '.join(map(repr, first))}",
            )  # fmt: skip
        if not fields:
            bare = not isinstance(first, (tuple, list))
            items = [(x,) for x in items] if bare else items
            fields = {"text" if isinstance(items[0][0] if items else None, str) else "image": 0}
        try:
            lists = {modality: [item[place] for item in items] for modality, place in fields.items()}
        except (KeyError, IndexError, TypeError) as error:
            raise RepalignError(
                f"an item has no field {error}", expected=f"{fields}, in every item",
                got=f"{list(first) if isinstance(first, dict) else f'{len(first)} fields'}",
            ) from error  # fmt: skip
        return cls.of(ids=ids, name=name or type(data).__name__, **lists)


def _listed(values: Iterable[Any], modality: str) -> list[Any]:
    """Stimuli in a list, tensors as arrays of numpy."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise RepalignError(f"{modality}: it is no list", expected="a stimulus for each row, in a list", got=repr(values)[:60])
    return [x.detach().cpu().numpy() if is_of(x, "torch", "Tensor") else x for x in values]


def _is_array(x: object) -> bool:
    import numpy as np

    return isinstance(x, np.ndarray | np.generic)


def _stacked(values: Sequence[Any], where: str) -> Any:
    import numpy as np

    try:
        if not all(map(_is_array, values)):
            raise ValueError(f"a {next(type(x).__name__ for x in values if not _is_array(x))}")
        return np.stack(values)
    except ValueError as error:
        raise RepalignError(
            f"{where}: these are no arrays of one shape", expected="arrays or tensors of numbers", got=error,
            remedy="texts stand under `text`, pictures under `image`, and what a function of yours reads in `values={name: ...}`",
        ) from error  # fmt: skip
