"""Standing explanations, for a reader who knows the paper and for one who does not."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from repalign.measures import MEASURES
from repalign.plot import words
from repalign.report.html import Html, text

NULLS = {
    "permutation": "random permutations of the pairing, one for all layers of a pair of models",
    "cyclic": "all cyclic shifts of the pairing after one random relabelling, an exact group",
    "moments": "exact mean, spread and skewness over all permutations, and the Pearson type III law",
}
SEARCHES = {
    "studentised": "the one that stands highest above its own chance level, in units of its spread",
    "raw": "the one with the highest raw score",
}


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
    return SEARCHES.get(str(search), "the best pair of layers")


def how_to_read(run: Mapping[str, Any], alpha: float, draws: int) -> Html:
    """Notes on every word that the page uses."""
    values = {
        "search": search_meaning(run.get("search")),
        "floor": words.pvalue(1 / (draws + 1)),
        "alpha": f"{alpha:g}",
    }
    return fill("notes.html", values)


def asset(name: str) -> str:
    """A file of this package."""
    return resources.files("repalign.report").joinpath(name).read_text("utf-8")


def fill(name: str, values: Mapping[str, object]) -> Html:
    """A template with its @@names@@ replaced by values, which are escaped unless they are markup."""
    parts = asset(name).split("@@")  # text, name, text, ..., text: what is filled in is not searched again
    return Html("".join(part if k % 2 == 0 else text(values[part]) for k, part in enumerate(parts)))
