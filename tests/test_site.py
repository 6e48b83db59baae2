"""The site is built with warnings as errors, shows every page, and asks no other server for anything."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.integrations


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="the site needs the extra `integrations`")
    pytest.importorskip("myst_nb", reason="the site needs the extra `integrations`")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-E", "-b", "html", str(ROOT / "docs"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def test_every_page_is_reached_from_the_front(site):
    pages = {p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts}
    pages -= {"genindex.html", "search.html", "py-modindex.html"}
    reached, waiting = set(), ["index.html"]
    while waiting:
        page = waiting.pop()
        if page not in reached and (site / page).is_file():
            reached.add(page)
            links = re.findall(r'href="([^"#:]+\.html)', (site / page).read_text("utf-8"))
            waiting += [((site / page).parent / link).resolve().relative_to(site.resolve()).as_posix() for link in links]
    assert pages <= reached


def test_the_gallery_shows_every_figure(site):
    """A line that ends in a semicolon shows nothing in a notebook."""
    for section in re.split(r"<h2>", (site / "gallery.html").read_text("utf-8"))[1:]:
        assert section.count("<img") >= max(1, section.count("cell_input docutils")), section[:60]


def test_nothing_is_asked_of_other_servers(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//[^"]+', text), page
        assert not re.findall(r'<link[^>]+rel="(?:stylesheet|preload)"[^>]+href="(?:https?:)?//[^"]+', text), page


def test_docstrings_are_read_as_text(site):
    """A directive that is not read shows its own source, and Sphinx says nothing of it."""
    for page in (site / "python").glob("*.html"):
        text = page.read_text("utf-8")
        assert ".. py:" not in text and "class=\"problematic\"" not in text and text.count('class="sig ') > 3, page


def test_the_studies_fit_the_schema_that_the_site_gives():
    jsonschema = pytest.importorskip("jsonschema", reason="needs the extra `integrations`")
    import yaml

    from repalign.study import schema

    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(schema())))
    for path in (ROOT / "studies").glob("*.yaml"):
        study = {"null" if name is None else name: value for name, value in yaml.safe_load(path.read_text("utf-8")).items()}
        if "experiment" not in study:
            assert not [e.message for e in validator.iter_errors(study)], path
    assert list(validator.iter_errors({"name": "x", "mesures": []}))
