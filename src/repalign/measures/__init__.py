"""Measures of representational alignment: `MEASURES` is the only list of them.

A measure is a value, for instance ``MutualKNN(k=10)``: called on two paired arrays it gives a number, and
`prepare` and `compare` split that work for many layers. See `_base` for the interface.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from repalign.errors import RepalignError
from repalign.measures import parse as _parse
from repalign.measures.canonical import CCA, PWCCA, SquaredCCA
from repalign.measures.covariance import ENSD, GULP, RiemannianDistance
from repalign.measures.custom import KernelAlignment, NeighborOverlap
from repalign.measures.dependence import HSIC, RV, AngularCKA, DependentColumnsCKA
from repalign.measures.distance_correlation import (
    DistanceCorrelation,
    SquaredDistanceCorrelation,
    SquaredDistanceCovariance,
)
from repalign.measures.distribution import Disagreement, JensenShannon, KLDivergence, LogitDistance
from repalign.measures.kernel import CKA, CKNNA
from repalign.measures.likelihood import accuracy_difference, embedding_svd_distance, log_likelihood_variance_distance
from repalign.measures.mapping import DirectStitching, LinearRegression
from repalign.measures.matching import HardUnitMatching, MeanCorrelationCoefficient, PairwiseMatching, SoftUnitMatching
from repalign.measures.measure import Bilinear, Features, Measure, Neighbors, Relation, State, as_features
from repalign.measures.modality_shift import shift_curve
from repalign.measures.neighbor_ranks import JaccardKNN, JointRankJaccard, MultiScaleKNN, RankSimilarity
from repalign.measures.neighbors import LCSKNN, CycleKNN, EditDistanceKNN, MutualKNN
from repalign.measures.paired_cosine import AlignedCosine, RelativeRepresentation
from repalign.measures.parse import describe
from repalign.measures.persistence import IMD, PersistenceDistance, TotalPersistenceDifference
from repalign.measures.point_clouds import BuresWasserstein, EnergyDistance, SlicedWasserstein
from repalign.measures.predictivity import VERSA, PLSPredictivity, RidgePredictivity
from repalign.measures.procrustes import AngularProcrustes, HeldOutProcrustes, PermutationProcrustes, Procrustes
from repalign.measures.rdm import RSA, RSAKendall, RSMNormDifference
from repalign.measures.reference import CKNNAPaper, CKNNAReference
from repalign.measures.retrieval import RetrievalRecall
from repalign.measures.shape import BuresDistance, NormalisedBures, PLSCovariance, ShapeMetric
from repalign.measures.shared_space import (
    ConeEffect,
    ModalityGap,
    ModalitySeparability,
    PairedCosine,
    cone_effect,
)
from repalign.measures.soft_neighbors import SecondOrderCosine, SoftKNN
from repalign.measures.statistics import (
    ConcentricityDifference,
    IntrinsicDimensionDifference,
    MagnitudeDifference,
    ParticipationRatioDifference,
    UniformityDifference,
    concentricity,
    magnitude,
    participation_ratio,
    two_nn_dimension,
    uniformity,
)
from repalign.measures.subspace import SVCCA, EigenspaceOverlap, GrassmannDistance
from repalign.measures.topological_rsa import SigmoidRSA, TopologicalRSA
from repalign.measures.topology import RTD, MTopDiv, RTDLite, relative_to_null

MEASURES: tuple[type[Measure], ...] = (
    MutualKNN,
    CycleKNN,
    LCSKNN,
    EditDistanceKNN,
    JaccardKNN,
    RankSimilarity,
    JointRankJaccard,
    SecondOrderCosine,
    MultiScaleKNN,
    SoftKNN,
    CKA,
    CKNNA,
    CKNNAPaper,
    CKNNAReference,
    HSIC,
    RV,
    AngularCKA,
    DependentColumnsCKA,
    SquaredDistanceCorrelation,
    DistanceCorrelation,
    SquaredDistanceCovariance,
    RSA,
    RSAKendall,
    RSMNormDifference,
    TopologicalRSA,
    SigmoidRSA,
    SVCCA,
    CCA,
    SquaredCCA,
    PWCCA,
    GrassmannDistance,
    EigenspaceOverlap,
    Procrustes,
    AngularProcrustes,
    ShapeMetric,
    PermutationProcrustes,
    HeldOutProcrustes,
    NormalisedBures,
    BuresDistance,
    PLSCovariance,
    GULP,
    ENSD,
    RiemannianDistance,
    RetrievalRecall,
    PairedCosine,
    ModalityGap,
    ModalitySeparability,
    ConeEffect,
    KLDivergence,
    JensenShannon,
    Disagreement,
    LogitDistance,
    MagnitudeDifference,
    ConcentricityDifference,
    UniformityDifference,
    ParticipationRatioDifference,
    IntrinsicDimensionDifference,
    EnergyDistance,
    BuresWasserstein,
    SlicedWasserstein,
    LinearRegression,
    RidgePredictivity,
    PLSPredictivity,
    VERSA,
    DirectStitching,
    AlignedCosine,
    RelativeRepresentation,
    MeanCorrelationCoefficient,
    HardUnitMatching,
    SoftUnitMatching,
    PairwiseMatching,
    RTD,
    RTDLite,
    MTopDiv,
    PersistenceDistance,
    TotalPersistenceDifference,
    IMD,
)

# Names in use in the field for a class with certain parameters; the other aliases belong to their classes.
SHORTHANDS: dict[str, tuple[type[Measure], dict[str, Any]]] = {
    "biased_cka": (CKA, {"estimator": "biased"}),
    "cka_linear": (CKA, {"estimator": "biased"}),
    "cka_rbf": (CKA, {"kernel": "rbf", "estimator": "biased"}),
    "cka_laplacian": (CKA, {"kernel": "laplacian", "estimator": "biased"}),
    "cka_lange": (RV, {"modified": True}),
    "rv2": (RV, {"modified": True}),
}


# Measures of others: registered in this process, or announced by an installed package.
ENTRY_POINTS = "repalign.measures"
_registered: dict[str, type[Measure]] = {}


def register(cls: type[Measure]) -> type[Measure]:
    """Make a measure of your own known by its name, so that text, the command line and studies find it.

    Works as a decorator. An installed package needs no call: it announces its classes as entry points of the group
    "repalign.measures". `repalign.testing.check_measure` holds a measure to the laws that ours obey.

    Raises RepalignError if the name, or one of the aliases, belongs to another measure.
    """
    taken = {n: c for c in (*MEASURES, *_registered.values()) for n in (c.__name__, *c.aliases)}
    taken |= {name: c for name, (c, _) in SHORTHANDS.items()}
    for name in (cls.__name__, *cls.aliases):
        other = taken.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RepalignError(
                f"the name {name!r} belongs to another measure",
                expected="a name and aliases of its own",
                got=f"{other.__module__}.{other.__qualname__}",
                remedy="rename the class, or its alias",
            )
    _registered[cls.__name__] = cls
    return cls


def known_measures() -> tuple[type[Measure], ...]:
    """All measures: ours, those of installed packages, and those registered."""
    _load_announced()
    return (*MEASURES, *_registered.values())


@functools.cache
def _load_announced() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS):
        try:
            cls = point.load()
        except Exception as error:
            raise RepalignError(
                f"the measure {point.name!r} of another package cannot be loaded",
                expected=f"a subclass of repalign.measures.Measure at {point.value}",
                got=f"{type(error).__name__}: {error}",
                remedy="mend or remove the package that announces it",
            ) from error
        register(cls)


def parse_measure(text: str) -> Measure:
    """The measure that a text names, so that `parse_measure(repr(measure)) == measure`.

    Class names, aliases and shorthands are known; parameters are literals, given by name.
    Raises RepalignError for an unknown name or parameter (with the closest known one) and for bad values.

    >>> parse_measure("mutual_knn(k=5)")
    MutualKNN(k=5, similarity='cosine', center=False)
    """
    return _parse.parse(text, known_measures(), SHORTHANDS)


def parse_measures(texts: Sequence[str]) -> list[Measure]:
    """Measures from texts, of which "all" and the name of a family stand for all of their kind with defaults.

    >>> [type(m).__name__ for m in parse_measures(["CKA()", "neighbors"])][:2]
    ['CKA', 'MutualKNN']
    """
    out: list[Measure] = []
    for text in texts:
        kin = [cls() for cls in known_measures() if text in ("all", cls.family)]
        out += kin if is_group(text) else [parse_measure(text)]
    return list(dict.fromkeys(out))


def is_group(text: Any) -> bool:
    """Whether a text stands for several measures: "all", or the name of a family."""
    return isinstance(text, str) and text in {"all", *(cls.family for cls in known_measures())}


__all__ = [
    "CCA",
    "CKA",
    "CKNNA",
    "ENSD",
    "GULP",
    "HSIC",
    "IMD",
    "LCSKNN",
    "MEASURES",
    "PWCCA",
    "RSA",
    "RTD",
    "RV",
    "SHORTHANDS",
    "SVCCA",
    "VERSA",
    "AlignedCosine",
    "AngularCKA",
    "AngularProcrustes",
    "Bilinear",
    "BuresDistance",
    "BuresWasserstein",
    "CKNNAPaper",
    "CKNNAReference",
    "ConcentricityDifference",
    "ConeEffect",
    "CycleKNN",
    "DependentColumnsCKA",
    "DirectStitching",
    "Disagreement",
    "DistanceCorrelation",
    "EditDistanceKNN",
    "EigenspaceOverlap",
    "EnergyDistance",
    "Features",
    "GrassmannDistance",
    "HardUnitMatching",
    "HeldOutProcrustes",
    "IntrinsicDimensionDifference",
    "JaccardKNN",
    "JensenShannon",
    "JointRankJaccard",
    "KLDivergence",
    "KernelAlignment",
    "LinearRegression",
    "LogitDistance",
    "MTopDiv",
    "MagnitudeDifference",
    "MeanCorrelationCoefficient",
    "Measure",
    "ModalityGap",
    "ModalitySeparability",
    "MultiScaleKNN",
    "MutualKNN",
    "NeighborOverlap",
    "Neighbors",
    "NormalisedBures",
    "PLSCovariance",
    "PLSPredictivity",
    "PairedCosine",
    "PairwiseMatching",
    "ParticipationRatioDifference",
    "PermutationProcrustes",
    "PersistenceDistance",
    "Procrustes",
    "RSAKendall",
    "RSMNormDifference",
    "RTDLite",
    "RankSimilarity",
    "Relation",
    "RelativeRepresentation",
    "RetrievalRecall",
    "RidgePredictivity",
    "RiemannianDistance",
    "SecondOrderCosine",
    "ShapeMetric",
    "SigmoidRSA",
    "SlicedWasserstein",
    "SoftKNN",
    "SoftUnitMatching",
    "SquaredCCA",
    "SquaredDistanceCorrelation",
    "SquaredDistanceCovariance",
    "State",
    "TopologicalRSA",
    "TotalPersistenceDifference",
    "UniformityDifference",
    "accuracy_difference",
    "as_features",
    "concentricity",
    "cone_effect",
    "describe",
    "embedding_svd_distance",
    "is_group",
    "known_measures",
    "log_likelihood_variance_distance",
    "magnitude",
    "parse_measure",
    "parse_measures",
    "participation_ratio",
    "register",
    "relative_to_null",
    "shift_curve",
    "two_nn_dimension",
    "uniformity",
]
