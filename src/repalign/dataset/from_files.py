"""Datasets of files: a table (CSV, TSV, JSONL, Parquet), or a folder of files with their captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from repalign.dataset.columns import Blob, Files
from repalign.dataset.kinds import IN_CELLS, assemble, named_columns, refuse_twins, row_ids
from repalign.errors import RepalignError, choose
from repalign.tables import read_table
from repalign.text import Progress, silent


class FromFiles:
    """How a `Dataset` is made of files."""

    @classmethod
    def from_table(
        cls, path: str | Path, *, id: str | None = "id", image: str | None = None, text: str | Sequence[str] | None = None,
        root: str | Path | None = None, on_missing: str = "error", name: str | None = None, progress: Progress = silent,
        **others: str | Sequence[str] | None,
    ) -> Self:  # fmt: skip
        """A CSV, TSV, JSONL or Parquet table with a column of ids and columns named by the caller.

        `image` is a column of paths, relative to the table's folder or to `root`; `text` a column of strings or of lists of
        strings, or several columns of strings; `others` name the columns of other kinds (`KINDS`). Rows with the same id are
        merged into several captions if each holds one caption and all name the same image.
        With `id=None` the ids are row numbers. Equal content gives the same fingerprint in every format.
        """
        path = Path(path)
        where = path.name
        named, told = named_columns(id, {"image": image, "text": text, **others}, where)
        asked = [*([] if id is None else [id]), *(c for names in named.values() for c in names)]
        table = read_table(path, asked)
        for column in asked:
            choose("column", column, table.columns, f"{where} has no column {column!r}")
        ids = row_ids([f"{i:05d}" if id is None else row.get(id) for i, row in enumerate(table.rows)], where)
        folder, rows = path.parent if root is None else Path(root).expanduser(), None
        cells = {
            kind: [IN_CELLS[kind].cell([row.get(c) for c in names], names, i, where, folder) for i, row in enumerate(table.rows)]
            for kind, names in named.items()
        }
        if len(set(ids)) < len(ids):
            rows = _merged(ids, cells, where)
        found = assemble(name or path.stem, ids, cells, where, f"table {where} ({told})", on_missing, progress, rows=rows)
        return cls(*found)  # type: ignore[call-arg]

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
        if not folder.is_dir():
            raise RepalignError(
                f"there is no folder {folder}", expected="a folder of images",
                got="a file" if folder.exists() else "nothing by that name",
                remedy="check the path; in a study file it starts from the study file's folder",
            )
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
        return cls(*assemble(name or where, ids, cells, f"folder {where!r}", source, on_missing, progress))  # type: ignore[call-arg]


def _merged(ids: Sequence[str], cells: Mapping[str, list[Any]], where: str) -> list[int]:
    """The first row of each id, to which the others add a caption; what has no captions must be the same in all of them.

    Nothing is merged, and so the rows refused later, where a row has all of its captions already.
    """
    several = [kind for kind in cells if IN_CELLS[kind].several]
    if not several or any(isinstance(cell, list) for kind in several for cell in cells[kind]):
        return list(range(len(ids)))
    first: dict[str, int] = {}
    for row, id_ in enumerate(ids):
        at = first.setdefault(id_, row)
        for kind, column in cells.items() if at != row else ():
            if kind in several:  # an empty cell keeps its place among the captions of an id
                column[at] = (*(column[at] or (None,)), *(column[row] or (None,)))
            elif column[at] != column[row]:
                both = column[at], column[row]
                expected, got = (f"no {kind}" if cell is None else getattr(cell, "label", cell) for cell in both)
                raise RepalignError(
                    f"{where}: rows {at} and {row} have the same id {id_!r} but name different {IN_CELLS[kind].plural}",
                    expected=f"{expected}, as in row {at}", got=got, remedy="give different things different ids",
                )
    return list(first.values())
