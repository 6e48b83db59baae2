"""From models and a dataset to representations in a store: one loop, and one small file per source."""

from __future__ import annotations

from repalign.sources.loop import SOURCES, choose_device, extract
from repalign.sources.source import Batch, Layer, ModelEntry, Skipped, Source

__all__ = ["SOURCES", "Batch", "Layer", "ModelEntry", "Skipped", "Source", "choose_device", "extract"]
