"""Random tables in random forms: what is read is the features and nothing else, and rows pair rightly or not at all."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from repalign.errors import RepalignError
from repalign.features import join, read_features
from test_features import FORMS, D

EXAMPLES = int(os.environ.get("REPALIGN_EXAMPLES", "300"))
RICH = [name for name, form in FORMS.items() if form.more]


@dataclass(frozen=True)
class Side:
    """One file or object: its form, which stimuli it has in which order, and what stands beside their vectors."""

    form: str
    rows: list[int]
    ids: str | None  # how its ids are written, if it has any
    beside: tuple[str, ...]


WRITE = {
    "text": lambda k: f"s{k:03d}",
    "whole": lambda k: k + 7,
    "digits": lambda k: str(k + 7),
    "zeros": lambda k: f"{k + 7:05d}",
    "float": lambda k: float(k + 7),
}
BESIDE = {
    "row": lambda k, i: i,  # the number of the row in this very file: says nothing of the stimulus
    "Unnamed: 0": lambda k, i: i,
    "pk": lambda k, i: 1000 - k,  # an id that is not called so
    "caption": lambda k, i: f"caption of {k}",
    "label": lambda k, i: k % 2,
    "split": lambda k, i: "ab"[k % 2],
    "seen": lambda k, i: k % 3 == 0,
}
NAMES_A_STIMULUS = {"pk", "caption"}


@st.composite
def sides(draw: Any, n: int, same_rows: bool) -> Side:
    form = draw(st.sampled_from(list(FORMS)))
    rows = draw(st.permutations(range(n)))
    if not same_rows:
        rows = rows[: draw(st.integers(min_value=n // 2 + 1, max_value=n))]
    beside = draw(st.lists(st.sampled_from(list(BESIDE)), unique=True, max_size=3)) if form in RICH else []
    return Side(form, list(rows), draw(st.sampled_from([None, *WRITE])), tuple(beside))


def make(folder: Path, name: str, side: Side, x: np.ndarray) -> Any:
    ids = None if side.ids is None else [WRITE[side.ids](k) for k in side.rows]
    more = {b: [BESIDE[b](k, i) for i, k in enumerate(side.rows)] for b in side.beside}
    return FORMS[side.form].make(folder, name, x[side.rows], ids, more)


def names_rows(side: Side) -> bool:
    return side.ids is not None or bool(NAMES_A_STIMULUS & set(side.beside))


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize="REPALIGN_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(data=st.data())
def test_rows_pair_rightly_or_not_at_all(data: st.DataObject):
    n = data.draw(st.integers(4, 9))
    dtype = data.draw(st.sampled_from(["float64", "float32", "float16"]))
    x = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal((n, D)).astype(dtype)
    same_rows = data.draw(st.booleans())
    a, b = data.draw(sides(n, same_rows)), data.draw(sides(n, same_rows))
    if not (names_rows(a) or names_rows(b)):
        b = Side(b.form, a.rows, b.ids, b.beside)  # nothing can tell the order: it is the same
    with tempfile.TemporaryDirectory() as folder:
        sources = [make(Path(folder), name, side, x) for name, side in (("a", a), ("b", b))]
        found = []
        for source, side in zip(sources, (a, b), strict=True):
            found.append(read_features(source))  # its own ids are good, so that it is read
            (layer,) = found[-1].layers.values()
            assert np.array_equal(layer.numpy(), x[side.rows]), "features and nothing else"
            assert (found[-1].ids is None) == (side.ids is None)
            assert all(name in found[-1].how for name in side.beside), "what is left out is named"
        try:
            joined = join(found)
        except RepalignError as error:
            assert "\n  expected: " in str(error) and "\n  do: " in str(error)
            event("refused")
            return
    event("paired by position" if joined.ids is None else "joined on ids")
    left, right = (next(iter(layers.values())).numpy() for layers in joined.layers)
    assert np.array_equal(left, right), "one stimulus, one row"
    if joined.ids is None:
        assert a.rows == b.rows and a.ids is None and b.ids is None
    else:
        kept = [k for k in a.rows if k in set(b.rows)]
        assert np.array_equal(left, x[kept]), "the common stimuli, in the order of the first"


@settings(max_examples=EXAMPLES // 3, deadline=None, derandomize="REPALIGN_EXAMPLES" not in os.environ)
@given(data=st.data())
def test_a_table_and_its_reordered_self_agree_or_are_refused(data: st.DataObject):
    """The same form, all columns reordered together, whatever names the rows."""
    n = data.draw(st.integers(4, 9))
    x = np.random.default_rng(0).standard_normal((n, D))
    side = data.draw(sides(n, same_rows=True))
    order = data.draw(st.permutations(side.rows))
    if not names_rows(side) and not {"row", "Unnamed: 0"} & set(side.beside):
        order = side.rows
    ids = None if side.ids is None else [WRITE[side.ids](k) for k in side.rows]
    more = {b: [BESIDE[b](k, i) for i, k in enumerate(side.rows)] for b in side.beside}
    at = [side.rows.index(k) for k in order]
    with tempfile.TemporaryDirectory() as folder:
        first = FORMS[side.form].make(Path(folder), "a", x[side.rows], ids, more)
        second = FORMS[side.form].make(
            Path(folder), "b", x[order], ids and [ids[i] for i in at], {k: [v[i] for i in at] for k, v in more.items()}
        )
        try:
            joined = join([read_features(first), read_features(second)])
        except RepalignError:
            return
    left, right = (next(iter(layers.values())).numpy() for layers in joined.layers)
    assert np.array_equal(left, right)
