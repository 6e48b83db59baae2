"""Measures by name: which are known, what a text names, and what listings, tables and reports say of them."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self, TypeVar

from repalign.errors import RepalignError, choose
from repalign.measures.measure import Bilinear, Measure

__all__ = [
    "Group", "MeasureFacts", "describe", "facts_of", "is_group", "known_measures", "labels_of", "measure_among", "parse_measure",
    "parse_measures", "parse_wanted", "register",
]  # fmt: skip

# Our measures by the module of their family, in the order of listings. A module is imported when one of its names is first used.
FAMILIES: dict[str, tuple[str, ...]] = {
    "neighbors": (
        "MutualKNN", "CycleKNN", "LCSKNN", "EditDistanceKNN", "JaccardKNN", "RankSimilarity", "JointRankJaccard",
        "MultiScaleKNN", "InformationImbalance",
    ),
    "soft_neighbors": ("SecondOrderCosine", "SoftKNN"),
    "kernel": ("CKA",),
    "cknna": ("CKNNA", "CKNNAPaper", "CKNNAReference"),
    "dependence": (
        "HSIC", "RV", "AngularCKA", "DependentColumnsCKA", "SquaredDistanceCorrelation", "DistanceCorrelation",
        "SquaredDistanceCovariance",
    ),
    "rdm": ("RSA", "RSAKendall", "RSMNormDifference", "TopologicalRSA", "SigmoidRSA"),
    "subspace": ("SVCCA", "CCA", "SquaredCCA", "PWCCA", "GrassmannDistance", "EigenspaceOverlap"),
    "shape": (
        "Procrustes", "AngularProcrustes", "ShapeMetric", "PermutationProcrustes", "HeldOutProcrustes",
        "NormalisedBures", "BuresDistance", "PLSCovariance",
    ),
    "covariance": ("GULP", "ENSD", "RiemannianDistance"),
    "shared_space": ("RetrievalRecall", "PairedCosine", "ModalityGap", "ModalitySeparability", "ConeEffect"),
    "distribution": ("KLDivergence", "JensenShannon", "Disagreement", "LogitDistance"),
    "statistics": (
        "MagnitudeDifference", "ConcentricityDifference", "UniformityDifference", "ParticipationRatioDifference",
        "IntrinsicDimensionDifference",
    ),
    "point_clouds": ("EnergyDistance", "BuresWasserstein", "SlicedWasserstein"),
    "mapping": ("LinearRegression", "RidgePredictivity", "PLSPredictivity", "VERSA", "DirectStitching"),
    "paired_cosine": ("AlignedCosine", "RelativeRepresentation"),
    "matching": ("MeanCorrelationCoefficient", "HardUnitMatching", "SoftUnitMatching", "PairwiseMatching"),
    "topology": ("RTD", "RTDLite", "MTopDiv", "PersistenceDistance", "TotalPersistenceDifference", "IMD"),
}
HOMES = {name: f"repalign.measures.{family}" for family, names in FAMILIES.items() for name in names}

MeasureClass = type[Measure]
Class = TypeVar("Class", bound=MeasureClass)

# Measures of others: registered in this process, or announced by an installed package.
ENTRY_POINTS = "repalign.measures"
_registered: dict[str, MeasureClass] = {}


def register(cls: Class) -> Class:
    """Make a measure of your own known by its name, so that text, the command line and studies find it.

    Works as a decorator. An installed package needs no call: it announces its classes as entry points of the group
    "repalign.measures". `repalign.testing.check_measure` holds a measure to the laws that ours obey.

    Raises RepalignError if the name, or one of the aliases, belongs to another measure.
    """
    taken = _names(_known())
    for name in _names([cls]):
        other = taken[name][0] if name in taken else cls
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RepalignError(
                f"the name {name!r} belongs to another measure",
                expected="a name and aliases of its own", got=f"{other.__module__}.{other.__qualname__}",
                remedy="rename the class, or its alias",
            )  # fmt: skip
    _registered[cls.__name__] = cls
    return cls


def known_measures() -> tuple[MeasureClass, ...]:
    """All measures: ours, those of installed packages, and those registered."""
    _load_announced()
    return _known()


def _known() -> tuple[MeasureClass, ...]:
    from repalign.measures import MEASURES  # which imports this module

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
                expected=f"a subclass of repalign.measures.Measure at {point.value}", got=f"{type(error).__name__}: {error}",
                remedy="mend or remove the package that announces it",
            ) from error  # fmt: skip
        register(cls)


def _names(classes: Sequence[MeasureClass]) -> dict[str, tuple[MeasureClass, Mapping[str, Any]]]:
    """Every name that stands for a class, and the parameters that the name says: class names, aliases and shorthands."""
    out: dict[str, tuple[MeasureClass, Mapping[str, Any]]] = {}
    for cls in classes:
        out |= {name: (cls, {}) for name in (cls.__name__, *cls.aliases)}
        out |= {name: (cls, preset) for name, preset in vars(cls).get("shorthands", {}).items()}  # not those of its base
    return out


# --- from text -----------------------------------------------------------------------------------


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the literals of ``Name`` or ``Name(key=literal, ...)``; nothing is evaluated."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            given = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            if "None" not in given:  # no **mapping
                return node.func.id, given
    except (SyntaxError, ValueError):
        pass
    raise RepalignError(
        f"not a measure: {text!r}", expected="a name, or a name with named parameters, such as MutualKNN(k=10)", got=repr(text),
        remedy="name every parameter and give it a number, a quoted word, True, False or None",
    )  # fmt: skip


def parse_measure(text: str) -> Measure:
    """The measure that a text names, so that `parse_measure(repr(measure)) == measure`.

    Class names, aliases and shorthands are known; parameters are literals, given by name.
    Raises RepalignError for an unknown name or parameter (with the closest known one) and for bad values.

    >>> parse_measure("mutual_knn(k=5)")
    MutualKNN(k=5, similarity='cosine', center=False)
    """
    found = parse_wanted(text)
    return found if isinstance(found, Measure) else choose("measure", found.name, _names(known_measures()))


@dataclass(frozen=True)
class Group:
    """All measures ("all"), or those of one family, with their defaults: `compare` takes those that apply."""

    name: str

    @property
    def members(self) -> list[Measure]:
        return [cls() for cls in known_measures() if self.name in ("all", cls.family)]


def parse_wanted(text: str) -> Measure | Group:
    """The measure, or the group of measures, that a text names, as `parse_measure` reads it."""
    name, given = read_call(text)
    if name in HOMES:  # no other family is imported
        cls, preset = getattr(import_module(HOMES[name]), name), {}
    elif is_group(name) and not given:
        return Group(name)
    else:
        names = _names(known_measures())
        if name not in names:  # what is spelt as a class is told the classes alone
            choose("measure", name, names if name.islower() else [cls.__name__ for cls in known_measures()])
        cls, preset = names[name]
    for parameter in given:
        choose("parameter", parameter, parameters(cls), problem=f"{cls.__name__} has no parameter {parameter!r}")
    return cls(**{**preset, **given})


def parse_measures(texts: Sequence[str]) -> list[Measure]:
    """Measures from texts; "all" and the name of a family stand for all of their kind, with defaults.

    >>> [type(m).__name__ for m in parse_measures(["CKA()", "neighbors"])][:2]
    ['CKA', 'MutualKNN']
    """
    wanted = map(parse_wanted, texts)
    return list(dict.fromkeys(m for w in wanted for m in (w.members if isinstance(w, Group) else [w])))


def is_group(text: Any) -> bool:
    """Whether a text stands for several measures: "all", or the name of a family."""
    return isinstance(text, str) and text in {"all", *(cls.family for cls in known_measures())}


# --- facts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasureFacts:
    """The facts of a measure that a reader of results needs, without the measure itself.

    name, parameters : its class, and the parameters by name.
    label : its name for people, with k and the parameters that are not the default; `labels_of` tells those of one result apart.
    family, meaning : its family, and the first line of its documentation; "" for a measure that is not known here.
    closer_is_higher : False for a distance.

    `Measure.facts` gives it; `facts_of` reads it from the text of a measure in old results.
    """

    name: str
    parameters: Mapping[str, Any]
    label: str
    family: str = ""
    meaning: str = ""
    closer_is_higher: bool = True

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The facts that `dataclasses.asdict` gave, also through JSON, which has no tuples."""
        parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in data["parameters"].items()}
        return cls(**{**data, "parameters": parameters})


