"""Vision models against a plain forward pass: one image at a time, blocks read by hooks set here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny_models as tiny
from repalign.errors import RepalignError
from repalign.sources import ModelEntry, extract

HF = {
    "vit": (tiny.vit, "layers", 1),
    "dinov2": (tiny.dinov2, "encoder.layer", 1),
    "registers": (lambda folder: tiny.dinov2(folder, registers=3), "encoder.layer", 4),
    "clip": (tiny.clip, "vision_model.encoder.layers", 1),
    "clip_vision": (tiny.clip_vision, "encoder.layers", 1),
    "resnet": (tiny.resnet, "encoder.stages", None),
}
TIMM = {"timm_vit": (tiny.timm_vit, "blocks"), "timm_cnn": (tiny.timm_cnn, None)}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: factory(root / name) for name, (factory, *_) in {**HF, **TIMM}.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


def run(spec: str, data, store: Path, **options):
    if "clip" in spec and "clip_vision" not in spec:
        options["modality"] = "image"
    return extract(data, [ModelEntry(spec, **options)], store, batch_size=4)[0]


def hooked(model, modules: list[str], inputs: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of modules in one forward pass of one image, without the batch dimension."""
    seen: dict[str, torch.Tensor] = {}
    handles = []
    for name in modules:

        def keep(_module, _args, out, name=name):
            seen[name] = (out if isinstance(out, torch.Tensor) else out[0])[0].clone()

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return [seen[name] for name in modules]


@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize("name", list(HF))
def test_transformers_blocks(name, pooling, folders, data, tmp_path):
    """11 images in batches of 4; the class token by default, patches alone in the mean, maps over positions."""
    from transformers import AutoImageProcessor, AutoModel

    _, path, prefix = HF[name]
    got = run(f"hf:{folders[name]}", data, tmp_path, pooling=pooling)
    model = AutoModel.from_pretrained(folders[name]).eval()
    processor = AutoImageProcessor.from_pretrained(folders[name])
    side = model.vision_model if name == "clip" else model
    path = path.removeprefix("vision_model.")
    rows = []
    for image in tiny.images():
        states = hooked(
            side, [f"{path}.{i}" for i in range(3)], processor(images=image, return_tensors="pt")["pixel_values"]
        )
        if prefix is None:
            rows.append([x.mean(dim=(1, 2)) for x in states])
        else:
            rows.append([x[0] if pooling is None else x[prefix:].mean(0) for x in states])
    word = "stage" if prefix is None else "block"
    assert got.layers == tuple(f"{word}.{i}" for i in range(3))
    for k, layer in enumerate(got.layers):
        torch.testing.assert_close(got.load(layer), torch.stack([r[k] for r in rows]), rtol=1e-4, atol=1e-5)
        assert got.facts["layers"][layer].startswith(f"output of {path}.{k} (")
    assert len({tuple(r[-1].tolist()) for r in rows}) == len(rows)
    assert got.record.modality == "image"
    assert got.record.n_parameters == sum(p.numel() for p in side.parameters())


def test_the_final_norm_is_not_in_the_last_block(folders, data, tmp_path):
    """What the model returns as its last hidden state is behind the norm; a block's output is not."""
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folders["vit"]).eval()
    processor = AutoImageProcessor.from_pretrained(folders["vit"])
    got = run(f"hf:{folders['vit']}", data, tmp_path).load("block.2")[0]
    with torch.no_grad():
        normed = model(**processor(images=tiny.images()[0], return_tensors="pt")).last_hidden_state[0, 0]
        torch.testing.assert_close(model.layernorm(got), normed, rtol=1e-4, atol=1e-5)
    assert (got - normed).abs().max() > 0.1


