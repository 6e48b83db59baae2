"""Measures of others: own kernels and neighbours, names, entry points, the laws in one call."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from repalign import measures
from repalign.comparison import pair
from repalign.errors import RepalignError
from repalign.measures import (
    CKA,
    KernelAlignment,
    Measure,
    NeighborOverlap,
    parse_measure,
    register,
    registry,
)
from repalign.measures.measure import Features
from repalign.testing import check_measure

choosing = importlib.import_module("repalign.comparison.applicable")


@pytest.fixture(autouse=True)
def _names_of_their_own(monkeypatch):
    """What a test registers is forgotten, and installed packages are looked up anew."""
    monkeypatch.setattr(registry, "_registered", {})
    registry._load_announced.cache_clear()
    yield
    registry._load_announced.cache_clear()


def arrays(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 6))
    return x, x @ rng.standard_normal((6, 9)) + 0.5 * rng.standard_normal((n, 9))


@dataclass(frozen=True)
class GaussianCKA(KernelAlignment):
    """CKA with a Gaussian kernel of fixed width."""

    sigma: float = 3.0

    aliases: ClassVar[tuple[str, ...]] = ("gaussian_cka",)

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"orthogonal", "translation", "permutation"})

    def kernel(self, x: Tensor) -> Tensor:
        x = x.double() - x.double().mean(dim=0)  # else an offset of 1e8 costs the digits of products
        return torch.exp(-(torch.cdist(x, x) ** 2) / (2 * self.sigma**2))


@dataclass(frozen=True)
class ManhattanKNN(NeighborOverlap):
    """Mutual k-NN in the city-block distance."""

    aliases: ClassVar[tuple[str, ...]] = ("manhattan_knn",)

    @property
    def invariances(self) -> frozenset[str]:
        return frozenset({"translation", "isotropic_scale", "permutation"})

    def neighbors(self, x: Tensor) -> Tensor:
        distance = torch.cdist(x.double(), x.double(), p=1).fill_diagonal_(torch.inf)
        return distance.argsort(dim=1, stable=True)[:, : self.k]


@dataclass(frozen=True)
class MeanCosine(Measure):
    """The mean cosine of rows, of equal widths."""

    family: ClassVar[str] = "shared_space"
    aliases: ClassVar[tuple[str, ...]] = ("row_cosine",)
    cost: ClassVar[str] = "n d"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    equal_widths: ClassVar[bool] = True

    def prepare(self, x: Tensor) -> Features:
        return Features(x.double() / torch.linalg.vector_norm(x.double(), dim=1, keepdim=True))

    def compare(self, a: Features, b: Features) -> float:
        return float((a.values * b.values).sum(dim=1).mean())


def test_own_kernel_is_the_measure_it_copies():
    x, y = arrays()
    ours = CKA(kernel="rbf", bandwidth=3.0)
    assert GaussianCKA()(x, y) == pytest.approx(ours(x, y), abs=1e-12)
    biased = CKA(kernel="rbf", bandwidth=3.0, estimator="biased")
    assert GaussianCKA(estimator="biased")(x, y) == pytest.approx(biased(x, y), abs=1e-12)


def test_own_measures_obey_the_laws_and_have_their_null():
    check_measure(GaussianCKA(), oracle=lambda m, x, y: CKA(kernel="rbf", bandwidth=m.sigma)(x, y))
    check_measure(ManhattanKNN(k=4))
    register(GaussianCKA)
    x, y = arrays(220)
    found = pair(x, y, ["gaussian_cka(sigma=2.0)"]).cells()
    assert found["null"].tolist() == ["moments"] and found["pvalue"][0] < 1e-6


def test_a_wrong_claim_is_found():
    @dataclass(frozen=True)
    class Wrong(GaussianCKA):
        @property
        def invariances(self) -> frozenset[str]:
            return frozenset({"isotropic_scale"})

    with pytest.raises(AssertionError, match=r"Wrong\(.*breaks the law 'each_declared_invariance_holds': isotropic_scale"):
        check_measure(Wrong())


def test_what_is_no_kernel_and_no_neighbours_is_refused():
    x, y = arrays()

    def kernel(wrong):
        return type("Wrong", (KernelAlignment,), {"kernel": lambda _, x: wrong(x)})()

    for wrong, words in (
        (lambda x: x, r"shape \(60, 6\)"),
        (lambda x: x @ x.T * torch.nan, "NaN"),
        (lambda x: (x @ x.T).tril(), "K_ij and K_ji that differ"),
    ):
        with pytest.raises(RepalignError, match=f"Wrong.kernel: no kernel(.|\n)*{words}"):
            kernel(wrong)(x, y)
    for lists in (
        torch.zeros(60, 10),
        torch.arange(60)[:, None].expand(60, 10),
        torch.full((60, 10), 60),
        torch.zeros(60, 9),
    ):
        wrong_lists = type("Wrong", (NeighborOverlap,), {"neighbors": lambda _, x, lists=lists: lists})()
        with pytest.raises(RepalignError, match="Wrong.neighbors: no lists of neighbours"):
            wrong_lists(x, y)


# --- names ------------------------------------------------------------------------------------------


def test_registered_measures_are_known_by_name():
    with pytest.raises(RepalignError, match="unknown measure 'ManhattanKNN'"):
        parse_measure("ManhattanKNN")
    assert register(ManhattanKNN) is ManhattanKNN
    register(ManhattanKNN)  # twice does nothing
    assert parse_measure("manhattan_knn(k=3)") == ManhattanKNN(k=3)
    assert ManhattanKNN in measures.known_measures()
    facts = measures.facts_of(repr(ManhattanKNN()))
    assert (facts.label, facts.meaning) == ("manhattan k-NN (k=10)", "Mutual k-NN in the city-block distance.")
    assert ManhattanKNN() in measures.parse_measures(["neighbors"])


def test_a_name_that_is_taken_is_refused():
    for facts in ({"aliases": ("mutual_knn",)}, {"aliases": ("cka_rbf",)}):
        with pytest.raises(RepalignError, match="belongs to another measure(.|\n)*repalign.measures"):
            register(type("Another", (ManhattanKNN,), facts))
    with pytest.raises(RepalignError, match="the name 'CKA' belongs to another measure"):
        register(type("CKA", (ManhattanKNN,), {}))


def test_a_package_announces_its_measures(tmp_path: Path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(
        "from dataclasses import dataclass\nfrom repalign.measures import MutualKNN\n"
        "@dataclass(frozen=True)\nclass Elsewhere(MutualKNN):\n    aliases = ('elsewhere',)\n"
    )
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[repalign.measures]\nElsewhere = elsewhere:Elsewhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert repr(parse_measure("elsewhere(k=3)")).startswith("Elsewhere(k=3")
    registry._load_announced.cache_clear()
    sys.modules.pop("elsewhere")
    (tmp_path / "elsewhere.py").write_text("raise ImportError('gone')\n")
    with pytest.raises(RepalignError, match=r"'Elsewhere' of another package cannot be loaded(.|\n)*ImportError: gone"):
        parse_measure("elsewhere")


# --- groups, and what does not apply ------------------------------------------------------------------


def test_a_family_leaves_out_what_does_not_apply_and_says_why():
    register(MeanCosine)
    x, y = arrays()
    found = pair(x, y, ["shared_space", "CKA()"])
    assert pair(x, y, [measures.Group("shared_space"), CKA()]).table.equals(found.table)  # the same, as a value
    assert found.measures[0].startswith("CKA(") and "MeanCosine()" not in found.measures
    reasons = {e["measure"]: e["reason"] for e in found.run["left_out"]}
    assert "widths 6 and 9" in reasons["MeanCosine()"]
    with pytest.raises(RepalignError, match="one space(.|\n)*widths 6 and 9"):
        MeanCosine()(x, y)


def test_layers_of_one_width_are_compared_and_others_undefined():
    register(MeanCosine)
    x, y = arrays()
    found = pair({"a": x, "b": y}, {"c": x + 1, "d": y}, ["row_cosine"]).layer_map()
    assert np.isnan(found.loc["a", "d"]) and np.isnan(found.loc["b", "c"])
    assert found.loc["b", "d"] == pytest.approx(1.0) and found.loc["a", "c"] == pytest.approx(MeanCosine()(x, x + 1))


def test_too_slow_for_a_group_is_left_out_with_the_time_it_would_take(monkeypatch):
    x, y = arrays()
    monkeypatch.setattr(choosing, "LIMIT", 1e-9)
    found = pair(x, y, ["neighbors", "CKA()"])
    assert len(found.measures) == 1 and found.measures[0].startswith("CKA(")
    reasons = {e["measure"].split("(")[0]: e["reason"] for e in found.run["left_out"]}
    assert re.fullmatch(r"would take about .+ \(limit under a second\); name it to compute it", reasons["CycleKNN"])
    with pytest.raises(RepalignError, match="no measure applies"):
        pair(x, y, ["neighbors"])


@pytest.fixture
def slow(monkeypatch):
    """Trials that say: a layer takes 1 s, a pair of layers 2 s; of one layer each 404 s with 200 comparisons, 42 s with 20."""
    monkeypatch.setattr(choosing, "trial", lambda *_: choosing.Cost(1.0, 2.0))


def draws_of(found) -> dict[str, int]:
    return {m.partition("(")[0]: found.run["null"]["by_measure"][m]["n_draws"] for m in found.measures}


def test_a_named_measure_over_the_usual_limit_runs_and_says_before_what_it_costs(slow, caplog):
    x, y = arrays()
    told = []
    found = pair(x, y, ["Procrustes()", "CKA()"], progress=lambda task, done, total, note=None: told.append((task, note)))
    assert draws_of(found) == {"Procrustes": 199, "CKA": 199} and not found.run["left_out"] and not found.run["warnings"]
    sentence = (
        "Procrustes takes about 6.7 min: leave it out, or limit it (--limit 120, in a study `limit: 120`), for 19 shuffles in the "
        "place of 199 and about 42 s"
    )
    assert [note for _, note in told if note] == [sentence]
    assert [task for task, _ in told].index("prepare layers") > told.index(("compare", sentence))
    assert not caplog.records
    pair(x, y, ["Procrustes()"])  # nobody listens
    assert [r.message for r in caplog.records] == [sentence]


def test_a_limit_that_is_given_holds_for_named_measures_too(slow):
    x, y = arrays()
    found = pair(x, y, ["Procrustes()", "CKA()"], limit=60)  # CKA: 4 s, as its draws cost nothing
    assert draws_of(found) == {"Procrustes": 19, "CKA": 199}
    assert found.run["warnings"] == [
        "19 shuffles each, to stay within 60 s, for Procrustes (6.7 min): their smallest p is 0.05; raise the limit for all"
    ]
    found = pair(x, y, ["Procrustes()", "CKA()"], limit=30)
    assert draws_of(found) == {"CKA": 199}
    (left,) = found.run["left_out"]
    assert left["reason"] == "would take about 6.7 min (limit 30 s); raise the limit to compute it"
    with pytest.raises(RepalignError, match="no measure applies(.|\n)*Procrustes(.|\n)*raise the limit"):
        pair(x, y, ["Procrustes()"], limit=30)


def test_draws_that_are_asked_for_are_not_made_fewer_and_the_measure_is_left_out(slow):
    found = pair(*arrays(), ["Procrustes()", "CKA()"], "permutation", limit=60)
    assert draws_of(found) == {"CKA": 199} and found.run["left_out"][0]["measure"].startswith("Procrustes")


def test_no_limit_at_all_is_said_by_0(slow):
    found = pair(*arrays(), ["Procrustes()", "shape"], limit=0)
    assert set(draws_of(found).values()) == {199} and not [e for e in found.run["left_out"] if "limit" in e["reason"]]
    with pytest.raises(RepalignError, match="a limit is a time\n  expected: seconds, or 0 for no limit\n  got: -1"):
        pair(*arrays(), limit=-1)


def test_the_terminal_groups_what_was_left_out_by_its_reason():
    from repalign.cli._console import by_reason

    left_out = [
        {"measure": "ModalityGap()", "reason": "ModalityGap compares arrays of one space; got: widths 6 and 9"},
        {"measure": "PairedCosine()", "reason": "PairedCosine compares arrays of one space; got: widths 6 and 9"},
        {"measure": "RTD(form='min')", "reason": "would take about 3 min (limit 30 s); name it to compute it"},
        {"measure": "VERSA()", "reason": "would take about 5 min (limit 30 s); name it to compute it"},
    ]
    assert by_reason(left_out) == {
        "it compares arrays of one space; got: widths 6 and 9": ["ModalityGap", "PairedCosine"],
        "longer than 30 s; name it to compute it": ["RTD (3 min)", "VERSA (5 min)"],
    }
