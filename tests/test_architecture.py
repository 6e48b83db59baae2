"""The house rules, read off the source: imports go one way, and what is never done is done nowhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import repalign

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src/repalign"
FILES = sorted(SOURCE.rglob("*.py"))


def order() -> list[str]:
    """The order of the modules as docs/architecture.md states it."""
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    block = next(b for b in re.findall(r"```text\n(.*?)```", text, flags=re.S) if b.startswith("errors"))
    return [name.strip() for name in re.split(r"[<,]", block.replace("\n", " "))]


@cache
def tree_of(path: Path) -> ast.Module:
    """A file, parsed once for all rules."""
    return ast.parse(path.read_text("utf-8"))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All that is in a file."""
    return tuple(ast.walk(tree_of(path)))


def module(path: Path) -> str:
    """The part of the house that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> set[str]:
    """The parts of the house that a file imports, wherever in the file."""
    out = set()
    for node in nodes_of(path):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("repalign"):
            parts = node.module.split(".")
            # A name that the front door gives is of the room that it comes from.
            out |= {parts[1]} if len(parts) > 1 else {repalign._PUBLIC.get(alias.name, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            out |= {a.name.split(".")[1] for a in node.names if a.name.startswith("repalign.")}
    return out


def test_the_stated_order_names_every_module():
    there = {module(p) for p in FILES} - {"__init__", "__main__"}
    assert set(order()) == there


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path):
    part = module(path)
    if part in ("__init__", "__main__"):
        return
    place = order().index(part)
    later = {name for name in imports(path) if name in order() and order().index(name) > place}
    assert not later, f"{part} imports {later}, which come after it"


def test_rooms_import_what_the_picture_says():
    page, rooms = (ROOT / "docs/architecture.md").read_text("utf-8"), order()
    picture = next(b for b in re.findall(r"```text\n(.*?)```", page, flags=re.S) if b.startswith("errors  "))
    assert [line.split()[0] for line in picture.splitlines()] == rooms
    for line in picture.splitlines():
        room, _, rest = re.split(r"\s{2,}", f"{line}  ", maxsplit=2)
        named = {name for name in rooms if re.search(rf"\b{name}\b", rest)} | {"errors", "text", room}
        if between := re.search(r"(\w+) to (\w+)", rest):
            named |= set(rooms[rooms.index(between[1]) : rooms.index(between[2]) + 1])
        used = {name for path in FILES if module(path) == room for name in imports(path) if name in rooms}
        assert used <= named, f"{room} imports {used - named}"


@pytest.mark.parametrize("path", sorted((SOURCE / "measures").rglob("*.py")), ids=lambda p: p.name)
def test_measures_stand_alone(path: Path):
    assert imports(path) <= {"measures", "errors", "layers"}


PRH = sorted((SOURCE / "prh").rglob("*.py"))


def test_nothing_imports_the_experiments_of_the_paper():
    """They are found by their entry points, like anyone's."""
    assert not [path for path in FILES if path not in PRH and "prh" in imports(path)]


def test_the_experiments_of_the_paper_use_public_names_only():
    for path in PRH:
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("repalign"):
                names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
                assert not [name for name in names if name.startswith("_")], f"{path.name}: {ast.unparse(node)}"


def test_no_room_imports_private_names_of_another():
    for path in FILES:
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("repalign."):
                room, *names = [*str(node.module).split(".")[1:], *(alias.name for alias in node.names)]
                assert room == module(path) or not [n for n in names if n.startswith("_")], f"{path.name}: {ast.unparse(node)}"


def test_no_file_needs_itself_to_be_imported():
    """Of what is imported as a file is loaded; what only a function or the type checker needs is not."""
    needs: dict[str, set[str]] = {}
    for path in FILES:
        name = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        needs[name] = set()
        for node in tree_of(path).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("repalign"):
                needs[name] |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    needs = {name: {n for n in some if n in needs and n != name} for name, some in needs.items()}
    # A file of a package may take another file from the package by name: that is no circle through the package.
    needs = {name: {n for n in some if not name.startswith(f"{n}.")} for name, some in needs.items()}
    while leaves := [name for name, some in needs.items() if not some & needs.keys()]:
        for name in leaves:
            del needs[name]
    assert not needs, "these need each other"


def test_editors_are_told_the_names_that_there_are():
    """Type checkers read the imports under `TYPE_CHECKING`, and no `__getattr__`, which would give them any name as Any."""
    tree = tree_of(SOURCE / "__init__.py")
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = [(node.module, alias) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    rooms = {alias.asname or alias.name: alias.name for module, alias in imported if module is None}
    assert rooms == {**{room: room for room in repalign._ROOMS}, "plot": "figures"}
    told = {alias.asname: str(module).removeprefix("repalign.") for module, alias in imported if module is not None}
    assert told == repalign._PUBLIC and all(alias.name == alias.asname for module, alias in imported if module is not None)
    assert "__getattr__" in [node.name for node in block.orelse if isinstance(node, ast.FunctionDef)]
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]


def test_editors_are_told_of_every_experiment():
    tree = tree_of(SOURCE / "experiments/__init__.py")
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    told = {ast.unparse(node) for node in block.body}
    rows = {name: row.at.partition(":")[0] for name, row in repalign.experiments.EXPERIMENTS.items()}
    assert told == {f"from repalign.experiments.{file} import {name} as {name}" for name, file in rows.items()}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    found = []
    for node in nodes_of(path):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_what_is_never_done(path: Path):
    """No pickle; no printing, exiting or reading of arguments outside the command line; no bare except."""
    text = path.read_text("utf-8")
    assert not re.search(r"^\s*(import|from) (pickle|dill|joblib|cloudpickle)\b", text, flags=re.M)
    assert not any(isinstance(n, ast.ExceptHandler) and n.type is None for n in nodes_of(path))
    for name, call in calls(path):
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False"
        if module(path) not in ("cli", "__main__"):
            assert name not in ("print", "exit", "sys.exit", "quit"), f"{path.name} calls {name}"
    if module(path) not in ("cli", "__main__"):
        assert "sys.argv" not in text


@pytest.mark.parametrize(
    "statement", ["import repalign", "import sys; sys.argv = ['repalign', '--help']; import repalign.cli"]
)
def test_light_imports(statement: str):
    """No heavy library before it is used."""
    heavy = [
        "torch",
        "transformers",
        "timm",
        "plotly",
        "matplotlib",
        "pandas",
        "sklearn",
        "datasets",
        "sentence_transformers",
    ]
    code = f"{statement}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
