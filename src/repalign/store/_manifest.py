"""What names an extraction: its folder, its manifest, and the fields that must agree.

A manifest is sealed (`repalign.files`), as a part is: what it says besides its parts (scores, facts) is covered by
nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repalign.errors import RepalignError
from repalign.files import DamagedError, check_seal, seal_json
from repalign.models import ModelRecord
from repalign.store._files import Files
from repalign.store._part import FORMAT, TORCH_DTYPES, BrokenError, Head, Verified, canonical, parse_json, read_head

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 2  # 1 had no seal: it is read, and held to its parts alone
KIND = "repalign extraction"
PART = re.compile(r"^part-\d{5,}\.safetensors$")
AGAIN = "run the extraction again: parts that are whole are kept, and the manifest is written anew"

# Types of the fields, and of those within; what is read is held to them, so that no later use meets another type.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "dataset": dict, "record": dict, "settings": dict, "facts": dict, "extraction": dict, "versions": list,
    "layers": list, "extras": list, "n": int, "ids": list, "parts": list,
}  # fmt: skip
_LAYER_TYPES: dict[str, type] = {"name": str, "width": int, "dtype": str}
_PART_TYPES: dict[str, type] = {"file": str, "rows": list, "size": int, "sha256": str, "header_sha256": str}
_TEXT = (str, type(None))
_RECORD_TYPES: dict[str, type | tuple[type, ...]] = {
    "spec": str, "name": str, "modality": str, "revision": _TEXT, "family": _TEXT, "objective": _TEXT,
    "n_parameters": (int, type(None)), "scores": dict, "factors": dict,
}  # fmt: skip


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
    """The identity that a manifest states; it is of parts of this format."""
    return {
        "format": FORMAT,
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


class NewerFormat(RepalignError):  # noqa: N818
    """A manifest that this version does not know: it is not written over."""


@dataclass(frozen=True)
class Manifest:
    """What a manifest says, every field of its type; and what forbids to believe it, in words that follow its name."""

    data: dict[str, Any]
    flaw: BrokenError | None

    @property
    def is_sealed(self) -> bool:
        return self.data["format"] == MANIFEST_FORMAT


def read_manifest(files: Files, folder: str) -> Manifest | None:
    """The manifest of a folder, or None if there is none. RepalignError if the file is no manifest, or of a newer format."""
    name = f"{folder}/{MANIFEST}"
    if files.size(name) is None:
        return None
    try:
        raw = bytes(files.read(name))
        data = parse_json(raw)
        _check_types(data)
    except (ValueError, TypeError, OSError) as error:
        raise RepalignError(
            f"{files.path(name)} is not a manifest of a feature store: {type(error).__name__}: {error}",
            remedy=AGAIN,
        ) from error
    if data["format"] not in (1, MANIFEST_FORMAT):
        raise NewerFormat(
            f"{files.path(name)} is a manifest of another format",
            expected=f"format 1 or {MANIFEST_FORMAT}",
            got=f"format {data['format']}",
            remedy="install a repalign that knows this format (a newer one, if the number is higher)",
        )
    return Manifest(data, _flaw(raw, data))


def _check_types(data: Any) -> None:
    """ValueError that names the field which is not there or is of another type."""
    if not isinstance(data, dict):
        raise ValueError(f"a {type(data).__name__}, not an object")
    if type(data.get("format")) is not int:
        raise ValueError(f"format is {shown(data.get('format'))}")
    if data["format"] not in (1, MANIFEST_FORMAT):
        return  # told with a remedy of its own
    _check_fields(data, _TYPES, "")
    if data.get("kind", KIND) != KIND:
        raise ValueError(f"kind is {shown(data['kind'])}, not {KIND}")
    _check_fields(data["dataset"], {"fingerprint": str}, "dataset.")
    ModelRecord.from_dict(data["record"])
    record = {"factors": {}, **data["record"]}  # which stand there only where there are any
    _check_fields(record, _RECORD_TYPES, "record.")
    _check_fields(record["scores"], dict.fromkeys(record["scores"], (int, float)), "record.scores.")
    _check_fields(record["factors"], dict.fromkeys(record["factors"], (int, float, str)), "record.factors.")
    for field in ("extras", "ids"):
        if not all(isinstance(value, str) for value in data[field]):
            raise ValueError(f"{field} holds something else than text")
    for field, types in (("layers", _LAYER_TYPES), ("parts", _PART_TYPES)):
        for i, item in enumerate(data[field]):
            _check_fields(item, types, f"{field}[{i}].")
    for i, layer in enumerate(data["layers"]):
        if layer["dtype"] not in TORCH_DTYPES or layer["width"] < 1:
            raise ValueError(f"layers[{i}] is {shown(layer)}")
    for i, part in enumerate(data["parts"]):
        if not PART.match(part["file"]) or len(part["rows"]) != 2 or not all(type(r) is int for r in part["rows"]):
            raise ValueError(f"parts[{i}] is {shown(part)}")


def _check_fields(data: Any, types: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{where.rstrip('.')} is {shown(data)}")
    for field, kind in types.items():
        if field not in data:
            raise ValueError(f"{where}{field} is missing")
        if not isinstance(data[field], kind) or isinstance(data[field], bool):
            raise ValueError(f"{where}{field} is {shown(data[field])}")


def _flaw(raw: bytes, data: Mapping[str, Any]) -> BrokenError | None:
    """What is wrong with a manifest as a whole: it is not what was written, or its parts leave rows out."""
    n, ids, rows = data["n"], data["ids"], [part["rows"] for part in data["parts"]]
    covered = [0, *(stop for _, stop in rows)] == [*(start for start, _ in rows), n]
    if not covered or n != len(ids) or len(set(ids)) != n or any(start >= stop for start, stop in rows):
        return BrokenError(f"does not cover its rows: n is {n}, {len(set(ids))} ids, parts {shown(rows)}")
    try:
        has_seal = check_seal(raw, MANIFEST)
    except DamagedError as error:
        return BrokenError(error.problem)
    if has_seal != (data["format"] == MANIFEST_FORMAT):
        return BrokenError(f"is not what was written: of format {data['format']}, with {'a' if has_seal else 'no'} seal")
    return None


def readable(files: Files, folder: str) -> tuple[dict[str, Any] | None, str | None]:
    """What the manifest of a folder says, or None; and why not, where one is there that cannot be believed.

    For those who write one anew. RepalignError for a manifest of a newer format.
    """
    try:
        manifest = read_manifest(files, folder)
        if manifest is not None and manifest.flaw is not None:
            raise refusal(files, folder, manifest)
    except NewerFormat:
        raise
    except RepalignError as error:
        return None, str(error).splitlines()[0]
    return None if manifest is None else manifest.data, None


def refusal(files: Files, folder: str, manifest: Manifest) -> RepalignError:
    """The error for a manifest with a flaw: file, what is wrong, and the field, as far as the parts tell it."""
    assert manifest.flaw is not None
    where = "one of record, facts, dataset or versions, which its parts do not state"
    for part in manifest.data["parts"]:
        try:
            found = disagreement(manifest.data, part, read_head(files, f"{folder}/{part['file']}"))
        except (BrokenError, RepalignError):
            continue  # the manifest is what is spoken of here
        if found:
            field, here, there = found
            where = f"{field}, which is {shown(here)} here and {shown(there)} in {part['file']}"
            break
    return RepalignError(
        f"{files.path(f'{folder}/{MANIFEST}')} {manifest.flaw}; the field: {where}", remedy=AGAIN
    )


def disagreement(manifest: Mapping[str, Any], part: Mapping[str, Any], head: Head) -> tuple[str, object, object] | None:
    """The first field in which a manifest and the sealed header of one of its parts differ: (field, here, there)."""
    start, stop = part["rows"]
    says = {
        **identity_of_manifest(manifest),
        "rows": [start, stop],
        "n": manifest["n"],
        "ids": manifest["ids"][start:stop],
        "extras": manifest["extras"],
        "extraction": manifest["extraction"],
        "layers": [[layer["name"], layer["width"], layer["dtype"]] for layer in manifest["layers"]],
        "size": part["size"],
        "header_sha256": part["header_sha256"],
    }
    shows = {
        **identity_of_header(head.header),
        **{field: head.header[field] for field in ("rows", "n", "ids", "extras", "extraction")},
        "layers": [list(layer) for layer in head.layers],
        "size": head.size,
        "header_sha256": head.sha256,
    }
    for field in says:  # in this order: the first difference is the one that explains the others
        found = difference(says[field], shows[field], field)
        if found:
            return found
    return None


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
        "format": MANIFEST_FORMAT,
        "kind": KIND,
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
    return seal_json(manifest, sort_keys=True, ensure_ascii=True, allow_nan=False)
