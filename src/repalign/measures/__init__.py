"""Measures of representational alignment, as values: `MutualKNN(k=10)` called on two paired arrays gives a number.

`prepare` and `compare` split that work for many layers: see `measure` for the interface. A family's module ends in the
tuple of its measures; `MEASURES` joins these tuples, and every measure in it is a name of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from repalign.measures.custom import KernelAlignment, NeighborOverlap
from repalign.measures.distribution import accuracy_difference, embedding_svd_distance, log_likelihood_variance_distance
from repalign.measures.measure import *  # noqa: F403  (what a measure of one's own is made of)
from repalign.measures.measure import Measure
from repalign.measures.measure import __all__ as _interface
from repalign.measures.registry import *  # noqa: F403  (measures by name)
from repalign.measures.registry import __all__ as _by_name
from repalign.measures.shared_space import cone_effect, shift_curve
from repalign.measures.statistics import concentricity, magnitude, participation_ratio, two_nn_dimension, uniformity
from repalign.measures.topology import relative_to_null

if TYPE_CHECKING:  # the names of measures, which are bound below
    from repalign.measures.covariance import *  # noqa: F403
    from repalign.measures.dependence import *  # noqa: F403
    from repalign.measures.distribution import *  # noqa: F403
    from repalign.measures.kernel import *  # noqa: F403
    from repalign.measures.mapping import *  # noqa: F403
    from repalign.measures.matching import *  # noqa: F403
    from repalign.measures.neighbors import *  # noqa: F403
    from repalign.measures.paired_cosine import *  # noqa: F403
    from repalign.measures.point_clouds import *  # noqa: F403
    from repalign.measures.rdm import *  # noqa: F403
    from repalign.measures.shape import *  # noqa: F403
    from repalign.measures.shared_space import *  # noqa: F403
    from repalign.measures.soft_neighbors import *  # noqa: F403
    from repalign.measures.statistics import *  # noqa: F403
    from repalign.measures.subspace import *  # noqa: F403
    from repalign.measures.topology import *  # noqa: F403

# In the order of listings.
FAMILIES = (
    "neighbors", "soft_neighbors", "kernel", "dependence", "rdm", "subspace", "shape", "covariance", "shared_space",
    "distribution", "statistics", "point_clouds", "mapping", "paired_cosine", "matching", "topology",
)
MEASURES: tuple[type[Measure], ...] = tuple(
    cls for family in FAMILIES for cls in import_module(f"{__name__}.{family}").MEASURES
)
globals().update({cls.__name__: cls for cls in MEASURES})

__all__ = [
    "KernelAlignment", "MEASURES", "NeighborOverlap", "accuracy_difference", "concentricity", "cone_effect",
    "embedding_svd_distance", "log_likelihood_variance_distance", "magnitude", "participation_ratio",
    "relative_to_null", "shift_curve", "two_nn_dimension", "uniformity",
    *_interface,
    *_by_name,
    *(cls.__name__ for cls in MEASURES),
]
