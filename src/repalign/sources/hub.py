"""Where a model's files are: folders, the hub and its cache; their revision and what they hold, told without loading a weight.

And what goes wrong there, or in a library that reads them, told as one error.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch

from repalign.errors import RepalignError, Unavailable, first_line, nearby
from repalign.files import path_sha256
from repalign.sources.model import ModelEntry, out_of_memory
from repalign.sources.source import FILE, HUB, Answer, Repository, Source, Spec, is_local_path

log = logging.getLogger(__name__)

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What determines a model in a folder; not its model card, nor the state of its training.
MODEL_FILES = {".json", ".safetensors", ".txt", ".model", ".tiktoken", ".jinja", ".py"}
HTTP_LIBRARIES = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")  # the hub's client changes them
# What the libraries raise for files that are missing, broken or of another model, and for missing dependencies.
LOADING = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)
# How safetensors names the floating dtypes that a model can be run in.
FLOATING = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
STORED = {2: torch.float16, 4: torch.float32}  # by bytes; which half precision it is does not matter to an estimate
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


class HubSource(Source):
    """A source whose models are repositories of the hub, or folders like them."""

    has_revisions = True
    published = True
    may_skip_sinks = True
    nested: bool = False  # whether a model has subfolders
    weights: ClassVar[str] = "*.safetensors"  # the files of weights in a folder

    def local_part(self, path: str) -> str | None:
        return path if is_local_path(path) else None

    def problem(self, path: str) -> tuple[str, str] | None:
        if is_local_path(path) or _HUB_ID.fullmatch(path):
            return None
        return f"the name {path!r}", "a local folder starts with ./, ../, / or ~"

    def check(self, spec: Spec, entry: ModelEntry) -> None:
        """Of a folder: whether it has a configuration and weights that are whole, as their headers say."""
        super().check(spec, entry)
        if not spec.is_local:
            return
        folder = local_folder(spec)
        files = sorted(folder.glob(self.weights))
        if not files and (not self.nested or any(folder.rglob("*.bin"))):
            raise self.no_weights(spec)
        with hub_errors(spec):
            read_headers(files)
            if not self.nested and not (folder / "config.json").is_file():
                raise OSError(f"there is no config.json in {folder}")

    def reach(self, spec: Spec, entry: ModelEntry) -> None:
        if not spec.is_local:
            self.revision(spec, entry)

    def no_weights(self, spec: Spec) -> Unavailable:
        return no_safetensors(spec)

    def revision(self, spec: Spec, entry: ModelEntry) -> str:  # noqa: ARG002
        return hub_revision(spec, self.nested)

    def repository(self, spec: Spec) -> Repository | None:
        return None if spec.is_local else (spec.path, spec.revision)

    def weight_facts(self, spec: Spec, answer: Answer | None) -> dict[str, Any]:
        """Parameters, dtype and bytes of the weights: of a folder, of the cache, or as the hub says."""
        repository = self.repository(spec)
        here = sorted(Path(spec.path).glob(self.weights)) if spec.is_local else repository and cached_weights(repository)
        if here is not None:
            return {**weights_in(here), "download_bytes": 0, "download_from": FILE}
        out: dict[str, Any] = {}
        if answer is not None and answer.parameters is not None:
            out |= {"parameters": answer.parameters, "parameters_from": HUB}
        if answer is not None and answer.weights_bytes is not None:
            out |= {"download_bytes": answer.weights_bytes, "file_bytes": answer.weights_bytes, "download_from": HUB}
            if answer.parameters:
                out["stored"] = STORED.get(round(answer.weights_bytes / answer.parameters))
        return out


# --- revisions -----------------------------------------------------------------------------------


def hub_revision(spec: Spec, nested: bool = False) -> str:
    """What a spec means now: the hub's commit, or the cache's without a network.

    Of a folder "local-" and 16 digits over the names and bytes of a model's files; `nested` covers its subfolders too.
    """
    from huggingface_hub import HfApi

    if spec.is_local:
        folder = local_folder(spec)
        files = (path for path in (folder.rglob("*") if nested else folder.iterdir()) if path.suffix in MODEL_FILES)
        return f"local-{path_sha256(folder, files)[:16]}"
    if spec.revision and _COMMIT.fullmatch(spec.revision):
        return spec.revision
    with hub_errors(spec):
        try:
            return str(HfApi().model_info(spec.path, revision=spec.revision).sha)
        except Exception:
            cached = cached_file((spec.path, spec.revision or "main"), "config.json")
            if cached is not None:
                return cached.parent.name  # .../snapshots/<commit>/config.json
            raise


def hub_revisions(spec: Spec) -> list[str]:
    """The branches and tags of a repository of the hub. Unavailable where it cannot be asked."""
    from huggingface_hub import HfApi

    with hub_errors(spec):
        found = HfApi().list_repo_refs(spec.path)
    return [one.name for one in (*found.branches, *found.tags)]


def local_folder(spec: Spec) -> Path:
    """The folder of a model on this machine. RepalignError if it is not there."""
    folder = Path(spec.path)
    if folder.is_dir():
        return folder
    raise RepalignError(
        f"model {spec}: there is no folder {folder}", expected="a folder with the model's files",
        got="a file" if folder.exists() else "nothing", remedy=nearby(folder),
    )  # fmt: skip


def at(spec: Spec, revision: str) -> dict[str, Any]:
    """The arguments that make a library load exactly this revision."""
    return {} if spec.is_local else {"revision": revision}


# --- the headers of weight files -----------------------------------------------------------------


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
        if not spec.is_local:
            first = fetch(spec.path, [ONE, INDEX], spec, revision)
            whole = first.name == ONE
            return read_headers([first] if whole else [fetch(spec.path, [s], spec, revision) for s in _shards(first)])
        folder = Path(spec.path)
        found = [folder / ONE] if (folder / ONE).is_file() else sorted(folder.glob("*.safetensors"))
        if found != [folder / ONE] and (folder / INDEX).is_file():
            found = [folder / shard for shard in _shards(folder / INDEX)]
        if not found:
            raise no_safetensors(spec)
        return read_headers(found)


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


def _shards(index: Path) -> list[str]:
    return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))


def weights_in(files: Sequence[Path]) -> dict[str, Any]:
    """What the headers of weight files say, as `Facts` have it; nothing where they cannot be read."""
    try:
        found = read_headers(files)
    except OSError:
        return {}
    if not found.numbers:
        return {}
    count, size = sum(found.numbers.values()), sum(f.stat().st_size for f in files)
    return {"parameters": count, "parameters_from": FILE, "stored": found.dtype, "file_bytes": size}


# --- the cache, and what the hub says ------------------------------------------------------------


def hub_cache() -> Path:
    """Where downloads go."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def cached_file(repository: Repository, name: str) -> Path | None:
    """A file in the hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository[0], name, revision=repository[1])
    return Path(found) if isinstance(found, str) else None


def cached_weights(repository: Repository) -> list[Path] | None:
    """The safetensors files of a model in the hub's cache, or None unless all of them are there."""
    one, index = cached_file(repository, ONE), cached_file(repository, INDEX)
    if one is not None or index is None:
        return None if one is None else [one]
    try:
        found = [cached_file(repository, shard) for shard in _shards(index)]
    except (ValueError, KeyError, OSError, AttributeError):
        return None
    return [f for f in found if f is not None] if all(found) else None


