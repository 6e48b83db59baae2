"""From models and a dataset to representations in a store: one loop, and one small file per source."""

from __future__ import annotations

from repalign.extract._base import Batch, Layer, ModelEntry, Skipped, Source
from repalign.extract._loop import SOURCES, choose_device, extract

__all__ = ["SOURCES", "Batch", "Layer", "ModelEntry", "Skipped", "Source", "choose_device", "extract"]
