"""Models of the transformers library: text or vision, as the model's own class says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from repalign.errors import RepalignError, Unavailable
from repalign.models import Spec
from repalign.sources.files import at, hub_errors, hub_revision
from repalign.sources.placement import device_map, keep_in_place
from repalign.sources.source import Context, ModelEntry, Source, refuse_prompt, run_dtype
from repalign.sources.tokenizer import PROBE, load_tokenizer
from repalign.sources.weights import held
from repalign.store import StoredRepresentation


def revision(spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG001
    return hub_revision(spec)


def refuse_outdated(spec: Spec, entry: ModelEntry, stored: StoredRepresentation) -> None:
    """Refuse a text model's extraction by a former version, whose facts have no probe, if it fed the model otherwise."""
    facts = stored.facts
    if facts.get("source") != "hf" or "padding" not in facts or "tokenizer_probe" in facts:
        return
    try:
        reading = load_tokenizer(spec, Context("cpu", "auto", revision=stored.record.revision or "main"))
    except RepalignError:  # its files are not here any more: then nothing can be told
        return
    ids, token = reading.tokenizer(PROBE)["input_ids"], reading.tokenizer.cls_token_id
    wrong = {
        "other tokens than those of its tokenizer's file": reading.own,
        "texts with a mask, which it was not trained with": "attention_mask" not in reading.tokenizer.model_input_names,
        "the first token for its class token": facts.get("pooling") == "cls" and ids[0] != token == ids[-1],
    }
    found = next((what for what, is_so in wrong.items() if is_so), None)
    if found is not None:
        raise RepalignError(
            f"model {entry.label}: a former version stored features of {found}",
            expected="features of this version",
            got=stored.path,
            remedy="remove that folder, and extract again",
        )


def load(spec: Spec, entry: ModelEntry, context: Context) -> Source:
    """Load a text or a vision model; of a model that reads both, the side of `modality`."""
    from transformers import AutoConfig

    with hub_errors(spec):
        config = AutoConfig.from_pretrained(
            spec.path, trust_remote_code=context.trust_remote_code, **at(spec, context.revision)
        )
    if _side(config, entry) == "image":
        refuse_prompt(entry, "images")
        from repalign.sources.hf_vision import HFVision

        return HFVision(spec, entry, context, config)
    from repalign.sources.hf_text import HFText

    return HFText(spec, entry, context, config)


def _side(config: Any, entry: ModelEntry) -> str:
    """Whether the model is to read images or text: the class's main input, or the entry's modality."""
    from transformers import MODEL_MAPPING

    known = type(config) in MODEL_MAPPING
    main = getattr(MODEL_MAPPING[type(config)], "main_input_name", None) if known else None
    both = getattr(config, "vision_config", None) is not None and getattr(config, "text_config", None) is not None
    if entry.modality == "image" and getattr(config, "vision_config", None) is not None:
        return "image"
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


@dataclass(frozen=True)
class Loaded:
    """A model with its weights."""

    model: Any
    missing: list[str]  # weights that its files lack, and that are random now
    stored: torch.dtype | None  # what most of its weights are stored in
    dtype: torch.dtype  # what it is run in
    places: dict[str, Any] | None  # the device of each of its parts, where they were put there one by one

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the embeddings, or of the first weight."""
        try:
            return self.model.get_input_embeddings().weight.device
        except (AttributeError, NotImplementedError):  # no such thing, as in some vision models
            return next(self.model.parameters()).device


def load_model(auto: Any, spec: Spec, context: Context, config: Any, label: str, spread: str = "never") -> Loaded:
    """Load a model in the dtype it is run in, straight onto its device or devices.

    Weights are read from safetensors only: no pickle is ever loaded. No weight takes another dtype on the way, and on a
    GPU none of them passes through the memory of the CPU as a whole.
    """
    with quiet():
        files = held(spec, context.revision)
    stored = files.dtype or stored_dtype(config)
    dtype = run_dtype(context.dtype, stored, context.device, label)
    places = device_map(auto, config, context, dtype, files.n_bytes(dtype), label, spread)
    with hub_errors(spec), quiet():
        model, report = auto.from_pretrained(
            spec.path,
            trust_remote_code=context.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            dtype=dtype,
            **({} if places is None else {"device_map": places}),
            **at(spec, context.revision),
        )
    _refuse_cut(label, model, report["unexpected_keys"])
    if places is None:
        model.to(context.device)
    keep_in_place(model)
    return Loaded(model.eval(), sorted(report["missing_keys"]), stored, dtype, places)


def refuse_missing(label: str, missing: Sequence[str]) -> None:
    """Refuse a model some of whose weights are random: its file is of another model or not whole."""
    if missing:
        raise Unavailable(
            f"model {label}: its files lack weights that the layers depend on",
            expected="a file with every weight of the configured architecture",
            got=f"no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} ({len(missing)} in all)",
            remedy="check that config.json and the weights are of the same model",
        )


def _refuse_cut(label: str, model: nn.Module, unexpected: Iterable[str]) -> None:
    """Refuse a model whose file holds more blocks than its configuration: it would run as a shorter one without a word.

    Other weights that are not of the model (heads, poolers, buffers) may be in its file.
    """
    lists = {}
    for path, module in model.named_modules():
        numbers = [name for name, _ in module.named_children() if name.isdigit()]
        if path and numbers:
            lists[path] = len(numbers)
    for key in sorted(unexpected):
        parts = key.split(".")
        for i, part in enumerate(parts):
            ours = next((p for p in lists if _same_path(p, ".".join(parts[:i]))), None) if part.isdigit() and i else None
            if ours is not None and int(part) >= lists[ours]:
                raise Unavailable(
                    f"model {label}: its files hold more blocks than its config.json",
                    expected=f"{lists[ours]} in {ours}, as the configuration has it",
                    got=f"weights of block {part}, counted from 0: {key}",
                    remedy="state the number of blocks of the weights in config.json (num_hidden_layers or its like); to "
                    "extract some of them name them in `layers:`",
                )


def _same_path(ours: str, theirs: str) -> bool:
    """Whether two module paths are the same but for the name of the body in front, which files have or have not."""
    return bool(theirs) and (ours == theirs or ours.endswith(f".{theirs}") or theirs.endswith(f".{ours}"))


def stored_dtype(config: Any) -> torch.dtype | None:
    """The dtype that the configuration says the weights are stored in; their files may tell another."""
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
