"""Any function of a batch, or torch module: `torch:package.module:name` or `torch:path/to/file.py:name`.

The name is of a function. One that takes one argument is the model itself: it is given a list of stimuli, as the dataset has
them, and gives an array (n, d) with a row for each, or several by the name of the layer. One that takes none is a factory. It
returns one of

* an `nn.Module`;
* a pair `(module, preprocess)`;
* an object with the attribute `module` and, if it likes, `preprocess`, `modality` and `layers`;
* a function of a batch, as above, for which it has loaded what has to be loaded.

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
It has to make the same model each time. The weights of a function of a batch are the modules, arrays and constants that it
names; what it reads by itself as it runs is told only if its file names it.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from repalign.dataset import KINDS, Dataset
from repalign.errors import RepalignError, did_you_mean, first_line
from repalign.sources.identity import fingerprint, imported_code, source_digest
from repalign.sources.memory import OUTPUT, Function, Model, of_column, refuse_company
from repalign.sources.model import (
    Batch,
    Context,
    Layer,
    Loaded,
    LoadedModel,
    ModelEntry,
    named_by,
    no_modality,
    out_of_memory,
    own_dtype,
    ready,
    tensors_of,
    told,
    weights_digest,
)
from repalign.sources.passes import module_layer, outputs_of
from repalign.sources.pooling import any_pool
from repalign.sources.source import FILE, Answer, Asked, Facts, Source, Spec, StandIn


class TorchModules(Source):
    """`torch:` models, which a function of the user's builds."""

    scheme, form = "torch", "torch:package.module:factory, or torch:path/to/file.py:factory"
    example = "torch:./my_model.py:build"
    poolings: ClassVar = {"any": ("spatial_mean", "mean", "cls", "last")}

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

    def check(self, spec: Spec, entry: ModelEntry) -> None:
        super().check(spec, entry)
        if spec.file is not None and not spec.file.is_file():
            raise _not_imported(spec, f"there is no file {spec.file}")

    def reach(self, spec: Spec, entry: ModelEntry) -> None:
        made = _make(spec)
        if (entry.modality or made.modality) is None:
            raise no_modality(entry, self.scheme)
        if isinstance(made.module, nn.Module):
            _chosen(made.module, entry, made.layers)

    def name(self, spec: Spec, entry: ModelEntry) -> str:
        return entry.name or spec.path.rpartition(":")[2]

    def revision(self, spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG002
        return _make(spec).revision

    def facts(self, spec: Spec, entry: ModelEntry, answer: Answer | None = None) -> Facts:  # noqa: ARG002
        return Facts(kind="any", download_bytes=0, download_from=FILE)  # the factory is the user's code, which a plan does not run

    def load(self, spec: Spec, entry: ModelEntry, context: Context) -> LoadedModel:
        made = _make(spec)
        if made.revision != context.revision:
            raise RepalignError(
                f"model {spec}: the factory makes another model every time",
                expected=f"the weights of revision {context.revision}", got=made.revision,
                remedy="load weights in it, or call torch.manual_seed first; and let it write to no file that its code names",
            )  # fmt: skip
        modality = entry.modality or made.modality
        if modality is None:
            raise no_modality(entry, "torch")
        code = {"factory_sha256": made.code, **({"imports": made.imports} if made.imports else {})}
        if not isinstance(made.module, nn.Module):
            model = Function(spec, replace(entry, modality=modality), made.module, made.weights, **code)
            model.placed = {"device": "its own device"}
            return model
        loaded = ready(made.module, next((p.dtype for p in made.module.parameters()), None), context, entry.label)
        read = getattr(made.preprocess, "__qualname__", type(made.preprocess).__name__)
        facts = {"preprocessing": read if made.preprocess else "images to [0, 1]", **code}
        return TorchModule(spec, entry, loaded, modality, made.preprocess, made.layers, facts, made.weights)

    def takes(self, entry: Model) -> bool:
        return isinstance(entry.model, nn.Module)

    def towers(self, entry: Model, dataset: Dataset) -> list[Model]:
        if isinstance(entry.model, torch.jit.ScriptModule):
            raise RepalignError(
                f"model {entry.label}: it is compiled by torch.jit, and nobody can see what its modules give",
                expected="the module that it was made of", got=type(entry.model).__name__,
                remedy="pass that module; or a function of a batch that calls this one: its output is then the one layer",
            )  # fmt: skip
        entry = of_column(entry, dataset, None if entry.preprocess else "array")
        kind = dataset.kind(str(entry.modality)) if entry.modality in dataset.modalities else None
        if entry.preprocess is None and kind in RAW:
            what, takes, otherwise = RAW[kind]
            raise RepalignError(
                f"model {entry.label}: nothing says how {what} goes into the module", expected=f"`preprocess`, {takes}",
                got=f"none; {otherwise}", remedy=f"pass repalign.Model(module, modality={entry.modality!r}, preprocess=...)",
            )  # fmt: skip
        if any(map(is_lazy, tensors_of(entry.model))):  # torch draws such weights in the first pass: those of a copy
            entry = replace(entry, model=copy.deepcopy(entry.model).eval())
            stimulus = dataset.stimuli(str(entry.modality), [0])[0]
            stimulus = entry.prompted(stimulus[entry.caption]) if KINDS[str(kind)].several else stimulus
            with torch.no_grad():
                _run(Loaded(entry.model, own_dtype(entry.model)), [(entry.preprocess or _as_tensor)(stimulus)], entry)
        return [entry]

    def wrap(self, spec: Spec, entry: Model, loaded: Loaded) -> LoadedModel:
        facts = {"preprocessing": told(entry.preprocess) if entry.preprocess else "arrays as they are"}
        return TorchModule(spec, entry, loaded, str(entry.modality), entry.preprocess, None, facts)

    def stand_in(self, asked: Asked) -> StandIn:
        from repalign.sources import standin_models

        return standin_models.module(asked)


# Stimuli that do not go into a module of their own accord: what they are, what takes them there, and what would happen else.
RAW = {
    "image": (
        "an image", "a function that makes a tensor of one PIL image, such as a transform of torchvision or timm",
        "the images would go in raw: in the sizes that they have, with values from 0 to 1",
    ),
    "text": (
        "a text", "a function that makes a tensor of one text", "for a model of transformers pass (model, tokenizer), and for one "
        "that takes texts a function of a list of them",
    ),
}  # fmt: skip


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


@dataclass(frozen=True)
class Made:
    """What a factory makes, or a function of a batch itself."""

    module: nn.Module | Callable[[list[Any]], Any]
    preprocess: Callable[[Any], Tensor] | None
    modality: str | None
    layers: tuple[str, ...] | None
    code: str  # digest of the factory's file
    weights: str  # digest of the weights, of a function of all that it names
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
            f"model {spec}: no function {name!r} in {path}",
            expected="a function of a list of stimuli, or one without arguments that builds the model",
            got=name, remedy=did_you_mean(name, known),
        )  # fmt: skip
    needed = _needed(factory)
    if needed > 1:
        raise RepalignError(
            f"model {spec}: {name} takes {needed} arguments", got=f"{name}{inspect.signature(factory)}",
            expected="one, which is a list of stimuli, or none where it builds the model", remedy="give the others a default",
        )  # fmt: skip
    made = factory if needed else factory()
    code_of = {"code": source_digest(code), "imports": imported_code(code)}
    if callable(made) and not isinstance(made, (nn.Module, type)) and not hasattr(made, "module"):
        return Made(made, None, None, None, weights=fingerprint(made) or "none", **code_of)
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
            expected="an nn.Module, (nn.Module, preprocess), an object with the attribute `module`, or a function of a batch",
        )  # fmt: skip
    layers = rest.get("layers")
    return Made(
        module.eval(), rest.get("preprocess"), rest.get("modality"), None if layers is None else tuple(layers),
        weights=weights_digest(module), **code_of,
    )  # fmt: skip