def file_of(spec: Spec, name: str) -> Path | None:
    """A file of a model where it is on this machine: in its folder, or in the hub's cache."""
    repository = spec.source.repository(spec)
    path = Path(spec.path) / name if spec.is_local else None if repository is None else cached_file(repository, name)
    return path if path is not None and path.is_file() else None


def ask_hub(repositories: Sequence[Repository], patience: float) -> dict[Repository, Answer]:
    """What the hub says of each repository that is not in the cache; what it does not answer within `patience` seconds is left out.

    All are asked at once, in threads that nobody waits for: a network that hangs cannot hang the caller.
    """
    from huggingface_hub import is_offline_mode

    missing = [r for r in dict.fromkeys(repositories) if cached_weights(r) is None or cached_file(r, "config.json") is None]
    if is_offline_mode():
        return {}
    done: dict[Repository, Answer] = {}

    def work(repository: Repository) -> None:
        try:
            done[repository] = _answer(repository, patience)
        except Exception as error:  # no network, no such model, no access: the plan says "unknown"
            log.info("%s: the hub does not say: %s", repository[0], error)

    threads = [threading.Thread(target=work, args=(r,), daemon=True) for r in missing]
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(done)


def _answer(repository: Repository, patience: float) -> Answer:
    from huggingface_hub import HfApi, hf_hub_download

    name, revision = repository
    info = HfApi().model_info(name, revision=revision, timeout=patience, files_metadata=True)
    sizes = {f.rfilename: f.size for f in info.siblings or ()}
    loaded = [ONE] if ONE in sizes else [f for f in sizes if f.startswith("model-") and f.endswith(".safetensors")]
    known = [sizes[f] for f in loaded]
    config = None
    if "config.json" in sizes:
        with tempfile.TemporaryDirectory() as folder:  # not into the cache: a plan leaves nothing behind
            path = hf_hub_download(name, "config.json", revision=revision, local_dir=folder, etag_timeout=patience)
            config = json.loads(Path(path).read_text("utf-8"))
    whole = bool(known) and all(s is not None for s in known)
    return Answer(sum(s or 0 for s in known) if whole else None, getattr(info.safetensors, "total", None), config)


