"""Measures as text: round trips, aliases, corrections, and what a listing says."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import asdict, fields
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from repalign import measures
from repalign.errors import RepalignError
from repalign.measures import (
    CKA,
    MEASURES,
    RSA,
    SVCCA,
    CKNNAReference,
    MeasureFacts,
    MutualKNN,
    Procrustes,
    describe,
    facts_of,
    labels_of,
    measure_among,
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


def test_no_measure_is_forgotten():
    """A class that the package does not name is told by name."""
    for path in Path(measures.__file__).parent.glob("[!_]*.py"):
        import_module(f"repalign.measures.{path.stem}")

    def below(cls: type) -> set[type]:
        return {cls}.union(*map(below, cls.__subclasses__()))

    ours = {c for c in below(measures.Measure) if c.__module__.startswith("repalign.measures.")}
    final = {c for c in ours if not c.__name__.startswith("_") and not inspect.isabstract(c)}
    assert {c.__name__ for c in final - set(MEASURES)} == set(), "not in FAMILIES"
    assert len(set(MEASURES)) == len(MEASURES)  # the README says how many
    assert [cls.__name__ for cls in MEASURES] == [name for names in measures.FAMILIES.values() for name in names]
    for family, names in measures.FAMILIES.items():
        assert all(getattr(measures, name).__module__ == f"repalign.measures.{family}" for name in names)
    imported = re.findall(r"^    from repalign\.measures\.(\w+) import \*", Path(measures.__file__).read_text("utf-8"), re.M)
    assert set(imported) == {"custom", *measures.FAMILIES}, "modules that the type checker does not see, or the other way round"
    for cls in MEASURES:
        assert getattr(measures, cls.__name__) is cls and cls.__name__ in measures.__all__
    for name in measures.__all__:
        assert hasattr(measures, name), name


@pytest.mark.parametrize("cls", MEASURES)
def test_a_default_is_in_its_one_form(cls):
    """A measure checks what it is given in the place of a default, and a default as such is not checked."""
    for f in fields(cls):
        if "check" in f.metadata:
            checked = f.metadata["check"](f.name, f.default)
            assert (checked, type(checked)) == (f.default, type(f.default)), f.name


def test_a_measure_by_name_imports_its_own_family_alone():
    code = (
        "import sys, numpy as np, repalign; x = np.random.default_rng(0).standard_normal((30, 4));"
        "repalign.pair(x, x, ['CKA()']); repalign.pair(x, x, repalign.CKA());"
        "print(*(m.rpartition('.')[2] for m in sys.modules if m.startswith('repalign.measures.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & set(measures.FAMILIES) == {"kernel"}


FACTS = [*EVERY, parse_measure("multi_scale_knn")]


@pytest.mark.parametrize("measure", FACTS, ids=repr)
def test_facts_outlive_the_measure(measure):
    """As plain data, through JSON, and from its text alone."""
    facts = measure.facts
    assert MeasureFacts.from_dict(json.loads(json.dumps(asdict(facts)))) == facts == facts_of(repr(measure))
    assert type(measure)(**facts.parameters) == measure
    assert (facts.name, facts.family) == (type(measure).__name__, measure.family)
    assert facts.closer_is_higher == measure.closer_is_higher
    assert facts.meaning == type(measure).__doc__.strip().splitlines()[0]


def test_labels_tell_measures_apart():
    labels = [m.facts.label for m in FACTS]
    assert len(set(labels)) == len(set(FACTS))
    assert facts_of("MutualKNN(k=10, similarity='cosine', center=True)").label == "mutual k-NN (k=10, center)"
    assert CKA().facts.label == "CKA"
    assert CKNNAReference().facts.label.startswith("CKNNA reference (k=10")
    assert facts_of("CycleKNN(k=5)").label == "cycle k-NN (k=5)"  # what the text says, defaults or not


def test_labels_of_one_result_say_what_differs_and_no_more():
    """k always; what is not the default; and what two measures of one class differ in, whether it is the default or not."""
    texts = [repr(m) for m in (MutualKNN(k=5), CKA(), CKA(estimator="biased"), Procrustes(center=False), RSA())]
    assert list(labels_of(texts).values()) == [
        "mutual k-NN (k=5)", "CKA (debiased)", "CKA (biased)", "Procrustes (center=False)", "RSA"
    ]  # fmt: skip
    assert labels_of(texts[:2])[texts[1]] == "CKA"
    both = [repr(MutualKNN()), repr(MutualKNN(similarity="dot", center=True))]
    assert list(labels_of(both).values()) == ["mutual k-NN (k=10, cosine, center=False)", "mutual k-NN (k=10, dot, center)"]
    same = ["MutualKNN(k=10)", "MutualKNN(k=10, center=False)"]  # one measure, written in two ways
    assert list(labels_of(same).values()) == same
    without = [f"MutualKNN(similarity='{s}', center=False)" for s in ("cosine", "dot")]  # lines of a curve over k
    assert list(labels_of(without).values()) == ["mutual k-NN (cosine)", "mutual k-NN (dot)"]
    for asked, at in (("cka", 1), ("CKA (debiased)", 1), ("CKA (biased)", 2), ("ProcrusteS(center=FALSE)", 3), ("RSA", 4)):
        assert measure_among(asked, texts) == texts[at]


def test_facts_of_texts_that_are_no_measure_now():
    gone = facts_of("Gone(k=5, form='old')")
    assert gone == MeasureFacts("Gone", {"k": 5, "form": "old"}, "gone (k=5, old)", "", "", True)
    old = facts_of("Procrustes(scaled=True)")  # a parameter of before
    assert (old.parameters, old.label, old.family) == ({"scaled": True}, "Procrustes (scaled)", "shape")
    assert not old.closer_is_higher and old.meaning.startswith("Procrustes distance")
    assert facts_of("My(thing") == MeasureFacts("My(thing", {}, "My(thing")


def test_names_are_unique_and_all_parse():
    names = [name for cls in MEASURES for name in (cls.__name__, *cls.aliases)] + [s for cls in MEASURES for s in cls.shorthands]
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
