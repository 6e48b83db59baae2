"""Stand-ins of image models: tiny vision transformers, as timm and as transformers save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from repalign.standins.shapes import HEADS, Shape
from repalign.standins.weights import randomise

SIDE, PATCH = 32, 8  # pixels
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def write_timm(folder: Path, shape: Shape) -> None:
    """A vision transformer as timm itself saves it for the hub."""
    import timm
    from timm.models import save_for_hf

    arguments: dict[str, Any] = {
        "img_size": SIDE, "patch_size": PATCH, "embed_dim": shape.width, "depth": shape.depth, "num_heads": HEADS,
        "mlp_ratio": shape.inner / shape.width, "num_classes": 0,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = randomise(timm.create_model("vit_tiny_patch16_224", pretrained=False, **arguments), shape.seed)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD, "crop_pct": 1.0}
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)


def write_vision(folder: Path, shape: Shape) -> None:
    """A vision transformer of transformers, with its image processor."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    from repalign.sources.hf import quiet

    config = ViTConfig(
        hidden_size=shape.width, num_hidden_layers=shape.depth, num_attention_heads=HEADS, intermediate_size=shape.inner,
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    with quiet(), torch.random.fork_rng(devices=[]):
        processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=list(MEAN), image_std=list(STD))
        processor.save_pretrained(folder)
        randomise(ViTModel(config), shape.seed).save_pretrained(folder)


def image_layers(shape: Shape) -> tuple[str, ...]:
    """The layers that extraction finds in either."""
    return tuple(f"block.{i}" for i in range(shape.depth))
