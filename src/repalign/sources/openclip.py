"""OpenCLIP models: the blocks, and the embedding in the shared space, of the side that `modality:` names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from repalign.dataset import Dataset
from repalign.errors import RepalignError, did_you_mean, is_of
from repalign.sources import passes
from repalign.sources.hub import hub_errors, hub_revision
from repalign.sources.image_tokens import Places, image_layers, pool_image, unlike_images
from repalign.sources.memory import Model, alone, tower
from repalign.sources.model import (
    Batch,
    Context,
    Layer,
    Loaded,
    LoadedModel,
    ModelEntry,
    count_parameters,
    no_modality,
    ready,
    told,
    versions,
)
from repalign.sources.pooling import TextModel, sees_only_back
from repalign.sources.source import NAME, Answer, Asked, Facts, Source, Spec, StandIn

EMBEDDING = "embedding"
SIDES = "modality: image, or modality: text"


class OpenCLIPSide(TextModel):
    """Images or texts in; block outputs, before the final norm, and the unscaled shared embedding out."""

    sorts, shown_first = False, 0

    def __init__(self, spec: Spec, entry: ModelEntry, side: str, loaded: Loaded, transform: Any, tokenizer: Any) -> None:
        self.entry, self.device, self.dtype = entry, loaded.device, loaded.dtype
        self.model: Any = loaded.model
        self.kind, self.transform, self.tokenizer = side, transform, tokenizer
        every = self._probe()
        self.pooling = self.choose_pooling(self.known)
        self.skips_first = self.kind == "text" and self.may_skip  # each text begins with a token that is a sink
        self.layers = self.choose_layers(every)
        self.places = {layer.name: i for i, layer in enumerate(every)}
        facts = {
            "pooling": f"{self.pooling}; {EMBEDDING}: the model's own, not normalised",
            "tokens": self._which_tokens(),
            **({"class_token": any(p.cls is not None for p in self.tokens.values())} if self.kind == "image" else self.token_facts),
            "preprocessing": told(self.transform) if self.kind == "image" else None,
            **self.text_facts(),
        }
        seen, libraries = count_parameters(self.model.visual), ("open_clip_torch", "torchvision", "pillow")
        count = seen if self.kind == "image" else count_parameters(self.model) - seen
        self.describe(
            spec, side, self.model, (self.dtype, loaded.stored), libraries, facts, n_parameters=count,
            objective="contrastive, image and text",
        )  # fmt: skip

    def prepare(self, stimuli: Sequence[Any], where: Sequence[str]) -> list[Any]:
        if self.kind == "text":
            for text, row in zip(stimuli, where, strict=True):
                self._refuse_long(text, row)
        return list(stimuli)

    def _refuse_long(self, text: str, row: str) -> None:
        """OpenCLIP's tokenizers cut without a word."""
        encode = getattr(self.tokenizer, "encode", None) or getattr(self.tokenizer, "tokenizer", None)
        if self.entry.truncate or encode is None:
            return
        found = encode(text)
        n = len(found) + 2 if isinstance(found, list) else len(found["input_ids"])  # start and end of text
        if n > self.tokenizer.context_length:
            raise self.too_long(row, self.tokenizer.context_length, n)

    def forward(self, prepared: Sequence[Any]) -> Batch:
        states, embedding = self._run(list(prepared))
        chosen = {layer.name: states[self.places[layer.name]] for layer in self.layers if layer.name != EMBEDDING}
        masks = [mask for _, mask in chosen.values() if mask is not None]  # of a text: the same for all layers
        if self.kind == "text":
            batch = self.pooled({name: x for name, (x, _) in chosen.items()}, masks[0]) if masks else Batch({})
        else:
            images = {n: pool_image(state, self.tokens.get(n), self.pooling) for n, state in chosen.items()}
            batch = Batch({name: x.to("cpu", torch.float32) for name, x in images.items()})
        batch.layers[EMBEDDING] = embedding.to("cpu", torch.float32)
        return Batch({layer.name: batch.layers[layer.name] for layer in self.layers}, batch.extras)

    def _which_tokens(self) -> str:
        if self.kind == "image":
            return "the mean is over patches"
        return f"from {'behind ' if self.skips_first else ''}the start to the end of text"

    def _run(self, stimuli: list[Any]) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
        if self.kind == "text":
            return self._run_texts(self.tokenizer(stimuli).to(self.device))
        pixels = torch.stack([self.transform(image) for image in stimuli]).to(self.device, self.dtype)
        trunk = getattr(self.model.visual, "trunk", None)  # a vision model of timm
        has_tokens = hasattr(self.model.visual, "transformer") or getattr(trunk, "num_prefix_tokens", 0) > 0
        options: dict[str, Any] = {"image_output_extra_tokens": True, "image_output_fmt": "NLC"} if has_tokens else {}
        out = self.model.forward_intermediates(image=pixels, normalize=False, **options)
        states = out["image_intermediates"]
        beside = out.get("image_intermediates_prefix") or [None] * len(states)
        return list(zip(states, beside, strict=True)), out["image_features"]

    def _run_texts(self, tokens: Tensor) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
        out = self.model.forward_intermediates(text=tokens, normalize=False)
        end = (tokens == getattr(self.tokenizer, "eot_token_id", -1)).to(torch.int64)
        mask = end.cumsum(dim=1) - end == 0  # up to the first end of text
        states = out["text_intermediates"] if bool(end.any(dim=1).all()) else []
        return [(x, mask) for x in states], out["text_features"]

    def _check_causal(self, text: str) -> bool:
        """Whether tokens do not see those behind them."""
        tokens = self.tokenizer([text]).to(self.device)
        states, _ = self._run_texts(tokens)
        return bool(states) and sees_only_back(lambda ids: [x for x, _ in self._run_texts(ids)[0]], tokens, 2, self.dtype)

    @torch.inference_mode()
    def _probe(self) -> list[Layer]:
        examples = ["a brown dog"] if self.kind == "text" else unlike_images()
        with passes.traced(self.model) as trace:
            states, _ = self._run(examples)
        self.tokens: dict[str, Places] = {}
        if self.kind == "text":
            self.known: tuple[str, ...] = ("mean", "last")
            self.causal = self._check_causal(examples[0])
            blocks = [Layer(f"block.{i}", trace.what(x, i)) for i, (x, _) in enumerate(states)]
        else:
            again = lambda: self._run(examples)  # noqa: E731
            blocks, self.tokens, self.known = image_layers(trace, again, states, self.entry.label, "OpenCLIP")
        return [*blocks, Layer(EMBEDDING, "the embedding in the shared space")]


