"""A study file as data, with the place of every field; mistakes are kept with their place, and told all at once."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from repalign.errors import Mistakes, RepalignError
from repalign.study.yaml_words import Location, blank_of, booleans_in, dotted, is_required, mistakes_in, said

MOST_BYTES = 5_000_000
MOST = 100_000  # fields and values of a file, those that an anchor repeats counted each time
DEEPEST = 32  # levels; a study has about six
# What a reader of YAML says of a file that is none, and what to do about it; the first that fits.
NOT_YAML = {
    r"'\t'": "indent with blanks, not with tabs",
    "mapping values are not allowed": "put a value with a colon in it in quotation marks, as in spec: \"hf:org/name\"; or indent "
    "this line as the fields beside it",
    "could not find expected ':'": "write `field: value`, with a blank behind the colon, and the fields of a block indented alike",
    "expected ',' or": "close [ with ], { with } and quotation marks with their like, and put commas between items",
    "expected the node content": "close [ with ] and { with }",
    "expected <block end>": "indent the fields, or the items, of one block alike, and close quotation marks",
    "unexpected end of stream": "close the quotation marks",
    "cannot start any token": "put the value in quotation marks",
    "alias": "put a value that begins with * in quotation marks",
    "a tag": "put a value that begins with ! in quotation marks, and leave tags (!!...) out",
    "single document": "keep one study in one file, without a line of ---",
}


# --- places, and what is wrong there -------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """A place of a file: what stands there, its line and its column, from 1."""

    path: Path
    line: int
    column: int
    location: Location

    def __str__(self) -> str:
        """As editors and terminals open it, from the folder that we are in."""
        path = os.path.relpath(self.path)
        return f"{self.path if path.startswith('..') else path}:{self.line}:{self.column}"


Found = tuple[Location, Mark, RepalignError | None]  # a mistake: which field of which file, its place, and what is wrong


@dataclass(frozen=True)
class Where:
    """The places of all fields of a study, and what has been found to be wrong, each with its place.

    What a variant says of a field is found under the field's own name (`variant_of`); all variants keep one list of mistakes.
    """

    path: Path
    marks: dict[Location, Mark]
    variant: str = ""
    found: list[Found] = field(default_factory=list)

    def mark(self, location: Location) -> tuple[Mark, Location]:
        """The place of a field, or of the closest one around it; and the field's location in the file."""
        around = (location[:end] for end in range(len(location), -1, -1))
        near = next((place for place in around if place in self.marks), None)
        mark = Mark(self.path, 1, 1, ()) if near is None else self.marks[near]
        return mark, (*mark.location, *location[len(near or ()) :])

    def head(self, location: Location) -> str:
        """The place of a field in words; of what an item of a list does not say, the item."""
        mark, full = self.mark(location)
        of = f" (variant {self.variant})" if self.variant and full[:1] in (("variants",), ("sweep",)) else ""
        near = location[: len(location) - len(full) + len(mark.location)]
        shown = near if near and isinstance(near[-1], int) else location
        return f"{mark.path.name}, line {mark.line}, {dotted(shown)}{of}"

    @contextmanager
    def at(self, *location: str | int) -> Iterator[None]:
        """Keep what is wrong with a field until `refuse` tells it.

        What is found after a mistake in the same field, or in one around it, may come of that: it is not kept.
        """
        try:
            yield
        except RepalignError as error:
            self.keep(location, *error.errors)

    def keep(self, location: Location, *errors: RepalignError) -> None:
        """Keep errors about a field, or about fields in it that they name; without any, that it is wrong and told of elsewhere."""
        before = [one for one, *_ in self.found]
        if not errors:
            mark, full = self.mark(location)
            self.found.append(((str(mark.path), *full), mark, None))
        for error in errors:
            place = location if error.field is None else (*location, error.field)
            mark, full = self.mark(place)
            full = (str(mark.path), *full)
            if not any(full[: len(one)] == one for one in before):
                told = f"{self.head(place)}: {error}"
                told += "" if "\n  do: " in told else "\n  do: change it to what is expected, or leave it out"
                self.found.append((full, mark, _placed(told, mark)))

    def is_right(self, *location: str | int) -> bool:
        """Whether nothing is wrong with a field, in it or around it."""
        if not self.found:
            return True
        mark, full = self.mark(location)
        full = (str(mark.path), *full)
        return not any(full[: len(one)] == one[: len(full)] for one, *_ in self.found)

    def refuse(self) -> None:
        """Raise all that was kept, if anything was, in the order of the file, and forget it."""
        mistakes = Mistakes()
        found = sorted(self.found, key=lambda one: (one[1].path != self.path, str(one[1].path), one[1].line, one[1].column))
        mistakes.errors += [error for *_, error in found if error is not None]
        self.found.clear()
        mistakes.refuse(self.path.name)

    def variant_of(self, name: str, said: dict[Location, Location]) -> Where:
        """The places of a variant, which says some fields elsewhere: where each of these is."""
        marks = dict(self.marks)
        for to, origin in said.items():
            marks = {at: mark for at, mark in marks.items() if at[: len(to)] != to}
            came = {(*to, *at[len(origin) :]): mark for at, mark in self.marks.items() if at[: len(origin)] == origin}
            marks |= came
        return replace(self, marks=marks, variant=name)

    def validate(self, model: type[BaseModel], data: dict[str, Any]) -> Any:
        """The data as a model of its fields, without what is wrong: see `mended`."""
        return model.model_validate(self.mended(model, data))

    def mended(self, model: type[BaseModel], data: dict[str, Any]) -> dict[str, Any]:
        """The data as the model takes it; what is wrong is kept, and left out or made blank, so that all else can be looked at.

        RepalignError where nothing stands for what is wrong.
        """
        tried: set[Location] = set()
        for location, mistakes in list(booleans_in(model, data)):
            self.keep(location, *mistakes)
            data = _without(model, data, location, tried)
            if data is None:
                self.refuse()
        while True:
            try:
                model.model_validate(data)
                return data
            except ValidationError as error:
                for location, mistakes in mistakes_in(model, data, error):
                    if not any(location == one[: len(location)] for one in tried):  # else it comes of what was left out
                        self.keep(location, *mistakes)
                    data = _without(model, data, location, tried)
                    if not location or data is None:
                        self.refuse()
                        raise


