"""Published scores from a CSV file, of pairs of models, and ours beside them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from repalign.errors import RepalignError, choose, did_you_mean
from repalign.models import COMPETENCES, known_models, published_model
from repalign.relate.curves import refuse_twice
from repalign.relate.findings import Fitted
from repalign.relate.jackknife import Fit, mean_of_pairs
from repalign.relate.scores import PAIR, searched, stimuli
from repalign.relate.trends import Trend
from repalign.tables import csv_rows, split_lines

TIDY = (*PAIR, "statistic")
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
        """What the file says about the models of side x, apart from their alignment."""
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
            same = next((n for n in known if n == model_y or _same(n, model_y)), model_y)
            choose("model", same, known, f"{self.name}: no published score with {model_y!r}")
            rows = rows.loc[rows["model_y"] == same]
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


# --- reading -------------------------------------------------------------------------------------


def read_published(path: str | Path, *, models: Sequence[str] = ()) -> Published:
    """Read published scores of pairs of models.

    Two forms. Tidy: columns model_x, model_y, statistic; any further column is a competence of model_x. Wide: the first
    column names the models of one side; a further column is a model of the other side if a published figure labels a known
    model so (`published_as` in the table of known models), if it starts with "alignment_", or if `models` names it; any
    other is a competence. Lines that start with # are notes; blanks are missing; "a|b" in a column of models is one row
    that stands for two.

    Raises RepalignError for a file that is not there, has no rows or no scores, a value that is not a number, or a pair of
    models that is given twice.
    """
    path = Path(path)
    notes, frame = _read(path)
    lacking = [c for c in TIDY if c not in frame.columns]
    if lacking and len(lacking) < len(TIDY):
        raise RepalignError(f"{path.name}: no column {lacking[0]!r}", expected=", ".join(TIDY), got=", ".join(frame.columns))
    first, *rest = frame.columns
    if not lacking:
        competences = [c for c in frame.columns if c not in TIDY]
        printed = frame[list(TIDY)].set_axis(["point", *TIDY[1:]], axis=1)
    else:
        columns = [c for c in rest if _is_model(c) or c in models]
        if not columns:
            raise RepalignError(
                f"{path.name}: no column is a model", got=", ".join(rest) or "one column only",
                expected="a column that a published figure labels a model with, or one that starts with alignment_",
                remedy="name the models' columns in models=, or write the tidy form: " + ", ".join(TIDY),
            )  # fmt: skip
        competences = [c for c in rest if c not in columns]
        printed = pd.melt(frame, id_vars=first, value_vars=columns, var_name="model_y", value_name="statistic")
        printed = printed.set_axis(["point", "model_y", "statistic"], axis=1)
        printed["model_y"] = [c.removeprefix(ALIGNMENT) for c in printed["model_y"]]
        frame = frame.set_axis(["model_x", *rest], axis=1)
    scores = _numbers(path, printed["statistic"].tolist(), "statistic", printed["point"].tolist())
    blanks = int(np.isnan(scores).sum())
    printed = printed.assign(statistic=scores).loc[~np.isnan(scores)]
    if printed.empty:
        raise RepalignError(f"{path.name}: no score", expected="at least one number", got=f"{blanks} blanks")
    printed = printed.assign(model_x=printed["point"].str.split(SEVERAL, regex=False)).explode("model_x")
    table = printed.assign(model_x=printed["model_x"].str.strip())[["point", *TIDY]].reset_index(drop=True)
    twice = table.loc[table.duplicated(PAIR)]
    if not twice.empty:
        x, y = twice.iloc[0][PAIR]
        raise RepalignError(f"{path.name}: {x} and {y} are given twice", expected="one score per pair of models", got="two")
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
            raise RepalignError(f"{path.name}: {name} of {row} is not a number", expected="a number, or a blank", got=text)
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
                several = f"{path.name}: {point} has several values of {name}"
                raise RepalignError(several, expected="one per model", got=f"{found[point]:g} and {value:g}")
        out[name] = [found.get(point, math.nan) for point in out["point"]]
    return pd.DataFrame(out)


def _text(path: Path, table: pd.DataFrame, competences: Sequence[str], blanks: int) -> str:
    labels = [label for known in known_models() for label in known.published_as]
    x, y = (list(dict.fromkeys(table[c])) for c in PAIR)
    out = [f"{path.name}: {len(table)} published scores of {len(x)} models with {', '.join(y)}."]
    if competences:
        out.append(f"Taken as competences: {', '.join(_doubted(c, labels) for c in competences)}.")
    if blanks:
        out.append(f"{blanks} blank{'s' * (blanks != 1)}.")
    for point, rows in table.groupby("point", sort=False):
        if SEVERAL in str(point):
            out.append(f"One printed row stands for {' and '.join(dict.fromkeys(rows['model_x']))}.")
    return " ".join(out)


def _doubted(column: str, labels: Sequence[str]) -> str:
    """A column that was taken as a competence, with the label of a model that it is all but equal to."""
    close = difflib.get_close_matches(column.casefold(), labels, n=1, cutoff=0.85) if column not in COMPETENCES else []
    return f"{column} (is it the model {close[0]!r}?)" if close else column


# --- ours beside them ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Beside(Fitted):
    """Pairs of models with our score and the published one; `text` says how far they agree.

    `table`: model_x, model_y (our names), published_x, published_y (the labels), point, family, ours, chance (ours),
    published, difference (ours minus published). `rmse` is the root of the mean squared difference; `interval` is of the
    mean difference over models like these, and leaves out `units` in turn; `fit` is ours on theirs (None below three
    pairs), with Pearson and Spearman. `unmatched_published` and `unmatched_ours` are names without a counterpart,
    `missing` pairs of matched models that have one of the two scores only.
    """

    kind = "beside"
    source: str
    n_stimuli: int
    rmse: float
    mean_difference: float
    interval: tuple[float, float]
    units: str
    unmatched_published: tuple[str, ...]
    unmatched_ours: tuple[str, ...]
    missing: tuple[tuple[str, str], ...]

    @property
    def pearson(self) -> float:
        """Pearson's correlation over pairs; nan without a fit."""
        return self.r


