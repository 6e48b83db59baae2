"""What a study file may hold: names that are folders, and no more than can be read."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from repalign.errors import RepalignError
from repalign.store import FeatureStore, check
from repalign.study import load_study

STUDY = """\
# a study
name: {name}
dataset: {{arrays: {{thing: thing.npy}}, row_ids: ids.txt}}
models:
  - {{spec: "array:x.npy", name: mine, modality: thing, ids: rows}}
  - {{spec: "array:y.npy", name: theirs, modality: thing, ids: rows}}
measures: [CKA()]
null: {{method: permutation, draws: 9}}
"""
OTHERS = {
    "theory": "experiment: theory\nname: {name}\n",
    "colour": "experiment: colour\nname: {name}\ndataset: {{folder: photos}}\n",
}


def write(folder: Path, text: str, name: str = "study.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return folder / name


BAD_NAMES = [
    ("../../../out", "is not absolute, and has no"), ("/tmp/out", "is not absolute"), ("a/../../b", "is not absolute"),
    ("..", "is not absolute"), (".", "is not absolute"), ("a/./b", "is not absolute"), ("a//b", "is not absolute"),
    ("a/", "is not absolute"), ("'C:\\out'", "is not absolute"), ("'..\\out'", "is not absolute"),
    ("'a/ .. /b'", "is not absolute"),
    ('"a\\0b"', "a character that no text has"), ('"a\\nb"', "no control characters"), ('"\\x7f"', "no control characters"),
    ("'   '", "is not blank"), ("''", "at least 1 character"), ("x" * 201, "200 bytes at most"), ("漢" * 70, "200 bytes at most"),
    ("a/" + "x" * 300, "200 bytes at most"), ("store", "`runs/store` is where the features"), ("Store/a", "`runs/store` is where"),
    ('"\\ud83d"', "a character that no text has"), ("[a]", "a text"), ("12", "a text"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), BAD_NAMES)
def test_a_name_that_is_no_folder_is_refused_with_its_line(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(RepalignError, match=rf"study\.yaml, line 2, name: (.|\n)*{words}"):
        load_study(write(tmp_path, STUDY.format(name=name)))
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize("kind", OTHERS)
def test_so_is_that_of_every_kind_of_study(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RepalignError, match=r"line 2, name: (.|\n)*is not absolute"):
        load_study(write(tmp_path, OTHERS[kind].format(name="../out")))


@pytest.mark.parametrize("name", ["two words", "a/b", "λ, 漢字", "x" * 200, "a..b", "...", "CKA: all", "stores", "a.b-c"])
def test_other_names_are_folders_inside_runs(tmp_path: Path, name: str) -> None:
    study = load_study(write(tmp_path, STUDY.format(name=f'"{name}"')))
    assert study.folder.is_relative_to(tmp_path / "runs") and study.folder != tmp_path / "runs"
    study.folder.mkdir(parents=True)


@pytest.mark.parametrize("field", ["store", "results", "report"])
def test_a_place_that_no_file_system_takes(tmp_path: Path, field: str) -> None:
    for place, words in (("a/" + "x" * 256, "longer than a file's name"), ('"a\\0b"', "a character that no text has")):
        with pytest.raises(RepalignError, match=rf"line 9, {field}: (.|\n)*{words}"):
            load_study(write(tmp_path, STUDY.format(name="s") + f"{field}: {place}\n"))


# --- bounds --------------------------------------------------------------------------------------


def bomb(levels: int, width: int = 9, form: str = "[{}]") -> str:
    """Anchors that multiply: width ** levels values from a line each."""
    lines = ["a0: &a0 [x]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} " + form.format(", ".join([f"*a{i - 1}"] * width)))
    return "\n".join(lines) + "\n"


KEYS = "".join(f"k{i}: &k{i} {{" + ", ".join(f"m{j}: *k{i - 1}" for j in range(9)) + "}\n" for i in range(1, 12))
BOMBS = {
    "lists": (bomb(10), "more than 100,000 fields and values"),
    "lists of two, deep": (bomb(30, 2), "more than 100,000 fields|nested too deeply"),
    "mappings": ("k0: &k0 {x: 1}\n" + KEYS, "more than 100,000 fields and values"),
    "merges": (
        "m0: &m0 {x: 1}\n" + "".join(f"m{i}: &m{i}\n  <<: [{', '.join([f'*m{i - 1}'] * 9)}]\n  y{i}: 1\n" for i in range(1, 12)),
        "more than 100,000 fields and values|nested too deeply",
    ),
    "a list in itself": ("a: &a [*a]\n", "nested too deeply"),
    "a mapping in itself": ("a: &a {b: *a}\n", "nested too deeply"),
    "two in each other": ("a: &a [&b [*a, *b]]\n", "nested too deeply"),
    "deep lists": ("a: " + "[" * 5000 + "]" * 5000 + "\n", "nested too deeply"),
    "deep mappings": ("a: " + "{b: " * 3000 + "1" + "}" * 3000 + "\n", "nested too deeply"),
    "deep lines": ("a:\n" + "".join(" " * i + "- \n" + " " * i + " -\n" for i in range(1, 40)), "nested too deeply|not YAML"),
    "a large file": ("# " + "x" * 5_000_000 + "\n", "a study file of 5,000,"),
    "an experiment that is a list": ("experiment: [a]\n", "unknown experiment"),
    "an experiment that is a mapping": ("experiment: {a: b}\n", "unknown experiment"),
    "a long number": ("a: " + "9" * 5000 + "\n", "a value that YAML cannot read"),
    "no date": ("a: 2024-13-45\n", "a value that YAML cannot read"),
    "a list as a field": ("? [a, b]\n: 1\n", "the name of a field is no text"),
    "a mapping as a field": ("? {a: b}\n: 1\n", "the name of a field is no text"),
    "a tag of Python": ("a: !!python/object/apply:os.system [ls]\n", "this is not YAML"),
    "a tag that does not fit": ("a: !!timestamp [1]\n", "YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "this is not YAML"),
    "an alias of nothing": ("a: *b\n", "this is not YAML"),
    "NUL in a value": ('description: "a\\0"\n', "line 9, description: a character that no text has"),
    "NUL in a field": ('"a\\0": 1\n', "a character that no text has"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_file_is_bounded_before_anything_is_made_of_it(tmp_path: Path, case: str) -> None:
    more, words = BOMBS[case]
    start = time.process_time()
    with pytest.raises(RepalignError, match=rf"study\.yaml(.|\n)*({words})"):
        load_study(write(tmp_path, STUDY.format(name="s") + more))
    assert time.process_time() - start < 20  # a fraction of a second, and much more on a busy machine


def sweep(*sizes: int) -> str:
    fields = ["alpha", "null.draws", "null.seed", "rows.n"]
    return "sweep:\n" + "".join(f"  {f}: {list(range(1, n + 1))}\n" for f, n in zip(fields, sizes, strict=False))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (sweep(64, 64, 65), r"266,240 variants are more than one study runs(.|\n)*64 values of alpha x 64 values of null.draws"),
        (sweep(1001), r"1,001 variants"),
        ("sweep: {rows.n: [], alpha: [0.1]}\n", r"rows\.n is swept over no value"),
        ("variants: {a: {}, b: {}, c: {}}\n" + sweep(20, 20), r"1,200 variants are(.|\n)*3 variants x 20 values of alpha"),
        ("variants:\n" + "".join(f"  v{i}: {{}}\n" for i in range(1001)), r"1,001 variants"),
    ],
)
def test_a_sweep_is_bounded(tmp_path: Path, more: str, words: str) -> None:
    with pytest.raises(RepalignError, match=rf"study\.yaml, line \d+, (sweep|variants): {words}"):
        load_study(write(tmp_path, STUDY.format(name="s") + more))


def test_extending_is_bounded(tmp_path: Path) -> None:
    write(tmp_path, STUDY.format(name="s"), "e0.yaml")
    for i in range(1, 12):
        write(tmp_path, f"extends: [e{i - 1}.yaml, e{i - 1}.yaml, e{i - 1}.yaml]\n", f"e{i}.yaml")
    assert load_study(tmp_path / "e2.yaml").name == "e2"  # by its file: where a study writes is its own
    with pytest.raises(RepalignError, match="the study extends more than 100 files"):
        load_study(tmp_path / "e11.yaml")


# --- one store for the studies of a folder --------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((30, 4))
    np.save(tmp_path / "thing.npy", np.arange(30.0)[:, None])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x[:, :3] + 0.1)
    (tmp_path / "ids.txt").write_text("\n".join(f"s{i}" for i in range(30)))
    return tmp_path


def test_another_name_extracts_nothing_again(folder: Path) -> None:
    first = load_study(write(folder, STUDY.format(name="one")))
    first.run()
    parts = {p: p.stat().st_ino for p in folder.rglob("part-*")}
    told = []
    load_study(write(folder, STUDY.format(name="two"), "two.yaml")).run(progress=lambda *a: told.append(a))
    assert parts and {p: p.stat().st_ino for p in folder.rglob("part-*")} == parts
    assert [a[3] for a in told if a[0].startswith("extract")] == ["complete in the store"] * 2
    assert first.store == str(folder / "runs/store") and (folder / "runs/two/results/results.parquet").is_file()


def test_a_store_in_the_studys_own_folder_stays_in_use(folder: Path) -> None:
    study = load_study(write(folder, STUDY.format(name="one") + "store: runs/one/store\n"))
    study.run()
    again = load_study(write(folder, STUDY.format(name="one")))
    assert again.store == study.store == str(folder / "runs/one/store")
    assert load_study(write(folder, STUDY.format(name="other"))).store == str(folder / "runs/store")
    assert load_study(write(folder, STUDY.format(name="s") + "store: memory://here\n")).store == "memory://here"


def test_a_mock_compares_a_map_with_as_few_of_chance_unless_the_file_says_how_many(folder: Path) -> None:
    text = "name: one\ndataset: {toy: {n: 30}}\nmodels: [toy:vision-pixels, toy:language-bag]\nmeasures: [CKA()]\n"
    study = load_study(write(folder, text + "figures: [{map: {}}, {map: {draws: 0, colour: family}}, {matrix: {}}]\n"))
    assert study.mock().config.figures == [{"map": {"draws": 19}}, {"map": {"draws": 0, "colour": "family"}}, {"matrix": {}}]


def test_a_mock_keeps_its_features_to_itself(folder: Path) -> None:
    text = "name: one\ndataset: {toy: {n: 30}}\nmodels: [toy:vision-pixels, toy:language-bag]\nmeasures: [CKA()]\n"
    mock = load_study(write(folder, text)).mock()
    assert mock.store == str(folder / "runs/one-mock/store")


@pytest.mark.parametrize("null, draws", [
    ("", 19), ("{method: permutation, draws: 999}", 19), ("{draws: 9}", 9), ("{method: cyclic, relabellings: 2}", None),
])  # fmt: skip
def test_a_mock_draws_no_more_shuffles_than_a_p_of_5_percent_needs(folder: Path, null: str, draws: int | None) -> None:
    text = "name: one\ndataset: {toy: {n: 300}}\nmodels: [toy:vision-pixels, toy:language-bag]\nmeasures: [CKA()]\n"
    study = load_study(write(folder, text + (f"null: {null}\n" if null else "")))
    (variant,), (whole,) = study.mock().variants, study.variants
    assert getattr(variant.null, "n_draws", None) == draws and type(variant.null) is type(whole.null)


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `repalign ...` in this process; (status, all that was told)."""
    from repalign import cli

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["repalign", *map(str, words)])
        monkeypatch.setattr(cli.out, "width", 200)
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        told = capsys.readouterr()
        return status, told.out + told.err

    return run