def _placed(told: object, mark: Mark) -> RepalignError:
    return RepalignError(f"{told}\n  at: {mark}")


def _without(model: type[BaseModel], data: Any, location: Location, tried: set[Location]) -> Any:
    """The data without the value at a location, or with a blank one where there has to be some; None if nothing does."""
    while location:
        *around, last = location
        data = copy.deepcopy(data)
        holder: Any = data
        try:
            for part in around:
                holder = holder[part]
        except (KeyError, IndexError):  # it went with another
            return data
        again, blank = location in tried, blank_of(model, location)
        tried.add(location)
        if isinstance(holder, dict) and not is_required(model, location):
            holder.pop(last, None)
            return data
        if blank is not None and not again:
            holder[last] = blank
            return data
        location = tuple(around)
    return None


# --- reading a file ------------------------------------------------------------------------------


def read(path: Path, found: list[Found] | None = None) -> tuple[dict[str, Any], Where]:
    """The data of a study file, and where in it each field stands. Of a field that stands twice, which is wrong, the first.

    The file is bounded before anything is made of it: anchors can multiply a page of text to more than fits a memory.
    `found` is the list of mistakes, if there is one already.
    """
    try:
        size = path.stat().st_size
        text = path.read_text("utf-8") if size <= MOST_BYTES else ""
    except (OSError, UnicodeDecodeError) as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        remedy = "check the path; a study is a YAML file"
        raise RepalignError(f"{path}: the study cannot be read", got=got, remedy=remedy) from error
    if size > MOST_BYTES:
        remedy = "keep long lists (ids, captions) in files of their own"
        raise RepalignError(f"{path}: a study file of {size:,} bytes", expected=f"{MOST_BYTES:,} at most", remedy=remedy)
    where = Where(path, {}, found=[] if found is None else found)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), where)
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from error
    except RecursionError as error:
        raise _too_deep(path, 1) from error
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:  # of a value with a tag or a form
        raise RepalignError(
            f"{path.name}: a value that YAML cannot read",
            got=f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no more is said'}",
            remedy="put dates, large numbers and the like in quotation marks, and leave tags (!!...) out",
        ) from error
    if not isinstance(data, dict) or node is None:
        remedy = "write `field: value` lines, each with a blank behind the colon, such as name: my-study"
        raise RepalignError(f"{path.name}, line 1: a study is a mapping of fields", got=said(data), remedy=remedy)
    return data, where


