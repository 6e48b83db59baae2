"""Datasets of the Hugging Face hub, and local ones that the `datasets` library can load.

The revision is resolved to a commit before anything is loaded, and what was loaded is checked
against it: without network, and also when the revision does not exist, `datasets` falls back to the
latest commit in its cache, whatever revision was asked for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from repalign.dataset.kinds import assemble, fields_of, named_columns, refuse_unknown, row_ids
from repalign.errors import NotHere, RepalignError, choose, is_of, require
from repalign.tables import iter_rows
from repalign.text import Progress, silent

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")
FILE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}
SAVED_MARKS = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder


class FromHub:
    """How a `Dataset` is made of one of the hub, or of what the `datasets` library reads."""

    @classmethod
    def from_hub(
        cls, path: Any, *, revision: str | None = None, split: str = "train", id: str | None = None,
        image: str | None = None, text: str | Sequence[str] | None = None, files: Mapping[str, str] | None = None,
        values: Mapping[str, str] | None = None, config: str | None = None, data_files: str | Sequence[str] | None = None,
        on_missing: str = "error", name: str | None = None, progress: Progress = silent,
        **others: str | Sequence[str] | None,
    ) -> Self:  # fmt: skip
        """A dataset of the Hugging Face hub, a local one that `datasets` can load, or a `datasets.Dataset` itself.

        `revision` (a branch, tag or commit; the default branch if None) is resolved to a commit, which is what
        `Dataset.revision` records and the fingerprint covers. A `path` that exists is local, may be a folder written by
        `save_to_disk`, a folder of data files or one such file, and has no revision. `image` is a column of images;
        `text` a column of strings or of lists of strings, or several columns of strings; `others` name the columns of
        other kinds, `files` and `values` those that a function of yours reads, as in `from_table` (files as bytes); of several
        captions the first counts. Without an `id` column the ids are row numbers.

        Raises RepalignError without network and cache, and if the cache holds another commit.
        """
        held = is_of(path, "datasets", "Dataset")
        local = Path("dataset" if held else path).expanduser()
        where = local.name if held or local.exists() else str(path)
        given = {"files": files, "values": values}
        named, kinds, told = named_columns(id, {"image": image, "text": text, **others}, given, where)
        require(f"dataset {where}", "models", "datasets")
        commit = None
        if held:
            data, source = path, "datasets.Dataset in memory"
        elif local.exists():
            if revision is not None:
                raise RepalignError(
                    f"{path} is on this machine, where there are no revisions", expected="no revision for a local dataset",
                    got=f"revision {revision!r}",
                    remedy="leave the revision out; or, to load it from the hub, rename the local folder",
                )
            data, source = _load_local(local, split, config, data_files), f"local {where}"
        else:
            commit, data = _load_hub(str(path), revision, split, config, data_files)
            source = f"hub {path}@{revision or 'default branch'}"
        refuse_unknown(fields_of(id, named), data.column_names, where)
        ids = row_ids([f"{i:05d}" for i in range(len(data))] if id is None else data.select_columns([id])[:][id], where)
        cells = {modality: kinds[modality].hub_cells(data, names, ids, where) for modality, names in named.items()}
        name = name or (local.stem if held or local.exists() else str(path).rsplit("/", 1)[-1])
        source = f"{source} ({told})" if held else f"{source} (split={split}, {told})"
        made: Any = assemble(name, ids, cells, where, source, on_missing, progress, revision=commit, kinds=kinds)
        return cls(*made)


# --- local ---------------------------------------------------------------------------------------


def _load_local(path: Path, split: str, config: str | None, data_files: Any) -> Any:
    """A folder written by `save_to_disk`, a folder of data files, or one data file."""
    import datasets

    if path.is_dir() and any((path / mark).is_file() for mark in SAVED_MARKS):
        data = datasets.load_from_disk(str(path))
        if isinstance(data, datasets.DatasetDict):
            return data[choose("split", split, list(data), f"{path.name} has no split {split!r}")]
        return data
    builder_name, how = str(path), {}
    if path.is_file():
        suffix = choose("format", path.suffix.lower(), FILE_BUILDERS, f"{path.name}: a file of unknown format")
        builder_name, data_files = FILE_BUILDERS[suffix], str(path)
        if builder_name == "csv":  # as repalign.tables reads one: no word means "nothing", and 007 is no number
            texts = {name: datasets.Value("string") for name in next(iter_rows(path))}
            how = {"keep_default_na": False, "na_values": [""], "features": datasets.Features(texts)}
    try:
        builder = datasets.load_dataset_builder(builder_name, name=config, data_files=data_files, **how)
        return _prepared(builder, split, path.name)
    except RepalignError:
        raise
    except Exception as error:  # of datasets, pyarrow and pandas; the first in the chain says what is wrong
        first = error
        while first.__cause__ is not None and isinstance(first.__cause__, Exception):
            first = first.__cause__
        raise RepalignError(
            f"{path.name} is no dataset that the `datasets` library can load",
            expected="a folder written by save_to_disk, a folder of data files, or one data file",
            got=f"{type(first).__name__}: {(str(first).splitlines() or [''])[0]}",
            remedy="a table is read with `table:` (Dataset.from_table), which names the row that is wrong",
        ) from error


def _prepared(builder: Any, split: str, where: str) -> Any:
    builder.download_and_prepare()
    if builder.info.splits and re.fullmatch(r"\w+", split):
        choose("split", split, list(map(str, builder.info.splits)), f"{where} has no split {split!r}")
    try:
        return builder.as_dataset(split=split)
    except ValueError as error:
        raise RepalignError(
            f"{where}: the split {split!r} cannot be read",
            expected='a split such as "train" or a part of one such as "train[:100]"', got=error,
        ) from error


# --- the hub -------------------------------------------------------------------------------------


def _load_hub(path: str, revision: str | None, split: str, config: str | None, data_files: Any) -> tuple[str, Any]:
    """The commit that a revision stands for, and the dataset at that commit."""
    import datasets

    commit = _resolve_commit(path, revision)
    if revision is None:
        log.warning("dataset %s: no revision given, taking commit %s; pin it", path, commit)
    try:
        # by the name of the revision, not the commit: the hub client then notes in its cache which
        # commit the name stood for, and the same study runs again without network
        builder = datasets.load_dataset_builder(path, name=config, revision=revision, data_files=data_files)
        if builder.hash != commit:
            raise RepalignError(
                f"dataset {path}: what could be loaded is another commit than the one asked for",
                expected=f"revision {revision or 'default branch'}, commit {commit}",
                got=f"commit {builder.hash}, the latest in the cache of the `datasets` library",
                remedy="go online once to fetch the revision, or ask for the commit in the cache",
            )
        return commit, _prepared(builder, split, path)
    except RepalignError:
        raise
    except Exception as error:  # of four libraries: the hub client, its HTTP client, datasets, pyarrow
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__) is not None:
            chain.append(cause)
        if any(isinstance(e, ConnectionError) or re.search("Connect|Timeout|Offline", type(e).__name__) for e in chain):
            raise _unreachable(path, revision, error) from error
        raise RepalignError(
            f"dataset {path} at revision {revision or 'default branch'} cannot be loaded",
            expected="a dataset in a format that the `datasets` library reads", got=f"{type(error).__name__}: {error}",
            remedy="look at the options config, data_files and split",
        ) from error


def _resolve_commit(path: str, revision: str | None) -> str:
    """The commit (40 hex digits) that a revision of a hub dataset stands for now.

    Asks the hub; without network a commit stands for itself and a name for what the hub client's
    cache notes (the file refs/<revision> of the repository's folder there).
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        sha = HfApi().dataset_info(path, revision=revision, timeout=20).sha
    except HFValidationError as error:
        raise RepalignError(
            f"{path!r} is neither a dataset of the hub nor on this machine",
            expected="a name such as 'org/dataset', or a path that exists", got=error,
            remedy="check the path; in a study file it starts from the study file's folder",
        ) from error
    except RevisionNotFoundError as error:
        raise RepalignError(
            f"dataset {path} has no revision {revision!r}", expected="a branch, tag or commit of the dataset",
            got=revision, remedy="look at the branches on the dataset's page",
        ) from error
    except RepositoryNotFoundError as error:
        raise RepalignError(
            f"the hub has no dataset {path!r} that may be read from here",
            expected="a public dataset, or one that you are logged in for", got=path,
            remedy="check the name, or run `hf auth login`",
        ) from error
    except Exception as error:  # no network: the client raises errors of three libraries
        if revision is not None and COMMIT.fullmatch(revision):
            return revision
        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}"
        note = folder / "refs" / (revision or "main")
        if note.is_file():
            return note.read_text().strip()
        raise _unreachable(path, revision, error) from error
    if sha is None:
        raise _unreachable(path, revision, ValueError("the hub names no commit"))
    return sha


def _unreachable(path: str, revision: str | None, error: BaseException) -> NotHere:
    reason = str(error).strip().splitlines()
    return NotHere(
        f"dataset {path} at revision {revision or 'default branch'}: no network or hub not reachable, and not in the cache",
        expected="a connection to the Hugging Face hub, or an earlier download",
        got=f"{type(error).__name__}: {reason[0] if reason else ''}",
        remedy="go online once, or copy the dataset here (save_to_disk) and give its path instead",
    )
