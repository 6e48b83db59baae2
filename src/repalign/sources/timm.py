"""Image models of timm: every architecture that timm can give intermediates for, else modules by path.

`timm:name` is a name that `timm.list_pretrained()` lists; `timm:./folder` has config.json and model.safetensors.
Layers are the outputs of the blocks of a transformer, before the final norm, or the maps of a convolutional
network's stages; with `layers:` naming modules of the model instead, their outputs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from repalign.errors import RepalignError, Unavailable, did_you_mean, is_of
from repalign.models import known_models
from repalign.sources import passes
from repalign.sources.hub import HubSource, fetch, hub_errors, hub_revision, read_headers
from repalign.sources.image_tokens import Places, class_tokens, image_layers, pool_image, token_places, unlike_images
from repalign.sources.memory import Model
from repalign.sources.model import (
    Batch,
    Context,
    Layer,
    Loaded,
    LoadedModel,
    ModelEntry,
    count_parameters,
    named_by,
    plain,
    ready,
    told,
    versions,
)
from repalign.sources.pooling import any_pool, plain_mean
from repalign.sources.source import COUNTED, NAME, Answer, Asked, Facts, Repository, Spec, StandIn, outdated

if TYPE_CHECKING:
    from repalign.store import StoredRepresentation


def _configured(name: str) -> Any:
    """What timm knows of a name; None of an architecture that it knows, with a tag that it does not."""
    import timm

    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        return None


# What the initialisation of a model does to its weights.
_SETS = {getattr(Tensor, f"{name}_") for name in ("normal", "uniform", "erfinv", "mul", "add", "clamp", "fill", "zero")}
_SETS |= {f for name, f in vars(nn.init).items() if name.endswith("_") and not name.startswith("_")}
# What keeps the shape and multiplies no matrices. Who counts operations takes each apart, which is most of the time.
_ELEMENTWISE = {
    getattr(nn.functional, name)
    for name in ("batch_norm", "gelu", "group_norm", "hardswish", "layer_norm", "relu", "relu6", "silu", "softmax")
}


class _Left(TorchFunctionMode):
    """Numbers without values, on "meta", are left as they are by some functions: to run those takes time and changes no shape."""

    def __init__(self, functions: Collection[Any]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.functions:
            return func(*args, **kwargs)
        return args[0] if args else kwargs["tensor" if "tensor" in kwargs else "input"]


_ALIKE: dict[str, str] = {}  # the first of the names whose models are built alike
# What timm tells of a name that its model is not built by.
_NOT_BUILT_BY = {
    "url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "mean", "std", "interpolation", "crop_pct", "crop_mode",
    "license", "origin_url", "paper_name", "paper_ids", "notes", "test_crop_pct", "test_input_size", "label_names",
    "label_descriptions", "custom_load", "state_dict",
}  # fmt: skip


def _built(name: str) -> str:
    """What the model of a name is built by: its architecture, and what of the configuration of its weights may change it."""
    config = _configured(name)
    told = {} if config is None else {k: v for k, v in vars(config).items() if k not in _NOT_BUILT_BY}
    return repr((name if config is None else name.partition(".")[0], told))


def _counted(spec: Spec) -> Facts:
    """The architecture, built and run without a weight: parameters, layers and operations."""
    import timm  # noqa: F401  # one that is not installed is told by name

    try:
        if spec.is_local:
            return _count(f"local-dir:{spec.path}", (Path(spec.path) / "config.json").read_bytes())
        return _count(_ALIKE.setdefault(_built(spec.path), spec.path))
    except Exception:  # unknown to timm, or without intermediates: the run will say so
        return Facts()


@functools.lru_cache(maxsize=256)  # before a study runs, its check, its plan and all variants ask of the same models
def _count(name: str, config: bytes = b"") -> Facts:  # noqa: ARG001  # of a folder, which may hold another model by now
    import timm
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.inference_mode():
        with _Left(_SETS):
            model: Any = timm.create_model(name, pretrained=False).eval()
        pixels = torch.empty(1, *model.pretrained_cfg["input_size"])
        with FlopCounterMode(display=False) as counter, _Left(_ELEMENTWISE):
            states = model.forward_intermediates(pixels, norm=False, intermediates_only=True)
    word, poolings = "stage", ("spatial_mean", "mean")
    if getattr(model, "num_prefix_tokens", 0):
        word, poolings = "block", ("cls", "mean") if class_tokens(model) else ("mean",)
    return Facts(
        kind="image", parameters=count_parameters(model), parameters_from=COUNTED, layers_from=COUNTED,
        widths=tuple(s.shape[1] for s in states),  # (b, d, height, width)
        names=tuple(f"{word}.{i}" for i in range(len(states))), flops=float(counter.get_total_flops()), poolings=poolings,
        modules=tuple(name for name, _ in model.named_modules() if name),
    )  # fmt: skip


def _pretrained(spec: Spec, entry: ModelEntry) -> Any:
    """What timm knows of a name; RepalignError if it has no weights of that name, Unavailable if it once had."""
    import timm

    config = _configured(spec.path)
    if config is not None and config.has_weights:
        return config
    if str(spec) in {known.spec for known in known_models()}:
        raise Unavailable(
            f"model {entry.label}: the installed timm ({versions('timm')['timm']}) does not have it any more", got=spec.path,
            remedy="install a version of timm that has it",
        )  # fmt: skip
    raise RepalignError(
        f"model {entry.label}: timm has no pretrained model {spec.path!r}", got=spec.path,
        expected="a name that timm.list_pretrained() lists, with its tag, or a local folder",
        remedy=did_you_mean(spec.path, timm.list_pretrained()),
    )  # fmt: skip


class TimmVision(LoadedModel):
    """Images in, pooled block outputs out; without a transform that of the model's own data configuration."""

    kind = "image"

    def __init__(self, spec: Spec, entry: ModelEntry, loaded: Loaded, transform: Any = None) -> None:
        from timm.data.config import resolve_model_data_config
        from timm.data.transforms_factory import create_transform

        self.entry, self.device, self.dtype = entry, loaded.device, loaded.dtype
        self.model: Any = loaded.model
        config = resolve_model_data_config(self.model)
        self.transform = transform or create_transform(**config, is_training=False)
        every = self._intermediate_layers()
        named = _named_modules(self.model, every, entry)
        self.by_path = bool(named)
        if self.by_path:
            self.pooling = entry.pooling
            self.layers = self._named_layers(named)
        else:
            self.pooling = self.choose_pooling(self.known)
            self.layers = self.choose_layers(every)
        self.index = {layer.name: i for i, layer in enumerate(every)}
        facts = {
            "pooling": self.pooling or "maps: mean over positions; vectors as they are",
            "class_token": any(p.cls is not None for p in self.places.values()),
            "last_layer": self.layers[-1].what,
            "preprocessing": plain(config) if transform is None else told(transform),
        }
        self.describe(spec, "image", self.model, (self.dtype, loaded.stored), ("timm", "torchvision", "pillow"), facts)

    def prepare(self, stimuli: Sequence[Any], where: Sequence[str]) -> list[Tensor]:  # noqa: ARG002
        return [self.transform(image) for image in stimuli]  # type: ignore[operator]

    def forward(self, prepared: Sequence[Tensor]) -> Batch:
        pixels = torch.stack(list(prepared)).to(self.device, self.dtype)
        names = [layer.name for layer in self.layers]
        if self.by_path:
            found = self._outputs(pixels, names)
            layers = {n: self._pool_output(n, found[n]) for n in names}
        else:
            states = self._intermediates(pixels)
            layers = {n: pool_image(states[self.index[n]], self.places.get(n), self.pooling) for n in names}
        return Batch({name: x.to("cpu", torch.float32) for name, x in layers.items()})

    def _pool_output(self, name: str, x: Tensor) -> Tensor:
        """Of a module named by its path: as of other layers, no class token nor register is in a mean over tokens."""
        places = self.places.get(name)
        if places is None or self.pooling not in ("cls", "mean"):
            return any_pool(x, self.pooling, f"model {self.entry.label}, layer {name}")
        if self.pooling == "mean":
            return plain_mean(places.patches(x))
        if places.cls is None:
            raise RepalignError(
                f"model {self.entry.label}, layer {name}: pooling 'cls' does not apply",
                expected="a model with a class token among this layer's tokens",
                got=f"{places.before} other tokens before the patches", remedy="set `pooling: mean`",
            )  # fmt: skip
        return x[:, places.cls].to(torch.float32)

    def _outputs(self, pixels: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """What modules give; those of some models (Swin) give maps (b, h, w, d), and the model says so."""
        with passes.outputs_of(self.model, names, self.entry.label) as found:
            self.model(pixels)
        last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        return {n: x.permute(0, 3, 1, 2) if last and x.ndim == 4 else x for n, x in found.items()}

    def _intermediates(self, pixels: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Of every block the patch tokens (b, t, d) or maps (b, d, h, w), and the tokens before the patches.

        Where timm cannot give the latter it leaves them out, if there are any: of CaiT's blocks, for one, there are none.
        """
        options: dict[str, Any] = {"norm": False, "intermediates_only": True}
        takes = inspect.signature(self.model.forward_intermediates).parameters
        if "return_prefix_tokens" in takes and getattr(self.model, "num_prefix_tokens", 0):
            options |= {"return_prefix_tokens": True, "output_fmt": "NLC"}
        states = self.model.forward_intermediates(pixels, **options)
        return [s if isinstance(s, tuple) else (s, None) for s in states]

    def _probe_pixels(self) -> Tensor:
        return torch.stack(self.prepare(unlike_images(), ())).to(self.device, self.dtype)

    @torch.inference_mode()
    def _intermediate_layers(self) -> list[Layer]:
        """The layers that timm gives, each with the module that makes it, as one run shows."""
        self.known: tuple[str, ...] = ()
        self.places: dict[str, Places] = {}
        if not hasattr(self.model, "forward_intermediates"):
            return []
        pixels = self._probe_pixels()
        with passes.traced(self.model) as trace:
            states = self._intermediates(pixels)
        again = lambda: self._intermediates(pixels)  # noqa: E731
        every, self.places, self.known = image_layers(trace, again, states, self.entry.label, "timm")
        return every

    @torch.inference_mode()
    def _named_layers(self, names: Sequence[str]) -> tuple[Layer, ...]:
        """Modules as layers: one run shows where the tokens stand in them."""
        pixels = self._probe_pixels()
        with passes.traced(self.model) as trace:
            found = self._outputs(pixels, names)
        tokens = {n: x for n, x in found.items() if x.ndim == 3}
        if self.pooling in ("cls", "mean"):
            self.places = token_places(trace, lambda: self.model(pixels), tokens, self.entry.label)
        return tuple(passes.module_layer(self.model, n) for n in names)


def _load(spec: Spec, entry: ModelEntry, revision: str) -> tuple[Any, torch.dtype]:
    """The model, from a folder or at the hub's commit, and what its weights are stored in: timm makes them float32.

    Weights are read from safetensors only; what timm gets from elsewhere than the hub it reads in its own way.
    """
    import timm

    folder = Path(spec.path)
    with hub_errors(spec):
        if spec.is_local:
            file: Path | None = folder / "model.safetensors"
            model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        else:
            config = _pretrained(spec, entry)
            file = None
            pinned = {}
            if config.hf_hub_id:
                file = fetch(config.hf_hub_id, _safetensors(config.hf_hub_filename), spec, revision)
                pinned = {"hf_hub_id": f"{config.hf_hub_id}@{revision}", "hf_hub_filename": file.name}
            model = timm.create_model(spec.path, pretrained=True, pretrained_cfg_overlay=pinned)
        stored = read_headers([file]).dtype if file is not None else None
    return model, stored or next(model.parameters()).dtype


def _safetensors(named: str | None) -> list[str]:
    """The safetensors files that may stand for the file that timm names in a repository."""
    if named is None:
        return ["model.safetensors"]
    stem = named.rpartition(".")[0]
    safe = {"pytorch_model": "model", "open_clip_pytorch_model": "open_clip_model"}.get(stem, stem)
    return [named] if named.endswith(".safetensors") else [f"{safe}.safetensors"]


def _named_modules(model: Any, every: Sequence[Layer], entry: ModelEntry) -> list[str]:
    """The modules of the model that the entry names; none where it names layers that timm gives."""
    wanted = entry.layers or ()
    modules = [name for name, _ in model.named_modules() if name]
    found = [named_by(w, modules) if isinstance(w, str) else [] for w in wanted]
    if found and all(found) and not all(named_by(w, [layer.name for layer in every]) for w in wanted):
        return list(dict.fromkeys(name for names in found for name in names))
    if not every:
        unknown = next((str(w) for w, names in zip(wanted, found, strict=True) if not names), None)
        raise RepalignError(
            f"model {entry.label}: timm gives no intermediates for {type(model).__name__}",
            expected="paths of modules in `layers:`", got=unknown or "none",
            remedy=did_you_mean(unknown, modules) if unknown else f"name modules, such as {', '.join(sorted(modules)[:3])}",
        )
    return []


class Timm(HubSource):
    """`timm:` models."""

    packages = ("timm",)
    scheme, form, example = "timm", "timm:name, or timm:./folder", "timm:vit_base_patch14_dinov2.lvd142m"
    has_revisions = may_skip_sinks = False
    weights = "model.safetensors"
    poolings: ClassVar = {"image": ("cls", "mean", "spatial_mean")}

    def problem(self, path: str) -> tuple[str, str] | None:
        if self.local_part(path) or NAME.fullmatch(path):
            return None
        return f"the name {path!r}", "a name has letters, digits and . _ + - only, and no revision"

    def modality(self, spec: Spec, entry: ModelEntry) -> str | None:
        return super().modality(spec, entry) or "image"

    def check(self, spec: Spec, entry: ModelEntry) -> None:
        super().check(spec, entry)
        if not spec.is_local:
            _pretrained(spec, entry)

    def no_weights(self, spec: Spec) -> Unavailable:
        there = sorted(p.name for p in Path(spec.path).iterdir())[:5]
        return Unavailable(
            f"model {spec}: there are no safetensors weights", expected="config.json and model.safetensors in the folder",
            got=", ".join(there) or "an empty folder",
            remedy="save it with timm.models.save_for_hf(model, folder, model_config, safe_serialization=True)",
        )  # fmt: skip

    def revision(self, spec: Spec, entry: ModelEntry) -> str:
        if spec.is_local:
            return hub_revision(spec)
        hub_id = _pretrained(spec, entry).hf_hub_id
        return hub_revision(Spec("hf", hub_id)) if hub_id else f"timm-{versions('timm')['timm']}"

    def repository(self, spec: Spec) -> Repository | None:
        if spec.is_local:
            return None
        if any(known.spec == str(spec) for known in known_models()):
            return f"timm/{spec.path}", None  # timm's own repositories are called as it calls the model
        name = getattr(_configured(spec.path), "hf_hub_id", None)
        return (name, None) if name else None

    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:  # noqa: ARG002
        counted = _counted(spec)
        found = self.weight_facts(spec, answer)
        if found or answer is not None or counted.parameters is None or self.repository(spec) is None:
            return replace(counted, **found)
        size = 4 * counted.parameters  # as timm stores its models
        return replace(counted, stored=torch.float32, file_bytes=size, download_bytes=size, download_from=COUNTED)

    def load(self, spec: Spec, entry: ModelEntry, context: Context) -> LoadedModel:
        model, stored = _load(spec, entry, context.revision)
        return TimmVision(spec, entry, ready(model, stored, context, entry.label))

    def takes(self, entry: Model) -> bool:
        """A model that says by which transform it sees, or has one beside it."""
        return is_of(entry.model, "timm") and bool(entry.preprocess or getattr(entry.model, "pretrained_cfg", None))

    def wrap(self, spec: Spec, entry: Model, loaded: Loaded) -> LoadedModel:
        return TimmVision(spec, entry, loaded, entry.preprocess)

    def stand_in(self, asked: Asked) -> StandIn:
        from repalign.sources import standin_models

        self.require(asked.entry)
        notes: tuple[str, ...] = ()
        if not asked.spec.is_local:
            try:
                _pretrained(asked.spec, asked.entry)
            except Unavailable as error:
                notes = (error.reason,)
        return standin_models.timm_model(asked, notes)

    def refuse_outdated(self, spec: Spec, entry: ModelEntry, stored: StoredRepresentation) -> None:
        """Refuse an extraction by a former version, whose facts say nothing of a class token, that took something else."""
        import timm

        pooling = stored.facts.get("pooling")
        if "class_token" in stored.facts or pooling not in ("cls", "mean"):
            return
        by_path = any(isinstance(n, str) and not n.startswith(("block.", "stage.")) for n in entry.layers or ())
        wrong = "means over more tokens than those of patches" if by_path else None
        if pooling == "cls" and not by_path:
            with torch.device("meta"):
                model = timm.create_model(f"local-dir:{spec.path}" if spec.is_local else spec.path, pretrained=False)
            wrong = None if class_tokens(model) else "a register in place of a class token"
        if wrong is not None:
            raise outdated(entry, wrong, stored)
