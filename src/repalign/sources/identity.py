"""What an object in memory computes with, as a digest: as long as it is equal, features are.

Everything that an object holds counts: tensors and arrays by dtype, shape and bytes; modules by class, weights, buffers, hooks
and attributes; other objects by what a copy of them would be made of. Of functions and classes the code counts, and all that it
names: constants, defaults, variables around it, other functions. Of what an installed library defines the name counts, and the
version where a part does not state it anyway. What no copy can be made of, such as a lock or a connection, cannot be told.

What a module is made of is read off the syntax of its file and of those that it imports, the user's own, so that an import inside
a function counts, and the answer is the same whatever else this process has imported; with the files that they name. Of an
installed package the version counts, of the standard library and of the libraries that run every model (their versions stand in
the parts) nothing does.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copyreg import dispatch_table
from functools import cache, cached_property
from importlib.util import resolve_name
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from repalign.errors import RepalignError, is_of, version_of
from repalign.files import file_sha256
from repalign.sources.model import bytes_of
from repalign.sources.tokenizer import PROBES, digest

LIBRARIES = {
    "repalign", "torch", "torchvision", "numpy", "scipy", "PIL", "transformers", "tokenizers", "timm", "safetensors",
    "sentence_transformers", "open_clip", "huggingface_hub", "accelerate",
}  # fmt: skip
LARGEST = 2**26  # bytes of a file that code names; what is larger holds weights, which have a digest of their own
_loaded: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()  # the digest of a module's file when it was first met
ATOMS = (type(None), bool, int, float, complex, str, bytes)
# Of a module: what it has as such, and the marks of what was done with it.
OF_EVERY_MODULE = {*vars(nn.Module()), "_is_torch_compile", "_output_capturing_hooks_installed"}
LEFT_BEHIND = "transformers.utils.output_capturing"  # whose hooks stay where hidden states were asked for, and change nothing
# Of a class: what says nothing of what it computes.
SILENT = {
    "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__", "__annotate_func__", "__firstlineno__",
    "__static_attributes__", "__slotnames__", "_abc_impl",  # slot names come with the first copy of an object
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
    every = (*x._forward_pre_hooks.values(), *x._forward_hooks.values())
    hooks = [h for h in every if getattr(h, "__module__", "") != LEFT_BEHIND]
    walk.over(type(x), dict(x._parameters), dict(x._buffers), dict(x._modules), own, hooks)


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


# --- the code of modules -------------------------------------------------------------------------


def imported_code(module: ModuleType) -> dict[str, str]:
    """Digest or version by name of everything that a module depends on: modules, packages, named files; sorted.

    Raises RepalignError where a file has changed since this process imported it: the code that would run is the old one.
    """
    found: dict[str, str] = {}
    file = getattr(module, "__file__", None)
    waiting = [(module.__name__, Path(file))] if file else []
    seen = {module.__name__}
    while waiting:
        name, file = waiting.pop()
        if file.suffix != ".py":
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # a module that is named and never imported
        is_package = file.name == "__init__.py"
        around = name if is_package else name.rpartition(".")[0]
        for other in _parents(name) | set(_imports(tree, around)):
            if other in seen:
                continue
            seen.add(other)
            said = about(other)
            if isinstance(said, str):
                found[other.partition(".")[0]] = said
            elif said is not None:
                found[other] = _digest(sys.modules.get(other), said)
                waiting.append((other, said))
        for path in _named_files(tree, file.parent):
            beside = path.is_relative_to(file.parent)
            found[path.relative_to(file.parent).as_posix() if beside else str(path)] = file_sha256(path)
    return dict(sorted(found.items()))


def _parents(name: str) -> set[str]:
    """The packages that a module lies in: importing it runs their `__init__`."""
    parts = name.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts))}


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that a file may import, by its whole name, with the packages around it."""
    for node in ast.walk(tree):
        names: list[str] = []
        with suppress(ImportError):  # of more dots in front of a name than there are packages around
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = resolve_name("." * node.level + (node.module or ""), package)
                names = [base, *(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")]
            elif isinstance(node, ast.Call) and node.args and isinstance(first := node.args[0], ast.Constant):
                called = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
                if called in ("import_module", "__import__") and isinstance(first.value, str):
                    names = [resolve_name(first.value, package)]
        for name in filter(None, names):
            yield from _parents(name)
            yield name


def about(name: str) -> Path | str | None:
    """The file of a module of the user's own, the version of an installed one, None for what does not count."""
    top = name.partition(".")[0]
    if top in LIBRARIES or top in sys.stdlib_module_names:
        return None
    if name != top:  # looked for within its package, which is imported for that: only where that is the user's own
        package = about(top)
        if not isinstance(package, Path) and top not in sys.modules:
            return package
    module = sys.modules.get(name)
    try:
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None  # a name within a module, or a package that is not there: both are no module
    file = getattr(module, "__file__", None) or (spec.origin if spec is not None and spec.has_location else None)
    if file is None:
        return None
    path = Path(file).absolute()
    if any(path.is_relative_to(folder) for folder in _installed()):
        return _version(top)
    return path


@cache
def _installed() -> tuple[Path, ...]:
    places = [*site.getsitepackages(), site.getusersitepackages()]
    places += [sysconfig.get_path(p) for p in ("purelib", "platlib", "stdlib", "platstdlib")]
    return tuple(Path(p).absolute() for p in places if p)


@cache
def _version(top: str) -> str:
    names = [top, *importlib.metadata.packages_distributions().get(top, ())]
    return f"version {next(filter(None, map(version_of, names)), 'unknown')}"


def source_digest(module: ModuleType) -> str:
    """Digest of a module's file, "" if it has none. RepalignError where the file is not the one that was imported."""
    file = getattr(module, "__file__", None)
    return _digest(module, Path(file)) if file else ""


def _digest(module: ModuleType | None, file: Path) -> str:
    digest = file_sha256(file)
    if module is not None and _loaded.setdefault(module, digest) != digest:
        raise RepalignError(
            f"{file} has changed since this process imported it", expected="the code that runs",
            got="another file on disk: the old code would give features under the name of the new",
            remedy="start Python again",
        )  # fmt: skip
    return digest


def _named_files(tree: ast.AST, folder: Path) -> Iterator[Path]:
    """Files that the code names in so many words, such as "mean.npy": beside it, or from the root."""
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    for text in sorted(t for t in texts if 0 < len(t) < 256 and "\0" not in t and "\n" not in t):
        path = folder / text
        try:
            if path.is_file() and path.stat().st_size <= LARGEST:
                yield path
        except OSError:
            continue
