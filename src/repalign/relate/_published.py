"""Published scores from a CSV file: of pairs of models, with what else stands there about the models."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, did_you_mean
from repalign.models import COMPETENCES, known_models, published_model
from repalign.relate._fit import Fit
from repalign.tables import csv_rows, split_lines

TIDY = ("model_x", "model_y", "statistic")
ALIGNMENT = "alignment_"
COMMENT = "#"
SEVERAL = "|"
# An exact relation of two competences: bits per byte are 1 minus this.
ONE_MINUS_BPB, BPB = "one_minus_bpb", "bits_per_byte"


@dataclass(frozen=True, eq=False)
class Published:
    """Published scores, with the labels that they were published under.

    `table`: one row per score and pair of models: point (the printed row), model_x, model_y, statistic. A printed row that
    stands for two models ("a|b") is one point and two rows. `scores`: one row per point with its competences. `notes` are
    the comment lines of the file. `text` says what was read.
    """

    name: str
    table: pd.DataFrame
    scores: pd.DataFrame
    notes: tuple[str, ...]
    text: str

    @property
    def competences(self) -> list[str]:
        """What the file says about the models of side x, beside their alignment."""
        return [c for c in self.scores.columns if c != "point"]

    def competence(self, name: str) -> pd.Series | None:
        """A competence of every point; "bits_per_byte" is also 1 minus a column "one_minus_bpb". None if there is none."""
        mirrored = name == BPB and BPB not in self.scores and ONE_MINUS_BPB in self.scores
        if not mirrored and name not in self.competences:
            return None
        values = self.scores[ONE_MINUS_BPB if mirrored else name].to_numpy(float)
        return pd.Series(1 - values if mirrored else values, self.scores["point"].tolist())

    def points(self, against: str, model_y: str | None = None) -> pd.DataFrame:
        """Columns point, x (a competence) and alignment (to `model_y`, or the mean over all); points that have both.

        Raises RepalignError for unknown names.
        """
        rows, known = self.table, list(dict.fromkeys(self.table["model_y"]))
        if model_y is not None:
            same = [name for name in known if name == model_y or _same(name, model_y)]
            if not same:
                raise RepalignError(
                    f"{self.name}: no published score with {model_y!r}", got=model_y, remedy=did_you_mean(model_y, known)
                )
            rows = rows.loc[rows["model_y"] == same[0]]
        x = self.competence(against)
        if x is None:
            raise RepalignError(
                f"{self.name}: no published {against!r}", got=against, remedy=did_you_mean(against, self.competences)
            )
        alignment = rows.drop_duplicates(["point", "model_y"]).groupby("point", sort=False)["statistic"].mean()
        joined = pd.DataFrame({"x": x, "alignment": alignment}).reindex(x.index).dropna()
        return joined.rename_axis("point").reset_index()

    def fit(self, against: str, model_y: str | None = None) -> Fit | None:
        """Alignment on a competence over the printed points; None below three. It has no interval: points share models."""
        found = self.points(against, model_y)
        return Fit.of(found["x"], found["alignment"])


def read_published(path: str | Path, *, models: Sequence[str] = ()) -> Published:
    """Read published scores of pairs of models.

    Two forms. Tidy: columns model_x, model_y, statistic; any further column is a competence of model_x. Wide: the first
    column names the models of one side; a further column is a model of the other side if a published figure labels a known
    model so (`published_as` in the table of known models), if it starts with "alignment_", or if `models` names it; any
    other is a competence. Lines that start with # are notes; blanks are missing; "a|b" in a column of models is one row
    that stands for two.

    Raises RepalignError for a file that is not there, has no rows or no scores, a value that is not a number, or a pair of
    models that stands twice.
    """
    path = Path(path)
    notes, frame = _read(path)
    tidy = set(TIDY) <= set(frame.columns)
    if not tidy and set(TIDY) & set(frame.columns):
        lacking = [c for c in TIDY if c not in frame.columns]
        raise RepalignError(f"{path.name}: no column {lacking[0]!r}", expected=", ".join(TIDY), got=", ".join(frame.columns))
    if tidy:
        competences = [c for c in frame.columns if c not in TIDY]
        printed = frame[list(TIDY)].set_axis(["point", *TIDY[1:]], axis=1)
    else:
        first, *rest = frame.columns
        competences = [c for c in rest if not (_is_model(c) or c in models)]
        columns = [c for c in rest if c not in competences]
        if not columns:
            raise RepalignError(
                f"{path.name}: no column is a model",
                expected="a column that a published figure labels a model with, or one that starts with alignment_",
                got=", ".join(rest) or "one column only",
                remedy="name the models' columns in models=, or write the tidy form: " + ", ".join(TIDY),
            )
        printed = pd.melt(frame, id_vars=first, value_vars=columns, var_name="model_y", value_name="statistic")
        printed = printed.set_axis(["point", "model_y", "statistic"], axis=1)
        printed["model_y"] = [c.removeprefix(ALIGNMENT) for c in printed["model_y"]]
        frame = frame.set_axis(["model_x", *rest], axis=1)
    scores = _numbers(path, printed["statistic"].tolist(), "statistic", printed["point"].tolist())
    blanks = int(np.isnan(scores).sum())
    printed = printed.assign(statistic=scores).loc[~np.isnan(scores)]
    if printed.empty:
        raise RepalignError(f"{path.name}: no score", expected="at least one number", got=f"{blanks} blanks")
    rows = [
        {"point": row["point"], "model_x": name.strip(), "model_y": row["model_y"], "statistic": row["statistic"]}
        for row in printed.to_dict("records")
        for name in str(row["point"]).split(SEVERAL)
    ]
    table = pd.DataFrame(rows)
    twice = table.loc[table.duplicated(subset=["model_x", "model_y"])]
    if not twice.empty:
        x, y = twice.iloc[0][["model_x", "model_y"]]
        raise RepalignError(f"{path.name}: {x} and {y} stand twice", expected="one score per pair of models", got="two")
    return Published(path.name, table, _scores(path, frame, competences), notes, _text(path, table, competences, blanks))


def _read(path: Path) -> tuple[tuple[str, ...], pd.DataFrame]:
    try:
        lines = split_lines(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise RepalignError(f"{path}: cannot be read", expected="a CSV file in UTF-8", got=str(error)) from error
    notes = tuple(line.lstrip(COMMENT).strip() for line in lines if line.startswith(COMMENT))
    body = [line + "\n" for line in lines if line.strip() and not line.startswith(COMMENT)]
    if not body:
        raise RepalignError(f"{path.name}: not a table", expected="a CSV file with a header", got="no line")
    rows = csv_rows(iter(body), f"{path.name}: not a table", skipinitialspace=True)
    header = list(next(rows))
    frame = pd.DataFrame(list(rows), columns=header, dtype=object)
    if frame.empty:
        raise RepalignError(f"{path.name}: no rows", expected="a header and at least one row", got="a header only")
    return notes, frame


def _is_model(column: str) -> bool:
    return column.startswith(ALIGNMENT) or (column not in COMPETENCES and published_model(column) is not None)


def _same(label: str, other: str) -> bool:
    """Whether two labels, or a label and one of our names, are of one known model."""
    known = published_model(label)
    return known is not None and known == published_model(other)


def _numbers(path: Path, texts: Sequence[str], name: str, rows: Sequence[str]) -> np.ndarray:
    """Numbers; blanks are nan."""
    out = []
    for text, row in zip((t.strip() for t in texts), rows, strict=True):
        try:
            number = float(text) if text else math.nan
        except ValueError:
            number = math.inf
        if text and not math.isfinite(number):
            told = f"{path.name}: {name} of {row} is not a number"
            raise RepalignError(told, expected="a number, or a blank", got=text)
        out.append(number)
    return np.array(out)


def _scores(path: Path, frame: pd.DataFrame, competences: Sequence[str]) -> pd.DataFrame:
    """One row per point; a competence that a tidy file repeats must be the same each time."""
    points = frame["model_x"].tolist()
    out = {"point": list(dict.fromkeys(points))}
    for name in competences:
        found: dict[str, float] = {}
        for point, value in zip(points, _numbers(path, frame[name].tolist(), name, points), strict=True):
            if not math.isnan(value) and found.setdefault(point, value) != value:
                raise RepalignError(
                    f"{path.name}: {point} has several values of {name}",
                    expected="one per model",
                    got=f"{found[point]:g} and {value:g}",
                )
        out[name] = [found.get(point, math.nan) for point in out["point"]]
    return pd.DataFrame(out)


def _text(path: Path, table: pd.DataFrame, competences: Sequence[str], blanks: int) -> str:
    labels = [label for known in known_models() for label in known.published_as]
    x, y = (list(dict.fromkeys(table[c])) for c in ("model_x", "model_y"))
    out = [f"{path.name}: {len(table)} published scores of {len(x)} models with {', '.join(y)}."]
    if competences:
        out.append(f"Taken as competences: {', '.join(_told(c, labels) for c in competences)}.")
    if blanks:
        out.append(f"{blanks} blank{'s' * (blanks != 1)}.")
    for point, rows in table.groupby("point", sort=False):
        if SEVERAL in str(point):
            out.append(f"One printed row stands for {' and '.join(dict.fromkeys(rows['model_x']))}.")
    return " ".join(out)


def _told(column: str, labels: Sequence[str]) -> str:
    """A column that was taken as a competence, with the label of a model that it is all but equal to."""
    close = difflib.get_close_matches(column.casefold(), labels, n=1, cutoff=0.85) if column not in COMPETENCES else []
    return f"{column} (is it the model {close[0]!r}?)" if close else column
