"""`repalign init`: the study file that it writes is valid and can be planned, whatever the folder holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from repalign import cli
from repalign.errors import RepalignError
from repalign.study import load_study, schema
from repalign.study.first import write_first

N = 24
CAPTIONS = [f"scene number {i} with {i % 5} small things" for i in range(N)]


def photos(folder: Path, n: int = N) -> list[str]:
    folder.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(folder / f"p{i:02d}.png")
    return [f"{folder.name}/p{i:02d}.png" for i in range(n)]


def arrays(folder: Path, *names: str, n: int = N) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        np.save(folder / name, rng.standard_normal((n, 6)))


def planned(folder: Path) -> tuple[dict, str, str]:
    """The fields of the study of a folder, its text, and what its plan says."""
    out = folder / "study.yaml"
    write_first(folder, out)
    text = out.read_text("utf-8")
    return yaml.safe_load(text), text, "\n".join(load_study(out).plan().lines)


def test_files_of_features_are_compared_with_each_other(tmp_path: Path):
    arrays(tmp_path, "clip.npy", "dino.npy", "same.npy")
    arrays(tmp_path, "other.npy", n=7)
    np.savez(tmp_path / "same.npz", a=np.random.default_rng(1).standard_normal((N, 3)))
    (tmp_path / "words.npy").write_bytes(b"no array")
    said, text, plan = planned(tmp_path)
    twins = [{"spec": "array:same.npy", "name": "same.npy"}, {"spec": "array:same.npz", "name": "same.npz"}]
    assert said["models"] == ["array:clip.npy", "array:dino.npy", *twins] and "dataset" not in said
    assert "4 models, 6 pairs" in plan and f"n = {N}" in plan
    assert "have different numbers of rows:\n#   - \"array:other.npy\"" in text and '#   - "array:words.npy"' in text


def test_a_table_names_its_columns_and_what_is_uncertain(tmp_path: Path):
    names = [Path(name).name for name in photos(tmp_path / "photos")]
    table = pd.DataFrame({"image_id": range(N), "file": names, "title": ["a b"] * N, "caption": CAPTIONS, "label": ["cat"] * N})
    table["score"] = 0.5
    table.loc[3, "file"] = "gone.png"
    table.to_csv(tmp_path / "pairs.csv", index=False)
    said, text, plan = planned(tmp_path)
    columns = {"id": "image_id", "image": "file", "root": "photos", "text": "caption", "on_missing": "drop"}
    assert said["dataset"] == {"table": "pairs.csv", **columns}
    assert said["models"] == {"x": ["bloomz-560m"], "y": ["vit_small_patch14_dinov2.lvd142m"]}
    assert "title may be meant as text too" in text and "1 of its first 20 rows have no image" in text
    assert "# dataset: {folder: photos}" in text and "with 1 number in a row:\n#   - \"array:pairs.csv\"" in text
    assert f"n = {N - 1}, image, text, 1 rows left out" in plan
    assert f"caption  # {schema()['$defs']['DatasetConfig']['properties']['text']['description']}" in text


def test_a_table_of_texts_alone_has_two_models_of_texts(tmp_path: Path):
    lines = [json.dumps({"captions": [text, "another"], "n": i}) for i, text in enumerate(CAPTIONS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), "utf-8")
    said, text, plan = planned(tmp_path)
    assert said["dataset"] == {"table": "texts.jsonl", "id": None, "text": "captions"} and "no column is called id" in text
    assert said["models"] == ["bloomz-560m", "bloomz-1b1"] and "2 models, 1 pair" in plan


@pytest.mark.parametrize("wide", [3, 40])
def test_a_table_of_texts_and_numbers_is_what_it_holds_more_of(tmp_path: Path, wide: int):
    numbers = pd.DataFrame(np.random.default_rng(0).standard_normal((N, wide)), columns=[f"f{i}" for i in range(wide)])
    for name in ("both", "more"):
        numbers.assign(caption=CAPTIONS, id=range(N)).to_parquet(tmp_path / f"{name}.parquet", index=False)
    said, text, _ = planned(tmp_path)
    as_table = "{table: both.parquet, id: id, text: caption}"
    assert ("dataset" in said) is (wide == 3) is (f"# dataset: {as_table}" not in text)
    assert wide == 3 or said["models"] == ["array:both.parquet", "array:more.parquet"]


@pytest.mark.parametrize("captioned", [0, N - 2, N])
def test_a_folder_of_images(tmp_path: Path, captioned: int):
    for i, name in enumerate(photos(tmp_path / "photos")[N - captioned :]):
        (tmp_path / name).with_suffix(".txt").write_text(CAPTIONS[i], "utf-8")
    said, _, plan = planned(tmp_path)
    assert said["dataset"] == {"folder": "photos", **({"on_missing": "drop"} if captioned == N - 2 else {})}
    assert isinstance(said["models"], dict if captioned else list) and f"n = {captioned or N}, image" in plan


def test_images_beside_the_study_would_be_among_its_figures(tmp_path: Path):
    photos(tmp_path / "photos")
    said, text, plan = planned(tmp_path / "photos")
    assert "4 models, 4 pairs" in plan and "toy" in said["dataset"]
    assert "# dataset: {folder: \".\"}" in text and "write the study elsewhere" in text
    write_first(tmp_path / "photos", tmp_path / "mine.yaml")
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text("utf-8"))["dataset"] == {"folder": "photos"}


def test_models_of_the_folder_read_the_stimuli_that_they_can(tmp_path: Path):
    pytest.importorskip("timm", reason="needs the extra `models`")
    import tiny_models

    names = photos(tmp_path / "photos", 4)
    pd.DataFrame({"id": range(4), "image": names, "caption": CAPTIONS[:4]}).to_csv(tmp_path / "pairs.csv", index=False)
    tiny_models.gpt2(tmp_path / "gpt")
    tiny_models.timm_vit(tmp_path / "vit")
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((tmp_path / "gpt" / name).read_bytes())
    arrays(tmp_path, "clip.npy", n=4)
    out = tmp_path / "study.yaml"
    write_first(tmp_path, out)
    text = out.read_text("utf-8")
    assert yaml.safe_load(text)["models"] == {"x": ["hf:./gpt"], "y": ["timm:./vit"]}
    assert '#   - "hf:./bare"' in text and '#   - {spec: "array:clip.npy", modality: image}' in text
    assert [Path(entry.spec).name for entry in load_study(out).x] == ["gpt"]


def test_nothing_is_a_study_of_the_toy_world_and_nothing_is_overwritten(tmp_path: Path, monkeypatch, capsys):
    arrays(tmp_path, "alone.npy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["repalign", "init"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    streams = capsys.readouterr()
    assert not end.value.code and "next: repalign run study.yaml --plan" in streams.out
    assert "dataset: nothing that can be compared, so this is the toy world" in streams.err
    text = Path("study.yaml").read_text("utf-8")
    assert text.startswith("# yaml-language-server: $schema=study.schema.json\n")
    assert json.loads(Path("study.schema.json").read_text("utf-8")) == schema()
    assert "a file alone has nothing to be compared with:\n#   - \"array:alone.npy\"" in text
    for said in ("preset", "null", "figures"):  # what is offered as a comment is right too
        text = text.replace(f"# {said}: ", f"{said}: ")
    Path("more.yaml").write_text(text, "utf-8")
    assert load_study("more.yaml").config.preset == "platonic-rep"
    with pytest.raises(RepalignError, match=r"study.yaml is there already\n  expected: a new file"):
        write_first(tmp_path, Path("study.yaml"))
    with pytest.raises(RepalignError, match="there is no folder nowhere"):
        write_first(Path("nowhere"), Path("other.yaml"))