# --- what goes wrong -----------------------------------------------------------------------------


@contextmanager
def hub_errors(spec: Spec) -> Iterator[None]:
    """Turn what a hub, a cache or a broken folder raises into one clear `Unavailable` that says what stands in the way."""
    try:
        yield
    except RepalignError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        found = _unavailable(spec, error)
        if found is None:
            raise
        raise found from error


def no_safetensors(spec: Spec) -> Unavailable:
    return Unavailable(
        f"model {spec}: there are no safetensors weights",
        expected="model.safetensors (pickled weights such as pytorch_model.bin can run code and are not loaded)",
        got="no safetensors file",
        remedy="convert them once, where you trust them: load the model and save_pretrained to a new folder"
        + ("" if spec.is_local else "; or name a revision that has them, such as hf:org/name@refs/pr/1"),
    )


def _unavailable(spec: Spec, error: Exception) -> Unavailable | None:
    """What keeps a model from being loaded; None where the error is none of the libraries' usual ones."""
    text, line = str(error), first_line(error)
    if isinstance(error, OSError) and "safetensors" in text and "file named" in text:
        return no_safetensors(spec)
    if "does not recognize this architecture" in text:
        mend = "; or mend `model_type` in its config.json" if spec.is_local else ""
        problem = f"model {spec}: the installed transformers ({version('transformers')}) does not have its architecture"
        return Unavailable(problem, got=line, remedy=f"upgrade transformers, or install a version that still has it{mend}")
    refused = None if spec.is_local else _refused_by_hub(spec, error)
    if refused is not None:
        return Unavailable(f"model {spec}: {refused[0]}", got=line, remedy=refused[1])
    if not isinstance(error, LOADING):
        return None
    if "trust_remote_code" in text:
        return Unavailable(
            f"model {spec}: it comes with code of its own, which is not run unless asked for",
            expected="an architecture that the installed library has", got=line,
            remedy="read the code, and if you trust it set `trust_remote_code: true` under `extract:`",
        )  # fmt: skip
    return Unavailable(
        f"model {spec} cannot be loaded: {line}",
        expected="config.json and model.safetensors, with the files of the tokenizer or image processor",
        got=f"{type(error).__name__}: {line}",
        remedy="save model and tokenizer (or processor) there with save_pretrained"
        if spec.is_local
        else "check that the installed libraries know this model, and upgrade them if not",
    )


def _refused_by_hub(spec: Spec, error: Exception) -> tuple[str, str] | None:
    """What the hub or the network said, and what to do; None where it was neither.

    The libraries wrap the hub's errors into their own: the chain of causes tells which it was.
    """
    from huggingface_hub import errors as hub

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__

    def any_is(*kinds: type[BaseException], but: tuple[type[BaseException], ...] = ()) -> bool:
        return any(isinstance(e, kinds) and not isinstance(e, but) for e in chain)

    if any_is(hub.GatedRepoError):
        return "access is gated", f"accept the licence on the page of {spec.path} at the hub, and log in with `hf auth login`"
    if any_is(hub.RepositoryNotFoundError, hub.RevisionNotFoundError):
        remedy = "check the spelling of the name and the revision, or log in with `hf auth login` if it is private"
        return "the hub has no such model or revision", remedy
    refusals = [e for e in chain if isinstance(e, hub.HfHubHTTPError)]
    if any(getattr(getattr(e, "response", None), "status_code", None) in (401, 403) for e in refusals):
        return "the hub refuses access", f"log in with `hf auth login` as someone who may read {spec.path}"
    if any_is(hub.EntryNotFoundError, but=(hub.LocalEntryNotFoundError,)):
        return None  # the hub answered: a file is lacking
    if any(isinstance(e, ConnectionError) or type(e).__module__.partition(".")[0].startswith(HTTP_LIBRARIES) for e in chain):
        remedy = "connect to the network once, set HF_HOME to a cache that holds it, or name a local folder"
        return "the hub cannot be reached and the model is not in the cache", remedy
    return None


