"""Files of features and models that a user's own function builds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import tiny_models as tiny
from repalign.errors import RepalignError
from repalign.sources import ModelEntry, extract

IDS = list(tiny.IDS)
N = len(IDS)
X = np.random.default_rng(0).standard_normal((N, 5))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


def run(path: Path, data, store: Path, **options):
    options = {"modality": "image", **options}
    return extract(data, [ModelEntry(f"array:{path}", **options)], store, rows_per_part=4)[0]


# --- files ---------------------------------------------------------------------------------------


def _npy(path: Path) -> Path:
    np.save(path / "x.npy", X[::-1])
    (path / "x.npy.ids.txt").write_text("\n".join(IDS[::-1]) + "\n")
    return path / "x.npy"


def _npz(path: Path) -> Path:
    np.savez(path / "x.npz", features=X[::-1], ids=np.array(IDS[::-1]))
    return path / "x.npz"


def _safetensors(path: Path) -> Path:
    tensors = {"features": torch.from_numpy(X[::-1].copy())}
    save_file(tensors, path / "x.safetensors", metadata={"ids": json.dumps(IDS[::-1])})
    return path / "x.safetensors"


def _parquet_lists(path: Path) -> Path:
    pd.DataFrame({"features": list(X[::-1]), "id": IDS[::-1]}).to_parquet(path / "x.parquet")
    return path / "x.parquet"


def _parquet_columns(path: Path) -> Path:
    pd.DataFrame({"id": IDS[::-1], **{f"f{i}": X[::-1, i] for i in range(5)}}).to_parquet(path / "x.parquet")
    return path / "x.parquet"


def _pt(path: Path) -> Path:
    torch.save(torch.from_numpy(X[::-1].copy()), path / "x.pt")
    (path / "x.pt.ids.json").write_text(json.dumps(IDS[::-1]))
    return path / "x.pt"


FORMS = [_npy, _npz, _safetensors, _parquet_lists, _parquet_columns, _pt]


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_joined_on_ids_whatever_their_order(form, data, tmp_path):
    got = run(form(tmp_path), data, tmp_path / "store", store_dtype="float64")
    assert got.layers == ("features",)
    assert torch.equal(got.load("features"), torch.from_numpy(X))  # float64 all the way
    assert got.facts["rows"] == "joined on ids"
    assert got.record.revision.startswith("local-")


def test_float32_is_the_default(data, tmp_path):
    got = run(_npz(tmp_path), data, tmp_path / "store")
    assert torch.equal(got.load("features"), torch.from_numpy(X).float())


def test_rows_without_ids_are_refused_unless_said_to_be_in_order(data, tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(RepalignError, match=r"x\.npy says no ids\n(.|\n)*x\.npy\.ids\.txt(.|\n)*`ids: rows`"):
        run(tmp_path / "x.npy", data, tmp_path / "store")
    got = run(tmp_path / "x.npy", data, tmp_path / "store", ids="rows")
    assert torch.equal(got.load("features"), torch.from_numpy(X).float())
    assert got.facts["rows"] == "in the dataset's order, as the entry says"
    np.save(tmp_path / "y.npy", X[:-1])
    with pytest.raises(
        RepalignError, match=rf"another number of rows than the dataset\n  expected: n = {N}\n  got: n = {N - 1}"
    ):
        run(tmp_path / "y.npy", data, tmp_path / "store", ids="rows")


def test_missing_ids_are_named_and_extra_rows_counted(data, tmp_path):
    np.savez(tmp_path / "x.npz", features=X[:-2], ids=np.array(IDS[:-2]))
    with pytest.raises(RepalignError, match=rf"lacks 2 of {N} stimuli\n.*\n  got: no row for '{IDS[-2]}', '{IDS[-1]}'"):
        run(tmp_path / "x.npz", data, tmp_path / "store")
    more = np.concatenate([X, X[:2]])
    np.savez(tmp_path / "y.npz", features=more, ids=np.array([*IDS, "other", "another"]))
    got = run(tmp_path / "y.npz", data, tmp_path / "store")
    assert got.facts["rows_not_in_the_dataset"] == 2
    assert torch.equal(got.load("features"), torch.from_numpy(X).float())


def test_the_metadata_of_a_safetensors_file_is_used(data, tmp_path):
    tensors = {"late": torch.ones(N, 2), "early": torch.zeros(N, 3, dtype=torch.float16), "a": torch.zeros(N, 1)}
    metadata = {
        "ids": json.dumps(IDS),
        "layers": json.dumps(["early", "late"]),
        "modality": "image",
        "objective": "supervised",
        "published_imagenet_top1": "66.1",
        "model": "Some net",
    }
    save_file(tensors, tmp_path / "net.safetensors", metadata=metadata)
    got = extract(data, [f"array:{tmp_path / 'net.safetensors'}"], tmp_path / "store")[0]
    assert (got.layers, got.widths) == (("early", "late"), (3, 2))
    record = got.record
    assert (record.name, record.modality, record.objective) == ("net", "image", "supervised")
    assert record.scores == {"imagenet_top1": 66.1}
    assert got.facts["file_model"] == "Some net"
    some = run(tmp_path / "net.safetensors", data, tmp_path / "store", layers=[-1])
    assert some.layers == ("late",)
    with pytest.raises(RepalignError, match=r"no layer 'erly'(.|\n)*did you mean 'early'"):
        run(tmp_path / "net.safetensors", data, tmp_path / "store", layers=["erly"])


@pytest.mark.parametrize("listed", [False, True])
def test_feature_files_of_platonic_rep(listed, data, tmp_path):
    """{feats (n, layers, d) or a list of (n, d), num_params, mask, loss, bpb}, read without a pickle."""
    feats = torch.randn(N, 3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    held = {
        "feats": list(feats.unbind(1)) if listed else feats,
        "num_params": 559214592,
        "mask": torch.ones(N, 7, dtype=torch.int64),
        "loss": torch.zeros(N),
        "bpb": torch.tensor([0.5, 1.5]),
    }
    torch.save(held, tmp_path / "bloomz.pt")
    got = run(tmp_path / "bloomz.pt", data, tmp_path / "store", modality="text", ids="rows")
    assert got.layers == ("layer.0", "layer.1", "layer.2")
    for i, layer in enumerate(got.layers):
        assert torch.equal(got.load(layer), feats[:, i].float())
    assert got.record.n_parameters == 559214592
    assert got.record.scores == {"bits_per_byte": 1.0}


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("repalign-was-here"),))


def test_pickles_are_not_loaded(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"feats": Evil()}, tmp_path / "x.pt")
    np.save(tmp_path / "y.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for name in ("x.pt", "y.npy"):
        with pytest.raises(RepalignError, match=r"the file cannot be read(.|\n)*pickles are never loaded"):
            run(tmp_path / name, data, tmp_path / "store", ids="rows")
    assert not Path("repalign-was-here").exists()


def test_bad_files_are_told(data, tmp_path):
    def refuse(name: str, message: str, **options) -> None:
        with pytest.raises(RepalignError, match=message):
            run(tmp_path / name, data, tmp_path / "store", **options)

    refuse("none.npy", r"there is no file .*none\.npy")
    (tmp_path / "x.doc").write_text("1")
    refuse("x.doc", r"not a file of features that can be read\n  expected: \.npy, \.npz")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    refuse("cut.safetensors", r"the file cannot be read\n  expected: a whole \.safetensors file")
    np.save(tmp_path / "deep.npy", np.zeros((N, 2, 2)))
    refuse("deep.npy", r"features \(float64 \(11, 2, 2\)\) can be read in two ways\n  expected: \(n, d\); or three dimensions")
    assert run(tmp_path / "deep.npy", data, tmp_path / "store", ids="rows").layers == ("layer.0", "layer.1")
    np.save(tmp_path / "flat.npy", np.zeros(N))
    refuse("flat.npy", r"layer features: not \(n, d\)(.|\n)*got: shape \(11,\)", ids="rows")
    np.savez(tmp_path / "unequal.npz", a=np.zeros((N, 2)), b=np.zeros((N - 1, 2)))
    refuse("unequal.npz", r"layers of different row counts", ids="rows")
    np.savez(tmp_path / "twice.npz", a=np.zeros((N, 2)), ids=np.array([*IDS[:-1], IDS[0]]))
    refuse("twice.npz", rf"ids do not fit the rows\n  expected: {N} distinct ids\n  got: {N} ids, {N - 1} distinct")
    np.save(tmp_path / "words.npy", np.array([["a", "b"]] * N))
    refuse("words.npy", r"not an array of numbers(.|\n)*got: features \(text \(11, 2\)\)", ids="rows")
    broken = X.copy()
    broken[3, 1] = np.nan
    np.savez(tmp_path / "nan.npz", late=broken, ids=np.array(IDS))
    refuse("nan.npz", r"nan\.npz, layer 'late': the row of id 's03' \(row 3\) is NaN\n.*\n  got: 1 of 4 rows(.|\n)*leave the stim")
    with pytest.raises(RepalignError, match=r"array models do not say which modality they read"):
        extract(data, [f"array:{_npz(tmp_path)}"], tmp_path / "store")


def test_other_bytes_or_other_ids_are_another_revision(data, tmp_path):
    path = _npy(tmp_path)
    first = run(path, data, tmp_path / "store")
    (tmp_path / "x.npy.ids.txt").write_text("\n".join(IDS))
    second = run(path, data, tmp_path / "store")
    assert first.record.revision != second.record.revision
    assert torch.equal(first.load("features"), second.load("features").flip(0))


# --- modules of a user's own ---------------------------------------------------------------------

FACTORY = """
import numpy as np
import torch
from types import SimpleNamespace
from torch import nn

