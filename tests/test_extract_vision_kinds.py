"""What is taken from vision models of every kind: the right modules, the class token and the patches, and no other.

Each row of the tables names the modules whose outputs are the layers, and says where their tokens stand. The values are
compared with a plain pass over one image at a time, in which hooks set here read those modules.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models as tiny
from repalign.errors import RepalignError, Unavailable
from repalign.sources import SOURCES, Context, LoadedModel, ModelEntry, parse_spec
from repalign.sources.image_tokens import images_shown
from repalign.sources.model import library_errors

hf, timm_ = SOURCES["hf"], SOURCES["timm"]
IMAGES = tiny.images(3)
# Where the tokens of a layer stand: how many before the patches, which is the class token, and how many behind; or
MAPS, CHANNELS_LAST, TOKENS_AS_MAPS = "(d, h, w)", "(h, w, d)", "modules give (t, d), of which the library makes maps"
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
VIT |= {"image_size": 32, "patch_size": 8}
NO_CLASS = {"class_token": False, "global_pool": "avg"}
STAGES = {"hidden_sizes": [8, 8, 12, 12], "depths": [1, 2, 1, 1]}
SWIN = {"image_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2]}


def each(path: str, n: int) -> list[str]:
    return [f"{path}.{i}" for i in range(n)]


# name of the class in transformers, configuration, modules of the layers, where their tokens stand
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], list[str], Any]] = {
    # a class token, registers, other tokens, or none
    "vit": ("ViTModel", VIT, each("layers", 2), (1, 0)),
    "deit": ("DeiTModel", VIT, each("layers", 2), (2, 0)),
    "beit": ("BeitModel", VIT, each("layers", 2), (1, 0)),
    "data2vec": ("Data2VecVisionModel", VIT, each("encoder.layer", 2), (1, 0)),
    "msn": ("ViTMSNModel", VIT, each("layers", 2), (1, 0)),
    "ijepa": ("IJepaModel", VIT, each("layers", 2), (0, None)),
    "dinov2": ("Dinov2Model", VIT | {"mlp_ratio": 2}, each("encoder.layer", 2), (1, 0)),
    "dinov3": ("DINOv3ViTModel", VIT | {"num_register_tokens": 3}, each("model.layer", 2), (4, 0)),
    "clip": ("CLIPVisionModel", VIT, each("encoder.layers", 2), (1, 0)),
    "siglip": ("SiglipVisionModel", VIT, each("encoder.layers", 2), (0, None)),
    "aimv2 with its head": ("Aimv2VisionModel", VIT | {"use_head": True}, each("encoder.layers", 2), (0, None)),
    "aimv2 without": ("Aimv2VisionModel", VIT | {"use_head": False}, each("encoder.layers", 2), (0, None)),
    "mlcd": ("MLCDVisionModel", VIT | {"num_key_value_groups": 1}, each("encoder.layers", 2), (1, 0)),
    "mae": ("ViTMAEModel", VIT, each("layers", 2), (1, 0)),
    "pixio": ("PixioModel", VIT | {"mlp_ratio": 2, "n_cls_tokens": 2}, each("layers", 2), (2, None)),
    "yolos": (
        "YolosModel",
        VIT | {"image_size": [32, 32], "num_detection_tokens": 3},
        each("encoder.layer", 2),
        (1, 0, 3),
    ),
    "swin": ("SwinModel", SWIN, each("encoder.layers", 2), (0, None)),
    "swinv2": ("Swinv2Model", SWIN, each("encoder.layers", 2), (0, None)),
    "hiera": (
        "HieraModel",
        {
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "image_size": [32, 32],
            "num_query_pool": 1,
            "masked_unit_attention": [True, False],
        },
        each("encoder.stages", 2),
        (0, None),
    ),
    # the first hidden state is a stage's
    "segformer": ("SegformerModel", STAGES | {"num_attention_heads": [1, 1, 2, 2]}, each("stages", 4), MAPS),
    "pvt": (
        "PvtModel",
        STAGES | {"num_attention_heads": [1, 1, 2, 2], "image_size": 32},
        [f"encoder.block.{i}" for i in ("0.0", "1.0", "1.1", "2.0", "3.0")],
        [(0, None)] * 4 + [(1, 0)],
    ),
    "pvt v2": (
        "PvtV2Model",
        STAGES | {"num_attention_heads": [1, 1, 2, 2], "image_size": 32},
        each("encoder.layers", 4),
        TOKENS_AS_MAPS,
    ),
    "poolformer": ("PoolFormerModel", STAGES, [f"encoder.block.{i}.{n}" for i, n in enumerate((0, 1, 0, 0))], MAPS),
    "mobilenet v1": ("MobileNetV1Model", {"depth_multiplier": 0.25}, each("layer", 26), MAPS),
    "mobilenet v2": ("MobileNetV2Model", {"depth_multiplier": 0.25}, each("layer", 16), MAPS),
    "mobilevit": (
        "MobileViTModel",
        {"hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 8], "image_size": 32},
        each("encoder.layer", 5),
        MAPS,
    ),
    "mobilevit v2": (
        "MobileViTV2Model",
        {"width_multiplier": 0.125, "image_size": 64, "base_attn_unit_dims": [64, 64, 64]},
        each("encoder.layer", 5),
        MAPS,
    ),
    "cvt": (
        "CvtModel",
        {"embed_dim": [8, 8, 12], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
        each("encoder.stages", 3),
        MAPS,
    ),
    "glpn": (
        "GLPNModel",
        STAGES | {"num_attention_heads": [1, 1, 2, 2]},
        each("encoder.layer_norm", 4),
        TOKENS_AS_MAPS,
    ),
    # the first hidden state is that of the embeddings
    "resnet": ("ResNetModel", {"embedding_size": 8, "layer_type": "basic"} | STAGES, each("encoder.stages", 4), MAPS),
    "regnet": ("RegNetModel", {"embedding_size": 8, "groups_width": 4} | STAGES, each("encoder.stages", 4), MAPS),
    "convnext": ("ConvNextModel", STAGES, each("encoder.stages", 4), MAPS),
    "convnext v2": ("ConvNextV2Model", STAGES, each("encoder.stages", 4), MAPS),
    "bit": (
        "BitModel",
        {"embedding_size": 8, "num_groups": 4} | STAGES | {"hidden_sizes": [8, 8, 16, 16]},
        each("encoder.stages", 4),
        MAPS,
    ),
    "efficientnet": (
        "EfficientNetModel",
        {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
        each("encoder.blocks", 10),
        MAPS,
    ),
    "swiftformer": (
        "SwiftFormerModel",
        {"embed_dims": [8, 8, 12, 12], "depths": [1, 1, 1, 1]},
        each("encoder.network", 7),
        MAPS,
    ),
    "focalnet": (
        "FocalNetModel",
        {
            "image_size": 32,
            "embed_dim": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "focal_levels": [1, 1],
            "focal_windows": [3, 3],
        },
        each("encoder.stages", 2),
        (0, None),
    ),
    "levit": (
        "LevitModel",
        {
            "image_size": 64,
            "hidden_sizes": [16, 16, 16],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [4, 4, 4],
        },
        each("encoder.stages", 3),
        (0, None),
    ),
    "dinov3 convnext": ("DINOv3ConvNextModel", STAGES, each("model.stages", 4), MAPS),
    "textnet": (
        "TextNetModel",
        {"stem_out_channels": 8, "hidden_sizes": [8, 8, 8, 12, 12]},
        each("encoder.stages", 4),
        MAPS,
    ),
    "vitdet": (
        "VitDetModel",
        {k: v for k, v in VIT.items() if k != "intermediate_size"} | {"pretrain_image_size": 32, "mlp_ratio": 2},
        each("encoder.layer", 2),
        MAPS,
    ),
    # channels are last
    "sam": (
        "SamVisionModel",
        VIT | {"mlp_dim": 40, "window_size": 2, "global_attn_indexes": [1], "output_channels": 8, "num_pos_feats": 4},
        each("vision_encoder.layers", 2),
        CHANNELS_LAST,
    ),
    "sam2": (
        "Sam2HieraDetModel",
        {
            "hidden_size": 8,
            "image_size": [32, 32],
            "blocks_per_stage": [1, 1],
            "embed_dim_per_stage": [8, 16],
            "num_attention_heads_per_stage": [1, 2],
            "window_size_per_stage": [2, 2],
            "global_attention_blocks": [],
            "num_query_pool_stages": 1,
        },
        each("blocks", 2),
        CHANNELS_LAST,
    ),
}


# architecture in timm, arguments, modules of the layers, where their tokens stand
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
TIMM: dict[str, tuple[str, dict[str, Any], list[str], Any]] = {
    "vit": ("vit_tiny_patch16_224", SMALL, each("blocks", 2), (1, 0)),
    "registers behind the class token": ("vit_small_patch14_reg4_dinov2", SMALL, each("blocks", 2), (5, 0)),
    "registers alone": ("vit_base_patch16_reg4_gap_256", SMALL, each("blocks", 2), (4, None)),
    "a register alone": ("vit_base_patch16_rope_reg1_gap_256", SMALL, each("blocks", 2), (1, None)),
    "no class token": ("vit_base_patch16_clip_224", SMALL | NO_CLASS, each("blocks", 2), TOKENS_AS_MAPS),
    "siglip": ("vit_base_patch16_siglip_224", SMALL, each("blocks", 2), TOKENS_AS_MAPS),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL, each("blocks", 2), (2, 0)),
    "deit 3": ("deit3_small_patch16_224", SMALL, each("blocks", 2), (1, 0)),
    "beit": ("beit_base_patch16_224", SMALL, each("blocks", 2), (1, 0)),
    "eva": ("eva02_tiny_patch14_224", SMALL, each("blocks", 2), (1, 0)),
    "dinov3": ("vit_small_patch16_dinov3", SMALL, each("blocks", 2), (5, 0)),
    "relative": ("vit_relpos_small_patch16_224", SMALL, each("blocks", 2), TOKENS_AS_MAPS),
    "relative, class token": ("vit_relpos_base_patch16_cls_224", SMALL, each("blocks", 2), (1, 0)),
    "naflex": (
        "naflexvit_base_patch16_gap",
        {"embed_dim": 24, "depth": 2, "num_heads": 3},
        each("blocks", 2),
        (4, None),
    ),
    "cait": ("cait_xxs24_224", SMALL, each("blocks", 2), TOKENS_AS_MAPS),
    "xcit": ("xcit_nano_12_p16_224", SMALL | {"patch_size": 16}, each("blocks", 2), TOKENS_AS_MAPS),
    "mixer": ("mixer_s32_224", {"img_size": 64}, each("blocks", 8), TOKENS_AS_MAPS),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2)},
        each("layers", 2),
        CHANNELS_LAST,
    ),
    "convnext": ("convnext_atto", {"dims": (8, 8, 12, 12), "depths": (1, 1, 1, 1)}, each("stages", 4), MAPS),
}


def plainly(model: Any, modules: list[str], run: Any) -> list[Tensor]:
    """What modules give in one plain pass of one image, the first row of it if there are rows."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _args: Any, out: Any) -> None:
            while not isinstance(out, Tensor):
                out = out[0]
            seen[name] = (out[0] if len(out) == 1 else out).clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in modules]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return [seen[name] for name in modules]


