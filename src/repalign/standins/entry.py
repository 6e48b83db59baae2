"""A model's entry with a tiny local model in its place: which kind, and what becomes of the options."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from repalign.errors import RepalignError, Unavailable
from repalign.models import Spec, parse_spec
from repalign.sources import ModelEntry
from repalign.sources import timm as timm_
from repalign.sources.array import reading_of
from repalign.sources.source import no_modality, short_name
from repalign.standins import arrays, images, texts, torch_module, toys
from repalign.standins.folders import made_once
from repalign.standins.shapes import Shape, shape_of

ONE_VECTOR = {"spatial_mean": "mean"}  # poolings that a vision transformer lacks, and what it does instead


@dataclass(frozen=True)
class Found:
    """A stand-in: its spec, the layers that it has, poolings that it has other ones for, and what there is to say."""

    spec: str
    layers: tuple[str, ...]
    poolings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    n_parameters: int | None = None  # what the real file says of the model
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What a stand-in is made of."""

    entry: ModelEntry
    spec: Spec
    name: str
    modality: str
    folder: Path
    ids: tuple[str, ...]
    seed: int

    @property
    def shape(self) -> Shape:
        return shape_of(self.name, self.seed)

    def made(self, kind: str, write: Callable[[Path], object], **more: object) -> Path:
        """The folder of a stand-in of some kind."""
        arguments = {"spec": str(self.spec), "kind": kind, "shape": asdict(self.shape), **more}
        return made_once(self.folder, self.name, arguments, write)


def stand_in(
    entry: ModelEntry, modality: str, folder: str | Path, *, ids: Sequence[str] = (), seed: int = 0
) -> tuple[ModelEntry, tuple[str, ...]]:
    """The entry with a tiny local model in place of the real one, and notes on what of it cannot be kept.

    * `entry`: the real model's; all its fields but the spec stay, and options that the stand-in lacks are changed: a layer
      beyond its last one is its last one, a layer by a name that it has not is left out, and a pooling of maps is the mean
      over tokens. Each such change is a note, in words that follow the model's name.
    * `modality`: what it reads, "image" or "text", where its source takes both; for `torch:` and `array:` any column.
    * `folder`: models are written there, each in a folder of its own, whole or not at all, and used again.
    * `ids`: of the dataset's stimuli, for a file of features.

    A text model of transformers is one of its family as the name tells it (GPT-2, Llama, BLOOM or BERT), an image model or
    one of timm a vision transformer, one of OpenCLIP the stand-in of its side, a torch module a few layers, a file of
    features one with as many layers, a toy model its untrained twin. Depth, width and seed follow from the name.

    Raises RepalignError for what a run would refuse too and that can be told without the model: a spec of no known form,
    names that timm or the toy world do not have, a modality that has to be said.
    """
    spec = parse_spec(entry.spec)
    name = entry.name or _usual_name(entry, spec)
    asked = Asked(entry, spec, name, modality, Path(folder), tuple(ids), seed)
    found = MAKERS[spec.scheme](asked)
    layers, notes = _fitting(entry.layers, found.layers)
    pooling = found.poolings.get(entry.pooling or "", entry.pooling)
    if pooling != entry.pooling:
        notes = (*notes, f"pooling {entry.pooling} is {pooling}: the stand-in is a transformer")
    made = replace(
        entry, spec=found.spec, name=name, layers=layers, pooling=pooling, scores={**found.scores, **entry.scores},
        n_parameters=found.n_parameters if entry.n_parameters is None else entry.n_parameters,
        id=None, features=None, vector=None, axes=None,  # of the real file: a stand-in is plain
    )  # fmt: skip
    return made, (*found.notes, *notes)


def _usual_name(entry: ModelEntry, spec: Spec) -> str:
    """What extraction calls a model whose user gave it no name."""
    if spec.scheme == "array":
        return Path(spec.path).stem
    if spec.scheme == "openclip":
        return f"{spec.path.partition('/')[0]}-{entry.modality}"
    return spec.path.rpartition(":")[2] if spec.scheme == "torch" else short_name(spec)


# --- one maker for each scheme -------------------------------------------------------------------


def _hf(asked: Asked) -> Found:
    _check_side(asked)
    notes = _missing(asked.spec)
    if asked.modality == "image":
        folder = asked.made("hf image", lambda to: images.write_vision(to, asked.shape))
        return Found(f"hf:{folder}", images.image_layers(asked.shape), ONE_VECTOR, notes)
    family = texts.family_of(f"{asked.spec.path} {_model_type(asked.spec)}", asked.entry.pooling)
    folder = asked.made(family, lambda to: texts.write_text_model(to, family, asked.shape))
    return Found(f"hf:{folder}", texts.text_layers(asked.shape), notes=notes)


def _timm(asked: Asked) -> Found:
    folder = asked.made("timm", lambda to: images.write_timm(to, asked.shape))
    # Modules that are named by path may be pooled by their last token, which no block of timm's is.
    poolings = {**ONE_VECTOR, "last": "mean"} if any(isinstance(w, str) for w in asked.entry.layers or ()) else ONE_VECTOR
    return Found(f"timm:{folder}", images.image_layers(asked.shape), poolings, _missing(asked.spec) or _unknown_to_timm(asked))


