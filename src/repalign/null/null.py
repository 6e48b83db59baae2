"""What a null is: a way to break the pairing, and what its draws say of a pair of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures.measure import Bilinear, Measure, State
from repalign.null.calibration import Calibration, calibrate
from repalign.null.groups import Groups
from repalign.null.search import Found, Search, search_layers

# Which relabelling each model of a pair gets: 0 keeps its stimuli in place. Models of one side share a stream, so that
# their dependence is kept; where all models meet all others, each has its own, and a draw is one relabelling of them all.
Streams = tuple[int, int]
ONE_SIDE: Streams = (0, 1)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The states of all layers of one model, or the facts about them that a score needs, and what a null keeps."""

    states: tuple[State, ...]
    extra: Any = None
    extra_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for s in self.states) + self.extra_bytes

    @property
    def n(self) -> int:
        return self.states[0].n


@dataclass(frozen=True, eq=False)
class Judgement:
    """What chance says of a pair of models: of every pair of layers, and of the search over them.

    Scores are in the measure's own direction; in the draws of the search larger is closer.
    """

    cells: Calibration
    cells_by: np.ndarray  # (la, lb) the method that judged each cell
    found: Found
    search: Search
    search_by: str
    n_draws: int


class Null(ABC):
    """A way to break the pairing. A value: its repr is stored with every result."""

    name: ClassVar[str]
    searches: ClassVar[tuple[str, ...] | None] = None  # the only layer searches it allows; None for all
    sampler: Null | None = None  # whose draws judge the search over layers, where not its own
    seed: int
    groups: Groups | None

    def resolve(self, measure: Measure, n: int) -> Null:  # noqa: ARG002
        """The null that is really used for this measure at this n; it is what the result names."""
        return self if measure.paired else Unpaired()

    @abstractmethod
    def count(self, n: int) -> int:
        """How many draws there are at this n."""

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:  # noqa: ARG002
        """Once per model: whatever makes drawing cheap."""
        return Prepared(tuple(states))

    @abstractmethod
    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:
        """Scores under the null, (K, la, lb) float64; draw k is one relabelling for all layers."""

    def scored(
        self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE
    ) -> tuple[np.ndarray, np.ndarray]:
        """The observed scores (la, lb) and the draws (K, la, lb), larger always closer."""
        return measure.closeness_all(a.states, b.states).numpy(), self.draws(measure, a, b, streams)

    def judge(
        self,
        measure: Measure,
        a: Prepared,
        b: Prepared,
        *,
        how: Search | str = "studentised",
        alpha: float = 0.05,
        streams: Streams = ONE_SIDE,
    ) -> Judgement:
        """Hold all cells (la, lb) of two models and the search over them against chance."""
        search = Search.parse(how)
        observed, draws = self.scored(measure, a, b, streams)
        cells, cells_by = self.judge_cells(measure, a, b, observed, draws, alpha)
        found = self.judge_search(measure, observed, draws, search, alpha)
        found = replace(found, calibration=found.calibration.told_by(measure))
        by = self if self.sampler is None else self.sampler
        return Judgement(cells.told_by(measure), cells_by, found, search, by.name, len(draws))

    def judge_cells(
        self,
        measure: Measure,
        a: Prepared,  # noqa: ARG002
        b: Prepared,  # noqa: ARG002
        observed: np.ndarray,
        draws: np.ndarray,
        alpha: float,
    ) -> tuple[Calibration, np.ndarray]:
        """What chance says of the closeness of every cell, and the name of the null that says it."""
        by = np.full(observed.shape, self.name, dtype=object)
        return calibrate(observed, draws, alpha=alpha, s_max=measure.s_max), by

    def judge_search(
        self, measure: Measure, observed: np.ndarray, draws: np.ndarray, search: Search, alpha: float
    ) -> Found:
        """What chance says of the search over the closeness of all cells."""
        return search_layers(observed, draws, how=search, alpha=alpha, s_max=measure.s_max)

    def joint(
        self,
        observed: np.ndarray,  # noqa: ARG002
        draws: np.ndarray,
        streams: Sequence[Streams],  # noqa: ARG002
        n: int,  # noqa: ARG002
    ) -> np.ndarray:
        """The draws (P, K) of P pairs of models, aligned: column k is one relabelling of all models."""
        return draws


@dataclass(frozen=True)
class Unpaired(Null):
    """Scores without a chance level: mean, z, p-value, threshold and calibrated score are nan.

    A measure of two unpaired summaries gives the same number for every relabelling; a p-value of 1 would be read as
    "not aligned", which nothing says.
    """

    name: ClassVar[str] = "none"
    seed: int = 0
    groups: Groups | None = None

    def count(self, n: int) -> int:  # noqa: ARG002
        return 0

    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:  # noqa: ARG002
        return np.empty((0, len(a.states), len(b.states)))

    def judge_cells(
        self, measure: Measure, a: Prepared, b: Prepared, observed: np.ndarray, draws: np.ndarray, alpha: float  # noqa: ARG002
    ) -> tuple[Calibration, np.ndarray]:
        return Calibration(statistic=observed), np.full(observed.shape, self.name, dtype=object)

    def judge_search(
        self, measure: Measure, observed: np.ndarray, draws: np.ndarray, search: Search, alpha: float  # noqa: ARG002
    ) -> Found:
        i, j, top = -1, -1, np.nan
        if not np.isnan(observed).all():
            i, j = (int(v) for v in np.unravel_index(np.nanargmax(observed), observed.shape))
            top = observed[i, j]
        return Found(i, j, Calibration(statistic=top), draws.reshape(0), np.full_like(observed, np.nan))


def must_be_bilinear(measure: Measure, what: str) -> Bilinear:
    """The measure, known to be bilinear; an error that names the way out if it is not."""
    if isinstance(measure, Bilinear):
        return measure
    raise RepalignError(
        f"{what} to {measure!r}",
        expected="a bilinear measure (its states are relations)",
        got=type(measure).__name__,
        remedy="use null='permutation' for this measure, or null='auto' to choose per measure",
    )


def device_of(state: State) -> torch.device:
    """Where the tensors of a state are."""
    for field in ("matrix", "indices", "values"):
        tensor = getattr(state, field, None)
        if isinstance(tensor, Tensor):
            return tensor.device
    return torch.device("cpu")
