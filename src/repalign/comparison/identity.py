"""The identity of values with their code.

A measure, a null or a function that somebody else wrote has no version that we could raise. So its code is part of what
it is: the bytecode and constants of its class and of what these name (functions, values and modules next to it, what a
closure holds), down to the standard library and installed packages, which stand there with their versions. What
repalign itself computes has one version, `tiles.FORMULAS`. What is read from files at run time is not seen.
"""

from __future__ import annotations

import contextlib
import dis
import enum
import functools
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from repalign.errors import version_of

# Of a class: what says nothing of what it computes, or follows from the rest.
_IDLE = frozenset({
    "__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__",
    "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__match_args__",
    "__firstlineno__", "__static_attributes__", "__slots__", "__slotnames__", "__parameters__", "__orig_bases__", "__qualname__",
})  # fmt: skip
_SIMPLE = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), range, slice)
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_KNOWN = {*sys.stdlib_module_names, "repalign", "torch", "numpy", "scipy", "sklearn", "pandas"}
# What is ours keeps the module under which it first stood in a tile, wherever it moves: an old tile stays as good as it was.
_FIRST_IN = {
    "repalign.preprocess": "Preprocess",
    "repalign.null.base": "Null",
    "repalign.null.aristotelian": "Aristotelian",
    "repalign.null.search": "Search",
    "repalign.null.unpaired": "Unpaired",
    # What measures of somebody's own are made of.
    "repalign.measures._base": "Measure Bilinear State Features Neighbors Relation DenseRelation GraphRelation as_layer",
    "repalign.measures.measure": "as_count as_number check_flag parameter",
    "repalign.measures._arrays": "as_features check_paired",
    "repalign.measures.own": "KernelAlignment NeighborOverlap",
    "repalign.measures.neighbor_ranks": "JaccardKNN RankSimilarity JointRankJaccard MultiScaleKNN",
    "repalign.measures.soft_neighbors": "SecondOrderCosine SoftKNN",
    "repalign.measures.kernel": "CKNNA",
    "repalign.measures.reference": "CKNNAPaper CKNNAReference",
    "repalign.measures.distance_correlation": "SquaredDistanceCorrelation DistanceCorrelation SquaredDistanceCovariance",
    "repalign.measures.topological_rsa": "TopologicalRSA SigmoidRSA",
    "repalign.measures.canonical": "CCA SquaredCCA PWCCA",
    "repalign.measures.procrustes": "Procrustes AngularProcrustes PermutationProcrustes HeldOutProcrustes",
    "repalign.measures.retrieval": "RetrievalRecall",
    "repalign.measures.clouds": "EnergyDistance BuresWasserstein SlicedWasserstein",
    "repalign.measures.predictivity": "RidgePredictivity PLSPredictivity VERSA",
    "repalign.measures.paired_cosine": "AlignedCosine RelativeRepresentation",
    "repalign.measures.persistence": "PersistenceDistance TotalPersistenceDifference IMD",
}
_FIRST = {name: module for module, names in _FIRST_IN.items() for name in names.split()}
_DEEPEST = 60  # levels of things within things; below it only types count


def identity(*values: object) -> str:
    """32 hex digits that follow from the values, and from the code of whatever in them is not repalign's own.

    The same in every process; another one where a constant in a function, a function that it calls, or the version of
    the package that it comes from is another.

    >>> scale = lambda x: 2 * x
    >>> other = lambda x: 3 * x
    >>> identity(scale) == identity(lambda x: 2 * x), identity(scale) == identity(other)
    (True, False)
    """
    walk = _Walk()
    walk.add(*values)
    return walk.digest.hexdigest()[:32]


class _Word(str):
    """Text that is said as it is among the parts of a value."""


