"""Outside implementations of measures, called as their documentation says: what `measures.py` times ours against.

Every function takes two float64 arrays (n, d) and gives the score of one pair, from nothing. A library that is not installed
is left out.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def numpy_cka(x: Array, y: Array) -> float:
    """Kornblith et al. 2019, in feature space."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def scipy_rsa(x: Array, y: Array) -> float:
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    return float(spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic)


def rsatoolbox_rsa(x: Array, y: Array) -> float:
    import rsatoolbox

    rdms = [rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(a), method="correlation") for a in (x, y)]
    return float(rsatoolbox.rdm.compare(*rdms, method="spearman")[0, 0])


def scipy_kendall(x: Array, y: Array) -> float:
    from scipy.spatial.distance import pdist
    from scipy.stats import kendalltau

    return float(kendalltau(pdist(x, "correlation"), pdist(y, "correlation")).statistic)


def scipy_procrustes(x: Array, y: Array) -> float:
    from scipy.spatial import procrustes

    return float(procrustes(x, y)[2])


def dcor_distance_correlation(x: Array, y: Array) -> float:
    import dcor

    return float(dcor.distance_correlation(x, y))


def dcor_squared(x: Array, y: Array) -> float:
    import dcor

    return float(dcor.u_distance_correlation_sqr(x, y))


def numpy_cca(x: Array, y: Array) -> float:
    q = [np.linalg.qr(a - a.mean(0))[0] for a in (x, y)]
    return float(np.linalg.svd(q[0].T @ q[1], compute_uv=False).mean())


def numpy_svcca(x: Array, y: Array) -> float:
    u = [np.linalg.svd(a - a.mean(0), full_matrices=False)[0][:, :10] for a in (x, y)]
    return float(np.linalg.svd(u[0].T @ u[1], compute_uv=False).mean())


def sklearn_mutual_knn(x: Array, y: Array) -> float:
    from sklearn.neighbors import NearestNeighbors

    lists = [NearestNeighbors(n_neighbors=10, metric="cosine").fit(a).kneighbors(return_distance=False) for a in (x, y)]
    return float(np.mean([len(set(p) & set(q)) / 10 for p, q in zip(*lists, strict=True)]))


def sklearn_ridge(x: Array, y: Array) -> float:
    """Held-out mean Pearson r of RidgeCV over five folds."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold

    scores = []
    for train, test in KFold(5, shuffle=True, random_state=0).split(x):
        predicted = RidgeCV(np.logspace(-8, 8, 17)).fit(x[train], y[train]).predict(x[test])
        p, t = predicted - predicted.mean(0), y[test] - y[test].mean(0)
        scores.append(np.mean((p * t).sum(0) / np.sqrt((p**2).sum(0) * (t**2).sum(0))))
    return float(np.mean(scores))


def sklearn_pls(x: Array, y: Array) -> float:
    from sklearn.cross_decomposition import PLSRegression
    from sklearn.model_selection import KFold

    return float(
        np.mean(
            [
                PLSRegression(25, scale=False).fit(x[train], y[train]).score(x[test], y[test])
                for train, test in KFold(5, shuffle=True, random_state=0).split(x)
            ]
        )
    )


def numpy_unit_matching(x: Array, y: Array) -> float:
    from scipy.optimize import linear_sum_assignment

    r = np.abs(np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :])
    return float(r[linear_sum_assignment(r, maximize=True)].mean())


def scipy_energy(x: Array, y: Array) -> float:
    from scipy.spatial.distance import cdist

    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


OUTSIDE = {
    "CKA": [numpy_cka],
    "MutualKNN": [sklearn_mutual_knn],
    "RSA": [scipy_rsa, rsatoolbox_rsa],
    "RSAKendall": [scipy_kendall],
    "DistanceCorrelation": [dcor_distance_correlation],
    "SquaredDistanceCorrelation": [dcor_squared],
    "CCA": [numpy_cca],
    "SVCCA": [numpy_svcca],
    "Procrustes": [scipy_procrustes],
    "RidgePredictivity": [sklearn_ridge],
    "PLSPredictivity": [sklearn_pls],
    "MeanCorrelationCoefficient": [numpy_unit_matching],
    "EnergyDistance": [scipy_energy],
}