def pooled(x: Tensor, where: Any, pooling: str) -> Tensor:
    """Of one image's tokens (t, d) or map the one vector that is asked for."""
    if where == MAPS:
        return x.mean(dim=(1, 2))
    if where == CHANNELS_LAST:
        return x.mean(dim=(0, 1))
    before, cls, after = (0, None, 0) if where == TOKENS_AS_MAPS else (*where, 0)[:3]
    return x[cls] if pooling == "cls" else x[before : len(x) - after].mean(dim=0)


def check(source: LoadedModel, plain: Any, layers: list[str], where: Any) -> None:
    """The default is the class token where every layer has one; the mean, which any layer has, is of patches alone."""
    each_where = where if isinstance(where, list) else [where] * len(layers)
    maps = all(isinstance(w, str) for w in each_where)
    has_cls = not maps and all(w[1] is not None for w in each_where)
    assert source.facts["pooling"] == ("cls" if has_cls else "spatial_mean" if maps else "mean")
    assert [layer.what.partition(" (")[0] for layer in source.layers] == [f"output of {n}" for n in layers]
    states = [plain(image) for image in IMAGES]
    inputs = source.prepare(IMAGES, ["row"] * len(IMAGES))
    for pooling in ("cls", "mean") if has_cls else ("mean",):
        source.pooling = pooling  # type: ignore[attr-defined]
        got = source.forward(inputs).layers
        assert list(got) == [f"{'stage' if maps else 'block'}.{i}" for i in range(len(layers))]
        for k, (x, w) in enumerate(zip(got.values(), each_where, strict=True)):
            want = torch.stack([pooled(row[k], w, pooling) for row in states])
            torch.testing.assert_close(x, want, rtol=0, atol=1e-3 * float(want.abs().max()))


