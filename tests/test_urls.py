"""Results, reports and studies behind a URL: the same bytes as in a folder, nothing beside them on this machine."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

from repalign.cli import app
from repalign.comparison import compare
from repalign.comparison.alignment import Alignment
from repalign.comparison.check import check
from repalign.errors import RepalignError
from repalign.files import Unreachable, Url, open_files, place_of, remote, seen_from, walk, without_secrets, write_file
from repalign.null import Permutations
from repalign.report import write_report
from repalign.study import load_study
from repalign.study.demo import run_demo

RNG = np.random.default_rng(0)
MODELS = {name: {"a": RNG.standard_normal((40, 4)), "b": RNG.standard_normal((40, 6))} for name in "xy"}
STUDY = """\
name: s
dataset: {arrays: {thing: thing.npy}, row_ids: ids.txt}
models:
  - {spec: "array:x.npy", name: mine, modality: thing, ids: rows}
  - {spec: "array:y.npy", name: theirs, modality: thing, ids: rows}
measures: [CKA()]
null: {method: permutation, draws: 9}
figures: [{matrix: {}}]
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder: what is taken for a local path shows there. The memory is empty too."""
    fsspec.filesystem("memory").store.clear()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def study_in(folder: Path, text: str = STUDY) -> Path:
    for name in "xy":
        np.save(folder / f"{name}.npy", MODELS[name]["a"])
    np.save(folder / "thing.npy", np.arange(40.0)[:, None])
    (folder / "ids.txt").write_text("\n".join(f"s{i}" for i in range(40)))
    (folder / "s.yaml").write_text(text)
    return folder / "s.yaml"


def contents(place: Path | Url) -> dict[str, bytes]:
    return {seen_from(at / name, place): (at / name).read_bytes() for at, _, names in walk(place) for name in names}


# --- addresses -----------------------------------------------------------------------------------


def test_an_address_is_a_url_or_a_path():
    url = place_of("s3://bucket/a/")
    assert isinstance(url, Url) and url == place_of(url) and str(url) == "s3://bucket/a" and url.name == "a"
    assert (url / "b.json").stem == "b" and (url / "b.json").suffix == ".json" and (url / "b.json").parent == url
    assert url / "../c/d" == Url("s3://bucket/c/d") and url.parent.parent == url.parent == Url("s3://bucket")
    assert (url / "b.c.svg").with_suffix(".png") == url / "b.c.png" and url.with_name("z") == Url("s3://bucket/z")
    assert place_of("file:///a/b") == Path("/a/b") and place_of("a", Path("/b")) == Path("/b/a")
    assert seen_from(url / "t", Url("s3://bucket/pages")) == "../a/t" and seen_from(Path("/a/t"), Path("/a/b")) == "../t"
    assert seen_from(url / "t", Path("/a")) == "s3://bucket/a/t" == seen_from(url / "t", Url("s3://other/a"))
    with pytest.raises(TypeError):
        Path(url)  # which would be a folder called "s3:"
    with pytest.raises(RepalignError, match="this cannot be behind a URL"):
        write_file(Path("s3://bucket/a"), b"")
    with pytest.raises(RepalignError, match="this cannot be behind a URL"):
        run_demo("s3://bucket/demo")


@pytest.mark.parametrize("url", ["s3://key:se/cret@bucket/a", "https://u:secret@host/a", "az://c/a?sv=1&sig=secret", "x::s3://k:secret@b"])
def test_an_address_with_credentials_is_refused_without_saying_them(url, monkeypatch):
    for attempt in (place_of, open_files, lambda u: compare(MODELS, measures=["CKA()"], results=u)):
        with pytest.raises(RepalignError, match="credentials have no place in an address(.|\n)*do: give them in the env") as told:
            attempt(url)
        assert "secret" not in str(told.value) and "cret@" not in str(told.value)
    assert place_of("http://host:8080/a@b") and place_of("abfs://container@account.dfs.core.windows.net/a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "longsecretvalue")
    assert without_secrets("signed with longsecretvalue") == "signed with ***"


@pytest.mark.parametrize("root", ["memory://same", "local"])
def test_a_folder_and_a_url_are_asked_in_the_same_way(root, here):
    files = open_files(root if "://" in root else here / root)
    assert files.listing() == {} and files.size("a/b") is None and files.modified("a/b") == 0
    with pytest.raises(FileNotFoundError):
        files.read("a/b")
    files.write("a/b", b"01", b"234")
    files.write("c", b"x")
    assert files.listing("a/b") == {} == open_files("memory://same/c").listing()
    assert files.listing() == {"a": None, "c": 1} and files.listing("a") == {"b": 5} and files.size("a/b") == 5
    assert bytes(files.read("a/b")) == b"01234" and bytes(files.read("a/b", 1, 3)) == b"12" and files.read("a/b", 4, 9) == b"4"
    place = place_of(str(files.root))
    assert [(at.name, inside, names) for at, inside, names in walk(place)] == [(place.name, ["a"], ["c"]), ("a", [], ["b"])]
    assert (place / "c").is_file() and not (place / "a").is_file() and (place / "a").is_dir() and not (place / "d").exists()
    files.remove("c")
    files.remove("c")
    files.remove_folder("a")
    assert files.listing() == {}


# --- what may pass -------------------------------------------------------------------------------


class Busy:
    """Fails with these errors, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.asked = list(errors), 0

    def __call__(self, fs: object) -> str:  # noqa: ARG002
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


