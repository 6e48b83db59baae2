"""From models and a dataset to representations in a store: one loop, and one source for each scheme of specs."""

from __future__ import annotations

from repalign.sources.loop import extract
from repalign.sources.memory import Model
from repalign.sources.model import Batch, Context, Layer, LoadedModel, ModelEntry, Pending, Skipped
from repalign.sources.parts import choose_device
from repalign.sources.source import SOURCES, Answer, Asked, Facts, Source, Spec, StandIn, facts_of, parse_spec

__all__ = [
    "SOURCES", "Answer", "Asked", "Batch", "Context", "Facts", "Layer", "LoadedModel", "Model", "ModelEntry", "Pending", "Skipped",
    "Source", "Spec", "StandIn", "choose_device", "extract", "facts_of", "parse_spec",
]  # fmt: skip
