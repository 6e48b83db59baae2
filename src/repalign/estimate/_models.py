"""The facts of a model by its spec, without loading a weight: one function per source."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from repalign.errors import RepalignError
from repalign.estimate._arrays import array_facts
from repalign.estimate._facts import COUNTED, FILE, HUB, KNOWN, Facts
from repalign.estimate._hub import Answer, Repository, ask_hub, cached_file, cached_weights
from repalign.models import KnownModel, Spec, known_models, parse_spec
from repalign.sources import ModelEntry
from repalign.sources.weights import read_headers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EMBEDDING = 1  # the finished sentence embedding, a layer of sentence-transformers models
STORED = {2: torch.float16, 4: torch.float32}  # by bytes; which half precision it is does not matter here


def facts_of_all(entries: Sequence[ModelEntry], patience: float) -> list[Facts]:
    """The facts of every model. The hub is asked of those that neither a table nor a file tells, all at once."""
    specs = [parse_spec(e.spec) for e in entries]
    table = {k.spec: k for k in known_models()}
    ask = [r for s in specs if str(s) not in table and (r := _repository(s)) is not None and _is_missing(r)]
    answers = ask_hub(ask, patience)
    return [
        _said(entry, _facts(entry, spec, table.get(str(spec)), answers)).choose(entry.layers)
        for entry, spec in zip(entries, specs, strict=True)
    ]


def _facts(entry: ModelEntry, spec: Spec, known: KnownModel | None, answers: Mapping[Repository, Answer]) -> Facts:
    if known is not None:
        return _known(spec, known)
    match spec.scheme:
        case "array":
            from repalign.sources.array import reading_of

            return array_facts(Path(spec.path), reading_of(entry))
        case "toy":
            return _toy(spec.path)
        case "timm":
            return _timm(spec, answers)
        case "hf" | "st" if spec.is_local:
            return _folder(entry, spec)
        case "hf" | "st":
            return _from_hub(entry, spec, answers)
        case "torch":  # the factory is the user's code, which a plan does not run
            return Facts(download_bytes=0, download_from=FILE)
    return Facts()


def _said(entry: ModelEntry, facts: Facts) -> Facts:
    """What the entry says itself counts where nothing else is known."""
    if facts.parameters is None and entry.n_parameters is not None:
        return replace(facts, parameters=entry.n_parameters, parameters_from=FILE)
    return facts


def repository_of(spec: Spec) -> Repository | None:
    """Where on the hub the weights of a model are: its name there, and the revision that the spec asks for."""
    if spec.is_local:
        return None
    if spec.scheme == "hf":
        return spec.path, spec.revision
    if spec.scheme == "st":
        return (spec.path if "/" in spec.path else f"sentence-transformers/{spec.path}"), spec.revision
    return None


def _repository(spec: Spec) -> Repository | None:
    if spec.scheme != "timm" or spec.is_local:
        return repository_of(spec)
    name = getattr(_timm_config(spec.path), "hf_hub_id", None)
    return (name, None) if name else None


def _is_missing(repository: Repository) -> bool:
    return cached_weights(repository) is None or cached_file(repository, "config.json") is None


# --- known models ------------------------------------------------------------------------------


def _known(spec: Spec, known: KnownModel) -> Facts:
    # timm's own repositories on the hub are called as timm calls the model.
    repository = (f"timm/{spec.path}", None) if spec.scheme == "timm" else repository_of(spec)
    size = known.parameters * known.bytes_per_parameter
    there = repository is not None and cached_weights(repository) is not None
    return Facts(
        kind=known.modality,
        parameters=known.parameters,
        widths=(known.width,) * known.layers,
        stored=STORED[known.bytes_per_parameter],
        file_bytes=size,
        download_bytes=0 if there else size,
        tokens=known.image_tokens,
        parameters_from=KNOWN,
        layers_from=KNOWN,
        download_from=FILE if there else KNOWN,
    )


# --- transformers and sentence-transformers -----------------------------------------------------


def _folder(entry: ModelEntry, spec: Spec) -> Facts:
    folder = Path(spec.path)
    weights = sorted(folder.rglob("*.safetensors") if spec.scheme == "st" else folder.glob("*.safetensors"))
    config = _config(folder / "config.json")
    return replace(_architecture(entry, spec, config, FILE), **_weights(weights), download_bytes=0, download_from=FILE)


def _from_hub(entry: ModelEntry, spec: Spec, answers: Mapping[Repository, Answer]) -> Facts:
    repository = repository_of(spec)
    assert repository is not None
    answer = answers.get(repository)
    cached, path = cached_weights(repository), cached_file(repository, "config.json")
    if path is not None:
        facts = _architecture(entry, spec, _config(path), FILE)
    else:
        facts = _architecture(entry, spec, _as_config(answer.config) if answer is not None else None, HUB)
    if cached is not None:
        return replace(facts, **_weights(cached), download_bytes=0, download_from=FILE)
    return facts if answer is None else replace(facts, **_answered(answer))


def _weights(files: Sequence[Path]) -> dict[str, Any]:
    """What the headers of weight files say."""
    try:
        held = read_headers(files)
    except OSError:
        return {}
    if not held.numbers:
        return {}
    return {
        "parameters": sum(held.numbers.values()),
        "parameters_from": FILE,
        "stored": held.dtype,
        "file_bytes": sum(f.stat().st_size for f in files),
    }


def _answered(answer: Answer) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if answer.parameters is not None:
        out |= {"parameters": answer.parameters, "parameters_from": HUB}
    if answer.weights_bytes is not None:
        out |= {"download_bytes": answer.weights_bytes, "file_bytes": answer.weights_bytes, "download_from": HUB}
    if answer.parameters and answer.weights_bytes:
        out["stored"] = STORED.get(round(answer.weights_bytes / answer.parameters))
    return out


def _config(path: Path) -> PretrainedConfig | None:
    try:
        return _as_config(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return None


def _as_config(values: Mapping[str, Any] | None) -> PretrainedConfig | None:
    """A configuration with the names that all architectures share; None for an architecture that is not installed."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**dict(values or {}))
    except Exception:  # whatever a foreign file makes a library raise: the run will say what is wrong with it
        return None


