"""The spec grammar, slugs, the table of known models, competences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from repalign.errors import RepalignError
from repalign.models import (
    COMPETENCES,
    ModelRecord,
    competence,
    find_model,
    known_models,
    model_set,
    published_model,
    year_of,
)
from repalign.sources import SOURCES, Spec, parse_spec

GOOD = {
    "hf:bigscience/bloomz-560m": Spec("hf", "bigscience/bloomz-560m"),
    "hf:gpt2": Spec("hf", "gpt2"),
    "hf:org/name@refs/pr/1": Spec("hf", "org/name", "refs/pr/1"),
    "hf:./models/a@b": Spec("hf", "./models/a@b"),
    "hf:/data/model": Spec("hf", "/data/model"),
    "hf:~/model": Spec("hf", "~/model"),
    "st:sentence-transformers/all-MiniLM-L6-v2@main": Spec(
        "st", "sentence-transformers/all-MiniLM-L6-v2", "main"
    ),
    "timm:vit_base_patch14_dinov2.lvd142m": Spec("timm", "vit_base_patch14_dinov2.lvd142m"),
    "openclip:ViT-B-32/laion2b_s34b_b79k": Spec("openclip", "ViT-B-32/laion2b_s34b_b79k"),
    "torch:package.module:factory": Spec("torch", "package.module:factory"),
    "torch:../a b/file.py:Net.build": Spec("torch", "../a b/file.py:Net.build"),
    "array:some folder/x:y.safetensors": Spec("array", "some folder/x:y.safetensors"),
    "toy:cnn-8": Spec("toy", "cnn-8"),
    "memory:ResNet": Spec("memory", "ResNet"),
}


@pytest.mark.parametrize("text", GOOD)
def test_a_spec_is_parsed_and_written_back(text: str) -> None:
    assert parse_spec(text) == GOOD[text]
    assert str(parse_spec(text)) == text


def test_every_scheme_and_every_example_is_parsed() -> None:
    assert {parse_spec(t).scheme for t in GOOD} == set(SOURCES)
    for name, source in SOURCES.items():
        assert parse_spec(source.example).scheme == name


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("gpt2", "starts with no known scheme", "write 'hf:gpt2'"),
        ("bloomz-560m", "got: no scheme", "write 'hf:bigscience/bloomz-560m'"),
        ("hff:a/b", "got: scheme 'hff'", "did you mean 'hf'?"),
        ("tim:vit", "expected: scheme:path with one of the schemes hf, timm, st", "did you mean 'timm'"),
        ("HF:a/b", "starts with no known scheme", "did you mean 'hf'?"),
        ("", "model spec ''", "write 'hf:'"),
        ("hf:", "not of the form hf:org/name[@revision], or hf:./folder", "name the model"),
        ("st:", "nothing after the colon", "name the model"),
        ("hf:a/b/c", "the name 'a/b/c'", "a local folder starts with ./"),
        ("hf:a b", "the name 'a b'", "a local folder starts with ./"),
        ("hf:a/b@", "the revision ''", "leave out the @"),
        ("hf:a/b@x y", "the revision 'x y'", "leave out the @"),
        ("timm:", "nothing after the colon", "name the model"),
        ("timm:org/name", "the name 'org/name'", "no revision"),
        ("timm:name@main", "the name 'name@main'", "no revision"),
        ("toy:a b", "not of the form toy:name", "letters, digits"),
        ("openclip:ViT-B-32", "0 slashes", "one slash between architecture and weights"),
        ("openclip:a/b/c", "2 slashes", "one slash between architecture and weights"),
        ("openclip:a/", "'a/'", "name the architecture and the weights"),
        ("torch:package.module", "no factory in 'package.module'", "the function that builds the model last"),
        ("torch:file.py:", "no factory", "the function that builds the model last"),
        ("torch:my-module:build", "the module 'my-module'", "a file that ends in .py"),
        ("array:", "not of the form array:path", "name the model"),
    ],
)
def test_a_malformed_spec_says_the_form_and_what_to_do(text: str, problem: str, remedy: str) -> None:
    with pytest.raises(RepalignError) as caught:
        parse_spec(text)
    message = str(caught.value)
    assert problem in message
    assert remedy in message.split("  do: ")[1]
    assert repr(text) in message


def test_relative_local_paths_start_from_the_base() -> None:
    base = Path("/study")
    assert str(parse_spec("hf:../models/m").resolve(base)) == "hf:/models/m"
    assert str(parse_spec("st:./m").resolve(base)) == "st:/study/m"
    assert str(parse_spec("array:x.npy").resolve(base)) == "array:/study/x.npy"
    assert str(parse_spec("torch:nets/f.py:build").resolve(base)) == "torch:/study/nets/f.py:build"
    for unmoved in ("hf:/abs/m", "hf:org/name@v1", "torch:a.b:c", "timm:x", "toy:x"):
        assert str(parse_spec(unmoved).resolve(base)) == unmoved
    assert parse_spec("hf:./m").resolve(Path()).path == str(Path.cwd() / "m")
    assert parse_spec("hf:~/m").resolve(base).path == str(Path.home() / "m")


def test_slugs_are_file_safe_and_unique() -> None:
    texts = [
        *GOOD,
        "hf:a/b-c",
        "hf:a-b/c",
        "hf:a-b-c",
        "hf:A/b-c",
        "st:a/b-c",
        "hf:a/b@c",
        "hf:./x/m",
        "hf:./y/m",
        "array:/data/" + "long" * 60 + ".npy",
        "array:../..",
    ]
    slugs = [parse_spec(t).slug for t in texts]
    assert len({s.lower() for s in slugs}) == len(texts)  # some file systems ignore case
    for s in slugs:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{8,89}", s), s
    assert parse_spec("hf:bigscience/bloomz-560m").slug.startswith("hf-bigscience-bloomz-560m-")


def test_a_slug_stays_the_same() -> None:
    # stores on disk are found by it: sha256(b"hf:gpt2") starts with 30dd19e0
    assert parse_spec("hf:gpt2").slug == "hf-gpt2-30dd19e0"


def test_known_models_are_those_of_the_paper() -> None:
    known = known_models()
    assert len(known) == 37
    assert len(model_set("prh-val")) == 29
    assert len(model_set("prh-val", "text")) == 12
    assert len(model_set("prh-val", "image")) == 17
    assert len(model_set("prh-test", "text")) == len(model_set("prh-test")) == 8
    assert len({k.name for k in known}) == len({k.spec for k in known}) == 37
    assert {k.name for k in known if k.gated} == {"gemma-2b", "gemma-7b"}
    for k in known:
        assert parse_spec(k.spec).path.endswith(k.name)
        assert (k.modality, parse_spec(k.spec).scheme) in {("text", "hf"), ("image", "timm")}
        assert k.family and k.objective
    assert find_model("llama-30b").nominal_parameters == 33_000_000_000  # 30b is its name, 33B its size
    assert find_model("Mixtral-8x7B-v0.1").nominal_parameters == 46_700_000_000  # all eight experts


def test_dates_of_release_are_months_of_the_years_of_these_models_and_part_of_their_records() -> None:
    dates = {k.name: k.released for k in known_models()}
    assert all(d is None or 2021 < year_of(d) < 2024.5 for d in dates.values())
    assert [name for name, d in dates.items() if d is None] == ["vit_base_patch16_clip_224.laion2b"]
    assert dates["llama-7b"] < dates["open_llama_7b"] < dates["Meta-Llama-3-8B"]  # texts sort as the dates do
    assert find_model("Meta-Llama-3-8B").record().factors == {"released": 2024.2917}
    assert find_model("vit_base_patch16_clip_224.laion2b").record().factors == {}


@pytest.mark.parametrize("wrong", ["2022", "2022-13", "22-10", "2022-10-05", "autumn"])
def test_a_date_that_is_no_month_is_refused(wrong: str) -> None:
    with pytest.raises(RepalignError, match="no month"):
        year_of(wrong)


def test_labels_of_published_figures_name_one_model_each() -> None:
    labels = [re.sub(r"[\s_-]+", "", label.casefold()) for k in known_models() for label in k.published_as]
    assert all(k.published_as for k in known_models()) and len(set(labels)) == len(labels)
    found = {label: published_model(label) for label in ("bloom-0.56b", "Bloom0.56b", "dinov2_g", "DINOv2 G", "llama-33b")}
    assert [k.name for k in found.values() if k] == [
        *["bloomz-560m"] * 2, *["vit_giant_patch14_dinov2.lvd142m"] * 2, "llama-30b",
    ]  # fmt: skip
    assert published_model("hf:huggyllama/llama-7b") == find_model("llama-7b")
    assert published_model("bloom") is None


def test_timm_has_the_vision_models_with_weights() -> None:
    import timm

    names = {parse_spec(k.spec).path for k in model_set("prh-val", "image")}
    assert names <= set(timm.list_models(pretrained=True))


def test_a_known_model_is_found_by_name_and_by_spec() -> None:
    known = find_model("bloomz-560m")
    assert known == find_model("hf:bigscience/bloomz-560m")
    record = known.record()
    assert record == ModelRecord(
        spec="hf:bigscience/bloomz-560m",
        name="bloomz-560m",
        modality="text",
        family="BLOOMZ",
        objective="next word",
        factors={"released": 2022.875},
    )
    assert ModelRecord(**record.to_dict()) == record


def test_unknown_names_get_the_closest_known_ones() -> None:
    with pytest.raises(RepalignError, match=r"no known model is called 'bloomz-560'(?s:.*)'bloomz-560m'"):
        find_model("bloomz-560")
    with pytest.raises(RepalignError, match=r"did you mean (?s:.*)'hf:huggyllama/llama-7b'"):
        find_model("hf:huggyllama/lama-7b")
    with pytest.raises(RepalignError, match=r"no model set 'prh-vall'(?s:.*)did you mean 'prh-val'"):
        model_set("prh-vall")
    with pytest.raises(RepalignError, match=r"no competence is called 'perplexty'(?s:.*)mean 'perplexity'"):
        competence("perplexty")


def test_competences_say_which_end_is_better() -> None:
    lower = {name for name, c in COMPETENCES.items() if c.lower_is_better}
    assert lower == {"bits_per_byte", "bits_per_char", "bits_per_word", "bits_per_token", "nats_per_token", "perplexity"}
    assert {"imagenet_top1", "probe_accuracy", "n_parameters"} <= set(COMPETENCES) - lower
    assert competence("bits_per_byte").unit == "bit/byte"
    assert all(name == c.name and c.label for name, c in COMPETENCES.items())
