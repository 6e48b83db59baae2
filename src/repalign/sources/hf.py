"""Models of the transformers library: text or vision, as the model's own class says.

Weights go to one device, or are spread over all GPUs; that is decided before a weight is loaded. Nothing is ever moved to the
CPU or the disk in between: a model that does not fit is refused, with what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from repalign.dataset import Dataset
from repalign.errors import RepalignError, Unavailable, is_of
from repalign.sources.hub import HubSource, at, file_of, held, hub_errors
from repalign.sources.memory import Model, alone, tower
from repalign.sources.model import GENERATED, NO_BOS, Context, Loaded, LoadedModel, ModelEntry, run_dtype
from repalign.sources.source import FILE, HUB, Answer, Asked, Facts, Spec, StandIn, needless_prompt, outdated
from repalign.sources.tokenizer import PROBE, given_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from repalign.store import StoredRepresentation

SHARE = 0.8  # of the first GPU's free memory: more than this is spread over several, if there are several
LACKS = {
    "image": ("its image processor", "(model, processor)"), "text": ("its tokenizer", "(model, tokenizer)"),
    "both": ("a processor of what it is to read", "(model, processor)"),
}  # fmt: skip
# What is read beside the weights, one of these at least.
BESIDE = {"text": ("tokenizer*", "*.model", "vocab*", "merges.txt", "*.tiktoken"), "image": ("*processor*.json",)}
USABLE = 0.9  # of the free memory of GPUs that share a model: the rest is for what a pass needs


class Transformers(HubSource):
    """`hf:` models: the hidden states of text models, the blocks or stages of vision models."""

    packages = ("transformers", "accelerate")
    scheme, form, example = "hf", "hf:org/name[@revision], or hf:./folder", "hf:bigscience/bloomz-560m@main"
    takes_prompts = generates = True
    measures_bits = True
    poolings: ClassVar = {"text": ("mean", "last", "cls", GENERATED), "image": ("cls", "mean", "spatial_mean")}

    def modality(self, spec: Spec, entry: ModelEntry) -> str | None:
        return super().modality(spec, entry) or "text"

    def check(self, spec: Spec, entry: ModelEntry) -> None:
        super().check(spec, entry)
        config = config_of(spec)
        side = None if config is None else _side(config, entry)
        if spec.is_local and side is not None and not any(f for name in BESIDE[side] for f in Path(spec.path).glob(name)):
            from repalign.sources.hf_vision import no_processor
            from repalign.sources.tokenizer import no_tokenizer

            there = ", ".join(sorted(p.name for p in Path(spec.path).iterdir())[:5])
            raise (no_tokenizer if side == "text" else no_processor)(spec, f"{there} alone")

    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:
        return replace(config_facts(spec, entry, answer), **self.weight_facts(spec, answer))

    def load(self, spec: Spec, entry: ModelEntry, context: Context) -> LoadedModel:
        """Load a text or a vision model; of a model that reads both, the side of `modality`."""
        config = read_config(spec, context)
        if _side(config, entry) == "image":
            from repalign.sources import hf_vision

            return hf_vision.load(spec, entry, context, config)
        from repalign.sources import hf_text

        return hf_text.load(spec, entry, context, config)

    def takes(self, entry: Model) -> bool:
        """Beside its own processor or tokenizer, or none: with another function its modules are read by their names."""
        return is_of(entry.model, "transformers", "PreTrainedModel") and bool(entry.preprocess is None or _readers(entry))

    def towers(self, entry: Model, dataset: Dataset) -> list[Model]:
        """The side of the entry's modality; else each that its processor reads and the dataset has a column for."""
        readers, config = _readers(entry), entry.model.config
        both = getattr(config, "vision_config", None) is not None and getattr(config, "text_config", None) is not None
        sides = [side for side in readers if side in {dataset.kind(m) for m in dataset.modalities}]
        if both and entry.modality is None and sides:
            return [tower(entry, side) for side in sides]
        side = _side(config, entry) if readers or not both else "image"
        if side not in readers:
            raise alone(entry, *(LACKS["both" if both else side]))
        return [entry]

    def wrap(self, spec: Spec, entry: Model, loaded: Loaded) -> LoadedModel:
        """As it comes of its files: a head is left off that does not predict tokens."""
        from repalign.sources.hf_text import HFText, is_causal
        from repalign.sources.hf_vision import HFVision

        config, side = entry.model.config, _side(entry.model.config, entry)
        reader, causal = _readers(entry)[side], is_causal(config) and entry.model.can_generate()
        loaded = loaded if causal else replace(loaded, model=loaded.model.base_model)
        if side == "text":
            return HFText(spec, entry, loaded, config, given_tokenizer(reader, entry.label), causal)
        if entry.prompt is not None:
            raise needless_prompt(entry, "images")
        return HFVision(spec, entry, loaded, config, reader)

    def stand_in(self, asked: Asked) -> StandIn:
        from repalign.sources import standin_models

        self.require(asked.entry)
        return standin_models.of_side(asked)

    def skipped_sinks_before(self, facts: Mapping[str, Any]) -> bool:
        from repalign.sources.image_tokens import images_shown

        return facts.get("tokens") != NO_BOS and images_shown(facts)

    def refuse_outdated(self, spec: Spec, entry: ModelEntry, stored: StoredRepresentation) -> None:
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
            raise outdated(entry, f"features of {found}", stored)


