"""A study file as data, with the line of every field; errors that point at the line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from repalign.errors import RepalignError, did_you_mean

Location = tuple[str | int, ...]

MOST_BYTES = 5_000_000
MOST = 100_000  # fields and values of a file, those that an anchor repeats counted each time
DEEPEST = 32  # levels; a study has about six
_ALTERNATIVE = re.compile(r"^(str|list)$|Config$|\[")
# Fields of former versions, and what to do about them.
FORMER = {"bos": "write `sink` in its place: skip or keep the first token of a text, whether the tokenizer adds one or not"}


def read(path: Path) -> tuple[dict[str, Any], Where]:
    """The data of a study file, and where in it each field stands. Refuses a field that stands twice, which YAML would not.

    The file is bounded before anything is made of it: anchors can multiply a page of text to more than fits a memory.
    """
    try:
        size = path.stat().st_size
        text = path.read_text("utf-8") if size <= MOST_BYTES else ""
    except (OSError, UnicodeDecodeError) as error:
        remedy = "check the path; a study is a YAML file"
        raise RepalignError(f"{path}: the study cannot be read", got=str(error), remedy=remedy) from error
    if size > MOST_BYTES:
        remedy = "keep long lists (ids, captions) in files of their own"
        raise RepalignError(f"{path}: a study file of {size:,} bytes", expected=f"{MOST_BYTES:,} at most", remedy=remedy)
    lines: dict[Location, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), lines, path)
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise RepalignError(
            f"{path.name}{line}: this is not YAML", got=str(getattr(error, "problem", None) or error).splitlines()[0],
            remedy="look at indentation, colons and quotes; a spec or a measure is safest in quotation marks",
        ) from error  # fmt: skip
    except RecursionError as error:
        raise _too_deep(path, 1) from error
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:  # of a value with a tag or a form
        raise RepalignError(
            f"{path.name}: a value that YAML cannot read",
            got=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no more is said'}",
            remedy="put dates, large numbers and the like in quotation marks, and leave tags (!!...) out",
        ) from error
    if not isinstance(data, dict) or node is None:
        raise RepalignError(f"{path.name}: a study is a mapping of fields", got=type(data).__name__)
    return data, Where(path, lines)


@dataclass(frozen=True)
class Where:
    """Tells errors with the line of the field they are about; `variant` names the variant that has the field so, if any."""

    path: Path
    lines: Mapping[Location, int]
    variant: str = ""

    def head(self, location: Location) -> str:
        """The place of a field in words; its line, or that of the closest field around it."""
        around = (location[:end] for end in range(len(location), -1, -1))
        line = next((self.lines[place] for place in around if place in self.lines), 1)
        of = f" (variant {self.variant})" if self.variant else ""
        return f"{self.path.name}, line {line}, {dotted(location)}{of}"

    @contextmanager
    def at(self, *location: str | int) -> Iterator[None]:
        try:
            yield
        except RepalignError as error:
            raise RepalignError(f"{self.head(location)}: {error}") from error

    def validate(self, model: type[BaseModel], data: dict[str, Any]) -> Any:
        """The data as a model of its fields; of what is wrong the first is told, with its line, an unknown field before others."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            first = min(error.errors(), key=lambda e: (e["type"] != "extra_forbidden", -len(e["loc"])))
            # A part of pydantic's location that names the alternative of a union is no field.
            location = tuple(p for p in first["loc"] if isinstance(p, int) or not _ALTERNATIVE.search(p))
            if first["type"] == "extra_forbidden":
                name = got = str(location[-1])
                message = f"there is no field {name!r}"
                remedy = FORMER.get(name) or did_you_mean(name, _fields(model, location[:-1]))
            else:
                message, remedy = first["msg"].removeprefix("Value error, "), None
                message = message[0].lower() + message[1:]
                got = None if isinstance(first["input"], (dict, list)) else repr(first["input"])
            raise RepalignError(f"{self.head(location)}: {message}", got=got, remedy=remedy) from error


def _fields(model: type[BaseModel], location: Location) -> list[str]:
    """The fields that the block at a location of the file may have."""
    blocks = [model]
    for part in location:
        if isinstance(part, str):
            annotations = [b.model_fields[part].annotation for b in blocks if part in b.model_fields]
            blocks = [b for a in annotations for b in _blocks_in(a)] or blocks
    if location and isinstance(location[-1], int):  # an item of a list: not the mapping that may stand in its place
        blocks = [b for b in blocks if "spec" in b.model_fields] or blocks
    return list(dict.fromkeys(name for b in blocks for name in b.model_fields))


def _blocks_in(annotation: Any) -> list[type[BaseModel]]:
    """The blocks that a field may hold, by itself, in a list, or as one of several."""
    if get_origin(annotation) in (Union, UnionType, list, dict, tuple):
        return [b for a in get_args(annotation) for b in _blocks_in(a)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def dotted(location: Sequence[str | int]) -> str:
    """A location as it is written: models.x[0].spec."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).removeprefix(".") or "the file"


def _too_deep(path: Path, line: int) -> RepalignError:
    return RepalignError(
        f"{path.name}, line {line}: the file is nested too deeply", expected=f"{DEEPEST} levels at most",
        remedy="see that no anchor (&name) holds an alias of itself (*name)",
    )  # fmt: skip


def _walk(node: yaml.Node, location: Location, lines: dict[Location, int], path: Path) -> None:
    line = node.start_mark.line + 1
    lines.setdefault(location, line)
    at = f"{path.name}, line {line}"
    if len(location) > DEEPEST:
        raise _too_deep(path, line)
    if len(lines) > MOST:
        what = f"more than {MOST:,} fields and values, those that an anchor repeats counted each time"
        remedy = "keep long lists in files of their own, and see that anchors (&name) do not multiply"
        raise RepalignError(f"{at}: {what}", remedy=remedy)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            at, inner = f"{path.name}, line {key.start_mark.line + 1}", (*location, key.value)
            if not isinstance(key, yaml.ScalarNode):
                got = "a list or a mapping in the place of a name"
                raise RepalignError(f"{at}: the name of a field is no text", expected="name: value", got=got)
            if key.value == "null":
                key.tag = "tag:yaml.org,2002:str"  # `null:` is a field of a study, not YAML's nothing
            _walk(key, location, lines, path)
            if inner in lines:
                first = f"first on line {lines[inner]}"
                raise RepalignError(f"{at}: {dotted(inner)} stands twice", got=first, remedy="remove one of them")
            lines[inner] = key.start_mark.line + 1
            _walk(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(value, (*location, i), lines, path)
    # No name, path or caption holds NUL or half a surrogate pair.
    elif odd := next((c for c in node.value if c == "\0" or "\ud800" <= c <= "\udfff"), None):
        got = f"{odd!r} in {node.value[:60]!r}"
        raise RepalignError(f"{at}, {dotted(location)}: a character that no text has", got=got, remedy="remove it")