@dataclass
class _Walk:
    depth: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    seen: dict[int, tuple[int, object]] = field(default_factory=dict)  # with the object, so that its id stays its own

    def add(self, *values: object) -> None:
        for value in values:
            # Equal constants of code may be one object or several, as Python pleases: they count by content.
            by_content = isinstance(value, (tuple, frozenset, CodeType))
            words: Iterable[object]
            words, parts = (), ()
            if isinstance(value, _Word):
                words = (value,)
            elif isinstance(value, _SIMPLE) and type(value) in _SIMPLE:
                words = type(value).__name__, repr(value)
            elif not by_content and id(value) in self.seen:
                words = "as before", self.seen[id(value)][0]
            else:
                if not by_content:
                    self.seen[id(value)] = len(self.seen), value
                if self.depth > _DEEPEST:
                    words = "deeper", type(value).__qualname__
                else:
                    words, parts = _parts(value, self.depth + 1)
            for word in words:
                data = word if isinstance(word, (bytes, memoryview)) else str(word).encode("utf-8", "surrogatepass")
                self.digest.update(f"{len(data)}:".encode())  # so that no two texts run together alike
                self.digest.update(data)
            self.depth += 1
            self.add(*parts)
            self.depth -= 1


def _parts(value: Any, depth: int) -> tuple[Iterable[object], Iterable[object]]:
    """What is said of a value, and what it is made of."""
    kind = type(value)
    words: list[object] = [kind.__qualname__]
    parts: Iterable[object] = ()
    held: Mapping[str, object] = {}  # parts with names, which are said too
    unwrap = next((how for type_, how in _UNWRAP.items() if isinstance(value, type_)), None)
    wrapped = inspect.getattr_static(value, "__wrapped__", None) if callable(value) and not isinstance(value, type) else None
    inner = unwrap(value) if unwrap is not None else None if wrapped is None else [wrapped]  # functools.cache and its like
    if kind in (list, tuple):
        words, parts = [kind.__name__, len(value)], value
    elif isinstance(value, (set, frozenset)):  # their order changes from process to process
        apart = [_Walk(depth) for _ in value]
        for walk, one in zip(apart, value, strict=True):
            walk.add(one)
        words = ["set", *sorted(walk.digest.hexdigest() for walk in apart)]
    elif isinstance(value, Mapping):
        words, parts = ["mapping", len(value)], [part for item in value.items() for part in item]
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        words = ["array", value.dtype, value.shape, np.ascontiguousarray(value).reshape(-1).view(np.uint8).data]
    elif isinstance(value, np.ndarray):
        words, parts = ["array", value.shape], value.ravel().tolist()
    elif isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        words = ["tensor", value.dtype, tuple(value.shape), flat.view(torch.uint8).numpy().data]
    elif isinstance(value, (np.generic, torch.dtype, torch.device, Path, enum.Enum)):
        words.append(value)
    elif isinstance(value, re.Pattern):
        words = ["pattern", value.pattern, value.flags]
    elif isinstance(value, CodeType):
        words = ["code", value.co_code, value.co_exceptiontable, value.co_flags, value.co_argcount, value.co_posonlyargcount]
        words += [value.co_kwonlyargcount, *value.co_names, *value.co_varnames, *value.co_freevars, *value.co_cellvars]
        parts = value.co_consts
    elif isinstance(value, ModuleType):
        words, parts, held = _module_parts(value)
    elif inner is not None:
        parts = inner
    elif isinstance(value, type) and (named := _named(value)) is not None:
        words = named
    elif isinstance(value, type):
        words, parts = ["class", value.__qualname__], [base for base in value.__mro__[1:] if base is not object]
        held = {name: inner for name, inner in vars(value).items() if name not in _IDLE}
    elif inspect.isroutine(value):  # written in C
        words = _named(value) or ["named", "builtins", value.__qualname__, _version("builtins")]
    else:  # its class, and what it holds but what it has only remembered
        words, parts = [], [kind]
        declared = [vars(c).get("__slots__", ()) for c in kind.__mro__]
        slots = {s for own in declared for s in ([own] if isinstance(own, str) else own)} - {"__dict__", "__weakref__"}
        held = {**getattr(value, "__dict__", {}), **{s: getattr(value, s) for s in slots if hasattr(value, s)}}
        once = functools.cached_property
        held = {name: inner for name, inner in held.items() if not isinstance(inspect.getattr_static(kind, name, None), once)}
    return words, [*parts, *(part for name in sorted(held) for part in (_Word(name), held[name]))]


