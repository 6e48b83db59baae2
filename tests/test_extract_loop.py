"""The loop: parts, batches, memory, resume, workers, progress."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_models as tiny
from processes import FRESH
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.models import ModelRecord
from repalign.sources import (
    SOURCES,
    Batch,
    Facts,
    Layer,
    LoadedModel,
    ModelEntry,
    Source,
    StandIn,
    extract,
    parse_spec,
    parts,
)
from repalign.store import FeatureStore


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return tiny.gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.dataset(tmp_path_factory.mktemp("data"))


def bytes_of(store: Path) -> dict[str, str]:
    files = sorted(p for p in store.rglob("*") if p.is_file())
    return {p.relative_to(store).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- a source that is made for the tests ---------------------------------------------------------


class Squares(LoadedModel):
    """Numbers in, [x, x^2] out; runs out of memory above a batch size."""

    kind = "any"
    loads = 0
    fits = 10**9
    error: BaseException = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
    batches: list[int]

    def __init__(self, spec, entry) -> None:
        type(self).loads += 1
        type(self).batches = []
        self.layers = (Layer("both", "x and its square"),)
        self.weights = "none"
        self.record = ModelRecord(str(spec), "squares", entry.modality or "array")
        self.facts = {"source": "squares"}

    def forward(self, prepared):
        type(self).batches.append(len(prepared))
        if len(prepared) > self.fits:
            raise self.error
        x = torch.tensor(np.stack(prepared), dtype=torch.float32)
        return Batch({"both": torch.cat([x, x**2], dim=1)})


@pytest.fixture
def squares(monkeypatch):
    """The scheme `toy` loads the model above."""

    class Numbers(Source):
        scheme, form, example = "toy", "toy:name", "toy:squares"

        def revision(self, *_):
            return "v1"

        def facts(self, *_):
            return Facts()

        def load(self, spec, entry, *_):
            return Squares(spec, entry)

        def stand_in(self, asked):
            return StandIn(str(asked.spec), ("both",))

    monkeypatch.setitem(SOURCES, "toy", Numbers())
    monkeypatch.setattr(Squares, "loads", 0)
    return Squares


def numbers(n: int) -> Dataset:
    return Dataset.from_arrays({"array": np.arange(n, dtype=np.float32)[:, None]}, [f"i{k}" for k in range(n)])


ENTRY = ModelEntry("toy:squares", modality="array")


@pytest.mark.parametrize(("n", "batch", "rows_per_part"), [(1023, 4, 256), (5, 7, 256), (33, 8, 8), (1, 1, 1)])
def test_any_n_with_any_batch(n, batch, rows_per_part, squares, tmp_path):
    got = extract(numbers(n), [ENTRY], tmp_path, batch_size=batch, rows_per_part=rows_per_part)[0]
    x = torch.arange(n, dtype=torch.float32)
    assert torch.equal(got.load("both"), torch.stack([x, x**2], dim=1))
    assert max(squares.batches) <= batch
    assert len(got.manifest["parts"]) == -(-n // rows_per_part)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_told(error, squares, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(squares, "fits", 3)
    monkeypatch.setattr(squares, "error", error)
    notes = []
    with caplog.at_level(logging.INFO, "repalign"):
        got = extract(
            numbers(20),
            [ENTRY],
            tmp_path,
            batch_size=12,
            rows_per_part=10,
            progress=lambda *told: notes.append(told[3] if len(told) > 3 else None),
        )[0]
    assert torch.equal(got.load("both")[:, 0], torch.arange(20.0))
    said = [n for n in notes if n and "does not fit" in n]
    assert said == [
        "a batch of 10 does not fit the memory; going on with batches of 5",
        "a batch of 5 does not fit the memory; going on with batches of 2",
    ]
    assert [r.message for r in caplog.records if "does not fit" in r.message] == [f"extract toy:squares: {s}" for s in said]
    assert got.facts["rows_by_batch_size"] == {"2": 20}
    assert squares.batches == [10, 5, *[2] * 10]  # not tried again in the second part


def test_one_stimulus_that_does_not_fit_is_an_error(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(squares, "fits", 0)
    with pytest.raises(
        RepalignError, match=r"one stimulus does not fit the memory\n  got: CUDA out of memory(.|\n)*smaller dtype"
    ):
        extract(numbers(6), [ENTRY], tmp_path)


def test_other_errors_are_not_taken_for_memory(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(squares, "fits", 0)
    monkeypatch.setattr(squares, "error", RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RepalignError, match=r"failed in its library: RuntimeError: mat1 and mat2 shapes cannot"):
        extract(numbers(6), [ENTRY], tmp_path)
    assert squares.batches == [6]


def test_complete_features_are_found_without_loading(squares, tmp_path):
    first = extract(numbers(9), [ENTRY], tmp_path)[0]
    notes = []
    second = extract(numbers(9), [ENTRY], tmp_path, progress=lambda *a: notes.append(a))[0]
    assert squares.loads == 1
    assert torch.equal(first.load("both"), second.load("both"))
    assert notes == [("extract toy:squares", 9, 9, "complete in the store")]


def test_only_missing_parts_are_made(squares, tmp_path):
    got = extract(numbers(30), [ENTRY], tmp_path, rows_per_part=10)[0]
    before = bytes_of(tmp_path)
    folder = Path(got.path)
    (folder / "manifest.json").unlink()
    (folder / "part-00001.safetensors").unlink()
    squares.batches.clear()
    extract(numbers(30), [ENTRY], tmp_path, rows_per_part=10)
    assert squares.batches == [10]
    assert bytes_of(tmp_path) == before
    (folder / "manifest.json").unlink()  # killed between the last part and the manifest
    squares.batches.clear()
    extract(numbers(30), [ENTRY], tmp_path, rows_per_part=10)
    assert squares.batches == []
    assert bytes_of(tmp_path) == before


def with_noise(n: int, noise: float) -> Dataset:
    """The stimuli of `numbers`, and another column, by which such datasets differ."""
    columns = {"array": np.arange(n, dtype=np.float32)[:, None], "other": np.full((n, 1), noise)}
    return Dataset.from_arrays(columns, [f"i{k}" for k in range(n)])


def test_what_differs_in_columns_that_a_model_does_not_read_is_not_run_again(squares, tmp_path):
    heard, model = [], ModelEntry("toy:squares", modality="array")
    for noise in (0.0, 1.0):
        base = with_noise(10, noise)
        (made,) = extract(base, [model], str(tmp_path / "one"), rows_per_part=4, progress=lambda *told: heard.append(told))
        extract(with_noise(10, noise), [model], str(tmp_path / f"alone-{noise}"), rows_per_part=4)
        assert made.dataset_fingerprint == with_noise(10, noise).fingerprint
    assert squares.loads == 3  # one, and one for each store of its own
    assert heard[-1] == ("extract toy:squares", 10, 10, "taken from the store: it has read the same stimuli of another dataset")
    marker = {"repalign-store.json"}
    alone = {f: d for noise in ("0.0", "1.0") for f, d in bytes_of(tmp_path / f"alone-{noise}").items()}
    assert bytes_of(tmp_path / "one") == alone and marker < alone.keys() and len(alone) == 1 + 2 * 4
    assert extract(with_noise(10, 1.0), [model], str(tmp_path / "one"))[0].record == made.record
    assert squares.loads == 3


@pytest.mark.parametrize("case", ["column", "ids", "order", "kinds", "settings", "parts", "old", "broken"])
def test_only_the_very_same_stimuli_are_taken(case, squares, tmp_path, monkeypatch, caplog):
    """Each case differs in one thing from what lies in the store, and the model has to run."""
    entry, base, rows = ModelEntry("toy:squares", modality="array"), with_noise(10, 1.0), 4
    describe = Dataset.describe
    with monkeypatch.context() as patch:
        if case == "old":  # manifests of before do not say what was seen
            patch.setattr(Dataset, "describe", lambda self: {k: v for k, v in describe(self).items() if k != "seen"})
        (first,) = extract(with_noise(10, 0.0), [entry], str(tmp_path), rows_per_part=4)
    if case == "column":
        entry = dataclasses.replace(entry, modality="other")
    elif case == "ids":
        base = dataclasses.replace(base, ids=tuple(f"j{k}" for k in range(10)))
    elif case == "order":
        base = dataclasses.replace(base, columns={m: c.take([1, 0, *range(2, 10)]) for m, c in base.columns.items()})
    elif case == "kinds":
        base = dataclasses.replace(base, columns={**base.columns, "third": base.columns["other"]})
    elif case == "settings":
        entry = dataclasses.replace(entry, store_dtype="float16")
    elif case == "parts":
        rows = 5
    elif case == "broken":
        part = Path(first.path) / "part-00001.safetensors"
        data = part.read_bytes()
        part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (made,) = extract(base, [entry], str(tmp_path), rows_per_part=rows)
    assert squares.loads == 2
    assert ("the model is run instead" in caplog.text) == (case == "broken")
    assert made.ids == base.ids and len(made.manifest["parts"]) == -(-10 // rows)
    read = "other" if case == "column" else "array"
    assert np.allclose(made.load("both")[:, 0].numpy(), np.stack(base.stimuli(read, range(10)))[:, 0])


@pytest.mark.usefixtures("squares")
def test_what_the_user_says_of_a_model_goes_into_the_record(tmp_path):
    said = dataclasses.replace(
        ENTRY, name="mine", family="f", objective="o", n_parameters=7, scores={"imagenet_top1": 1.0}
    )
    for _ in range(2):  # extracted, then found
        record = extract(numbers(4), [said], tmp_path)[0].record
        assert (record.name, record.family, record.objective, record.n_parameters) == ("mine", "f", "o", 7)
        assert record.scores == {"imagenet_top1": 1.0}


@pytest.mark.usefixtures("squares")
def test_store_dtype(tmp_path):
    half = extract(numbers(9), [dataclasses.replace(ENTRY, store_dtype="float16")], tmp_path)[0]
    assert half.load("both").dtype == torch.float16
    assert half.facts["store_dtype"] == "float16"
    with pytest.raises(RepalignError, match=r"layer 'both': the row of id 'i256' \(row 256\) is infinite"):
        extract(numbers(300), [dataclasses.replace(ENTRY, store_dtype="float16")], tmp_path, rows_per_part=300)


@pytest.mark.usefixtures("squares")
def test_progress_counts_rows_and_ends_at_all(tmp_path):
    seen = []
    extract(numbers(25), [ENTRY], tmp_path, batch_size=10, rows_per_part=20, progress=lambda *a: seen.append(a))
    counts = [a[1] for a in seen]
    assert counts[0] == 0 and counts[-1] == 25 and counts == sorted(counts)
    assert {a[0] for a in seen} == {"extract toy:squares"}
    assert all(a[2] == 25 for a in seen)
    assert any("1 layers, as stored, on" in (a[3] or "") for a in seen if len(a) > 3)


@pytest.mark.usefixtures("squares")
def test_a_bad_batch_size_or_device_is_told(tmp_path):
    with pytest.raises(RepalignError, match=r"batch_size is out of range\n  expected: at least 1\n  got: 0"):
        extract(numbers(3), [ENTRY], tmp_path, batch_size=0)
    with pytest.raises(RepalignError, match=r"device 'cuda:77' cannot be used(.|\n)*device: auto"):
        extract(numbers(3), [ENTRY], tmp_path, device="cuda:77")


@pytest.mark.usefixtures("squares")
def test_a_column_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RepalignError, match=r"cannot read column 'image' of dataset(.|\n)*got: array \(array\)"):
        extract(numbers(3), [dataclasses.replace(ENTRY, modality="image")], tmp_path)


def test_every_source_is_whole():
    """Each is listed under its own scheme, and parses its example; the class forbids one that lacks a method."""
    for scheme, source in SOURCES.items():
        assert source.scheme == scheme and source.form.startswith(f"{scheme}:")
        assert parse_spec(source.example).scheme == scheme


# --- real models, several parts, workers ---------------------------------------------------------


def test_killed_anywhere_and_resumed_gives_the_same_bytes(gpt2, data, tmp_path):
    """Whatever parts are there already, the rest comes out as in one go."""
    entry = ModelEntry(f"hf:{gpt2}", padding="left")
    whole = extract(data, [entry], tmp_path / "whole", batch_size=2, rows_per_part=3)[0]
    reference = bytes_of(tmp_path / "whole")
    assert len(whole.manifest["parts"]) == 4
    for gone in ([0], [3], [0, 2], [1, 2, 3]):
        store = tmp_path / f"resumed{''.join(map(str, gone))}"
        got = extract(data, [entry], store, batch_size=2, rows_per_part=3)[0]
        (Path(got.path) / "manifest.json").unlink()
        for part in gone:
            (Path(got.path) / f"part-{part:05d}.safetensors").unlink()
        extract(data, [entry], store, batch_size=2, rows_per_part=3)
        assert bytes_of(store) == reference


def test_threads_give_the_same_bytes(gpt2, data, tmp_path):
    entry = ModelEntry(f"hf:{gpt2}")
    extract(data, [entry], tmp_path / "loop", batch_size=2, rows_per_part=3)
    with ThreadPoolExecutor(3) as executor:
        extract(data, [entry], tmp_path / "threads", batch_size=2, rows_per_part=3, executor=executor)
    assert bytes_of(tmp_path / "threads") == bytes_of(tmp_path / "loop")


@pytest.mark.slow
def test_processes_give_the_same_bytes_and_load_a_model_once_each(gpt2, data, tmp_path):
    entry = ModelEntry(f"hf:{gpt2}")
    extract(data, [entry], tmp_path / "loop", batch_size=2, rows_per_part=3)
    torch.save({"features": torch.arange(22.0).reshape(11, 2)}, tmp_path / "a.pt")
    files = ModelEntry(f"array:{tmp_path / 'a.pt'}", modality="other", ids="rows")
    notes = []
    with ProcessPoolExecutor(1, mp_context=FRESH) as executor:
        got = extract(
            data,
            [entry, files],
            tmp_path / "workers",
            batch_size=2,
            rows_per_part=3,
            executor=executor,
            progress=lambda *a: notes.append(a),
        )
        assert executor.submit(_models_in_memory).result() == 1
    assert torch.equal(got[1].load("features")[:, 0], torch.arange(0.0, 22.0, 2))
    there = bytes_of(tmp_path / "workers")
    assert {k: v for k, v in there.items() if "gpt2" in k} == {
        k: v for k, v in bytes_of(tmp_path / "loop").items() if "gpt2" in k
    }
    assert notes[-1][:3] == (f"extract array:{tmp_path / 'a.pt'}", 11, 11)


def _models_in_memory() -> int:
    return len(parts._models)


class Counting(Executor):
    """Runs at once, and counts; a model is loaded once for all parts."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, fn, /, *args, **kwargs):
        import pickle

        self.calls += 1
        future: Future = Future()
        fn, args = pickle.loads(pickle.dumps((fn, args)))  # as another process would get them
        try:
            future.set_result(fn(*args, **kwargs))
        except RepalignError as error:
            future.set_exception(error)
        return future


