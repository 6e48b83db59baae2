"""Models as experiments take them apart: loaded by their sources, with all of their checks, and with the head that answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.errors import RepalignError, Unavailable, choose
from repalign.tables import FORMATS, read_table
from repalign.text import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from repalign.dataset import Dataset
    from repalign.sources import LoadedModel


@dataclass(frozen=True, eq=False)
class Answers:
    """A model that gives logits: of the next token for every token of a text, or of a class for an image.

    source : as it was loaded. module : what is run. kind : "text" or "image".
    """

    source: LoadedModel
    module: nn.Module
    kind: str

    @property
    def label(self) -> str:
        return self.source.entry.label

    def prepare(self, stimuli: Sequence[Any]) -> list[Any]:
        """Each stimulus as `run` takes it."""
        return self.source.prepare(stimuli, [f"{self.kind} {i}" for i in range(len(stimuli))])

    def run(self, prepared: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (b, t, v), which of their places count (b, t), and the tokens there (b, t); of images t is 1, without tokens."""
        import torch

        if self.kind == "text":
            logits, tokens, mask = self.source.logits([p.ids for p in prepared])  # type: ignore[attr-defined]
            return logits, mask.bool().to(logits.device), tokens
        logits = logits_of(self.module, self.inputs(prepared), self.label)[:, None]
        return logits, torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device), None

    def inputs(self, prepared: Sequence[Any]) -> Any:
        """A batch of images as the module takes it: one tensor, or several by name."""
        import torch

        if isinstance(prepared[0], Mapping):
            return {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}
        place = next(self.module.parameters())
        return torch.stack(list(prepared)).to(place.device, place.dtype)


def logits_of(module: nn.Module, inputs: Any, label: str) -> Tensor:
    """What a module answers to a batch of images: (b, classes), whatever it is wrapped in."""
    import torch

    given = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    logits = getattr(given, "logits", given)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RepalignError(f"model {label}: it names no class of an image", expected="logits (images, classes)", got=got)
    return logits


