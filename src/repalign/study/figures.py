"""The figures that a study file asks for: one function per kind, from the results of all variants to pictures.

`{kind: {option: value}}` in the file is a call here. What a figure shows is a table beside it, and one to three sentences.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from repalign.comparison.alignment import SCHEMA, TABLE_FILE, Alignment, csv_text
from repalign.errors import RepalignError, did_you_mean
from repalign.files import FILES, file_sha256, replacing, seal_json, seal_parquet, sweep, write_bytes, write_text
from repalign.study.base import Drawn, Outcome
from repalign.study.load import Variant
from repalign.study.yaml_lines import Where
from repalign.text import Progress

if TYPE_CHECKING:
    from repalign.study.alignment import AlignmentStudy
    from repalign.study.members import Members

DPI = 110


@dataclass(frozen=True, eq=False)
class Shown:
    """What figures are drawn from: the result and the representations of every variant, and all pairs of models."""

    variants: tuple[Variant, ...]
    alignments: Mapping[str, Alignment]
    members: Mapping[str, Members]
    table: pd.DataFrame
    published: Path | None

    def chosen(self, variant: str | None, measure: str | None) -> Iterator[tuple[str, Alignment, str]]:
        """The results to draw, each with a measure of it: the first of both without a wish, every one for "all"."""
        names = list(self.alignments)
        for name in names[:1] if variant is None else names if variant == "all" else [_known("variant", variant, names)]:
            alignment = self.alignments[name]
            some = alignment.measures[:1] if measure is None else alignment.measures
            for one in some if measure in (None, "all") else [_measure(measure, some)]:
                yield name, alignment, one

    def records(self) -> list[dict[str, Any]]:
        """The records of all models of all variants."""
        return list({m["name"]: m for a in self.alignments.values() for m in a.run["models"]}.values())

    def rows(self, variant: str | None, measure: str | None) -> pd.DataFrame:
        """The pairs of models of some variants ("a*" for all that begin with a) and one measure, by default of all."""
        table = self.table
        if variant is not None:
            fits = table["variant"].map(lambda v: v == variant or (variant.endswith("*") and v.startswith(variant[:-1])))
            if not fits.any():
                _known("variant", variant, list(self.alignments))
            table = table.loc[fits]
        if measure is not None:
            table = table.loc[table["measure"] == _measure(measure, table["measure"].unique())]
        return table.reset_index(drop=True)


def _measure(asked: str, known: Sequence[str]) -> str:
    """A measure as a file writes it, such as CKA(), as the table does, with all its parameters."""
    from repalign.measures import parse_measure

    return _known("measure", asked if asked in known else repr(parse_measure(asked)), known)


def _known(what: str, asked: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    if asked not in known:
        raise RepalignError(f"no {what} {asked!r} to draw", got=asked, remedy=did_you_mean(asked, known))
    return asked


# --- one result ----------------------------------------------------------------------------------


def matrix(shown: Shown, *, value: str = "statistic", measure: str | None = None, variant: str | None = None) -> Iterator[Drawn]:
    """Models by models."""
    from repalign import figures

    for name, alignment, m in shown.chosen(variant, measure):
        table = alignment.matrix(m, value if value != "gain" else "statistic").reset_index()
        figure = figures.matrix(alignment, measure=m, value=value)
        yield Drawn("matrix", _title("Every pair of models", name, m), figure, table, _best_pair(alignment, m))


def layer_map(
    shown: Shown,
    *,
    model_x: str | None = None,
    model_y: str | None = None,
    value: str = "statistic",
    measure: str | None = None,
    variant: str | None = None,
) -> Iterator[Drawn]:
    """Layers by layers of one pair of models, by default of the best aligned."""
    from repalign import figures

    for name, alignment, m in shown.chosen(variant, measure):
        best = alignment.best(m).iloc[0]
        pair = (model_x or best.model_x, model_y or best.model_y)
        table = alignment.layer_map(*pair, m, value if value != "gain" else "statistic").reset_index()
        figure = figures.layer_map(alignment, *pair, measure=m, value=value)
        yield Drawn("layer_map", _title(f"{pair[0]} and {pair[1]}, layer by layer", name, m), figure, table, "")


def null(shown: Shown, *, measure: str | None = None, variant: str | None = None) -> Iterator[Drawn]:
    """Every pair of models beside its chance level."""
    from repalign import figures

    for name, alignment, m in shown.chosen(variant, measure):
        columns = ["model_x", "model_y", "n", "statistic", "null_mean", "null_std", "threshold", "calibrated", "pvalue", "p_maxt"]
        table = alignment.best(m)[columns]
        yield Drawn(
            "null", _title("Scores and chance", name, m), figures.null(alignment, measure=m), table, _best_pair(alignment, m)
        )


def trend(
    shown: Shown,
    *,
    against: str | Sequence[str],
    side: str = "x",
    measure: str | None = None,
    variant: str | None = None,
    log: bool | None = None,
    published: bool = False,
) -> Iterator[Drawn]:
    """Alignment of the models of one side against a score or size; `published` lays the published values over it."""
    from repalign import figures, relate

    over: dict[str, Any] = {"published": relate.read_published(_published(shown))} if published else {}
    for name, alignment, m in shown.chosen(variant, measure):
        models = alignment.run["models"]
        for one in [against] if isinstance(against, str) else against:
            found = relate.trend(alignment.table, models, one, side, m, log=log)
            figure = figures.trend(alignment, one, side, measure=m, log=log, **over)
            yield Drawn(f"trend_{one}", _title(f"Alignment against {found.label}", name, m), figure, found.points, found.text)


def bins(
    shown: Shown, *, against: str, measure: str | None = None, variant: str | None = None, **options: Any
) -> Iterator[Drawn]:
    """Alignment within bins of competence."""
    from repalign import figures, relate

    for name, alignment, m in shown.chosen(variant, measure):
        chosen = {"side": relate.sides_of(alignment.run)[0], **options}
        found = relate.bins(alignment.table, alignment.run["models"], against, measure=m, **chosen)
        figure = figures.bins(found)
        yield Drawn("bins", _title(f"Alignment within bins of {found.label}", name, m), figure, found.table, found.text)


def model_map(
    shown: Shown, *, measure: str | None = None, variant: str | None = None, colour: str = "objective", **options: Any
) -> Iterator[Drawn]:
    """Models as points, near each other where they are aligned."""
    from repalign import figures, relate

    for name, alignment, m in shown.chosen(variant, measure):
        found = relate.model_map(alignment.table, alignment.run["models"], measure=m, **options)
        figure = figures.model_map(found, colour=colour)
        yield Drawn(f"map_{colour}", _title(f"Map of models, by {colour}", name, m), figure, found.table, found.text)


def agreement(shown: Shown, *, variant: str | None = None, **options: Any) -> Iterator[Drawn]:
    """How far measures rank pairs of models alike."""
    from repalign import figures, relate

    for name, alignment in {n: a for n, a, _ in shown.chosen(variant, None)}.items():
        found = relate.agreement(alignment.table, models=alignment.run["models"], **options)
        yield Drawn("agreement", _title("Agreement of measures", name), figures.agreement(found), found.table, found.text)


def effects(
    shown: Shown,
    *,
    factors: Sequence[str],
    side: str = "x",
    measure: str | None = None,
    variant: str | None = None,
    **options: Any,
) -> Iterator[Drawn]:
    """What moves alignment: several factors of the models at once."""
    from repalign import figures, relate

    for name, alignment, m in shown.chosen(variant, measure):
        found = relate.effects(alignment.table, alignment.run["models"], factors, side, m, **options)
        figure = figures.effects(found)
        yield Drawn(f"effects_{side}", _title(f"What moves alignment, side {side}", name, m), figure, found.table, found.text)


def gallery(
    shown: Shown,
    *,
    k: int = 10,
    share: float | None = None,
    sizes: Sequence[int] | None = None,
    repeats: int = 5,
    seed: int = 0,
    variant: str | None = None,
) -> Iterator[Drawn]:
    """Mutual k-NN of the best aligned layers as the number of stimuli grows, k fixed and k a share of n."""
    from repalign.comparison import gallery_curve
    from repalign.study.drawings import draw_gallery

    for name, alignment, m in shown.chosen(variant, None):
        best, found = alignment.best(m).iloc[0], {r.name: r for r in shown.members[name].everything}
        x, y = ((found[model], layer) for model, layer in ((best.model_x, best.layer_x), (best.model_y, best.layer_y)))
        curve = gallery_curve(x, y, k, share, sizes, repeats, seed)
        fixed, shared = (curve.loc[curve["mode"] == mode] for mode in ("fixed", "share"))
        text = (
            f"{best.model_x} [{best.layer_x}] and {best.model_y} [{best.layer_y}]: from n = {fixed.n.iloc[0]} to "
            f"{fixed.n.iloc[-1]}, {k} neighbours give {fixed.statistic.iloc[0]:.3f} to {fixed.statistic.iloc[-1]:.3f} "
            f"(chance {fixed.chance.iloc[0]:.3f} to {fixed.chance.iloc[-1]:.3f}); {shared.k.iloc[0] / shared.n.iloc[0]:.1%} of "
            f"the stimuli as neighbours give {shared.statistic.iloc[0]:.3f} to {shared.statistic.iloc[-1]:.3f}."
        )
        yield Drawn("gallery", _title("Gallery size", name), draw_gallery(curve), curve, text)


# --- several results -----------------------------------------------------------------------------


def curve(
    shown: Shown, *, x: str, measure: str | None = None, variant: str | None = None, title: str | None = None, **options: Any
) -> Iterator[Drawn]:
    """Alignment over a swept field, or over a parameter of the measures."""
    from repalign import figures, relate

    found = relate.curve(_with(shown.rows(variant, measure), x), x, models=shown.records(), **options)
    figure = figures.curve(found)
    yield Drawn(f"curve_{x}", title or f"Alignment over {x}", figure, found.table, found.text)


def trend_curve(
    shown: Shown, *, x: str, against: str, side: str = "x", measure: str | None = None, variant: str | None = None, **options: Any
) -> Iterator[Drawn]:
    """Whether alignment goes with competence, at every value of a swept field or parameter."""
    from repalign import figures, relate

    found = relate.trend_curve(_with(shown.rows(variant, measure), x), x, shown.records(), against, side, **options)
    yield Drawn(f"trend_over_{x}", f"Trend against {against} over {x}", figures.curve(found), found.table, found.text)


def _with(rows: pd.DataFrame, x: str) -> pd.DataFrame:
    """The rows of measures that have x as a parameter, where some have; all others."""
    having = rows["measure"].str.contains(rf"[(,] ?{re.escape(x)}=")
    return rows if x in rows.columns or not having.any() else rows.loc[having].reset_index(drop=True)


def contrast(
    shown: Shown, *, measure: str | None = None, variant: str | None = None, column: str = "variant", **options: Any
) -> Iterator[Drawn]:
    """The same pairs of models under several variants."""
    from repalign import figures, relate

    found = relate.contrast(shown.rows(variant, measure), column=column, models=shown.records(), **options)
    yield Drawn("contrast", _title(f"By {column}", "", found.measure), figures.contrast(found), found.table, found.text)


def beside(shown: Shown, *, measure: str | None = None, variant: str | None = None) -> Iterator[Drawn]:
    """Our values beside the published ones, pair by pair."""
    from repalign import figures, relate

    published = relate.read_published(_published(shown))
    for name, alignment, m in shown.chosen(variant, measure):
        found = relate.beside(alignment.table, published, m)
        yield Drawn("beside", _title("Beside the published values", name, m), figures.beside(found), found.table, found.text)


FIGURES: dict[str, Callable[..., Iterator[Drawn]]] = {
    "matrix": matrix,
    "layer_map": layer_map,
    "null": null,
    "trend": trend,
    "bins": bins,
    "map": model_map,
    "agreement": agreement,
    "effects": effects,
    "gallery": gallery,
    "curve": curve,
    "trend_curve": trend_curve,
    "contrast": contrast,
    "beside": beside,
}
NEEDS_PUBLISHED = ("beside",)


def check_figures(figures: Sequence[Mapping[str, Any]], where: Where) -> None:
    """Refuse a figure of an unknown kind or with an unknown option, at its line."""
    for i, item in enumerate(figures):
        with where.at("figures", i):
            if len(item) != 1:
                raise RepalignError("a figure is one kind with its options", expected="{kind: {option: value}}", got=dict(item))
            (kind, options), = item.items()
            if kind not in FIGURES:
                raise RepalignError(f"no figure is called {kind!r}", got=kind, remedy=did_you_mean(kind, FIGURES))
            parameters = inspect.signature(FIGURES[kind]).parameters
            known = [p for p in parameters.values() if p.kind is p.KEYWORD_ONLY]
            if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                continue
            for name in options or {}:
                if name not in {p.name for p in known}:
                    raise RepalignError(
                        f"figure {kind} has no option {name!r}", got=name, remedy=did_you_mean(name, [p.name for p in known])
                    )
            for p in known:
                if p.default is p.empty and p.name not in (options or {}):
                    raise RepalignError(f"figure {kind} needs the option {p.name!r}", got="none")


def draw_figures(
    study: AlignmentStudy, outcome: Outcome, members: Mapping[str, Members], progress: Progress
) -> tuple[Drawn, ...]:
    """All figures of a study; those of published values are left out where the file names none.

    The results are there by now: a figure that cannot be drawn, for instance for too few models, says so in its place.
    """
    table = combined(study.variants, outcome.alignments)
    published = None if study.config.published is None else study.base / study.config.published
    shown = Shown(study.variants, outcome.alignments, members, table, published)
    out: list[Drawn] = []
    wanted = [(kind, options or {}) for item in study.config.figures for kind, options in item.items()]
    for done, (kind, options) in enumerate(wanted):
        progress("figures", done, len(wanted))
        if published is None and (kind in NEEDS_PUBLISHED or options.get("published")):
            if kind in NEEDS_PUBLISHED:
                continue
            options = {k: v for k, v in options.items() if k != "published"}
        try:
            out += (replace(one, text=_labelled(one.text)) for one in FIGURES[kind](shown, **options))
        except RepalignError as error:
            out.append(Drawn(kind, kind.replace("_", " ").capitalize(), None, pd.DataFrame(), f"Not drawn: {error}"))
    progress("figures", len(wanted), len(wanted))
    return tuple(out)


# --- tables and files ----------------------------------------------------------------------------


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


def write_drawn(drawn: Sequence[Drawn], folder: Path, is_mock: bool = False) -> list[Path | None]:
    """Write every figure as PNG and SVG, and what it shows as CSV, by rename; the SVG files.

    Files are named after the figure's place in the study and its kind, and listed with their digests in files.json. The
    same figure gives the same SVG. Of a mock run every one of them says so.
    """
    import matplotlib

    from repalign.figures.static import stamp

    sweep(folder)
    out: list[Path | None] = []
    files: dict[str, str] = {}
    for i, one in enumerate(drawn):
        path = folder / f"{i + 1:02d}-{one.name}"
        out.append(None if one.figure is None else path.with_suffix(".svg"))
        if one.figure is None:
            continue
        if is_mock:
            stamp(one.figure)
        with matplotlib.rc_context({"svg.hashsalt": one.name, "svg.fonttype": "none"}):
            for kind, metadata in (("png", None), ("svg", {"Date": None})):
                with replacing(path.with_suffix(f".{kind}")) as temporary:
                    one.figure.savefig(temporary, format=kind, dpi=DPI, bbox_inches="tight", metadata=metadata)
        table = one.table.assign(mock=True) if is_mock else one.table
        write_text(path.with_suffix(".csv"), csv_text(table))
        files |= {p.name: file_sha256(p) for p in map(path.with_suffix, (".png", ".svg", ".csv"))}
    write_text(folder / "files.json", seal_json({FILES: files}))
    return out


def _labelled(text: str) -> str:
    """A text with measures named as people name them, not by all their parameters."""
    from repalign import text as words
    from repalign.measures import MEASURES

    names = "|".join(m.__name__ for m in MEASURES)
    return re.sub(rf"\b({names})\([^()]*\)", lambda found: words.measure_label(found[0]), text)


def _title(what: str, variant: str, measure: str | None = None) -> str:
    from repalign import text as words

    return ", ".join(filter(None, [what, words.measure_label(measure) if measure else "", variant]))


def _best_pair(alignment: Alignment, measure: str) -> str:
    best = alignment.best(measure).iloc[0]
    return (
        f"Best: {best.model_x} [{best.layer_x}] and {best.model_y} [{best.layer_y}], {best.statistic:.3f} "
        f"(chance {best.null_mean:.3f}, n = {best.n}, p = {best.pvalue:.2g})."
    )


def _published(shown: Shown) -> Path:
    assert shown.published is not None  # draw_figures leaves these figures out where there is none
    return shown.published
