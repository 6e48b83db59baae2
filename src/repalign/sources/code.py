"""What code an object of the user's is made of: the modules that it imports, theirs, and the files that these name.

It is read off the syntax of the files, so that an import inside a function counts, and the answer is the same whatever else this
process has imported. Of an installed package the version counts, of the standard library and of the libraries that run every
model (their versions stand in the parts) nothing does.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

from repalign.errors import RepalignError
from repalign.files import file_sha256

LIBRARIES = {
    "repalign", "torch", "torchvision", "numpy", "scipy", "PIL", "transformers", "tokenizers", "timm", "safetensors",
    "sentence_transformers", "open_clip", "huggingface_hub", "accelerate",
}  # fmt: skip
LARGEST = 2**26  # bytes of a file that code names; what is larger holds weights, which have a digest of their own
_loaded: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()  # the digest of a module's file when it was first met


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
    names = [top, *_distributions().get(top, ())]
    for name in names:
        try:
            return f"version {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "version unknown"


@cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


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
