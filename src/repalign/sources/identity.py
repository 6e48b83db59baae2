"""What an object in memory computes with, as a digest: as long as it is equal, features are.

Everything that an object holds counts: tensors and arrays by dtype, shape and bytes; modules by class, weights, buffers, hooks
and attributes; other objects by what a copy of them would be made of. Of functions and classes the code counts, and all that it
names: constants, defaults, variables around it, other functions. Of what an installed library defines the name counts, and the
version where a part does not state it anyway. What no copy can be made of, such as a lock or a connection, cannot be told.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from copyreg import dispatch_table
from functools import cached_property
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import ReferenceType

import numpy as np
from torch import Tensor, nn

from repalign.errors import is_of
from repalign.sources.code import LIBRARIES, about, imported_code, source_digest
from repalign.sources.model import bytes_of
from repalign.sources.tokenizer import PROBES, digest

ATOMS = (type(None), bool, int, float, complex, str, bytes)
# Of a module: what it has as such, and the marks of what was done with it.
OF_EVERY_MODULE = {*vars(nn.Module()), "_is_torch_compile", "_output_capturing_hooks_installed"}
# Of a class: what says nothing of what it computes.
SILENT = {
    "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__", "__annotate_func__", "__firstlineno__",
    "__static_attributes__", "_abc_impl",
}  # fmt: skip


def fingerprint(*things: Any) -> str | None:
    """SHA-256 of what objects hold, the same in every process; None where it cannot be told."""
    try:
        return _Walk().over(*things).hexdigest()
    except Exception:  # objects say in many ways that they cannot be copied
        return None


class _Walk:
    """A walk through all that objects hold, in an order that is the same in every process."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # with the objects, so that no two have one id

    def say(self, *words: object) -> None:
        self.sha.update(f"{words!r};".encode("utf-8", "surrogatepass"))

    def over(self, *things: Any) -> Any:
        for x in things:
            if type(x) in ATOMS:
                self.say(x)
            elif id(x) in self.seen:
                self.say("again", self.seen[id(x)][0])
            else:
                self.seen[id(x)] = len(self.seen), x
                self.say(type(x).__qualname__)
                less = next((of for package, name, of in LESS if is_of(x, package, name)), None)
                if less is not None:
                    self.over(less(x))
                else:
                    next(into for kind, into in INTO if isinstance(x, kind))(self, x)
        return self.sha

    def library(self, name: str | None) -> bool:
        """Whether what a module of that name defines is an installed library's; then its name and version are said."""
        top = str(name).partition(".")[0]
        if top == "__main__":  # whatever runs it: a notebook, pytest, the script itself
            return False
        version = "" if top in LIBRARIES or top in sys.stdlib_module_names else about(top)
        if isinstance(version, str):
            self.say(name, version)
        return isinstance(version, str)


def _tensor(walk: _Walk, x: Tensor) -> None:
    walk.say(tuple(x.shape), x.dtype)
    for piece in bytes_of(x):
        walk.sha.update(piece)


def _array(walk: _Walk, x: np.ndarray) -> None:
    walk.say(x.shape, x.dtype.str)
    walk.over(x.tolist() if x.dtype.hasobject else x.tobytes())


def _module(walk: _Walk, x: nn.Module) -> None:
    own = {name: value for name, value in vars(x).items() if name not in OF_EVERY_MODULE}
    hooks = [h for h in (*x._forward_pre_hooks.values(), *x._forward_hooks.values()) if not _watches(h)]
    walk.over(type(x), dict(x._parameters), dict(x._buffers), dict(x._modules), own, hooks)


def _watches(hook: Any) -> bool:
    """Whether a hook is one that transformers leaves behind where hidden states were asked for: it changes nothing."""
    return getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def _class(walk: _Walk, x: type) -> None:
    walk.say(x.__qualname__)
    if not walk.library(x.__module__):
        walk.over(x.__bases__, {name: value for name, value in vars(x).items() if name not in SILENT})


def _function(walk: _Walk, x: FunctionType) -> None:
    around = [cell.cell_contents for cell in x.__closure__ or () if cell != type(cell)()]  # without cells that are empty
    walk.over(x.__qualname__, x.__defaults__, x.__kwdefaults__, vars(x), around)
    if not walk.library(x.__module__):
        named = sorted({*_names(x.__code__)} & x.__globals__.keys())
        walk.over(x.__code__, {name: x.__globals__[name] for name in named})


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _code(walk: _Walk, x: CodeType) -> None:
    walk.over(x.co_code, x.co_consts, x.co_names, x.co_varnames, x.co_freevars)


def _file(walk: _Walk, x: ModuleType) -> None:
    if not walk.library(x.__name__):
        walk.over(source_digest(x), imported_code(x))


def _other(walk: _Walk, x: Any) -> None:
    """By what a copy is made of: a name; or a function and its arguments, and attributes, items and pairs that are put in."""
    by_type = dispatch_table.get(type(x))
    found = x.__reduce_ex__(4) if by_type is None else by_type(x)
    if isinstance(found, str):
        walk.over(found, getattr(x, "__wrapped__", None))
    else:
        make, arguments, *rest = found
        walk.over(make, arguments, *rest[:1], *(list(part) for part in rest[1:3] if part is not None))


def _tokenizer(x: Any) -> Any:
    said = x.special_tokens_map, x.padding_side, x.model_max_length, x.model_input_names
    return type(x), x.backend_tokenizer if x.is_fast else x.get_vocab(), digest(x), said


# What is known by less than all that it holds: where it was made and how it was last used stand there too.
LESS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("tokenizers", "Tokenizer", lambda x: {k: v for k, v in json.loads(x.to_str()).items() if k not in ("padding", "truncation")}),
    ("transformers", "PreTrainedTokenizerBase", _tokenizer),
    ("open_clip", "SimpleTokenizer", lambda x: (type(x), x.encoder, x.context_length, x(list(PROBES)))),
    ("sentence_transformers", "SentenceTransformer", lambda x: (type(x), [*x], x.prompts, x.default_prompt_name, x.truncate_dim)),
)

INTO: tuple[tuple[Any, Callable[[_Walk, Any], Any]], ...] = (
    (Tensor, _tensor), (np.ndarray, _array), (nn.Module, _module), (type, _class), (FunctionType, _function), (CodeType, _code),
    (ModuleType, _file), (list | tuple, lambda walk, x: walk.over(len(x), *x)),
    (set | frozenset, lambda walk, x: walk.say(sorted(_Walk().over(one).hexdigest() for one in x))),
    (Mapping, lambda walk, x: walk.over(len(x), *x.keys(), *x.values())),
    (staticmethod | classmethod, lambda walk, x: walk.over(x.__func__)), (cached_property, lambda walk, x: walk.over(x.func)),
    (property, lambda walk, x: walk.over(x.fget, x.fset)), (ReferenceType, lambda walk, x: walk.over(x())), (object, _other),
)  # fmt: skip
