"""Lists of real vector databases beside ours, and their exports through `migrate`: each test needs a package of `integrations`."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from repalign.experiments import migrate
from repalign.experiments.compress import compress
from repalign.experiments.retrieval import Gallery, in_common, unit

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

N, Q, D, K = 600, 60, 32, 10


@pytest.fixture(scope="module")
def world() -> dict[str, np.ndarray]:
    """An index and queries of an old model, and of a new one that is the old one turned; unit rows in float32."""
    rng = np.random.default_rng(0)
    rows = unit(rng.standard_normal((N + Q, 8)) @ rng.standard_normal((8, D)) + 0.3 * rng.standard_normal((N + Q, D)))
    turned = rows @ np.linalg.qr(rng.standard_normal((D, D)))[0]
    old, new = (x.astype(np.float32) for x in (rows, turned))
    return {"old": old[:N], "new": new[:N], "queries_old": old[N:], "queries_new": new[N:]}


def ours(world: dict[str, np.ndarray]) -> np.ndarray:
    return Gallery(world["old"].astype(float)).nearest(world["queries_old"].astype(float), K)


def test_lists_and_hamming_distances_are_those_of_faiss(world):
    faiss = pytest.importorskip("faiss", reason="needs faiss-cpu")
    index = faiss.IndexFlatIP(D)
    index.add(world["old"])
    np.testing.assert_array_equal(index.search(world["queries_old"], K)[1], ours(world))
    mean = world["old"].mean(0)
    bits = [np.packbits(world[name] > mean, axis=1) for name in ("old", "queries_old")]
    binary = faiss.IndexBinaryFlat(D)
    binary.add(bits[0])
    distances = binary.search(bits[1], K)[0]
    signs = [np.where(world[name] > mean, 1.0, -1.0) for name in ("old", "queries_old")]
    lists = Gallery(signs[0], "dot").nearest(signs[1], K)
    got = (D - np.einsum("qkd,qd->qk", signs[0][lists], signs[1])) / 2
    np.testing.assert_array_equal(got, distances)  # as near; among equals faiss takes others
    recall = compress(world["old"], queries=world["queries_old"]).table.set_index("method").loc["binary about the mean", "recall"]
    assert in_common(ours(world), lists).mean() == pytest.approx(recall)


def test_a_collection_of_qdrant(world, tmp_path: Path):
    qdrant = pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    client = qdrant.QdrantClient(":memory:")
    vectors = qdrant.models.VectorParams(size=D, distance=qdrant.models.Distance.COSINE)
    client.create_collection("old", vectors_config=vectors)
    points = [qdrant.models.PointStruct(id=i, vector=x.tolist()) for i, x in enumerate(world["old"])]
    client.upsert("old", points)
    lists = [[p.id for p in client.query_points("old", query=q.tolist(), limit=K).points] for q in world["queries_old"]]
    np.testing.assert_array_equal(lists, ours(world))
    read = runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples/migrate_qdrant.py"))["read"]
    np.savez(tmp_path / "old.npz", **read(client, "old"))
    old = str(tmp_path / "old.npz")
    new = {"vectors": world["new"][:300], "ids": [str(i) for i in range(300)]}
    found = migrate(old, new, queries_old=world["queries_old"], queries_new=world["queries_new"])
    assert (found.n, found.m, found.verdict) == (N, 300, "adapter")


def test_a_table_of_lancedb(world, tmp_path: Path):
    lancedb = pytest.importorskip("lancedb", reason="needs lancedb")
    import pyarrow.parquet as pq

    table = lancedb.connect(str(tmp_path / "db")).create_table(
        "old", [{"id": f"doc{i}", "vector": x.tolist()} for i, x in enumerate(world["old"])]
    )
    lists = [[int(r["id"][3:]) for r in table.search(q).distance_type("cosine").limit(K).to_list()] for q in world["queries_old"]]
    np.testing.assert_array_equal(lists, ours(world))
    pq.write_table(table.to_arrow(), tmp_path / "old.parquet")
    new = {"vectors": world["new"], "ids": [f"doc{i}" for i in range(N)]}
    found = migrate(str(tmp_path / "old.parquet"), new, queries_old=world["queries_old"], queries_new=world["queries_new"])
    assert (found.n, found.verdict) == (N, "adapter")


def test_a_table_of_sqlite_vec(world):
    sqlite_vec = pytest.importorskip("sqlite_vec", reason="needs sqlite-vec")
    import sqlite3

    db = sqlite3.connect(":memory:")
    if not hasattr(db, "enable_load_extension"):
        pytest.skip("this Python's sqlite3 loads no extensions")
    db.enable_load_extension(True)
    sqlite_vec.load(db)
    db.execute(f"create virtual table old using vec0(embedding float[{D}] distance_metric=cosine)")
    db.executemany("insert into old(rowid, embedding) values (?, ?)", [(i, x.tobytes()) for i, x in enumerate(world["old"])])
    ask = "select rowid from old where embedding match ? and k = ? order by distance"
    lists = [[row[0] for row in db.execute(ask, (q.tobytes(), K))] for q in world["queries_old"]]
    np.testing.assert_array_equal(lists, ours(world))
