"""The interface of a measure: prepare once per layer, compare many, permute the prepared.

The law, tested for every row of MEASURES on data without ties::

    compare(prepare(x), prepare(y).permute(p)) == compare(prepare(x), prepare(y[p]))

There are three kinds of state (`states`). A measure says that it is bilinear by returning a `Relation`; nothing else is needed
for it to get matrix products over all layers, closed-form moments and the cyclic null.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.layers import FEATURES, Given, as_features, as_layer, check_paired, kind_of, refuse_unmarked_rdm, said
from repalign.measures.numerics.rows import SCRATCH_BYTES
from repalign.measures.states import (
    DenseRelation,
    Features,
    GraphRelation,
    Neighbors,
    Relation,
    SquareState,
    State,
    Summary,
    TwoRoles,
    in_roles,
)

if TYPE_CHECKING:
    from repalign.measures.registry import MeasureFacts

__all__ = [
    "SCRATCH_BYTES", "Batched", "Bilinear", "DenseRelation", "Distance", "Features", "GraphRelation", "Local", "Measure",
    "Neighbors", "Relation", "SquareState", "State", "Summary", "TwoRoles", "as_count", "as_features", "as_layer", "as_number",
    "check_flag", "check_paired", "in_roles", "norms", "parameter",
]  # fmt: skip

# --- parameters ---------------------------------------------------------------------------------


def parameter(default: Any, check: Callable[..., Any], *known: Any) -> Any:
    """A field of a measure: `check(name, value, *known)` gives its value in the one form it has, or refuses it.

    One form, because the repr is the identity of a measure: 1 and 1.0 must not make two measures of one.
    """
    return dataclasses.field(default=default, metadata={"check": lambda name, value: check(name, value, *known)})


def optional(name: str, value: Any, check: Callable[..., Any], *known: Any) -> Any:
    """None, or what `check` makes of the value."""
    return None if value is None else check(name, value, *known)


def _whole(value: Any) -> int:
    """A whole number of any integer type as an int; -1 for everything else."""
    try:
        return -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return -1


def as_count(name: str, value: Any) -> int:
    """A whole number >= 1, of any integer type, as an int."""
    if (count := _whole(value)) < 1:
        raise RepalignError(f"{name} is not a positive whole number", expected=f"{name} >= 1", got=repr(value))
    return count


def as_number(name: str, value: Any, holds: Callable[[float], bool], problem: str, expected: str) -> float:
    """A number for which `holds` is true, as a float; never True or False."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not holds(value):
        raise RepalignError(f"{name} {problem}", expected=expected, got=repr(value))
    return float(value)


def as_epsilon(name: str, value: Any) -> float:
    """A finite number >= 0 as a float."""
    return as_number(name, value, lambda v: 0 <= v < math.inf, "is not a number >= 0", "0 (none) or a small number")


def as_share(name: str, value: Any) -> float:
    """A number from 0 to 1 as a float."""
    return as_number(name, value, lambda v: 0 <= v <= 1, "is not a share", f"0 <= {name} <= 1")


def as_folds(name: str, value: Any) -> int:
    """A whole number >= 2."""
    if (count := as_count(name, value)) < 2:
        raise RepalignError("one fold leaves nothing to train on", expected=f"{name} >= 2", got=repr(value), remedy="use 5 folds")
    return count


def as_seed(name: str, value: Any) -> int:
    """A whole number in [0, 2^32), of any integer type, as an int."""
    if not 0 <= (seed := _whole(value)) < 2**32:
        raise RepalignError(f"{name} is not a whole number", expected=f"0 <= {name} < 2**32", got=repr(value))
    return seed


def check_flag(name: str, value: Any) -> bool:
    """True or False and nothing that merely counts as such: 'false' is not False."""
    if not isinstance(value, bool):
        raise RepalignError(f"{name} is neither True nor False", expected="True or False", got=repr(value))
    return value


# --- the measure -------------------------------------------------------------------------------

# Called with the number of pairs of layers that are compared.
_compared: ContextVar[Callable[[int], None]] = ContextVar("_compared", default=lambda _: None)


@contextmanager
def counting(tell: Callable[[int], None]) -> Iterator[None]:
    """Within it `tell` is called with the number of pairs of layers that are compared, so that long work can talk."""
    token = _compared.set(tell)
    try:
        yield
    finally:
        _compared.reset(token)


# Changes of the features that keep all distances, and with one factor for all of them.
ISOMETRIES = frozenset({"orthogonal", "translation", "permutation"})
ISOMETRIES_AND_SCALE = ISOMETRIES | {"isotropic_scale"}