def preprocess(image):
    small = image.resize((8, 8))
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).permute(2, 0, 1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU()
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1)])
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.relu(self.stem(x))
        for block in self.blocks:
            x = self.relu(block(x))
        return self.head(x.mean((2, 3)))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(128, 5)
        self.mix = nn.Linear(5, 4)

    def forward(self, tokens):
        return self.mix(self.table(tokens))

def net():
    torch.manual_seed(0)
    return Net()

def pair():
    torch.manual_seed(0)
    return Net(), preprocess

def full():
    torch.manual_seed(0)
    return SimpleNamespace(module=Net(), preprocess=preprocess, modality="image", layers=["stem", "head"])

def words():
    torch.manual_seed(0)
    return SimpleNamespace(module=Words(), modality="text", preprocess=lambda t: torch.tensor([ord(c) % 128 for c in t]))

def unseeded():
    return Net(), preprocess

def wrong():
    return 3

def not_tensors():
    torch.manual_seed(0)
    return Net(), lambda image: [1, 2]
"""


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "my_model.py"
    path.write_text(FACTORY)
    return path


def made(factory: Path, name: str):
    space: dict = {}
    exec(compile(FACTORY, str(factory), "exec"), space)
    return space[name]()


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("pair", {"layers": ["stem", "blocks.0", "blocks.1", "head"]}, ("stem", "blocks.0", "blocks.1", "head")),
        ("pair", {"layers": [0, -1]}, ("stem", "head")),
        ("full", {"modality": None}, ("stem", "head")),
        ("full", {"layers": [-1]}, ("head",)),
    ],
)
def test_modules_of_a_factory(name, options, layers, factory, data, tmp_path):
    got = extract(
        data, [ModelEntry(f"torch:{factory}:{name}", **{"modality": "image", **options})], tmp_path / "s", batch_size=4
    )[0]
    assert got.layers == layers
    model, preprocess = made(factory, "pair")
    for layer in layers:
        want = []
        for image in tiny.images():
            seen = []
            hook = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out))
            with torch.no_grad():
                model(preprocess(image)[None])
            hook.remove()
            want.append(seen[0][0].mean(dim=(1, 2)) if seen[0].ndim == 4 else seen[0][0])
        torch.testing.assert_close(got.load(layer), torch.stack(want), rtol=1e-4, atol=1e-6)
    assert got.record.n_parameters == sum(p.numel() for p in model.parameters())
    assert got.name == name


def test_texts_of_unequal_length_go_through_in_groups_of_one_shape(factory, data, tmp_path):
    entry = ModelEntry(f"torch:{factory}:words", pooling="mean")
    got = extract(data, [entry], tmp_path / "s", batch_size=4)[0]
    model = made(factory, "words")
    with torch.no_grad():
        want = torch.stack([model.module(model.preprocess(c)[None])[0].mean(0) for c in tiny.CAPTIONS])
    assert got.layers == ("table", "mix")
    torch.testing.assert_close(got.load("mix"), want, rtol=1e-4, atol=1e-6)


def test_a_factory_in_a_package(factory, data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(factory.parent))
    by_name = extract(data, [ModelEntry("torch:my_model:full")], tmp_path / "s")[0]
    by_path = extract(data, [ModelEntry(f"torch:{factory}:full")], tmp_path / "s")[0]
    assert torch.equal(by_name.load("head"), by_path.load("head"))


def test_other_weights_or_other_code_are_another_revision(factory, data, tmp_path):
    entry = ModelEntry(f"torch:{factory}:full")
    revisions = [extract(data, [entry], tmp_path / "s")[0].record.revision]
    for old, new in (("(0)", "(1)"), ("/ 255", "/ 128")):
        factory.write_text(factory.read_text().replace(old, new))
        revisions.append(extract(data, [entry], tmp_path / "s")[0].record.revision)
    assert len(set(revisions)) == 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pair", {}, r"module 'unused' is called 0 times in a forward pass(.|\n)*name other modules"),
        ("pair", {"layers": ["relu"]}, r"module 'relu' is called 3 times in a forward pass"),
        ("pair", {"layers": ["sten"]}, r"no module 'sten'(.|\n)*did you mean 'stem'"),
        ("pair", {"layers": ["stem"], "pooling": "cls"}, r"a map \(b, d, height, width\) needs another pooling"),
        ("pair", {"modality": None}, r"torch models do not say which modality they read"),
        ("pairs", {}, r"no function 'pairs' in .*my_model\.py(.|\n)*did you mean 'pair'"),
        ("wrong", {}, r"the factory returns something else than a model(.|\n)*got: int"),
        ("not_tensors", {}, r"row 0 \(id 's00'\): preprocess gives no tensor(.|\n)*got: list"),
        ("net", {"modality": "text"}, r"row 0 \(id 's00'\): preprocess gives no tensor(.|\n)*got: str"),
        ("words", {"modality": None}, r"tokens \(b, t, d\) needs another pooling\n  expected: mean, cls or last"),
    ],
)
def test_bad_factories_are_told(name, options, message, factory, data, tmp_path):
    with pytest.raises(RepalignError, match=message):
        extract(data, [ModelEntry(f"torch:{factory}:{name}", **{"modality": "image", **options})], tmp_path / "s")


def test_a_file_that_cannot_be_imported_is_told(data, tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_module_at_all")
    for path, message in (("bad.py", "No module named"), ("none.py", "there is no file")):
        with pytest.raises(RepalignError, match=rf"cannot be imported\n  got: .*{message}"):
            extract(data, [ModelEntry(f"torch:{tmp_path / path}:f", modality="image")], tmp_path / "s")


def test_a_factory_that_makes_another_model_each_time_is_refused(factory, data, tmp_path):
    entry = ModelEntry(f"torch:{factory}:unseeded", modality="image", layers=("stem",))
    with pytest.raises(RepalignError, match=r"the factory makes another model every time(.|\n)*torch\.manual_seed"):
        extract(data, [entry], tmp_path / "s")
