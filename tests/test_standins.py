"""Stand-ins: every scheme goes through the real extraction, options are mapped and told, folders are whole and equal."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from processes import started
from repalign import files
from repalign.dataset import Dataset
from repalign.dataset.texts import distinct, words_of, write_captions
from repalign.errors import RepalignError
from repalign.measures import CKA
from repalign.models import COMPETENCES, model_set
from repalign.sources import ModelEntry, extract
from repalign.sources import standins as folders
from repalign.sources.standins import DEPTHS, level_of, shape_of, stand_in, stand_in_scores, write_dataset
from repalign.toyworld import world

N = 24

# Spec, modality that it reads, and what stands in for it: scheme and class.
SCHEMES = {
    "llama": ("hf:huggyllama/llama-7b", "text", "hf", "LlamaForCausalLM"),
    "bloom": ("hf:bigscience/bloomz-560m", "text", "hf", "BloomForCausalLM"),
    "bert": ("hf:FacebookAI/roberta-large", "text", "hf", "BertModel"),
    "gpt2": ("hf:openai-community/gpt2@main", "text", "hf", "GPT2LMHeadModel"),
    "hf image": ("hf:facebook/dinov2-base", "image", "hf", "ViTModel"),
    "timm": ("timm:vit_large_patch14_dinov2.lvd142m", "image", "timm", "VisionTransformer"),
    "st": ("st:sentence-transformers/all-MiniLM-L6-v2", "text", "st", "Transformer > Pooling > Normalize"),
    "openclip image": ("openclip:ViT-B-32/laion2b_s34b_b79k", "image", "hf", "ViTModel"),
    "openclip text": ("openclip:ViT-B-32/laion2b_s34b_b79k", "text", "hf", "GPT2LMHeadModel"),
    "torch image": ("torch:./zoo.py:build", "image", "torch", "Tiny"),
    "torch text": ("torch:some.package:build", "text", "torch", "Tiny"),
    "array": ("array:./absent.npy", "image", "array", None),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    path = write_dataset(tmp_path_factory.mktemp("data"), {"image": "image", "text": "text"}, N, captions=2, unequal=True)
    return Dataset.from_table(path, id="id", image="image", text="text")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def entry(spec: str, modality: str, **options) -> ModelEntry:
    said = {"modality": modality} if spec.startswith(("openclip", "torch")) else {}
    return ModelEntry(spec, **{**said, **options})


def content(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEMES)
def test_a_stand_in_of_every_scheme_is_extracted(kind, data, models, tmp_path, capfd):
    spec, modality, scheme, architecture = SCHEMES[kind]
    found, _ = stand_in(entry(spec, modality), modality, models, ids=data.ids)
    assert found.spec.startswith(f"{scheme}:")
    (r,) = extract(data, [found], tmp_path / "store", device="cpu")
    assert r.ids == data.ids
    assert r.record.modality == modality
    assert r.facts.get("architecture") == architecture
    depth = shape_of(found.name, 0).depth
    more = {"hf": modality == "text", "st": 2, "array": 3 - depth}.get(scheme, 0)
    assert len(r.layers) == depth + more
    for layer in r.layers:
        x = r.load(layer)
        assert bool(torch.isfinite(x).all())
        assert float(x.std(0).min()) > 1e-3, "a feature is the same for all stimuli"
        assert len(torch.unique(x, dim=0)) >= N - 1, "all rows but the duplicate differ"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("kind", "adds"), [("llama", True), ("bloom", False), ("gpt2", False)])
def test_tokenizers_add_a_beginning_as_those_of_the_family_do(kind, adds, data, models, tmp_path):
    spec, modality, *_ = SCHEMES[kind]
    (r,) = extract(data, [stand_in(entry(spec, modality), modality, models)[0]], tmp_path / "store", device="cpu")
    assert ("without the beginning" in r.facts["tokens"]) == adds
    assert r.record.scores["bits_per_byte"] > 0


@pytest.mark.parametrize(
    ("name", "stands_in"),
    [
        ("vision-cnn8-supervised", "vision-cnn8-untrained"),
        ("vision-cnn32-supervised", "vision-cnn16-untrained"),
        ("vision-cnn8-supervised-seed1-step25", "vision-cnn8-untrained"),
        ("language-transformer48-masked", "language-transformer48-untrained"),
        ("language-conv14-next", "language-conv8-untrained"),
        ("language-svd12-20000", "language-svd12-200"),
        ("language-bag", "language-bag"),
        ("language-gru32-untrained", "language-gru32-untrained"),
    ],
)
def test_toy_models_are_not_trained(name, stands_in, models):
    found, notes = stand_in(ModelEntry(f"toy:{name}", layers=(-1,)), "text", models)
    assert (found.spec, found.name, found.layers, notes) == (f"toy:{stands_in}", name, (-1,), ())


def test_a_toy_stand_in_is_extracted_with_the_layers_of_the_trained_one(models, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found, _ = stand_in(ModelEntry("toy:language-transformer16-next", layers=("block1",)), "text", models)
    (r,) = extract(Dataset.toy(8), [found], tmp_path / "store", device="cpu")
    assert r.layers == ("block1",)
    assert r.name == "language-transformer16-next"


def test_stand_ins_see_the_scene(tmp_path):
    """Debiased CKA, which is 0 without alignment, between models of both modalities and what made the scenes."""
    path = write_dataset(tmp_path, {"image": "image", "text": "text"}, 96)
    data = Dataset.from_table(path, id="id", image="image", text="text")
    latent = world.content(96, 0)[0]
    seen = torch.tensor(np.hstack([np.cos(latent[:, :2]), np.sin(latent[:, :2]), latent[:, 2:]]))
    for spec, modality in (
        ("hf:huggyllama/llama-13b", "text"),
        ("st:mine", "text"),
        ("timm:vit_base_patch16_224.mae", "image"),
        ("array:a.npy", "image"),
    ):
        found, _ = stand_in(ModelEntry(spec), modality, tmp_path / "models", ids=data.ids)
        (r,) = extract(data, [found], tmp_path / "store", device="cpu")
        x = r.load(r.layers[-1]).double()
        assert CKA()(x, seen) > 3 * abs(CKA()(x, seen[torch.randperm(96, generator=torch.Generator().manual_seed(0))])), spec


def test_models_differ_by_name_and_known_ones_are_in_the_order_of_their_size():
    for modality in ("text", "image"):
        known = model_set("prh-val", modality)
        shapes = [shape_of(k.name, 0) for k in known]
        assert all(DEPTHS[0] <= s.depth <= DEPTHS[1] and s.width % 8 == 0 for s in shapes)
        assert spearmanr([k.parameters for k in known], [s.n_parameters for s in shapes]).statistic > 0.98
        assert len({s.seed for s in shapes}) == len(known)
    own = [shape_of(f"mine-{i}", 0) for i in range(40)]
    assert {s.depth for s in own} == set(range(DEPTHS[0], DEPTHS[1] + 1))
    assert len({(s.depth, s.width, s.inner) for s in own}) > 20
    assert shape_of("mine-0", 0) == own[0] != shape_of("mine-0", 1)
    assert level_of("hf:huggyllama/llama-65b") == level_of("llama-65b") == pytest.approx(0.926, abs=1e-3)


# --- options -------------------------------------------------------------------------------------

KEPT = {
    "name": "mine",
    "modality": "text",
    "caption": 1,
    "sink": "keep",
    "padding": "left",
    "truncate": True,
    "store_dtype": "float16",
    "ids": "rows",
    "prompt": "A picture of '{caption}', seen",
    "family": "F",
    "objective": "O",
    "n_parameters": 7,
    "scores": {"hellaswag": 0.3},
}


def test_every_field_that_is_not_of_the_model_stays(models, data, tmp_path):
    real = ModelEntry("hf:huggyllama/llama-7b", **KEPT)
    found, notes = stand_in(real, "text", models, ids=data.ids)
    changed = {f for f in vars(real) if getattr(real, f) != getattr(found, f)}
    assert (changed, notes) == ({"spec"}, ())
    (r,) = extract(data, [found], tmp_path / "store", device="cpu")
    assert (r.record.family, r.record.objective, r.record.n_parameters) == ("F", "O", 7)
    assert r.record.scores["hellaswag"] == 0.3
    assert r.load(r.layers[0]).dtype == torch.float16
    assert r.facts["captions_stand_in"] == KEPT["prompt"]
    assert r.facts["padding"].startswith("left")


def test_a_model_without_a_name_has_the_one_that_extraction_gives_it(data, models, tmp_path):
    """Array and torch models of files that are there: run by themselves, they are called what their stand-in is."""
    zoo = tmp_path / "zoo.py"
    zoo.write_text(
        "import torch\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(4, 2)), lambda s: torch.ones(4)"
    )
    np.save(tmp_path / "features.npy", np.random.default_rng(0).random((N, 3)))
    for spec, options in ((f"torch:{zoo}:build", {}), (f"array:{tmp_path / 'features.npy'}", {"ids": "rows"})):
        real = ModelEntry(spec, modality="text", **options)
        (r,) = extract(data, [real], tmp_path / "store", device="cpu")
        assert stand_in(real, "text", models, ids=data.ids)[0].name == r.name
    for spec, name in (("hf:org/name@main", "name"), ("timm:vit_base_patch16_224.mae", "vit_base_patch16_224.mae")):
        assert stand_in(ModelEntry(spec), "image", models)[0].name == name
    assert stand_in(entry("openclip:ViT-B-32/openai", "text"), "text", models)[0].name == "ViT-B-32-text"


@pytest.mark.parametrize(
    ("asked", "kept", "told"),
    [
        (None, None, []),
        ((0, -1), (0, -1), []),
        (("block.1", "embeddings"), ("block.1", "embeddings"), []),
        ((31, -33), (4, -5), ["layer 31 is 4", "layer -33 is -5"]),
        (("block.30", "block.31"), ("block.3",), ["layer 'block.30' is 'block.3'", "layer 'block.31' is 'block.3'"]),
        ((0, "model.layers.3.mlp"), (0,), ["layer 'model.layers.3.mlp' is left out"]),
        (("lm_head",), None, ["layer 'lm_head' is left out", "all layers of the stand-in are taken"]),
    ],
)
def test_layers_that_the_stand_in_lacks(asked, kept, told, models, data, tmp_path):
    found, notes = stand_in(ModelEntry("hf:huggyllama/llama-7b", layers=asked), "text", models)
    assert found.layers == kept
    assert len(notes) == len(told)
    assert all(note.startswith(start) for note, start in zip(notes, told, strict=True))
    (r,) = extract(data, [found], tmp_path / "store", device="cpu")
    assert len(r.layers) == (len(kept) if kept else 5)


@pytest.mark.parametrize(
    ("spec", "options", "pooling", "layers"),
    [
        ("hf:microsoft/resnet-50", {"pooling": "spatial_mean", "layers": ("stage.3",)}, "mean", ("block.3",)),
        ("hf:facebook/dinov2-base", {"pooling": "cls"}, "cls", None),
        ("timm:resnet50.a1_in1k", {"pooling": "spatial_mean"}, "mean", None),
        ("timm:vit_base_patch16_224.mae", {"pooling": "last", "layers": ("blocks.3.mlp",)}, "mean", None),
        ("openclip:RN50/openai", {"pooling": "spatial_mean", "layers": ("embedding",)}, "mean", None),
        ("torch:./zoo.py:build", {"pooling": "cls", "layers": ("encoder.3",)}, "cls", None),
    ],
)
def test_poolings_and_layers_of_image_models(spec, options, pooling, layers, models, data, tmp_path):
    found, notes = stand_in(entry(spec, "image", name="one", **options), "image", models)
    assert (found.pooling, found.layers) == (pooling, layers)
    assert any("pooling" in note for note in notes) == (pooling != options["pooling"])
    assert any("left out" in note for note in notes) == ("layers" in options and layers is None)
    assert len(extract(data, [found], tmp_path / "store", device="cpu")) == 1


def test_a_pooling_that_the_real_model_has_not_is_refused_as_in_a_run(models, data, tmp_path):
    found, _ = stand_in(ModelEntry("hf:huggyllama/llama-7b", pooling="cls"), "text", models)
    with pytest.raises(RepalignError, match="llama-7b: pooling 'cls' does not apply"):
        extract(data, [found], tmp_path / "store", device="cpu")
    found, _ = stand_in(ModelEntry("hf:org/encoder-of-some-kind", pooling="cls"), "text", models)
    assert extract(data, [found], tmp_path / "store", device="cpu")[0].facts["pooling"] == "cls"


def test_a_local_folder_tells_its_family_and_one_that_is_not_there_is_told(models, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text('{"model_type": "llama"}')
    found, notes = stand_in(ModelEntry(f"hf:{tmp_path}/mine"), "text", models)
    assert json.loads(Path(found.spec[3:], "config.json").read_text())["model_type"] == "llama"
    assert notes == ()
    for spec in (f"hf:{tmp_path}/absent", f"st:{tmp_path}/absent", f"timm:{tmp_path}/absent", f"torch:{tmp_path}/no.py:build"):
        assert "there is no" in stand_in(ModelEntry(spec), "text", models)[1][0]


def test_mistakes_that_need_no_model_are_refused(models):
    for spec, modality, match in (
        ("timm:vit_base_patch16_224.mea", "image", "did you mean 'vit_base_patch16_224.mae'"),
        ("toy:vision-cnn8-supervized", "image", "did you mean 'vision-cnn8-supervised'"),
        ("hf:huggyllama/llama 7b", "text", "is not of the form"),
        ("openclip:ViT-B-32/openai", "text", "openclip models do not say which modality"),
        ("hf:org/name", "sound", "hf models read images or texts"),
    ):
        with pytest.raises(RepalignError, match=match):
            stand_in(ModelEntry(spec), modality, models)


# --- arrays --------------------------------------------------------------------------------------


def test_an_array_takes_layers_widths_and_facts_of_the_real_file(models, data, tmp_path):
    real = tmp_path / "features.pt"
    torch.save({"feats": torch.zeros(5, 4, 80), "num_params": 1234, "bpb": torch.tensor(0.7)}, real)
    found, notes = stand_in(ModelEntry(f"array:{real}", modality="text", layers=("layer.3",)), "text", models, ids=data.ids)
    assert notes == ()
    assert (found.n_parameters, found.scores) == (1234, {"bits_per_byte": pytest.approx(0.7)})
    (r,) = extract(data, [found], tmp_path / "store", device="cpu")
    assert r.layers == ("layer.3",)
    assert r.load("layer.3").shape == (N, 32)
    with pytest.raises(RepalignError, match="array models do not say which modality they read"):
        stand_in(ModelEntry(f"array:{real}"), "text", models, ids=data.ids)


def test_an_array_that_cannot_be_read_has_three_layers_and_says_so(models, data, tmp_path):
    found, notes = stand_in(ModelEntry(f"array:{tmp_path}/absent.npy"), "image", models, ids=data.ids)
    (r,) = extract(data, [found], tmp_path / "store", device="cpu")
    assert r.layers == ("layer.0", "layer.1", "layer.2")
    assert "there is no such file" in notes[0]
    assert notes[0].endswith("the stand-in has 3 layers")


def test_rows_of_an_array_belong_to_ids(models, data, tmp_path):
    real = ModelEntry("array:absent.npy", name="a")
    whole, some = (
        extract(d, [stand_in(real, "image", models, ids=data.ids)[0]], tmp_path / "store", device="cpu")[0]
        for d in (data, data.subset(data.ids[7:2:-1]))
    )
    assert torch.equal(whole.load("layer.0")[[7, 6, 5, 4, 3]], some.load("layer.0"))


# --- the dataset ---------------------------------------------------------------------------------


def test_awkward_rows_come_through(data):
    first = [captions[0] for captions in data.stimuli("text", range(N))]
    assert '"' in first[1] and "'" in first[1]
    assert "naïve-Ωmega-世界" in first[2]
    assert len(first[3].split()) == 2
    assert first[5] == first[0]
    assert len(set(first)) == N - 1
    grey, *coloured = (np.asarray(image) for image in data.stimuli("image", [4, 0, 1, 2, 3]))
    assert (grey == grey[:, :, :1]).all()
    assert all((x != x[:, :, :1]).any() for x in coloured)
    assert all(len(set(captions)) == len(captions) == 2 for captions in data.stimuli("text", range(N)))
    sizes = {image.size for image in data.stimuli("image", range(N))}
    assert len(sizes) > N // 2
    assert all(16 <= side <= 64 for size in sizes for side in size)


def test_columns_are_of_the_kinds_and_lengths_that_are_asked_for(tmp_path):
    columns = {"photo": "image", "caption_1": "text", "caption_5": "text", "caption_7": "text", "caption_20": "text",
               "caption_60": "text", "bild/2": "image"}  # fmt: skip
    path = write_dataset(tmp_path, columns, 12, id="key")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row["key"] for row in rows] == [f"mock-{i:05d}" for i in range(12)]
    assert all(list(row) == ["key", *columns] for row in rows)
    for column, words in (("caption_1", 1), ("caption_5", 5), ("caption_7", 7), ("caption_20", 20), ("caption_60", 60)):
        assert {len(row[column].split()) for row in rows} == {words}
    for row in rows:
        with Image.open(path.parent / row["photo"]) as a, Image.open(path.parent / row["bild/2"]) as b:
            assert a.size == b.size == (32, 32)
            assert np.asarray(a).tobytes() != np.asarray(b).tobytes(), "two pictures of one scene"
    assert {Path(row["photo"]).suffix for row in rows} == {".png", ".jpg"}
    data = Dataset.from_table(path, id="key", image="photo", text=["caption_5", "caption_20"])
    assert data.stimuli("text", [6]) == [(rows[6]["caption_5"], rows[6]["caption_20"])]


def test_all_of_a_row_show_the_scene_of_its_number(tmp_path):
    """The words of a caption are those of the scene, whatever the column and its length."""
    scenes = world.sample(6, 0)
    _, attributes = world.content(6, 0)
    for column, number in (("text", 0), ("caption_9", 0), ("text", 3)):
        for caption, scene in zip(write_captions(attributes, 0, column, number), scenes.captions, strict=True):
            said = {kind for kind, classes in _classes().items() if classes & set(caption.lower().rstrip(".").split())}
            there = {kind for kind, classes in _classes().items() if classes & set(scene.split())}
            assert {c for c in said if c[0] == "shape"} <= there
            assert number or any(c[0] == "shape" for c in said), "the first caption names a shape"


def _classes() -> dict[tuple[str, int], set[str]]:
    from repalign.toyworld.captions import WORDS

    return {(kind, i): set(pair) for kind, classes in WORDS.items() for i, pair in enumerate(classes)}


def test_captions_of_a_row_differ_even_where_they_say_the_same():
    assert distinct(["A cat.", "A cat.", "A dog.", "A cat."]) == ["A cat.", "Again, a cat.", "A dog.", "Again, again, a cat."]
    assert [words_of(c) for c in ("caption_5", "text", "caption_0", "x12_y3")] == [5, None, None, 12]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rows_are_enough(n, tmp_path):
    path = write_dataset(tmp_path, {"image": "image", "text": "text"}, n, captions=5)
    data = Dataset.from_table(path, id="id", image="image", text="text")
    assert data.n == n
    assert all(len(set(c)) == 5 for c in data.stimuli("text", range(n)))


def test_a_dataset_of_other_arguments_lies_beside(tmp_path):
    wanted = ((8, 1, 0), (9, 1, 0), (8, 2, 0), (8, 1, 1))
    made = [write_dataset(tmp_path, {"text": "text"}, n, captions=c, seed=s) for n, c, s in wanted]
    assert len(set(made)) == len({p.read_text() for p in made}) == 4
    assert write_dataset(tmp_path, {"text": "text"}, 8) == made[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"columns": {"x": "images"}}, "did you mean 'image'"),
        ({"columns": {"id": "text"}}, "the column of ids is one of the stimuli too"),
        ({"n": 0}, "n is out of range\n  expected: at least 1\n  got: 0"),
        ({"captions": 0}, "captions is out of range"),
        ({"seed": -1}, "seed is out of range"),
    ],
)
def test_arguments_out_of_range_are_refused(options, match, tmp_path):
    with pytest.raises(RepalignError, match=match):
        write_dataset(tmp_path, **{"columns": {"text": "text"}, "n": 4, **options})
    assert list(tmp_path.iterdir()) == []


# --- folders: whole, equal, used again -----------------------------------------------------------

_MAKE = """
import sys
from repalign.sources import ModelEntry
from repalign.sources.standins import stand_in, write_dataset
to = sys.argv[1]
write_dataset(f"{to}/data", {"image": "image", "text": "text"}, 8, captions=2, unequal=True)
for spec, modality in (%s):
    stand_in(ModelEntry(spec, modality=modality), modality, f"{to}/models", ids=["mock-00001", "mock-00004"])
