"""One pair of layers, beside every other package that has the measure: seconds, and whether both give one number.

Ours is called as anyone would, `Measure(...)(x, y)`, on the arrays that the peer takes. Both run in turn, ours, theirs, ours,
theirs, and the best of each counts. A ratio is theirs over ours: below 1 the peer is faster. The first ratio is of processor
time, the second of the clock; the difference is of the two scores where both have one definition.

    pip install rsatoolbox dcor pytorch-cka threadpoolctl
    python benchmarks/peers.py --quick --peers FOLDER
    python benchmarks/peers.py --only CKA Procrustes --sizes 1000x128 4000x512 --threads 1 2 --csv peers.csv

FOLDER holds checkouts of what is not on PyPI (or it is in PYTHONPATH): Aristotelian (github mlbio-epfl/Aristotelian), netrep
(github ahwillia/netrep), platonic-rep (github minyoungg/platonic-rep) and centered-kernel-alignment (github RistoAle97/
centered-kernel-alignment). A package that does not load is named with the reason and left out.

Not here: the RSA of Aristotelian, which draws a sample of 8,192 pairs above n = 182; the SVCCA of platonic-rep, which draws at
random and adds noise; edit distances and LCS of platonic-rep, loops in Python, thousands of times slower.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import outside
import pandas as pd
import torch
from measures import pair, short

from repalign import measures as ours
from repalign.measures import Measure

QUICK = ["500x128", "500x2048", "1000x128"]
FULL = ["500x128", "500x2048", "1000x128", "1000x2048", "4000x512", "4000x6000"]
FOLDERS = ("Aristotelian", "netrep", "platonic-rep", "centered-kernel-alignment")
K = 10

Score = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Peer:
    """A measure of ours and one of theirs; `same` brings our score to theirs, and is None where definitions differ."""

    package: str
    name: str
    theirs: Score
    measure: Measure
    same: Callable[[float, Any, Any], float] | None = lambda s, x, y: s  # noqa: ARG005
    tolerance: float = 1e-6  # of the two scores in float64
    tolerance32: float = 1e-4  # and in float32, in which many peers compute
    tensors: bool = True  # whether it takes tensors, and not arrays
    most_n: int = 10**9  # it takes minutes, or all memory, above
    most_d: int = 10**9


def where_full_rank(score: float, x: Any, y: Any) -> float:
    """Our score, nan where features have directions without variance, which these peers count."""
    return score if x.shape[1] < len(x) and y.shape[1] < len(y) else math.nan


def over_norm_of_y(score: float, x: Any, y: Any) -> float:  # noqa: ARG001
    return 1 - score / float((y - y.mean(0)).norm())


def unit(x: torch.Tensor) -> torch.Tensor:
    """Unit rows, which these packages ask their caller for."""
    return torch.nn.functional.normalize(x, dim=-1)


def aristotelian() -> Iterator[Peer]:
    metrics = import_module("aristotelian.metrics")
    raw, config = metrics.MetricRegistry.compute_raw, metrics.MetricConfig
    of = partial(Peer, "Aristotelian")
    yield of("cka_linear", metrics.raw_cka_linear, ours.CKA(estimator="biased"))
    yield of("cka_unbiased", partial(raw, "cka_unbiased"), ours.CKA())
    rbf = partial(ours.CKA, kernel="rbf", estimator="biased")
    yield of("cka_rbf", metrics.raw_cka_rbf, rbf(bandwidth="median_all_lower"))
    yield of("cka_rbf (our default bandwidth)", metrics.raw_cka_rbf, rbf(), tolerance=1e-2, tolerance32=1e-2)
    yield of("rv_coefficient", metrics.raw_rv, ours.RV(), most_d=2048)
    knn = partial(config, topk=K)
    yield of("mutual_knn", lambda x, y: raw("mutual_knn", unit(x), unit(y), knn()), ours.MutualKNN(), tolerance32=1e-3)
    yield of("cycle_knn", lambda x, y: raw("cycle_knn", unit(x), unit(y), knn()), ours.CycleKNN(), tolerance32=1e-3)
    cknna = lambda x, y: raw("cknna", unit(x), unit(y), knn(unbiased=True))  # noqa: E731
    yield of("cknna", cknna, ours.CKNNAReference(), tolerance=1e-3, tolerance32=1e-2)
    shapes = ours.Procrustes(normalized=False)
    # From squares of singular values, of which those that are 0 come out some 1e-4 of the largest in float32.
    yield of("procrustes", metrics.raw_procrustes, shapes, over_norm_of_y, tolerance=1e-4, tolerance32=1e-1)
    # Both add 1e-6 to covariances and compute in float32, whatever they are given.
    yield of("cca", metrics.raw_cca, ours.CCA(), where_full_rank, tolerance=1e-3, tolerance32=1e-3, most_d=2048)
    weighted = ours.PWCCA(weights="sample_l1")
    yield of("pwcca", metrics.raw_pwcca, weighted, where_full_rank, tolerance=1e-3, tolerance32=1e-3, most_d=2048)
    yield of("svcca", metrics.raw_svcca, ours.SVCCA(), most_d=2048)


def platonic_rep() -> Iterator[Peer]:
    metric = import_module("metrics").AlignmentMetrics
    of = partial(Peer, "platonic-rep")
    # Its CKA takes raw features and adds 1e-6 to the denominator.
    yield of("cka", metric.cka, ours.CKA(estimator="biased"), most_n=1000)
    yield of("unbiased_cka", metric.unbiased_cka, ours.CKA())
    rbf = partial(metric.cka, kernel_metric="rbf", rbf_sigma=30.0)
    yield of("cka rbf", rbf, ours.CKA("rbf", "biased", 30.0), tolerance=1e-4, tolerance32=1e-3, most_n=1000)
    mutual, cycle, cknna = (
        lambda x, y, f=f: f(unit(x), unit(y), K) for f in (metric.mutual_knn, metric.cycle_knn, metric.cknna)
    )
    yield of("mutual_knn", mutual, ours.MutualKNN(), tolerance32=1e-3)
    yield of("cycle_knn", cycle, ours.CycleKNN(), tolerance32=1e-3)
    yield of("cknna", cknna, ours.CKNNAReference(), tolerance=1e-3, tolerance32=1e-2)


def ckatorch() -> Iterator[Peer]:
    cka = import_module("ckatorch.core").cka_base
    of = partial(Peer, "centered-kernel-alignment")
    yield of("cka_base", cka, ours.CKA(estimator="biased"))
    yield of("cka_base unbiased", partial(cka, unbiased=True), ours.CKA())
    # Its threshold is a share of the median of all squared distances.
    yield of("cka_base rbf", partial(cka, kernel="rbf"), ours.CKA("rbf", "biased", "median_all_lower"))


def pytorch_cka() -> Iterator[Peer]:
    yield Peer("pytorch-cka", "cka_from_features", import_module("cka").cka_from_features, ours.CKA())


def netrep() -> Iterator[Peer]:
    metrics = import_module("netrep.metrics")
    of = partial(Peer, "netrep", tensors=False)
    for alpha in (1.0, 0.5, 0.0):
        same = where_full_rank if alpha < 1 else Peer.same
        theirs = metrics.LinearMetric(alpha=alpha).fit_score
        mine = ours.ShapeMetric(alpha=alpha)
        yield of(f"LinearMetric(alpha={alpha:g})", theirs, mine, same, tolerance=1e-5, tolerance32=1e-3, most_d=2048)
    permuted = metrics.PermutationMetric().fit_score
    yield of("PermutationMetric", permuted, ours.PermutationProcrustes(), tolerance32=1e-3, most_d=2048)
    yield of("LinearCKA", metrics.LinearCKA().score, ours.AngularCKA())


def rsatoolbox() -> Iterator[Peer]:
    rsa = import_module("rsatoolbox")

    def compared(dissimilarity: str, comparison: str) -> Score:
        def score(x: np.ndarray, y: np.ndarray) -> float:
            rdms = [rsa.rdm.calc_rdm(rsa.data.Dataset(a), method=dissimilarity) for a in (x, y)]
            return float(rsa.rdm.compare(*rdms, method=comparison)[0, 0])

        return score

    of = partial(Peer, "rsatoolbox", tensors=False)
    comparisons = {"corr": "pearson", "cosine": "cosine", "spearman": "spearman", "rho-a": "rho_a"}
    for theirs, dissimilarity in {"euclidean": "sqeuclidean", "correlation": "correlation"}.items():
        for name, comparison in comparisons.items():
            yield of(f"{theirs}, {name}", compared(theirs, name), ours.RSA(dissimilarity, comparison), tolerance32=1e-3)
    whitened = {"corr_cov": "whitened_pearson", "cosine_cov": "whitened_cosine"}
    for name, comparison in whitened.items():  # through sparse systems of all pairs of pairs
        mine = ours.RSA("sqeuclidean", comparison)
        yield of(f"euclidean, {name}", compared("euclidean", name), mine, tolerance32=1e-3, most_n=500)
    of = partial(of, tolerance32=1e-3, most_n=1000)
    yield of("correlation, tau-a", compared("correlation", "tau-a"), ours.RSAKendall())
    yield of("euclidean, bures", compared("euclidean", "bures"), ours.NormalisedBures(), tolerance=1e-4)


def dcor() -> Iterator[Peer]:
    import_module("dcor")
    of = partial(Peer, "dcor", tensors=False, most_n=1000)
    yield of("distance_correlation", outside.dcor_distance_correlation, ours.DistanceCorrelation())
    yield of("u_distance_correlation_sqr", outside.dcor_squared, ours.SquaredDistanceCorrelation())


def numpy() -> Iterator[Peer]:
    """The formulas of the papers in a line or two."""
    of = partial(Peer, "numpy", tensors=False)
    yield of("CKA in feature space", outside.numpy_cka, ours.CKA(estimator="biased"))
    yield of("mean CCA by QR", outside.numpy_cca, ours.CCA(), where_full_rank, most_d=2048)
    yield of("SVCCA", outside.numpy_svcca, ours.SVCCA(), most_d=2048)
    yield of("unit matching", outside.numpy_unit_matching, ours.MeanCorrelationCoefficient(), most_d=2048)


def scipy() -> Iterator[Peer]:
    of = partial(Peer, "scipy", tensors=False)
    yield of("procrustes", outside.scipy_procrustes, ours.NormalisedBures(), lambda s, x, y: 1 - s * s, most_d=2048)  # noqa: ARG005
    yield of("pdist, spearmanr", outside.scipy_rsa, ours.RSA(), most_n=1000)
    yield of("pdist, kendalltau", outside.scipy_kendall, ours.RSAKendall(tau="b"), most_n=1000)
    yield of("cdist, energy", outside.scipy_energy, ours.EnergyDistance(), same=None, most_n=1000)


def scikit_learn() -> Iterator[Peer]:
    of = partial(Peer, "scikit-learn", tensors=False)
    yield of("NearestNeighbors", outside.sklearn_mutual_knn, ours.MutualKNN(), tolerance32=1e-3)
    yield of("RidgeCV", outside.sklearn_ridge, ours.RidgePredictivity(), same=None, most_n=1000, most_d=128)
    yield of("PLSRegression", outside.sklearn_pls, ours.PLSPredictivity(), same=None, most_n=1000, most_d=128)


PACKAGES = (aristotelian, platonic_rep, ckatorch, pytorch_cka, netrep, rsatoolbox, dcor, numpy, scipy, scikit_learn)


def peers(only: list[str]) -> list[Peer]:
    """All that load here, or those of these measures and packages of ours and theirs."""
    found = []
    for package in PACKAGES:
        try:
            found += list(package())
        except Exception as error:  # whatever a library that does not load here says
            print(f"{package.__name__}: left out, {type(error).__name__}: {error}", file=sys.stderr)
    return [p for p in found if not only or type(p.measure).__name__ in only or p.package in only]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch (with its MKL), and for every OpenBLAS and OpenMP in the process."""
    before = torch.get_num_threads()
    try:
        from threadpoolctl import threadpool_limits

        with threadpool_limits(count):
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(before)