def _st(asked: Asked) -> Found:
    folder = asked.made("st", lambda to: texts.write_sentence_model(to, asked.shape))
    return Found(f"st:{folder}", (*texts.text_layers(asked.shape), "sentence_embedding"), notes=_missing(asked.spec))


def _openclip(asked: Asked) -> Found:
    if asked.entry.modality is None:
        raise _no_modality(asked, "modality: image, or modality: text")
    _check_side(asked)
    if asked.modality == "image":
        folder = asked.made("hf image", lambda to: images.write_vision(to, asked.shape))
        return Found(f"hf:{folder}", images.image_layers(asked.shape), ONE_VECTOR)
    folder = asked.made("gpt2", lambda to: texts.write_text_model(to, "gpt2", asked.shape))
    return Found(f"hf:{folder}", texts.text_layers(asked.shape))


def _torch(asked: Asked) -> Found:
    file = asked.made("torch", lambda to: torch_module.write_factory(to, asked.modality, asked.shape), reads=asked.modality)
    return Found(f"torch:{file / 'model.py'}:build", torch_module.torch_layers(asked.shape), notes=_missing(asked.spec))


def _array(asked: Asked) -> Found:
    form, problem = arrays.form_of(Path(asked.spec.path), reading_of(asked.entry, len(asked.ids)), asked.shape.width)
    if problem is not None:
        form = replace(form, modality=asked.modality)
    elif asked.entry.modality is None and form.modality is None:
        raise _no_modality(asked, "the dataset's column, for instance text or image")
    folder = asked.made(
        "array",
        lambda to: arrays.write_features(to, form, asked.ids, asked.shape, asked.seed),
        form=asdict(form), ids=list(asked.ids), scenes=asked.seed,
    )  # fmt: skip
    notes = () if problem is None else (f"{problem}; the stand-in has {len(form.layers)} layers",)
    return Found(
        f"array:{folder / 'features.safetensors'}", tuple(form.layers), notes=notes, n_parameters=form.n_parameters,
        scores=form.scores,
    )  # fmt: skip


def _toy(asked: Asked) -> Found:
    twin, layers = toys.twin_of(asked.spec.path)
    return Found(f"toy:{twin}", layers)


MAKERS: dict[str, Callable[[Asked], Found]] = {
    "hf": _hf,
    "timm": _timm,
    "st": _st,
    "openclip": _openclip,
    "torch": _torch,
    "array": _array,
    "toy": _toy,
}


# --- what can be told without the model ----------------------------------------------------------


def _check_side(asked: Asked) -> None:
    if asked.modality not in ("image", "text"):
        raise RepalignError(
            f"model {asked.name}: {asked.spec.scheme} models read images or texts",
            expected="modality: image, or modality: text",
            got=asked.modality,
        )


def _no_modality(asked: Asked, expected: str) -> RepalignError:
    return no_modality(asked.entry.label, asked.spec.scheme, expected)


def _missing(spec: Spec) -> tuple[str, ...]:
    """A note on a local model that is not there."""
    path = Path(spec.path.rpartition(":")[0] if spec.scheme == "torch" else spec.path)
    return (f"there is no {path}",) if spec.is_local and not path.exists() else ()


def _unknown_to_timm(asked: Asked) -> tuple[str, ...]:
    """A note on a model that timm has no more; RepalignError for a name that it never had."""
    if asked.spec.is_local:
        return ()
    try:
        timm_._pretrained(asked.spec, asked.entry)
    except Unavailable as error:
        return (error.reason,)
    return ()


def _model_type(spec: Spec) -> str:
    """What the configuration of a local model calls its architecture; nothing of another."""
    try:
        return str(json.loads((Path(spec.path) / "config.json").read_text("utf-8"))["model_type"]) if spec.is_local else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


# --- options -------------------------------------------------------------------------------------


def _fitting(
    wanted: tuple[int | str, ...] | None, there: tuple[str, ...]
) -> tuple[tuple[int | str, ...] | None, tuple[str, ...]]:
    """The layers that the stand-in has for those that are asked of the real model, and a note on each that it lacks."""
    if wanted is None:
        return None, ()
    kept, notes = [], []
    for w in wanted:
        found = _clipped(w, there)
        if found is None:
            notes.append(f"layer {w!r} is left out: the stand-in has {there[0]} to {there[-1]}")
            continue
        kept.append(found)
        if found != w:
            notes.append(f"layer {w!r} is {found!r}: the stand-in has {len(there)} layers")
    if wanted and not kept:
        notes.append("all layers of the stand-in are taken")
        return None, tuple(notes)
    return tuple(dict.fromkeys(kept)), tuple(notes)


def _clipped(wanted: int | str, there: tuple[str, ...]) -> int | str | None:
    """An index within range; a name that is there; of "block.31" or "stage.3" the last of the numbered; None of others."""
    if isinstance(wanted, int):
        return min(max(wanted, -len(there)), len(there) - 1)
    if wanted in there:
        return wanted
    numbered = [name for name in there if re.fullmatch(r"block\.\d+", name)]
    asked = re.fullmatch(r"(?:block|stage)\.(\d+)", wanted)
    if asked is None or not numbered:
        return None
    return numbered[min(int(asked[1]), len(numbered) - 1)]