PASSING = [
    OSError("An error occurred (SlowDown): Please reduce your request rate."), OSError("503 Service Unavailable"), TimeoutError(),
    ConnectionResetError(104, "Connection reset by peer"), OSError("429: Too Many Requests"), OSError(16, "busy"),
]  # fmt: skip
LASTING = [PermissionError("Access Denied"), OSError(22, "InvalidBucketName"), ValueError("bad"), ImportError("s3fs")]


@pytest.mark.parametrize("error", [*PASSING, *LASTING], ids=repr)
def test_what_passes_is_tried_again_and_what_lasts_is_told_at_once(error, monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0, 0.0))
    files, once, always = open_files("memory://busy"), Busy(error), Busy(*[error] * 9)
    if error in PASSING:
        assert files._ask("read", "a", once) == "answer" and once.asked == 2
    with pytest.raises(Unreachable, match=r"^memory://busy/a cannot be read: (.|\n)*  do: ") as told:
        files._ask("read", "a", always)
    assert always.asked == (4 if error in PASSING else 1) and ("the same 4 times" in str(told.value)) == (error in PASSING)


def test_a_damaged_file_is_made_again_but_not_one_that_no_answer_came_for(here, monkeypatch):
    """Else a server that is down for a minute would have everything computed again."""
    compare(MODELS, measures=["CKA()"], null=Permutations(9), results="memory://down")
    before = contents(Url("memory://down"))
    monkeypatch.setattr(remote, "WAITS", ())

    def refuse(*_: object, **__: object) -> bytes:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", refuse)
    for attempt in (
        lambda: compare(MODELS, measures=["CKA()"], null=Permutations(9), results="memory://down"),
        lambda: Alignment.load("memory://down"), lambda: check("memory://down"),
    ):  # fmt: skip
        with pytest.raises(Unreachable, match=r"memory://down/\S+ cannot be read: Access Denied\n(.|\n)*credentials may use it"):
            attempt()
    monkeypatch.undo()
    assert contents(Url("memory://down")) == before


# --- results -------------------------------------------------------------------------------------