def config_of(spec: Spec, answer: Answer | None = None) -> Any:
    """The configuration, of a file on this machine or as the hub says it; None where there is none that is known."""
    from transformers import AutoConfig

    path, values = file_of(spec, "config.json"), None if answer is None else answer.config
    try:
        return AutoConfig.for_model(**dict((json.loads(path.read_text("utf-8")) if path else values) or {}))
    except Exception:  # whatever a foreign file makes a library raise: the run will say what is wrong with it
        return None


def read_config(spec: Spec, context: Context) -> Any:
    """The configuration of the revision that is run, as the library reads it."""
    from transformers import AutoConfig

    with hub_errors(spec):
        return AutoConfig.from_pretrained(spec.path, trust_remote_code=context.trust_remote_code, **at(spec, context.revision))


def config_facts(spec: Spec, entry: ModelEntry, answer: Answer | None, more: tuple[str, ...] = ()) -> Facts:
    """Layers, width, poolings and tokens of an image, as the configuration says; `more` layers of the same width follow."""
    config = config_of(spec, answer)
    if config is None:
        return Facts()
    both = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    if None not in both:
        config = both[0] if entry.modality == "image" else both[1]
    sees = getattr(config, "vocab_size", None) is None  # models of images have no vocabulary
    said = {n: getattr(config, n, None) for n in ("num_hidden_layers", "hidden_size", "hidden_sizes", "image_size", "patch_size")}
    blocks, width, stages, image, patch = said.values()
    if isinstance(blocks, int) and isinstance(width, int):
        names = (*([] if sees else ["embeddings"]), *(f"block.{i}" for i in range(blocks)), *more)
        widths = (width,) * len(names)
    elif isinstance(stages, (list, tuple)):
        names = (*(f"stage.{i}" for i in range(len(stages))), *(more if isinstance(width, int) else ()))
        widths = (*stages, *(width,) * (len(names) - len(stages)))
    else:
        return Facts()
    tokens = (image // patch) ** 2 + 1 if sees and isinstance(image, int) and isinstance(patch, int) else None
    here = file_of(spec, "config.json") is not None
    return Facts(
        kind="image" if sees else "text", widths=widths, names=names, tokens=tokens, layers_from=FILE if here else HUB,
        poolings=("mean", "last", GENERATED) if not sees and _sees_only_back(spec, config) else None,
    )  # fmt: skip


def _sees_only_back(spec: Spec, config: Any) -> bool:
    """Whether a text model surely has no class token: it predicts the next one, and its tokenizer has none."""
    from repalign.sources.hf_text import is_causal

    path = file_of(spec, "tokenizer_config.json")
    if path is None or getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        return False
    return is_causal(config) and json.loads(path.read_text("utf-8")).get("cls_token") is None


def _readers(entry: Model) -> dict[str, Any]:
    """What makes inputs of images and of texts, in the processor that is given beside a model."""
    given = entry.preprocess
    parts = {"image": given, "text": given}
    if is_of(given, "transformers", "ProcessorMixin"):
        parts = {"image": getattr(given, "image_processor", None), "text": getattr(given, "tokenizer", None)}
    kinds = {"image": "ImageProcessingMixin", "text": "PreTrainedTokenizerBase"}
    return {side: part for side, part in parts.items() if is_of(part, "transformers", kinds[side])}


def _side(config: Any, entry: ModelEntry) -> str:
    """Whether the model is to read images or text: the class's main input, or the entry's modality; images in no prompt."""
    side = _named_side(config, entry)
    if side == "image" and entry.prompt is not None:
        raise needless_prompt(entry, "images")
    return side


def _named_side(config: Any, entry: ModelEntry) -> str:
    from transformers import MODEL_MAPPING

    known = type(config) in MODEL_MAPPING
    main = getattr(MODEL_MAPPING[type(config)], "main_input_name", None) if known else None
    sees = getattr(config, "vision_config", None) is not None
    both = sees and getattr(config, "text_config", None) is not None
    if entry.modality == "image" and sees:
        return "image"
    if not both and main in ("pixel_values", "input_ids"):
        return "image" if main == "pixel_values" else "text"
    if entry.modality not in ("image", "text"):
        raise RepalignError(
            f"model {entry.label} " + ("reads images and text" if both else "does not say what it reads"),
            expected="modality: image, or modality: text", got=entry.modality or "none",
            remedy="add `modality:` to the model's entry",
        )  # fmt: skip
    return entry.modality


# --- weights -------------------------------------------------------------------------------------


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
            spec.path, trust_remote_code=context.trust_remote_code, use_safetensors=True, output_loading_info=True,
            dtype=dtype, **({} if places is None else {"device_map": places}), **at(spec, context.revision),
        )  # fmt: skip
    _refuse_cut(label, model, report["unexpected_keys"])
    if places is None:
        model.to(context.device)
    keep_in_place(model)
    return Loaded(model.eval(), dtype, stored, sorted(report["missing_keys"]), places)