def beside(table: pd.DataFrame, published: Published, measure: str | None = None) -> Beside:
    """Join the layer searches of a result with published scores, by model.

    A published label is our model of the same name, or else the known model that figures label so. The sides need not be
    the same: a pair is looked up both ways round.

    Raises RepalignError if no pair is in both, with the closest names; for an unknown measure; if a pair is given twice.
    """
    pairs, measure = searched(table, measure)
    refuse_twice(pairs, "take the rows of one variant")
    names, labels = ([*dict.fromkeys([*t["model_x"], *t["model_y"]])] for t in (pairs, published.table))
    ours_of = {label: _our_name(label, names) for label in labels}
    rows, missing = _joined(pairs, published.table, ours_of)
    if rows.empty:
        raise RepalignError(
            f"{published.name}: no published pair of models is in the table", expected="pairs of models that both have",
            got=", ".join(labels[:4]) + " ..." * (len(labels) > 4),
            remedy="; ".join(f"{label!r}: {did_you_mean(label, names)}" for label in labels[:2]),
        )  # fmt: skip
    defined = rows.loc[rows["ours"].notna()]
    difference = defined["difference"].to_numpy(float)
    mean = mean_of_pairs(defined, difference)
    return Beside(
        measure=measure, table=rows, fit=Fit.of(defined["published"], defined["ours"]), source=published.name,
        n_stimuli=stimuli(pairs), rmse=float(np.sqrt(np.mean(difference**2))) if len(defined) else math.nan,
        mean_difference=mean.mean, interval=(mean.low, mean.high), units=mean.units, missing=missing,
        unmatched_published=tuple(_near(label, names) for label, ours in ours_of.items() if ours is None),
        unmatched_ours=tuple(name for name in names if name not in ours_of.values()),
    )  # fmt: skip


def _our_name(label: str, names: Sequence[str]) -> str | None:
    """Our name of a published label: the same text, else the name or spec of the known model that is labelled so."""
    if label in names:
        return label
    known = published_model(label)
    return next((n for n in names if known is not None and n in (known.name, known.spec)), None)


def _joined(
    pairs: pd.DataFrame, theirs: pd.DataFrame, ours_of: dict[str, str | None]
) -> tuple[pd.DataFrame, tuple[tuple[str, str], ...]]:
    """One row per pair in both, and the pairs of matched models that only one has."""
    ours = {(r["model_x"], r["model_y"]): r for r in pairs.to_dict("records")}
    rows, missing, seen = [], [], set()
    for row in theirs.to_dict("records"):
        x, y = ours_of[row["model_x"]], ours_of[row["model_y"]]
        key = (x, y) if (x, y) in ours else (y, x)
        if key in ours:
            seen.add(key)
            found, partner = ours[key], published_model(row["model_y"])
            score, family = float(found["statistic"]), partner.family if partner else ""
            rows.append((*key, row["model_x"], row["model_y"], row["point"], family, score, float(found["null_mean"]),
                         row["statistic"], score - row["statistic"]))  # fmt: skip
        elif x is not None and y is not None:
            missing.append((x, y))
    left, right = ({ours_of[label] for label in theirs[c]} for c in PAIR)
    missing += [(x, y) for x, y in ours if (x, y) not in seen and ((x in left and y in right) or (y in left and x in right))]
    columns = [*PAIR, "published_x", "published_y", "point", "family", "ours", "chance", "published", "difference"]
    return pd.DataFrame(rows, columns=columns), tuple(missing)


def _near(label: str, names: Sequence[str]) -> str:
    remedy = did_you_mean(label, names)
    return f"{label} ({remedy})" if remedy.startswith("did you mean") else label


def published_points(found: Trend, published: Published, partners: Sequence[str]) -> pd.DataFrame:
    """What was published of a trend's models, or of others, with these partners: point, x, alignment, n_partners.

    alignment is the mean over the partners of ours that have a published score; x the published competence, else our
    model's of this name. Points without x are left out; there may be none.
    """
    own = dict(zip(found.points["model"], found.points["x"], strict=True))
    given = published.competence(found.against)
    rows = []
    for row in published.table.to_dict("records"):
        for mine, partner in ((row["model_x"], row["model_y"]), (row["model_y"], row["model_x"])):
            if _our_name(partner, partners) is not None:
                is_printed = mine == row["model_x"]
                x = given.get(row["point"]) if given is not None and is_printed else own.get(_our_name(mine, [*own]))
                rows.append((row["point"] if is_printed else mine, partner, x, row["statistic"]))
                break
    points = pd.DataFrame(rows, columns=["point", "partner", "x", "alignment"]).drop_duplicates(["point", "partner"])
    points = points.dropna(subset="x").groupby("point", sort=False)
    return points.agg(x=("x", "first"), alignment=("alignment", "mean"), n_partners=("x", "size")).reset_index()