def test_results_behind_a_url_are_those_of_a_folder(here):
    for root in ("memory://b", str(here / "b")):
        found = compare(MODELS, measures=["CKA()"], null=Permutations(9), results=f"{root}/r", split_half=1)
        write_report(f"{root}/r", f"{root}/r/report.html", static=f"{root}/figures")
        found.to_csv(f"{root}/t.csv")
        found.save(f"{root}/saved")
    got, want = contents(Url("memory://b")), contents(here / "b")
    assert got == want and {"r/run.json", "r/report.html", "saved/draws.parquet", "figures/files.json", "t.csv"} <= got.keys()
    assert not any("tmp" in name for name in got) and not list((here / "here").iterdir())
    assert Alignment.load("memory://b/r").table.equals(found.table) and check("memory://b") == []

    tile = next(name for name in got if "/tiles/" in name)
    for name in ("r/results.parquet", tile, "figures/files.json", "r/report.html"):
        changed = bytearray(got[name])
        changed[len(changed) // 2] ^= 1
        fsspec.filesystem("memory").pipe_file(f"/b/{name}", bytes(changed))
        assert name in str(check("memory://b")[0]), name
        fsspec.filesystem("memory").pipe_file(f"/b/{name}", got[name])
    assert check("memory://b/r/run.json") == []
    with pytest.raises(RepalignError, match="memory://nothing: no feature store and no result"):
        check("memory://nothing")


def test_the_memory_of_this_process_is_no_place_for_workers(here):
    assert pickle.loads(pickle.dumps(Url("s3://a/b"))) == Url("s3://a/b")
    with pytest.raises(RepalignError, match="memory://a/b is in the memory of this process"):
        pickle.dumps(Url("memory://a/b"))
    with pytest.raises(RepalignError, match="is in the memory of this process"), ProcessPoolExecutor(1) as workers:
        compare(MODELS, measures=["CKA()"], null=Permutations(9), results="memory://p", executor=workers)


# --- studies and the command line ----------------------------------------------------------------


def test_a_study_writes_all_of_itself_behind_the_url_of_out(here):
    local = load_study(study_in(here)).run()
    path = study_in(here, STUDY + "out: memory://runs\n")
    before = {p for p in here.rglob("*") if p.is_file()}
    study = load_study(path)
    assert study.store == "memory://runs/store" and study.results == Url("memory://runs/s/results")
    outcome = study.run()
    assert {p for p in here.rglob("*") if p.is_file()} == before
    assert [str(place) for _, place in outcome.wrote] == [
        "memory://runs/s/results/results.parquet", "memory://runs/s/report.html", "memory://runs/s/figures",
        "memory://runs/s/figures.html",
    ]  # fmt: skip
    got, want = contents(Url("memory://runs")), contents(here / "runs")
    assert got.keys() == want.keys() and outcome.alignment.table.equals(local.alignment.table)
    assert {name for name in got if got[name] != want[name]} <= {"s/results/run.json", "s/report.html"}  # which state the study
    assert check("memory://runs") == []
    assert load_study(path).run().alignment.table.equals(local.alignment.table) and contents(Url("memory://runs")) == got
    assert study.mock_folder == here / "runs/s-mock"


def test_variants_behind_a_url(here):
    text = STUDY + "out: memory://v\nvariants: {a: {}, 'b c': {search: raw}}\n"
    load_study(study_in(here, text)).run()
    got = contents(Url("memory://v"))
    assert "s/results/variants.parquet" in got and b"results/a/report.html" in got["s/report.html"]
    assert check("memory://v") == []


def test_a_place_that_cannot_be_written_is_told_before_work(here):
    path = study_in(here, STUDY + "results: nosuch://bucket/r\nreport: s3://key:secret@b/r.html\n")
    with pytest.raises(RepalignError, match="credentials have no place") as told:
        load_study(path)
    assert "secret" not in str(told.value)
    path.write_text(STUDY + "results: nosuch://bucket/r\n")
    with pytest.raises(RepalignError, match=r"s\.yaml, line 9(.|\n)*nosuch://bucket/r cannot be opened: Protocol not known"):
        load_study(path).run()


def test_commands_take_urls_and_name_them(here):
    for name in "xy":
        np.save(here / f"{name}.npy", MODELS[name]["a"])
    run = CliRunner()

    def told(*words: str) -> str:
        result = run.invoke(app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})
        assert result.exit_code == 0, result.output
        return result.output

    said = told("compare", str(here / "x.npy"), str(here / "y.npy"), "-m", "cka", "--results", "memory://cli/r")
    assert "report: memory://cli/r/report.html" in said and "open memory" not in said
    assert "report: memory://cli/again.html" in told("report", "memory://cli/r", "--out", "memory://cli/again.html")
    assert "report: " in told("report", "memory://cli/r", "--out", str(here / "page.html")) and (here / "page.html").is_file()
    assert "report: memory://cli/p/report.html" in told("pair", str(here / "x.npy"), str(here / "y.npy"), "--out", "memory://cli/p")
    assert "memory://cli/e/report.html" in told("direction", str(here / "x.npy"), str(here / "y.npy"), "--out", "memory://cli/e")
    assert "whole: 7 folders of results" in told("check", "memory://cli")
    assert not list((here / "here").iterdir())