def stored_dtype(config: Any) -> torch.dtype | None:
    """The dtype that the configuration says the weights are stored in; their files may tell another."""
    said = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    return getattr(torch, said.removeprefix("torch.")) if isinstance(said, str) else said


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


def within(model: nn.Module, side: nn.Module, names: Sequence[str]) -> list[str]:
    """The names of a model's weights that belong to one side of it, as that side calls them."""
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


# --- where weights go ----------------------------------------------------------------------------


def free_memory() -> dict[str, int]:
    """Bytes that are free on every GPU; what torch holds without using it counts as free."""
    out = {}
    for i in range(torch.cuda.device_count()):
        unused = torch.cuda.memory_reserved(i) - torch.cuda.memory_allocated(i)
        out[f"cuda:{i}"] = torch.cuda.mem_get_info(i)[0] + unused
    return out


def is_spread(needed: int, free: Mapping[str, int], first: str, spread: str, label: str) -> bool:
    """Whether weights of `needed` bytes are spread over all of the GPUs in `free`, or stay whole on `first`.

    | spread | whole where | spread where |
    | --- | --- | --- |
    | "never" | needed <= free of the first | |
    | "if needed", one GPU | needed <= free of it | |
    | "if needed", several | needed <= 0.8 of the free memory of the first | else needed <= 0.9 of all free memory |
    | "always" | there is one GPU, needed <= free of it | needed <= 0.9 of all free memory |

    RepalignError, with what is needed and what is free, where neither holds.
    """
    several = len(free) > 1 and spread != "never"
    if several and (spread == "always" or needed > SHARE * free[first]):
        if needed > USABLE * sum(free.values()):
            raise too_large(needed, free, label)
        return True
    if needed > free[first]:
        raise too_large(needed, {first: free[first]}, label)
    return False


