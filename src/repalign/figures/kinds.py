"""Every kind of figure that a study file may ask for, and the one writer of their files.

A new kind is one module, with a function that draws a finding, and one row of `FIGURES`.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from repalign import relate
from repalign.comparison.alignment import Alignment, csv_text
from repalign.comparison.conventions import ranked
from repalign.errors import Mistakes, RepalignError, choose, require
from repalign.figures import (
    agreement_chart,
    bins_chart,
    canvas,
    curve_chart,
    effects_chart,
    gallery_chart,
    layer_map_chart,
    map_chart,
    matched_chart,
    matrix_chart,
    null_chart,
    pairs_chart,
    trend_chart,
)
from repalign.files import FILES, Url, open_files, seal_json, write_file
from repalign.measures import facts_of, labels_of, measure_among
from repalign.relate.scores import names_of
from repalign.text import Progress, silent, telling

DPI = 200
LAYER_MAPS = 3  # of a measure, with a result: n models have n (n - 1) / 2 of them, and the report shows each of these on request
# What a figure's functions are given by name, if they take it; all their other arguments are options.
GIVEN = ("alignment", "table", "models", "measure", "published", "representations")


@dataclass(frozen=True, eq=False)
class Drawn:
    """One figure: a file's name, a heading, the figure (matplotlib), what it shows as a table, and in words."""

    name: str
    title: str
    figure: Any
    table: pd.DataFrame
    text: str


@dataclass(eq=False)
class Figure:
    """One kind of figure.

    relate : gives what is shown, a finding with `table` and `text`. draw : draws a finding and gives its axes, with options of its
        own.
    title, name : heading and file name, in which `{found}` and the options are filled in.
    per : "measure", "result" or "study", how many are drawn: one for each measure of a result, one for a result, or one
    for the pairs of models of all results. of_study : an option with which one for a result is one of all results.
    each : an option that may be a list, with one figure for each item.
    more : options that go through to another function, and not to `draw`. defaults : options that depend on the run.
    required : options that a study file must give though the analysis has a default.
    packages : by the value of an option, the extra and the package that it wants.
    parameters : the arguments of `relate`, and those of `draw` after the finding. options : those of a study file with
    their defaults; those without a default must be given.
    """

    relate: Callable[..., Any]
    draw: Callable[..., Any]
    title: str
    name: str
    per: str = "measure"
    of_study: str = ""
    each: str = ""
    more: tuple[str, ...] = ()
    defaults: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    packages: Mapping[tuple[str, Any], tuple[str, str]] = field(default_factory=dict)
    parameters: list[dict[str, inspect.Parameter]] = field(init=False)
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        both = [dict(inspect.signature(f).parameters) for f in (self.relate, self.draw)]
        both[1].pop(next(iter(both[1])))
        parameters = [{k: p for k, p in some.items() if p.kind is not p.VAR_KEYWORD} for some in both]
        of_all = ["variant", "title", *self.more, *["measure"] * (self.per != "result" or bool(self.of_study))]
        of_all += ["published"] * ("published" in parameters[1])
        options = {k: p.default for some in parameters for k, p in some.items() if k not in GIVEN}
        options |= dict.fromkeys(self.required, inspect.Parameter.empty) | dict.fromkeys(of_all)
        self.parameters, self.options = parameters, options

    def per_of(self, options: Mapping[str, Any]) -> str:
        """How many are drawn with these options."""
        return "study" if self.of_study and options.get(self.of_study) is not None else self.per

    def known(self, options: Mapping[str, Any]) -> list[str]:
        """The options that go with these."""
        return [name for name in self.options if name != "measure" or self.per_of(options) != "result"]

    def drawn(
        self, given: Mapping[str, Any], options: Mapping[str, Any], run: Mapping[str, Any], measure: str | None,
        variant: str = "",
    ) -> Iterator[Drawn]:  # fmt: skip
        """The figures of one result, or of the pairs of models of all; the title names `measure` and `variant`."""
        some = {k: make(run) for k, make in self.defaults.items()} | {k: v for k, v in options.items() if k != "published"}
        items = some.get(self.each)
        for item in items if isinstance(items, (list, tuple)) else [items]:
            chosen = some | ({self.each: item} if self.each and item is not None else {})
            relating, drawing = ({k: v for k, v in (given | chosen).items() if k in p} for p in self.parameters)
            found = self.relate(**relating, **{k: chosen[k] for k in self.more if k in chosen})
            filled = self.options | chosen
            own = [getattr(found, "measure", None), *getattr(found, "measures", ())]
            own += found.lines if getattr(found, "by", None) == "measure" else []
            labels = labels_of(filter(None, own)) | labels_of(given["table"]["measure"].unique())
            of = getattr(found, "measure", None) or measure
            parts = [self.title.format(found=found, **filled), labels[of] if of else "", variant]
            title = options.get("title") or ", ".join(filter(None, parts))
            (axes, *_) = np.ravel(self.draw(found, **{k: v for k, v in drawing.items() if k not in self.more}))
            text = found.text  # with its measures as people name them
            for one in sorted(labels, key=len, reverse=True):
                text = text.replace(one, labels[one])
            yield Drawn(self.name.format(**filled), title, axes.figure, found.table, text)


