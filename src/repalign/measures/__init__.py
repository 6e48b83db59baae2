"""Measures of representational alignment. `MEASURES` is the only list; everything iterates over it."""

from __future__ import annotations

from repalign.measures import _parse
from repalign.measures._base import Bilinear, Features, Measure, Neighbors, Relation, State, as_features
from repalign.measures._parse import describe
from repalign.measures.kernel import CKA, CKNNA, CKNNAPaper
from repalign.measures.neighbors import CycleKNN, EditDistanceKNN, LCSKNN, MutualKNN
from repalign.measures.reference import CKNNAReference
from repalign.measures.subspace import SVCCA

MEASURES: tuple[type[Measure], ...] = (
    MutualKNN,
    CycleKNN,
    LCSKNN,
    EditDistanceKNN,
    CKA,
    CKNNA,
    CKNNAPaper,
    CKNNAReference,
    SVCCA,
)

_BY_NAME = {name: cls for cls in MEASURES for name in (cls.__name__, *cls.aliases)}

# Names in use in the field for a class with certain parameters.
_NAMED: dict[str, Measure] = {
    "cka_linear": CKA(estimator="biased"),
    "cka_rbf": CKA(kernel="rbf", estimator="biased"),
    "unbiased_cka": CKA(),
    "debiased_cka": CKA(),
}


def parse_measure(text: str) -> Measure:
    """The measure that a text names, for instance "MutualKNN(k=10)", "cka_rbf" or the repr of a measure.

    >>> parse_measure("MutualKNN(k=5)")
    MutualKNN(k=5, similarity='cosine', center=False)
    """
    return _parse.parse_measure(text, _BY_NAME, _NAMED)


__all__ = [
    "CKA",
    "CKNNA",
    "MEASURES",
    "SVCCA",
    "Bilinear",
    "CKNNAPaper",
    "CKNNAReference",
    "CycleKNN",
    "EditDistanceKNN",
    "Features",
    "LCSKNN",
    "Measure",
    "MutualKNN",
    "Neighbors",
    "Relation",
    "State",
    "as_features",
    "describe",
    "parse_measure",
]