class Measure(ABC):
    """A function of two paired arrays (n, d1) and (n, d2) to a number, as a frozen dataclass.

    Its parameters are its fields and `repr(measure)` is its identity on disk. The class facts, and `range`
    and `invariances`, which may depend on parameters, are declarations that the common tests hold it to.
    """

    family: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    shorthands: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # names in use for certain parameters of the class
    symmetric: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]]
    cost: ClassVar[str]  # what a layer and a pair of layers cost, in n, d and the parameters
    closer_is_higher: ClassVar[bool] = True  # False for a distance
    paired: ClassVar[bool] = True  # False where the score does not know which row belongs to which
    equal_widths: ClassVar[bool] = False  # True where both arrays must live in one space
    takes: ClassVar[frozenset[str]] = frozenset({FEATURES})  # what a layer may be given as: also "rdm" or "kernel"
    unchanged_by: ClassVar[frozenset[str]] = frozenset()  # what may be done to one of the arrays, whatever the parameters
    smallest_n: ClassVar[int] = 2
    interval: ClassVar[str] = "jackknife"  # for its interval over stimuli; "subsample" where halves give a shorter one that holds

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if "check" in f.metadata and value is not f.default:
                object.__setattr__(self, f.name, f.metadata["check"](f.name, value))

    @property
    def s_max(self) -> float:
        """The largest attainable closeness, the top of the calibrated scale."""
        return self.closeness(self.range[1 if self.closer_is_higher else 0])

    def closeness(self, scores: Any) -> Any:
        """Scores as closeness, where larger is closer, or back again: the sign of a distance is turned here and nowhere else.

        Every null looks at closeness; tables and reports hold scores in the measure's own direction.
        """
        return scores if self.closer_is_higher else -scores

    @property
    def range(self) -> tuple[float, float]:
        """The bounds of this very measure; parameters may change those of its class."""
        return self.bounds

    @property
    def invariances(self) -> frozenset[str]:
        """Changes of one of the arrays that do not change the score of this very measure."""
        return self.unchanged_by

    @property
    def accepts(self) -> frozenset[str]:
        """The forms of a layer that this very measure takes; parameters may narrow those of its class."""
        return self.takes

    @property
    def min_n(self) -> int:
        """The smallest n at which this very measure is defined."""
        return self.smallest_n

    @property
    def n_neighbors(self) -> int:
        """How many neighbours of a stimulus the score looks at; 0 if it looks at all stimuli."""
        return 0

    def with_neighbors(self, share: float) -> Self:  # noqa: ARG002
        """The same measure with neighbourhoods of this share of their size, at least 1; itself if it has none."""
        return self

    @property
    def facts(self) -> MeasureFacts:
        """Names, parameters and direction, which go with its scores."""
        from repalign.measures.registry import MeasureFacts, label_of, worth_showing

        name, meaning = type(self).__name__, (type(self).__doc__ or "").strip().partition("\n")[0]
        if meaning.startswith(f"{name}("):  # the signature that a dataclass without a docstring gets
            meaning = ""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        label = label_of(name, worth_showing(type(self), given))
        return MeasureFacts(name, given, label, self.family, meaning, self.closer_is_higher)

    def check(self, n: int, where: str = "x", kinds: Mapping[str, str] = MappingProxyType({})) -> None:
        """Refuse too few stimuli of `where`, and a layer that is given as this measure does not take it; `kinds` by layer."""
        if n < self.min_n:
            raise RepalignError(
                f"{where}: too few stimuli for {self!r}", expected=f"n >= {self.min_n}", got=f"n = {n}",
                remedy="use more stimuli, or a smaller k where the measure has one",
            )  # fmt: skip
        name = next((name for name, kind in kinds.items() if kind not in self.accepts), None)
        if name is None:
            return
        from repalign.measures.registry import known_measures  # of all measures, which are made of this module

        kind, given = kinds[name], said(kinds[name])
        others = [cls.__name__ for cls in known_measures() if kind in cls.takes]
        other = f"; {type(self).__name__} with other parameters takes {given}" if kind in self.takes else ""
        raise RepalignError(
            f"{name}: {self!r} does not take {given}",
            expected=f"a layer given as {' or '.join(map(said, sorted(self.accepts)))}{other}", got=given,
            remedy=f"give features, or use a measure that takes {given}: {', '.join(others)}",
        )  # fmt: skip

    @abstractmethod
    def prepare(self, x: Any) -> State:
        """Everything that needs one layer only; called once per layer with a checked (n, d) tensor, n >= `min_n`.

        Where `accepts` says so, also with an `RDM` or a `Kernel`, which `between_rows` and `dissimilarities` (of
        `numerics.distances`), `numerics.search.embed` and the `prepare` of `CKA` take as they take features.
        """

    @abstractmethod
    def compare(self, a: Any, b: Any) -> float:
        """The score of two prepared layers; nan where it is undefined (a constant representation)."""

    def compare_all(self, a: Sequence[Any], b: Sequence[Any]) -> Tensor:
        """All scores of two lists of states, a float64 (la, lb) tensor on the CPU."""
        tell = _compared.get()
        return torch.tensor([[tell(1) or self.compare(s, t) for t in b] for s in a], dtype=torch.float64)

    def closeness_all(self, a: Sequence[Any], b: Sequence[Any]) -> Tensor:
        """The closeness of all pairs of layers, nan for those that do not live in one space."""
        return self.closeness(self._where_widths_agree(a, b) if self.equal_widths else self.compare_all(a, b))

    def _where_widths_agree(self, a: Sequence[Any], b: Sequence[Any]) -> Tensor:
        """`compare_all` of states of one width, nan between others."""
        out = torch.full((len(a), len(b)), math.nan, dtype=torch.float64)
        of = [torch.tensor([s.width for s in side]) for side in (a, b)]
        for width in set(of[0].tolist()):
            i, j = (torch.nonzero(w == width).flatten() for w in of)
            if len(j):
                out[i[:, None], j] = self.compare_all([a[int(k)] for k in i], [b[int(k)] for k in j])
        return out

    def check_widths(self, dx: int, dy: int) -> None:
        """Refuse arrays of different widths where both must live in one space."""
        if self.equal_widths and dx != dy:
            raise RepalignError(
                f"{type(self).__name__} compares arrays of one space",
                expected="x and y of the same width", got=f"widths {dx} and {dy}",
                remedy="use a measure that does not need a shared space, for instance MutualKNN or CKA",
            )  # fmt: skip

    def __call__(self, x: Any, y: Any) -> float:
        x, y = self.checked(x, y)
        return self.compare(self.prepare(x), self.prepare(y))

    def checked(self, x: Any, y: Any) -> tuple[Given, Given]:
        """Two layers at the border: RepalignError unless this measure is defined for them."""
        if any(getattr(v, "requires_grad", False) for v in (x, y)):
            _tell_of_losses()
        x, y = as_layer(x, "x"), as_layer(y, "y")
        for layer, name in ((x, "x"), (y, "y")):
            self.check(len(layer), name, {name: kind_of(layer)})
            if isinstance(layer, Tensor):
                refuse_unmarked_rdm(layer, name)
        self.check_widths(x.shape[1], y.shape[1])
        if self.paired:
            check_paired(len(x), len(y))
        return x, y


