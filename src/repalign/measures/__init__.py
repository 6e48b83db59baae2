"""Measures of representational alignment, as values: `MutualKNN(k=10)` called on two paired arrays gives a number.

`prepare` and `compare` split that work for many layers: see `measure` for the interface. Every measure that `registry.FAMILIES`
lists is a name of this package, and its module is imported when the name is first used; `MEASURES` are all of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from repalign.measures.measure import *  # noqa: F403  (what a measure of one's own is made of)
from repalign.measures.measure import __all__ as _interface
from repalign.measures.registry import *  # noqa: F403  (measures by name)
from repalign.measures.registry import FAMILIES, HOMES
from repalign.measures.registry import __all__ as _by_name

if TYPE_CHECKING:  # what is bound when it is first used, below
    from repalign.measures.cknna import *  # noqa: F403
    from repalign.measures.covariance import *  # noqa: F403
    from repalign.measures.custom import *  # noqa: F403
    from repalign.measures.dependence import *  # noqa: F403
    from repalign.measures.distribution import *  # noqa: F403
    from repalign.measures.kernel import *  # noqa: F403
    from repalign.measures.mapping import *  # noqa: F403
    from repalign.measures.matching import *  # noqa: F403
    from repalign.measures.measure import Measure
    from repalign.measures.neighbors import *  # noqa: F403
    from repalign.measures.paired_cosine import *  # noqa: F403
    from repalign.measures.point_clouds import *  # noqa: F403
    from repalign.measures.rdm import *  # noqa: F403
    from repalign.measures.relative import relative_to_null as relative_to_null
    from repalign.measures.shape import *  # noqa: F403
    from repalign.measures.shared_space import *  # noqa: F403
    from repalign.measures.soft_neighbors import *  # noqa: F403
    from repalign.measures.statistics import *  # noqa: F403
    from repalign.measures.subspace import *  # noqa: F403
    from repalign.measures.topology import *  # noqa: F403

    MEASURES: tuple[type[Measure], ...]

# What the modules have in addition to measures that stand in `MEASURES`.
_OTHERS = {
    "custom": ("KernelAlignment", "NeighborOverlap"),
    "distribution": ("accuracy_difference", "embedding_svd_distance", "log_likelihood_variance_distance"),
    "relative": ("relative_to_null",),
    "shared_space": ("cone_effect", "shift_curve"),
    "statistics": ("concentricity", "magnitude", "participation_ratio", "two_nn_dimension", "uniformity"),
}
_HOMES = {**HOMES, **{name: f"{__name__}.{module}" for module, names in _OTHERS.items() for name in names}}

__all__ = ["FAMILIES", "MEASURES", *_interface, *_by_name, *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "MEASURES":
        value: Any = tuple(getattr(import_module(home), measure) for measure, home in HOMES.items())
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
