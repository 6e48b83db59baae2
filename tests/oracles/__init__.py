"""Plain float64 numpy forms of every measure, written from the published definitions; slow and independent.

One module per family, each with its `CASES`, the instances that the laws of `repalign.testing` are tried on. A measure of
the list without a case here fails the tests.
"""

from oracles import (
    covariance,
    distribution,
    kernel,
    mapping,
    matching,
    neighbor_ranks,
    neighbors,
    rdm,
    shape,
    shared_space,
    statistics,
    subspace,
    topology,
)
from repalign.testing import Case

CASES: tuple[Case, ...] = (
    *neighbors.CASES,
    *neighbor_ranks.CASES,
    *kernel.CASES,
    *rdm.CASES,
    *subspace.CASES,
    *shape.CASES,
    *covariance.CASES,
    *shared_space.CASES,
    *distribution.CASES,
    *statistics.CASES,
    *mapping.CASES,
    *matching.CASES,
    *topology.CASES,
)