@cache
def _tell_of_losses() -> None:
    """Once: who measures what gradients flow through may want them to go on."""
    logging.getLogger(__name__).warning("a measure gives a number and no gradient; repalign.losses has differentiable forms")


class Distance(Measure):
    """A measure that is 0 for what it takes for the same; without an upper bound, unless its class has one."""

    closer_is_higher: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, math.inf)


class Batched(Measure):
    """A measure that compares many layers at once, and two as many: subclasses give `compare_all` alone."""

    def compare(self, a: Any, b: Any) -> float:
        return float(self.compare_all([a], [b])[0, 0])

    @abstractmethod
    def compare_all(self, a: Sequence[Any], b: Sequence[Any]) -> Tensor: ...

    def closeness_all(self, a: Sequence[Any], b: Sequence[Any]) -> Tensor:
        found = super().closeness_all(a, b)
        _compared.get()(len(a) * len(b))
        return found

    def scale(self, inner: Tensor, a: Sequence[Any], b: Sequence[Any]) -> Tensor:
        """Scores (..., la, lb), nan where the norm of either state is 0.

        Of a bilinear measure `inner` is <A, B>: the score of relations of unit norm. Whatever a class makes of it is affine
        in `inner`, the rest fixed per cell.
        """
        p, q = norms(a, b)
        return torch.where((p > 0) & (q > 0), inner, math.nan)


@dataclass(frozen=True)
class Local(Measure):
    """A measure that looks at the k nearest neighbours of every stimulus alone."""

    interval: ClassVar[str] = "subsample"

    k: int = parameter(10, as_count)

    @property
    def min_n(self) -> int:
        return self.n_neighbors + 1

    @property
    def n_neighbors(self) -> int:
        return self.k

    def with_neighbors(self, share: float) -> Self:
        return replace(self, k=max(1, round(self.k * share)))


class Bilinear(Batched):
    """A measure whose states are relations; the score is `scale(<A, B>)`, closer the larger <A, B> is.

    `dense`: its relations are n x n matrices, and not graphs of few edges.
    """

    dense: ClassVar[bool] = True

    @abstractmethod
    def prepare(self, x: Any) -> Relation: ...

    def compare_all(self, a: Sequence[Relation], b: Sequence[Relation]) -> Tensor:
        return self.scale(Relation.inner_all(a, b), a, b)


def norms(a: Sequence[Any], b: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The norms of both sides' states in float64, (la, 1) and (lb,)."""
    p, q = (torch.tensor([s.norm for s in in_roles(side, i)], dtype=torch.float64) for i, side in enumerate((a, b)))
    return p[:, None], q