@pytest.fixture(autouse=True)
def _quietly(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def context(tmp_path: Path) -> Context:
    return Context("cpu", "auto", revision=str(tmp_path))


@pytest.mark.parametrize("name", list(TRANSFORMERS))
def test_transformers(name, tmp_path):
    import transformers

    kind, options, layers, where = TRANSFORMERS[name]
    model = getattr(transformers, kind)
    model = tiny._randomise(model(model.config_class(**options))).eval()
    size = options.get("image_size", 32)
    size = size if isinstance(size, int) else size[0]
    processor = transformers.ViTImageProcessor(size={"height": size, "width": size})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    entry = ModelEntry(f"hf:{tmp_path}")
    source = hf.load(parse_spec(entry.spec), entry, context(tmp_path))
    if name == "mae":
        model.config.mask_ratio = 0.0

    def plain(image: Any) -> list[Tensor]:
        return plainly(model, layers, lambda: model(**processor(images=image, return_tensors="pt")))

    check(source, plain, layers, where)


@pytest.mark.parametrize("name", list(TIMM))
def test_timm(name, tmp_path):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    architecture, options, layers, where = TIMM[name]
    folder = tiny.timm_folder(tmp_path / "model", architecture, **options)
    entry = ModelEntry(f"timm:{folder}")
    source = timm_.load(parse_spec(entry.spec), entry, context(tmp_path))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    check(source, lambda image: plainly(model, layers, lambda: model(transform(image)[None])), layers, where)


# --- models that read images among others --------------------------------------------------------

WORDS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
LLAMA = WORDS | {"num_key_value_heads": 2, "model_type": "llama"}
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
QWEN = {"depth": 2, "patch_size": 8, "num_heads": 3}
QWEN2 = QWEN | {"embed_dim": 24, "hidden_size": 16, "mlp_ratio": 2, "in_channels": 3}
QWEN25 = QWEN | {"hidden_size": 24, "intermediate_size": 40, "out_hidden_size": 16, "window_size": 32}
CLIP, SIGLIP = VIT | {"model_type": "clip_vision_model"}, VIT | {"model_type": "siglip_vision_model"}
GEMMA = {"model_type": "gemma3_text", "head_dim": 8}
OPT = WORDS | {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 16}
SQUARE, CROP = {"size": {"height": 32, "width": 32}}, {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
PATCHES = {"patch_size": 8, "min_pixels": 256, "max_pixels": 4096}
TILES = {"image_grid_pinpoints": [[32, 64], [64, 32]]}

# class, its configuration, class of the processor and its settings, modules of the layers, where their tokens stand
BOTH: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], list[str], Any]] = {
    "qwen2-vl": (
        "Qwen2VLModel", {"text_config": LLAMA | ROPE, "vision_config": QWEN2},
        "Qwen2VLImageProcessor", PATCHES, each("visual.blocks", 2), (0, None),
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLModel", {"text_config": LLAMA | ROPE, "vision_config": QWEN25 | {"fullatt_block_indexes": [1]}},
        "Qwen2VLImageProcessor", PATCHES, each("visual.blocks", 2), (0, None),
    ),
    "llava": (
        "LlavaModel", {"text_config": LLAMA, "vision_config": CLIP},
        "CLIPImageProcessor", CROP, each("vision_tower.encoder.layers", 2), (1, 0),
    ),
    "paligemma": (
        "PaliGemmaModel", {"text_config": LLAMA | {"model_type": "gemma", "head_dim": 8}, "vision_config": SIGLIP},
        "SiglipImageProcessor", SQUARE, each("vision_tower.encoder.layers", 2), (0, None),
    ),
    "gemma 3": (
        "Gemma3Model", {"text_config": LLAMA | GEMMA, "vision_config": SIGLIP, "mm_tokens_per_image": 4},
        "Gemma3ImageProcessor", SQUARE, each("vision_tower.encoder.layers", 2), (0, None),
    ),
    "git": (
        "GitModel", WORDS | {"vision_config": VIT},
        "CLIPImageProcessor", CROP, each("image_encoder.vision_model.encoder.layers", 2), (1, 0),
    ),
    "blip 2": (
        "Blip2Model", {"text_config": OPT, "vision_config": VIT, "qformer_config": WORDS | {"encoder_hidden_size": 24}},
        "BlipImageProcessor", SQUARE, each("vision_model.encoder.layers", 2), (1, 0),
    ),
    "siglip 2, naflex": (
        "Siglip2VisionModel", VIT | {"num_patches": 16},
        "Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 16}, each("encoder.layers", 2), "mask",
    ),
    "pixtral": (
        "PixtralVisionModel", VIT | {"head_dim": 8},
        "PixtralImageProcessor", {"patch_size": 8, "size": {"longest_edge": 32}}, each("transformer.layers", 2), (0, None),
    ),
}  # fmt: skip
# what is refused, and the word that says why
REFUSED: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str]] = {
    "frames": ("VideoMAEModel", VIT, "VideoMAEImageProcessor", CROP, r"\(1, 1, 3, 32, 32\) of one image, as of frames"),
    "frames, too": ("TimesformerModel", VIT, "VideoMAEImageProcessor", CROP, "does not read one image at a time"),
    "tiles": (
        "LlavaNextModel", {"text_config": LLAMA, "vision_config": CLIP} | TILES,
        "LlavaNextImageProcessor", CROP | TILES, r"pixel_values \(1, 3, 3, 32, 32\) of one image, as of frames or tiles",
    ),
    "tiles in a row": (
        "InternVLModel", {"text_config": LLAMA, "vision_config": VIT | {"image_size": [32, 32], "patch_size": [8, 8]}},
        "GotOcr2ImageProcessor", SQUARE | {"crop_to_patches": True}, "one row of hidden states for each image",
    ),
    "another size": ("ViTModel", VIT, "ViTImageProcessor", {"size": {"height": 40, "width": 40}}, r"ValueError: .*40\*40"),
    "more to feed": ("SegGptModel", VIT, "ViTImageProcessor", SQUARE, "TypeError: .*missing 2 required positional"),
    "states of states": ("MaskFormerSwinModel", SWIN, "ViTImageProcessor", SQUARE, "hidden states of an unknown form"),
}  # fmt: skip