FIGURES = {
    "matrix": Figure(matrix_chart.shown, matrix_chart.draw, "Every pair of models", "matrix"),
    "layer_map": Figure(
        layer_map_chart.shown, layer_map_chart.draw, "{found.model_x} and {found.model_y}, layer by layer", "layer_map"
    ),
    "null": Figure(null_chart.shown, null_chart.draw, "Scores and chance", "null"),
    "trend": Figure(
        relate.trend, trend_chart.draw, "Alignment against {found.label}", "trend_{against}", each="against",
        required=("against",),
    ),
    "bins": Figure(
        relate.bins, bins_chart.draw, "Alignment within bins of {found.label}", "bins",
        defaults={"side": lambda run: relate.sides_of(run)[0]},
    ),
    "map": Figure(
        relate.model_map, map_chart.draw, "Map of models, by {colour}", "map_{colour}",
        packages={("method", "umap"): ("map", "umap")},
    ),
    "agreement": Figure(
        relate.agreement, agreement_chart.draw, "Agreement of {found.things}", "agreement", per="result", of_study="across"
    ),
    "effects": Figure(relate.effects, effects_chart.draw, "What moves alignment, side {side}", "effects_{side}"),
    "gallery": Figure(gallery_chart.shown, gallery_chart.draw, "Gallery size", "gallery", per="result"),
    "curve": Figure(relate.curve, curve_chart.draw, "Alignment over {x}", "curve_{x}", per="study"),
    "trend_curve": Figure(
        relate.trend_curve, curve_chart.draw, "Trend against {against} over {x}", "trend_over_{x}", per="study",
        more=("log", "lower_is_better", "label"), required=("against",),
    ),
    "contrast": Figure(relate.contrast, pairs_chart.contrast, "By {column}", "contrast", per="study"),
    "matched": Figure(
        relate.matched, matched_chart.draw, "Pairs of models of side {side}", "matched_{side}", required=("pairs",)
    ),
    "beside": Figure(relate.beside, pairs_chart.beside, "Beside the published values", "beside"),
}  # fmt: skip


