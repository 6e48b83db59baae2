"""What is wrong with the data of a study file, in words of YAML: what to write, what stands there, and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from repalign.errors import RepalignError, closest, did_you_mean
from repalign.sources.source import SCHEMES

Location = tuple[str | int, ...]

# Fields of former versions, and what to do about them.
FORMER = {"bos": "write `sink` in its place: skip or keep the first token of a text, whether the tokenizer adds one or not"}
# Kinds of mistakes in a value that is of the right form: what is wrong, and what was expected.
BOUNDS = {
    "greater_than": ("out of range", "a number greater than {gt:g}"),
    "greater_than_equal": ("out of range", "a number greater than or equal to {ge:g}"),
    "less_than": ("out of range", "a number less than {lt:g}"),
    "less_than_equal": ("out of range", "a number less than or equal to {le:g}"),
    "finite_number": ("out of range", "a finite number"),
    "too_short": ("too few items", "at least {min_length}"), "too_long": ("too many items", "{max_length} at most"),
    "string_too_short": ("an empty text", "at least {min_length} character"),
}  # fmt: skip
WORDS: dict[Any, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", Any: "a value"}


def dotted(location: Sequence[str | int]) -> str:
    """A location as it is written: models.x[0].spec."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).removeprefix(".") or "the file"


# --- mistakes ------------------------------------------------------------------------------------


def mistakes_in(model: type[BaseModel], data: Any, error: ValidationError) -> Iterator[tuple[Location, list[RepalignError]]]:
    """Every value that is wrong, with its location: one mistake each, and none where another tells it.

    Where a field may be of several forms the library tells what is wrong with each of them: what fits the form of the value
    counts, and that the value has another form where it fits none.
    """
    found: dict[Location, list[Any]] = {}
    for one in error.errors(include_url=False):
        found.setdefault(_in_file(data, one["loc"], one["type"] == "missing"), []).append(one)
    extra = {at: some for at, some in found.items() if some[0]["type"] == "extra_forbidden"}
    for location, some in found.items():
        other = [one for one in some if not one["type"].endswith("_type")]
        if not other and any(deeper[: len(location)] == location for deeper in found if deeper != location):
            continue
        one = (other or some)[0]
        meant = [at for at in extra if at[:-1] == location[:-1] and location[-1] in closest(str(at[-1]), _fields(model, at[:-1]))]
        yield location, [] if one["type"] == "missing" and meant else [_told(model, location, one, _value(data, location))]


def booleans_in(model: type[BaseModel], data: Any, location: Location = ()) -> Iterator[tuple[Location, list[RepalignError]]]:
    """Every true or false where a number is wanted: pydantic reads `draws: yes` as 1. One mistake each."""
    if isinstance(data, bool):
        forms = [form for one in annotations_at(model, location) for form in forms_of(one)]
        if {int, float} & {*forms} and not {bool, Any} & {*forms}:
            yield location, [_told(model, location, {"type": "number_type", "loc": location}, data)]
    for part, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from booleans_in(model, value, (*location, part))


def _in_file(data: Any, location: Sequence[str | int], is_missing: bool) -> Location:
    """The parts of pydantic's location that are fields and items of the file, and not names of alternatives."""
    out: list[str | int] = []
    for i, part in enumerate(location):
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]  # type: ignore[index]
            out.append(part)
        elif is_missing and i == len(location) - 1 and isinstance(part, str):
            out.append(part)
    return tuple(out)


def _value(data: Any, location: Location) -> Any:
    for part in location:
        data = data.get(part) if isinstance(data, dict) else data[part]  # type: ignore[index]
    return data


