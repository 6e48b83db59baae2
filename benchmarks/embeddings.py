"""What `repalign migrate` and `compress` cost and how often they are right, on made-up vectors.

    python benchmarks/embeddings.py search      # 200,000 x 384, 2,000 queries: one exact search beside one of FAISS
    python benchmarks/embeddings.py report      # the whole report at 700 + 300 rows beside a plain numpy script of the same numbers
    python benchmarks/embeddings.py compress    # the whole table beside FAISS, which searches the same forms
    python benchmarks/embeddings.py memory --folder /tmp --sizes 125000 250000 500000
    python benchmarks/embeddings.py worlds      # verdicts in 20 draws of each of six worlds
    python benchmarks/embeddings.py coverage    # how often intervals hold the recall over all queries

Times are the least of several runs, interleaved with what they are compared with, on one thread. FAISS: `pip install faiss-cpu`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from repalign.experiments.migrate_numbers import TODAY, judge, verdict_of
from repalign.experiments.migrate_sides import Sides
from repalign.experiments.retrieval import Gallery, bounds, unit

K = 10


def beside(ours: Callable[[], object], theirs: Callable[[], object], repeat: int) -> str:
    """Least seconds of both, by turns, by the clock and of the processor; the load of the machine."""
    least = np.full((2, 2), np.inf)
    for _ in range(repeat):
        for i, task in enumerate((ours, theirs)):
            start = time.perf_counter(), time.process_time()
            task()
            least[i] = np.minimum(least[i], [time.perf_counter() - start[0], time.process_time() - start[1]])
    ratios = least[0] / least[1]
    return (f"ours {least[0, 0]:.2f} s, theirs {least[1, 0]:.2f} s: {ratios[0]:.2f} times by the clock, {ratios[1]:.2f} of the "
            f"processor; load {os.getloadavg()[0]:.1f}")  # fmt: skip


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# --- speed -----------------------------------------------------------------------------------------


def flat(index: np.ndarray, queries: np.ndarray, k: int = K) -> np.ndarray:
    """The lists of FAISS, by the dot product."""
    import faiss

    faiss.omp_set_num_threads(1)
    found = faiss.IndexFlatIP(index.shape[1])
    found.add(index.astype(np.float32))
    return found.search(queries.astype(np.float32), k)[1]


def search(n: int, d: int, q: int, repeat: int) -> None:
    rng = np.random.default_rng(0)
    index, queries = (unit(rng.standard_normal((rows, d))).astype(np.float32) for rows in (n, q))
    wide = index.astype(float), queries.astype(float)
    found = []
    said = beside(lambda: found.append(Gallery(wide[0]).nearest(wide[1], K)), lambda: found.append(flat(index, queries)), repeat)
    same = (found[-1] == found[-2]).mean()
    print(f"search of {n:,} x {d}, {q:,} queries, k = {K}: {said}; equal entries {same:.6f}")
    print(f"memory: rows {wide[0].nbytes / 1e6:.0f} MB in double and {index.nbytes / 1e6:.0f} MB in single precision")


def bed(n: int = 700, q: int = 300, d: tuple[int, int] = (256, 768)) -> tuple[np.ndarray, ...]:
    """Two models of one world, of the size of the test bed."""
    rng = np.random.default_rng(0)
    world = rng.standard_normal((n + q, 40))
    rows = [unit(np.maximum(world @ rng.standard_normal((40, w)) + rng.standard_normal((n + q, w)), 0)) for w in d]
    return rows[0][:n], rows[1][:n], rows[0][n:], rows[1][n:]


def plain(old: np.ndarray, new: np.ndarray, q_old: np.ndarray, q_new: np.ndarray) -> dict[str, float]:
    """The numbers of the report as one writes them down in numpy."""
    rng, m = np.random.default_rng(0), len(old)

    def top(queries: np.ndarray, index: np.ndarray, k: int) -> np.ndarray:
        return np.argsort(-(queries @ index.T), axis=1, kind="stable")[:, :k]

    def common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([len(set(x) & set(y)) / len(x) for x, y in zip(a.tolist(), b.tolist(), strict=True)])

    def rbo(a: np.ndarray, b: np.ndarray, p: float = 0.9) -> float:
        total = 0.0
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            seen, other, share, depth = set(), set(), 0.0, len(x)
            for at in range(depth):
                seen.add(x[at])
                other.add(y[at])
                overlap = len(seen & other)
                share += overlap / (at + 1) * p ** (at + 1)
            total += overlap / depth * p**depth + (1 - p) / p * share
        return total / len(a)

    def rotation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u, _, vt = np.linalg.svd(x.T @ y, full_matrices=False)
        return u @ vt

    def regression(x: np.ndarray, y: np.ndarray, rank: int) -> Callable[[np.ndarray], np.ndarray]:
        def fit(x: np.ndarray, y: np.ndarray, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
            mx, my = x.mean(0), y.mean(0)
            w = np.linalg.solve((x - mx).T @ (x - mx) + penalty * np.eye(x.shape[1]), (x - mx).T @ (y - my))
            if rank < y.shape[1]:
                axes = np.linalg.svd((x - mx) @ w, full_matrices=False)[2][:rank].T
                w = w @ axes @ axes.T
            return lambda z: (z - mx) @ w + my

        fold = np.arange(len(x)) % 5
        penalties = np.geomspace(1e-4, 1e2, 13)
        errors = [sum(((fit(x[fold != f], y[fold != f], p)(x[fold == f]) - y[fold == f]) ** 2).sum() for f in range(5))
                  for p in penalties]  # fmt: skip
        return fit(x, y, penalties[int(np.argmin(errors))])

    def adapters(x: np.ndarray, y: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        w, mx, my = rotation(x, y), x.mean(0), y.mean(0)
        wc = rotation(x - mx, y - my)
        out = {"orthogonal": lambda z: z @ w, "orthogonal, centred": lambda z: (z - mx) @ wc + my}
        if len(x) >= 2 * y.shape[1]:
            out |= {"ridge": regression(x, y, y.shape[1]), "low rank": regression(x, y, 32)}
        return out

    later, today = top(q_new, new, 100), top(q_old, old, 100)
    out, columns = {"today": common(today[:, :K], later[:, :K])}, []
    out_rbo = {"today": rbo(today, later)}
    for name, one in {"none": lambda z: z[:, : old.shape[1]], **adapters(new, old)}.items():
        lists = top(unit(one(q_new)), old, 100)
        out[name], out_rbo[name] = common(lists[:, :K], later[:, :K]), rbo(lists, later)
        columns += [out[name], common(lists[:, :K], today[:, :K]), out[name] - out["today"]]
    drawn = rng.integers(len(q_new), size=(2000, len(q_new)))
    np.quantile(np.stack([column[drawn].mean(1) for column in columns]), [0.025, 0.975], axis=1)
    order = rng.permutation(m)
    for count in (50, 100, 200, 400):
        for one in adapters(new[order[:count]], old[order[:count]]).values():
            kept = common(top(unit(one(q_new)), old, K), later[:, :K])
            for _ in range(2):  # of what is kept, and of what the step adds
                np.quantile(kept[rng.integers(len(kept), size=(2000, len(kept)))].mean(1), [0.025, 0.975])
    for count in (m // 8, m // 4, m // 2):
        some = order[:count]
        common(top(q_old, old[some], K), top(q_new, new[some], K))
    pairs = [x[np.triu_indices(m, 1)] for x in (old @ old.T, new @ new.T)]
    shares = np.concatenate([np.linspace(0.999, 0.02, 50), np.geomspace(0.01, 1e-4, 20)])
    [np.quantile(x, 1 - shares) for x in pairs]
    for x in (today, later):
        np.bincount(x[:, :K].ravel(), minlength=m)
    return {name: float(values.mean()) for name, values in out.items()}


def report(repeat: int) -> None:
    from repalign.experiments import migrate

    old, new, q_old, q_new = bed()
    got = migrate(old, new, queries_old=q_old, queries_new=q_new).table.set_index("adapter")["kept"]
    want = plain(old, new, q_old, q_new)
    off = max(abs(got[name.replace("today", TODAY)] - value) for name, value in want.items())
    said = beside(lambda: migrate(old, new, queries_old=q_old, queries_new=q_new), lambda: plain(old, new, q_old, q_new), repeat)
    print(f"report of 700 vectors and 300 queries, 256 and 768 dimensions: {said}; largest difference of what is kept {off:.4f}")


def compressed(n: int, d: int, q: int, repeat: int) -> None:
    from repalign.experiments import compress
    from repalign.experiments.compress import smaller

    rng = np.random.default_rng(0)
    rows = unit(rng.standard_normal((n + q, 40)) @ rng.standard_normal((40, d)) + rng.standard_normal((n + q, d)))
    index, queries = rows[:n], rows[n:]

    def theirs() -> None:
        """The same forms: floats by the inner product, bits by Hamming distances, candidates in order by the whole vectors."""
        import faiss

        exact = flat(index, queries)
        for form in smaller(index, queries, "cosine", [d // 2, d // 4, d // 8], 0):
            depth = max(form.rescored, 1) * K
            if form.method.startswith("binary"):
                bits = [np.packbits(x > 0, axis=1) for x in (form.index, form.queries)]
                found = faiss.IndexBinaryFlat(d)
                found.add(bits[0])
                lists = found.search(bits[1], depth)[1]
                if form.rescored:
                    scores = np.einsum("qkd,qd->qk", index[lists], queries)
                    lists = np.take_along_axis(lists, np.argsort(-scores, axis=1)[:, :K], axis=1)
            else:
                both = (form.index, form.queries) if form.metric == "dot" else map(unit, (form.index, form.queries))
                lists = flat(*both)
            [len(set(a) & set(b)) for a, b in zip(exact.tolist(), lists[:, :K].tolist(), strict=True)]

    print(f"compress {n:,} x {d}, {q:,} queries: {beside(lambda: compress(index, queries=queries), theirs, repeat)}")


# --- memory ----------------------------------------------------------------------------------------


def write(folder: Path, n: int, d: int, anchors: int, queries: int) -> None:
    """An old model in one file of n rows in groups of 125,000; a new one that is the old one turned, and noise, for a sample."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    mix, turn = rng.standard_normal((24, d)).astype(np.float32), np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)

    def table(first: int, x: np.ndarray) -> pa.Table:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), d)
        return pa.table({"id": [f"doc{i}" for i in range(first, first + len(x))], "vector": vectors})

    def made(rows: int) -> np.ndarray:
        return rng.standard_normal((rows, 24), dtype=np.float32) @ mix + rng.standard_normal((rows, d), dtype=np.float32)

    step = 125_000
    with pq.ParquetWriter(folder / "old.parquet", table(0, made(1)).schema, compression="none", use_dictionary=False) as file:
        for start in range(0, n, step):
            x = made(min(step, n - start))
            file.write_table(table(start, x), row_group_size=step)
            if start == 0:
                noise = 2 * rng.standard_normal((anchors, d), dtype=np.float32)
                pq.write_table(table(0, x[:anchors] @ turn + noise), folder / "new.parquet")
    asked = made(queries)
    pq.write_table(table(n, asked), folder / "q_old.parquet")
    pq.write_table(table(n, asked @ turn), folder / "q_new.parquet")


