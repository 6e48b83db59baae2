"""Measures of representational alignment: `MEASURES` is the only list of them.

A measure is a value, for instance ``MutualKNN(k=10)``: called on two paired arrays it gives a number, and
`prepare` and `compare` split that work for many layers. See `_base` for the interface.
"""

from __future__ import annotations

from typing import Any

from repalign.measures import _parse
from repalign.measures._base import Bilinear, Features, Measure, Neighbors, Relation, State, as_features
from repalign.measures._parse import describe
from repalign.measures.kernel import CKA, CKNNA
from repalign.measures.neighbors import LCSKNN, CycleKNN, EditDistanceKNN, MutualKNN
from repalign.measures.reference import CKNNAPaper, CKNNAReference
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

# Names in use in the field for a class with certain parameters; the other aliases belong to their classes.
SHORTHANDS: dict[str, tuple[type[Measure], dict[str, Any]]] = {
    "biased_cka": (CKA, {"estimator": "biased"}),
    "cka_linear": (CKA, {"estimator": "biased"}),
    "cka_rbf": (CKA, {"kernel": "rbf", "estimator": "biased"}),
}


def parse_measure(text: str) -> Measure:
    """The measure that a text names, so that `parse_measure(repr(measure)) == measure`.

    Class names, aliases and shorthands are known; parameters are literals, given by name.
    Raises RepalignError for an unknown name or parameter (with the closest known one) and for bad values.

    >>> parse_measure("mutual_knn(k=5)")
    MutualKNN(k=5, similarity='cosine', center=False)
    """
    return _parse.parse(text, MEASURES, SHORTHANDS)


__all__ = [
    "CKA",
    "CKNNA",
    "LCSKNN",
    "MEASURES",
    "SHORTHANDS",
    "SVCCA",
    "Bilinear",
    "CKNNAPaper",
    "CKNNAReference",
    "CycleKNN",
    "EditDistanceKNN",
    "Features",
    "Measure",
    "MutualKNN",
    "Neighbors",
    "Relation",
    "State",
    "as_features",
    "describe",
    "parse_measure",
]