def _told(model: type[BaseModel], location: Location, error: Any, value: Any) -> RepalignError:
    kind, forms = error["type"], [f for a in annotations_at(model, location) for f in forms_of(a)]
    expected = " or ".join(dict.fromkeys(filter(None, map(_form, forms))))
    if kind == "extra_forbidden":
        name, known = str(location[-1]), _fields(model, location[:-1])
        remedy = _other_field(name, value, known) or _elsewhere(model, location) or did_you_mean(name, known)
        return RepalignError(f"there is no field {name!r}", got=name, remedy=remedy)
    name = location[-1] if location else ""
    if kind == "missing" and isinstance(name, str):
        return RepalignError(f"the field {name!r} is missing", expected=expected, remedy=f"add a line `{name}: ...`")
    if kind in ("value_error", "assertion_error"):  # our own words
        got = None if isinstance(value, (dict, list)) else repr(value)
        return RepalignError(str(error["ctx"]["error"]), got=got)
    if kind in BOUNDS:
        problem, bound = BOUNDS[kind]
        got = error["ctx"]["actual_length"] if "actual_length" in error.get("ctx", ()) else repr(value)
        bound = bound.format(**error.get("ctx", {}))
        return RepalignError(problem, expected=bound, got=got, remedy=f"write {bound}")
    if kind == "invalid_key" or str(error["loc"][-1]) == "[key]":
        return RepalignError("the name of a field is a text", got=said(name), remedy=f'put it in quotation marks: "{name}"')
    if kind == "literal_error" and isinstance(value, str):
        known = [str(a) for f in forms if get_origin(f) is Literal for a in get_args(f)]
        return RepalignError(f"unknown value {value!r}", expected=expected, got=repr(value), remedy=did_you_mean(value, known))
    remedy = _remedy(value, forms)
    if value is None and (is_required(model, location) or isinstance(name, int)):
        remedy = f"write a value behind the {'dash, or take the line out' if isinstance(name, int) else 'colon'}"
    return RepalignError("the wrong kind of value", expected=expected, got=said(value), remedy=remedy)


def _elsewhere(model: type[BaseModel], location: Location) -> str | None:
    """What to do about a field that belongs into another block, of the study or around the one where it stands."""
    name, own = location[-1], location[:-1]
    if own and name in model.model_fields:
        return f"it is a field of the study itself: write `{name}:` without blanks before it"
    blocks = [field for field in model.model_fields if not own and name in _fields(model, (field,))]
    return f"it is a field of `{blocks[0]}`: indent it there" if blocks else None


def _other_field(name: str, value: Any, known: Sequence[str]) -> str | None:
    """What to do about a field that is not among those that are `known`; None where it is not plain what it is."""
    if name in FORMER:
        return FORMER[name]
    if "spec" in known and name in SCHEMES:
        return f'write "{name}:{value}", in quotation marks and without a blank behind the colon'
    if "spec" in known and ":" in name:
        return f'a model with options is {{spec: "{name}", pooling: mean}}, without options "{name}" alone'
    return None


# --- what a field takes --------------------------------------------------------------------------


def _form(form: Any) -> str:
    """One form of a value in words of YAML; "" for nothing."""
    origin, inner = get_origin(form), get_args(form)
    if form is NoneType:
        return ""
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(map(repr, inner[:-1])), repr(inner[-1])]))
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}: [a, b]"
    if origin in (list, tuple):
        item = next(iter(forms_of(inner[0])), str)
        return f"a list: {'[1, 2]' if item in (int, float) else '[{name: value}]' if get_origin(item) is dict else '[a, b]'}"
    if origin is dict:
        return "a mapping: {name: value}"
    if isinstance(form, type) and issubclass(form, BaseModel):
        needed = [f"{n}: ..." for n, f in form.model_fields.items() if f.is_required()]
        return f"a mapping: {{{', '.join(needed) or 'field: value'}}}"
    return WORDS.get(form, getattr(form, "__name__", str(form)))