def _not_yaml(path: Path, error: yaml.YAMLError) -> RepalignError:
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or error).splitlines()[0]
    context, begun = getattr(error, "context", None), getattr(error, "context_mark", None)
    if begun is not None and mark is not None and begun.line < mark.line:
        problem += f" ({context}, from line {begun.line + 1})"
    otherwise = "look at indentation, colons and quotes; a spec or a measure is safest in quotation marks"
    remedy = next((do for sign, do in NOT_YAML.items() if sign in f"{problem} {context}"), otherwise)
    if mark is None:
        return RepalignError(f"{path.name}: this is not YAML", got=problem, remedy=remedy)
    told = RepalignError(f"{path.name}, line {mark.line + 1}: this is not YAML", got=problem, remedy=remedy)
    return _placed(told, Mark(path, mark.line + 1, mark.column + 1, ()))


def _too_deep(path: Path, line: int) -> RepalignError:
    return RepalignError(
        f"{path.name}, line {line}: the file is nested too deeply", expected=f"{DEEPEST} levels at most",
        remedy="see that no anchor (&name) holds an alias of itself (*name)",
    )  # fmt: skip


def _walk(node: yaml.Node, location: Location, where: Where) -> None:
    """Note the place of every field and value, and refuse what no study has."""
    marks, path, start = where.marks, where.path, node.start_mark
    marks.setdefault(location, Mark(path, start.line + 1, start.column + 1, location))
    at = f"{path.name}, line {start.line + 1}"
    if len(location) > DEEPEST:
        raise _too_deep(path, start.line + 1)
    if len(marks) > MOST:
        what = f"more than {MOST:,} fields and values, those that an anchor repeats counted each time"
        remedy = "keep long lists in files of their own, and see that anchors (&name) do not multiply"
        raise RepalignError(f"{at}: {what}", remedy=remedy)
    if isinstance(node, yaml.MappingNode):
        for pair in list(node.value):
            key, value = pair
            inner = (*location, key.value)
            mark = Mark(path, key.start_mark.line + 1, key.start_mark.column + 1, inner)
            at = f"{path.name}, line {mark.line}"
            if not isinstance(key, yaml.ScalarNode):
                got = "a list or a mapping in the place of a name"
                raise RepalignError(f"{at}: the name of a field is no text", expected="name: value", got=got)
            if key.value == "null":
                key.tag = "tag:yaml.org,2002:str"  # `null:` is a field of a study, not YAML's nothing
            _walk(key, location, where)
            if inner in marks:
                node.value.remove(pair)
                twice = RepalignError(
                    f"{at}: {dotted(inner)} stands twice", got=f"first on line {marks[inner].line}", remedy="remove one of them"
                )
                where.found.append(((str(path), *inner, "twice"), mark, _placed(twice, mark)))
                continue
            marks[inner] = mark
            _walk(value, inner, where)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            _walk(value, (*location, i), where)
    # No name, path or caption holds NUL or half a surrogate pair.
    elif odd := next((c for c in node.value if c == "\0" or "\ud800" <= c <= "\udfff"), None):
        got = f"{odd!r} in {node.value[:60]!r}"
        raise RepalignError(f"{at}, {dotted(location)}: a character that no text has", got=got, remedy="remove it")