def too_large(needed: int, free: Mapping[str, int], label: str) -> Unavailable:
    several = len(free) > 1

    def gib(n: int) -> str:
        return f"{n / 2**30:.1f} GiB"

    return Unavailable(
        f"model {label} does not fit the memory of {f'{len(free)} GPUs' if several else 'one GPU'}",
        expected=f"{gib(needed)} for its weights" + (f" in {USABLE:.0%} of what is free" if several else ""),
        got=", ".join(f"{gib(n)} free on {device}" for device, n in free.items()),
        remedy="use more or larger GPUs (`device: sharded` spreads a text model of transformers over all of them), "
        "`dtype: stored` or bfloat16, or `device: cpu`; weights are not moved to the CPU or the disk in between",
    )


def device_map(
    auto: Any, config: Any, context: Context, dtype: torch.dtype, needed: int, label: str, spread: str
) -> dict[str, Any] | None:
    """The device of every part of a model, by module path; {"": device} for one GPU, None for the CPU."""
    if not context.device.startswith("cuda"):
        return None
    free = free_memory()
    index = torch.device(context.device).index
    first = f"cuda:{torch.cuda.current_device() if index is None else index}"
    if not is_spread(needed, free, first, spread, label):
        return {"": first}
    return spread_map(auto, config, context, dtype, free, label)


def spread_map(
    auto: Any, config: Any, context: Context, dtype: torch.dtype, free: Mapping[str, int], label: str
) -> dict[str, Any]:
    """Blocks of a model over GPUs, in order and in like shares, as accelerate places them.

    The model is built without weights. Blocks stay whole, and weights that are tied stay together.
    """
    from accelerate import infer_auto_device_map, init_empty_weights
    from accelerate.utils import get_balanced_memory

    with init_empty_weights(include_buffers=True):
        model = auto.from_config(config, dtype=dtype, trust_remote_code=context.trust_remote_code)
    model.tie_weights()
    whole = getattr(model, "_no_split_modules", None)
    if not whole:
        raise RepalignError(
            f"model {label} cannot be spread over GPUs", got=type(model).__name__,
            expected="an architecture that says which of its modules have to stay whole",
            remedy="run it on one GPU that is large enough, with `device: cuda:0`",
        )  # fmt: skip
    most: dict[int | str, int | str] = {i: int(USABLE * n) for i, n in enumerate(free.values())}
    options: dict[str, Any] = {"no_split_module_classes": list(whole), "dtype": dtype}
    balanced = get_balanced_memory(model, max_memory=most, **options)
    found: dict[str, Any] = infer_auto_device_map(model, max_memory=balanced, **options)
    if not all(isinstance(place, int) for place in found.values()):  # "cpu" or "disk"
        raise too_large(sum(p.numel() for p in model.parameters()) * dtype.itemsize, free, label)
    return {name: list(free)[place] for name, place in found.items()}


def keep_in_place(model: Any) -> None:
    """Let what a spread model returns stay on the devices where it is made.

    accelerate's hook moves it all to the first one, which has no room for every hidden state of a large model.
    """
    hook: Any = getattr(model, "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        if hasattr(each, "io_same_device"):
            each.io_same_device = False


def placed(places: Mapping[str, Any] | None) -> dict[str, str]:
    """Where the parts of a spread model are, in words; empty for one that is on one device."""
    devices = list(dict.fromkeys(str(d) for d in (places or {}).values()))
    if len(places or ()) < 2:
        return {}
    runs = [(d, [name for name, _ in group]) for d, group in groupby((places or {}).items(), key=lambda p: str(p[1]))]
    told = [f"{names[0]} to {names[-1]} on {d}" if len(names) > 1 else f"{names[0]} on {d}" for d, names in runs]
    return {"device": ", ".join(devices), "device_map": "; ".join(told)}