def saved(folder: Path, kind: str, options: dict[str, Any], processor: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    model, made = getattr(transformers, kind), getattr(transformers, processor)(**settings)
    model = tiny._randomise(model(model.config_class(**options))).eval()
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return model, made


@pytest.mark.parametrize("name", list(BOTH))
def test_vision_sides(name, tmp_path):
    """Fed by their own processors, with all that these return: patches in a row, sizes, masks."""
    *made, layers, where = BOTH[name]
    model, processor = saved(tmp_path, *made)
    entry = ModelEntry(f"hf:{tmp_path}", modality="image")
    source = hf.load(parse_spec(entry.spec), entry, context(tmp_path))
    got = source.forward(source.prepare(IMAGES, ["row"] * len(IMAGES))).layers
    rows, padded = [], False
    for image in IMAGES:
        inputs = dict(processor(images=[image], return_tensors="pt"))
        run = getattr(model, "image_encoder", None) or getattr(model, "get_image_features", model)
        states = plainly(model, layers, lambda run=run, inputs=inputs: run(**inputs))
        if where == "mask":
            kept = inputs["pixel_attention_mask"][0].bool()
            padded |= not bool(kept.all())
            rows.append([x[kept].mean(dim=0) for x in states])
        else:
            pooling = "mean" if where[1] is None else "cls"
            rows.append([pooled(x if x.ndim == 2 else x[0], where, pooling) for x in states])
    for k, x in enumerate(got.values()):
        torch.testing.assert_close(x, torch.stack([row[k] for row in rows]), rtol=1e-3, atol=1e-4)
    assert padded is (where == "mask")
    assert [layer.what.rpartition(" (")[0].rpartition(".")[2] for layer in source.layers] == ["0", "1"]


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused(name, tmp_path):
    *made, word = REFUSED[name]
    saved(tmp_path, *made)
    entry = ModelEntry(f"hf:{tmp_path}", modality="image")
    loading = library_errors(entry.label, "loading it, or its first pass,", Unavailable, alone=True)
    with pytest.raises(Unavailable, match=word), loading:
        hf.load(parse_spec(entry.spec), entry, context(tmp_path))


# --- modules by their paths, padding, and what former versions stored ----------------------------


def timm_source(folder: Path, **options: Any) -> LoadedModel:
    entry = ModelEntry(f"timm:{folder}", **options)
    return timm_.load(parse_spec(entry.spec), entry, context(folder))


@pytest.mark.parametrize(("pooling", "where"), [("mean", (2, None)), ("cls", (2, 0))])
def test_modules_of_timm_by_path_know_their_tokens(pooling, where, tmp_path):
    """Also where a module's output is wider than the tokens that go into it."""
    import timm
    from timm.data import create_transform, resolve_model_data_config

    folder = tiny.timm_folder(tmp_path / "model", "deit_tiny_distilled_patch16_224", **SMALL)
    names = ["blocks.1", "blocks.0.mlp.fc1"]
    source = timm_source(folder, layers=names, pooling=pooling)
    got = source.forward(source.prepare(IMAGES, ["row"] * len(IMAGES))).layers
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    rows = [plainly(model, names, lambda image=image: model(transform(image)[None])) for image in IMAGES]
    for k, name in enumerate(names):
        want = torch.stack([pooled(row[k], where, pooling) for row in rows])
        torch.testing.assert_close(got[name], want, rtol=1e-4, atol=1e-5)


def test_a_register_is_no_class_token_by_path_either(tmp_path):
    folder = tiny.timm_folder(tmp_path / "model", "vit_base_patch16_reg4_gap_256", **SMALL)
    source = timm_source(folder, layers=["blocks.1"], pooling="cls")
    with pytest.raises(RepalignError, match=r"layer blocks\.1: pooling 'cls' does not apply(.|\n)*4 other tokens"):
        source.forward(source.prepare(IMAGES, ["row"] * len(IMAGES)))
    with pytest.raises(RepalignError, match=r"pooling 'cls' does not apply\n  expected: mean"):
        timm_source(folder, pooling="cls")


def test_a_model_that_passes_its_arguments_on_is_fed_pixels(tmp_path, monkeypatch):
    import transformers

    forward = transformers.ViTModel.forward
    monkeypatch.setattr(transformers.ViTModel, "forward", lambda self, *args, **named: forward(self, *args, **named))
    saved(tmp_path, "ViTModel", VIT, "ViTImageProcessor", SQUARE)
    entry = ModelEntry(f"hf:{tmp_path}")
    source = hf.load(parse_spec(entry.spec), entry, context(tmp_path))
    assert source.facts["input"] == {"pixel_values": [3, 32, 32]}
    assert len(source.layers) == 2


def test_padding_of_one_image_is_refused_when_it_comes(tmp_path):
    """A processor that pads says so of each image; the mean over a map would count what it added."""
    model, processor = saved(tmp_path, "ViTModel", VIT, "ViTImageProcessor", SQUARE)
    del model
    entry = ModelEntry(f"hf:{tmp_path}", modality="image")
    source: Any = hf.load(parse_spec(entry.spec), entry, context(tmp_path))

    def padding(images: Any, return_tensors: str) -> Any:
        made = processor(images=images, return_tensors=return_tensors)
        mask = torch.ones(1, 32, 32, dtype=torch.long)
        mask[:, : 32 - images[0].height // 2] = 0
        return {**made, "pixel_mask": mask}

    source.processor = padding
    with pytest.raises(Unavailable, match=r"its processor pads images(.|\n)*pixel_mask of shape \(1, 32, 32\)"):
        source.prepare(IMAGES, ["row"] * len(IMAGES))


@pytest.mark.parametrize(
    ("facts", "right"),
    [
        ({"tokens": "all valid ones"}, True),
        ({"tokens": "1 before the patches", "layers": {"block.0": "output of encoder.layer.0 (ViTLayer)"}}, True),
        ({"tokens": "0 before the patches", "layers": {"block.0": "output of encoder.layers.0 (SwinStage)"}}, True),
        ({"tokens": "5 before the patches", "layers": {"block.0": "output of encoder.layer.0 (Dinov2Layer)"}}, False),
        ({"tokens": "0 before the patches", "layers": {"block.0": "output of encoder.block.1.0 (PvtLayer)"}}, False),
        ({"tokens": "maps", "layers": {"stage.0": "output of stages.1 (SegformerStage)"}}, False),
        ({"tokens": "maps", "layers": {"stage.0": "output of layers.0 (SamVisionLayer)"}}, False),
        ({"tokens": "maps", "class_token": False, "layers": {"stage.0": "output of stages.1 (SegformerStage)"}}, True),
    ],
)
def test_what_former_versions_stored_is_reused_only_where_it_is_right(facts, right):
    image = {} if facts["tokens"] == "all valid ones" else {"preprocessing": {}}
    assert images_shown({**image, **facts}) is right


@pytest.mark.parametrize(
    ("architecture", "layers", "facts", "wrong"),
    [
        ("vit_base_patch16_reg4_gap_256", None, {"pooling": "cls"}, "a register in place of a class token"),
        ("vit_base_patch16_reg4_gap_256", None, {"pooling": "mean"}, None),
        ("vit_base_patch16_reg4_gap_256", None, {"pooling": "cls", "class_token": True}, None),
        ("vit_tiny_patch16_224", None, {"pooling": "cls"}, None),
        ("vit_tiny_patch16_224", ("blocks.1",), {"pooling": "mean"}, "means over more tokens than those of patches"),
        ("vit_tiny_patch16_224", ("block.1",), {"pooling": "cls"}, None),
    ],
)
def test_what_former_versions_took_for_a_class_token_is_refused(architecture, layers, facts, wrong, tmp_path):
    folder = tiny.timm_folder(tmp_path / "model", architecture, **SMALL)
    stored: Any = SimpleNamespace(facts=facts, path="store/features")
    entry = ModelEntry(f"timm:{folder}", layers=layers)
    if wrong is None:
        timm_.refuse_outdated(parse_spec(entry.spec), entry, stored)
        return
    with pytest.raises(RepalignError, match=f"a former version stored {wrong}(.|\n)*store/features\n  do: remove that"):
        timm_.refuse_outdated(parse_spec(entry.spec), entry, stored)
