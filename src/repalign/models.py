"""Models as records of data: what a model is, never how to run it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelRecord:
    """One model, as data.

    `spec` is the spec string that loads it, `name` a short label that is unique within a study.
    `revision` is what the spec resolved to (a commit, or a digest of local files). `scores` maps a
    competence ("bits_per_byte", "imagenet_top1", ...) to its value; `lower_is_better` is a fact of the
    competence, not of the record.
    """

    spec: str
    name: str
    modality: str  # "text", "image", or a name of the user's own
    revision: str | None = None
    family: str | None = None
    objective: str | None = None
    n_parameters: int | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelRecord:
        return cls(**data)