def in_pieces(folder: Path) -> tuple[float, float, str]:
    """Seconds, the most memory in MB, and the verdict."""
    from repalign.experiments import migrate

    start = time.perf_counter()
    paths = [str(folder / f"{name}.parquet") for name in ("old", "new", "q_old", "q_new")]
    found = migrate(paths[0], paths[1], queries_old=paths[2], queries_new=paths[3])
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, found.verdict


def memory(sizes: list[int], d: int, folder: Path, anchors: int = 2000, queries: int = 200) -> None:
    for n in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as inner, multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(write, (Path(inner), n, d, anchors, queries))
            with multiprocessing.get_context("spawn").Pool(1) as other:
                seconds, most, verdict = other.apply(in_pieces, (Path(inner),))
        print(f"{n:>9,} x {d} old vectors ({4e-6 * n * d:,.0f} MB in single precision), {anchors:,} anchors, {queries} queries: "
              f"{most:,.0f} MB at most, {seconds:.0f} s, {verdict}", flush=True)  # fmt: skip


# --- worlds ----------------------------------------------------------------------------------------

WORLDS = {"same": "same", "rotated": "adapter", "rotated + .01": "adapter for now", "rotated + .05": "adapter for now",
          "linear map": "adapter for now", "unrelated": "unrelated"}  # fmt: skip


