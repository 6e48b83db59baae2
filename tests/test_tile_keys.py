"""What a finished tile is found by: everything that its rows hold or follow from, code that is not ours included."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from repalign import null as nulls
from repalign.comparison import Cache, Settings, Tile, compare, pair
from repalign.comparison import tiles as engine
from repalign.comparison.identity import identity
from repalign.comparison.preprocess import Preprocess
from repalign.errors import RepalignError
from repalign.measures import CKA, MEASURES, Measure, MutualKNN
from test_compare import model

GROUPS = [nulls.Groups(labels, "whole") for labels in ((0, 0, 1, 1), (0, 1, 0, 1))]  # by hand: both without a digest
SETTINGS = Settings(nulls.Permutations(9, groups=GROUPS[0]), "studentised", 0.05, Preprocess(), "cpu")
X, Y = model("lm", 1, (6, 9)), model("vit", 2, (7,))
TILE = Tile(X, Y, CKA(), SETTINGS, (0, 1))
SETTINGS_CHANGES = {
    "null": [nulls.Permutations(10), nulls.Permutations(9, seed=1), nulls.Permutations(9, groups=GROUPS[1]), nulls.Cyclic()],
    "search": ["raw"],
    "alpha": [0.01],
    "preprocess": [Preprocess(normalize_rows=True), Preprocess(clip="exact", quantile=0.9)],
    "device": ["cuda"],
    "way": ["streamed", "closed"],
}
RECORD = replace(X.record, name="another name")
CHANGES = {
    "x": [
        replace(X, record=RECORD), replace(X, dataset_name="d"), replace(X, dataset_fingerprint="e" * 64), model("lm", 3, (6, 9)),
        replace(X, arrays={"one": X.arrays["layer.0"], "layer.1": X.arrays["layer.1"]}),
        replace(X, arrays=dict(reversed(X.arrays.items()))),
        replace(X, arrays={k: v.float() for k, v in X.arrays.items()}),
    ],
    "y": [replace(Y, record=RECORD), replace(Y, dataset_name="d"), model("vit", 3, (7,))],
    "measure": [CKA(estimator="biased"), MutualKNN(k=5)],
    "settings": [replace(SETTINGS, **{name: v}) for name, values in SETTINGS_CHANGES.items() for v in values],
    "streams": [(1, 2), (0, 2)],
}  # fmt: skip


def test_every_change_gives_another_key(monkeypatch):
    assert set(CHANGES) == {f.name for f in fields(Tile)} and set(SETTINGS_CHANGES) == {f.name for f in fields(Settings)}
    keys = [TILE.key, *(replace(TILE, **{name: v}).key for name, values in CHANGES.items() for v in values)]
    assert len(set(keys)) == len(keys) and replace(TILE).key == TILE.key
    monkeypatch.setattr(engine, "FORMULAS", 0)
    assert replace(TILE).key != TILE.key
    monkeypatch.undo()
    monkeypatch.setattr(engine, "TILE_SCHEMA", engine.TILE_SCHEMA.append(pa.field("new", pa.float64())))
    assert replace(TILE).key != TILE.key


def test_a_renamed_model_does_not_come_back_under_its_old_name(tmp_path):
    compare([X], [Y], ["CKA()"], nulls.Permutations(9), results=tmp_path)
    renamed = compare([X], [replace(Y, record=RECORD)], ["CKA()"], nulls.Permutations(9), results=tmp_path)
    assert set(renamed.table["model_y"]) == {"another name"}


def test_two_models_and_then_three_give_what_three_give_at_once(tmp_path):
    three = [X, Y, model("third", 5, (4, 4))]
    compare(three[:2], None, ["CKA()"], nulls.Permutations(19), results=tmp_path)
    resumed = compare(three, None, ["CKA()"], nulls.Permutations(19), results=tmp_path)
    fresh = compare(three, None, ["CKA()"], nulls.Permutations(19))
    pd.testing.assert_frame_equal(resumed.table, fresh.table, check_exact=True)


@pytest.mark.parametrize("known", [False, True], ids=["one after the other", "known beforehand"])
def test_prepared_states_are_of_their_settings(known):
    measure, clip = CKA(), replace(SETTINGS, preprocess=Preprocess(clip="exact", quantile=0.5))
    cache = Cache(10**9, [Tile(X, Y, measure, how) for how in (SETTINGS, clip)] if known else ())
    plain, clipped = (cache.get(X, measure, how).states[0].matrix for how in (SETTINGS, clip))
    alone = Cache(10**9).get(X, measure, clip).states[0].matrix
    assert not torch.equal(plain, clipped) and torch.equal(clipped, alone)


def test_tiles_of_before_keep_their_names_wherever_classes_move():
    """What was written when each of these first stood in a tile; a measure or null that is new has no tiles yet."""
    before = json.loads((Path(__file__).parent / "golden/tile_identities.json").read_text("utf-8"))
    plain = replace(SETTINGS, null=nulls.Permutations(9), search="studentised max")
    random, draws, marked = nulls.Permutations(9, 1), nulls.Permutations(199), nulls.Groups((0, 0, 1, 1), "whole")
    chances = [random, nulls.Permutations(19, groups=marked), nulls.Cyclic(2), nulls.Cyclic(relabellings=3), nulls.Unpaired()]
    chances += [nulls.Moments(nulls.Cyclic()), nulls.Moments(draws), nulls.Aristotelian()]
    prepared = [Preprocess(clip="exact", quantile=0.9), Preprocess(normalize_rows=True, concatenate=True)]
    now = {cls.__name__: plain.identity(cls()) for cls in MEASURES}
    now |= {repr(null): replace(plain, null=null).identity(CKA()) for null in chances}
    now |= {repr(p): replace(plain, preprocess=p).identity(CKA()) for p in prepared}
    assert len(before) == 87 and {name: now.get(name) for name in before} == before


# --- code that is not ours -----------------------------------------------------------------------

OWN = '''
import numpy as np
from dataclasses import dataclass
from functools import cache, cached_property, partial
from repalign.measures import CKA

FACTOR = 2.0
TABLE = np.arange(3000.0)
NAMES = {"a", "b", "c", "d"}

def inner(x):
    return x * FACTOR

@cache
def helper(x, power=1):
    return [inner(v) ** power for v in [x]][0]

def twice(f):
    def changed(self, *args):
        return 2 * f(self, *args)
    return changed

class Beside:
    scale = 3
    def __init__(self):
        self.weights = np.ones(4)

STATE = Beside()

@dataclass(frozen=True)
class Mine(CKA):
    """Mine."""
    amount: float = 1.0

    @cached_property
    def once(self):
        return 0.5

    @twice
    def compare_all(self, a, b):
        return self.amount * self.once * helper(1.0) * super().compare_all(a, b) * STATE.weights[0] + TABLE[0] * Beside.scale

    @staticmethod
    def fixed(x):
        return x in {"p", "q", "r"} and NAMES
'''
MOVES = {
    "a constant of a method": ("return 0.5", "return 0.25"),
    "a helper's helper": ("x * FACTOR", "x + FACTOR"),
    "a global number": ("FACTOR = 2.0", "FACTOR = 3.0"),
    "a global array, in the middle": ("TABLE = np.arange(3000.0)", "TABLE = np.arange(3000.0); TABLE[1500] = 7"),
    "a global set": ('"c", "d"}', '"c", "e"}'),
    "a set in code": ('{"p", "q", "r"}', '{"p", "q", "s"}'),
    "a default": ("power=1", "power=2"),
    "a decorator": ("2 * f(", "3 * f("),
    "a class beside it": ("scale = 3", "scale = 4"),
    "a value that an object holds": ("np.ones(4)", "np.ones(5)"),
    "an inner function": ("[inner(v) ** power for v in [x]]", "[inner(v) ** power for v in [x + 0]]"),
    "the base class": ("class Mine(CKA)", "class Mine(Other)"),
    "a method more": ("    amount: float = 1.0", "    amount: float = 1.0\n    def check(self, n, where='', kinds=()): pass"),
}
STAYS = {
    "nothing": ("", ""),
    "comments and lines": ("FACTOR = 2.0", "\n# a remark\n\nFACTOR = 2.0  # another"),
    "a name that nothing uses": ("FACTOR = 2.0", "FACTOR = 2.0\nUNUSED = 1"),
    "the docstring of the class": ('"""Mine."""', '"""Mine, told better."""'),
}


def made(source: str) -> Measure:
    scope = {"__name__": "own_measure_of_a_test"}
    source = source.replace("from repalign.measures import CKA", "from repalign.measures import CKA, RV as Other")
    exec(compile(source, "own", "exec", dont_inherit=True), scope)
    return scope["Mine"]()


@pytest.mark.parametrize("change", MOVES.values(), ids=MOVES)
def test_a_change_of_code_gives_another_identity(change):
    assert change[0] in OWN
    assert identity(made(OWN)) != identity(made(OWN.replace(*change)))


@pytest.mark.parametrize("change", STAYS.values(), ids=STAYS)
def test_what_computes_the_same_keeps_its_identity(change):
    assert identity(made(OWN)) == identity(made(OWN.replace(*change)))


def test_the_identity_is_the_same_in_another_process(tmp_path, monkeypatch):
    """Compiled or read from the cache of bytecode; whatever the order of sets; before and after it was used."""
    use = "\nimport beside_file\nMine.g = lambda self: beside_file.g(0)\n"
    use += "def late(self):\n    from late_file import h\n    return h()\nMine.late = late\n"
    (tmp_path / "own_file.py").write_text(OWN + use, "utf-8")
    (tmp_path / "beside_file.py").write_text("def g(x):\n    import below_file\n    return below_file.g(x)\n", "utf-8")
    for name in ("below_file", "late_file"):
        (tmp_path / f"{name}.py").write_text("from math import sin as g\ndef h():\n    return 1\n", "utf-8")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import own_file\n"
        "from repalign.comparison.identity import identity\n"
        "mine = own_file.Mine(); first = identity(mine); mine.once; own_file.helper(1.0)\n"
        "assert identity(mine) == first; print(first)"
    )
    asked = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    there = subprocess.run(asked, capture_output=True, text=True, check=True, env=environment).stdout.strip()
    monkeypatch.syspath_prepend(tmp_path)

    def anew() -> str:
        for name in ("own_file", "beside_file", "below_file", "late_file"):
            sys.modules.pop(name, None)
        return identity(importlib.import_module("own_file").Mine())

    assert anew() == there
    for name in ("beside_file", "below_file", "late_file"):
        before = (tmp_path / f"{name}.py").read_text("utf-8")
        (tmp_path / f"{name}.py").write_text(before + "\nVALUE = 2\n", "utf-8")
        importlib.invalidate_caches()
        assert anew() != there, name
        (tmp_path / f"{name}.py").write_text(before, "utf-8")
    assert anew() == there


@dataclass(frozen=True)
class Odd(CKA):
    """A measure that holds all sorts of things."""

    held: object = None


HELD = [
    None, 0, 0.0, -0.0, False, "", b"", (), [], {}, {1: 2}, {2: 1}, {1, 2}, frozenset({1}), slice(1, 2), range(3), ...,
    np.arange(3), np.arange(3.0), np.array(["a", None], dtype=object), np.float32(1), np.float64(1),
    np.zeros(5000), np.concatenate([np.zeros(2500), np.ones(1), np.zeros(2499)]),
    torch.arange(3), torch.arange(3.0), torch.float32, torch.nn.Linear(2, 3), nulls.Cyclic(), np, torch, nulls, int, float,
    types.SimpleNamespace(a=1), types.SimpleNamespace(a=2), functools.partial(max, 1), functools.partial(min, 1), len,
    np.mean, np.median, "".join, lambda x: x, lambda x: x + 1,
]  # fmt: skip


def test_whatever_a_measure_holds_counts():
    found = [identity(Odd(held=held)) for held in HELD]
    assert len(set(found)) == len(found)
    assert found == [identity(Odd(held=held)) for held in HELD]


def test_things_that_hold_themselves_and_deep_ones_end():
    loop: list[object] = [1]
    loop.append(loop)
    own = types.SimpleNamespace()
    own.own = own
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert len({identity(loop), identity(own), identity(deep)}) == 3


def test_a_changed_measure_is_computed_again(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5))
    y = x + rng.standard_normal((60, 5))
    before, after = (made(OWN.replace("return 0.5", f"return {v}")) for v in (0.5, 0.25))
    first = pair(x, y, [before], "permutation", results=tmp_path).table
    again = pair(x, y, [after], "permutation", results=tmp_path).table
    assert again["statistic"][0] == first["statistic"][0] / 2
    pd.testing.assert_frame_equal(again, pair(x, y, [after], "permutation").table, check_exact=True)


def test_two_measures_of_one_name_are_refused():
    x = np.random.default_rng(0).standard_normal((30, 3))
    with pytest.raises(RepalignError, match=r"two measures are called Mine\((.|\n)*one name per measure"):
        pair(x, x, [made(OWN), made(OWN.replace("0.5", "0.25"))])


def test_the_name_of_our_modules_makes_nothing_ours():
    source = OWN.replace("@dataclass(frozen=True)\n", "").replace("    amount: float = 1.0\n", "    amount = 1.0\n")
    both = []
    for text in (source, source.replace("return 0.5", "return 0.25")):
        scope = {"__name__": "repalign.measures.kernel"}
        exec(compile(text.replace("import CKA", "import CKA, RV as Other"), "own", "exec", dont_inherit=True), scope)
        both.append(identity(scope["Mine"]()))
    assert both[0] != both[1]