def test_preprocessing_is_recorded(folders, data, tmp_path):
    facts = run(f"hf:{folders['vit']}", data, tmp_path).facts
    assert facts["preprocessing"]["image_mean"] == [0.4, 0.5, 0.6]
    assert dict(facts["preprocessing"]["size"]) == {"height": 32, "width": 32}
    facts = run(f"timm:{folders['timm_vit']}", data, tmp_path).facts
    assert facts["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert facts["preprocessing"]["input_size"] == [3, 32, 32]
    assert facts["versions"]["timm"]


@pytest.mark.parametrize("pooling", [None, "mean"])
def test_timm_vit_blocks(pooling, folders, data, tmp_path):
    import timm

    got = run(f"timm:{folders['timm_vit']}", data, tmp_path, pooling=pooling)
    model = timm.create_model(f"local-dir:{folders['timm_vit']}", pretrained=True).eval()
    rows = _timm_rows(model, [f"blocks.{i}" for i in range(3)], lambda x: x[0] if pooling is None else x[1:].mean(0))
    assert got.layers == ("block.0", "block.1", "block.2")
    assert got.facts["last_layer"] == "output of blocks.2 (Block)"
    for k, layer in enumerate(got.layers):
        torch.testing.assert_close(got.load(layer), torch.stack([r[k] for r in rows]), rtol=1e-4, atol=1e-5)


def test_timm_cnn_stages(folders, data, tmp_path):
    import timm

    got = run(f"timm:{folders['timm_cnn']}", data, tmp_path)
    model = timm.create_model(f"local-dir:{folders['timm_cnn']}", pretrained=True).eval()
    rows = _timm_rows(model, ["act1", "layer1", "layer2", "layer3", "layer4"], lambda x: x.mean(dim=(1, 2)))
    assert got.layers == tuple(f"stage.{i}" for i in range(5))
    assert got.widths == (64, 8, 12, 16, 20)
    assert got.facts["pooling"] == "spatial_mean"
    for k, layer in enumerate(got.layers):
        torch.testing.assert_close(got.load(layer), torch.stack([r[k] for r in rows]), rtol=1e-4, atol=1e-5)


def test_timm_modules_by_path(folders, data, tmp_path):
    import timm

    names = ["layer2.0", "global_pool"]
    got = run(f"timm:{folders['timm_cnn']}", data, tmp_path, layers=names)
    model = timm.create_model(f"local-dir:{folders['timm_cnn']}", pretrained=True).eval()
    rows = _timm_rows(model, names, lambda x: x if x.ndim == 1 else x.mean(dim=(1, 2)))
    assert got.layers == tuple(names)
    for k, layer in enumerate(names):
        torch.testing.assert_close(got.load(layer), torch.stack([r[k] for r in rows]), rtol=1e-4, atol=1e-5)


def _timm_rows(model, modules, pool):
    from timm.data import create_transform, resolve_model_data_config

    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return [[pool(x) for x in hooked(model, modules, transform(image)[None])] for image in tiny.images()]


def test_timm_maps_with_channels_last(data, tmp_path):
    """Modules of Swin give (b, h, w, d): the mean is over positions all the same."""
    import timm

    folder = tiny.timm_folder(
        tmp_path / "swin",
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        embed_dim=8,
        depths=(1, 1),
        num_heads=(2, 2),
    )
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    rows = _timm_rows(model, ["layers.0", "layers.1"], lambda x: x.mean(dim=(0, 1)))
    for layers, names in ((None, ("stage.0", "stage.1")), (["layers.0", "layers.1"], ("layers.0", "layers.1"))):
        got = run(f"timm:{folder}", data, tmp_path / "store", layers=layers)
        assert got.layers == names
        for k, layer in enumerate(names):
            torch.testing.assert_close(got.load(layer), torch.stack([r[k] for r in rows]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf:vit", {"pooling": "last"}, r"pooling 'last' does not apply\n  expected: cls, mean"),
        ("hf:resnet", {"pooling": "cls"}, r"pooling 'cls' does not apply\n  expected: spatial_mean, mean"),
        ("hf:vit", {"layers": ["block.3"]}, r"no layer 'block\.3'\n.*from 'block\.0' to 'block\.2'"),
        ("timm:timm_cnn", {"pooling": "cls"}, "pooling 'cls' does not apply"),
        ("timm:timm_cnn", {"layers": ["layer2.7"]}, r"no layer 'layer2\.7'"),
        (
            "timm:timm_vit",
            {"layers": ["blocks.1"], "pooling": "spatial_mean"},
            r"tokens \(b, t, d\) needs another pooling",
        ),
    ],
)
def test_bad_options_are_told(name, options, message, folders, data, tmp_path):
    scheme, _, model = name.partition(":")
    with pytest.raises(RepalignError, match=message):
        run(f"{scheme}:{folders[model]}", data, tmp_path, **options)


def test_a_model_of_two_sides_wants_a_modality(folders, data, tmp_path):
    with pytest.raises(RepalignError, match=r"reads images and text\n  expected: modality: image, or modality: text"):
        extract(data, [ModelEntry(f"hf:{folders['clip']}")], tmp_path)


def test_a_vision_model_without_a_processor_is_told(data, tmp_path):
    folder = tiny.vit(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(RepalignError, match=r"its image processor cannot be loaded\n  expected: preprocessor_config"):
        run(f"hf:{folder}", data, tmp_path / "store")


def test_unknown_timm_models_are_told(data, tmp_path):
    with pytest.raises(
        RepalignError, match=r"timm has no pretrained model 'resnet18\.a1_in1kk'(.|\n)*'resnet18\.a1_in1k'"
    ):
        extract(data, ["timm:resnet18.a1_in1kk"], tmp_path)
    with pytest.raises(RepalignError, match=r"no safetensors weights\n  expected: config\.json and model\.safetensors"):
        (tmp_path / "empty").mkdir()
        extract(data, [f"timm:{tmp_path / 'empty'}"], tmp_path / "store")


def test_timm_weights_need_the_hub_or_its_cache(data, tmp_path):
    with pytest.raises(RepalignError, match=r"timm/resnet18\.a1_in1k: the hub cannot be reached"):
        extract(data, ["timm:resnet18.a1_in1k"], tmp_path)


def test_a_text_model_does_not_read_images(folders, data, tmp_path):
    with pytest.raises(RepalignError, match=r"cannot read column 'text'(.|\n)*add `modality: image`"):
        run(f"hf:{folders['vit']}", data, tmp_path, modality="text")


def test_openclip_says_how_to_install_it(data, tmp_path):
    try:
        import open_clip  # noqa: F401
    except ImportError:
        with pytest.raises(RepalignError, match=r"open_clip is not installed(.|\n)*do: python -m pip install"):
            extract(data, [ModelEntry("openclip:ViT-B-32/openai", modality="image")], tmp_path)
    else:
        with pytest.raises(RepalignError, match=r"OpenCLIP knows no 'ViT-B-33'(.|\n)*ViT-B-32"):
            extract(data, [ModelEntry("openclip:ViT-B-33/openai", modality="image")], tmp_path)
