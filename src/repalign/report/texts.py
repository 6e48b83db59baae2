"""Standing explanations, for a reader who knows the paper and for one who does not."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from repalign import text as words
from repalign.figures.conventions import Reading
from repalign.measures import MEASURES
from repalign.report.html import Html, el, text

NULLS = {
    "permutation": "random permutations of the pairing, one for all layers of a pair of models",
    "cyclic": "all cyclic shifts of the pairing after one random relabelling, an exact group",
    "bound": "the exact mean and spread over all permutations, and Cantelli's bound, which holds for every law",
    "aristotelian": "the published calibration: random permutations, compared in float32 without a tolerance",
    "moments": "exact mean, spread and skewness over all permutations, and the Pearson type III law",
}
SCALES = {
    "studentised": "height above its own chance level, in units of its spread",
    "raw": "raw score",
}
AGGREGATES = {
    "max": "the pair of layers that is best by its {scale}",
    "mean": "the mean over all pairs of layers, each by its {scale}",
    "rows": "the mean over the layers of the first model of their best partner, by its {scale}",
    "columns": "the mean over the layers of the second model of their best partner, by its {scale}",
    "matching": "the mean over the best one-to-one matching of layers, by their {scale}",
}



def mock_marks(is_mock: bool) -> dict[str, Html | str]:
    """What a page of a mock run shows on every screen, and a mark on its body that stamps every figure."""
    if not is_mock:
        return {"body": "", "mock": ""}
    return {"body": Html(' class="is-mock"'), "mock": el("p", words.MOCK, class_="mock")}


def measure_meaning(measure: str) -> str:
    """What a measure is, in a line: the first line of its documentation."""
    name, _ = words.parse_repr(measure)
    for known in MEASURES:
        if known.__name__ == name:
            return (known.__doc__ or "").strip().splitlines()[0]
    return ""


def null_meaning(method: str) -> str:
    """What the draws of a null are."""
    return NULLS.get(method, method)


def search_meaning(search: object) -> str:
    """What the search over layers looks for."""
    scale, _, aggregate = str(search).partition(" ")
    if scale not in SCALES:
        return "the best pair of layers"
    some = f"the mean over the {aggregate.removeprefix('top-')} best pairs of layers, by their {{scale}}"
    return AGGREGATES.get(aggregate or "max", some).format(scale=SCALES[scale])


def aggregate_meaning(search: object) -> str | None:
    """What the score of a pair of models is the mean of; None if it is that of the best pair of layers."""
    aggregate = str(search).partition(" ")[2]
    return None if aggregate in ("", "max") else search_meaning(search).split(", ")[0]


def how_to_read(run: Mapping[str, Any], reading: Reading, draws: int) -> Html:
    """Notes on every word that the page uses."""
    values = {
        "search": search_meaning(run.get("search")),
        "floor": words.pvalue(1 / (draws + 1)),
        "alpha": f"{reading.alpha:g}",
        "joint": reading.joint,
    }
    return fill("notes.html", values)


def asset(name: str) -> str:
    """A file of this package."""
    return resources.files("repalign.report").joinpath(name).read_text("utf-8")


def fill(name: str, values: Mapping[str, object]) -> Html:
    """A template with its @@names@@ replaced by values, which are escaped unless they are markup."""
    parts = asset(name).split("@@")  # text, name, text, ..., text: what is filled in is not searched again
    return Html("".join(part if k % 2 == 0 else text(values[part]) for k, part in enumerate(parts)))
