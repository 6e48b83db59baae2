"""What determines an extraction: the options that enter its key, and the code that a factory is made of."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from repalign.errors import RepalignError
from repalign.sources import SOURCES, ModelEntry, parse_spec
from repalign.sources import torch as torch_
from repalign.sources.model import ABOUT

# --- the options ---------------------------------------------------------------------------------

SAID = {  # another value than the default for each field, and whether it is of the features
    "spec": "toy:cnn", "name": "mine", "modality": "image", "pooling": "last", "layers": (0,), "caption": 1, "bos": "keep",
    "padding": "left", "truncate": True, "store_dtype": "float16", "ids": "rows", "prompt": "a {caption}", "family": "f",
    "objective": "o", "n_parameters": 3, "scores": {"s": 1.0}, "factors": {"width": 2},
}  # fmt: skip
NOT_OF_THE_FEATURES = {"spec", "name", "family", "objective", "n_parameters", "scores", "factors"}


@pytest.mark.parametrize("option", [f.name for f in fields(ModelEntry) if f.init])
def test_every_option_of_the_features_is_in_the_key(option: str) -> None:
    plain = {"spec": "toy:vit"}
    if option not in SAID:  # a field that is new: it counts unless it says that it does not
        assert next(f for f in fields(ModelEntry) if f.name == option).metadata != ABOUT
        return
    same = ModelEntry(**{**plain, option: SAID[option]}).settings("auto") == ModelEntry(**plain).settings("auto")
    assert same == (option in NOT_OF_THE_FEATURES)


def test_an_option_that_says_nothing_is_in_the_key_where_it_is_set() -> None:
    assert "prompt" not in ModelEntry("toy:vit").settings("auto")
    assert ModelEntry("toy:vit", prompt="{caption}!").settings("auto")["prompt"] == "{caption}!"
    assert ModelEntry("toy:vit", layers=(0, "a")).settings("auto")["layers"] == [0, "a"]


# --- the code ------------------------------------------------------------------------------------

NET = "    torch.manual_seed(0)\n    return torch.nn.Sequential(torch.nn.Linear(4, 3)), prep\n"
PREP = "def prep(x): return x * 1\n"
KINDS = {  # the files, and the one that is changed
    "a neighbour": ({"f": "from k_near import prep", "k_near.py": PREP}, "k_near.py"),
    "a neighbour of a neighbour": ({"f": "from k_a import prep", "k_a.py": "from k_b import prep", "k_b.py": PREP}, "k_b.py"),
    "all of it": ({"f": "from k_star import *", "k_star.py": PREP}, "k_star.py"),
    "under another name": ({"f": "import k_long as k\nprep = k.prep", "k_long.py": PREP}, "k_long.py"),
    "inside a function": ({"f": "def prep(x):\n    import k_late\n    return k_late.prep(x)", "k_late.py": PREP}, "k_late.py"),
    "in a package": ({"f": "from k_pack.inner import prep", "k_pack/__init__.py": "", "k_pack/inner.py": PREP}, "k_pack/inner.py"),
    "of a package": ({"f": "from k_init.m import prep", "k_init/__init__.py": "A = 1", "k_init/m.py": PREP}, "k_init/__init__.py"),
    "relative": (
        {"f": "from k_rel.a import prep", "k_rel/__init__.py": "", "k_rel/a.py": "from .b import prep", "k_rel/b.py": PREP},
        "k_rel/b.py",
    ),
    "without an __init__": ({"f": "from k_ns.inner import prep", "k_ns/inner.py": PREP}, "k_ns/inner.py"),
    "by import_module": ({"f": "import importlib\nprep = importlib.import_module('k_dyn').prep", "k_dyn.py": PREP}, "k_dyn.py"),
    "by its path": (
        {"f": "from pathlib import Path\nexec(Path(__file__).with_name('k_exec.py').read_text())", "k_exec.py": PREP}, "k_exec.py",
    ),
    "numbers that it reads": (
        {"f": "import json, os\nwith open(os.path.join(os.path.dirname(__file__), 'k.json')) as f: S = json.load(f)\n"
              "def prep(x): return x * S",
         "k.json": "1"}, "k.json",
    ),
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """As a new process would have it."""
    for name in [n for n in sys.modules if n.startswith(("k_", "repalign_factory_"))]:
        del sys.modules[name]


def revision(home: Path, spec: str | None = None) -> str:
    return SOURCES["torch"].revision(parse_spec(spec or f"torch:{home / 'f.py'}:make"), ModelEntry("torch:f.py:make"))


def write(home: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = home / ("f.py" if name == "f" else name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"import torch\n{text}\ndef make():\n{NET}" if name == "f" else text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_in_what_a_factory_is_made_of_is_another_revision(home: Path, kind: str) -> None:
    files, changed = KINDS[kind]
    write(home, {**files, "k_apart.py": "A = 1"})
    first = revision(home)
    forget()
    assert revision(home) == first
    forget()
    write(home, {"k_apart.py": "A = 2"})  # it lies there, and nobody imports it
    assert revision(home) == first
    forget()
    path = home / changed
    path.write_text(path.read_text().replace("1", "7"))
    assert revision(home) != first


def test_a_factory_in_a_package_has_neighbours_too(home: Path) -> None:
    write(home, {"k_of/__init__.py": "", "k_of/f.py": f"import torch\nfrom . import g\nprep = g.prep\ndef make():\n{NET}"})
    write(home, {"k_of/g.py": PREP})
    first = revision(home, "torch:k_of.f:make")
    forget()
    write(home, {"k_of/g.py": PREP.replace("1", "7")})
    assert revision(home, "torch:k_of.f:make") != first


def test_a_factory_without_neighbours_keeps_its_revision(home: Path) -> None:
    """As it was before they counted: the file and the weights."""
    import hashlib

    write(home, {"f": "import math, json\nimport numpy as np\nfrom torch import nn\nprep = None"})
    made = torch_._make(parse_spec(f"torch:{home / 'f.py'}:make"))
    assert made.imports == {}
    assert made.revision == "local-" + hashlib.sha256(f"{made.code}:{made.weights}".encode()).hexdigest()[:16]


def test_of_an_installed_package_the_version_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, {"f": "import yaml.nodes\nprep = None"})
    spec = parse_spec(f"torch:{home / 'f.py'}:make")
    imports = torch_._make(spec).imports
    assert list(imports) == ["yaml"] and imports["yaml"].startswith("version 6")


def test_code_that_changed_under_a_running_process_is_refused(home: Path) -> None:
    """The process would run what it has imported, and keep the features under the name of what lies on the disk."""
    write(home, {"f": "from k_live import prep", "k_live.py": PREP})
    revision(home)
    write(home, {"k_live.py": PREP.replace("1", "7")})
    with pytest.raises(RepalignError, match=r"k_live\.py has changed since this process imported it(.|\n)*do: start Python again"):
        revision(home)