class OpenCLIP(Source):
    """`openclip:` models, one side at a time."""

    extra = "openclip"
    packages = ("open_clip",)
    scheme, form, example = "openclip", "openclip:architecture/pretrained", "openclip:ViT-B-32/laion2b_s34b_b79k"
    published = may_skip_sinks = True
    sinkless = ("image",)
    poolings: ClassVar = {"text": ("mean", "last"), "image": ("cls", "mean", "spatial_mean")}

    def problem(self, path: str) -> tuple[str, str] | None:
        if path.count("/") == 1 and not all(map(NAME.fullmatch, path.split("/"))):
            return f"{path!r}", "name the architecture and the weights"
        if path.count("/") != 1:
            return f"{path.count('/')} slashes in {path!r}", "put one slash between architecture and weights"
        return None

    def check(self, spec: Spec, entry: ModelEntry) -> None:
        super().check(spec, entry)
        if entry.modality not in ("image", "text"):
            raise no_modality(entry, self.scheme, SIDES)
        import open_clip  # pyright: ignore[reportMissingImports]

        architecture, _, pretrained = spec.path.partition("/")
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        for given, known in ((architecture, open_clip.list_models()), (pretrained, tags)):
            if given not in known:
                raise RepalignError(
                    f"model {entry.label}: OpenCLIP knows no {given!r}", got=spec.path, remedy=did_you_mean(given, known),
                    expected="architecture/pretrained as open_clip.list_pretrained() gives them",
                )  # fmt: skip

    def reach(self, spec: Spec, entry: ModelEntry) -> None:
        self.revision(spec, entry)

    def name(self, spec: Spec, entry: ModelEntry) -> str:
        side = f"-{entry.modality}" if entry.modality else ""
        return entry.name or spec.path.partition("/")[0] + side

    def revision(self, spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG002
        """The commit of the repository that the weights are in, or OpenCLIP's version where they are elsewhere."""
        architecture, _, pretrained = spec.path.partition("/")
        import open_clip  # pyright: ignore[reportMissingImports]  (an extra)

        hub = open_clip.get_pretrained_cfg(architecture, pretrained).get("hf_hub", "").split("/")
        if len(hub) < 2:
            return f"open_clip-{versions('open_clip_torch')['open_clip_torch']}"
        return hub_revision(Spec("hf", "/".join(hub[:2])))

    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:  # noqa: ARG002
        return Facts(kind=entry.modality)  # its library says nothing more of a model without loading it

    def load(self, spec: Spec, entry: ModelEntry, context: Context) -> LoadedModel:
        import open_clip  # pyright: ignore[reportMissingImports]

        architecture, _, pretrained = spec.path.partition("/")
        with hub_errors(spec):
            model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=pretrained)
        loaded = ready(model, next(model.parameters()).dtype, context, entry.label)
        loaded = replace(loaded, stored=None)  # OpenCLIP makes weights float32, and does not say what they are stored in
        return OpenCLIPSide(spec, entry, str(entry.modality), loaded, transform, open_clip.get_tokenizer(architecture))

    def takes(self, entry: Model) -> bool:
        return is_of(entry.model, "open_clip")

    def towers(self, entry: Model, dataset: Dataset) -> list[Model]:  # noqa: ARG002
        """The side that the second of the pair is for."""
        if entry.preprocess is None:
            raise alone(entry, "its transform or its tokenizer", "(model, transform)")
        return [tower(entry, _side(entry))]

    def wrap(self, spec: Spec, entry: Model, loaded: Loaded) -> LoadedModel:
        return OpenCLIPSide(spec, entry, _side(entry), loaded, entry.preprocess, entry.preprocess)

    def stand_in(self, asked: Asked) -> StandIn:
        from repalign.sources import standin_models

        if asked.entry.modality is None:
            raise no_modality(asked.entry, self.scheme, SIDES)
        return standin_models.of_side(asked, "gpt2")


def _side(entry: Model) -> str:
    """Which side of a model in memory is read: that of the tokenizer beside it, or of the transform."""
    return "text" if is_of(entry.preprocess, "open_clip") else "image"
