"""What running one model over a dataset takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from repalign.estimate._rates import Rates
from repalign.sources import Facts
from repalign.sources.model import RUN_DTYPES, STORE_DTYPES

# Seconds of each block of each batch beside its products: measured on a model of 0.3 million parameters, whose passes are
# little else.
LAYER_SECONDS = 1.2e-3
# To build a model and to probe it once, without reading its weights.
BUILD_SECONDS = 0.5


@dataclass(frozen=True)
class Work:
    """What a model runs on: n stimuli, in batches, of `tokens` each (None where that is not known)."""

    n: int
    batch_size: int
    tokens: float | None
    stimulus_seconds: float  # to read one


def flops(facts: Facts, tokens: float | None) -> float | None:
    """Operations of one stimulus: as counted, or 2 P t for P parameters and t tokens and 4 t^2 d for every layer's attention.

    All parameters count, so that a mixture of experts is taken as if all of them ran.
    """
    if facts.flops is not None:
        return facts.flops
    if facts.parameters is None or tokens is None:
        return None
    return 2.0 * facts.parameters * tokens + 4.0 * tokens**2 * sum(facts.widths or ())


def seconds(facts: Facts, work: Work, run: torch.dtype, rates: Rates) -> float | None:
    """Loading and running; None where it is not known what a pass costs. Downloading is not in it.

    Loading reads the files and takes digests of the weights. Writing takes digests of the features.
    """
    written = (feature_bytes(facts, work.n, "float32") or 0) / rates.digest
    if facts.reads_array:
        if facts.file_bytes is None:
            return None
        return facts.file_bytes * (1 / rates.disk + 2 / rates.digest) + written
    each = flops(facts, work.tokens)
    if each is None:
        return None
    held = weights_bytes(facts, run) or 0
    loading = BUILD_SECONDS + (facts.file_bytes or 0) / rates.disk + held / rates.digest
    batches = math.ceil(work.n / work.batch_size)
    passes = work.n * each / (rates.efficiency * rates.products[name_of(run)])
    passes += batches * len(facts.widths or ()) * LAYER_SECONDS
    return loading + passes + work.n * work.stimulus_seconds + facts.work + written


def weights_bytes(facts: Facts, run: torch.dtype) -> int | None:
    """The weights in the dtype that they run in; of an array the file."""
    if facts.reads_array:
        return facts.file_bytes
    return None if facts.parameters is None else facts.parameters * run.itemsize


def memory_bytes(facts: Facts, work: Work, run: torch.dtype) -> int | None:
    """The weights, and the hidden states of every token and layer of a batch."""
    held = weights_bytes(facts, run)
    if held is None or facts.reads_array:
        return held
    return held + int(work.batch_size * (work.tokens or 1) * sum(facts.widths or ()) * run.itemsize)


def feature_bytes(facts: Facts, n: int, store_dtype: str) -> int | None:
    """n vectors of every layer, as they are stored."""
    return None if facts.widths is None else n * sum(facts.widths) * STORE_DTYPES[store_dtype].itemsize


def name_of(dtype: torch.dtype) -> str:
    return next(name for name, d in RUN_DTYPES.items() if d == dtype)
