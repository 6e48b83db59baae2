"""Models of the transformers library: text or vision, as the model's own class says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from repalign.errors import RepalignError
from repalign.extract._base import Context, ModelEntry, Source
from repalign.extract._files import at, hub_errors, hub_revision
from repalign.models import Spec


def revision(spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG001
    return hub_revision(spec)


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    """Load a text or a vision model; of a model that reads both, the side of `modality`."""
    from transformers import AutoConfig

    with hub_errors(spec):
        config = AutoConfig.from_pretrained(
            spec.path, trust_remote_code=context.trust_remote_code, **at(spec, context.revision)
        )
    if _side(config, entry) == "image":
        from repalign.extract.hf_vision import HFVision

        return HFVision(spec, entry, context, config)
    from repalign.extract.hf_text import HFText

    return HFText(spec, entry, context, config)


def _side(config: Any, entry: ModelEntry) -> str:
    """Whether the model is to read images or text: the class's main input, or the entry's modality."""
    from transformers import MODEL_MAPPING

    known = type(config) in MODEL_MAPPING
    main = getattr(MODEL_MAPPING[type(config)], "main_input_name", None) if known else None
    both = getattr(config, "vision_config", None) is not None and getattr(config, "text_config", None) is not None
    if not both and main in ("pixel_values", "input_ids"):
        return "image" if main == "pixel_values" else "text"
    if entry.modality not in ("image", "text"):
        raise RepalignError(
            f"model {entry.label} " + ("reads images and text" if both else "does not say what it reads"),
            expected="modality: image, or modality: text",
            got=entry.modality or "none",
            remedy="add `modality:` to the model's entry",
        )
    return entry.modality


def load_model(auto: Any, spec: Spec, context: Context, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """The model, and the names of weights that its files lack (and that are random now).

    Weights are read from safetensors only: no pickle is ever loaded.
    """
    _refuse_pickles(spec)
    with hub_errors(spec), quiet():
        try:
            model, report = auto.from_pretrained(
                spec.path,
                trust_remote_code=context.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                dtype=dtype,
                **at(spec, context.revision),
            )
        except OSError as error:
            if "safetensors" in str(error):
                raise no_safetensors(spec) from error
            raise
    return model.eval().to(context.device), sorted(report["missing_keys"])


def _refuse_pickles(spec: Spec) -> None:
    """A local folder without a safetensors file, told before anything is loaded."""
    folder = Path(spec.path)
    if spec.is_local and folder.is_dir() and not list(folder.glob("*.safetensors")):
        raise no_safetensors(spec)


def no_safetensors(spec: Spec) -> RepalignError:
    return RepalignError(
        f"model {spec}: there are no safetensors weights",
        expected="model.safetensors (pickled weights such as pytorch_model.bin can run code and are not loaded)",
        got="no safetensors file",
        remedy="convert them once, where you trust them: load the model and save_pretrained to a new folder",
    )


def refuse_missing(label: str, missing: Sequence[str]) -> None:
    """Refuse a model some of whose weights are random: its file is of another model or not whole."""
    if missing:
        raise RepalignError(
            f"model {label}: its files lack weights that the layers depend on",
            expected="a file with every weight of the configured architecture",
            got=f"no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} ({len(missing)} in all)",
            remedy="check that config.json and the weights are of the same model",
        )


def stored_dtype(config: Any) -> torch.dtype | None:
    """The dtype that the weights are stored in, as far as the configuration says it."""
    said = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    return getattr(torch, said.removeprefix("torch.")) if isinstance(said, str) else said


def within(model: nn.Module, side: nn.Module, names: Sequence[str]) -> list[str]:
    """Of names of weights of a model those that belong to one side of it, as that side calls them."""
    path = next(n for n, m in model.named_modules() if m is side)
    return [n[len(path) :].lstrip(".") for n in names if n.startswith(path)]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and load reports of transformers: progress is told by the callback."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