def check(item: Mapping[str, Any], variants: Sequence[str] = (), measures: Sequence[str] = ()) -> None:
    """Refuse what is no figure of a study with these variants and measures.

    That is an unknown kind, an unknown option, or one that lacks, or that names what there is not.
    """
    if len(item) != 1:
        raise RepalignError("a figure is one kind with its options", expected="{kind: {option: value}}", got=dict(item))
    ((kind, options),) = item.items()
    figure, options, mistakes = FIGURES[choose("figure", kind, FIGURES, f"no figure is called {kind!r}")], options or {}, Mistakes()
    for name in options:
        with mistakes.kept():
            choose("option", name, figure.known(options), f"figure {kind} has no option {name!r}")
    for name, default in figure.options.items():
        with mistakes.kept():
            if default is inspect.Parameter.empty and name not in options:
                raise RepalignError(f"figure {kind} needs the option {name!r}", got="none")
            if isinstance(value := options.get(name), bool) and type(default) in (int, float):  # YAML reads `draws: yes` so
                raise RepalignError(f"figure {kind}: {name} is no number", expected="a number", got=str(value).lower())
    for (name, value), (extra, package) in figure.packages.items():
        with mistakes.kept():
            if options.get(name) == value:
                require(f"figure {kind}, {name}: {value}", extra, package)
    variant, measure = options.get("variant"), options.get("measure")
    with mistakes.kept():
        if variants and variant not in (None, "all") and not str(variant).endswith("*"):
            choose("variant", variant, list(filter(None, variants)), f"the study has no variant {variant!r}")
    with mistakes.kept():
        if measures and measure not in (None, "all"):
            measure_among(measure, measures)
    mistakes.refuse(f"figure {kind}")


@dataclass(frozen=True, eq=False)
class Results:
    """What the figures of a study are drawn from: results by variant, and the pairs of models of all (`table`).

    representations : by variant and model, for figures that go back to the features. published : a file of values.
    """

    alignments: Mapping[str, Alignment]
    table: pd.DataFrame
    representations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published: Path | None = None

    def draw(self, wanted: Sequence[Mapping[str, Any]], progress: Progress = silent) -> tuple[Drawn, ...]:
        """All figures that are asked for; those of published values are left out if there are none.

        The results are there by now: a figure that cannot be drawn, for instance for too few models, says so in its place.
        """
        out: list[Drawn] = []
        for item in telling(wanted, "figures", progress):
            ((kind, options),) = item.items()
            figure = FIGURES[kind]
            if self.published is None and "published" in figure.parameters[0]:  # nothing to draw without
                continue
            try:
                out += self._figures(figure, dict(options or {}))
            except RepalignError as error:
                title = kind.replace("_", " ").capitalize()
                out.append(Drawn(kind, title, None, pd.DataFrame(), f"Not drawn: {error}"))
        return tuple(out)

    def _figures(self, kind: Figure, options: dict[str, Any]) -> Iterator[Drawn]:
        variant, measure = options.pop("variant", None), options.pop("measure", None)
        given: dict[str, Any] = {}
        per = kind.per_of(options)
        if self.published is not None and ("published" in kind.parameters[0] or options.get("published")):
            given["published"] = relate.read_published(self.published)
        if per == "study":
            records = {m["name"]: m for a in self.alignments.values() for m in a.run["models"]}
            table = self._pairs(variant, measure, options.get("x"))
            given |= {"table": table, "models": list(records.values())}
            yield from kind.drawn(given, options, {}, table["measure"].iloc[0] if measure else None)
            return
        names = list(self.alignments)
        chosen = names[:1] if variant is None else names if variant == "all" else [choose("variant", variant, names)]
        for name in chosen:
            alignment = self.alignments[name]
            given |= {"alignment": alignment, "table": alignment.table, "models": alignment.run["models"]}
            given["representations"] = self.representations.get(name, {})
            known: Sequence[str | None] = alignment.measures
            if per == "result":
                known = [None]
            elif measure != "all":
                known = known[:1] if measure is None else [measure_among(measure, alignment.measures)]
            for one in known:
                yield from kind.drawn(given | {"measure": one}, options, alignment.run, one, name)

    def _pairs(self, variant: str | None, measure: str | None, x: str | None) -> pd.DataFrame:
        """The pairs of models of some variants ("a*" for all that begin with a) and one measure, by default of all.

        Where x is a parameter of some measures, the others have no place on a curve over it.
        """
        table = self.table
        if variant is not None:
            fits = table["variant"].map(lambda v: v.startswith(variant[:-1]) if variant.endswith("*") else v == variant)
            if not fits.to_numpy().any():
                choose("variant", variant, self.alignments)
            table = table.loc[fits]
        if measure is not None:
            table = table.loc[table["measure"] == measure_among(measure, list(table["measure"].unique()))]
        if x is not None and x not in table.columns:
            known = {m for m in table["measure"].unique() if x in facts_of(m).parameters}
            table = table.loc[table["measure"].isin(list(known))] if known else table
        return table.reset_index(drop=True)