def once(task: Callable[[], Any]) -> tuple[np.ndarray, float]:
    """Processor and wall seconds, and the score."""
    start = time.process_time(), time.perf_counter()
    score = task()
    stop = time.process_time(), time.perf_counter()
    return np.subtract(stop, start), float(score)


def interleaved(first: Callable[[], Any], second: Callable[[], Any], budget: float) -> tuple[np.ndarray, float, float]:
    """The best seconds of two tasks that run in turn, (2, 2) by task and clock, and their scores.

    Three times or more, until the `budget` of seconds is spent; once where it is spent at the first.
    """
    best, rounds, start = np.full((2, 2), math.inf), 0, time.perf_counter()
    while True:
        (a, p), (b, q) = once(first), once(second)
        best, rounds = np.minimum(best, [a, b]), rounds + 1
        spent = time.perf_counter() - start
        if rounds == 40 or (spent > budget and (rounds >= 3 or spent > 4 * budget)):
            return best, p, q


def against(peer: Peer, n: int, d: int, dtype: torch.dtype, count: int, budget: float) -> dict[str, object] | None:
    """The row of one peer, None where it is too large for it."""
    if n > peer.most_n or d > peer.most_d:
        return None
    x, y = ((a + 0.5).to(dtype) for a in pair(n, d))
    if not peer.tensors:
        x, y = x.numpy(), y.numpy()
    row = {"measure": said(peer.measure), "peer": peer.package, "name": peer.name, "n": n, "d": d}
    row |= {"dtype": str(dtype)[6:], "threads": count}
    try:
        with threads(count):
            best, p, q = interleaved(lambda: peer.measure(x, y), lambda: peer.theirs(x, y), budget)
    except Exception as error:  # whatever a library says of data that it cannot take
        print(f"{peer.package} {peer.name} {n} x {d}: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    (ours_cpu, ours_wall), (theirs_cpu, theirs_wall) = best
    row |= {"ours": ours_cpu, "theirs": theirs_cpu, "ratio": theirs_cpu / ours_cpu, "wall": theirs_wall / ours_wall}
    if peer.same is not None and not math.isnan(score := peer.same(p, x, y)):
        difference = abs(score - q)
        tolerance = peer.tolerance if dtype == torch.float64 else max(peer.tolerance, peer.tolerance32)
        row |= {"difference": difference, "agrees": bool(difference <= tolerance)}
    return row


def expected(rows: list[dict[str, Any]], peer: Peer, n: int, d: int) -> float:
    """Seconds of the processor that both together will take, from the last size of this peer, in n^2 d; 0 if there is none."""
    last = next((r for r in reversed(rows) if (r["peer"], r["name"]) == (peer.package, peer.name)), None)
    return 0.0 if last is None else (last["ours"] + last["theirs"]) * (n * n * d) / (last["n"] ** 2 * last["d"])


def said(measure: Measure) -> str:
    """The repr without what is so by default."""
    fresh = type(measure)()
    changed = {f.name: value for f in fields(measure) if (value := getattr(measure, f.name)) != getattr(fresh, f.name)}
    return f"{type(measure).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"


def line(row: dict[str, object]) -> str:
    difference = "" if "difference" not in row else f"{row['difference']:.1e}" + ("" if row["agrees"] else " (!)")
    cells = [row["measure"], f"{row['peer']} {row['name']}", f"{row['n']} x {row['d']}", row["dtype"], row["threads"]]
    cells += [short(row["ours"]), short(row["theirs"]), f"{row['ratio']:.2f}", f"{row['wall']:.2f}", difference]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{' '.join(QUICK)} in a few minutes")
    parser.add_argument("--sizes", nargs="*", help=f"n and d, {' '.join(FULL)}")
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--dtypes", nargs="*", default=["float64", "float32"])
    parser.add_argument("--only", nargs="*", default=[], help="measures of ours, or packages")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds for one row (.3)")
    parser.add_argument("--most", type=float, default=3.0, help="leave out a size at which both together take so many seconds (3)")
    parser.add_argument("--peers", type=Path, help="a folder of checkouts")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    if args.peers:
        sys.path[:0] = [str(args.peers / name) for name in FOLDERS]
        sys.path.append(str(args.peers / "site"))  # of `pip install --target`
    sizes = [tuple(map(int, size.split("x"))) for size in args.sizes or (QUICK if args.quick else FULL)]
    rows = []
    print("| measure | peer | n x d | dtype | threads | ours | theirs | theirs / ours | by the clock | difference |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for peer in peers(args.only):
        for n, d in sizes:
            if (long := expected(rows, peer, n, d)) > args.most:
                print(f"{peer.package} {peer.name} {n} x {d}: left out, about {long:.0f} s", file=sys.stderr)
                continue
            for name in args.dtypes:
                for count in args.threads:
                    if (row := against(peer, n, d, getattr(torch, name), count, args.budget)) is not None:
                        rows.append(row)
                        print(line(row), flush=True)
    table = pd.DataFrame(rows)
    slower = table[table["ratio"] < 1].sort_values("ratio")
    print(f"\n{len(table)} rows; the peer is faster in {len(slower)}:\n")
    for row in slower.to_dict("records"):
        print(f"{row['ratio']:.2f}", *(row[key] for key in ("measure", "peer", "name", "n", "d", "dtype", "threads")))
    if args.csv:
        table.to_csv(args.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