"""


@pytest.mark.slow
def test_equal_calls_give_equal_bytes_in_every_process(tmp_path):
    """In two that made nothing before, with two orders of hashes."""
    specs = ", ".join(f"({spec!r}, {modality!r})" for spec, modality, *_ in SCHEMES.values())
    other = started(_MAKE % specs, str(tmp_path / "a"), said=tmp_path / "said")
    environment = {**os.environ, "PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _MAKE % specs, str(tmp_path / "b")], env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    other.join(300)
    assert other.exitcode == 0, (tmp_path / "said").read_text()
    found = [content(tmp_path / where) for where in "ab"]
    assert found[0] == found[1]
    assert len({name.split("/")[1] for name in found[0] if name.startswith("models")}) == len(SCHEMES)


def test_a_stand_in_that_is_there_is_not_made_again(data, models, monkeypatch):
    first = stand_in(ModelEntry("hf:org/again"), "text", models)
    monkeypatch.setattr("repalign.sources.standin_models._write_text", None)
    assert stand_in(ModelEntry("hf:org/again", caption=1, layers=(0,)), "text", models)[0].spec == first[0].spec
    with pytest.raises(TypeError):
        stand_in(ModelEntry("hf:org/again"), "text", models, seed=1)


def test_making_one_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for spec, modality, *_ in (*SCHEMES.values(), ("toy:language-conv8-next", "text")):
        stand_in(entry(spec, modality), modality, tmp_path, ids=("a", "b"))
    write_dataset(tmp_path, {"image": "image", "text": "text"}, 4)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


_KILLED = """
import sys, time
import repalign.sources.standins as d
from repalign.dataset.texts import Texts
def stop(*a):
    print("half way", flush=True)
    time.sleep(60)
