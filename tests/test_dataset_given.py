"""Columns that a user's own function reads: files of any sort and values, from a table to a study's result."""

from __future__ import annotations

import csv
import math
import os
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import repalign
from repalign.dataset import Dataset
from repalign.errors import RepalignError
from repalign.sources import ModelEntry
from repalign.store import FeatureStore
from repalign.study import load_study

N, SAMPLES = 24, 400

FUNCTIONS = '''
import wave
import numpy as np

def embed(paths):
    return {"low": [spectrum(p)[:40] for p in paths], "high": [spectrum(p)[40:] for p in paths]}

def spectrum(path):
    with wave.open(path) as file:
        return np.abs(np.fft.rfft(np.frombuffer(file.readframes(file.getnframes()), "<i2")))

def pitches(captions):
    return [[float(word) for word in c.split() if word.isdigit()] for c in captions]

def wrong_rows(paths):
    return np.ones((len(paths) + 1, 3))

def wrong_widths(paths):
    return np.ones((len(paths), 2 + (not paths[0].endswith("0.wav"))))

def not_numbers(paths):
    return [np.log([-1.0, 2.0]) for p in paths]

def fails(paths):
    return [open(p + ".gone") for p in paths]

def random(paths):
    return np.random.default_rng().normal(size=(len(paths), 3))

def two(paths, more):
    return paths

def build():
    return pitches

def number():
    return 3
'''


