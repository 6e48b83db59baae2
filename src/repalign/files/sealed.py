"""Files that tell when they are not what was written.

The seal of a JSON or Parquet file is the SHA-256 of its own bytes, taken with the seal's 64 digits read as zeros. So
every byte is under the seal, the file needs no companion, and other programs read it as before. A file that says nowhere
that it has a seal was written before there were seals: readers are told so, and decide.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repalign.errors import RepalignError, first_line
from repalign.files.local import replacing
from repalign.files.places import Files, Url, write_file

if TYPE_CHECKING:
    import pyarrow as pa

SEAL = "repalign-seal"
FILES = "files"  # in a sealed JSON file: the SHA-256 of the files that it speaks of
_RULE = (f"{SEAL}-rule", f"{SEAL} is the SHA-256 of this file, with its own 64 digits read as zeros")
_ZEROS = "0" * 64
FOOTER = 64 * 2**10  # bytes at the end of a Parquet file that are read at once: mostly its whole footer
# In JSON a value follows its key after a colon; in a Parquet footer (Thrift) after its type and its length, 64.
_DIGITS = re.compile(SEAL.encode() + rb'(?:": ?"|\x18\x40)([0-9a-f]{64})')
AGAIN = "run the same command again: this file is made again, and what is whole is kept"


class DamagedError(RepalignError):
    """A file that is not what was written: cut short, changed, or of another run."""

    def __init__(self, path: object, problem: str, *, expected: object = None, got: object = None, remedy: str = AGAIN):
        super().__init__(f"{path} {problem}", expected=expected, got=got, remedy=remedy)
        self.path, self.problem, self.remedy = str(path), problem, remedy


def check_seal(data: bytes | bytearray, path: object, remedy: str = AGAIN) -> bool:
    """Whether the bytes of a file carry a seal. Raises DamagedError if the seal is not the one of these bytes."""
    found = list(_DIGITS.finditer(data))
    if not found and SEAL.encode() not in data:
        return False
    if len(found) != 1:
        raise DamagedError(path, "is not what was written: its seal is damaged", remedy=remedy)
    stated, (start, stop) = found[0][1].decode(), found[0].span(1)
    digest = hashlib.sha256(memoryview(data)[:start])  # in three pieces, so that a large file is not copied
    digest.update(_ZEROS.encode())
    digest.update(memoryview(data)[stop:])
    if stated != digest.hexdigest():
        seals = {"expected": f"seal {stated}", "got": f"seal {digest.hexdigest()}"}
        raise DamagedError(path, "is not what was written", **seals, remedy=remedy)
    return True


def _sealed(data: bytearray) -> bytearray:
    """The bytes with their digest in the place of the zeros of the first seal, in place."""
    start, stop = next(_DIGITS.finditer(data)).span(1)
    data[start:stop] = hashlib.sha256(data).hexdigest().encode()
    check_seal(data, "a file that is being written")  # a text that looks like a second seal is told now
    return data


def seal_json(value: Mapping[str, Any], **how: Any) -> str:
    """A mapping as JSON text with its seal in front; `how` goes to `json.dumps`.

    >>> text = seal_json({"n": 3})
    >>> parse_json(text.encode(), "a.json")
    ({'n': 3}, True)
    """
    how = {"indent": 1, "ensure_ascii": False, **how}
    marks = json.dumps({SEAL: _ZEROS, _RULE[0]: _RULE[1]}, indent=how["indent"])
    text = marks[:-1].rstrip() + ("," if value else "") + json.dumps(value, **how)[1:] + "\n"
    try:
        return _sealed(bytearray(text, "utf-8")).decode("utf-8")
    except UnicodeEncodeError:  # half a surrogate, which only an escape can hold
        return seal_json(value, **{**how, "ensure_ascii": True})


def seal_html(page: str) -> str:
    """A page with its seal in a comment at its end."""
    return _sealed(bytearray(f'{page.rstrip()}\n<!-- "{SEAL}": "{_ZEROS}" -->\n', "utf-8")).decode("utf-8")


def parse_json(data: bytes | bytearray, path: object, remedy: str = AGAIN) -> tuple[dict[str, Any], bool]:
    """The mapping of a JSON file, and whether it has a seal. `path` names the file.

    Raises DamagedError if the seal is broken, or the text is no JSON mapping.
    """
    has_seal = check_seal(data, path, remedy)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, "is no JSON", got=first_line(error), remedy=remedy) from error
    if not isinstance(value, dict):
        raise DamagedError(path, "is no JSON object", got=type(value).__name__, remedy=remedy)
    return {k: v for k, v in value.items() if k not in (SEAL, _RULE[0])}, has_seal


def seal_parquet(table: pa.Table, about: Mapping[str, str] | None = None) -> bytearray:
    """A table as a Parquet file with its seal and the texts of `about` in its footer; equal tables give equal bytes."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    _fill_parquet(sink, [table], about)
    return _sealed(bytearray(sink.getvalue()))


