"""What section 4 of the paper claims, each claim held to numbers: one function, one table.

Every function returns an `Experiment`: a small table, and the points that its figure draws. All are deterministic for
a given seed and take seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import Any

import numpy as np
import pandas as pd

from repalign.prh.theory.latents import Box, Contrast, Gaussian, Latents, Sphere, contrast, linear_r2
from repalign.prh.theory.learn import BinaryNCE, Critic, InfoNCE, Learned, learn
from repalign.prh.theory.worlds import World, circle, representability, ring, torus
from repalign.text import Progress, silent, telling

STEPS = 4000  # of a learner: where no f exists the loss may fall for ever, and five times as many move a score by 1e-5
K = 10  # neighbours: whole shells of the torus, so that no tie stands at the border of a neighbourhood


@dataclass(frozen=True, eq=False)
class Experiment:
    """`name` is a file's; `claim` is what the paper says; `table` what was found; `points` what the figure shows."""

    name: str
    claim: str
    table: pd.DataFrame
    points: pd.DataFrame


# --- binary NCE: the kernel is K_PMI up to a constant ------------------------------------------------


def recovery(*, seed: int = 0, progress: Progress = silent) -> Experiment:
    """Binary NCE on a circle (representable) and a ring (not), with several critics.

    gap: the loss above the optimum over all tables, in nats. error: max |g - K_PMI - log(p_pos / (1 - p_pos))|, and
    error_up_to_constant the same with the mean difference taken away.
    """
    third = 1 / 3
    cases: list[tuple[str, World, float, Critic, int, bool]] = [
        ("circle, <f, f>", circle(), 0.75, "tied", 3, False),
        ("circle, <f, f>", circle(), third, "tied", 2, False),
        ("circle, <f, f>", circle(), third, "tied", 3, False),
        ("circle, <f, f> + b", circle(), third, "tied", 2, True),
        ("ring, any table", ring(), third, "free", 1, False),
        *(("ring, <f, f>", ring(), third, "tied", d, False) for d in (4, 8, 12)),
        *(("ring, <f, f> + b", ring(), third, "tied", d, True) for d in (4, 8, 12)),
        *(("ring, <f, h> + b", ring(), third, "towers", d, True) for d in (4, 8, 12)),
    ]
    rows, points = [], []
    for case, world, p_pos, critic, d, bias in telling(cases, "recovery", progress):
        objective = BinaryNCE(p_pos)
        found = learn(world, objective, critic, d, bias=bias, seed=seed)
        target = objective.optimum(world)
        d_shown = None if critic == "free" else d
        rows.append({
            "case": case, "p_pos": p_pos, "d": d_shown, "gap": found.gap, "error": found.error(target),
            "error_up_to_constant": found.error(target, up_to="constant"),
        })  # fmt: skip
        shown = {"case": case, "p_pos": p_pos, "d": d_shown, "optimum": target.ravel(), "learned": found.kernel.ravel()}
        points.append(pd.DataFrame(shown))
    table = pd.DataFrame(rows).astype({"d": "Int64"})
    claim = "binary NCE: <f, f> = K_PMI + log(p_pos / (1 - p_pos)) (eqs. 4, 20-25)"
    return Experiment("recovery", claim, table, pd.concat(points, ignore_index=True))


# --- InfoNCE: up to a constant per row ---------------------------------------------------------------


def infonce(*, seed: int = 0, progress: Progress = silent) -> Experiment:
    """InfoNCE on the circle: a free table has a constant of its own in every row, <f, f> one for all (eq. 6).

    spread_of_constants: the largest minus the smallest mean of g - temperature K_PMI over a row; error_per_row: how far
    entries are from the mean of their row; error_up_to_constant: from the mean of the table.
    """
    world = circle()
    objectives = [InfoNCE(1.0, 1), InfoNCE(1.0, 2), InfoNCE(1.0), InfoNCE(0.5, 2), InfoNCE(0.5)]
    learners: list[tuple[str, Critic, int]] = [("any table", "free", 1), ("<f, f>", "tied", 2)]
    cases = [(o, *c) for o in objectives for c in learners]
    rows, points = [], []
    for objective, name, critic, d in telling(cases, "infonce", progress):
        found = learn(world, objective, critic, d, bias=False, seed=seed)
        target = objective.optimum(world)
        constants = (found.kernel - target).mean(axis=1)
        negatives = "infinite" if objective.n_negatives is None else str(objective.n_negatives)
        case = {"critic": name, "negatives": negatives, "temperature": objective.temperature}
        rows.append({
            **case, "gap": found.gap, "spread_of_constants": float(np.ptp(constants)),
            "error_per_row": found.error(target, up_to="row"),
            "error_up_to_constant": found.error(target, up_to="constant"),
        })  # fmt: skip
        event = np.repeat(np.arange(world.n_events), world.n_events)
        points.append(pd.DataFrame({**case, "event": event, "difference": (found.kernel - target).ravel()}))
    claim = "InfoNCE: g = temperature (K_PMI + c(x_a)); symmetry makes c one constant (eqs. 5, 6, 26-30)"
    return Experiment("infonce", claim, pd.DataFrame(rows), pd.concat(points, ignore_index=True))