def measure_among(asked: Measure | str, known: Sequence[str]) -> str:
    """The text of the measure of a result that is meant: by a measure, its text, its label, or any name that it goes by.

    A name without parameters means whatever parameters the result has of that measure.

    >>> measure_among("mutual_knn", ["CKA()", "MutualKNN(k=5, similarity='cosine', center=False)"])
    "MutualKNN(k=5, similarity='cosine', center=False)"
    """
    asked = asked if isinstance(asked, str) else repr(asked)
    if asked in known:
        return asked
    spoken = re.sub(r"\s", "", asked).lower()
    found = [text for text, label in labels_of(known).items() if spoken in _spoken(text, label)]
    with contextlib.suppress(RepalignError):  # it may be a measure that is not registered in this session
        meant = parse_measure(asked)
        found = found or [text for text in known if text == repr(meant)]
        if not found and not asked.rstrip().endswith(")"):
            of_class = [text for text in known if text.partition("(")[0] == type(meant).__name__]
            found = of_class if asked.strip() not in type(meant).shorthands else []
    if len(found) > 1:
        raise RepalignError(
            f"{asked!r} means several measures of the result", expected="one of " + ", ".join(map(repr, found)), got=repr(asked)
        )
    return found[0] if found else choose("measure", asked, known, f"no measure {asked!r} in the result")