def _fill_parquet(sink: Any, parts: Iterable[pa.Table], about: Mapping[str, str] | None = None) -> None:
    """A table in parts, with a place for the seal."""
    import pyarrow.parquet as pq

    tables = (table.replace_schema_metadata(None) for table in parts)
    first = next(tables)
    # Without the schema in the footer: it is told by the columns, and would be another place to check.
    with pq.ParquetWriter(sink, first.schema, compression="zstd", store_schema=False) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
        writer.add_key_value_metadata({**(about or {}), _RULE[0]: _RULE[1], SEAL: _ZEROS})


def parse_parquet(data: bytes | bytearray, path: object, remedy: str = AGAIN) -> tuple[pa.Table, dict[str, str], bool]:
    """The table of a Parquet file, the texts about it, and whether it has a seal. `path` names the file.

    Raises DamagedError if the seal is broken, or this is no Parquet table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    has_seal = check_seal(data, path, remedy)
    try:
        table = pq.read_table(pa.BufferReader(data))
        about = _texts(table.schema.metadata)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise DamagedError(path, "is no Parquet table", got=first_line(error), remedy=remedy) from error
    return table.replace_schema_metadata(None), about, has_seal


def parquet_about(files: Files, name: str, size: int) -> dict[str, str]:
    """The texts about the table of a Parquet file of `size` bytes, from its footer alone, which no seal vouches for.

    Raises DamagedError if it has none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = f"{files.root}/{name}"
    try:
        end = files.read(name, max(0, size - FOOTER), size)
        length = int.from_bytes(end[-8:-4], "little") + 8
        if len(end) < length <= size:
            end = files.read(name, size - length, size)
        # A file of a footer alone is as good to a reader that asks for no column.
        return _texts(pq.read_metadata(pa.BufferReader(b"PAR1" + end[-length:])).metadata)
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        raise DamagedError(path, "is no Parquet table", got=first_line(error)) from error


def _texts(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """What a footer says of its table, without what belongs to the seal."""
    about = {k.decode(): v.decode() for k, v in (metadata or {}).items()}
    return {k: v for k, v in about.items() if k not in (SEAL, _RULE[0])}


def read_bytes(path: Path | Url, remedy: str = AGAIN) -> bytes:
    """The bytes of a file. Raises DamagedError if they cannot be read, Unreachable where no answer came from a URL."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(path, "cannot be read", got=error.strerror or str(error), remedy=remedy) from error


def read_json(path: Path | Url, remedy: str = AGAIN) -> tuple[dict[str, Any], bool]:
    """`parse_json` of a file. Raises DamagedError, also if it cannot be read."""
    return parse_json(read_bytes(path, remedy), path, remedy)


def read_parquet(path: Path | Url, remedy: str = AGAIN) -> tuple[pa.Table, dict[str, str], bool]:
    """`parse_parquet` of a file. Raises DamagedError, also if it cannot be read."""
    return parse_parquet(read_bytes(path, remedy), path, remedy)


def write_parquet(path: Path | Url, parts: Iterable[pa.Table]) -> str:
    """Write the parts of a table, one after the other, as one sealed Parquet file; its SHA-256.

    On this machine neither the table nor the file is ever all in memory. RepalignError if the file cannot be written.
    """
    if isinstance(path, Url):
        import pyarrow as pa

        data = seal_parquet(pa.concat_tables(parts))
        write_file(path, data)
        return hashlib.sha256(data).hexdigest()
    with replacing(path) as temporary:
        _fill_parquet(str(temporary), parts)
        digest = file_sha256(temporary)  # with zeros in the place of the seal
        with temporary.open("r+b") as handle:
            handle.seek(-8, os.SEEK_END)
            start = handle.seek(-8 - int.from_bytes(handle.read(4), "little"), os.SEEK_END)
            handle.seek(start + next(_DIGITS.finditer(handle.read())).start(1))
            handle.write(digest.encode())
    return file_sha256(path)


def file_sha256(path: Path | Url) -> str:
    """The SHA-256 of a file of any size, as `sha256sum` gives it. Raises DamagedError if it cannot be read."""
    if isinstance(path, Url):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(path, "cannot be read", got=error.strerror or str(error)) from error


def check_files(folder: Path | Url, stated: Mapping[str, str], index: str = "run.json", remedy: str = AGAIN) -> None:
    """Hold files to the digests that a sealed file in their folder states. Raises DamagedError for the first that differs."""
    for name, digest in stated.items():
        data = read_bytes(folder / name, remedy)
        got = hashlib.sha256(data).hexdigest()
        if got != digest:
            whole = check_seal(data, folder / name, remedy)  # damaged, or of another run?
            problem = f"is not the file of which {index} speaks" + (": a run was stopped while it wrote" if whole else "")
            raise DamagedError(folder / name, problem, expected=f"SHA-256 {digest}", got=got, remedy=remedy)


def path_sha256(path: Path, files: Iterable[Path] | None = None) -> str:
    """The SHA-256 of a file; of a folder over the names and digests of its files, all of them or `files`."""
    if not path.is_dir():
        return file_sha256(path)
    sha = hashlib.sha256()
    for file in sorted(path.rglob("*") if files is None else files):
        if file.is_file():
            sha.update(f"{file.relative_to(path).as_posix()}:{file_sha256(file)}\n".encode())
    return sha.hexdigest()


def path_bytes(path: Path) -> int:
    """The size of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
