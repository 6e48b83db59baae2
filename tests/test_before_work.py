"""Mistakes in a study: all of them are told at once, with file, line and what to do, and nothing has been run or written."""

from __future__ import annotations

import copy
import datetime
import itertools
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import BaseModel, ValidationError

import repalign
import tiny_models as tiny
from repalign import cli, errors
from repalign.errors import RepalignError
from repalign.prh.colour_study import ColourConfig
from repalign.prh.theory_study import TheoryConfig
from repalign.study import Where, load_study
from repalign.study.config import AlignmentConfig
from repalign.study.yaml_words import forms_of

N = 24
# Lines 1 to 12; every mistake below changes one of them.
GOOD = """\
name: pairs
dataset: {table: pairs.csv, id: id, text: caption}
models:
  x:
    - {spec: "array:x.npy", name: mine}
    - {spec: "hf:./gpt", pooling: mean, layers: [0, -1]}
  y:
    - "array:y.npz"
measures: ["CKA()", "MutualKNN(k=5)"]
null: {method: permutation, draws: 19, seed: 3}
figures: [{matrix: {value: pvalue}}]
extract: {device: cpu}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The files that the study names, and some that are wrong."""
    folder = tmp_path_factory.mktemp("made")
    rng, ids = np.random.default_rng(0), [f"s{i}" for i in range(N)]
    x = rng.standard_normal((N, 6))
    (folder / "pairs.csv").write_text("id,caption\n" + "".join(f"{i},a dog runs\n" for i in ids))
    np.save(folder / "x.npy", x)
    (folder / "x.npy.ids.txt").write_text("\n".join(ids))
    np.savez(folder / "y.npz", early=x[:, :3], late=x[::-1], ids=np.array(ids))
    np.save(folder / "bare.npy", x)
    np.save(folder / "long.npy", np.vstack([x, x]))
    np.savez(folder / "few.npz", late=x[:-2], ids=np.array(ids[:-2]))
    np.save(folder / "square.npy", x @ x.T)
    np.save(folder / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "cut.npy").write_bytes((folder / "x.npy").read_bytes()[:-100])
    (folder / "groups.csv").write_text("id,group\ns0,a\n")
    tiny.gpt2(folder / "gpt")
    (folder / "pickles").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / "pickles" / name).write_bytes((folder / "gpt" / name).read_bytes())
    torch.save({}, folder / "pickles" / "pytorch_model.bin")
    tiny.vit(folder / "vit")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_bytes((folder / "gpt" / "config.json").read_bytes())
    (folder / "broken" / "model.safetensors").write_bytes((folder / "gpt" / "model.safetensors").read_bytes()[:-50])
    return folder


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refused(folder: Path, text: str, capsys, monkeypatch) -> str:
    """What planning the study says, which is what the command says; neither leaves anything behind."""
    path = folder / "study.yaml"
    path.write_text(text)
    there = everything(folder)
    with pytest.raises(RepalignError) as told:
        load_study(path).plan()
    message = str(told.value)
    monkeypatch.setattr(sys, "argv", ["repalign", "run", str(path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr().err
    assert stop.value.code == 1 and "Traceback" not in said and message in said, said
    assert everything(folder) == there
    assert not re.search(r"[Ii]nput should|valid (dictionary|string|list|integer)|instance of|Extra inputs|Field required", message)
    return message


MINE = '{spec: "array:x.npy", name: mine}'
Y = '"array:y.npz"'
GPT = '{spec: "hf:./gpt", pooling: mean, layers: [0, -1]}'
# What is changed into what; the line that is named; what is said; what there is to do.
MISTAKES = {
    # files and models
    "no such array": ("array:x.npy", "array:qqqqq", 5, "there is no file .*qqqqq", "check the path"),
    "an array of another name": ("array:x.npy", "array:xs.npy", 5, "there is no file .*xs.npy", "did you mean 'x.npy'"),
    "a folder as an array": ("array:x.npy", "array:gpt", 5, "there is no file(.|\n)*got: a folder", "check the path"),
    "an array of pickles": ("array:x.npy", "array:pickled.npy", 5, "pickled", "never loaded"),
    "an array cut short": ("array:x.npy", "array:cut.npy", 5, "cannot be read(.|\n)*it ends after", "write it again"),
    "no array": ("array:x.npy", "array:gpt/config.json", 5, "not a file of features", "of a list of records"),
    "no ids": ("array:x.npy", "array:bare.npy", 5, "bare.npy says no ids", "`ids: rows`"),
    "another row count": (
        MINE, '{spec: "array:long.npy", ids: rows}', 5, "another number of rows(.|\n)*n = 48", "give the file ids",
    ),
    "ids that do not cover": (Y, '"array:few.npz"', 8, "lacks 2 of 24 stimuli", "complete the file"),
    "an unmarked matrix": (MINE, '{spec: "array:square.npy", ids: rows}', 5, "square and symmetric", "kind: rdm"),
    "no such layer of a file": (Y, '{spec: "array:y.npz", layers: [lat]}', 8, "no layer 'lat'", "did you mean 'late'"),
    "no such index of a file": (Y, '{spec: "array:y.npz", layers: [2]}', 8, "no layer 2(.|\n)*-2 to 1", "late"),
    "no such index of a model": ("[0, -1]", "[0, 9]", 6, "no layer 9(.|\n)*-4 to 3", "block.2"),
    "no such layer of a model": ("[0, -1]", "[block.7]", 6, "no layer 'block.7'", "did you mean 'block"),
    "no such pooling": ("pooling: mean", "pooling: men", 6, "pooling 'men' does not apply", "did you mean 'mean'"),
    "a class token of a causal model": (
        "pooling: mean", "pooling: cls", 6, "pooling 'cls' does not apply(.|\n)*mean, last", "did you mean 'last'",
    ),
    "pickled weights only": ("hf:./gpt", "hf:./pickles", 6, "no safetensors weights", "convert them once"),
    "weights cut short": (GPT, '"hf:./broken"', 6, "cannot be loaded", "save model and tokenizer"),
    "no such folder": ("hf:./gpt", "hf:./gpt3", 6, "there is no folder .*gpt3", "did you mean 'gpt'"),
    "a folder as a name": ("hf:./gpt", "hf:gpt", 6, "there is a folder gpt", "did you mean ./gpt"),
    "a bare folder": (Y, "gpt", 8, "'./gpt' is a folder", "did you mean \"hf:./gpt\""),
    "a bare file": (Y, "x.npy", 8, "'x.npy' is a file", "did you mean \"array:x.npy\""),
    "an unknown model": (Y, "bloomz-560mm", 8, "no known model", "did you mean 'bloomz-560m'"),
    "an unknown scheme": ("array:x.npy", "arry:x.npy", 5, "no known scheme", "did you mean 'array'"),
    "an unknown toy": (Y, '"toy:vision-cn"', 8, "there is no toy model", "did you mean 'vision"),
    "an unknown model of timm": (Y, '"timm:vit_bse"', 8, "timm has no pretrained model", "did you mean "),
    "no such code": (Y, '{spec: "torch:./m.py:build", modality: text}', 8, "m.py cannot be imported", "check the path"),
    "a model that sees, and no images": (Y, '"hf:./vit"', 8, "cannot read column 'image'", "use a dataset with that modality"),
    "no modality": (Y, '"openclip:ViT-B-32/openai"', 8, "do not say which modality", "add `modality: image`"),
    "no such modality": (GPT, '{spec: "hf:./gpt", modality: image}', 6, "cannot read column 'image'", "add `modality: text`"),
    "a prompt for a file": (
        MINE, '{spec: "array:x.npy", prompt: "{caption}!"}', 5, "a prompt does not go with", "leave `prompt` out",
    ),
    "one name twice": (Y, '{spec: "array:y.npz", name: mine}', 8, "two models are called 'mine'", "another `name`"),
    "one stem twice": (Y, '{spec: "array:./few.npz", name: gpt}', 8, "two models are called 'gpt'", "another `name`"),
    "captions that there are not": (
        "extract:", "captions: {x: 2}\nextract:", 12, "reads caption 1, counted from 0", "fewer captions",
    ),
    # dataset
    "an unknown column": ("text: caption", "text: captions", 2, "has no column 'captions'", "did you mean 'caption'"),
    "no such table": ("pairs.csv", "pair.csv", 2, "there is no table", "did you mean 'pairs.csv'"),
    "two sources": ("table: pairs.csv", "table: pairs.csv, folder: gpt", 2, "exactly one of hub, table", None),
    "no dataset for a model that reads": (
        GOOD.splitlines()[1] + "\n", "", 1, "reads stimuli, and the study has no dataset", "add one",
    ),
    # measures, chance, figures
    "an unknown measure": ('"CKA()"', '"CKAA()"', 9, "unknown measure 'CKAA'", "did you mean 'CKA'"),
    "an unknown parameter": ("k=5", "kk=5", 9, "no parameter 'kk'", "did you mean 'k'|choose one of"),
    "a bad parameter": ("k=5", "k='five'", 9, "k is ", None),
    "k of n": ("k=5", "k=24", 9, "too few stimuli(.|\n)*n >= 25", "a smaller k"),
    "a sample too large": ("null:", "rows: {n: 99}\nnull:", 10, "cannot draw 99 rows", "ask for fewer rows"),
    "an unknown null": ("method: permutation", "method: permute", 10, "unknown null 'permute'", "did you mean 'permutation'"),
    "a search that the null has not": (
        "null: {method: permutation", "search: studentised\nnull: {method: aristotelian", 10,
        "has no layer search(.|\n)*raw max", None,
    ),
    "groups that do not cover": ("seed: 3", "seed: 3, groups: groups.csv", 10, "groups do not fit the stimuli", None),
    "an unknown figure": ("{matrix:", "{matrx:", 11, "no figure is called 'matrx'", "did you mean 'matrix'"),
    "an unknown option": ("value: pvalue", "valu: pvalue", 11, "has no option 'valu'", "did you mean 'value'"),
    "a figure of another measure": ("value: pvalue", 'measure: "RSA()"', 11, "no measure 'RSA", "choose one of|did you mean"),
    "a figure of another variant": ("value: pvalue", "variant: b", 11, "the study has no variant 'b'", None),
    "a device that is not there": ("device: cpu", "device: cuda:7", 12, "device 'cuda:7' cannot be used", "`device: auto`"),
    "an unknown dtype": ("device: cpu", "dtype: float8", 12, "unknown dtype 'float8'", "did you mean 'float"),
    "scores that are not there": (
        "extract:", "competence: {csv: pair.csv}\nextract:", 12, "there is no file .*pair.csv", "did you mean 'pairs.csv'",
    ),
    "no published values": (
        "extract:", "published: pairs.cvs\nextract:", 12, "there is no file .*pairs.cvs", "did you mean 'pairs.csv'",
    ),
    # places
    "results in a file": ("extract:", "results: x.npy/out\nextract:", 12, "x.npy/out cannot be written", "name another folder"),
    "a store that is a file": ("extract:", "store: pairs.csv\nextract:", 12, "pairs.csv is a file", None),
    "a store among other things": ("extract:", "store: gpt\nextract:", 12, "is not a feature store", "name another folder"),
    # YAML
    "an unknown field": ("measures:", "mesures:", 9, "there is no field 'mesures'", "did you mean 'measures'"),
    "an unknown field of a model": ("name: mine", "nam: mine", 5, "there is no field 'nam'", "did you mean 'name'"),
    "a field of the study in a block": (
        "{device: cpu}", "{device: cpu, measures: [CKA()]}", 12, "there is no field 'measures'", "a field of the study itself",
    ),
    "a field of a block in the study": (
        "extract: {device: cpu}", "device: cpu\ndraws: 9", 13, "there is no field 'draws'", "a field of `null`: indent it there",
    ),
    "a field of before": ("name: mine", "bos: skip", 5, "there is no field 'bos'", "write `sink`"),
    "a yes for a number": ("draws: 19", "draws: yes", 10, "wrong kind of value(.|\n)*a whole number(.|\n)*true", "a whole number"),
    "a text for a number": (
        "draws: 19", "draws: many", 10, "wrong kind of value(.|\n)*a whole number(.|\n)*'many'", "10 without quotation",
    ),
    "a fraction for a count": ("draws: 19", "draws: 1.5", 10, "a whole number(.|\n)*the number 1.5", "a whole number"),
    "a count of nothing": ("draws: 19", "draws: 0", 10, "out of range(.|\n)*greater than or equal to 1", None),
    "a value for a list": (
        '["CKA()", "MutualKNN(k=5)"]', "CKA()", 9, r"a list: \[a, b\](.|\n)*the text 'CKA\(\)'", r'\["CKA\(\)"\]',
    ),
    "a mapping for a list": ('["CKA()", "MutualKNN(k=5)"]', "{CKA: 1}", 9, "a list(.|\n)*got: a mapping", "an item a line"),
    "a list for a mapping": ("{device: cpu}", "[cpu]", 12, "a mapping: {(.|\n)*got: a list", None),
    "a text for a mapping": ("{device: cpu}", "cpu", 12, "a mapping: {field: value}(.|\n)*the text 'cpu'", "`name: value` lines"),
    "a figure that is a word": ("{matrix: {value: pvalue}}", "matrix", 11, "a mapping", "`name: value` lines"),
    "yes for a name": ("name: mine", "name: yes", 5, "a text(.|\n)*true, as YAML reads true, yes and on", '"yes"'),
    "a number for a name": ("name: pairs", "name: 12", 1, "a text(.|\n)*the number 12", '"12"'),
    "nothing behind the colon": ("k=5)\"]", "k=5)\", ]\nalpha:", 10, "a number(.|\n)*got: nothing", "or leave the field out"),
    "a half with too few": (
        'k=5)"]', 'k=15)"]\nceilings: {split_half: 2}', 10, "half of dataset(.|\n)*too few stimuli(.|\n)*got: n = 12", None,
    ),
    "no item": ('["CKA()", "MutualKNN(k=5)"]', "[]", 9, "too few items(.|\n)*at least 1", None),
    "an unknown word": ("device: cpu", "on_unavailable: skp", 12, "unknown value 'skp'", "did you mean 'skip'"),
    "a tab": ("    - {spec", "\t- {spec", 5, r"not YAML(.|\n)*\\t", "not with tabs"),
    "a field twice": ("null:", "name: twice\nnull:", 10, "name stands twice(.|\n)*first on line 1", "remove one"),
    "a blank behind the scheme": (Y, "array: y.npz", 8, "there is no field 'array'", 'write "array:y.npz"'),
    "a spec with a colon behind it": (Y, "hf:org/name: {pooling: mean}", 8, "no field 'hf:org/name'", "{spec: \"hf:org/name\""),
    "two colons": ('{spec: "hf:./gpt", pooling: mean, layers: [0, -1]}', "spec: hf:./gpt: x", 6, "not YAML", "in quotation marks"),
    "an open bracket": ("[0, -1]", "[0, -1", 6, "not YAML", "close"),
    "an open quote": ("name: mine", 'name: "mine', None, "not YAML", "quotation marks"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_before_any_work(made, capsys, monkeypatch, case):
    old, new, line, problem, remedy = MISTAKES[case]
    if "openclip" in new:
        pytest.importorskip("open_clip", reason="the extra repalign[openclip] is not installed")
    assert GOOD.count(old) == 1 or old in ("extract:", "    - {spec"), case
    message = refused(made, GOOD.replace(old, new, 1), capsys, monkeypatch)
    print(message)
    assert "problems in" not in message, message
    assert re.search(problem, message) and (remedy is None or re.search(remedy, message)), message
    if line is not None:
        assert re.match(rf"study\.yaml, line {line}\b", message) and re.search(rf"study\.yaml:{line}:\d+$", message), message


# --- several at once -------------------------------------------------------------------------------

FIVE = """\
name: pairs
dataset:
  table: pairs.csv
  id: id
  text: captions
models:
  x: ["array:gone.npy"]
  y: ["array:y.npz"]
measures:
  - CKA()
  - CKAA()
null: {draws: many}
figurs: [{matrix: {}}]
"""


def test_five_independent_mistakes_are_all_told_in_the_order_of_the_file(made, capsys, monkeypatch):
    message = refused(made, FIVE, capsys, monkeypatch)
    head, *rest = message.split("\n")
    told = [line for line in rest if re.match(r"\d\. ", line)]
    assert head == "5 problems in study.yaml:"
    assert [re.match(r"(\d)\. study.yaml, line (\d+), ([^:]+): ", line).groups() for line in told] == [
        ("1", "5", "dataset.text"), ("2", "7", "models.x[0]"), ("3", "11", "measures[1]"), ("4", "12", "null.draws"),
        ("5", "13", "figurs"),
    ]  # fmt: skip
    lines = [int(line) for line in re.findall(r"  at: .*study\.yaml:(\d+):\d+", message)]
    assert message.count("  do: ") == 5 and lines == [5, 7, 11, 12, 13]


def test_mistakes_of_one_field_and_what_comes_of_them_are_told_once(made, capsys, monkeypatch):
    """Of a dataset that cannot be read no row is asked for, of a model that is not there no layer, of two sides no number."""
    text = GOOD.replace("table: pairs.csv", "tabel: pairs.csv").replace("array:x.npy", "array:bare.npy").replace("k=5", "k=99")
    message = refused(made, text, capsys, monkeypatch)
    assert message.startswith("study.yaml, line 2, dataset.tabel: there is no field 'tabel'")
    text = GOOD.replace("hf:./gpt", "hf:./gone").replace("[0, -1]", "[77]").replace("pooling: mean", "pooling: no-such")
    assert refused(made, text, capsys, monkeypatch).startswith("study.yaml, line 6, models.x[1].spec: ")
    text = GOOD.replace("pooling: mean, layers: [0, -1]", "pooling: no-such, layers: [77, blck, 0]")
    message = refused(made, text, capsys, monkeypatch)
    assert re.findall(r"models\.x\[1\]\.([\w[\]]+): ", message) == ["pooling", "layers[0]", "layers[1]"]
    text = GOOD.replace("models:", "modles:")
    assert refused(made, text, capsys, monkeypatch).startswith("study.yaml, line 3, modles: there is no field")


def test_a_mistake_of_all_variants_is_told_once_and_that_of_one_at_its_line(made, capsys, monkeypatch):
    text = GOOD.replace("CKA()", "CKAA()") + "variants:\n  plain: {}\n  other:\n    measures: [RSAA()]\n  third: {null.draws: 0}\n"
    message = refused(made, text, capsys, monkeypatch)
    assert re.findall(r"^\d\. (.*): ", message, flags=re.M) == [
        "study.yaml, line 9, measures[0]", "study.yaml, line 16, measures[0] (variant other)",
        "study.yaml, line 17, null.draws (variant third)",
    ]  # fmt: skip


def test_a_mistake_in_a_file_that_is_extended_names_that_file(made, capsys, monkeypatch):
    (made / "base.yaml").write_text("# of all\n" + GOOD.replace("k=5", "kk=5"))
    try:
        message = refused(made, "extends: base.yaml\nname: other\nalpha: 2\n", capsys, monkeypatch)
    finally:
        (made / "base.yaml").unlink()
    assert message.startswith("2 problems in study.yaml:\n1. study.yaml, line 3, alpha: out of range")
    assert re.search(r"2\. base\.yaml, line 10, measures\[1\]: MutualKNN has no parameter 'kk'(.|\n)*base\.yaml:10:\d+$", message)


def test_a_package_that_is_not_installed_is_told(made, capsys, monkeypatch):
    lacking = ("open_clip", "ripser", "umap")
    there = errors.is_installed
    monkeypatch.setattr(errors, "is_installed", lambda package: package not in lacking and there(package))
    text = GOOD.replace(Y, '{spec: "openclip:ViT-B-32/openai", modality: text}').replace('"CKA()"', "PersistenceDistance()")
    message = refused(made, text.replace("{matrix: {value: pvalue}}", "{map: {method: umap}}"), capsys, monkeypatch)
    found = re.findall(r"line (\d+),.*not installed\n(?:.*\n){2}.*'repalign\[(\w+)\]'", message)
    assert found == [("8", "openclip"), ("9", "topology"), ("11", "map")], message


def test_data_that_is_yet_to_come_is_planned_without_and_run_only_with_it(made, tmp_path):
    """Where a file is to lie in a folder that is not there yet; of models of the hub, where nobody answers."""
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: later\ndataset: {table: data/pairs.csv, id: id, text: caption}\n"
        f'models: ["array:{made}/x.npy", "hf:nobody/nothing"]\n'
        "measures: [CKA()]\ncompetence: {csv: data/scores.csv}\n"
    )
    lines = load_study(path).plan().lines
    assert "the dataset cannot be opened yet" in lines[0] and any("data/scores.csv is not there yet" in line for line in lines)
    for work in ("run", "extract"):
        told = r"^3 problems(.|\n)*line 2, (.|\n)*line 3, models\[1\](.|\n)*nobody/nothing(.|\n)*line 5, "
        with pytest.raises(RepalignError, match=told):
            getattr(load_study(path), work)()
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


# --- in words of YAML ------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, 5, -1, 1.5, math.inf, "text", "", [], ["a"], [1], [[1]], [["a", "b", "c"]], {}, {"a": 1}, {1: 2},
    {"a": {"b": 1}}, datetime.date(2024, 1, 1), {"x": [], "y": []}, {"kind": "noise", "amount": 3}, [{"spec": 3}], {"n": "many"},
)  # fmt: skip


PYTHON = r"[Ii]nput should|valid (string|list|integer|number|dictionary)|instance of|\bNone\b|[a-z]Config\b"  # in no message


def blocks(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a study, and of the blocks in it."""
    for name, field in model.model_fields.items():
        yield (*path, name)
        for form in forms_of(field):
            for inner in (form, *(f for a in get_args(form) for f in forms_of(a))):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from blocks(inner, (*path, name))


@pytest.mark.parametrize("model", [AlignmentConfig, ColourConfig, TheoryConfig], ids=lambda m: m.__name__)
def test_every_wrong_value_of_every_field_is_told_in_words_of_yaml(model, tmp_path):
    """Whatever the library calls it: what was expected and what is there are YAML, and something is there to do."""
    kinds = set()
    base = {"name": "s", "dataset": {"toy": {}}, "models": {"x": ["toy:a"], "y": ["toy:b"]}, "experiment": "alignment"}
    base = {name: value for name, value in base.items() if name in model.model_fields}
    base |= {"models": ["toy:a"], "experiment": "colour"} if model is ColourConfig else {}
    base |= {"experiment": "theory"} if model is TheoryConfig else {}
    for path, value in itertools.product(dict.fromkeys(blocks(model)), VALUES):
        data = copy.deepcopy(base)
        holder: Any = data
        for part in path[:-1]:
            holder[part] = holder[part] if isinstance(holder.get(part), dict) else {}
            holder = holder[part]
        holder[path[-1]] = value
        try:
            model.model_validate(data)
        except ValidationError as error:
            library = error.errors()
        else:
            continue
        kinds |= {one["type"] for one in library}
        where = Where(tmp_path / "s.yaml", {})
        with pytest.raises(RepalignError) as told:
            where.validate(model, data)
            where.refuse()
        message = str(told.value)
        assert not any(one["msg"] in message for one in library), message
        assert not re.search(PYTHON, message), message
        assert message.count("  do: ") == len(told.value.errors) and path[0] in message, message
    assert kinds >= {"missing", "extra_forbidden", "string_type"} or model is TheoryConfig


# --- a study without a dataset -----------------------------------------------------------------------

SMALLEST = 'name: files\nmodels: ["array:a.npy", "array:b.npy", "array:c.npy"]\nmeasures: [CKA()]\n'


@pytest.fixture
def files(tmp_path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    world = rng.standard_normal((40, 4))
    widths = {"a": 3, "b": 5, "c": 4}
    arrays = {name: world @ rng.standard_normal((4, d)) + rng.standard_normal((40, d)) for name, d in widths.items()}
    for name, x in arrays.items():
        np.save(tmp_path / f"{name}.npy", x)
    (tmp_path / "study.yaml").write_text(SMALLEST)
    return arrays


def test_files_alone_are_a_study_whose_rows_are_paired_as_files_are(files, tmp_path):
    study = load_study(tmp_path / "study.yaml")
    assert study.plan().lines[0].endswith("n = 40, row i of one is paired with row i of the other: nothing names the rows")
    outcome = study.run()
    found, want = outcome.alignment, repalign.compare(files, measures="cka")
    assert found.run["how"][0] == want.run["how"][0] and found.rows("max")["n"].tolist() == [40] * 3
    np.testing.assert_allclose(found.matrix(), want.matrix(), rtol=1e-5)
    assert outcome.wrote[1][1].is_file() and {m["modality"] for m in found.run["models"]} == {"array"}
    told = []
    again = load_study(tmp_path / "study.yaml").run(progress=lambda task, done, n, note=None: told.append(note))
    assert again.alignment.table.equals(found.table) and told.count("complete in the store") == 3
    mocked = study.mock().run()
    assert mocked.alignment.matrix().shape == (2, 2) and mocked.alignment.rows("max")["dataset"].iloc[0] == "mock of arrays"


def test_rows_of_files_alone_are_joined_on_their_ids(files, tmp_path):
    ids = [f"s{i}" for i in range(40)]
    kept = [i for i in range(40) if i % 5]
    frames = {name: pd.DataFrame(x, index=ids) for name, x in files.items()}
    frames["b"] = frames["b"].iloc[kept].sample(frac=1, random_state=0)
    models = []
    for name, frame in frames.items():
        frame.rename(columns=str).to_parquet(tmp_path / f"{name}.parquet")
        models.append(f'"array:{name}.parquet"')
    text = f"name: joined\nmodels: {{x: [{models[0]}], y: [{', '.join(models[1:])}]}}\nmeasures: [CKA()]\n"
    (tmp_path / "study.yaml").write_text(text)
    found = load_study(tmp_path / "study.yaml").run().alignment
    assert found.run["how"][0].startswith("joined on 32 ids; 8, 0 and 8 rows have no partner")
    want = repalign.pair(files["a"][kept], files["c"][kept], "CKA()").matrix().to_numpy()[0, 0]
    assert found.matrix().loc["a", "c"] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("c.npy", "few.npz"), r"line 2, models: (.|\n)*which row belongs to which\?"),
        (("c.npy", "long.npy"), r"line 2, models: (.|\n)*different numbers of rows"),
        (("CKA()", "MutualKNN(k=40)"), r"line 3, measures\[0\]: dataset 'arrays': too few stimuli"),
        (('"array:c.npy"', '"toy:vision-pixels"'), r"dataset: model toy:vision-pixels reads stimuli, and the study has no dataset"),
    ],
)
def test_what_files_alone_cannot_be_is_refused(files, tmp_path, change, problem):
    np.savez(tmp_path / "few.npz", features=files["c"], ids=np.arange(40) + 7)
    np.save(tmp_path / "long.npy", np.vstack([files["c"]] * 2))
    (tmp_path / "study.yaml").write_text(SMALLEST.replace(*change))
    for work in ("plan", "run"):
        with pytest.raises(RepalignError, match=problem):
            getattr(load_study(tmp_path / "study.yaml"), work)()
    assert not (tmp_path / "runs").exists()


def test_the_smallest_study_of_the_page_runs(files, tmp_path, monkeypatch, capsys):
    """As docs/features.md gives it, in at most six lines and a command."""
    page = (Path(__file__).parents[1] / "docs/features.md").read_text("utf-8")
    block, command = re.search(r"```yaml\n(name: .*?)```\n\n```sh\n(repalign run (\S+))\n```", page, flags=re.S).group(1, 2)
    assert len(block.splitlines()) <= 6
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"array:(\w+\.npy)", block):
        np.save(name, files["a"] + len(name))
    Path(command.split()[-1]).write_text(block)
    monkeypatch.setattr(sys, "argv", command.split())
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, capsys.readouterr().err
    assert list(tmp_path.glob("runs/*/report.html"))
