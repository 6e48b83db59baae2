"""A study whose measures are a family: one file, one command, one table."""

from __future__ import annotations

import json

import numpy as np

from repalign.study import load_study


def test_a_family_in_a_study_file(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x @ rng.standard_normal((6, 9)).astype(np.float32))
    (tmp_path / "pairs.csv").write_text("id,text\n" + "".join(f"{i},word {i}\n" for i in range(40)))
    (tmp_path / "study.yaml").write_text(
        "name: family\ndataset: {table: pairs.csv, id: id, text: text}\n"
        "models:\n  x: [{spec: 'array:x.npy', modality: text, ids: rows}]\n"
        "  y: [{spec: 'array:y.npy', modality: text, ids: rows}]\n"
        "measures: [shared_space, neighbors]\nlimit: 20\n"
    )
    study = load_study(tmp_path / "study.yaml")
    told = study.plan().lines
    assert any("measures: permutations null" in line for line in told)  # too many to name each
    found = study.run().alignment
    assert any(m.startswith("MutualKNN") for m in found.measures)
    left_out = {e["measure"].split("(")[0]: e["reason"] for e in found.run["left_out"]}
    assert "widths 6 and 9" in left_out["PairedCosine"]
    assert json.loads((study.results / "run.json").read_text())["left_out"] == found.run["left_out"]