def sweep(path: Path, start: float, end: float) -> None:
    times = np.arange(SAMPLES) / 8000
    turns = start * times + (end - start) * times**2 / (2 * SAMPLES / 8000)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((np.sin(2 * math.pi * turns) * 20000).astype("<i2").tobytes())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sine sweeps with captions that say where they start and end, and functions that read them."""
    rng = np.random.default_rng(0)
    rows: list[Any] = [("id", "file", "caption")]
    for i, (start, end) in enumerate(rng.integers(200, 3000, (N, 2)).tolist()):
        (tmp_path / "clips").mkdir(exist_ok=True)
        sweep(tmp_path / f"clips/{i}.wav", start, end)
        rows.append((f"c{i}", f"clips/{i}.wav", f"from {start} to {end} hertz"))
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (tmp_path / "audio.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def clips(folder: Path, **more: Any) -> Dataset:
    return Dataset.from_table(folder / "clips.csv", text="caption", files={"audio": "file"}, **more)


def study(folder: Path, name: str = "embed", **dataset: Any) -> Path:
    said = {
        "name": "sounds", "measures": ["MutualKNN(k=5, center=True)"],
        "dataset": {"table": "clips.csv", "id": "id", "text": "caption", "files": {"audio": "file"}, **dataset},
        "models": {
            "x": [{"spec": f"torch:./audio.py:{name}", "modality": "audio"}],
            "y": [{"spec": "torch:./audio.py:pitches", "modality": "text"}],
        },
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(said))
    return folder / "study.yaml"


def features(data: Dataset, name: str, column: str = "audio", **more: Any) -> Any:
    return repalign.extract(data, [ModelEntry(f"torch:./audio.py:{name}", modality=column)], **more)[0]


# --- end to end ----------------------------------------------------------------------------------


def test_a_study_of_sounds_and_captions(folder: Path) -> None:
    result = load_study(study(folder)).run().alignment
    best = result.best().iloc[0]
    assert best["n"] == N and best["pvalue"] < 0.05 and best["statistic"] > 2 * best["null_mean"]
    path = folder / "clips/0.wav"
    with wave.open(str(path)) as file:
        frames = np.frombuffer(file.readframes(SAMPLES), "<i2")
    made = next(r for r in FeatureStore(folder / "runs/store").representations() if r.record.modality == "audio")
    np.testing.assert_allclose(made.load("low")[0], np.abs(np.fft.rfft(frames))[:40], rtol=1e-6)


def test_one_byte_of_one_file_is_another_dataset_and_is_extracted_again(folder: Path) -> None:
    data, store, told = clips(folder), folder / "store", []
    features(data, "embed", store=store)
    features(clips(folder), "embed", store=store, progress=lambda task, done, n, note=None: told.append(note))
    assert told == ["complete in the store"]
    path = folder / "clips/7.wav"
    held = bytearray(path.read_bytes())
    held[-1] ^= 1
    path.write_bytes(held)
    changed = clips(folder)
    assert changed.fingerprint != data.fingerprint
    assert [a == b for a, b in zip(data.columns["audio"].digests, changed.columns["audio"].digests, strict=True)].count(False) == 1
    told.clear()
    features(changed, "embed", store=store, progress=lambda task, done, n, note=None: told.append(note))
    assert "complete in the store" not in told
    with pytest.raises(RepalignError, match=r"file 'clips/7.wav' has changed since the dataset was opened"):
        data.stimuli("audio", [7])


def test_what_moves_and_what_stays_when_files_move(folder: Path) -> None:
    data = clips(folder)
    (folder / "clips").rename(folder / "moved")
    moved = Dataset.from_table(
        [{"id": f"c{i}", "file": f"moved/{i}.wav", "caption": t[0]} for i, t in enumerate(data.stimuli("text", range(N)))],
        text="caption", files={"audio": "file"},
    )  # fmt: skip
    assert moved.fingerprint == data.fingerprint  # the path does not count
    assert data.kind("audio") == "file" and moved.stimuli("audio", [1]) == [str(Path("moved/1.wav").absolute())]
    with pytest.raises(RepalignError, match="can no longer be read"):
        data.stimuli("audio", [1])


def test_a_plan_runs_nothing_and_a_mock_stands_in(folder: Path) -> None:
    (folder / "audio.py").write_text("raise SystemExit('run')")
    whole = load_study(study(folder, values={"number": "id"}))
    assert "dataset clips: n = 24, audio, number, text" in whole.plan().lines


def test_a_mock_makes_up_files_and_values(folder: Path) -> None:
    from repalign.study.mock import mock_study

    mocked = mock_study(load_study(study(folder, values={"words": "caption", "path": "file"})))
    data = mocked.variants[0].config.dataset.open(folder)
    assert set(data.modalities) == {"audio", "path", "text", "words"} and data.n >= 200
    result = mocked.run().alignment
    assert np.isfinite(result.table["statistic"]).all()


# --- what a function may be ----------------------------------------------------------------------


def test_a_function_by_its_file_as_a_factory_and_in_memory_is_the_same(folder: Path) -> None:
    data, names = clips(folder), {}
    exec(FUNCTIONS, names)
    one, two = features(data, "pitches", "text"), features(data, "build", "text")
    three = repalign.extract(data, repalign.Model(names["pitches"], modality="text"))[0]
    for other in (two, three):
        np.testing.assert_array_equal(one.load("output"), other.load("output"))
    assert one.record.revision == two.record.revision  # of the same function, which the specs name in two ways


def test_what_a_function_uses_is_in_its_revision(folder: Path) -> None:
    data = clips(folder)
    code = "import numpy as np, torch\nW = torch.full((1, 2), {})\ndef f(texts): return [W[0] * len(t) for t in texts]\n"
    revisions = set()
    for weight in ("1.0", "2.0", "float('1.0')"):
        (folder / "f.py").write_text(code.format(weight))
        os.utime(folder / "f.py", (1e9, 1e9))  # all within one second
        made = repalign.extract(data, [ModelEntry("torch:./f.py:f", modality="text")])[0]
        revisions.add((made.record.revision, float(made.load("output")[0, 0])))
    assert len({r for r, _ in revisions}) == 3 and len({x for _, x in revisions}) == 2


# --- values --------------------------------------------------------------------------------------


def test_values_are_given_as_they_are_and_each_counts() -> None:
    cells = ["CCO", 3, 3.0, True, [1.5, 2], {"a": [1]}, b"CCO", np.arange(3.0), np.arange(3), "3"]
    data = Dataset.of(values={"any": cells})
    got = data.stimuli("any", range(len(cells)))
    assert all(type(a) is type(b) for a, b in zip(cells, got, strict=True)) and got[:7] == cells[:7]
    assert len(set(data.columns["any"].digests)) == len(cells)
    assert data.kind("any") == "value" and data.subset([data.ids[6]]).stimuli("any", [0]) == [b"CCO"]
    again = Dataset.of(values={"any": [*cells[:7], np.arange(3.0), np.arange(3), "3"]})
    assert again.fingerprint == data.fingerprint


def test_values_of_unequal_length_reach_the_function() -> None:
    spectra = [np.arange(float(n + 2)) for n in range(12)]
    data = Dataset.of(values={"spectrum": spectra}, text=[f"{n + 2}" for n in range(12)])
    made = repalign.extract(data, repalign.Model(lambda some: [[x.mean(), x.size] for x in some], modality="spectrum"))[0]
    np.testing.assert_allclose(made.load("output")[:, 0], [x.mean() for x in spectra])


def test_files_in_memory_are_bytes_and_have_the_digest_of_the_file(folder: Path) -> None:
    data = clips(folder)
    paths = sorted((folder / "clips").iterdir(), key=lambda p: int(p.stem))
    held = Dataset.of(files={"audio": [p.read_bytes() for p in paths]}, ids=data.ids)
    assert held.columns["audio"].digests == data.columns["audio"].digests
    assert held.stimuli("audio", [3]) == [paths[3].read_bytes()]
    assert Dataset.of(files={"audio": paths}).stimuli("audio", [3]) == [str(paths[3])]


def test_files_of_the_datasets_library(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = [str(folder / f"clips/{i}.wav") for i in range(4)]
    rows = {"id": ["a", "b", "c", "d"], "sound": paths, "n": [1, 2, 3, 4], "cell": [{"bytes": b"x", "path": None}] * 4}
    data = datasets.Dataset.from_dict(rows).cast_column("sound", datasets.Audio(decode=False))
    made = Dataset.from_table(data, files={"audio": "sound", "other": "cell"}, values={"n": "n"})
    assert made.stimuli("audio", [2]) == [Path(paths[2]).read_bytes()] and made.stimuli("other", [0]) == [b"x"]
    assert made.stimuli("n", [3]) == [4]
    with pytest.raises(RepalignError, match="column 'n' holds no files"):
        Dataset.from_table(data, files={"audio": "n"})


# --- what is refused -----------------------------------------------------------------------------


def test_a_missing_file_is_named_or_dropped(folder: Path) -> None:
    (folder / "clips/3.wav").unlink()
    with pytest.raises(RepalignError, match=r"row 3 \(id 'c3'\): file not found: 'clips/3.wav'"):
        clips(folder)
    with pytest.raises(RepalignError, match=r"study.yaml, line \d+, dataset.table: .*file not found: 'clips/3.wav'"):
        load_study(study(folder)).plan()
    left = clips(folder, on_missing="drop")
    assert left.n == N - 1 and left.left_out[0].id == "c3"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong_rows", r"layer output: not one row for each of the stimuli"),
        ("wrong_widths", r"vectors of another length for other stimuli\n.*expected: 2 numbers.*\n.*got: 3 numbers"),
        ("not_numbers", r"torch:./audio.py:not_numbers, layer 'output': the row of id 'c0' \(row 0\) is NaN"),
        ("fails", r"(?s)the function fails: FileNotFoundError.*line 25 of audio.py, given 2 stimuli of column audio"),
        ("random", r"a stimulus has another vector beside others than alone"),
        ("two", r"two takes 2 arguments"),
        ("number", r"(?s)returns something else than a model.*a function of a batch"),
        ("embeds", r"(?s)no function 'embeds' in ./audio.py.*did you mean"),
    ],
)
def test_functions_that_are_refused(folder: Path, name: str, said: str) -> None:
    with pytest.raises(RepalignError, match=said), np.errstate(all="ignore"):
        features(clips(folder), name, batch_size=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"files": {"audio": "sound"}}, "no column 'sound'"),
        ({"files": {"text": "file"}, "text": "caption"}, "two columns are the modality 'text'"),
        ({"files": {"a": "file"}, "values": {"a": "id"}}, "two columns are the modality 'a'"),
        ({"files": "file"}, r"nothing says what the files are"),
        ({"files": {"audio": "caption"}}, r"file not found: 'from \d+ to \d+ hertz'"),
        ({"audio": "file"}, "no kind of stimuli 'audio'"),
    ],
)
def test_columns_that_are_refused(folder: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RepalignError, match=said):
        Dataset.from_table(folder / "clips.csv", **given)


def test_values_that_are_refused() -> None:
    with pytest.raises(RepalignError, match=r"row 1 .*nothing tells one object from another"):
        Dataset.of(values={"x": [1, object()]})
    with pytest.raises(RepalignError, match=r"row 0 .*value missing: None"):
        Dataset.of(values={"x": [None, 1]})
    with pytest.raises(RepalignError, match="cannot be distorted"):
        Dataset.of(values={"x": [1, 2]}).distort("x", "noise", 0.5)


def test_models_of_images_do_not_take_files(folder: Path) -> None:
    with pytest.raises(RepalignError, match=r"(?s)line 2, dataset.*toy.*|cannot read column"):
        repalign.extract(clips(folder), ["toy:vision-pixels"])
