"""Everything that a mock run writes says that its numbers mean nothing: table, run file, store, pages, figures, tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from alignment_table import make_run, make_table
from repalign import figures
from repalign import text as words
from repalign.cli import app
from repalign.comparison.alignment import MOCK_OF, Alignment, is_mock
from repalign.report import write_report
from repalign.store import FeatureStore
from repalign.study import load_study


def study_file(folder: Path) -> Path:
    """A study with a known model, an array of the user's own, and figures of results and of several variants."""
    path = folder / "s.yaml"
    path.write_text(
        "name: s\ndataset: {toy: {n: 128}}\n"
        "models: {x: [bloomz-560m, open_llama_3b], y: ['timm:vit_tiny_patch16_224', {spec: 'array:mine.npy', modality: image}]}\n"
        "variants: {plain: {}, unit: {preprocess: {normalize_rows: true}}}\n"
        "measures: ['MutualKNN(k=10)']\nfigures: [{matrix: {}}, {'null': {}}, {contrast: {}}]\n"
    )
    return path


def stamps(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


@pytest.fixture(scope="module")
def mocked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mock")
    outcome = load_study(study_file(folder)).mock().run()
    return folder / "runs" / "s-mock", outcome


def test_the_table_the_run_file_and_the_store_say_it(mocked):
    folder, outcome = mocked
    for name, alignment in outcome.alignments.items():
        assert alignment.table["dataset"].unique().tolist() == [f"{MOCK_OF}toy"]
        held = folder / "results" / name
        assert json.loads((held / "run.json").read_text("utf-8"))["mock"] is True
        assert is_mock(pd.read_parquet(held / "results.parquet"))
    assert is_mock(pd.read_parquet(folder / "results" / "variants.parquet"))
    stores = [p.parent for p in folder.parent.rglob("repalign-store.json")]
    assert stores and all(r.dataset_name.startswith(MOCK_OF) for s in stores for r in FeatureStore(s).representations())


def test_every_page_says_it_before_anything_else(mocked):
    folder, _ = mocked
    pages = sorted(folder.rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text("utf-8")
        body = text.split("<body")[1]
        assert body.startswith(' class="is-mock"') and words.MOCK in body.split("<section")[0]
        assert "<title>MOCK: " in text


def test_every_figure_and_its_table_say_it(mocked):
    folder, outcome = mocked
    pictures = sorted((folder / "figures").glob("*.svg"))
    assert len(pictures) == len(outcome.drawn) == 3
    for picture in pictures:
        assert picture.read_text("utf-8").count(words.MOCK_STAMP) == 1
        assert pd.read_csv(picture.with_suffix(".csv"))["mock"].all()


def test_figures_and_reports_made_later_say_it(mocked, tmp_path):
    folder, _ = mocked
    alignment = Alignment.load(folder / "results" / "plain")
    write_report(folder / "results" / "plain", tmp_path / "again.html", static=tmp_path / "figures")
    assert words.MOCK in (tmp_path / "again.html").read_text("utf-8")
    drawn = sorted((tmp_path / "figures").glob("*.svg"))
    assert len(drawn) > 4 and all(words.MOCK_STAMP in p.read_text("utf-8") for p in drawn)
    assert words.MOCK in alignment._repr_html_() and words.MOCK_STAMP in stamps(figures.matrix(alignment).figure)
    assert words.MOCK_STAMP in stamps(figures.null(alignment.table).figure)  # a bare table says it too


def test_the_command_line_ends_with_it(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(
        "name: t\ndataset: {toy: {n: 128}}\nmodels: ['toy:language-bag', 'toy:vision-pixels']\nmeasures: ['CKA()']\n"
    )
    run = CliRunner().invoke(app, ["run", "t.yaml", "--mock"])
    assert run.exit_code == 0, run.output
    assert run.stdout.rstrip().endswith("Its numbers mean nothing.")


def test_a_real_run_is_not_marked(tmp_path):
    table, run = make_table(layers=(2, 2)), make_run()
    assert not is_mock(table)
    Alignment(table, run).save(tmp_path / "r")
    text = write_report(tmp_path / "r", tmp_path / "r.html").read_text("utf-8")
    assert words.MOCK not in text and 'class="is-mock"' not in text
    assert words.MOCK_STAMP not in stamps(figures.matrix(Alignment(table, run)).figure)