Texts.made_up = stop
d.write_dataset(sys.argv[1], {"image": "image", "text": "text"}, 8)
"""


def test_a_killed_write_leaves_nothing_that_passes_for_whole(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (left,) = tmp_path.iterdir()
    assert ".tmp-" in left.name
    path = write_dataset(tmp_path, {"image": "image", "text": "text"}, 8)
    assert Dataset.from_table(path, id="id", image="image", text="text").n == 8
    assert left.is_dir(), "it may be another process' that is at work"
    old = time.time() - files.STALE_AFTER - 10
    os.utime(left, (old, old))
    path.parent.rename(tmp_path / "away")
    write_dataset(tmp_path, {"image": "image", "text": "text"}, 8)
    assert not left.exists()


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ValueError("on the way")

    with pytest.raises(ValueError, match="on the way"):
        folders.made_once(tmp_path, "name", {}, fail)
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_write_at_once_the_first_stays(tmp_path):
    def slow(folder: Path) -> None:
        (folder / "who").write_text("second")
        if not list(tmp_path.glob("name-*")):
            folders.made_once(tmp_path, "name", {}, lambda f: (f / "who").write_text("first"))

    made = folders.made_once(tmp_path, "name", {}, slow)
    assert (made / "who").read_text() == "first"
    assert list(tmp_path.iterdir()) == [made]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RepalignError, match="cannot be written: Not a directory"):
        write_dataset(tmp_path / "file", {"text": "text"}, 2)


# --- scores --------------------------------------------------------------------------------------


def test_scores_are_in_their_range_and_follow_size():
    models = [k.name for k in model_set("prh-val", "text")]
    scores = stand_in_scores([*COMPETENCES, "my_benchmark"], models)
    assert set(scores) == {*COMPETENCES, "my_benchmark"}
    size = [shape_of(name, 0).n_parameters for name in models]
    for name, values in scores.items():
        found = [values[m] for m in models]
        assert all(np.isfinite(found))
        if name not in ("vtab_solved",):
            assert len(set(found)) > len(models) // 2
        assert abs(spearmanr(size, found).statistic) > 0.8, name
        known = COMPETENCES.get(name)
        assert (spearmanr(size, found).statistic < 0) == bool(known and known.lower_is_better), name
        if known is None or known.unit == "share":
            assert all(0 <= v <= 1 for v in found)
        if known is not None and known.unit == "%":
            assert all(0 <= v <= 100 for v in found)
        assert min(found) >= 0
    assert all(v in range(20) for v in scores["vtab_solved"].values())
    assert scores == stand_in_scores([*COMPETENCES, "my_benchmark"], models)
    assert scores["hellaswag"] != stand_in_scores(["hellaswag"], models, seed=1)["hellaswag"]
