"""Alignment while a model trains: frozen references (`Panel`), and what scores a live model against them (`Tracker`).

The callback for the Trainer of transformers stands in `track.hf`, which nothing here imports.
"""

from repalign.track.panel import Panel
from repalign.track.tracker import COLUMNS, Tracker, rankme

__all__ = ["COLUMNS", "Panel", "Tracker", "rankme"]
