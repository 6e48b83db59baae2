"""What names an extraction: its folder, its manifest, and the fields that must agree."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from repalign.errors import RepalignError
from repalign.store._files import Files
from repalign.store._part import FORMAT, Verified, canonical

MANIFEST = "manifest.json"
PART = re.compile(r"^part-\d{5,}\.safetensors$")


def extraction_hash(
    dataset_fingerprint: str, spec: str, revision: str | None, settings: Mapping[str, Any]
) -> str:
    """16 hex digits that name an extraction.

    The first half of the SHA-256 of `{"dataset_fingerprint":...,"revision":...,"settings":...,"spec":...}`
    as JSON with sorted keys, no spaces and ASCII only. Name, family, scores and the rest of the record
    do not enter: they say what the model is, not what its features are.
    """
    text = canonical(
        {
            "dataset_fingerprint": dataset_fingerprint,
            "spec": spec,
            "revision": revision,
            "settings": settings,
        },
        f"the settings of {spec}",
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_of(dataset_fingerprint: str, spec: str, revision: str | None, settings: Mapping[str, Any]) -> str:
    """`<dataset fingerprint[:16]>/<model slug>/<extraction hash>`."""
    key = extraction_hash(dataset_fingerprint, spec, revision, settings)
    return f"{dataset_fingerprint[:16]}/{slug(spec)}/{key}"


def slug(spec: str) -> str:
    """A spec as a folder name, for people: what is not a letter, digit, dot, _ or - becomes one hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", spec).strip("-.")[:80] or "model"


def identity(
    dataset_fingerprint: str, spec: str, revision: str | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields in which all files of one folder agree, in the form in which they come back from JSON."""
    text = canonical(
        {
            "format": FORMAT,
            "dataset_fingerprint": dataset_fingerprint,
            "spec": spec,
            "revision": revision,
            "settings": settings,
        },
        f"the settings of {spec}",
    )
    return json.loads(text)


def identity_of_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that a part states."""
    fields = ("format", "dataset_fingerprint", "spec", "revision", "settings")
    return {field: header.get(field) for field in fields}


def identity_of_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that a manifest states."""
    return {
        "format": manifest["format"],
        "dataset_fingerprint": manifest["dataset"]["fingerprint"],
        "spec": manifest["record"]["spec"],
        "revision": manifest["record"]["revision"],
        "settings": manifest["settings"],
    }


def difference(expected: object, got: object, field: str = "") -> tuple[str, object, object] | None:
    """The first field, as a dotted path, in which two JSON values differ; None if they are equal."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in sorted({*expected, *got}):
            inner = f"{field}.{key}" if field else key
            if key not in expected or key not in got:
                return inner, expected.get(key, "(absent)"), got.get(key, "(absent)")
            found = difference(expected[key], got[key], inner)
            if found:
                return found
        return None
    return None if expected == got else (field, expected, got)


def refuse_other(path: str, expected: Mapping[str, Any], got: Mapping[str, Any], *, remedy: str) -> None:
    """RepalignError naming the file and the field if the file is of another extraction."""
    found = difference(dict(expected), dict(got))
    if found:
        field, a, b = found
        raise RepalignError(
            f"{path} is of another extraction: the field {field!r} differs",
            expected=f"{field} {shown(a)}",
            got=f"{field} {shown(b)}",
            remedy=remedy,
        )


def shown(value: object) -> str:
    """A value of a header in a message: short enough for a line."""
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 200 else f"{text[:200]}..."


def read_manifest(files: Files, folder: str) -> dict[str, Any] | None:
    """The manifest of a folder, or None if there is none. RepalignError if it is not one."""
    name = f"{folder}/{MANIFEST}"
    if files.size(name) is None:
        return None
    try:
        manifest = json.loads(files.read(name))
        identity_of_manifest(manifest)
        for field in ("layers", "extras", "n", "ids", "parts", "facts", "extraction", "versions"):
            manifest[field]
    except (ValueError, KeyError, TypeError) as error:
        raise RepalignError(
            f"{files.path(name)} is not a manifest of a feature store: {type(error).__name__}: {error}",
            remedy="delete this file and run the extraction again; parts that are whole are kept",
        ) from error
    return manifest


def manifest_text(
    *,
    dataset: Mapping[str, Any],
    record: Mapping[str, Any],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    ids: Sequence[str],
    parts: Mapping[str, Verified],
) -> str:
    """The manifest of parts (file name to checked part, in order) that are all there and agree."""
    heads = [part.head for part in parts.values()]
    versions: list[dict[str, Any]] = []
    for head in heads:
        if head.header["versions"] not in versions:
            versions.append(head.header["versions"])
    manifest = {
        "format": FORMAT,
        "dataset": dataset,
        "record": record,
        "settings": settings,
        "facts": facts,
        "extraction": heads[0].header["extraction"],
        "versions": versions,
        "layers": [{"name": n, "width": w, "dtype": d} for n, w, d in heads[0].layers],
        "extras": heads[0].header["extras"],
        "n": len(ids),
        "ids": list(ids),
        "parts": [
            {
                "file": name,
                "rows": part.head.header["rows"],
                "size": part.head.size,
                "sha256": part.sha256,
                "header_sha256": part.head.sha256,
            }
            for name, part in parts.items()
        ],
    }
    canonical(manifest, f"the manifest of {record['spec']}")
    return json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False) + "\n"
