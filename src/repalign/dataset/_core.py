"""The dataset itself: what pairs the stimuli of several modalities, and what names them for good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from repalign.dataset._columns import Column, Texts
from repalign.dataset._distorted import Distorted, distorted
from repalign.dataset._distortions import Distortion, check
from repalign.errors import RepalignError, did_you_mean
from repalign.tables import bad_text
from repalign.text import Progress, silent


@dataclass(frozen=True)
class LeftOut:
    """A row that is in no modality of the dataset, and why. `row` counts from 0 in the source."""

    id: str
    row: int
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Ordered ids and one column of stimuli per modality; immutable.

    Pairing is by id: row i of every modality is the thing that `ids[i]` names. Images are read when
    they are asked for; a dataset is plain data and may be sent to other threads and processes.
    Make one with `from_hub`, `from_table`, `from_folder`, `from_arrays` or `toy`.
    """

    name: str
    ids: tuple[str, ...]
    columns: Mapping[str, Column]
    source: str
    revision: str | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __post_init__(self) -> None:
        if bad_text("\n".join(self.ids)):  # of all at once: the one is looked for where there is one
            row, problem = next((i, found) for i, id_ in enumerate(self.ids) if (found := bad_text(id_)))
            raise RepalignError(f"dataset {self.name!r}: row {row} has an id with {problem}", expected="an id that is text")
        for modality, column in self.columns.items():
            if len(column) != len(self.ids):
                raise RepalignError(
                    f"dataset {self.name!r}: modality {modality!r} does not have one row for each id",
                    expected=f"{len(self.ids)} rows",
                    got=f"{len(column)} rows",
                    remedy="give one id for each row",
                )

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def n(self) -> int:
        return len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        lost = f", {len(self.left_out)} left out" if self.left_out else ""
        done = self.distortions
        kinds = ", ".join(f"{m} ({done[m]})" if m in done else m for m in self.modalities)
        return f"Dataset({self.name!r}, n={self.n}, {kinds}{lost}, fingerprint={self.fingerprint[:12]})"

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits that change when an id, a stimulus, the order or the revision changes.

        SHA-256 over lines of compact JSON in UTF-8, each ended by a newline. The first line is
        ``["repalign-dataset-1", revision, [[modality, kind], ...]]`` with the modalities in
        alphabetical order, then comes one line ``[id, digest, ...]`` per row with the digest of
        each modality in that order. The digest of an image is that of the file's bytes, of captions
        that of their JSON list, of an array that of dtype, shape and values. Name, path and format
        of the source do not enter.

        The digest of a distorted stimulus is the SHA-256 of compact JSON
        ``["repalign-distort-1", digest, kind, amount, seed]``, where `digest` is that of the stimulus as it
        was; kind "words" adds the digest of the vocabulary, SHA-256 of ``[words, counts]`` as JSON. So every
        amount above 0 changes the fingerprint, also where it changes no word, and amount 0 does not.
        """
        names = sorted(self.columns)
        digests = [self.columns[m].digests for m in names]
        sha = hashlib.sha256()
        sha.update(_line(["repalign-dataset-1", self.revision, [[m, self.columns[m].kind] for m in names]]))
        for i, id_ in enumerate(self.ids):
            sha.update(_line([id_, *(d[i] for d in digests)]))
        return sha.hexdigest()

    def kind(self, modality: str) -> str:
        """What the stimuli of a modality are: "text", "image" or "array"."""
        return self._column(modality).kind

    def stimuli(self, modality: str, rows: Sequence[int]) -> list[Any]:
        """The stimuli of some rows.

        For kind "text" a list of tuples of strings (all captions of the row, the first never blank; a
        later one that is missing between others is ``""``), for "image" a list of PIL images in RGB
        (upright, transparency over white), for "array" a list of numpy arrays.

        Raises RepalignError for an unknown modality or row, and for an image that has changed on
        disk since the dataset was opened.
        """
        column = self._column(modality)
        for row in rows:
            if not 0 <= row < self.n:
                raise RepalignError(
                    f"dataset {self.name!r}: no row {row}", expected=f"0 to {self.n - 1}", got=row
                )
        return [column.read(int(row)) for row in rows]

    def _column(self, modality: str) -> Column:
        if modality not in self.columns:
            raise RepalignError(
                f"dataset {self.name!r} has no modality {modality!r}",
                expected=f"one of {', '.join(self.modalities)}",
                got=modality,
                remedy=did_you_mean(modality, self.modalities),
            )
        return self.columns[modality]

    def subset(self, ids: Iterable[str]) -> Dataset:
        """The rows with these ids, in the given order. Errors for unknown, repeated or no ids."""
        wanted = [ids] if isinstance(ids, str) else list(ids)
        row_of = {id_: row for row, id_ in enumerate(self.ids)}
        for id_ in wanted:
            if id_ not in row_of:
                raise RepalignError(
                    f"dataset {self.name!r} has no id {id_!r}",
                    expected=f"one of its {self.n} ids, such as {self.ids[0]!r}",
                    got=repr(id_),
                    remedy=_closest_ids(str(id_), self.ids),
                )
        if not wanted or len(set(wanted)) < len(wanted):
            twice = next((i for i in wanted if wanted.count(i) > 1), None)
            raise RepalignError(
                f"dataset {self.name!r}: a subset needs at least one id, each once",
                got="no id" if twice is None else f"{twice!r} twice",
            )
        return self._take([row_of[i] for i in wanted], f"subset of {len(wanted)} ids")

    def sample(self, n: int, seed: int = 0) -> Dataset:
        """n rows drawn without replacement, in their original order.

        They are the first n of a random order of all rows (numpy's PCG64), so that with one seed
        a smaller sample is part of every larger one.
        """
        import numpy as np

        if not 1 <= n <= self.n:
            raise RepalignError(
                f"dataset {self.name!r}: cannot draw a sample of {n}",
                expected=f"1 to {self.n} rows",
                got=n,
                remedy=f"choose n of at most {self.n}, or leave the sample out to use every row",
            )
        order = np.random.Generator(np.random.PCG64(seed)).permutation(self.n)
        return self._take(sorted(int(r) for r in order[:n]), f"sample of {n}, seed {seed}")

    def distort(self, modality: str, kind: str, amount: float, seed: int = 0) -> Dataset:
        """The dataset with every stimulus of one modality distorted when it is read; amount 0 is this dataset itself.

        Images, at the size at which they are stored: "noise" (pixels (1 - a) x + a u, u uniform on 0 to 255: pure
        noise at 1), "blur" (Gaussian, sd a times a quarter of the shorter side), "patches" (a share a of 16 x 16 patches
        change places), "grey" (share of colour removed), "occlude" (a share a of the patches grey). Captions:
        "words" (each with probability a replaced by a word drawn from all captions of the dataset, rows that
        `subset` or `sample` left out included), "order" (a share a of the words change places), "drop" (each word left
        out with probability a, at least one stays).

        Random numbers belong to (seed, id, modality, index of the caption): subsets, parts and processes agree, and what
        changes at one amount changes at every larger one. Ids, pairing and the other modalities stay. Call it once
        for each modality.

        Raises RepalignError for an unknown modality or kind, an amount outside [0, 1], arrays, and a modality that is
        distorted already.
        """
        column, where = self._column(modality), f"dataset {self.name!r}, modality {modality!r}"
        how = Distortion(kind, amount, seed)
        check(how, column.kind, where)
        if amount == 0:
            return self
        if isinstance(column, Distorted):
            raise RepalignError(
                f"{where} is distorted already",
                expected="stimuli as they were",
                got=column.distortion,
                remedy="distort the dataset that this one was made from",
            )
        how = replace(how, amount=float(amount))
        return replace(
            self,
            columns={**self.columns, modality: distorted(column, how, modality, self.ids)},
            source=f"{self.source}; {modality} distorted: {how}, seed {seed}",
        )

    @property
    def distortions(self) -> dict[str, Distortion]:
        """What is done to the stimuli of each modality; nothing for most datasets."""
        return {m: c.distortion for m, c in self.columns.items() if isinstance(c, Distorted)}

    def _take(self, rows: list[int], how: str) -> Dataset:
        return replace(
            self,
            ids=tuple(self.ids[r] for r in rows),
            columns={m: c.take(rows) for m, c in self.columns.items()},
            source=f"{self.source}; {how}",
        )

    def describe(self) -> dict[str, Any]:
        """What identifies the dataset and what was left out of it, ready for JSON."""
        clean = [c.base if isinstance(c, Distorted) else c for c in self.columns.values()]
        texts = [c for c in clean if isinstance(c, Texts)]  # no distortion changes how many captions there are
        counts = [sum(bool(t) for t in captions) for c in texts for captions in c.captions]
        return {
            "name": self.name,
            "source": self.source,
            "revision": self.revision,
            "n": self.n,
            "fingerprint": self.fingerprint,
            "modalities": list(self.modalities),
            "kinds": {m: c.kind for m, c in self.columns.items()},
            "distort": {m: asdict(how) for m, how in self.distortions.items()},
            "captions_per_image": {"min": min(counts), "max": max(counts)} if counts else None,
            "n_left_out": len(self.left_out),
            "left_out": [asdict(row) for row in self.left_out],
        }

    # --- sources; each is a module of its own, imported on use --------------------------------------

    @classmethod
    def from_hub(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        split: str = "train",
        image: str | None = None,
        text: str | Sequence[str] | None = None,
        id: str | None = None,
        config: str | None = None,
        data_files: str | Sequence[str] | None = None,
        on_missing: str = "error",
        name: str | None = None,
        progress: Progress = silent,
    ) -> Dataset:
        """A dataset of the Hugging Face hub, or a local one that `datasets` can load.

        `revision` (a branch, tag or commit; the default branch if None) is resolved to a commit,
        which is what `Dataset.revision` records and the fingerprint covers. A `path` that exists is
        local, may be a folder written by `save_to_disk`, a folder of data files or one such file,
        and has no revision. `text` is a column of strings or of lists of strings, or several columns
        of strings; of several captions the first counts. Without an `id` column the ids are row numbers.

        Raises RepalignError without network and cache, and where the cache holds another commit.
        """
        from repalign.dataset._hub import from_hub

        return from_hub(
            path, revision, split, image, text, id, config, data_files, on_missing, name, progress
        )

    @classmethod
    def from_table(
        cls,
        path: str | Path,
        *,
        id: str | None = "id",
        image: str | None = None,
        text: str | Sequence[str] | None = None,
        root: str | Path | None = None,
        on_missing: str = "error",
        name: str | None = None,
        progress: Progress = silent,
    ) -> Dataset:
        """A CSV, TSV, JSONL or Parquet table with a column of ids and columns named by the caller.

        `image` is a column of paths, relative to the table's folder or to `root`; `text` a column
        of strings or of lists of strings, or several columns of strings. Rows with the same id are
        merged into several captions if each holds one caption and all name the same image.
        With `id=None` the ids are row numbers. Equal content gives the same fingerprint in every format.
        """
        from repalign.dataset._table import from_table

        return from_table(Path(path), id, image, text, root, on_missing, name, progress)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        on_missing: str = "error",
        name: str | None = None,
        progress: Progress = silent,
    ) -> Dataset:
        """A folder of images, subfolders included, in the order of their ids.

        The id of an image is its path in the folder without the suffix. Captions are either in a file
        `name.txt` beside `name.jpg`, one per line, or in one `captions.jsonl` or `captions.csv` at the
        top with the columns `image` (path in the folder) and `caption` or `captions`. A folder
        without any captions is a dataset of images alone.
        """
        from repalign.dataset._folder import from_folder

        return from_folder(Path(path), on_missing, name, progress)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        ids: Sequence[str | int],
        *,
        name: str | None = None,
        revision: str | None = None,
    ) -> Dataset:
        """Arrays of shape (n, ...), one per modality, whose row i is the thing that `ids[i]` names."""
        from repalign.dataset._memory import from_arrays

        return from_arrays(arrays, ids, name or "arrays", revision)

    @classmethod
    def toy(cls, n: int = 1024, seed: int = 0, detail: int = 10) -> Dataset:
        """Scenes of the toy world: an image, a caption and the latents that made them.

        `detail` is how many attributes the caption names, from 1 to 10. The modalities are `image`,
        `text` and `latent` (palette, family, depth, layout).
        """
        from repalign.dataset._memory import toy

        return toy(n, seed, detail)


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _closest_ids(wanted: str, ids: tuple[str, ...]) -> str:
    """`did_you_mean`, which searches a few thousand ids in good time and lists no thousands of them."""
    hint = did_you_mean(wanted, ids[:5000])
    return hint if hint.startswith("did you mean") else "look at `Dataset.ids` for those that are there"
