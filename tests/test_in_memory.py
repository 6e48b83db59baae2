"""Models and data in memory: what a user has in hands is run as it is, gives right numbers, and is left as it was."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import tiny_models as tiny
from repalign import Dataset, RepalignError

X = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)

# --- data ----------------------------------------------------------------------------------------

FRAME = pd.DataFrame({"key": [3, 1, 2], "text": ["a dog", "a cat", "a cow"], "label": [0, 1, 1]})


def test_a_frame_is_a_table():
    import pyarrow as pa

    d = Dataset.from_table(FRAME, text="text")
    assert d.ids == ("00000", "00001", "00002") and "ids are row numbers" in d.source
    assert [t for (t,) in d.stimuli("text", range(3))] == FRAME["text"].tolist()
    assert Dataset.from_table(FRAME, id="key", text="text").ids == ("3", "1", "2")
    assert Dataset.from_table(FRAME.rename(columns={"key": "id"}), text="text").ids == ("3", "1", "2")
    same = [pa.Table.from_pandas(FRAME), FRAME.to_dict("records"), FRAME.astype({"text": "category"})]
    assert {Dataset.from_table(t, text="text").fingerprint for t in same} == {d.fingerprint}
    assert Dataset.from_table(FRAME.assign(text=FRAME["text"].str.upper()), text="text").fingerprint != d.fingerprint
    several = FRAME.assign(text=[["a", "b"], ["c"], ["d"]])
    assert Dataset.from_table(several, text="text").stimuli("text", [0]) == [("a", "b")]
    holes = FRAME.assign(text=["a", None, float("nan")])
    with pytest.raises(RepalignError, match="2 of 3 rows cannot be used: row 1 .*caption missing"):
        Dataset.from_table(holes, text="text")
    assert Dataset.from_table(holes, text="text", on_missing="drop").n == 1
    twice = FRAME.rename(columns={"key": "text"})
    for given, message in ((twice, "column 'text' is there twice"), (3, "made of no int(.|\n)*Dataset.of")):
        with pytest.raises(RepalignError, match=message):
            Dataset.from_table(given, text="text")
    with pytest.raises(RepalignError, match="DataFrame has no column 'txt'"):
        Dataset.from_table(FRAME, text="txt")


def test_pictures_in_a_frame(tmp_path):
    pictures = tiny.images(3)
    pictures[0].save(tmp_path / "a.png")
    frame = FRAME.assign(image=pictures)
    d = Dataset.from_table(frame, image="image", text="text")
    assert [np.array_equal(a, b) for a, b in zip(d.stimuli("image", range(3)), pictures, strict=True)] == [True] * 3
    cells = ["a.png", (tmp_path / "a.png").read_bytes(), {"bytes": None, "path": "a.png"}]
    files = Dataset.from_table(FRAME.assign(image=cells), image="image", root=tmp_path)
    assert np.array_equal(files.stimuli("image", [1])[0], pictures[0])
    pictures[1].putpixel((0, 0), (1, 2, 3))
    assert Dataset.from_table(frame, image="image", text="text").fingerprint != d.fingerprint
    with pytest.raises(RepalignError, match="image 'image in memory' has changed since the dataset was opened"):
        d.stimuli("image", [1])
    deep = Image.fromarray(np.ones((4, 4), np.float32))
    with pytest.raises(RepalignError, match="mode 'F' have no defined range"):
        Dataset.of(image=[deep])


def test_lists_of_stimuli():
    pictures = tiny.images(4)
    d = Dataset.of(image=pictures, text=["a", "b", ["c", "d"], "e"], ids=[4, 3, 2, 1], name="mine")
    assert (d.name, d.modalities, d.ids) == ("mine", ("image", "text"), ("4", "3", "2", "1"))
    assert d.stimuli("text", [2]) == [("c", "d")] and d.kind("image") == "image"
    by_arrays = Dataset.of(image=[np.asarray(p) for p in pictures], text=["a", "b", ["c", "d"], "e"], ids=[4, 3, 2, 1])
    assert by_arrays.fingerprint == d.fingerprint != Dataset.of(image=pictures, text=["a", "b", ["c", "d"], "e"]).fingerprint
    mixed = Dataset.of(image=torch.rand(4, 3, 8, 8), latent=np.zeros((4, 2)), text=list("abcd"))
    assert [mixed.kind(m) for m in mixed.modalities] == ["array", "array", "text"]
    clear = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    assert np.asarray(Dataset.of(image=[clear]).stimuli("image", [0])[0]).min() == 255  # over white, as in files
    for given, message in (
        ({"text": "abc"}, "text: it is no list"), ({"text": ["a"], "image": pictures}, "unequal length(.|\n)*1 text, 4 image"),
        ({"text": ["a"], "ids": ["a", "b"]}, "2 ids, 1 text"), ({}, "no rows"),
        ({"eyes": pictures}, "no arrays of one shape(.|\n)*pictures under `image`"),
        ({"x": [np.ones(2), np.ones(3)]}, "same shape"), ({"text": ["a", "b"], "ids": ["a", "a"]}, "the same id 'a'"),
    ):  # fmt: skip
        with pytest.raises(RepalignError, match=message):
            Dataset.of(**given)


class Items(torch.utils.data.Dataset):
    def __init__(self, items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_datasets_of_torch():
    pictures = tiny.images(4)
    labelled = Items(list(zip(pictures, range(4), strict=True)))
    for given in (labelled, torch.utils.data.DataLoader(labelled, batch_size=2, shuffle=True)):
        d = Dataset.from_torch(given)
        assert d.modalities == ("image",) and d.fingerprint == Dataset.of(image=pictures).fingerprint and d.name == "Items"
    named = Items([{"pixels": torch.full((3, 2, 2), float(i)), "caption": f"no. {i}"} for i in range(4)])
    d = Dataset.from_torch(named, image="pixels", text="caption")
    assert (d.kind("image"), d.stimuli("text", [3])) == ("array", [("no. 3",)]) and d.stimuli("image", [2])[0].max() == 2
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.arange(7))
    assert Dataset.from_torch(tensors).fingerprint == Dataset.of(image=X).fingerprint
    assert Dataset.from_torch(Items(["a", "b"])).modalities == ("text",)
    with pytest.raises(RepalignError, match="which fields(.|\n)*the keys are 'pixels', 'caption'"):
        Dataset.from_torch(named)
    with pytest.raises(RepalignError, match="no field 'x'"):
        Dataset.from_torch(named, image="x")


def test_a_dataset_of_the_datasets_library():
    datasets = pytest.importorskip("datasets", reason="the extra repalign[models] is not installed")
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "image": tiny.images(2)}, features=features)
    d = Dataset.from_table(data, text="text", image="image")
    assert d.ids == ("00000", "00001") and np.array_equal(d.stimuli("image", [1])[0], tiny.images(2)[1])
    assert {Dataset.from_hub(data, text="text", image="image").fingerprint, Dataset.from_table(
        data.to_pandas(), text="text", image="image").fingerprint} == {d.fingerprint}  # fmt: skip
    assert Dataset.from_table(data.add_column("id", ["x", "y"]), text="text").ids == ("x", "y")