def _needed(function: Any) -> int:
    """How many arguments a function has to be given; of a class, and of what does not say it, none."""
    if isinstance(function, type):
        return 0
    try:
        every = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    return sum(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in every)


def _import(path: str, spec: Spec) -> Any:
    # Bytecode is told from its source by size and second: a file that is changed at once and read again would run as it was.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        if not path.endswith(".py"):
            return importlib.import_module(path)
        file = Path(path)
        # A name of its own for each file, under which what it defines can be pickled.
        name = f"repalign_factory_{file.stem}_{hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:8]}"
        described = importlib.util.spec_from_file_location(name, file)
        assert described is not None and described.loader is not None
        module = importlib.util.module_from_spec(described)
        sys.modules[name] = module
        described.loader.exec_module(module)
        return module
    except (ImportError, OSError, SyntaxError) as error:
        raise _not_imported(spec, first_line(error)) from error
    finally:
        sys.dont_write_bytecode = before


def _not_imported(spec: Spec, got: str) -> RepalignError:
    return RepalignError(
        f"model {spec}: {spec.path.rpartition(':')[0]} cannot be imported", got=got,
        remedy="check the path (in a study file it starts from the file's folder) and what it imports",
    )  # fmt: skip


class TorchModule(LoadedModel):
    """Outputs of modules of a model that is the user's own."""

    kind, shown_first = "any", 2

    def __init__(
        self, spec: Spec, entry: ModelEntry, loaded: Loaded, modality: str, preprocess: Callable[[Any], Tensor] | None,
        stated: tuple[str, ...] | None, facts: Mapping[str, Any], weights: str | None = None,
    ) -> None:  # fmt: skip
        self.entry, self.loaded, self.preprocess = entry, loaded, preprocess
        self.paths = _chosen(loaded.model, entry, stated)
        self.layers = tuple(Layer(name, module_layer(loaded.model, path).what) for name, path in self.paths.items())
        facts = {"pooling": entry.pooling or "maps: mean over positions; vectors as they are", **facts}
        self.describe(spec, modality, loaded.model, (loaded.dtype, loaded.stored), ("pillow",), facts, weights=weights)

    @torch.inference_mode()
    def settle(self, prepared: Sequence[Tensor]) -> None:
        if len({x.shape for x in prepared}) == 1:
            refuse_company(self._pass(prepared).layers, self._pass(prepared[-1:]).layers, self.loaded.dtype, self.entry)

    def prepare(self, stimuli: Sequence[Any], where: Sequence[str]) -> list[Tensor]:
        out = [(self.preprocess or _as_tensor)(s) for s in stimuli]
        for x, row in zip(out, where, strict=True):
            if not isinstance(x, Tensor):
                raise RepalignError(
                    f"model {self.entry.label}: {row}: preprocess gives no tensor", got=type(x).__name__,
                    expected="a torch.Tensor of one stimulus, without a batch dimension",
                    remedy="give the model a preprocess for this modality; a factory returns it: (module, preprocess)",
                )  # fmt: skip
        return out

    def forward(self, prepared: Sequence[Tensor]) -> Batch:
        """Stimuli of one shape go into one pass."""
        return self.in_passes(prepared, [x.shape for x in prepared], self._pass)

    def _pass(self, stimuli: Sequence[Tensor]) -> Batch:
        out = {}
        with outputs_of(self.loaded.model, list(self.paths.values()), self.entry.label) as found:
            _run(self.loaded, stimuli, self.entry)
        for name, path in self.paths.items():
            where, x = f"model {self.entry.label}, layer {name}", found[path]
            out[name] = any_pool(x, self.entry.pooling, where).to("cpu", torch.float32)
            if len(out[name]) != len(stimuli):
                got = tuple(out[name].shape)
                raise RepalignError(f"{where}: not one row per stimulus", expected=f"{len(stimuli)} rows", got=got)
        return Batch(out)


