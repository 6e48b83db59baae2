"""What a source of representations is, and what a user may ask of it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, did_you_mean
from repalign.models import ModelRecord

STORE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "float64": torch.float64}
BOS = ("skip", "keep")


@dataclass(frozen=True)
class ModelEntry:
    """One model and all that a user may ask of it.

    `spec` the spec string; `name` a short label. `modality` the dataset's column to read, needed where the model does not
    say it (torch, array). `pooling` how the tokens or positions of a layer become one vector: "mean", "last", "cls",
    "spatial_mean"; None takes the source's default. `layers` names or indices (negative ones count from the end); None
    takes all. `caption` which of several captions. `bos` "skip" leaves a leading beginning-of-sequence token out of
    the mean, "keep" counts it. `padding` side for text, "right" or "left". `truncate` cuts what is longer than the
    model's context instead of refusing it. `store_dtype` of the stored features. `ids` "rows" says that the rows of
    an array are in the dataset's order. `family`, `objective`, `n_parameters` and `scores` go into the record.
    """

    spec: str
    name: str | None = None
    modality: str | None = None
    pooling: str | None = None
    layers: tuple[int | str, ...] | None = None
    caption: int = 0
    bos: str = "skip"
    padding: str = "right"
    truncate: bool = False
    store_dtype: str = "float32"
    ids: str | None = None
    family: str | None = None
    objective: str | None = None
    n_parameters: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
        for option, known in (
            ("bos", BOS),
            ("padding", ("right", "left")),
            ("store_dtype", STORE_DTYPES),
            ("ids", (None, "rows")),
        ):
            value = getattr(self, option)
            if value not in known:
                raise RepalignError(
                    f"model {self.label}: unknown {option} {value!r}",
                    got=value,
                    remedy=did_you_mean(str(value), [k for k in known if k]),
                )

    @property
    def label(self) -> str:
        return self.name or self.spec

    def settings(self, dtype: str) -> dict[str, Any]:
        """The requested options that determine the features; what the store's extraction hash covers."""
        return {
            "modality": self.modality,
            "pooling": self.pooling,
            "layers": None if self.layers is None else list(self.layers),
            "caption": self.caption,
            "bos": self.bos,
            "padding": self.padding,
            "truncate": self.truncate,
            "store_dtype": self.store_dtype,
            "ids": self.ids,
            "dtype": dtype,
        }

    def complete(self, record: ModelRecord) -> ModelRecord:
        """The record with what the user says of the model put over what the source found."""
        said = {f: getattr(self, f) for f in ("name", "family", "objective", "n_parameters")}
        said = {f: v for f, v in said.items() if v is not None}
        return replace(record, **said, scores={**record.scores, **self.scores})


@dataclass(frozen=True)
class Context:
    """Where and how models are run."""

    device: str
    dtype: str  # "auto", "float32", "bfloat16", "float16"
    trust_remote_code: bool = False
    dataset_ids: tuple[str, ...] = ()  # for sources that bring ids of their own


@dataclass(frozen=True)
class Layer:
    """One layer: its name, its width where it is known before running, and what it is."""

    name: str
    what: str


@dataclass(frozen=True)
class Batch:
    """What a forward pass gives: (b, d) per layer in float32 on the CPU, and numbers per stimulus."""

    layers: dict[str, Tensor]
    extras: dict[str, Tensor] = field(default_factory=dict)


class Source(ABC):
    """A loaded model, or a file of features: stimuli in, one vector per stimulus and layer out."""

    kind: ClassVar[str | None] = None  # the kind of stimuli it reads; None: it reads row numbers, not stimuli
    record: ModelRecord
    layers: tuple[Layer, ...]
    facts: dict[str, Any]  # how the features come about; goes into every part
    weights: str  # a digest of the loaded weights

    def lengths(self, stimuli: Sequence[Any]) -> list[int] | None:  # noqa: ARG002
        """How long each stimulus is, so that batches hold stimuli of like length; None if all are alike."""
        return None

    def prepare(self, stimuli: Sequence[Any], where: Sequence[str]) -> list[Any]:  # noqa: ARG002
        """Each stimulus as the model takes it; `where` names each row for errors."""
        return list(stimuli)

    @abstractmethod
    def forward(self, prepared: Sequence[Any]) -> Batch:
        """One pass over a batch."""

    def summary(self, extras: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[str, Any]]:  # noqa: ARG002
        """Scores and facts that follow from the extras of all rows."""
        return {}, {}


# --- what sources share ------------------------------------------------------------------------


def choose(names: Sequence[str], wanted: Sequence[int | str] | None, label: str) -> list[str]:
    """The chosen layer names, in depth order; indices may be negative. Errors for what is not there."""
    if wanted is None:
        return list(names)
    chosen = set()
    for w in wanted:
        if isinstance(w, int) and not isinstance(w, bool):
            if not -len(names) <= w < len(names):
                raise RepalignError(
                    f"model {label}: no layer {w}", expected=f"an index from {-len(names)} to {len(names) - 1}", got=w
                )
            chosen.add(names[w])
        elif w in names:
            chosen.add(w)
        else:
            raise RepalignError(
                f"model {label}: no layer {w!r}",
                expected=f"one of {len(names)} layers, from {names[0]!r} to {names[-1]!r}, or an index",
                got=w,
                remedy=did_you_mean(str(w), names),
            )
    return [n for n in names if n in chosen]


def choose_pooling(asked: str | None, default: str, known: Sequence[str], label: str) -> str:
    """The pooling to use; an error if the model has no such pooling."""
    pooling = default if asked is None else asked
    if pooling not in known:
        raise RepalignError(
            f"model {label}: pooling {pooling!r} does not apply",
            expected=f"one of {', '.join(known)}",
            got=pooling,
            remedy=did_you_mean(pooling, known),
        )
    return pooling


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens where mask is true, in float32: (b, t, d), (b, t) -> (b, d)."""
    weights = mask.to(torch.float32)
    total = torch.einsum("btd,bt->bd", hidden.to(torch.float32), weights)
    return total / weights.sum(dim=1, keepdim=True)


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of all parameters and buffers in the order of their names."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        sha.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        flat = tensor.detach().to("cpu").contiguous().flatten()
        if flat.numel():
            sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def count_parameters(module: nn.Module) -> int:
    """Parameters, tied ones counted once."""
    return sum(p.numel() for p in module.parameters())


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the libraries that the features depend on."""
    out = {}
    for package in ("repalign", "torch", *packages):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "not installed"
    return out


def torch_dtype(asked: str, stored: torch.dtype | None, device: str, label: str) -> torch.dtype:
    """The dtype to run in: on a GPU half precision where the model is stored so, else float32."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if asked == "auto":
        half = stored in (torch.float16, torch.bfloat16)
        return torch.bfloat16 if half and device.startswith("cuda") else torch.float32
    if asked not in known:
        raise RepalignError(f"model {label}: unknown dtype {asked!r}", got=asked, remedy=did_you_mean(asked, known))
    return known[asked]


def no_modality(label: str, scheme: str) -> RepalignError:
    return RepalignError(
        f"model {label}: a {scheme} model does not say which modality it reads",
        expected="modality: the dataset's column, for instance text or image",
        got="none",
        remedy="add `modality: image` (or text) to the model's entry",
    )
