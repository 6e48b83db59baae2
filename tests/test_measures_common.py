"""Every measure of the one list against every law of `repalign.testing`; a measure without an oracle fails here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from oracles import CASES
from repalign.errors import RepalignError
from repalign.measures import CKA, MEASURES, RSA, SVCCA, CycleKNN, MutualKNN
from repalign.testing import LAWS, Case, asymmetry, check_measure, pair

N = 40
every = pytest.mark.parametrize("case", CASES, ids=lambda c: repr(c.measure))


def test_every_measure_has_an_oracle():
    assert {type(c.measure) for c in CASES if c.oracle is not None} == set(MEASURES)


TYPE_ONE = "independent_spaces_are_found_as_rarely_as_the_level_says"
FIRST = list({type(c.measure): c for c in reversed(CASES)}.values())


@every
@pytest.mark.parametrize("law", LAWS)
def test_law(case: Case, law: str):
    """Exchangeable scores obey the level whatever the parameters are, and relabelling is held to its own law, exactly:
    a quarter of the trials is enough where another case of the class has them all.
    """
    trials = min(case.trials, 60) // (1 if any(case is c for c in FIRST) else 4)
    LAWS[law](case if law != TYPE_ONE else replace(case, trials=trials))


@every
def test_every_measure_declares_its_facts(case: Case):
    cls = type(case.measure)
    assert cls.family and cls.cost and cls.aliases and cls.__doc__
    assert not [w for w in ("Source", ">>>") if w not in cls.__doc__]


# --- the laws can fail ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law, case",
    [
        ("agrees_with_its_oracle", Case(CKA(), lambda m, x, y: 0.5)),
        ("symmetric_exactly_where_it_says_so", Case(type("Wrong", (CycleKNN,), {"symmetric": True})(k=3))),
        ("a_space_with_itself", Case(CycleKNN(k=3))),
        ("states_obey_the_law_of_permutation", Case(type("Wrong", (CKA,), {"paired": False})())),
        (
            "pairs_of_stimuli_are_relabelled_with_rows_and_columns",
            Case(type("Wrong", (RSA,), {"prepare": lambda self, x: RSA.prepare(self, x[torch.arange(len(x)).roll(1)])})()),
        ),
        ("what_is_not_declared_changes_the_score", Case(type("Wrong", (CKA,), {"invariances": frozenset()})())),
        ("each_declared_invariance_holds", Case(type("Wrong", (CKA,), {"invariances": frozenset({"row_scale"})})())),
        ("scores_stay_within_the_range", Case(type("Wrong", (CKA,), {"range": (0.9, 1.0)})())),
        ("a_constant_representation_has_no_score", Case(CKA(), constant="defined")),
        ("the_smallest_n_and_one_below", Case(type("Wrong", (CKA,), {"check": lambda *_: None})())),
    ],
)
def test_a_law_can_be_broken(law: str, case: Case):
    with pytest.raises((AssertionError, RepalignError)):
        LAWS[law](case)


def test_the_test_of_symmetry_sees_differences():
    assert asymmetry(Case(CycleKNN(k=3))) > 0.01


def test_check_measure_runs_every_law_and_names_the_broken_one():
    check_measure(MutualKNN(k=5))
    with pytest.raises(AssertionError, match=r"CycleKNN\(k=3(.|\n)*breaks the law 'a_space_with_itself': x with itself"):
        check_measure(CycleKNN(k=3))


# --- single facts ---------------------------------------------------------------------------------


def test_k_may_be_all_others_but_not_all():
    x, y = pair(18)
    assert MutualKNN(k=N - 1)(x, y) == 1.0
    with pytest.raises(RepalignError, match=f"expected: n >= {N + 1}"):
        MutualKNN(k=N)(x, y)


def test_svcca_of_a_space_with_itself_is_one_on_every_call():
    """A peer gives 0.87, and another value on the next call."""
    x, _ = pair(19)
    assert [SVCCA(components=5)(x, x) for _ in range(2)] == pytest.approx([1.0, 1.0], abs=1e-12)


def test_the_data_of_the_laws_reach_a_mean_cosine_above_097():
    for a in pair(4, n=96, offset=12.0):
        z = a / np.linalg.norm(a, axis=1, keepdims=True)
        assert (z @ z.T).mean() > 0.97


@pytest.mark.gpu
@every
def test_another_device_gives_the_same_score(case: Case):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    x, y = (torch.from_numpy(a).float() for a in case.pair(20))
    assert case.measure(x.cuda(), y.cuda()) == pytest.approx(case.measure(x, y), rel=1e-5, abs=1e-5)