def _run(loaded: Loaded, stimuli: Sequence[Tensor], entry: ModelEntry) -> None:
    """A pass over tensors of one shape, where the module is, and in its dtype where they have digits behind the point."""
    inputs = torch.stack(list(stimuli))
    try:
        loaded.model(inputs.to(loaded.device, loaded.dtype if inputs.is_floating_point() else None))
    except Exception as error:
        if isinstance(error, RepalignError) or out_of_memory(error):
            raise
        raise RepalignError(
            f"model {entry.label}: the module fails on what it is given: {type(error).__name__}: {first_line(error)}",
            expected="a module that takes a batch of what `preprocess` makes of the stimuli as its one argument",
            got=f"{str(inputs.dtype).removeprefix('torch.')} {tuple(inputs.shape)}, of column {entry.modality or 'that it names'}",
            remedy="say which column it reads and how: modality=, preprocess=; one of mixed dtypes or devices has to cast itself",
        ) from error


def _chosen(model: nn.Module, entry: ModelEntry, stated: tuple[str, ...] | None) -> dict[str, str]:
    """The modules to read, by the names of their layers: those of the entry, those that the factory states, or the children.

    What the model itself gives is the layer `output`, which is read where there are no children.
    """
    known = {OUTPUT: "", **{name: name for name, _ in model.named_modules() if name}}
    every = list(stated) if stated is not None else children(model) or [OUTPUT]
    out = []
    for w in every if entry.layers is None else entry.layers:
        found = [every[w]] if isinstance(w, int) and -len(every) <= w < len(every) else named_by(w, known)
        if not found:
            expected = f"the path of a module, a pattern such as 'blocks.*', or an index into {', '.join(every)}"
            raise RepalignError(
                f"model {entry.label}: no module {w!r}", expected=expected, got=w, remedy=did_you_mean(str(w), known)
            )
        out += found
    return {name: known[name] for name in out}


def children(model: nn.Module) -> list[str]:
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
        return torch.from_numpy(np.array(stimulus))  # a copy: the dataset's own cannot be written to
    if isinstance(stimulus, str):
        return stimulus
    return torch.from_numpy(np.asarray(stimulus, dtype=np.float32) / 255).permute(2, 0, 1)