def _spoken(text: str, label: str) -> set[str]:
    """What people may call a measure: its label in this result and alone, and the one with every parameter that is on."""
    alone = facts_of(text)
    long = label_of(alone.name, {k: v for k, v in alone.parameters.items() if v})
    return {re.sub(r"\s", "", one).lower() for one in (label, alone.label, long)}


# Names of people in names of measures: these words keep their capital.
PEOPLE = ("Bures", "Grassmann", "Jaccard", "Jensen", "Kendall", "Procrustes", "Riemannian", "Shannon", "Wasserstein")


def label_of(name: str, parameters: Mapping[str, Any]) -> str:
    """A measure's name for people, with some parameters.

    >>> label_of("MutualKNN", {"k": 10, "similarity": "dot", "center": True})
    'mutual k-NN (k=10, dot, center)'
    >>> label_of("AngularProcrustes", {"center": False})
    'angular Procrustes (center=False)'
    """
    apart = r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
    words = re.sub(apart, " ", re.sub(r"KNN$", " k-NN", name)).split()
    name = " ".join(w.lower() if re.fullmatch("[A-Z][a-z]+", w) and w not in PEOPLE else w for w in words)
    shown = [key if v is True else v if isinstance(v, str) else f"{key}={v}" for key, v in parameters.items()]
    return f"{name} ({', '.join(shown)})" if shown else name


def labels_of(texts: Iterable[str]) -> dict[str, str]:
    """The measures of one result as people name them, by text; the parameters that tell two of a class apart are shown, too.

    >>> list(labels_of(["CKA()", "CKA(estimator='biased')", "MutualKNN(k=10)"]).values())
    ['CKA (debiased)', 'CKA (biased)', 'mutual k-NN (k=10)']
    """
    facts = {text: facts_of(text) for text in texts}
    labels = {text: one.label for text, one in facts.items()}
    for text, one in facts.items():
        others = [other.parameters for other in facts.values() if other.name == one.name and other is not one]
        if apart := {k for k, v in one.parameters.items() if any(other.get(k, v) != v for other in others)}:
            apart |= worth_showing(_class_of(one.name), read_call(text)[1]).keys()
            labels[text] = label_of(one.name, {k: v for k, v in one.parameters.items() if k in apart})
    return {text: label if list(labels.values()).count(label) == 1 else text for text, label in labels.items()}


def worth_showing(cls: MeasureClass | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that stand in a label: a number of neighbours, and what is not the default of the class."""
    defaults = {} if cls is None else parameters(cls)
    return {k: v for k, v in given.items() if k == "k" or k not in defaults or defaults[k] != v}


def _class_of(name: str) -> MeasureClass | None:
    with contextlib.suppress(RepalignError):  # it may be of another version, or not registered in this session
        return type(parse_measure(name))


def facts_of(text: str) -> MeasureFacts:
    """The facts of a measure in the table of old results, which kept no more than its text.

    A measure that is not known here, or has other parameters by now, is read by its syntax alone.

    >>> facts_of("MutualKNN(k=5, similarity='dot', center=False)").label
    'mutual k-NN (k=5, dot)'
    >>> facts_of("Gone(k=5)")
    MeasureFacts(name='Gone', parameters={'k': 5}, label='gone (k=5)', family='', meaning='', closer_is_higher=True)
    """
    try:
        name, given = read_call(text)
    except RepalignError:
        return MeasureFacts(text, {}, text)
    cls = _class_of(name)
    label = label_of(name, worth_showing(cls, given))  # as the text says: a curve over k is of a measure without k
    try:
        return dataclasses.replace(parse_measure(text).facts, label=label)
    except RepalignError:
        known = MeasureFacts(name, {}, label) if cls is None else cls().facts
        return dataclasses.replace(known, parameters=given, label=label)


# --- listings ------------------------------------------------------------------------------------


def parameters(cls: MeasureClass) -> dict[str, Any]:
    """The parameters of a measure class with their default values."""
    return {f.name: f.default for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


def describe(cls: MeasureClass) -> dict[str, Any]:
    """The facts of a measure class for a listing, as plain data."""
    measure = cls()
    rows = "the same stimuli, row by row" if cls.paired else "no common rows"
    null = "closed-form moments; cyclic group" if issubclass(cls, Bilinear) else "random permutations"
    return {
        "name": cls.__name__,
        "family": cls.family,
        "aliases": list(cls.aliases),
        "summary": measure.facts.meaning,
        "range": list(measure.range),
        "symmetric": cls.symmetric,
        "invariances": sorted(measure.invariances),
        "direction": "higher is closer" if cls.closer_is_higher else "lower is closer",
        "needs": f"{rows}, in one space (equal widths)" if cls.equal_widths else rows,
        "takes": sorted(measure.accepts),
        "cost": cls.cost,
        "bilinear": issubclass(cls, Bilinear),
        "null": null if cls.paired else "none (unpaired)",
        "parameters": parameters(cls),
        "doc": inspect.cleandoc(cls.__doc__ or ""),
    }