def world(name: str, seed: int, n: int, q: int, anchors: int, d: int = 64) -> Sides:
    """12 numbers seen in d dimensions with noise of .3, unit rows; the new model sees the same turned, and more or less of it."""
    rng = np.random.default_rng(seed)
    old = unit(rng.standard_normal((n + q, 12)) @ rng.standard_normal((12, d)) + 0.3 * rng.standard_normal((n + q, d)))
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    if name == "same":
        new = old
    elif name == "linear map":
        new = old @ rng.standard_normal((d, d))
    elif name == "unrelated":
        new = rng.standard_normal((n + q, d))
    else:
        new = old @ turn + float(name.partition("+")[2] or 0) * rng.standard_normal((n + q, d))
    return Sides(old[:n], old[:anchors], new[:anchors], old[n:], new[n:])


def worlds(seeds: int, n: int, q: int, anchors: int) -> None:
    print(f"{n:,} old vectors, {anchors:,} anchors, {q} queries, k = {K}; means over {seeds} draws")
    for name, wanted in WORLDS.items():
        verdicts, rows = Counter(), []
        for seed in range(seeds):
            judged = judge(world(name, seed, n, q, anchors), K)
            table = judged.table.set_index("adapter")
            verdicts[verdict_of(judged, K / anchors)[0]] += 1
            rows.append([table.loc["none", "fidelity"], table.loc[TODAY, "kept"], table.loc[judged.best, "kept"],
                         *table.loc[["orthogonal", "ridge"], "fidelity"]])  # fmt: skip
        direct, agree, best, turned, ridge = np.mean(rows, axis=0)
        print(f"{name:14} {verdicts[wanted]:2} of {seeds} {wanted!r:18} direct {direct:.3f}, systems agree {agree:.3f}, best "
              f"adapter {best:.3f}; of today's answers orthogonal {turned:.3f}, ridge {ridge:.3f}", flush=True)  # fmt: skip


