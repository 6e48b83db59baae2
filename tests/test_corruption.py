"""Damaged files of stores and results: no other number in silence, each found by check, each mended by the same run.

`python tests/corruption.py 2000` does the same at length.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import corruption
import tiny_models
from repalign.comparison import alignment
from repalign.comparison import check as checking
from repalign.files import sealed


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_models.gpt2(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_damage_is_never_silent_and_always_found_and_mended(model, tmp_path):
    found = corruption.campaign(45, tmp_path, model, seed=1)
    assert not found.is_bad, vars(found)
    assert len(found.cases) == 8 and found.cases.total() > 40


def test_the_campaign_can_fail(model, tmp_path, monkeypatch):
    """Without seals damage goes through; so it is not the readers of JSON and Parquet that find it."""
    for module in (sealed, checking, alignment):
        monkeypatch.setattr(module, "check_files", lambda *a, **k: None)
    monkeypatch.setattr(sealed, "check_seal", lambda data, *a: sealed.SEAL.encode() in data)
    found = corruption.campaign(12, tmp_path, model, seed=1)
    assert found.silent and found.unseen


@pytest.mark.parametrize("kind", corruption.DAMAGE, ids=lambda f: f.__name__)
def test_damage_changes_bytes(kind):
    rng = random.Random(0)
    assert sum(kind(b"0123456789" * 30, rng) != b"0123456789" * 30 for _ in range(50)) > 30
