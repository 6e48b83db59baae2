"""The recipes beside the studies, on tiny models."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path

import pytest

import tiny_models

ROOT = Path(__file__).parents[1]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@pytest.fixture
def chat(tmp_path):
    """A tiny causal model with a chat template."""
    folder = tiny_models.llama(tmp_path / "chat")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return folder


@pytest.mark.slow
def test_shortened_captions_are_columns_and_a_stopped_run_goes_on(chat, tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "studies/recipes/shorten_captions.py"))["main"]
    dense = tmp_path / "dense.csv"
    dense.write_text('id,image,caption\na,a.jpg,"A dog, brown, runs."\nb,b.jpg,A man.\n')
    out = tmp_path / "data/dci.csv"
    main([str(dense), str(out), "--model", str(chat), "--words", "5", "10"])
    first = out.read_bytes()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "image", "caption_5", "caption_10"] and [r["id"] for r in rows] == ["a", "b"]
    kept = out.with_name("dci.csv.rows.jsonl")
    kept.write_text("\n".join([*kept.read_text().splitlines()[:2], '{"id": "b", "ima']))  # killed while it wrote the second row
    out.unlink()
    main([str(dense), str(out), "--model", str(chat), "--words", "5", "10"])
    assert out.read_bytes() == first
    with pytest.raises(SystemExit, match="is of another run"):
        main([str(dense), str(out), "--model", str(chat), "--words", "7"])
    (tmp_path / "bad.csv").write_text("id,caption\na,b\n")
    with pytest.raises(SystemExit, match="no column image"):
        main([str(tmp_path / "bad.csv"), str(tmp_path / "other.csv"), "--model", str(chat)])
