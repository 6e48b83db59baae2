"""How long a command takes to start, beside the imports that it cannot do without: seconds of the processor, the least of some.

    python benchmarks/start.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

STUDY = """
name: start
dataset: {{table: {folder}/captions.csv, id: id, text: caption}}
models: [{models}]
measures: ["MutualKNN(k=10)"]
store: {folder}/store
results: {folder}/results
"""


def least(arguments: list[str], runs: int) -> float:
    """Seconds of the processor of a new process of Python, its threads and children counted in."""
    found = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def inputs(folder: Path, n: int = 300, models: int = 3) -> Path:
    """A study file, and the features and captions that it names."""
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((n, 8))
    for i in range(models):
        np.save(folder / f"{i}.npy", latent @ rng.standard_normal((8, 20)) + rng.standard_normal((n, 20)))
        (folder / f"{i}.npy.ids.txt").write_text("\n".join(f"{row:04d}" for row in range(n)) + "\n", encoding="utf-8")
    lines = [f"{i:04d},text {i}" for i in range(n)]
    (folder / "captions.csv").write_text("\n".join(["id,caption", *lines]) + "\n", encoding="utf-8")
    study = folder / "study.yaml"
    names = ", ".join(f"array:{folder}/{i}.npy" for i in range(models))
    study.write_text(STUDY.format(folder=folder, models=names), encoding="utf-8")
    return study


def report(runs: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        study = str(inputs(folder))
        main = ["-m", "repalign"]
        pair = [*main, "pair", f"{folder}/0.npy", f"{folder}/1.npy"]
        subprocess.run([sys.executable, *main, "run", study], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        torch, numpy = (least(["-c", f"import {name}"], runs) for name in ("torch", "numpy"))
        print(f"import torch                {torch:6.2f} s")
        print(f"import numpy                {numpy:6.2f} s")
        print(f"import repalign             {least(['-c', 'import repalign'], runs):6.2f} s")
        print(f"repalign --help             {least([*main, '--help'], runs):6.2f} s")
        seconds = least(pair, runs)
        print(f"repalign pair, small files  {seconds:6.2f} s: {seconds / torch:.2f} times import torch")
        print(f"repalign run, finished      {least([*main, 'run', study], runs):6.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4)
    report(parser.parse_args().runs)


if __name__ == "__main__":
    main()