def _architecture(entry: ModelEntry, spec: Spec, config: PretrainedConfig | None, source: str) -> Facts:
    """Layers, width and tokens of an image, as the configuration says them."""
    if config is None:
        return Facts()
    both = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    if both[0] is not None and both[1] is not None:
        config = both[0] if entry.modality == "image" else both[1]
    sees = getattr(config, "vocab_size", None) is None  # models of images have no vocabulary
    blocks, width = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    stages = getattr(config, "hidden_sizes", None)
    if isinstance(blocks, int) and isinstance(width, int):
        widths = (width,) * (blocks if sees else blocks + 1)
    elif isinstance(stages, (list, tuple)):
        widths = tuple(stages)
    else:
        return Facts()
    extra = (width,) * EMBEDDING if spec.scheme == "st" and isinstance(width, int) else ()
    kind, tokens = ("image", _image_tokens(config)) if sees else ("text", None)
    return Facts(kind=kind, widths=widths + extra, tokens=tokens, layers_from=source)


def _image_tokens(config: Any) -> int | None:
    image, patch = (getattr(config, name, None) for name in ("image_size", "patch_size"))
    return (image // patch) ** 2 + 1 if isinstance(image, int) and isinstance(patch, int) else None


# --- timm --------------------------------------------------------------------------------------


def _timm_config(name: str) -> Any:
    import timm

    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # an architecture that it knows, with a tag that it does not
        return None


def _timm(spec: Spec, answers: Mapping[Repository, Answer]) -> Facts:
    counted = _count_timm(f"local-dir:{spec.path}" if spec.is_local else spec.path)
    if spec.is_local:
        found = _weights(sorted(Path(spec.path).glob("*.safetensors")))
        return replace(counted, **found, download_bytes=0, download_from=FILE)
    repository = _repository(spec)
    if repository is None:
        return counted
    cached = cached_weights(repository)
    if cached is not None:
        return replace(counted, **_weights(cached), download_bytes=0, download_from=FILE)
    if repository in answers:
        return replace(counted, **_answered(answers[repository]))
    if counted.parameters is None:
        return counted
    size = 4 * counted.parameters  # as timm stores its models
    return replace(counted, stored=torch.float32, file_bytes=size, download_bytes=size, download_from=COUNTED)


def _count_timm(name: str) -> Facts:
    """The architecture, built and run without a weight: parameters, layers and operations."""
    import timm
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"), torch.inference_mode():
            model: Any = timm.create_model(name, pretrained=False).eval()
            count = sum(p.numel() for p in model.parameters())
            facts = Facts(kind="image", parameters=count, parameters_from=COUNTED)
            pixels = torch.empty(1, *model.pretrained_cfg["input_size"])
            with FlopCounterMode(display=False) as counter:
                states = model.forward_intermediates(pixels, norm=False, intermediates_only=True)
    except Exception:  # unknown to timm, or without intermediates: the run will say so
        return Facts()
    word = "block" if getattr(model, "num_prefix_tokens", 0) else "stage"
    return replace(
        facts,
        widths=tuple(s.shape[1] for s in states),  # (b, d, height, width)
        names=tuple(f"{word}.{i}" for i in range(len(states))),
        flops=float(counter.get_total_flops()),
        layers_from=COUNTED,
    )


# --- the toy world -----------------------------------------------------------------------------


def _toy(name: str) -> Facts:
    """The network built and run on one stimulus; what training takes is in its recipe."""
    from repalign.toyworld import captions, models, names, networks, render

    try:
        recipe, _ = names.find(name)
    except RepalignError:
        return Facts()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        network = networks.build(recipe)
    if isinstance(network, networks.Words):
        layers = networks.caption_vectors(network, torch.ones(1, captions.LENGTH, dtype=torch.int64))
    else:
        layers = networks.image_vectors(network, torch.zeros(1, render.SIDE, render.SIDE, 3, dtype=torch.uint8))
    count = sum(w.numel() for w in network.state_dict().values())
    return Facts(
        kind=recipe.modality,
        parameters=count,
        widths=tuple(x.shape[1] for x in layers.values()),
        names=tuple(layers),
        stored=torch.float32,
        file_bytes=4 * count,
        download_bytes=0,
        flops=2.0 * count * (render.SIDE**2 if recipe.modality == names.VISION else captions.LENGTH),
        work=0.0 if models.is_cached(name) else recipe.cost,
        parameters_from=COUNTED,
        layers_from=COUNTED,
        download_from=KNOWN,
    )


def hub_cache() -> Path:
    """Where downloads go."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()
