"""The record of a finished run of `track`: what it read, with digests, and where the rows of its checkpoints are.

A run that left nothing out writes it. The same run again compares the digests and reads the rows: neither torch nor a library of
models is imported, which would take longer than all else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.errors import RepalignError
from repalign.experiments.inputs import is_stored, manifest_of
from repalign.files import parse_json, path_sha256

if TYPE_CHECKING:
    from repalign.dataset import Dataset
    from repalign.files import Files
    from repalign.measures import Measure
    from repalign.sources import ModelEntry
    from repalign.track import Panel

Read = tuple[str, list[str] | None, str | None]  # a path; of a folder the endings of the files that count; their digest


def rows_in(files: Files, name: str) -> dict[str, Any]:
    """A file of a record."""
    return parse_json(files.read(name), f"{files.root}/{name}", "remove it")[0]


def sha256_of(facts: Any) -> str:
    """The digest of anything that JSON holds, or that is told as text."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def receipt_of(asked: Mapping[str, Any]) -> str:
    """The file in the store of a finished run with these arguments, in this folder, by this code."""
    return f"tracked/run-{sha256_of([str(Path.cwd()), _code(), asked])[:32]}.json"


@cache
def _code() -> str:
    house = Path(__file__).parents[1]
    return path_sha256(house, house.rglob("*.py"))


def is_unchanged(read: Sequence[Read]) -> bool:
    """Whether all files that were read are what they were."""
    return all(digest_of(Path(path), endings) == digest for path, endings, digest in read)


def digest_of(path: Path, endings: Sequence[str] | None = None) -> str | None:
    """The digest of a file, or of a folder: of all its files, or of those right in it that have some endings; None without any."""
    if not path.exists():
        return None
    return path_sha256(path, None if endings is None else (one for one in path.iterdir() if one.suffix in endings))


def all_read(inputs: Sequence[Any], entries: Sequence[ModelEntry]) -> list[Read] | None:
    """All files that are read, each with its digest; None where one is told by something else, as by a branch."""
    from repalign.features import sidecars
    from repalign.sources import parse_spec
    from repalign.sources.hub import MODEL_FILES, HubSource

    files, folders = [manifest_of(one) if is_stored(one) else Path(one) for one in inputs], []
    for entry in entries:
        spec = parse_spec(entry.spec)
        if spec.file is not None and spec.source.is_file:
            files.append(spec.file)
        elif spec.file is not None and isinstance(spec.source, HubSource) and not spec.source.nested:
            folders.append(spec.file)
        elif spec.revision is None or spec.source.revision(spec, entry) != spec.revision:  # else it names a commit, which stays
            return None
    if not all(path.exists() for path in files):  # as behind a URL
        return None
    every = [(path, None) for one in files for path in (one, *sidecars(one))] + [(one, sorted(MODEL_FILES)) for one in folders]
    return [(str(path.absolute()), endings, digest_of(path, endings)) for path, endings in every]


def names_of_rows(
    panel: Panel, dataset: Dataset, entries: Sequence[ModelEntry], measures: Sequence[Measure], seed: int
) -> dict[str, str]:  # fmt: skip
    """The file in the store with the finished rows of each checkpoint, named by all that they depend on.

    A checkpoint whose revision nothing tells now has none: what keeps it from being loaded is told when it is.
    """
    from repalign.comparison.identity import identity
    from repalign.comparison.tiles import FORMULAS
    from repalign.sources import parse_spec

    out = {}
    for entry in entries:
        try:
            spec = parse_spec(entry.spec)
            of_features = [dataset.fingerprint, str(spec), spec.source.revision(spec, entry), entry.settings("auto")]
        except RepalignError:
            continue
        facts = [FORMULAS, panel.digest, of_features, [identity(m) for m in measures], list(map(repr, measures)), seed]
        out[entry.label] = f"tracked/{sha256_of(facts)[:32]}.json"
    return out
