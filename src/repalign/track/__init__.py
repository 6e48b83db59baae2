"""Alignment while a model trains: frozen references (`Panel`), and what scores a live model against them (`Tracker`).

Callbacks stand in `track.hf`, for the Trainer of transformers, and `track.lightning`; nothing here imports them.
"""

from repalign.track.panel import Panel
from repalign.track.reading import Batches
from repalign.track.tracker import COLUMNS, Tracker, rankme

__all__ = ["COLUMNS", "Batches", "Panel", "Tracker", "rankme"]
