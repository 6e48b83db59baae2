"""What the files of a model's weights hold, read from their headers: no weight is loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from repalign.models import Spec
from repalign.sources.files import hub_errors, no_safetensors

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
# How safetensors names the floating dtypes that a model can be run in.
FLOATING = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Held:
    """Numbers in the weight files by dtype, as safetensors names it."""

    numbers: dict[str, int]

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating dtype that most numbers are stored in; None where there is none, as in quantised files."""
        floating = {FLOATING[name]: n for name, n in self.numbers.items() if name in FLOATING}
        return max(floating, key=lambda d: floating[d], default=None)

    def n_bytes(self, dtype: torch.dtype) -> int:
        """What they take when all of them are run in one dtype."""
        return sum(self.numbers.values()) * dtype.itemsize


def read_headers(files: Iterable[Path]) -> Held:
    """What safetensors files hold. OSError, with the file, for one that is not whole."""
    from safetensors import SafetensorError, safe_open

    numbers: Counter[str] = Counter()
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a mapping)
                    tensor = opened.get_slice(name)
                    numbers[tensor.get_dtype()] += torch.Size(tensor.get_shape()).numel()
        except SafetensorError as error:
            raise OSError(f"{file}: {error}") from error
    return Held(dict(numbers))


def held(spec: Spec, revision: str) -> Held:
    """What the weights of a transformers model are: those of a folder, or of the hub, fetched into its cache.

    Raises Unavailable where there are no safetensors files, or where they cannot be fetched.
    """
    with hub_errors(spec):
        return read_headers(_in_folder(Path(spec.path), spec) if spec.is_local else _from_hub(spec, revision))


def fetch(repository: str, names: Sequence[str], spec: Spec, revision: str | None) -> Path:
    """The first of some safetensors files that a repository of the hub has, in its cache. To be called in `hub_errors`."""
    from huggingface_hub import errors, hf_hub_download

    unreachable: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except errors.LocalEntryNotFoundError as error:  # not in the cache, and the hub did not answer
            unreachable = error
        except errors.EntryNotFoundError:
            continue
    raise unreachable or no_safetensors(spec)


def _from_hub(spec: Spec, revision: str) -> list[Path]:
    first = fetch(spec.path, [ONE, INDEX], spec, revision)
    if first.name == ONE:
        return [first]
    return [fetch(spec.path, [shard], spec, revision) for shard in _shards(first)]


def _in_folder(folder: Path, spec: Spec) -> list[Path]:
    if (folder / ONE).is_file():
        return [folder / ONE]
    if (folder / INDEX).is_file():
        return [folder / shard for shard in _shards(folder / INDEX)]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise no_safetensors(spec)
    return found


def _shards(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