def _module_parts(module: ModuleType) -> tuple[list[object], Iterable[object], Mapping[str, object]]:
    if (named := _named(module)) is not None:
        return ["module", *named], (), {}
    words: list[object] = ["module", module.__name__.rpartition(".")[2]]
    if not getattr(module, "__file__", None):  # made by hand, or in a notebook
        return words, (), {name: value for name, value in vars(module).items() if not name.startswith("__")}
    from repalign.sources.identity import imported_code, source_digest

    return [*words, source_digest(module)], [part for item in imported_code(module).items() for part in item], {}


def _named(value: Any) -> list[object] | None:
    """The name of a thing of ours, whose code has one version, or of a library, with the library's version.

    None for what has no version.
    """
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", "")
    if not isinstance(module, str):
        return None
    top, there = module.split(".")[0], sys.modules.get(module)
    if top == "repalign":  # it was defined there: a name alone can be given to anything
        is_ours = there is not None
        if isinstance(value, FunctionType):
            is_ours = is_ours and value.__globals__ is vars(there)
        elif isinstance(value, type) and "<locals>" not in name:
            is_ours = is_ours and functools.reduce(lambda at, part: getattr(at, part, None), name.split("."), there) is value
        return ["named", _FIRST.get(name, module), name, None] if is_ours else None
    if top in sys.stdlib_module_names or not _INSTALLED.isdisjoint(Path(getattr(there, "__file__", None) or "").parts):
        return ["named", module, name, _version(module)]
    return None


def _function_parts(f: FunctionType) -> list[object]:
    """The code of a function, its defaults, what it holds of the scopes around it, and the globals that it names."""
    if (named := _named(f)) is not None:
        return named
    known = [f.__globals__[name] for name in sorted(_names(f.__code__)) if name in f.__globals__]
    cells = [cell.cell_contents for cell in f.__closure__ or () if cell != CellType()]  # but names that are not bound yet
    return [f.__code__, f.__defaults__, f.__kwdefaults__, cells, known, _imported_within(f)]


_UNWRAP: dict[type, Callable[[Any], list[object]]] = {
    FunctionType: _function_parts,
    property: lambda p: [p.fget, p.fset],
    staticmethod: lambda m: [m.__func__],
    classmethod: lambda m: [m.__func__],
    functools.cached_property: lambda p: [p.func],
    functools.partial: lambda p: [p.func, p.args, p.keywords],
    functools.partialmethod: lambda p: [p.func, p.args, p.keywords],
    MethodType: lambda m: [m.__func__, m.__self__],
}


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _imported_within(f: FunctionType) -> list[ModuleType]:
    """The modules of one's own that a function imports when it runs."""
    out, codes = [], [f.__code__]
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if isinstance(c, CodeType)]
        steps = list(dis.get_instructions(code))
        for level, _, step in zip(steps, steps[1:], steps[2:], strict=False):  # the level and the names come first
            if step.opname == "IMPORT_NAME" and step.argval.split(".")[0] not in _KNOWN:
                name = "." * (level.argval or 0) + step.argval
                with contextlib.suppress(ImportError):  # it may be missing; if it may not, the function says so
                    out.append(importlib.import_module(name, f.__globals__.get("__package__")))
    return out


@functools.cache
def _version(module: str) -> str:
    """The version of what a library's module comes from."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names:
        return f"Python {sys.version_info.major}.{sys.version_info.minor}"
    of_another_name = sorted(set(packages_distributions().get(top, []))) if (found := version_of(top)) is None else []
    return found or ", ".join(f"{name} {version_of(name)}" for name in of_another_name)
