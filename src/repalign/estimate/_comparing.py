"""What comparing takes: all layers of some models with all layers of others, by one measure after another.

Costs are in operations of a matrix product, so that a machine's rate turns them into seconds. The constants were measured
on two cores at n = 256 to 4,096 (docs/estimates.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repalign import null as nulls
from repalign.comparison import default_memory
from repalign.comparison import plan as plan_linear_cka
from repalign.comparison.preprocess import Preprocess
from repalign.comparison.ways import way_of
from repalign.measures.measure import Bilinear, Measure

Cost = tuple[float, float]  # seconds of preparing a layer, of a pair of layers

# Beside one Gram matrix of 2 n^2 d for all measures together, of every layer and measure in n^2:
STATE = 750.0  # from the Gram matrix to a state
SPECTRUM = 1200.0  # the FFT of a relation and the sums of its moments
TRIANGLE = 2.0  # in n^3: the product behind the skewness of a dense relation
GATHER = 500.0  # relabelling a dense relation, for each random permutation
# Of every entry of a layer: reading, checking, and the doctor's look.
ENTRY = 900.0
# Of every pair of layers, with exact draws: the products of all frequencies in n^2, and in n the passes over the draws.
FREQUENCIES = 4.0
DRAWS = 8e3
LOOKED_UP = 160.0  # in n k: two neighbour lists held against each other, for each random permutation
# Of every pair of models, in n: a loop over the frequencies. And of its rows of the table, a pair of layers each.
PAIR = 1.2e6
TILE = 1.5e9
ROW = 4e5

GRAM_ALONE = "n^2 d per layer,"  # how a measure says that its states cost no more than a Gram matrix
PROCESS_BYTES = int(7e8)  # the libraries, and what they hold
COPIES = 6  # of the draws of one pair of models, while they are judged


@dataclass(frozen=True)
class Comparison:
    """Seconds, memory and the number of layer pairs of comparing, over all variants; `left_out` is not counted."""

    seconds: float
    memory_bytes: int
    layer_pairs: int
    left_out: tuple[str, ...] = ()

    @classmethod
    def together(cls, parts: Sequence[Comparison]) -> Comparison:
        """Several comparisons, one after the other."""
        return cls(
            sum(p.seconds for p in parts),
            max(p.memory_bytes for p in parts),
            sum(p.layer_pairs for p in parts),
            tuple(dict.fromkeys(name for p in parts for name in p.left_out)),
        )


def comparing(
    x: Sequence[Sequence[int]],
    y: Sequence[Sequence[int]] | None,
    n: int,
    measures: Sequence[Measure],
    rate: float,
    *,
    null: nulls.Null | None = None,
    preprocess: Preprocess | None = None,
    variants: int = 1,
    memory: int | None = None,
    costs: Mapping[Measure, Cost] | None = None,
    limit: float = math.inf,
    limited: frozenset[Measure] = frozenset(),
) -> Comparison:
    """The cost of comparing models whose layers have these widths, at `rate` operations a second of matrix products.

    x, y : widths of the layers of every model; without y all models of x are compared with one another.
    costs : what measures cost that need more than a Gram matrix, as tried out (see `try_measures`); one that is no inner
        product is left out without.
    limit : seconds that a measure among `limited` takes at most, as those of a group do.
    memory : bytes for prepared states, a quarter of the machine's by default.
    """
    null = nulls.Auto() if null is None else null
    preprocess = Preprocess() if preprocess is None else preprocess
    if preprocess.concatenate:
        x = [(*w, sum(w)) for w in x]
        y = None if y is None else [(*w, sum(w)) for w in y]
    shape = _Shape(tuple(map(tuple, x)), None if y is None else tuple(map(tuple, y)), n)
    seconds, left_out = shape.reading() / rate, []
    if any(isinstance(m, Bilinear) and way_of(m, null, n, plain=preprocess.is_identity).name != "streamed" for m in measures):
        seconds += shape.grams() / rate
    for measure in measures:
        resolved = null.resolve(measure, n)
        if way_of(measure, null, n, plain=preprocess.is_identity).name == "streamed":
            taken = shape.streamed() / rate
        elif isinstance(measure, Bilinear):
            taken = shape.bilinear(measure, resolved) / rate
            taken += shape.n_layers * costs[measure][0] if costs is not None and measure in costs else 0.0
        elif costs is not None and measure in costs:
            layer, pair = costs[measure]
            taken = shape.n_layers * layer + shape.layer_pairs * pair * (1 + resolved.count(n))
        else:
            left_out.append(repr(measure))
            continue
        taken += (len(shape.pairs) * TILE + shape.layer_pairs * ROW) / rate
        seconds += min(taken, limit) if measure in limited else taken
    budget = default_memory() if memory is None else memory
    held = shape.memory(measures, null, budget, preprocess)
    return Comparison(seconds * variants, held, shape.layer_pairs, tuple(left_out))


@dataclass(frozen=True)
class _Shape:
    """Widths of the layers of models that meet, and the number of stimuli."""

    x: tuple[tuple[int, ...], ...]
    y: tuple[tuple[int, ...], ...] | None
    n: int

    @property
    def models(self) -> tuple[tuple[int, ...], ...]:
        return (*self.x, *(self.y or ()))

    @property
    def pairs(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        if self.y is not None:
            return [(a, b) for a in self.x for b in self.y]
        return [(a, b) for i, a in enumerate(self.x) for b in self.x[i + 1 :]]

    @property
    def n_layers(self) -> int:
        return sum(map(len, self.models))

    @property
    def layer_pairs(self) -> int:
        return sum(len(a) * len(b) for a, b in self.pairs)

    def reading(self) -> float:
        """Every layer read and looked at."""
        return ENTRY * self.n * sum(map(sum, self.models))

    def grams(self) -> float:
        """One Gram matrix of every layer, which all measures share."""
        return 2.0 * self.n**2 * sum(map(sum, self.models))

    def bilinear(self, measure: Bilinear, null: nulls.Null) -> float:
        """Inner products of relations, with closed-form moments and exact draws, or with random permutations."""
        n = float(self.n)
        operations = self.n_layers * STATE * n**2
        sampler = null.sampler if isinstance(null, nulls.Moments) else null
        if isinstance(null, nulls.Moments):
            operations += self.n_layers * TRIANGLE * n**3 * measure.dense
        if isinstance(sampler, nulls.Cyclic):
            times = (sampler.count(self.n) + 1) / n
            operations += self.n_layers * SPECTRUM * n**2 * max(1.0, times)
            operations += times * (self.layer_pairs * (FREQUENCIES * n**2 + DRAWS * n) + len(self.pairs) * PAIR * n)
            return operations
        draws = sampler.count(self.n)
        if measure.dense:
            gathered = sum(len(b) for _, b in self.pairs) * GATHER
            return operations + draws * n**2 * (gathered + 2 * self.layer_pairs)
        return operations + draws * self.layer_pairs * LOOKED_UP * n * (measure.n_neighbors or 10)

    def streamed(self) -> float:
        """Linear CKA in feature space, two models at a time."""
        return 2 * sum(plan_linear_cka(self.n, a, b, memory=0).flops for a, b in self.pairs)

    def memory(
        self, measures: Sequence[Measure], null: nulls.Null, budget: int, preprocess: Preprocess
    ) -> int:
        """What stays of all models within the budget (of two in any case), and what one model takes on its way there."""
        n, kept, passing = self.n, 0, 0
        for measure in measures:
            if way_of(measure, null, n, plain=preprocess.is_identity).name == "streamed":
                continue
            sampler = null.resolve(measure, n)
            sampler = sampler.sampler if isinstance(sampler, nulls.Moments) else sampler
            dense = 4 * n * n if isinstance(measure, Bilinear) and measure.dense else 0
            if isinstance(sampler, nulls.Cyclic) and isinstance(measure, Bilinear):
                times = max(1, (sampler.count(n) + 1) // n)
                kept += (2 if measure.dense else 4) * n * n * times
                passing += dense
            else:
                kept += dense
        layers = max(map(len, self.models), default=0)
        two = max((len(a) + len(b) for a, b in self.pairs), default=0)
        states = min(self.n_layers * kept, max(budget, two * kept))
        widest = max((d for w in self.models for d in w), default=0)
        # What layers share, such as a threshold or their concatenation, needs all layers of a model at once.
        whole = widest if preprocess.is_identity else max(map(sum, self.models), default=0)
        features = 4 * n * (2 * widest + whole)
        draws = COPIES * 8 * n * max((len(a) * len(b) for a, b in self.pairs), default=0)
        return PROCESS_BYTES + int(states + layers * passing + features + draws)


def try_measures(measures: Sequence[Measure], n: int, width: int, most: float) -> dict[Measure, Cost]:
    """What measures that need more than a Gram matrix cost on two random layers; a trial takes about `most` seconds."""
    import torch

    from repalign.comparison.ways import trial
    from repalign.errors import RepalignError

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, width, generator=generator) for _ in range(2))
    out = {}
    for measure in measures:
        if isinstance(measure, Bilinear) and measure.cost.startswith(GRAM_ALONE):
            continue
        try:
            cost = trial(measure, x, y, most)
        except RepalignError:  # undefined at this n, or with a library that is not installed
            continue
        out[measure] = (cost.layer, cost.pair)
    return out
