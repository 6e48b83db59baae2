"""The paper's whole grid on synthetic features: 12 language models by 17 vision models, all layers of all.

454 + 352 layers of their true widths, 159,808 pairs of layers, n = 1,024, float16 features read from a store. Debiased CKA
and mutual k-NN, moments for every cell, 1,023 exact cyclic draws, the studentised search, step-down p for every cell and
maxT over the pairs of models. Beside it, in the same process: the Gram products alone (float32, one per layer and measure),
and a plain per-pair loop extrapolated from a sample of layer pairs.

    python benchmarks/paper_grid.py --threads 2
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from contestants import plain_debiased_cka, plain_mutual_knn

from repalign.comparison import compare
from repalign.models import ModelRecord
from repalign.representation import Representation
from repalign.store import FeatureStore

# Name, layers (embeddings and blocks for language models, blocks for vision models), width.
LANGUAGE = (
    ("bloomz-560m", 25, 1024),
    ("bloomz-1b1", 25, 1536),
    ("bloomz-1b7", 25, 2048),
    ("bloomz-3b", 31, 2560),
    ("bloomz-7b1", 31, 4096),
    ("open_llama_3b", 27, 3200),
    ("open_llama_7b", 33, 4096),
    ("open_llama_13b", 41, 5120),
    ("llama-7b", 33, 4096),
    ("llama-13b", 41, 5120),
    ("llama-30b", 61, 6656),
    ("llama-65b", 81, 8192),
)
VISION = (
    ("augreg-tiny", 12, 192),
    ("augreg-small", 12, 384),
    ("augreg-base", 12, 768),
    ("augreg-large", 24, 1024),
    ("mae-base", 12, 768),
    ("mae-large", 24, 1024),
    ("mae-huge", 32, 1280),
    ("dinov2-small", 12, 384),
    ("dinov2-base", 12, 768),
    ("dinov2-large", 24, 1024),
    ("dinov2-giant", 40, 1536),
    ("clip-base", 12, 768),
    ("clip-large", 24, 1024),
    ("clip-huge", 32, 1280),
    ("clip-base-12k", 12, 768),
    ("clip-large-12k", 24, 1024),
    ("clip-huge-12k", 32, 1280),
)
LATENT = 32


def write_all(url: str, n: int, models: int | None) -> None:
    """All synthetic models; in a process of its own, so that their memory is not counted."""
    for side, (kind, some) in enumerate((("text", LANGUAGE[:models]), ("image", VISION[:models]))):
        for i, (name, layers, width) in enumerate(some):
            write(FeatureStore(url), name, layers, width, n, kind, 1000 * side + i)


def write(store: FeatureStore, name: str, layers: int, width: int, n: int, modality: str, seed: int) -> None:
    """A model whose layers show a shared latent more and more, with noise of a decaying spectrum."""
    record = ModelRecord(f"array:{name}", name, modality)
    ids = [f"{i:06d}" for i in range(n)]
    dataset = {"name": "synthetic", "fingerprint": f"{n:064x}", "n": n}
    writer = store.writer(dataset=dataset, record=record, settings={"seed": seed}, ids=ids, rows_per_part=256)
    latent = torch.randn(n, LATENT, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    decay = torch.arange(1, width + 1) ** -0.5
    features = {}
    for layer in range(layers if writer.missing() else 0):
        signal = latent @ torch.randn(LATENT, width, generator=generator) * (0.02 + 0.1 * layer / layers)
        features[f"layer.{layer}"] = (torch.randn(n, width, generator=generator) * decay + signal).half()
    for part in writer.missing():
        rows = slice(part.start, part.stop)
        facts = {"weights_fingerprint": f"seed {seed}", "versions": {}}
        writer.write(part, {name: x[rows] for name, x in features.items()}, {}, facts)
    if features:
        writer.finish(record, {})


def grams(models: list[Representation]) -> tuple[float, int]:
    """Seconds of one float32 Gram product per layer, and multiply-adds counted twice."""
    seconds, flops = 0.0, 0
    for model in models:
        for layer in model.layers:
            x = model.load(layer).float()
            start = time.perf_counter()
            x @ x.T
            seconds += time.perf_counter() - start
            flops += 2 * len(x) ** 2 * x.shape[1]
    return seconds, flops


def plain_loop(x: list[Representation], y: list[Representation], sample: int) -> tuple[float, int]:
    """Seconds of the plain loop over a sample of layer pairs, spread over the grid, for both measures."""
    left = [(m, layer) for m in x for layer in m.layers]
    right = [(m, layer) for m in y for layer in m.layers]
    seconds = 0.0
    for i in range(sample):
        (a, one), (b, other) = left[i * len(left) // sample], right[(i * 7919) % len(right)]
        features = a.load(one).float(), b.load(other).float()
        start = time.perf_counter()
        plain_mutual_knn(*features)
        plain_debiased_cka(*features)
        seconds += time.perf_counter() - start
    return seconds * len(left) * len(right) / sample, len(left) * len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=int, default=None, help="only so many models of each side, for a quick look")
    parser.add_argument("--sample", type=int, default=24, help="layer pairs of the plain loop")
    parser.add_argument("--store", type=Path, help="keep the synthetic features here")
    parser.add_argument("--csv", type=Path, help="a table to add this run to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(str(args.store or folder))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
            other.submit(write_all, str(args.store or folder), args.n, args.models).result()
        known = {r.name: r for r in store.representations(f"{args.n:064x}")}
        sides = [[known[name] for name, _, _ in some[: args.models]] for some in (LANGUAGE, VISION)]
        limit, flops = grams(sides[0] + sides[1])
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        start = time.perf_counter()
        result = compare(*sides, ["CKA()", "MutualKNN(k=10)"], results=Path(folder) / "results")
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        again, _ = grams(sides[0] + sides[1])
        limit = min(limit, again)
        loop, cells = plain_loop(*sides, args.sample)
        counts = [sum(len(m.layers) for m in side) for side in sides]
    found = {m: int((result.cells(m)["p_stepdown"] <= 0.05).sum()) for m in result.measures}
    print(f"{counts[0]} + {counts[1]} layers, {cells:,} pairs of layers, n = {args.n}, {args.threads} threads, float32")
    print(f"  Gram products, one per layer        {limit:8.1f} s   ({flops / limit / 1e9:.0f} GFLOP/s)")
    print(f"  the same for each of both measures  {2 * limit:8.1f} s")
    print(f"  repalign.compare, all of it         {seconds:8.1f} s   {seconds / limit / 2:.2f} times that")
    print(f"  peak memory                         {peak:8.2f} GiB  ({base:.2f} GiB before)")
    faster = loop / seconds
    print(f"  plain loop, scores only             {loop:8.0f} s   extrapolated from {args.sample} pairs: {faster:.0f} times")
    print(f"  cells significant after step-down   {found}")
    if args.csv:
        row = {"n": args.n, "layers": sum(counts), "cells": cells, "seconds": seconds, "products": 2 * limit}
        row |= {"plain loop": loop, "peak GiB": peak}
        pd.DataFrame([row]).to_csv(args.csv, mode="a", header=not args.csv.exists(), index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
