"""Files that are there whole or not at all, on this machine or any other, and that tell when they are not what was written."""

from repalign.files.local import (
    STALE_AFTER,
    TEMPORARY,
    Chunk,
    LocalFiles,
    Unreachable,
    cannot_read,
    cannot_write,
    lock,
    made_once,
    replacing,
    temporary_name,
)
from repalign.files.places import Files, Url, open_files, place_of, refuse_unwritable, seen_from, walk, write_file
from repalign.files.remote import RemoteFiles, is_passing, without_secrets
from repalign.files.sealed import (
    AGAIN,
    FILES,
    SEAL,
    DamagedError,
    check_files,
    check_seal,
    file_sha256,
    parquet_about,
    parse_json,
    parse_parquet,
    path_bytes,
    path_sha256,
    read_bytes,
    read_json,
    read_parquet,
    seal_html,
    seal_json,
    seal_parquet,
    write_parquet,
)

__all__ = [
    "AGAIN", "FILES", "SEAL", "STALE_AFTER", "TEMPORARY", "Chunk", "DamagedError", "Files", "LocalFiles", "RemoteFiles",
    "Unreachable", "Url", "cannot_read", "cannot_write", "check_files", "check_seal", "file_sha256", "is_passing", "lock",
    "made_once", "open_files", "parquet_about", "parse_json", "parse_parquet", "path_bytes", "path_sha256", "place_of",
    "read_bytes", "read_json", "read_parquet", "refuse_unwritable", "replacing", "seal_html", "seal_json", "seal_parquet",
    "seen_from", "temporary_name", "walk", "without_secrets", "write_file", "write_parquet",
]  # fmt: skip