def test_studies_on_several_datasets_share_a_store(folder: Path, call) -> None:
    """The commands ask for the dataset; all is whole."""
    np.save(folder / "other.npy", np.arange(30.0)[::-1, None].copy())
    load_study(write(folder, STUDY.format(name="one"))).run()
    load_study(write(folder, STUDY.format(name="two").replace("thing.npy", "other.npy"), "two.yaml")).run()
    store = folder / "runs/store"
    assert check(store) == []
    prints = sorted({r.dataset_fingerprint for r in FeatureStore(store).representations()})
    assert len(prints) == 2
    (folder / "labels.csv").write_text("id,label\n" + "".join(f"s{i},{'ab'[i % 2]}\n" for i in range(30)))
    compare = ["compare", store, "--results", folder / "r", "--measure", "CKA()", "--draws", 9]
    for command in (compare, ["competence", "probe", store, folder / "labels.csv", "--probe", "knn", "--k", 3]):
        status, told = call(*command)
        assert status == 1 and "which dataset?" in told and all(p[:12] in told for p in prints) and "--dataset" in told
        assert call(*command, "--dataset", prints[0][:10])[0] == 0


def test_one_model_that_was_read_in_two_ways_has_two_names(folder: Path, call) -> None:
    text = STUDY.format(name="one")
    load_study(write(folder, text)).run()
    load_study(write(folder, text.replace("name: mine,", "name: mine, store_dtype: float64,"), "two.yaml")).run()
    status, told = call("compare", folder / "runs/store", "--results", folder / "r", "--measure", "CKA()", "--draws", 9)
    assert status == 0 and "mine (store_dtype float32)" in told and "mine (store_dtype float64)" in told and "theirs" in told


@pytest.mark.parametrize("harm", [lambda data: data.replace(b"theirs", b"thiers"), lambda data: data[:100]])
def test_a_broken_manifest_is_named_and_the_next_run_mends_it(folder: Path, call, harm) -> None:
    study = write(folder, STUDY.format(name="one"))
    assert call("run", study)[0] == 0
    manifest = next(p for p in folder.rglob("manifest.json") if b"theirs" in p.read_bytes())
    whole = manifest.read_bytes()
    manifest.write_bytes(harm(whole))
    for command in (["compare", folder / "runs/store", "--results", folder / "r"], ["check", folder / "runs/store"]):
        status, told = call(*command)
        assert status == 1 and str(manifest) in told and "run the extraction again" in told
    status, told = call("run", study)
    assert status == 0 and told.count("is written anew") == 1 and manifest.read_bytes() == whole
    assert call("check", folder / "runs/store")[0] == 0
