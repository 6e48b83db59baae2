"""The figures that a study file asks for, from the results of all its variants, and the table of these."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from repalign.comparison.alignment import SCHEMA, TABLE_FILE, Alignment
from repalign.figures import kinds
from repalign.files import FILES, file_sha256, seal_parquet, write_bytes
from repalign.study.base import Drawn, Outcome
from repalign.study.load import Variant
from repalign.study.yaml_lines import Where
from repalign.text import Progress

if TYPE_CHECKING:
    from repalign.study.alignment import AlignmentStudy
    from repalign.study.members import Members


def check_figures(figures: Sequence[Mapping[str, Any]], where: Where) -> None:
    """Refuse a figure of an unknown kind or with an unknown option, at its line."""
    for i, item in enumerate(figures):
        with where.at("figures", i):
            kinds.check(item)


def draw_figures(
    study: AlignmentStudy, outcome: Outcome, members: Mapping[str, Members], progress: Progress
) -> tuple[Drawn, ...]:
    """All figures of a study."""
    given = study.config.published
    results = kinds.Results(
        outcome.alignments,
        combined(study.variants, outcome.alignments),
        {variant: {r.name: r for r in found.everything} for variant, found in members.items()},
        None if given is None else study.base / given,
    )
    return results.draw(study.config.figures, progress)


def combined(variants: Sequence[Variant], alignments: Mapping[str, Alignment]) -> pd.DataFrame:
    """The pairs of models of all variants: the schema's columns, `variant`, and one column per swept field.

    A swept field that is a column of the schema already (n) is not repeated.
    """
    frames = []
    for variant in variants:
        table = alignments[variant.name].table
        rows = table.loc[table["scope"] == "max"]
        extra = {k: v for k, v in variant.factors.items() if k not in SCHEMA.names}
        frames.append(rows.assign(variant=variant.name, **extra))
    return pd.concat(frames, ignore_index=True)


def write_combined(table: pd.DataFrame, path: Path, of: Sequence[Path]) -> Path:
    """Write the table of all variants as a sealed Parquet file that states the digests of the results it is made `of`."""
    import pyarrow as pa

    files = [folder / TABLE_FILE for folder in of]
    stated = {os.path.relpath(file, path.parent).replace(os.sep, "/"): file_sha256(file) for file in files}
    about = {FILES: json.dumps(stated, sort_keys=True)}
    write_bytes(path, seal_parquet(pa.Table.from_pandas(table, preserve_index=False), about))
    return path
