"""Representations: pairing by id, what may be compared, arrays in memory."""

from __future__ import annotations

import re

import pytest
import torch

from repalign.errors import RepalignError
from repalign.models import ModelRecord
from repalign.representation import MemoryRepresentation, check_same_dataset

A, B = "a1" * 32, "b2" * 32


def rep(
    name: str, ids: tuple[str, ...] = ("u", "v", "w"), fingerprint: str = A, dataset: str = "birds"
) -> MemoryRepresentation:
    x = {"first": torch.arange(len(ids) * 2.0).reshape(-1, 2), "second": torch.ones(len(ids), 4)}
    return MemoryRepresentation(ModelRecord(f"toy:{name}", name, "text"), ids, x, dataset, fingerprint)


def message(expected: str):
    return pytest.raises(RepalignError, match=f"^{re.escape(expected)}$")


REMEDY = "  do: extract both models on one dataset; rows are paired by id, never by position"


def test_the_same_dataset_is_accepted() -> None:
    check_same_dataset([])
    check_same_dataset([rep("x")])
    check_same_dataset([rep("x"), rep("y"), rep("z", dataset="another name")])


def test_another_n() -> None:
    with message(
        "x and y were extracted on different datasets: n differs\n"
        "  expected: x: n 3 (dataset 'birds')\n  got: y: n 2 (dataset 'trees')\n" + REMEDY
    ):
        check_same_dataset([rep("x"), rep("y", ("u", "v"), B, "trees")])


def test_the_same_rows_in_another_order() -> None:
    """The pairing by position that shifts every row after the first difference."""
    with message(
        "x and z were extracted on different datasets: id of row 1 differs\n"
        "  expected: x: id of row 1 v (dataset 'birds')\n  got: z: id of row 1 w (dataset 'birds')\n" + REMEDY
    ):
        check_same_dataset([rep("x"), rep("y"), rep("z", ("u", "w", "v"))])


def test_other_content_under_the_same_ids() -> None:
    with message(
        "x and y were extracted on different datasets: dataset fingerprint differs\n"
        f"  expected: x: dataset fingerprint {A[:12]} (dataset 'birds')\n"
        f"  got: y: dataset fingerprint {B[:12]} (dataset 'birds')\n" + REMEDY
    ):
        check_same_dataset([rep("x"), rep("y", fingerprint=B)])


def test_other_ids_under_the_same_fingerprint() -> None:
    """Arrays of the user's own may all have an empty fingerprint: the ids decide."""
    with pytest.raises(RepalignError, match="id of row 2 differs"):
        check_same_dataset([rep("x", fingerprint=""), rep("y", ("u", "v", "q"), fingerprint="")])


def test_layers_by_name() -> None:
    x = rep("x")
    assert x.n == 3 and x.name == "x" and x.layers == ("first", "second")
    assert torch.equal(x.load("first"), torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
    with message(
        "x: no layer 'frist'\n  expected: first, second\n  got: 'frist'\n  do: did you mean 'first'?"
    ):
        x.load("frist")


def test_equal_arrays_have_equal_keys() -> None:
    x = rep("x")
    assert x.key == rep("another name").key and re.fullmatch("[0-9a-f]{16}", x.key)
    changed = rep("x")
    changed.arrays["second"][2, 3] += 1e-3
    renamed = MemoryRepresentation(
        x.record, x.ids, {"First": x.arrays["first"], "second": x.arrays["second"]}
    )
    reshaped = MemoryRepresentation(
        x.record, x.ids, {"first": x.arrays["first"].reshape(2, 3), "second": x.arrays["second"]}
    )
    assert len({x.key, changed.key, renamed.key, reshaped.key}) == 4


def test_a_view_has_the_key_of_its_copy() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    views = [x[:, ::2], x[:, ::2].clone()]
    keys = {MemoryRepresentation(rep("x").record, ("u", "v", "w"), {"a": v}).key for v in views}
    assert len(keys) == 1


def test_float64_arrays_that_differ_have_other_keys() -> None:
    """Results are kept under the key: rounded to float32 first, other arrays would answer to it."""
    x = torch.ones(3, 2, dtype=torch.float64)
    y = x.clone()
    y[1, 1] += 1e-12
    keys = {MemoryRepresentation(rep("x").record, ("u", "v", "w"), {"a": v}).key for v in (x, y)}
    assert len(keys) == 2
