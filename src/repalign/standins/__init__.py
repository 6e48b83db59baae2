"""Tiny stand-ins for any model and any dataset, so that a whole study can be tried out in seconds without a network.

`write_dataset` a table of generated images and captions; `stand_in` a model of the same kind as that of an entry;
`stand_in_scores` how good such models would be.
"""

from __future__ import annotations

from repalign.standins.dataset import write_dataset
from repalign.standins.entry import stand_in
from repalign.standins.scores import stand_in_scores

__all__ = ["stand_in", "stand_in_scores", "write_dataset"]
