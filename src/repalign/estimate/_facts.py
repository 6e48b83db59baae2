"""What is known of a model before it is loaded, and where each number comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

# Where a number comes from.
KNOWN = "known"  # the table of known models, or a recipe of the toy world
MEASURED = "measured"  # an extraction in the store, or a rate that was measured
COUNTED = "counted"  # the architecture, built without weights
FILE = "file"  # a file on this machine: its header, its configuration, the entry of the study
HUB = "hub"  # what the hub says
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Facts:
    """A model before it is loaded; None is what is not known.

    kind : of the stimuli that it reads, "text" or "image".
    parameters : with the heads that the weights file has.
    widths : d of every layer as extracted, `names` their names where they are known.
    stored : the dtype of the weights. file_bytes : what loading reads. download_bytes : what has to be fetched first.
    tokens : of one image. flops : of one stimulus, where they were counted on the architecture.
    work : core-seconds beside the forward passes, such as training a toy model.
    """

    kind: str | None = None
    parameters: int | None = None
    widths: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    stored: torch.dtype | None = None
    file_bytes: int | None = None
    download_bytes: int | None = None
    tokens: int | None = None
    flops: float | None = None
    work: float = 0.0
    reads_array: bool = False  # a file of features: nothing is run
    parameters_from: str = UNKNOWN
    layers_from: str = UNKNOWN
    download_from: str = UNKNOWN

    def choose(self, wanted: Sequence[int | str] | None) -> Facts:
        """Only the layers that the entry asks for; None where it cannot be told how wide they are."""
        if wanted is None or self.widths is None:
            return self
        places = [self._place(w) for w in wanted]
        if all(p is not None for p in places):
            kept = sorted({p for p in places if p is not None})
            names = None if self.names is None else tuple(self.names[i] for i in kept)
            return replace(self, widths=tuple(self.widths[i] for i in kept), names=names)
        if len(set(self.widths)) == 1 and len(places) <= len(self.widths):
            return replace(self, widths=self.widths[: len(places)], names=None)
        return replace(self, widths=None, names=None, layers_from=UNKNOWN)

    def _place(self, wanted: int | str) -> int | None:
        assert self.widths is not None
        count = len(self.widths)
        if isinstance(wanted, int):
            return wanted % count if -count <= wanted < count else None
        return self.names.index(wanted) if self.names is not None and wanted in self.names else None
