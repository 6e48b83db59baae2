"""Any torch module: `torch:package.module:factory` or `torch:path/to/file.py:factory`.

The factory takes no argument and returns one of

* an `nn.Module`;
* a pair `(module, preprocess)`;
* an object with the attribute `module` and, if it likes, `preprocess`, `modality` and `layers`.

`preprocess` takes one stimulus (a PIL image, a text, or an array, as the dataset has it) and returns the tensor
that goes into the module, stacked with others of its shape; without it images become float tensors (3, h, w) in
[0, 1] and arrays tensors of their own. The module is called in eval mode with that one argument.

Layers are modules by path; by default the direct children that have parameters, in the order in which the
module lists them, with the members in place of an `nn.ModuleList`. Each must be called once and give a tensor:
(b, d) is taken as it is, a map (b, d, h, w) is averaged over its positions, and tokens (b, t, d) need
`pooling: mean`, `cls` or `last`. The modality is the entry's or the object's: the dataset's column to read.

The revision is a digest of the factory's file, of the weights, and of the code that the factory is made of: the modules
that it imports, theirs in turn, and the files that they name in so many words ("mean.npy"); of an installed package its
version. The factory is called once to tell it, even where the features are in the store, and once more to load the model.
It has to make the same model each time.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from repalign.errors import RepalignError, did_you_mean
from repalign.files import file_sha256
from repalign.sources.model import Batch, Context, LoadedModel, ModelEntry, first_line, no_modality, weights_digest
from repalign.sources.passes import any_pool, module_layer, outputs_of
from repalign.sources.source import FILE, Answer, Asked, Facts, Source, Spec, StandIn


class TorchModules(Source):
    """`torch:` models, which a function of the user's builds."""

    scheme, form = "torch", "torch:package.module:factory, or torch:path/to/file.py:factory"
    example = "torch:./my_model.py:build"

    def local_part(self, path: str) -> str | None:
        module = path.rpartition(":")[0]
        return module if module.endswith(".py") else None

    def problem(self, path: str) -> tuple[str, str] | None:
        module, colon, factory = path.rpartition(":")
        if not colon or not _is_dotted(factory):
            return f"no factory in {path!r}", "put a colon and the name of the function that builds the model last"
        if not module.endswith(".py") and not _is_dotted(module):
            return f"the module {module!r}", "give a module that can be imported, or a file that ends in .py"
        return None

    def name(self, spec: Spec, entry: ModelEntry) -> str:
        return entry.name or spec.path.rpartition(":")[2]

    def revision(self, spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG002
        return _make(spec).revision

    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:  # noqa: ARG002
        return Facts(download_bytes=0, download_from=FILE)  # the factory is the user's code, which a plan does not run

    def load(self, spec: Spec, entry: ModelEntry, context: Context) -> LoadedModel:
        made = _make(spec)
        if made.revision != context.revision:
            raise RepalignError(
                f"model {spec}: the factory makes another model every time",
                expected=f"the weights of revision {context.revision}", got=made.revision,
                remedy="load weights in it, or call torch.manual_seed first; and let it write to no file that its code names",
            )  # fmt: skip
        return TorchModule(spec, entry, context, made)

    def stand_in(self, asked: Asked) -> StandIn:
        from repalign.sources import standins

        return standins.module(asked)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


@dataclass(frozen=True)
class Made:
    """What a factory makes."""

    module: nn.Module
    preprocess: Callable[[Any], Tensor] | None
    modality: str | None
    layers: tuple[str, ...] | None
    code: str  # digest of the factory's file
    weights: str  # digest of the weights
    imports: dict[str, str]  # of what else it is made of

    @property
    def revision(self) -> str:
        more = "".join(f":{name}={said}" for name, said in self.imports.items())
        return "local-" + hashlib.sha256(f"{self.code}:{self.weights}{more}".encode()).hexdigest()[:16]


def _make(spec: Spec) -> Made:
    path, _, name = spec.path.rpartition(":")
    code = _import(path, spec)
    factory = getattr(code, name, None)
    if not callable(factory):
        known = [n for n, v in vars(code).items() if callable(v) and not n.startswith("_")]
        raise RepalignError(
            f"model {spec}: no factory {name!r} in {path}", expected="a function without arguments that builds the model",
            got=name, remedy=did_you_mean(name, known),
        )  # fmt: skip
    made = factory()
    if isinstance(made, nn.Module):
        module, rest = made, {}
    elif isinstance(made, tuple) and len(made) == 2:
        module, rest = made[0], {"preprocess": made[1]}
    else:
        module = getattr(made, "module", None)
        rest = {n: getattr(made, n, None) for n in ("preprocess", "modality", "layers")}
    if not isinstance(module, nn.Module) or not (rest.get("preprocess") is None or callable(rest["preprocess"])):
        raise RepalignError(
            f"model {spec}: the factory returns something else than a model", got=type(made).__name__,
            expected="an nn.Module, a pair (nn.Module, preprocess), or an object with the attribute `module`",
        )  # fmt: skip
    layers = rest.get("layers")
    return Made(
        module.eval(), rest.get("preprocess"), rest.get("modality"), None if layers is None else tuple(layers),
        code=source_digest(code), weights=weights_digest(module), imports=imported_code(code),
    )  # fmt: skip


def _import(path: str, spec: Spec) -> Any:
    try:
        if not path.endswith(".py"):
            return importlib.import_module(path)
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        # A name of its own for each file, under which what it defines can be pickled.
        name = f"repalign_factory_{file.stem}_{hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:8]}"
        described = importlib.util.spec_from_file_location(name, file)
        assert described is not None and described.loader is not None
        module = importlib.util.module_from_spec(described)
        sys.modules[name] = module
        described.loader.exec_module(module)
        return module
    except (ImportError, OSError, SyntaxError) as error:
        raise RepalignError(
            f"model {spec}: {path} cannot be imported", got=first_line(error),
            remedy="check the path (in a study file it starts from the file's folder) and what it imports",
        ) from error  # fmt: skip


class TorchModule(LoadedModel):
    """Outputs of modules of a model that the user's own function builds."""

    kind = "any"

    def __init__(self, spec: Spec, entry: ModelEntry, context: Context, made: Made) -> None:
        modality = entry.modality or made.modality
        if modality is None:
            raise no_modality(entry, "torch")
        self.entry, self.device, self.preprocess = entry, context.device, made.preprocess
        stored = next((p.dtype for p in made.module.parameters()), None)
        self.dtype = self.run_dtype(context, stored)
        self.model = made.module.to(context.device, self.dtype)
        self.layers = tuple(module_layer(self.model, n) for n in _chosen(self.model, entry, made.layers))
        read = getattr(self.preprocess, "__qualname__", type(self.preprocess).__name__)
        facts = {
            "pooling": entry.pooling or "maps: mean over positions; vectors as they are",
            "preprocessing": read if self.preprocess else "images to [0, 1]",
            "factory_sha256": made.code,
            **({"imports": made.imports} if made.imports else {}),
        }
        self.describe(spec, modality, self.model, (self.dtype, stored), ("pillow",), facts, weights=made.weights)

    def prepare(self, stimuli: Sequence[Any], where: Sequence[str]) -> list[Tensor]:
        out = [(self.preprocess or _as_tensor)(s) for s in stimuli]
        for x, row in zip(out, where, strict=True):
            if not isinstance(x, Tensor):
                raise RepalignError(
                    f"model {self.entry.label}: {row}: preprocess gives no tensor", got=type(x).__name__,
                    expected="a torch.Tensor of one stimulus, without a batch dimension",
                    remedy="return (module, preprocess) from the factory, with a preprocess for this modality",
                )  # fmt: skip
        return out

    def forward(self, prepared: Sequence[Tensor]) -> Batch:
        """Stimuli of one shape go into one pass."""
        return self.in_passes(prepared, [x.shape for x in prepared], self._pass)

    def _pass(self, stimuli: Sequence[Tensor]) -> Batch:
        inputs, out = torch.stack(list(stimuli)).to(self.device), {}
        with outputs_of(self.model, [layer.name for layer in self.layers], self.entry.label) as found:
            self.model(inputs.to(self.dtype) if inputs.is_floating_point() else inputs)
        for name, x in found.items():
            where = f"model {self.entry.label}, layer {name}"
            out[name] = any_pool(x, self.entry.pooling, where).to("cpu", torch.float32)
            if len(out[name]) != len(stimuli):
                got = tuple(out[name].shape)
                raise RepalignError(f"{where}: not one row per stimulus", expected=f"{len(stimuli)} rows", got=got)
        return Batch(out)


def _chosen(model: nn.Module, entry: ModelEntry, stated: tuple[str, ...] | None) -> list[str]:
    """The modules to read: those of the entry, those that the factory states, or the children."""
    every = list(stated) if stated is not None else _children(model)
    wanted = every if entry.layers is None else entry.layers
    known = {name for name, _ in model.named_modules() if name}
    out = []
    for w in wanted:
        if isinstance(w, int) and -len(every) <= w < len(every):
            out.append(every[w])
        elif w in known:
            out.append(str(w))
        else:
            expected = f"the path of a module, or an index into {', '.join(every)}"
            raise RepalignError(
                f"model {entry.label}: no module {w!r}", expected=expected, got=w, remedy=did_you_mean(str(w), known)
            )
    if not out:
        raise RepalignError(f"model {entry.label}: no layer to extract", remedy="name modules in `layers:`")
    return list(dict.fromkeys(out))


def _children(model: nn.Module) -> list[str]:
    """The direct children with parameters, the members of an `nn.ModuleList` in its place."""
    out = []
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            out += [f"{name}.{i}" for i, _ in enumerate(child)]
        elif any(True for _ in child.parameters()):
            out.append(name)
    return out


def _as_tensor(stimulus: Any) -> Any:
    """Images to (3, h, w) in [0, 1], arrays as they are; of anything else no tensor can be made."""
    if isinstance(stimulus, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(stimulus))
    if isinstance(stimulus, str):
        return stimulus
    return torch.from_numpy(np.asarray(stimulus, dtype=np.float32) / 255).permute(2, 0, 1)


# --- what code a factory is made of ---------------------------------------------------------------

# Its own file, the modules that it imports, theirs, and the files that these name. It is read off the syntax of the files, so
# that an import inside a function counts, and the answer is the same whatever else this process has imported. Of an installed
# package the version counts, of the standard library and of the libraries that run every model (their versions stand in the
# parts) nothing does.
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
            said = _about(other)
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


def _about(name: str) -> Path | str | None:
    """The file of a module of the user's own, the version of an installed one, None for what does not count."""
    top = name.partition(".")[0]
    if top in LIBRARIES or top in sys.stdlib_module_names:
        return None
    if name != top:  # looked for within its package, which is imported for that: only where that is the user's own
        package = _about(top)
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
