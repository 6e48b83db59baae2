"""The dataset itself: where its stimuli come from, what pairs those of several modalities, and what names them for good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self

from repalign.dataset.columns import Arrays, Blob, Cells, Column, Distortion, Files
from repalign.dataset.from_hub import FromHub
from repalign.dataset.from_memory import FromMemory
from repalign.dataset.images import Images, Pixels
from repalign.dataset.kinds import (
    IN_CELLS,
    Distorted,
    LeftOut,
    assemble,
    distorted,
    fields_of,
    named_columns,
    refuse_twins,
    refuse_unknown,
    row_ids,
)
from repalign.dataset.texts import Texts
from repalign.errors import RepalignError, choose, did_you_mean, is_of
from repalign.tables import bad_text, read_table, refuse_missing, table_of
from repalign.text import Progress, silent


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(FromHub, FromMemory):
    """Ordered ids and one column of stimuli per modality; immutable.

    Pairing is by id: row i of every modality is the thing that `ids[i]` names. Images are read when
    they are asked for; a dataset is plain data and may be sent to other threads and processes.
    Make one with `from_hub`, `from_table`, `from_folder`, `from_arrays`, `of` or `from_torch`, or `toy`.
    """

    name: str
    ids: tuple[str, ...]
    columns: Mapping[str, Column]
    source: str
    revision: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    n: int = field(init=False)
    modalities: tuple[str, ...] = field(init=False)
    distortions: dict[str, Distortion] = field(init=False)  # by modality; none for most datasets

    def __post_init__(self) -> None:
        changed = {m: c.distortion for m, c in self.columns.items() if isinstance(c, Distorted)}
        vars(self).update(n=len(self.ids), modalities=tuple(self.columns), distortions=changed)
        if bad_text("\n".join(self.ids)):  # all at once, which is quick; the one is looked for if there is one
            row, problem = next((i, found) for i, id_ in enumerate(self.ids) if (found := bad_text(id_)))
            raise RepalignError(f"dataset {self.name!r}: row {row} has an id with {problem}", expected="an id that is text")
        for modality, column in self.columns.items():
            if len(column.digests) != len(self.ids):
                problem = f"dataset {self.name!r}: modality {modality!r} does not have one row for each id"
                expected, got = f"{len(self.ids)} rows", f"{len(column.digests)} rows"
                raise RepalignError(problem, expected=expected, got=got, remedy="give one id for each row")

    # --- where it comes from; from the hub: `FromHub` ---

    @classmethod
    def from_table(
        cls, table: Any, *, id: str | None = "id", image: str | None = None, text: str | Sequence[str] | None = None,
        files: Mapping[str, str] | None = None, values: Mapping[str, str] | None = None, root: str | Path | None = None,
        on_missing: str = "error", name: str | None = None, progress: Progress = silent, **others: str | Sequence[str] | None,
    ) -> Self:  # fmt: skip
        """A table with a column of ids and columns named by the caller: CSV, TSV, JSONL or Parquet, or in memory.

        In memory it is a frame (pandas, polars, Arrow), a `datasets.Dataset`, or a list of mappings, a row each.

        `image` is a column of paths, relative to the table's folder or to `root`, or of pictures or bytes in memory; `text` a
        column of strings or of lists of strings, or several columns of strings; `others` name the columns of other kinds
        (`KINDS`). What a function of yours reads has a name of yours: `files={"audio": "clip"}` is a column of paths (of which
        the function gets paths), `values={"molecule": "smiles"}` a column of anything (it gets what stands there). Rows with the
        same id are merged into several captions if each holds one caption and all name the same image.
        With `id=None` the ids are row numbers, as those of a table in memory are that has no column `id`. Equal content gives
        the same fingerprint in every format, but for pictures (those in files go by their bytes) and for values (a number is
        text in a CSV).
        """
        if is_of(table, "datasets", "Dataset"):
            options: dict[str, Any] = {"on_missing": on_missing, "name": name, "progress": progress, **others}
            options |= {"files": files, "values": values}
            id = None if id == "id" and id not in table.column_names else id
            return cls.from_hub(table, id=id, image=image, text=text, **options)
        held = table_of(table)
        if held is not None:
            id = None if id == "id" and id not in held.columns else id
        elif not isinstance(table, (str, Path)):
            raise RepalignError(
                f"a dataset is made of no {type(table).__name__}", got=repr(table)[:80],
                expected="a path, a frame, a datasets.Dataset, or a list of mappings, a row each",
                remedy="stimuli in lists are taken by Dataset.of(text=[...], image=[...]), those of torch by Dataset.from_torch",
            )
        path = Path(type(table).__name__ if held is not None else table)
        where = path.name
        given = {"files": files, "values": values}
        named, kinds, told = named_columns(id, {"image": image, "text": text, **others}, given, where)
        asked = fields_of(id, named)
        read = read_table(path, list(asked)) if held is None else held
        refuse_unknown(asked, read.columns, where)
        ids = row_ids([f"{i:05d}" if id is None else row.get(id) for i, row in enumerate(read.rows)], where)
        folder, rows = path.parent if root is None else Path(root).expanduser(), None
        cells = {
            m: [kinds[m].cell([row.get(c) for c in names], names, i, where, folder) for i, row in enumerate(read.rows)]
            for m, names in named.items()
        }
        if len(set(ids)) < len(ids):
            rows = _merged(ids, cells, kinds, where)
        source = f"table {where} ({told}{'' if id else '; ids are row numbers'})"
        return cls(*assemble(name or path.stem, ids, cells, where, source, on_missing, progress, rows=rows, kinds=kinds))

    @classmethod
    def from_folder(
        cls, path: str | Path, *, on_missing: str = "error", name: str | None = None, progress: Progress = silent
    ) -> Self:
        """A folder of images, subfolders included, in the order of their ids.

        The id of an image is its path in the folder without the suffix. Captions are either in a file
        `name.txt` beside `name.jpg`, one per line, or in one `captions.jsonl` or `captions.csv` at the
        top with the columns `image` (path in the folder) and `caption` or `captions`. A folder
        without any captions is a dataset of images alone. Files of other kinds are read in the same way.
        """
        folder = Path(path)
        refuse_missing(folder, "folder")
        if not folder.is_dir():
            raise RepalignError(f"there is no folder {folder}", expected="a folder of images", got="a file")
        where = folder.resolve().name
        files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        files = [p for p in files if not any(part.startswith(".") for part in p.parts)]
        found: dict[str, Mapping[str, Any]] = {}
        of_files = {name: kind for name, kind in IN_CELLS.items() if issubclass(kind, Files)}
        for kind, its in of_files.items():
            own = [p for p in files if p.suffix.lower() in its.suffixes]
            stems = [p.with_suffix("").as_posix() for p in own]
            refuse_twins(stems, range(len(stems)), f"folder {where!r} ({its.plural} by name)")
            blobs = [Blob(str((folder / p).absolute()), p.as_posix()) for p in own]
            found |= {kind: dict(zip(stems, blobs, strict=True))} if own else {}
        if not found:
            raise RepalignError(
                f"folder {where!r} holds no {' and no '.join(its.plural for its in of_files.values())}",
                expected=f"files that end in {', '.join(s for its in of_files.values() for s in its.suffixes)}",
                got=f"{len(files)} other files",
            )
        told = []
        for kind in IN_CELLS.keys() - of_files:
            beside, how = IN_CELLS[kind].beside(folder, files, where, tuple(found))
            found |= {} if beside is None else {kind: beside}
            told += [how]
        ids = sorted({id_ for of in found.values() for id_ in of})
        cells = {kind: [of.get(id_) for id_ in ids] for kind, of in found.items()}
        source = f"folder {where} ({'; '.join(told)})"
        return cls(*assemble(name or where, ids, cells, f"folder {where!r}", source, on_missing, progress))

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
        return cls(name, names, columns, f"arrays {', '.join(arrays)}", revision)

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
        return cls("toy", ids, columns, f"toy world (n={n}, seed={seed}, detail={detail})")

    # --- what it is ---

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
        each modality in that order. The digest of an image or another file covers the file's bytes, of captions
        their JSON list, of an array dtype, shape and values, of another value its JSON. Name, path and format
        of the source do not enter.

        The digest of a distorted stimulus is the SHA-256 of compact JSON
        ``["repalign-distort-1", digest, kind, amount, seed]``, where `digest` is the one of the stimulus as it
        was; kind "words" adds the digest of the vocabulary, SHA-256 of ``[words, counts]`` as JSON. So every
        amount above 0 changes the fingerprint, also where it changes no word, and amount 0 does not.
        """
        names = sorted(self.columns)
        digests = [self.columns[m].digests for m in names]
        head = ["repalign-dataset-1", self.revision, [[m, self.columns[m].kind] for m in names]]
        sha = hashlib.sha256()
        for line in chain([head], zip(self.ids, *digests, strict=True)):
            sha.update(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        return sha.hexdigest()

    @cached_property
    def seen(self) -> dict[str, str]:
        """What a model sees that reads one column: of each the fingerprint of a dataset of these ids and that column alone."""
        return {m: replace(self, columns={m: column}, revision=None).fingerprint for m, column in self.columns.items()}

    def kind(self, modality: str) -> str:
        """The kind of the stimuli of a modality, a name of `KINDS`: "text", "image", "array", "file" or "value"."""
        return self._column(modality).kind

    def stimuli(self, modality: str, rows: Sequence[int]) -> list[Any]:
        """The stimuli of some rows.

        For kind "text" a list of tuples of strings (all captions of the row, the first never blank; a
        later one that is missing between others is ``""``), for "image" a list of PIL images in RGB
        (upright, transparency over white), for "array" a list of numpy arrays, for "file" a list of paths (bytes of files
        in memory or of the hub), for "value" what stands in the cells.

        Raises RepalignError for an unknown modality or row, and for an image or file that has changed on
        disk since the dataset was opened.
        """
        column = self._column(modality)
        for row in rows:
            if not 0 <= row < self.n:
                raise RepalignError(f"dataset {self.name!r}: no row {row}", expected=f"0 to {self.n - 1}", got=row)
        return [column.read(int(row)) for row in rows]

    def _column(self, modality: str) -> Column:
        return self.columns[choose("modality", modality, self.modalities, f"dataset {self.name!r} has no modality {modality!r}")]

    def subset(self, ids: Iterable[str]) -> Dataset:
        """The rows with these ids, in the given order. Errors for unknown, repeated or no ids."""
        wanted = [ids] if isinstance(ids, str) else list(ids)
        row_of = {id_: row for row, id_ in enumerate(self.ids)}
        for id_ in wanted:
            if id_ not in row_of:
                hint = did_you_mean(str(id_), self.ids[:5000])  # which searches a few thousand in good time
                raise RepalignError(
                    f"dataset {self.name!r} has no id {id_!r}",
                    expected=f"one of its {self.n} ids, such as {self.ids[0]!r}", got=repr(id_),
                    remedy=hint if hint.startswith("did you mean") else "look at `Dataset.ids` for those that are there",
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
                f"dataset {self.name!r}: cannot draw a sample of {n}", expected=f"1 to {self.n} rows", got=n,
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

        Raises RepalignError for an unknown modality or kind, an amount outside [0, 1], stimuli of kinds without distortions,
        and a modality that is distorted already.
        """
        how, where = Distortion(kind, amount, seed), f"dataset {self.name!r}, modality {modality!r}"
        column = distorted(self._column(modality), how, modality, self.ids, where)
        if column is self.columns[modality]:
            return self
        source = f"{self.source}; {modality} distorted: {how}, seed {seed}"
        return replace(self, columns={**self.columns, modality: column}, source=source)

    def _take(self, rows: list[int], how: str) -> Dataset:
        return replace(
            self, ids=tuple(self.ids[r] for r in rows), columns={m: c.take(rows) for m, c in self.columns.items()},
            source=f"{self.source}; {how}",
        )

    def describe(self) -> dict[str, Any]:
        """The identity of the dataset and the rows that were left out, ready for JSON."""
        clean = [c.base if isinstance(c, Distorted) else c for c in self.columns.values()]
        texts = [c for c in clean if isinstance(c, Texts)]  # no distortion changes how many captions there are
        counts = [sum(bool(t) for t in captions) for c in texts for captions in c.captions]
        return {
            **{field: getattr(self, field) for field in ("name", "source", "revision", "n", "fingerprint")},
            "modalities": list(self.modalities),
            "kinds": {m: c.kind for m, c in self.columns.items()},
            "seen": self.seen,
            "distort": {m: asdict(how) for m, how in self.distortions.items()},
            "captions_per_image": {"min": min(counts), "max": max(counts)} if counts else None,
            "n_left_out": len(self.left_out),
            "left_out": [asdict(row) for row in self.left_out],
        }


def _merged(ids: Sequence[str], cells: Mapping[str, list[Any]], kinds: Mapping[str, type[Cells]], where: str) -> list[int]:
    """The first row of each id, to which the others add a caption; what has no captions must be the same in all of them.

    Nothing is merged, and so the rows refused later, where a row has all of its captions already.
    """
    several = [m for m in cells if kinds[m].several]
    if not several or any(isinstance(cell, list) for kind in several for cell in cells[kind]):
        return list(range(len(ids)))
    first: dict[str, int] = {}
    for row, id_ in enumerate(ids):
        at = first.setdefault(id_, row)
        for modality, column in cells.items() if at != row else ():
            if modality in several:  # an empty cell keeps its place among the captions of an id
                column[at] = (*(column[at] or (None,)), *(column[row] or (None,)))
            elif column[at] != column[row]:
                both = column[at], column[row]
                expected, got = (f"no {modality}" if cell is None else getattr(cell, "label", cell) for cell in both)
                raise RepalignError(
                    f"{where}: rows {at} and {row} have the same id {id_!r} but name different {kinds[modality].plural}",
                    expected=f"{expected}, as in row {at}", got=got, remedy="give different things different ids",
                )
    return list(first.values())