def said(value: Any) -> str:
    """What stands there, in words of YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{str(value).lower()}, as YAML reads {'true, yes and on' if value else 'false, no and off'}"
    if isinstance(value, (list, dict)):
        what = "a list" if isinstance(value, list) else "a mapping"
        return what if value else f"{what} of nothing"
    if isinstance(value, str):
        return f"the text {value!r}"
    return f"the number {value}" if isinstance(value, (int, float)) else f"a {type(value).__name__}, {value}"


def _remedy(value: Any, forms: Sequence[Any]) -> str:
    """What to write in the place of a value of another form."""
    bare = {f if isinstance(f, type) and get_origin(f) is None else get_origin(f) for f in forms}
    if value is None:
        return "write a value behind the colon, or leave the field out"
    if isinstance(value, (list, dict)):
        if list in bare and value:
            item = next(f for one in forms if get_origin(one) is list for f in forms_of(get_args(one)[0]))
            how = f": put that before every name, as in `- {next(iter(value))}: ...`"
            return f"write an item a line, each behind `- `{how if get_origin(item) is dict else ', without a colon'}"
        alone = isinstance(value, list) and len(value) == 1 and not isinstance(value[0], (list, dict))
        return f"write one value, without brackets{f': {value[0]}' if alone else ''}"
    if str in bare:
        said = "yes" if value is True else "no" if value is False else value
        return f'put it in quotation marks: "{said}"'
    if bare & {list, tuple}:
        return f"write it as a list: [{json.dumps(value, default=str, ensure_ascii=False)}]"
    if bare & {dict} or any(isinstance(f, type) and issubclass(f, BaseModel) for f in bare if f):
        return "write a block of `name: value` lines below the field, or {name: value} behind it"
    if bool in bare:
        return "write true or false"
    if isinstance(value, str):
        return "write a number, not a text: 10 without quotation marks"
    return "write a whole number" if int in bare else "write a number"


# --- the schema ----------------------------------------------------------------------------------


def annotations_at(model: type[BaseModel], location: Location) -> list[Any]:
    """What may stand at a location, one annotation for each form of the blocks around it."""
    found: list[Any] = [model]
    for part in location:
        found = [inner for one in found for form in forms_of(one) for inner in _inside(form, part)]
    return found


def forms_of(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without what bounds them."""
    if isinstance(annotation, FieldInfo):
        return forms_of(annotation.annotation)
    if get_origin(annotation) is Annotated:
        return forms_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [form for one in get_args(annotation) for form in forms_of(one)]
    return [annotation]


def _inside(form: Any, part: str | int) -> list[Any]:
    """What may stand in a form under a name or an index."""
    origin, inner = get_origin(form), get_args(form)
    if isinstance(form, type) and issubclass(form, BaseModel):
        return [form.model_fields[str(part)]] if part in form.model_fields else []
    if origin is dict:
        return [inner[1]]
    if origin in (list, tuple) and isinstance(part, int):
        return [inner[min(part, len(inner) - 1)]]
    return []


def _fields(model: type[BaseModel], location: Location) -> list[str]:
    """The fields that the block at a location of the file may have."""
    blocks = [f for a in annotations_at(model, location) for f in forms_of(a) if isinstance(f, type) and issubclass(f, BaseModel)]
    return list(dict.fromkeys(name for block in blocks for name in block.model_fields))


def is_required(model: type[BaseModel], location: Location) -> bool:
    """Whether there has to be a value at a location of the file."""
    return any(isinstance(one, FieldInfo) and one.is_required() for one in annotations_at(model, location))


def blank_of(model: type[BaseModel], location: Location) -> Any:
    """A value that may stand at a location and means nothing; None if none is known."""
    for one in annotations_at(model, location):
        kind: Any = Annotated[one.annotation, *one.metadata] if isinstance(one, FieldInfo) and one.metadata else one
        kind = kind.annotation if isinstance(kind, FieldInfo) else kind
        for blank in ("blank", [], ["blank"], {}):
            try:
                TypeAdapter(kind).validate_python(blank)
            except ValidationError:
                continue
            return blank
    return None
