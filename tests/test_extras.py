"""The core works alone; what needs an extra says which one, before any work."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# What the extras bring; none of it can be found in the process below.
EXTRAS = (
    "transformers", "accelerate", "timm", "datasets", "sentence_transformers", "sentencepiece", "tokenizers", "huggingface_hub",
    "open_clip", "torchvision", "umap", "ripser", "persim", "ot", "h5py", "zarr",
)  # fmt: skip

WITHOUT = f"""
import json
import sys
from pathlib import Path

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Nothing())
import numpy as np
import repalign
"""

JOBS = '''
x = np.random.default_rng(0).standard_normal((60, 8))
folder, toy = sys.argv[1], repalign.Dataset.toy(40)

def core():
    repalign.pair(x, x[:, :4], names=("a", "b")).save(folder + "/results")
    assert repalign.write_report(folder + "/results", folder + "/report.html").is_file()
    stored = repalign.extract(toy, ["toy:vision-pixels", "toy:language-bag"], folder + "/store")
    return len(repalign.compare(stored[:1], stored[1:], ["CKA()"]).table)

STUDY = """
name: core
dataset: {toy: {n: 60, seed: 0}}
models: {x: ["toy:language-bag"], y: ["toy:vision-pixels"]}
measures: ["CKA()"]
figures: [{matrix: {}}]
"""

def study():
    path = Path(folder, "core.yaml")
    path.write_text(STUDY)
    study = repalign.load_study(path)
    return [len(study.plan().lines) > 3, sorted(kind for kind, _ in study.run().wrote)]

def skipped():
    found = repalign.extract(toy, ["hf:gpt2", "toy:language-bag"], folder + "/store", on_unavailable="skip")
    return [type(f).__name__ for f in found]

def model(spec):
    return lambda: repalign.extract(toy, [spec], folder + "/store")

def features(name, data):
    Path(folder, name).write_bytes(data) if data else Path(folder, name).mkdir()
    return lambda: repalign.read_features(Path(folder, name))

jobs = {
    "core": core,
    "study": study,
    "skipped": skipped,
    "transformers": model("hf:gpt2"),
    "timm": model("timm:vit_tiny_patch16_224"),
    "sentence_transformers": model("st:all-MiniLM-L6-v2"),
    "open_clip": model("openclip:ViT-B-32/openai"),
    "datasets": lambda: repalign.Dataset.from_hub("minhuh/prh", text="text"),
    "h5py": features("a.h5", b"x"),
    "h5py for .mat": features("a.mat", b"MATLAB 7.3".ljust(512) + b"\\x89HDF\\r\\n\\x1a\\n"),
    "zarr": features("a.zarr", None),
    "ripser": lambda: repalign.parse_measure("PersistenceDistance()")(x, x),
}
for name, job in jobs.items():
    try:
        told = job()
    except repalign.RepalignError as error:
        told = [type(error).__name__, *str(error).splitlines()]
    print(json.dumps([name, told]))
'''


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, object]:
    """What a process without the extras says to each job."""
    folder = str(tmp_path_factory.mktemp("core"))
    done = subprocess.run([sys.executable, "-c", WITHOUT + JOBS, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_the_core_pairs_compares_stores_and_reports(told):
    assert told["core"] == 2


def test_the_core_plans_and_runs_a_study(told):
    assert told["study"] == [True, ["figures", "report", "report", "table"]]


def test_a_model_whose_packages_are_missing_may_be_skipped(told):
    assert told["skipped"] == ["Skipped", "StoredRepresentation"]


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("transformers", "models"), ("timm", "models"), ("sentence_transformers", "models"), ("datasets", "models"),
        ("open_clip", "openclip"), ("ripser", "topology"), ("h5py", "files"), ("h5py for .mat", "files"), ("zarr", "files"),
    ],
)  # fmt: skip
def test_what_needs_an_extra_names_it(told, package: str, extra: str):
    kind, problem, *rest = told[package]  # type: ignore[misc]
    assert kind == "Unavailable" and package.split()[0] in problem and problem.endswith("not installed")
    assert f"  do: python -m pip install 'repalign[{extra}]'" in rest
