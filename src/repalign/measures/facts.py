"""What tables, figures and reports say of a measure: plain data that stays with the results."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from repalign.errors import RepalignError


@dataclass(frozen=True)
class MeasureFacts:
    """What a reader of results needs to know of a measure, without the measure itself.

    name, parameters : its class, and the parameters by name.
    label : its name for people, with the parameters that tell it apart.
    family, meaning : its family, and the first line of its documentation; "" for a measure that is not known here.
    closer_is_higher : False for a distance.

    `Measure.facts` gives it; `facts_of` reads it from the text of a measure in old results.
    """

    name: str
    parameters: Mapping[str, Any]
    label: str
    family: str = ""
    meaning: str = ""
    closer_is_higher: bool = True

    @classmethod
    def of_class(cls, measure: type, name: str, parameters: Mapping[str, Any], label: str | None = None) -> Self:
        """The facts of a measure of this class with these parameters."""
        meaning = (measure.__doc__ or "").strip().partition("\n")[0]
        if meaning.startswith(f"{name}("):  # the signature that a dataclass without a docstring gets
            meaning = ""
        facts: Any = measure
        return cls(name, dict(parameters), label or label_of(name, parameters), facts.family, meaning, facts.closer_is_higher)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, also through JSON, which has no tuples."""
        parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in data["parameters"].items()}
        return cls(**{**data, "parameters": parameters})


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the literals of ``Name`` or ``Name(key=literal, ...)``; nothing is evaluated."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            given = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            if "None" not in given:  # no **mapping
                return node.func.id, given
    except (SyntaxError, ValueError):
        pass
    raise RepalignError(
        f"not a measure: {text!r}",
        expected="a name, or a name with named parameters, such as MutualKNN(k=10)",
        got=repr(text),
        remedy="name every parameter and give it a number, a quoted word, True, False or None",
    )


def label_of(name: str, parameters: Mapping[str, Any]) -> str:
    """A measure's name for people, with the parameters that tell it apart.

    >>> label_of("MutualKNN", {"k": 10, "similarity": "cosine", "center": False})
    'Mutual k-NN (k = 10, cosine)'
    >>> label_of("CKA", {})
    'CKA'
    """
    apart = r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
    words = re.sub(apart, " ", re.sub(r"KNN$", " k-NN", name)).split()
    name = " ".join([*words[:1], *(w if w.upper() == w or w == "k-NN" else w.lower() for w in words[1:])])
    shown = []
    for key, value in parameters.items():
        if isinstance(value, str):
            shown.append(value)
        elif value is True:
            shown.append(key)
        elif isinstance(value, (int, float)) and value:
            shown.append(f"{key} = {value}")
    return f"{name} ({', '.join(shown)})" if shown else name
