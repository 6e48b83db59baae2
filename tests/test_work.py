"""How much is done, counted and not timed: bytes digested, multiplications, layers loaded and prepared.

So that nothing comes back that is done for every pair, or at every look, and can be done once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import repalign
from repalign.comparison import compare
from repalign.comparison.tiles import Cache, Tile
from repalign.measures import CKA, MutualKNN
from repalign.models import ModelRecord
from repalign.report import write_report
from repalign.store import FeatureStore
from repalign.store.reader import StoredRepresentation

N, WIDTH, SIZES = 256, 96, {"a": 5, "b": 3, "c": 4}  # layers of each model
BYTES = 4 * N * WIDTH  # of a layer
MEASURES = ["CKA()", "MutualKNN(k=10)"]


@dataclass
class Work:
    digested: int = 0  # bytes
    calls: Counter[Any] = field(default_factory=Counter)
    multiplications: float = 0.0


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context in which work is counted."""

    @contextmanager
    def counted() -> Iterator[Work]:
        work, sha256, product = Work(), hashlib.sha256, np.matmul

        class Digest:
            def __init__(self, data: bytes = b"", **options: bool) -> None:
                self.digest_ = sha256(**options)
                self.update(data)

            def update(self, data: bytes) -> None:
                work.digested += memoryview(data).nbytes
                self.digest_.update(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.digest_, name)

        def symmetric(rows: np.ndarray, columns: np.ndarray, **options: Any) -> np.ndarray:
            assert np.shares_memory(rows, columns), "the one product of numpy is that of a matrix by its own transpose"
            work.multiplications += len(rows) * rows.size / 2
            return product(rows, columns, **options)

        def count(kind: type, name: str, key: Callable[..., Any]) -> None:
            plain = getattr(kind, name)

            def told(own: Any, *args: Any) -> Any:
                work.calls[key(own, *args)] += 1
                return plain(own, *args)

            patch.setattr(kind, name, told)

        with monkeypatch.context() as patch, FlopCounterMode(display=False) as flops, one_thread():  # the only one it counts
            patch.setattr(hashlib, "sha256", Digest)
            for measure in (CKA, MutualKNN):
                count(measure, "prepare", lambda own, _: type(own).__name__)
            count(StoredRepresentation, "load", lambda own, layer: (own.name, layer))
            patch.setattr(np, "matmul", symmetric)
            yield work
            work.multiplications += flops.get_total_flops() / 2

    return counted


def layers(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"layer {i}": rng.standard_normal((N, WIDTH)).astype(np.float32) for i in range(count)}


def most(models: int, layers: int) -> float:
    """Multiplications that so many models and layers may take, all models of one size."""
    n, cells = N, (layers / models) ** 2 * models * (models - 1) / 2
    gram, walks = 0.5 * n * n * WIDTH, 0.75 * n**3  # the second in tiles of a triangle, the smallest of which are whole
    probes, spectra = 64 * n * WIDTH, 2 * 4 * n * n  # of the doctor; of a cell, complex products of both measures
    return 1.1 * (layers * (gram + walks + probes) + cells * spectra)


def test_a_pair_in_memory_digests_nothing_and_prepares_a_layer_once(counting):
    x, y = layers(6, 1), layers(6, 2)
    with counting() as work:
        repalign.pair(x, y, MEASURES)
    assert work.digested < BYTES / 4
    assert work.calls == {"CKA": 12, "MutualKNN": 12}
    assert work.multiplications < most(2, 12)


def test_work_in_memory_grows_with_the_layers(counting):
    """Twice as many layers: twice the products of layers, and nothing but the spectra four times."""
    found = []
    for count in (4, 8):
        with counting() as work:
            repalign.pair(layers(count, 1), layers(count, 2), MEASURES)
        found.append(work)
    assert found[1].multiplications < 2.3 * found[0].multiplications
    assert found[1].digested < 2 * found[0].digested + 1000


@pytest.fixture
def stored(tmp_path: Path) -> list[StoredRepresentation]:
    store, ids = FeatureStore(tmp_path / "store"), [f"{i:04d}" for i in range(N)]
    for seed, (name, count) in enumerate(SIZES.items()):
        record = ModelRecord(f"array:{name}", name, "text")
        writer = store.writer(dataset={"name": "made", "fingerprint": "0" * 64, "n": N}, record=record, settings={}, ids=ids)
        tensors = {layer: torch.from_numpy(x) for layer, x in layers(count, seed).items()}
        for part in writer.missing():
            rows = {layer: x[part.start : part.stop] for layer, x in tensors.items()}
            writer.write(part, rows, {}, {"weights_fingerprint": name, "versions": {}})
        writer.finish(record, {})
    return store.representations()


def test_a_run_loads_and_prepares_every_layer_once_and_a_second_one_none(counting, stored, tmp_path):
    """A hundred tiles of one model would digest it a hundred times: its key is read off its manifest."""
    total = sum(SIZES.values())
    with counting() as first:
        compare(stored, None, MEASURES, results=tmp_path / "results")
    loads = {key: count for key, count in first.calls.items() if isinstance(key, tuple)}
    assert set(loads.values()) == {1} and len(loads) == total
    assert first.calls["CKA"] == first.calls["MutualKNN"] == total
    assert first.digested < 2 * total * BYTES  # what is read is checked once; the rest is small
    assert first.multiplications < most(3, total)
    with counting() as second:
        compare(FeatureStore(tmp_path / "store").representations(), None, MEASURES, results=tmp_path / "results")
    assert not second.calls and second.multiplications == 0
    written = sum(path.stat().st_size for path in (tmp_path / "results").rglob("*") if path.is_file())
    assert second.digested < 2.5 * written  # every tile that was there is checked, and what is written anew is sealed


def test_a_model_goes_when_no_pair_needs_it(stored, monkeypatch):
    """All of one side and a model of the other are held, not both sides."""
    held, used = [], Cache.used

    def told(own: Cache, tile: Tile) -> None:
        held.append(set(own.entries))
        used(own, tile)
        held.append((own.nbytes, *own.entries))

    monkeypatch.setattr(Cache, "used", told)
    compare(stored[:2], stored[2:], MEASURES)
    assert held[::2] == [{"a", "c"}, {"a", "c"}, {"b", "c"}, {"b", "c"}]
    assert held[-1] == (0,)


def test_arrays_with_a_folder_for_results_are_digested_once(counting, tmp_path):
    x, y = layers(6, 1), layers(6, 2)
    with counting() as work:
        repalign.pair(x, y, ["CKA()", "MutualKNN(k=10)", "CKNNA(k=5)"], results=tmp_path / "results")
    assert 12 * BYTES <= work.digested < 13.5 * BYTES


def test_a_report_multiplies_nothing(counting, stored, tmp_path):
    compare(stored, None, MEASURES, results=tmp_path / "results")
    with counting() as work:
        write_report(tmp_path / "results", tmp_path / "report.html")
    assert not work.calls and work.multiplications == 0
