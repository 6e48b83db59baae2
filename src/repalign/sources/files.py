"""Local folders and the hub: which revision a spec means, told without loading a weight."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repalign.errors import RepalignError, Unavailable
from repalign.models import Spec
from repalign.sources.source import out_of_memory

# What determines a model in a folder; not its model card, nor the state of its training.
MODEL_FILES = {".json", ".safetensors", ".txt", ".model", ".tiktoken", ".jinja", ".py"}
HTTP_LIBRARIES = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")  # the hub's client changes them
# What the libraries raise for files that are missing, broken or of another model, and for missing dependencies.
LOADING = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_revision(folder: Path, spec: Spec, deep: bool = False) -> str:
    """ "local-" and 16 digits over the names and bytes of a model's files; `deep` covers its subfolders too."""
    if not folder.is_dir():
        raise RepalignError(
            f"model {spec}: there is no folder {folder}",
            expected="a folder with the model's files",
            got="a file" if folder.exists() else "nothing",
            remedy="check the path; in a study file it starts from the file's folder",
        )
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        if path.is_file() and path.suffix in MODEL_FILES:
            sha.update(f"{path.relative_to(folder).as_posix()}:{file_digest(path)}\n".encode())
    return f"local-{sha.hexdigest()[:16]}"


def hub_revision(spec: Spec, deep: bool = False) -> str:
    """What a spec means now: the hub's commit (or the cache's, without a network), or a folder's digest."""
    if spec.is_local:
        return folder_revision(Path(spec.path), spec, deep)
    if spec.revision and _COMMIT.fullmatch(spec.revision):
        return spec.revision
    from huggingface_hub import HfApi, try_to_load_from_cache

    with hub_errors(spec):
        try:
            return str(HfApi().model_info(spec.path, revision=spec.revision).sha)
        except Exception:
            cached = try_to_load_from_cache(spec.path, "config.json", revision=spec.revision or "main")
            if isinstance(cached, str):  # .../snapshots/<commit>/config.json
                return Path(cached).parent.name
            raise


def at(spec: Spec, revision: str) -> dict[str, Any]:
    """The arguments that make a library load exactly this revision."""
    return {} if spec.is_local else {"revision": revision}


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
        told = _unavailable(spec, error)
        if told is not None:
            raise told from error
        if not isinstance(error, LOADING):
            raise
        if "trust_remote_code" in str(error):
            raise Unavailable(
                f"model {spec}: it comes with code of its own, which is not run unless asked for",
                expected="an architecture that the installed library has",
                got=first_line(error),
                remedy="read the code, and if you trust it set `trust_remote_code: true` under `extract:`",
            ) from error
        raise Unavailable(
            f"model {spec} cannot be loaded: {first_line(error)}",
            expected="config.json and model.safetensors, with the files of the tokenizer or image processor",
            got=f"{type(error).__name__}: {first_line(error)}",
            remedy="save model and tokenizer (or processor) there with save_pretrained"
            if spec.is_local
            else "check that the installed libraries know this model, and upgrade them if not",
        ) from error


def _unavailable(spec: Spec, error: Exception) -> Unavailable | None:
    """What keeps a model from being had, or None where the error is another one.

    The libraries wrap the hub's errors into their own: the chain tells which it was.
    """
    from huggingface_hub import errors as hub

    chain = list(_chain(error))
    if _lacks_safetensors(error):
        return no_safetensors(spec)
    if "does not recognize this architecture" in str(error):
        return Unavailable(
            f"model {spec}: the installed transformers ({version('transformers')}) does not have its architecture",
            got=first_line(error),
            remedy="upgrade transformers, or install a version that still has it"
            + ("; or mend `model_type` in its config.json" if spec.is_local else ""),
        )
    if spec.is_local:
        return None
    if any(isinstance(e, hub.GatedRepoError) for e in chain):
        return Unavailable(
            f"model {spec}: access is gated",
            got=first_line(error),
            remedy=f"accept the licence on the page of {spec.path} at the hub, and log in with `hf auth login`",
        )
    if any(isinstance(e, (hub.RepositoryNotFoundError, hub.RevisionNotFoundError)) for e in chain):
        return Unavailable(
            f"model {spec}: the hub has no such model or revision",
            got=first_line(error),
            remedy="check the spelling of the name and the revision, or log in with `hf auth login` if it is private",
        )
    if any(isinstance(e, hub.HfHubHTTPError) and _status(e) in (401, 403) for e in chain):
        return Unavailable(
            f"model {spec}: the hub refuses access",
            got=first_line(error),
            remedy=f"log in with `hf auth login` as someone who may read {spec.path}",
        )
    if any(isinstance(e, hub.EntryNotFoundError) and not isinstance(e, hub.LocalEntryNotFoundError) for e in chain):
        return None  # the hub answered: a file is lacking
    if any(_is_network(e) for e in chain):
        return Unavailable(
            f"model {spec}: the hub cannot be reached and the model is not in the cache",
            got=first_line(error),
            remedy="connect to the network once, set HF_HOME to a cache that holds it, or name a local folder",
        )
    return None


def no_safetensors(spec: Spec) -> Unavailable:
    return Unavailable(
        f"model {spec}: there are no safetensors weights",
        expected="model.safetensors (pickled weights such as pytorch_model.bin can run code and are not loaded)",
        got="no safetensors file",
        remedy="convert them once, where you trust them: load the model and save_pretrained to a new folder"
        + ("" if spec.is_local else "; or name a revision that has them, such as hf:org/name@refs/pr/1"),
    )


def _lacks_safetensors(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, OSError) and "safetensors" in text and "file named" in text


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_network(error: BaseException) -> bool:
    """Whether an error is the hub's or its HTTP library's."""
    return isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0].startswith(HTTP_LIBRARIES)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def first_line(error: BaseException) -> str:
    """The first line of an error's text, short enough for a message."""
    text = str(error).strip()
    return (text.splitlines() or [type(error).__name__])[0][:300]