# --- files -----------------------------------------------------------------------------------------


def of_result(alignment: Alignment, progress: Progress = silent) -> Iterator[Drawn]:
    """Every figure of one result, of all its measures, sides and competences; layer maps of the best aligned pairs of models."""
    run, models, labels = alignment.run, list(alignment.run.get("models") or []), labels_of(alignment.measures)
    jobs: list[tuple[str, str, str, dict[str, Any]]] = []
    for measure in alignment.measures:
        pairs = alignment.rows("max", measure)
        for value in ("statistic", "calibrated", "pvalue"):
            jobs.append((measure, "matrix", f"matrix-{value}", {"value": value}))
        jobs.append((measure, "null", "chance", {}))
        defined = pairs.loc[pairs["statistic"].notna()]
        for side in relate.sides_of(run):
            for against in relate.yardsticks(models, names_of(defined, side), at_least=relate.MIN_MODELS_LINE):
                jobs.append((measure, "trend", f"trend-{side}-{against}", {"side": side, "against": against}))
        cells = alignment.cells(measure).groupby(["model_x", "model_y"]).size()
        best = [(x, y) for x, y in ranked(pairs)[["model_x", "model_y"]].to_numpy() if cells.get((x, y), 0) > 1]
        for x, y in best[:LAYER_MAPS]:  # the map of one layer by one layer is a number
            jobs.append((measure, "layer_map", f"layers-{x}-{y}", {"model_x": x, "model_y": y}))
    for measure, kind, name, options in telling(jobs, "figures", progress):
        given = {"alignment": alignment, "table": alignment.table, "models": models, "measure": measure}
        for one in FIGURES[kind].drawn(given, options, run, measure):
            yield replace(one, name=f"{name}-{labels[measure]}")


def write_figures(
    drawn: Iterable[Drawn], folder: Path | Url, is_mock: bool = False, *, numbered: bool = True
) -> list[Path | Url | None]:  # fmt: skip
    """Write every figure as PNG and SVG, and what it shows as CSV, each whole; the SVG files, None for what was not drawn.

    Files have the names of the figures, behind their number if `numbered`, and are listed with their digests in files.json.
    Text stays text, and the same figure gives the same files. Of a mock run every one of them says so.
    """
    open_files(folder).sweep()
    out: list[Path | Url | None] = []
    files: dict[str, str] = {}
    for k, one in enumerate(drawn, start=1):
        if one.figure is None:
            out.append(None)
            continue
        name = re.sub(r"[^A-Za-z0-9_]+", "-", f"{k:02d}-{one.name}" if numbered else one.name).strip("-")[:120]
        path, again = folder / f"{name}.svg", 2
        while path in out:
            path, again = folder / f"{name}-{again}.svg", again + 1
        out.append(path)
        if is_mock:
            canvas.stamp(one.figure)
        made = {".csv": csv_text(one.table.assign(mock=True) if is_mock else one.table).encode()}
        with matplotlib.rc_context({"svg.hashsalt": one.name, "svg.fonttype": "none"}), canvas.laid_out(one.figure, DPI) as box:
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                one.figure.savefig(content := BytesIO(), format=kind, dpi=DPI, bbox_inches=box, metadata=metadata)
                made[f".{kind}"] = content.getvalue()
        for suffix, data in made.items():
            write_file(path.with_suffix(suffix), data)
            files[path.with_suffix(suffix).name] = hashlib.sha256(data).hexdigest()
    write_file(folder / "files.json", seal_json({FILES: files}))
    return out