def wide(x: Tensor) -> Tensor:
    """Numbers in float64: where they are, or on the CPU where they are on an Apple GPU, which has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def answering(model: str, device: str = "auto", progress: Progress = silent) -> Answers:
    """Load a causal language model of transformers (hf:), or a model with a head for images (hf:, timm:, torch:).

    Raises RepalignError for a model that predicts no token and names no class, Unavailable for one that is not to be had.
    """
    from repalign.sources import Context, ModelEntry, choose_device, parse_spec
    from repalign.sources.hf import Transformers, config_of
    from repalign.sources.hf_text import HFText
    from repalign.sources.hf_vision import load_classifier
    from repalign.sources.model import SPREAD, library_errors

    spec = parse_spec(model)
    entry = ModelEntry(model, modality="image" if spec.scheme == "torch" else None)
    if spec.scheme not in ("hf", "timm", "torch"):
        raise _no_head(model, f"a {spec.scheme}: model")
    spec.source.check(spec, entry)
    spread, device = SPREAD.get(device, "never"), choose_device(device)
    revision = spec.source.revision(spec, entry)
    progress(f"load {entry.label}", 0, 1)
    context = Context(device, "auto", False, (), revision, progress, spread)
    kind = Unavailable if spec.source.published else RepalignError
    with library_errors(entry.label, "loading it, or its first pass,", kind, alone=True):
        config = config_of(spec) if isinstance(spec.source, Transformers) else None
        if config is not None and not any(hasattr(config, name) for name in ("vocab_size", "vision_config")):
            source: Any = load_classifier(spec, entry, context)
        else:
            source = spec.source.load(spec, entry, context)
    progress(f"load {entry.label}", 1, 1)
    if isinstance(source, HFText):
        if not source.scored:
            raise _no_head(model, str(source.facts.get("bits_per_byte")))
        return Answers(source, source.model, "text")
    module = source.loaded.model if hasattr(source, "loaded") else source.model
    if getattr(module, "num_classes", None) == 0:  # as timm says of a model without a head
        raise _no_head(model, "a model without a head")
    return Answers(source, module, "image")


def _no_head(model: str, got: str) -> RepalignError:
    return RepalignError(
        f"model {model}: it predicts no token, and names no class of an image", got=got,
        expected="a causal language model (hf:), or a vision model with its head (hf:, timm:, torch:)",
    )  # fmt: skip


# --- what they are shown -------------------------------------------------------------------------


def read_stimuli(path: Path, kind: str, column: str | None = None, n: int = 0) -> tuple[list[Any], Dataset]:
    """The first n texts or images of a file or folder, by default all; of several captions the first.

    Texts are a column of a table (.csv, .tsv, .jsonl, .parquet; by default `text`), or the lines of a text file; images a
    column of paths (by default `image`), or a folder.
    """
    from repalign.dataset import Dataset

    if n < 0:
        raise RepalignError("n is out of range", expected="0 for all, or at least 1", got=n)
    where, is_table = Path(path), Path(path).suffix.lower() in FORMATS
    if not where.exists():
        raise RepalignError(f"there is no {where}", expected=f"{kind}s: a table or a {'text file' if kind == 'text' else 'folder'}")
    if is_table:
        data = Dataset.from_table(where, id=None, **{kind: column or kind})
    elif column is not None:
        raise RepalignError(f"{where} has no columns", expected=f"a table ({', '.join(FORMATS)})", got=f"column {column!r}")
    elif kind == "image":
        data = Dataset.from_folder(where)
    else:
        data = Dataset.of(text=lines_of(where))
    if kind not in data.modalities:
        raise RepalignError(f"{where} holds no {kind}s", expected=f"{kind}s", got=", ".join(data.modalities))
    rows = range(min(n or data.n, data.n))
    found = data.stimuli(kind, rows)
    return [x[0] for x in found] if kind == "text" else found, data


def read_labels(table: Path, column: str, n: int) -> list[int]:
    """Class numbers of a table's rows. RepalignError for what is no whole number."""
    if table.suffix.lower() not in FORMATS:
        raise RepalignError(f"{table} has no columns", expected=f"a table ({', '.join(FORMATS)})", got=f"label {column!r}")
    rows = read_table(table, [column]).rows
    choose("column", column, list(rows[0]) if rows else [], f"{table} has no column {column!r}")
    out = []
    for i, row in enumerate(rows):
        try:
            out.append(int(str(row[column])))
        except ValueError as error:
            raise RepalignError(
                f"{table}: row {i} has no class in column {column!r}", expected="the number of one of B's classes", got=row[column]
            ) from error
    if len(out) != n:
        raise RepalignError(f"{table}: some rows have no image", expected=f"{len(out)} images", got=n)
    return out


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not blank. RepalignError where there is none."""
    if path.is_dir():
        raise RepalignError(f"{path} is a folder", expected="texts: a table, or a text file with one text in each line")
    try:
        found = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise RepalignError(f"{path} cannot be read", expected="text in UTF-8", got=str(error)[:120]) from error
    if not found:
        raise RepalignError(f"{path} has no text", expected="one text in each line", got="nothing")
    return found


def toy_images(folder: Path, n: int) -> Path:
    """Pictures of the toy world, for mock runs, and the folder in which they are."""
    from repalign.dataset import Dataset

    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(Dataset.toy(n).stimuli("image", range(n))):
        image.save(folder / f"{i:02d}.png")
    return folder.absolute()


# --- what is done to them ------------------------------------------------------------------------


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """In eval mode and without gradients of its weights; afterwards as it was."""
    modes, needs = {m: m.training for m in module.modules()}, {p: p.requires_grad for p in module.parameters()}
    try:
        module.eval().requires_grad_(False)
        yield
    finally:
        for m, mode in modes.items():
            m.training = mode
        for p, need in needs.items():
            p.requires_grad_(need)


@contextmanager
def doing(instead: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Modules that do something else in the passes inside the block; afterwards, whatever happens, they are as they were.

    `instead` : the `forward` of each.
    """
    was = {module: vars(module).get("forward") for module in instead}
    try:
        for module, forward in instead.items():
            module.forward = forward
        yield
    finally:
        for module, forward in was.items():
            vars(module).pop("forward", None)
            if forward is not None:  # one that another library had put there
                module.forward = forward