def coverage(resamples: int, q: int) -> None:
    """Samples of q queries of 20,000: how often the interval holds the mean over all of them."""
    judged = judge(world("rotated + .05", 0, 1000, 20_000, 800), K, resamples=2, depth=K)
    everyone = np.stack([judged.kept[TODAY], judged.kept["orthogonal"], judged.kept["orthogonal"] - judged.kept[TODAY]], axis=1)
    rng, inside = np.random.default_rng(0), np.zeros(3)
    for seed in range(resamples):
        low, high = bounds(everyone[rng.choice(len(everyone), q, replace=False)], seed)
        inside += (low <= everyone.mean(0)) & (everyone.mean(0) <= high)
    shares = zip(inside / resamples, ("today", "orthogonal", "gain"), strict=True)
    print(f"{q} of {len(everyone):,} queries, {resamples} times: 95 % intervals hold the recall over all in "
          + ", ".join(f"{share:.3f} ({what})" for share, what in shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "report", "compress", "memory", "worlds", "coverage"))
    parser.add_argument("--n", type=int, help="old vectors")
    parser.add_argument("--d", type=int, default=384)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--anchors", type=int, default=800)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="*", default=[125_000, 250_000, 500_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    one_thread()
    match given.what:
        case "search":
            search(given.n or 200_000, given.d, given.queries or 2000, given.repeat)
        case "report":
            report(given.repeat)
        case "compress":
            compressed(given.n or 20_000, given.d, given.queries or 500, given.repeat)
        case "memory":
            memory(given.sizes, given.d, given.folder)
        case "worlds":
            worlds(given.seeds, given.n or 1500, given.queries or 300, given.anchors)
        case "coverage":
            coverage(500, given.queries or 300)


if __name__ == "__main__":
    main()
