"""Local folders and the hub: which revision a spec means, told without loading a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repalign.errors import RepalignError
from repalign.models import Spec


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_revision(folder: Path, spec: Spec) -> str:
    """"local-" and 16 digits over the names and bytes of all files of a model's folder."""
    if not folder.is_dir():
        raise RepalignError(
            f"model {spec}: there is no folder {folder}",
            expected="a folder with the model's files",
            got="a file" if folder.exists() else "nothing",
            remedy="check the path; in a study file it starts from the file's folder",
        )
    sha = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        sha.update(f"{path.relative_to(folder).as_posix()}:{file_digest(path)}\n".encode())
    return f"local-{sha.hexdigest()[:16]}"


def hub_revision(spec: Spec) -> str:
    """The commit that a hub spec means: asked of the hub, or of the cache when there is no network."""
    if spec.is_local:
        return folder_revision(Path(spec.path), spec)
    from huggingface_hub import HfApi, try_to_load_from_cache

    with hub_errors(spec):
        cached = try_to_load_from_cache(spec.path, "config.json", revision=spec.revision or "main")
        try:
            return str(HfApi().model_info(spec.path, revision=spec.revision).sha)
        except Exception:
            if isinstance(cached, str):  # .../snapshots/<commit>/config.json
                return Path(cached).parent.name
            raise


@contextmanager
def hub_errors(spec: Spec) -> Iterator[None]:
    """Turn what a hub, a cache or a broken folder raises into one clear error."""
    from huggingface_hub import errors as hub

    try:
        yield
    except RepalignError:
        raise
    except hub.GatedRepoError as error:
        raise RepalignError(
            f"model {spec}: access is gated",
            got=_first_line(error),
            remedy=f"ask for access on the model's page, log in with `hf auth login`, and check {spec.path}",
        ) from error
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
        raise RepalignError(
            f"model {spec}: the hub has no such model or revision",
            got=_first_line(error),
            remedy="check the spelling of the name and the revision, or log in if the model is private",
        ) from error
    except (OSError, ConnectionError, hub.HfHubHTTPError, hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError) as error:
        if spec.is_local:
            raise RepalignError(
                f"model {spec}: the folder cannot be loaded",
                expected="config.json, model.safetensors and, for text, the tokenizer's files",
                got=_first_line(error),
                remedy="save the model with save_pretrained(folder, safe_serialization=True)",
            ) from error
        raise _unreachable(spec, error) from error
    except Exception as error:  # the hub's client raises its HTTP library's own errors
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise _unreachable(spec, error) from error


def _unreachable(spec: Spec, error: Exception) -> RepalignError:
    return RepalignError(
        f"model {spec}: the hub cannot be reached and the model is not in the cache",
        got=_first_line(error),
        remedy="connect to the network once, set HF_HOME to a cache that holds it, or name a local folder",
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines() or [type(error).__name__])[0][:300]
