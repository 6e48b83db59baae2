"""How functions become commands, each when it is first asked for: to start, a list of names and a line about each are enough."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import os
import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, ClassVar, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from repalign.text import told_of


@contextmanager
def importing() -> Iterator[None]:
    """Around imports that bring torch: what they make stays until the end, so Python's collector of garbage leaves it alone.

    Else it goes through all of it again and again, as it is made and at the end.
    """
    if "torch" in sys.modules:  # nothing large comes; and what another has made may be garbage
        yield
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large arrays in large pages, where Linux leaves that to programs
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@dataclass(frozen=True)
class Row:
    """A command before it is made.

    function : What it runs, or what gives that where `is_late`. about : For lists. panel : Of the list, under which it stands.
    """

    name: str
    function: Callable[..., Any]
    about: str
    example: str
    panel: str | None = None
    is_late: bool = False

    @classmethod
    def of(cls, function: Callable[..., None], example: str, panel: str | None = None) -> Row:
        return cls(function.__name__.strip("_").replace("_", "-"), function, told_of(function)[0], example, panel)

    def listed(self) -> Any:
        """The command without options, as lists show it."""
        return TyperCommand(self.name, help=self.about, rich_help_panel=self.panel)

    def made(self) -> Any:
        """The command.

        What must be given is an argument, all else an option; a class of options has one for each of its fields. The help of
        each stands in the docstring of the command, or of the class, unless several share it (`_options.py`). Typer reads it
        off a signature, so a command with such a class is wrapped in a function that has all of them in its own.
        """
        command = self.function() if self.is_late else self.function
        signature = inspect.signature(command, eval_str=True)
        classes: dict[str, Any] = {p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)}
        options: dict[Any, list[inspect.Parameter]] = {}
        for source in (*classes.values(), command):
            text, helps = told_of(source)
            options[source] = []
            for p in inspect.signature(source, eval_str=True).parameters.values():
                if p.name in classes:
                    options[source] += options[p.annotation]
                    continue
                kind, *given = get_args(p.annotation) if get_origin(p.annotation) is Annotated else (p.annotation,)
                flag = [f"--{p.name}".replace("_", "-")] if kind is bool else []  # without its opposite
                (info,) = given or [typer.Argument() if p.default is p.empty else typer.Option(*flag)]
                info.help = info.help or helps[p.name]
                options[source].append(p.replace(kind=p.KEYWORD_ONLY, annotation=Annotated[kind, info]))

        @functools.wraps(command)
        def called(**given: Any) -> None:
            for name, cls in classes.items():
                given[name] = cls(**{f.name: given.pop(f.name) for f in fields(cls)})
            command(**given)

        shown: Any = called if classes else command
        shown.__signature__ = signature.replace(parameters=options[command])
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        alone.command(self.name, help=text, epilog=f"Example: {self.example}", rich_help_panel=self.panel)(shown)
        return get_command(alone)


class Made(UserDict[str, Any]):
    """Commands by name; each is made of its row when it is taken."""

    def __getitem__(self, name: str) -> Any:
        if isinstance(self.data[name], Row):
            self.data[name] = self.data[name].made()
        return self.data[name]


class Group(TyperGroup):
    """A group that has the commands of `rows`, and those that typer gives it after them."""

    rows: ClassVar[tuple[Row, ...]]

    def __init__(self, *, commands: Mapping[str, Any], **given: Any) -> None:
        super().__init__(**given)
        self.commands: Any = Made({**{row.name: row for row in self.rows}, **commands})

    def format_help(self, ctx: Any, formatter: Any) -> None:
        listed = copy.copy(self)
        listed.commands = {name: one.listed() if isinstance(one, Row) else one for name, one in self.commands.data.items()}
        super(Group, listed).format_help(ctx, formatter)


def group(rows: tuple[Row, ...], **given: Any) -> typer.Typer:
    """A command line of these rows."""
    return typer.Typer(cls=type("Group", (Group,), {"rows": rows}), no_args_is_help=True, rich_markup_mode="rich", **given)
