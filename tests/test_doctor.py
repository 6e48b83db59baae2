"""The doctor: each finding appears where it should, stays away where it should not, and says what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repalign.comparison.doctor import SEVERITIES, Finding, examine, summarise


def healthy(n: int = 300, d: int = 20) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n, d)))


def codes(x: torch.Tensor, **options) -> set[str]:
    return {f.code for f in examine(x, model="m", layer="l", **options)}


def nan_row(x):
    x[7, 2] = float("nan")
    return x


def constant(x):
    return torch.full_like(x, 0.1)


def duplicated(x):
    x[10:20] = x[0:10]
    return x


def zero_rows(x):
    x[3] = 0
    return x


def outlier(x):
    x[5] *= 60
    return x


def constant_column(x):
    x[:, 4] = 2.0
    return x


def rogue(x):
    x[:, 6] *= 40
    return x


def offset(x):
    return x + 8


def line(x):
    return x[:, :1] * torch.arange(1.0, 21.0, dtype=x.dtype) + 0.05 * x


@pytest.mark.parametrize(
    "change, code",
    [
        (nan_row, "non-finite"),
        (constant, "constant"),
        (duplicated, "duplicates"),
        (zero_rows, "zero-rows"),
        (outlier, "outlying-rows"),
        (constant_column, "constant-columns"),
        (rogue, "rogue-dimension"),
        (offset, "common-mean"),
        (line, "low-rank"),
    ],
)
def test_each_finding_appears_and_is_not_there_in_healthy_data(change, code):
    assert codes(healthy()) == set()
    assert code in codes(change(healthy()))


def test_wide_layers_are_told():
    assert codes(healthy(40, 200)) == {"n-below-d", "full-rank"}


def test_values_near_the_limits_of_the_stored_dtype():
    x = healthy().float()
    assert "near-overflow" in codes((x * 15000).half())
    assert "subnormal" in codes((x * 1e-5).half())
    assert "subnormal" in codes((x * 1e-5).half().float(), stored_dtype="float16")
    assert codes(x.bfloat16()) == set()


def test_numbers_in_the_messages_are_those_of_the_data():
    by_code = {f.code: f for f in examine(duplicated(zero_rows(healthy())), model="m", layer="l")}
    assert by_code["duplicates"].message.startswith("20 of 300 rows are exact copies of others (290 distinct")
    assert by_code["zero-rows"].message.startswith("2 of 300 rows are all zero")  # row 3 and its copy
    (found,) = examine(nan_row(healthy()), model="m", layer="l")
    assert "1 of 300 rows hold NaN" in found.message and "row 7" in found.message and found.severity == "serious"
    cosine = next(f for f in examine(offset(healthy()), model="m", layer="l") if f.code == "common-mean")
    unit = torch.nn.functional.normalize(offset(healthy()), dim=1)
    expected = float((unit @ unit.T).fill_diagonal_(0).sum()) / (300 * 299)
    assert f"{expected:.3f}" in cosine.message


def test_scale_does_not_matter():
    assert codes(healthy() * 1e160) == set() == codes(healthy() * 1e-160)
    assert "outlying-rows" in codes(outlier(healthy()) * 1e-160)


def test_summary_has_one_sentence_per_model_and_kind_gravest_first():
    findings = [Finding("a", f"block.{i}", "n-below-d", "note", f"n = 4 for d = {i}") for i in range(3)]
    findings += [Finding("b", "block.1", "constant", "serious", "all rows are the same")]
    said = summarise(findings)
    assert said[0] == "b, block.1: all rows are the same"
    assert said[1].startswith("a, 3 layers (block.0 to block.2), for instance block.0: n = 4 for d = 0")
    assert len(said) == 2 and {f.severity for f in findings} <= set(SEVERITIES)


@pytest.mark.parametrize("norms, told", [
    ((3.0, 3.0, 0.3), {"sink"}), ((3.0, 3.0, 0.1), set()), ((1.0, 3.0, 0.3), {"ruling-token"}), ((1.0, 1.9, 0.3), set()),
])  # fmt: skip
def test_a_token_rules_the_mean_only_if_it_is_long_and_has_a_share(norms, told):
    named = dict(zip(("first", "longest", "share"), norms, strict=True))
    facts = {"first_token": "counts", "causal": True, "token_norms": {"l": named}}
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    found = {f.code for f in examine(x, model="m", layer="l", facts=facts)}
    assert found & {"sink", "sink-alone", "ruling-token"} == told
