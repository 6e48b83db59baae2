"""Digest a value with its code: two values of one digest compute the same.

A measure, a null or a function that somebody else wrote has no version that we could raise. So its code is part of what
it is: the bytecode and constants of its class and of what these name (functions, values and modules next to it, what a
closure holds), down to the standard library and installed packages, which stand there with their versions. What
repalign itself computes has one version, `comparison.tiles.FORMULAS`. What is read from files at run time is not seen.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

# Of a class: what says nothing of what it computes, or follows from the rest.
_IDLE = frozenset({
    "__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__annotate__", "__annotate_func__",
    "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__match_args__",
    "__firstlineno__", "__static_attributes__", "__slots__", "__parameters__", "__orig_bases__", "__qualname__",
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
    "repalign.measures._arrays": "as_features check_paired",
    "repalign.measures.own": "KernelAlignment NeighborOverlap",
    "repalign.measures.neighbor_ranks": "JaccardKNN RankSimilarity JointRankJaccard MultiScaleKNN",
    "repalign.measures.soft_neighbors": "SecondOrderCosine SoftKNN",
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


@dataclass
class _Walk:
    depth: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    seen: dict[int, tuple[int, object]] = field(default_factory=dict)  # with the object, so that its id stays its own

    def say(self, *words: object) -> None:
        for word in words:
            data = word if isinstance(word, (bytes, memoryview)) else str(word).encode("utf-8", "surrogatepass")
            self.digest.update(f"{len(data)}:".encode())  # so that no two texts run together alike
            self.digest.update(data)

    def by_name(self, held: Mapping[str, object]) -> None:
        for name in sorted(held):
            self.say(name)
            self.add(held[name])

    def add(self, *values: object) -> None:
        for value in values:
            # Equal constants of code may be one object or several, as Python pleases: they count by content.
            by_content = isinstance(value, (tuple, frozenset, CodeType))
            if isinstance(value, _SIMPLE) and type(value) in _SIMPLE:
                self.say(type(value).__name__, repr(value))
            elif not by_content and id(value) in self.seen:
                self.say("as before", self.seen[id(value)][0])
            else:
                if not by_content:
                    self.seen[id(value)] = len(self.seen), value
                if self.depth > _DEEPEST:
                    self.say("deeper", type(value).__qualname__)
                    continue
                self.depth += 1
                self._add(value)
                self.depth -= 1

    def _add(self, value: Any) -> None:
        kind = type(value)
        if kind in (list, tuple):
            self.say(kind.__name__, len(value))
            self.add(*value)
        elif isinstance(value, (set, frozenset)):  # their order changes from process to process
            self.say("set", *sorted(self._apart(v) for v in value))
        elif isinstance(value, Mapping):
            self.say("mapping", len(value))
            self.add(*(part for item in value.items() for part in item))
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self.say("array", value.dtype, value.shape, np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        elif isinstance(value, np.ndarray):
            self.say("array", value.shape)
            self.add(*value.ravel().tolist())
        elif isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().flatten()
            self.say("tensor", value.dtype, tuple(value.shape), flat.view(torch.uint8).numpy().data)
        elif isinstance(value, (np.generic, torch.dtype, torch.device, Path, enum.Enum)):
            self.say(kind.__qualname__, value)
        elif isinstance(value, re.Pattern):
            self.say("pattern", value.pattern, value.flags)
        elif isinstance(value, CodeType):
            self.say("code", value.co_code, value.co_exceptiontable, value.co_flags)
            self.say(value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
            self.say(*value.co_names, *value.co_varnames, *value.co_freevars, *value.co_cellvars)
            self.add(*value.co_consts)
        elif isinstance(value, ModuleType):
            self._module(value)
        elif (found := _unwrapped(value)) is not None:
            self.say(kind.__qualname__)
            self.add(*found)
        elif isinstance(value, type):
            if (named := _named(value)) is not None:
                self.say(*named)
            else:
                self.say("class", value.__qualname__)
                self.add(*(base for base in value.__mro__[1:] if base is not object))
                self.by_name({name: held for name, held in vars(value).items() if name not in _IDLE})
        elif inspect.isroutine(value):  # written in C
            self.say(*(_named(value) or ("named", "builtins", value.__qualname__, _version("builtins"))))
        else:  # its class, and what it holds but what it has only remembered
            self.add(kind)
            declared = [vars(c).get("__slots__", ()) for c in kind.__mro__]
            slots = {s for own in declared for s in ([own] if isinstance(own, str) else own)} - {"__dict__", "__weakref__"}
            held = {**getattr(value, "__dict__", {}), **{s: getattr(value, s) for s in slots if hasattr(value, s)}}
            remembered = {n for n in held if isinstance(inspect.getattr_static(kind, n, None), functools.cached_property)}
            self.by_name({name: held[name] for name in held if name not in remembered})

    def _apart(self, value: object) -> str:
        walk = _Walk(self.depth)
        walk.add(value)
        return walk.digest.hexdigest()

    def _module(self, module: ModuleType) -> None:
        if (named := _named(module)) is not None:
            self.say("module", *named)
            return
        self.say("module", module.__name__.rpartition(".")[2])
        if getattr(module, "__file__", None):
            from repalign.sources.torch import imported_code, source_digest

            self.say(source_digest(module))
            self.add(*(part for item in imported_code(module).items() for part in item))
        else:  # made by hand, or in a notebook
            self.by_name({name: value for name, value in vars(module).items() if not name.startswith("__")})


def _named(value: Any) -> list[object] | None:
    """The name of a thing of ours, whose code has one version, or of a library, with the library's version.

    None for what has no version.
    """
    module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", "")
    if not isinstance(module, str):
        return None
    top = module.split(".")[0]
    if top == "repalign":  # or what only says that it is ours
        return ["named", _FIRST.get(name, module), name, None] if _is_ours(value, module) else None
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    if top in sys.stdlib_module_names or not _INSTALLED.isdisjoint(Path(file).parts):
        return ["named", module, name, _version(module)]
    return None


def _function_parts(f: FunctionType) -> list[object]:
    """The code of a function, its defaults, what it holds of the scopes around it, and the globals that it names."""
    if (named := _named(f)) is not None:
        return named
    known = [f.__globals__[name] for name in sorted(_names(f.__code__)) if name in f.__globals__]
    cells = [held for cell in f.__closure__ or () for held in _contents(cell)]
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


def _unwrapped(value: Any) -> list[object] | None:
    """The parts of a callable or a descriptor; None for anything else."""
    for kind, parts in _UNWRAP.items():
        if isinstance(value, kind):
            return parts(value)
    inner = inspect.getattr_static(value, "__wrapped__", None) if callable(value) and not isinstance(value, type) else None
    return None if inner is None else [inner]  # functools.cache and its like


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _contents(cell: Any) -> list[object]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a name that is not bound yet
        return []


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


def _is_ours(value: Any, module: str) -> bool:
    """Whether it is this module, or was defined in it: a name alone can be given to anything."""
    there = sys.modules.get(module)
    if there is None or isinstance(value, ModuleType):
        return there is not None
    if isinstance(value, FunctionType):
        return value.__globals__ is vars(there)
    if isinstance(value, type) and "<locals>" not in value.__qualname__:
        return functools.reduce(lambda at, part: getattr(at, part, None), value.__qualname__.split("."), there) is value
    return True


@functools.cache
def _version(module: str) -> str:
    """The version of what a library's module comes from."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names:
        return f"Python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        return version(top)
    except (PackageNotFoundError, ValueError):  # a distribution of another name
        return ", ".join(f"{n} {version(n)}" for n in sorted(set(packages_distributions().get(top, []))))