# --- for which worlds f exists -----------------------------------------------------------------------


def existence(*, seed: int = 0, progress: Progress = silent) -> Experiment:
    """The smallest eigenvalue of the centred K_PMI against what binary NCE (p_pos = 1/2, <f, f> + b, d = N) reaches.

    Worlds: the circle; the ring with more and more independence, and with a walk that stays longer; a world whose
    centred K_PMI is positive semidefinite and which has no f all the same, because its events are not alike; the circle
    seen in 2 to 6 arcs. `proposition` is whether the paper's sufficient condition F.1 holds.
    """
    worlds: list[tuple[str, World]] = [("circle", circle())]
    worlds += [("circle in arcs", circle().view(np.arange(12) * m // 12, f"circle in {m} arcs")) for m in (2, 3, 4, 6)]
    worlds += [("ring, independence mixed in", ring(mixing=m)) for m in (1e-3, 1e-2, 0.05, 0.1, 0.15, 0.2, 0.5)]
    worlds += [("ring, staying longer", World(ring(stay=s).joint, f"ring of 12, stay {s:g}")) for s in (0.0, 0.25, 0.75, 0.9, 0.95)]
    worlds += [("events not alike", uneven(12, 3, seed=seed))]
    rows = []
    for kind, world in telling(worlds, "existence", progress):
        there = representability(world.pmi)
        found = learn(world, BinaryNCE(0.5), "tied", world.n_events, seed=seed, starts=1, max_steps=STEPS, polish=False)
        rows.append({
            "kind": kind, "world": world.name, "lambda_min": there.lambda_min, "exists": there.exists,
            "proposition": there.sufficient, "rank": there.rank if there.exists else None,
            "smallest_constant": there.smallest_constant if there.exists else None,
            "gap": found.gap, "error": found.error(world.pmi, up_to="constant"),
        })  # fmt: skip
    table = pd.DataFrame(rows).astype({"rank": "Int64"})
    claim = "f exists where K_PMI + c is positive semidefinite for some c (appendix F.2)"
    return Experiment("existence", claim, table, table)


def uneven(n: int, d: int, *, seed: int) -> World:
    """P proportional to exp(<u_a, u_b>) of normal u: the centred K_PMI has rank d, but marginals differ.

    K_PMI = <u_a, u_b> - log P(a) - log P(b) + constant, and log P is no linear function of u.
    """
    u = np.random.default_rng(seed).standard_normal((n, d))
    p = np.exp(u @ u.T)
    return World((p + p.T) / (2 * p.sum()), f"{n} events in {d} dimensions, unequal marginals")


# --- views: one to one, and lossy --------------------------------------------------------------------


def bijections(*, seed: int = 0, progress: Progress = silent) -> Experiment:
    """Two modalities of one torus, each its own names, its own start and its own objective; the same kernel?

    difference: max |K_X - K_Y| between the kernels of <f, f>, centred on both sides (the constant c_X of eqs. 7 and 8
    goes with that), InfoNCE's divided by its temperature. Measures are taken over the 64 events, paired.
    """
    world, rng, starts = torus(), np.random.default_rng(seed), count(seed)  # no two learners begin alike
    pairs = [
        (BinaryNCE(0.5), BinaryNCE(0.5)),
        (BinaryNCE(0.5), BinaryNCE(0.75)),
        (BinaryNCE(0.5), InfoNCE(0.5)),
        (InfoNCE(1.0), InfoNCE(0.1)),
    ]
    rows, points = [], []
    for objectives in telling(pairs, "bijections", progress):
        kernels, features = [], []
        for objective in objectives:
            names = rng.permutation(world.n_events)
            found = learn(world.view(names), objective, d=4, bias=isinstance(objective, BinaryNCE), seed=next(starts))
            kernels.append(centred(world.lifted(found.kernel, names)) / getattr(objective, "temperature", 1.0))
            features.append(_features(found)[names])
        x, y = objectives
        rows.append({
            "x": repr(x), "y": repr(y), "difference": float(np.abs(kernels[0] - kernels[1]).max()),
            **_alignment(*features),
        })  # fmt: skip
        shown = {"pair": f"{x!r} and {y!r}", "kernel_x": kernels[0].ravel(), "kernel_y": kernels[1].ravel()}
        points.append(pd.DataFrame(shown))
    claim = "one-to-one views have the same K_PMI, so their kernels agree up to a constant each (eqs. 7, 8)"
    return Experiment("bijections", claim, pd.DataFrame(rows), pd.concat(points, ignore_index=True))


def lossy(*, seed: int = 0, progress: Progress = silent) -> Experiment:
    """Lossy views of the torus: alignment with the learner of the whole world, against what the view keeps.

    Views: either property in 1, 2, 4 or 8 arcs; and events merged at random into as many symbols. entropy_kept is
    H(X) / H(Z), information_kept I(X) / I(Z), with I the information between co-occurring symbols. Learners: binary
    NCE, p_pos = 1/2, <f, f> + b, d = 8. Measures are taken over the 64 events.
    """
    world, rng = torus(), np.random.default_rng(seed)
    arcs = np.arange(8)
    views: list[tuple[str, str, np.ndarray]] = []
    for m in (8, 4, 2, 1):
        for k in (8, 4, 2, 1):
            if m * k > 1:
                labels = np.add.outer(arcs * m // 8 * k, arcs * k // 8).ravel()
                views.append(("arcs of both" if min(m, k) > 1 else "one property", f"{m} x {k} arcs", labels))
    for m in (32, 16, 8, 4, 2):
        for draw in range(2):
            views.append(("merged at random", f"{m} symbols, draw {draw}", rng.permutation(64) * m // 64))
    whole = _features(learn(world, BinaryNCE(0.5), d=8, seed=seed))
    off = ~np.eye(world.n_events, dtype=bool)
    rows = []
    for i, (kind, name, labels) in enumerate(telling(views, "lossy", progress)):
        seen = world.view(labels, name)
        there = representability(seen.pmi)
        found = learn(seen, BinaryNCE(0.5), d=8, seed=seed + 1 + i, starts=1, max_steps=STEPS, polish=False)
        lifted = world.lifted(seen.pmi, labels)
        rows.append({
            "kind": kind, "view": name, "symbols": seen.n_events, "entropy_kept": seen.entropy / world.entropy,
            "information_kept": seen.information / world.information, "exists": there.exists,
            "pmi_correlation": float(np.corrcoef(lifted[off], world.pmi[off])[0, 1]),
            **_alignment(_features(found)[labels], whole),
        })  # fmt: skip
    table = pd.DataFrame(rows)
    claim = "not in the paper, which supposes one-to-one views: what a lossy view loses, alignment loses"
    return Experiment("lossy", claim, table, table)


# --- finite samples ----------------------------------------------------------------------------------


def samples(
    n_pairs: Sequence[int] = (1_000, 10_000, 100_000, 1_000_000, 10_000_000), *, repeats: int = 5, seed: int = 0,
    progress: Progress = silent,
) -> Experiment:  # fmt: skip
    """Two modalities of one torus that share no sample: how does their alignment grow with the pairs they saw?

    Each learns <f, f> + b, d = 4, p_pos = 1/2, from its own pairs (counts smoothed by 1/2 per entry), under its own
    names and from its own start. The table has the mean over `repeats`, the points every one.
    error_x: max |g - K_PMI| up to a constant, of the first modality.
    """
    world = torus()
    rows, rng = [], np.random.default_rng(seed)
    for size, repeat in telling(list(product(n_pairs, range(repeats))), "samples", progress):
        features, errors = [], []
        for _ in "xy":
            names = rng.permutation(world.n_events)
            own = int(rng.integers(2**31))
            seen = world.view(names).sample(size, seed=own)
            found = learn(seen, BinaryNCE(0.5), d=4, starts=1, polish=False, seed=own)
            difference = world.lifted(found.kernel, names) - world.pmi
            errors.append(float(np.abs(difference - difference.mean()).max()))
            features.append(_features(found)[names])
        rows.append({"n_pairs": size, "repeat": repeat, "error_x": errors[0], **_alignment(*features)})
    points = pd.DataFrame(rows)
    table = points.drop(columns="repeat").groupby("n_pairs", as_index=False).mean()
    claim = "not in the paper, whose learners are at their optimum: how much must be seen"
    return Experiment("samples", claim, table, points)


# --- continuous latents, and networks that must generalise ----------------------------------------------


def hypersphere(*, steps: int = 600, seed: int = 0, progress: Progress = silent) -> Experiment:
    """Latents on the unit sphere in five dimensions, two encoders: what comes back is a rotation of the latents.

    r2: held-out linear regression of the latents on the features. mcc: mean |correlation| under the best pairing of latents with
    features; mcc_ica the same after FastICA. rotation, rotation_high: the mean mcc of 200 random rotations of the latents, and
    what 97.5 % of them stay below. loss, collapsed: nats, and what an encoder has that tells no stimulus from another.
    """
    found = contrast(Sphere(d=5), steps=steps, rate=3e-3, seed=seed, progress=progress)
    claim = "not in the paper: on the hypersphere, contrastive features are the latents up to a rotation (Zimmermann et al. 2021)"
    return _recovered("hypersphere", claim, [(Sphere(d=5), found)], seed)


def box(*, steps: int = 400, seed: int = 0, progress: Progress = silent) -> Experiment:
    """Latents in a box, which come back one by one; and normal ones, of which nothing can tell a rotation, ICA neither.

    The columns are those of `hypersphere`. The control has five latents, so that a rotation scores far below 1.
    """
    worlds: list[tuple[Latents, int]] = [(Box(d=3), steps), (Gaussian(d=5), max(1, steps // 2))]
    found = [(world, contrast(world, steps=some, seed=seed, progress=progress)) for world, some in worlds]
    claim = "not in the paper: in a convex body, contrastive features are the latents themselves (Zimmermann et al. 2021)"
    return _recovered("box", claim, found, seed)


def _recovered(name: str, claim: str, found: Sequence[tuple[Latents, Contrast]], seed: int) -> Experiment:
    from repalign.experiments.disentangle import components, mcc

    rng, rows = np.random.default_rng(seed), []
    for world, pairs in found:
        z = pairs.latents
        turns = [np.linalg.qr(rng.standard_normal((world.d, world.d)))[0] for _ in range(200)]
        rotations = [mcc(z, z @ turn) for turn in turns]
        sides = {"learned": pairs.learned, "learned, other modality": pairs.other}
        sides |= {"untrained": pairs.untrained, "input": pairs.inputs}
        for features, x in sides.items():
            rows.append({
                "latents": repr(world), "features": features, "r2": linear_r2(x, z), "mcc": mcc(x, z),
                "mcc_ica": mcc(components(x, world.d, seed).ica(x), z), "rotation": float(np.mean(rotations)),
                "rotation_high": float(np.quantile(rotations, 0.975)), "loss": pairs.loss, "collapsed": pairs.collapsed,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    return Experiment(name, claim, table, table)


EXPERIMENTS: tuple[Callable[..., Experiment], ...] = (recovery, infonce, existence, bijections, lossy, samples, hypersphere, box)


# --- shared ------------------------------------------------------------------------------------------


def centred(kernel: np.ndarray) -> np.ndarray:
    """H K H: what is left of a kernel when constants per row and per column do not count."""
    rows = kernel - kernel.mean(axis=1, keepdims=True)
    return rows - rows.mean(axis=0, keepdims=True)


def _features(found: Learned) -> np.ndarray:
    assert found.f is not None
    return found.f


def _alignment(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """CKA, RSA and mutual k-NN of two learners over the same events; neighbours by distance, as f has a scale.

    Distances of a torus are tied by symmetry; what learning leaves of 1e-8 orders them at random. Hence Pearson's
    correlation, not ranks, and K at the border of a shell.
    """
    from repalign.measures import CKA, RSA, MutualKNN

    return {
        "cka": CKA(estimator="biased")(x, y),
        "rsa": RSA(dissimilarity="euclidean", comparison="pearson")(x, y),
        "mutual_knn": MutualKNN(k=K, similarity="euclidean")(x, y),
    }