def test_jobs_are_plain_data_and_share_a_loaded_model(squares, tmp_path):
    executor = Counting()
    got = extract(numbers(50), [ENTRY], tmp_path, rows_per_part=10, executor=executor)[0]
    assert (executor.calls, squares.loads) == (5, 1)
    assert torch.equal(got.load("both")[:, 0], torch.arange(50.0))
    assert parts._models == {}  # nothing is kept in memory after the call


def test_an_error_in_a_worker_is_the_same_error(data, tmp_path):
    folder = tiny.gpt2(tmp_path / "model", positions=20)
    with pytest.raises(RepalignError, match=r"row \d+ \(id 's\d+'\) is longer than the model's context"):
        extract(data, [f"hf:{folder}"], tmp_path / "store", executor=Counting(), rows_per_part=4)


def test_models_on_one_dataset_share_a_store(gpt2, data, tmp_path):
    got = extract(data, [f"hf:{gpt2}", ModelEntry(f"hf:{gpt2}", name="last", pooling="last")], tmp_path)
    assert len({r.key for r in got}) == 2
    assert {r.name for r in FeatureStore(tmp_path).representations(data.fingerprint)} == {gpt2.name, "last"}


class Elsewhere(Executor):
    """Another process as far as it matters: all is pickled, and the working folder is another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def submit(self, fn, /, *args, **kwargs):
        import contextlib
        import pickle

        done = Future()
        try:
            sent = pickle.loads(pickle.dumps((fn, args, kwargs)))
            with contextlib.chdir(self.folder):
                done.set_result(sent[0](*sent[1], **sent[2]))
        except BaseException as error:
            done.set_exception(error)
        return done


STORES = ["store", "./a/../store", "deep/er/store", "file://store"]


@pytest.mark.parametrize("store", STORES)
def test_relative_paths_mean_the_same_in_a_worker(store, tmp_path, monkeypatch):
    """The store, and the file that a model is."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(here)
    x = np.arange(24.0, dtype="float32").reshape(8, 3)
    np.save("x.npy", x)
    data = Dataset.from_arrays({"thing": x}, ids=[f"i{i}" for i in range(8)])
    entry = ModelEntry("array:x.npy", modality="thing", ids="rows")
    (got,) = extract(data, [entry], store, rows_per_part=3, executor=Elsewhere(there))
    assert not list(there.rglob("*")) and len(list(here.rglob("part-*"))) == 3
    assert got.record.spec == "array:x.npy"  # as it was said: the key is the one that it was
    monkeypatch.chdir(there)
    assert np.array_equal(got.load("features").numpy(), x)  # nor does it matter where it is read
    assert FeatureStore(here / "store" if "deep" not in store else here / store).representations()


@pytest.mark.parametrize("url", ["memory://one/store", "simplecache::memory://two/store"])
def test_the_memory_of_a_process_is_not_shared(url, tmp_path):
    x = np.arange(12.0, dtype="float32").reshape(4, 3)
    np.save(tmp_path / "x.npy", x)
    data = Dataset.from_arrays({"thing": x}, ids=list("abcd"))
    entries = [ModelEntry(f"array:{tmp_path / 'x.npy'}", modality="thing", ids="rows")]
    with pytest.raises(RepalignError, match=r"is in the memory of this process(.|\n)*do: put the store into a folder; or use thr"):
        extract(data, entries, url, rows_per_part=2, executor=Elsewhere(tmp_path))
    if not url.startswith("simple"):
        with ThreadPoolExecutor(2) as threads:  # they share it
            assert extract(data, entries, url, rows_per_part=2, executor=threads)[0].n == 4
