"""How much of the house a job enters: files and functions of `src`, counted with `sys.setprofile`.

    python benchmarks/walk.py            # both jobs
    python benchmarks/walk.py pair -v    # one, with what it entered

`pair` compares two arrays by CKA. `study` is `repalign run` of four files of features with one measure and one figure, from
the study file to the report. A function is counted once however often it is called; comprehensions and module bodies are not.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

import repalign

SOURCE = str(Path(repalign.__file__).parent)
NO_FUNCTION = {"<module>", "<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>"}

STUDY = """
name: walk
dataset: {{table: {folder}/captions.csv, id: id, text: caption}}
models: [{models}]
measures: ["MutualKNN(k=10)"]
figures: [{{matrix: {{}}}}]
store: {folder}/store
results: {folder}/results
report: {folder}/report.html
"""


class Walk:
    """The code of the house that is entered while this is open."""

    def __init__(self) -> None:
        self.entered: set[CodeType] = set()

    def __enter__(self) -> Walk:
        threading.setprofile(self._enter)
        sys.setprofile(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def _enter(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(SOURCE) and code.co_name not in NO_FUNCTION:
            self.entered.add(code)

    @property
    def functions(self) -> set[tuple[str, str]]:
        """(file, qualified name); a class body is no function."""
        return {
            (c.co_filename.removeprefix(SOURCE + "/"), c.co_qualname) for c in self.entered if c.co_flags & 2  # CO_NEWLOCALS
        }


def pair(folder: Path) -> None:  # noqa: ARG001
    """Two arrays, one measure."""
    x = np.random.default_rng(0).standard_normal((300, 20))
    repalign.pair(x, x @ np.ones((20, 5)) + 1e-3 * x[:, :5], ["CKA()"])


def study(folder: Path) -> None:
    """Four models as files of features, one measure, one figure, one report."""
    rng = np.random.default_rng(0)
    ids = [f"s{i}" for i in range(300)]
    lines = ["id,caption", *(f"{i},a thing called {i}" for i in ids)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    world = rng.standard_normal((300, 8))
    models = []
    for name in "abcd":
        np.savez(folder / f"{name}.npz", first=world @ rng.standard_normal((8, 16)), last=world @ rng.standard_normal((8, 8)))
        models.append(f'{{spec: "array:{folder}/{name}.npz", rows: true, modality: text}}')
    path = folder / "walk.yaml"
    path.write_text(STUDY.format(folder=folder, models=", ".join(models)))
    from repalign.cli import app

    app(["run", str(path)], standalone_mode=False)


JOBS: dict[str, Callable[[Path], None]] = {"pair": pair, "study": study}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("job", nargs="?", choices=JOBS)
    arguments.add_argument("-v", action="store_true", help="list what was entered")
    given = arguments.parse_args()
    for name in [given.job] if given.job else JOBS:
        with tempfile.TemporaryDirectory() as folder, Walk() as walk:
            JOBS[name](Path(folder))
        by_file = collections.Counter(file for file, _ in walk.functions)
        print(f"{name}: {len(by_file)} files, {len(walk.functions)} functions")
        for file, count in sorted(by_file.items()) if given.v else ():
            print(f"  {count:4d} {file}: {', '.join(sorted(q for f, q in walk.functions if f == file))}")


if __name__ == "__main__":
    main()
