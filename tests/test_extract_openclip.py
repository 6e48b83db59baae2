"""OpenCLIP models against its own encoders and plain hooks; with random weights, since there is no network."""

from __future__ import annotations

import json

import pytest
import torch

import tiny_models as tiny
from repalign.errors import RepalignError
from repalign.sources import ModelEntry, extract

open_clip = pytest.importorskip("open_clip", reason="the extra repalign[openclip] is not installed")
pytestmark = pytest.mark.integrations

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {
    "tiny-vit": {"image_size": 32, "layers": 3, "width": 24, "patch_size": 8, "head_width": 8},
    "registers": {"image_size": 256, "timm_model_name": "vit_wee_patch16_reg1_gap_256", "timm_pool": "avg"},
    "tiny-resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    """Architectures of our own, whose pretrained weights are random numbers of one seed."""
    for name, vision in VISION.items():
        config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    original = open_clip.create_model_and_transforms

    def create(architecture, pretrained=None):
        torch.manual_seed(0)
        return original(architecture, pretrained=None)

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _architecture: ["random"])
    return create


@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize(
    ("architecture", "path", "names"),
    [
        ("tiny-vit", "visual.transformer.resblocks.1", ("block.0", "block.1", "block.2", "embedding")),
        ("tiny-resnet", "visual.layer1", ("stage.0", "stage.1", "stage.2", "stage.3", "stage.4", "embedding")),
    ],
)
def test_images(architecture, path, names, pooling, data, models, tmp_path):
    entry = ModelEntry(f"openclip:{architecture}/random", modality="image", pooling=pooling)
    got = extract(data, [entry], tmp_path / "s", batch_size=4)[0]
    model, _, transform = models(architecture)
    model.eval()
    seen = []
    model.get_submodule(path).register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    with torch.no_grad():
        embeddings = torch.cat([model.encode_image(transform(i)[None]) for i in tiny.images()])
    if architecture == "tiny-resnet":
        want = torch.stack([x.mean(dim=(1, 2)) for x in seen])
    else:
        want = torch.stack([x[0] if pooling is None else x[1:].mean(0) for x in seen])
    assert got.layers == names
    torch.testing.assert_close(got.load(names[1]), want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.load("embedding"), embeddings, rtol=1e-4, atol=1e-6)
    assert path in got.facts["layers"][names[1]]


@pytest.mark.parametrize(("pooling", "sink"), [("mean", "skip"), ("mean", "keep"), ("last", "skip")])
def test_texts(pooling, sink, data, models, tmp_path):
    entry = ModelEntry("openclip:tiny-vit/random", modality="text", pooling=pooling, sink=sink)
    got = extract(data, [entry], tmp_path / "s", batch_size=4)[0]
    model, *_ = models("tiny-vit")
    model.eval()
    tokenizer = open_clip.get_tokenizer("tiny-vit")
    want, embeddings = [], []
    for caption in tiny.CAPTIONS:
        seen = []
        hook = model.transformer.resblocks[1].register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out[0]))
        tokens = tokenizer([caption])
        n = len(tokenizer.encode(caption)) + 2
        with torch.no_grad():
            embeddings.append(model.encode_text(tokens)[0])
        hook.remove()
        want.append(seen[0][sink == "skip" : n].mean(0) if pooling == "mean" else seen[0][n - 1])
    assert got.layers == ("block.0", "block.1", "embedding")
    torch.testing.assert_close(got.load("block.1"), torch.stack(want), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.load("embedding"), torch.stack(embeddings), rtol=1e-4, atol=1e-6)
    told = {("mean", "skip"): "left out", ("mean", "keep"): "counts"}.get((pooling, sink))
    assert got.facts["causal"] and got.facts.get("first_token") == told
    assert ("token_norms" in got.facts) == (pooling == "mean")


def test_long_texts_are_refused_and_sides_have_to_be_named(tmp_path):
    from repalign.dataset import Dataset

    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "a", "text": "word " * 90}))
    data = Dataset.from_table(tmp_path / "t.jsonl", id="id", text="text")
    entry = ModelEntry("openclip:tiny-vit/random", modality="text")
    with pytest.raises(
        RepalignError, match=r"row 0 \(id 'a'\) is longer than the model's context\n.*77 tokens\n  got: 92"
    ):
        extract(data, [entry], tmp_path / "s")
    with pytest.raises(RepalignError, match=r"openclip models do not say which modality they read"):
        extract(data, [ModelEntry("openclip:tiny-vit/random")], tmp_path / "s")
