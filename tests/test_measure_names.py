"""Measures as text: round trips, aliases, corrections, and what a listing says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from repalign.errors import RepalignError
from repalign.measures import (
    CKA,
    MEASURES,
    SHORTHANDS,
    SVCCA,
    CKNNAReference,
    MutualKNN,
    describe,
    parse_measure,
)
from repalign.measures.measure import Bilinear
from repalign.testing import TRANSFORMATIONS

EVERY = [
    *(cls() for cls in MEASURES),
    MutualKNN(k=3, similarity="euclidean"),
    MutualKNN(center=True),
    CKA(kernel="rbf"),
    CKA(kernel="rbf", bandwidth=0.5, estimator="biased", epsilon=1e-6),
    SVCCA(components=0.99, standardize=True),
    CKNNAReference(estimator="biased", similarity="dot", epsilon=0.0),
]


@pytest.mark.parametrize("measure", EVERY, ids=repr)
def test_round_trip(measure):
    assert parse_measure(repr(measure)) == measure
    assert parse_measure(f"  {measure!r} ") == measure


def test_names_are_unique_and_all_parse():
    names = [name for cls in MEASURES for name in (cls.__name__, *cls.aliases)] + list(SHORTHANDS)
    assert len(names) == len(set(names))
    for cls in MEASURES:
        for name in (cls.__name__, *cls.aliases):
            assert parse_measure(name) == cls()


@pytest.mark.parametrize(
    ("text", "measure"),
    [
        ("mknn(k=5)", MutualKNN(k=5)),
        ("mutual_knn", MutualKNN(k=10)),
        ("cka", CKA()),
        ("unbiased_cka", CKA()),
        ("cka_linear", CKA(estimator="biased")),
        ("cka_rbf", CKA(kernel="rbf", estimator="biased")),
        ("cka_rbf(bandwidth=1.0, estimator='debiased')", CKA(kernel="rbf", bandwidth=1.0)),
        ("svcca(components=0.99)", SVCCA(components=0.99)),
    ],
)
def test_aliases(text, measure):
    assert parse_measure(text) == measure


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MutualKN(k=3)", r"unknown measure 'MutualKN'(.|\n)*did you mean 'MutualKNN'"),
        ("cycle_kn", r"unknown measure 'cycle_kn'(.|\n)*did you mean 'cycle_knn'"),
        ("MutualKNN(topk=3)", r"MutualKNN has no parameter 'topk'(.|\n)*expected: k, similarity, center"),
        ("CKA(kernal='rbf')", r"CKA has no parameter 'kernal'(.|\n)*did you mean 'kernel'"),
        ("MutualKNN(10)", r"not a measure: 'MutualKNN\(10\)'(.|\n)*name every parameter"),
        ("MutualKNN(k=__import__('os').getpid())", "not a measure"),
        ("MutualKNN(**{'k': 3})", "not a measure"),
        ("MutualKNN(k=3", "not a measure"),
        ("a.b(k=3)", "not a measure"),
        ("", "not a measure: ''"),
        ("MutualKNN(k=0)", "k is not a positive whole number"),
        ("MutualKNN(similarity=3)", "unknown similarity 3"),
    ],
)
def test_errors_say_what_was_meant(text, message):
    with pytest.raises(RepalignError, match=message):
        parse_measure(text)


def test_a_value_has_one_form():
    """repr is the identity on disk: 1 and 1.0, or integers of numpy, must not make two measures of one."""
    assert repr(MutualKNN(k=np.int64(5))) == repr(MutualKNN(k=5))
    assert repr(CKA(kernel="rbf", bandwidth=1, epsilon=0)) == repr(
        CKA(kernel="rbf", bandwidth=1.0, epsilon=0.0)
    )
    assert repr(SVCCA(components=np.int32(7))) == repr(SVCCA(components=7))


@pytest.mark.parametrize(
    "text", ["MutualKNN(center='false')", "SVCCA(standardize=1)", "LCSKNN(normalized=None)"]
)
def test_flags_are_true_or_false(text):
    with pytest.raises(RepalignError, match="is neither True nor False\n  expected: True or False"):
        parse_measure(text)


@pytest.mark.parametrize("cls", MEASURES)
def test_description_is_plain_data(cls):
    facts = describe(cls)
    json.dumps(facts)
    assert facts["name"] == cls.__name__
    assert facts["summary"].endswith(".") and len(facts["summary"]) < 110
    assert facts["bilinear"] == issubclass(cls, Bilinear)
    assert cls(**facts["parameters"]) == cls()
    assert facts["range"] == list(cls().range)
    assert set(facts["invariances"]) <= set(TRANSFORMATIONS)
