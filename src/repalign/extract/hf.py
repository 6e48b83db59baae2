"""Models of the transformers library: text or vision, as the model's own configuration says."""

from __future__ import annotations

from typing import Any

from repalign.errors import RepalignError
from repalign.extract._base import Context, ModelEntry, Source
from repalign.extract._files import hub_errors, hub_revision
from repalign.models import Spec


def revision(spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG001
    return hub_revision(spec)


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    """Load the vision or the text side; of a model with both, the one of `modality`."""
    from transformers import AutoConfig

    with hub_errors(spec):
        config = AutoConfig.from_pretrained(
            spec.path, revision=spec.revision, trust_remote_code=context.trust_remote_code
        )
    side = _side(config, entry)
    if side == "image":
        from repalign.extract.hf_vision import HFVision

        return HFVision(spec, entry, context, config)
    from repalign.extract.hf_text import HFText

    return HFText(spec, entry, context, config)


def _side(config: Any, entry: ModelEntry) -> str:
    both = getattr(config, "vision_config", None) is not None and getattr(config, "text_config", None) is not None
    if both:
        if entry.modality not in ("image", "text"):
            raise RepalignError(
                f"model {entry.label} reads images and text",
                expected="modality: image, or modality: text",
                got=entry.modality or "none",
                remedy="add `modality:` to the model's entry",
            )
        return entry.modality
    sees = any(getattr(config, f, None) is not None for f in ("image_size", "num_channels", "patch_size"))
    return "image" if sees else "text"


def load_model(auto: Any, spec: Spec, context: Context, dtype: Any) -> Any:
    """from_pretrained with safetensors only: no pickle is ever loaded."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # progress is told through our own callback
    with hub_errors(spec):
        try:
            model = auto.from_pretrained(
                spec.path,
                revision=spec.revision,
                trust_remote_code=context.trust_remote_code,
                use_safetensors=True,
                dtype=dtype,
            )
        except OSError as error:
            if "safetensors" not in str(error) or "does not appear to have" not in str(error):
                raise
            raise RepalignError(
                f"model {spec}: there are no safetensors weights",
                expected="model.safetensors",
                got="weights in another format (pickled weights are never loaded)",
                remedy="convert them once: load the model where you trust it and save_pretrained(safe_serialization=True)",
            ) from error
    return model.eval().to(context.device)
