"""Results on disk: torn, damaged, of an older version, on a disk that fails; and what the command line says of them."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from alignment_table import CKA, LANGUAGE, VISION, make_table
from repalign.comparison import alignment as alignment_module
from repalign.comparison import pair
from repalign.comparison.alignment import Alignment, csv_text, from_csv_cell, with_ends
from repalign.comparison.check import check
from repalign.errors import RepalignError
from repalign.files import SEAL, read_json, read_parquet
from repalign.measures import parse_measure
from repalign.prh.colour import ColourResult
from repalign.report.page import FILES as REPORT

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5))
Y = X + RNG.standard_normal((60, 5))


def go(folder: Path, x: np.ndarray = X, measure: str = "CKA()", names: tuple[str, str] = ("x", "y")) -> Alignment:
    return pair(x, Y[: len(x)], [measure], "permutation", names=names, results=folder, split_half=2)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make_old(folder: Path) -> None:
    """The folder as a version before seals wrote it: the same tables and entries, and nothing that speaks of seals."""
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            pq.write_table(read_parquet(path)[0], path, compression="zstd")
        elif path.suffix == ".json":
            value, _ = read_json(path)
            value.pop("files", None)
            path.write_text(json.dumps(value.get("value", value)), "utf-8")
    for path in (folder / "tiles").iterdir():
        path.rename(path.with_name("0" * 24 + ".parquet"))
    assert not any(SEAL.encode() in data for data in tree(folder).values())


# --- tables for other programs -------------------------------------------------------------------

BODY = r"a\_b\&\{c\} 50\% & early & vit2e3 \#\textasciitilde{}\textasciicircum{}\textbackslash{} & late & CKA & 1,024"
LATEX = rf"""% \usepackage{{booktabs}}
\begin{{tabular}}{{lllllrrrr}}
\toprule
Model $x$ & Layer & Model $y$ & Layer & Measure & $n$ & Score & Chance & $p$ \\
\midrule
{BODY} & $-$0.0123 [$-$0.0200, 0.0100] & 3.20$\times 10^{{-9}}$ & $\le$ .001 \\
\bottomrule
\end{{tabular}}
"""


def test_a_result_as_a_table_of_latex(tmp_path):
    """Names escaped, and numbers as people read them: chance and p beside every score."""
    table = make_table(LANGUAGE[:1], VISION[:1], (2, 2)).query("measure == @CKA")
    table = table.assign(model_x="a_b&{c} 50%", layer_x="early", model_y="vit2e3 #~^\\", layer_y="late", n_draws=999)
    table = table.assign(statistic=-0.0123, null_mean=3.2e-9, pvalue=0.001)
    ends = {"measure": CKA, "model_x": "a_b&{c} 50%", "model_y": table["model_y"].iloc[0], "low": -0.02, "high": 0.01}
    result = Alignment(with_ends(table, {"intervals": [ends]}), {"intervals": [ends]})
    assert result.to_latex(tmp_path / "t.tex") == LATEX == (tmp_path / "t.tex").read_text("utf-8")
    both = Alignment(make_table(LANGUAGE[:1], VISION[:2], (2, 2)))
    lines = both.to_latex().splitlines()
    assert len(lines) == 3 + 1 + 1 + 4 + 2 and lines[3].endswith(r"$p$ & $p$ (maxT) \\")
    assert [line.count("&") for line in lines[3:4] + lines[5:9]] == [9] * 5 and both.to_latex(measure="cka").count("CKA") == 2


def test_a_result_as_csv_and_its_intervals_come_back(tmp_path):
    found = pair(X, Y, ["CKA()", "MutualKNN(k=5)"], "permutation", results=tmp_path / "r", interval="auto")
    assert pd.read_csv(found.to_csv(tmp_path / "deep" / "t.csv")).shape == found.table.shape
    loaded = Alignment.load(tmp_path / "r")
    pd.testing.assert_frame_equal(loaded.table, found.table)
    assert loaded.best()[["low", "high"]].notna().all().all() and loaded.run["intervals"] == found.run["intervals"]
    assert [one["method"] for one in found.run["intervals"]] == ["jackknife", "subsample"]
    assert "low" not in pair(X, Y, "CKA()", "permutation").table


# --- torn, stale, old ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(3))
def test_a_rerun_that_stops_between_two_files_leaves_no_result(step, tmp_path, monkeypatch):
    """At the k-th of results.parquet, draws.parquet, run.json."""
    go(tmp_path, X[:40], "MutualKNN(k=5)", ("old", "pair"))
    before, left = Alignment.load(tmp_path), [step]

    def stop(write):
        def writing(path, data):
            if path.parent == tmp_path:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            return write(path, data)

        return writing

    for name in ("write_file", "write_parquet"):
        monkeypatch.setattr(alignment_module, name, stop(getattr(alignment_module, name)))
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path)
    monkeypatch.undo()
    if step == 0:
        pd.testing.assert_frame_equal(Alignment.load(tmp_path).table, before.table, check_exact=True)
    else:
        with pytest.raises(RepalignError, match=r"results\.parquet is not the file of which run\.json speaks: a run was stopped"):
            Alignment.load(tmp_path)
        (problem,) = check(tmp_path)
        assert problem.path == str(tmp_path / "results.parquet") and "run the same command again" in problem.remedy
    go(tmp_path)
    assert check(tmp_path) == [] and Alignment.load(tmp_path).run["models"][0]["name"] == "x"


def test_draws_of_an_earlier_run_are_not_those_of_this_one(tmp_path):
    go(tmp_path)
    without = Alignment(Alignment.load(tmp_path).table, {"name": "by hand"})
    without.save(tmp_path)
    assert Alignment.load(tmp_path).draws is None and not (tmp_path / "draws.parquet").exists()


@pytest.mark.parametrize("name", ["results.parquet", "draws.parquet", "run.json"])
def test_a_file_that_is_gone_is_named(name, tmp_path):
    go(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RepalignError, match=name.replace(".", r"\.")):
        Alignment.load(tmp_path)
    assert len(check(tmp_path)) == 1
    go(tmp_path)
    assert check(tmp_path) == []


def test_a_result_from_before_there_were_seals_is_read_and_told(tmp_path, caplog):
    fresh = go(tmp_path)
    make_old(tmp_path)
    loaded = Alignment.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.table, fresh.table, check_exact=True)
    (told,) = caplog.records
    assert "before results had seals" in told.getMessage()
    (problem,) = check(tmp_path)
    assert problem.path == str(tmp_path / "run.json") and "the same command run again writes it with a seal" in problem.remedy
    again = go(tmp_path)  # its tiles are computed again
    pd.testing.assert_frame_equal(again.table, fresh.table, check_exact=True)
    assert check(tmp_path) == []


def test_a_result_says_what_its_measures_are_and_of_old_ones_their_text_does(tmp_path):
    found = go(tmp_path, measure="AngularCKA()")
    (text,) = found.measures
    about = found.about[text]
    assert about == parse_measure(text).facts and (about.name, about.closer_is_higher) == ("AngularCKA", False)
    assert Alignment.load(tmp_path).about == found.about == Alignment(found.table, {}).about
    run = {**found.run, "about": {text: {**found.run["about"][text], "label": "as it was called then"}}}
    assert Alignment(found.table, run).about[text].label == "as it was called then"


def test_a_new_table_beside_a_description_from_before_seals_is_torn(tmp_path):
    go(tmp_path)
    new = (tmp_path / "results.parquet").read_bytes()
    make_old(tmp_path)
    (tmp_path / "results.parquet").write_bytes(new)
    with pytest.raises(RepalignError, match=r"results\.parquet is newer than run\.json"):
        Alignment.load(tmp_path)


def test_a_table_with_other_columns_is_refused(tmp_path):
    go(tmp_path)
    make_old(tmp_path)
    table = pq.read_table(tmp_path / "results.parquet")
    for other in (table.drop_columns("pvalue"), table.append_column("extra", table["n"])):
        pq.write_table(other, tmp_path / "results.parquet")
        with pytest.raises(RepalignError, match=r"results\.parquet (lacks the column 'pvalue'|has an unknown column 'extra')"):
            Alignment.load(tmp_path)
        assert len(check(tmp_path)) >= 1


def test_scores_that_are_added_later_keep_the_seal(tmp_path):
    loaded = go(tmp_path)
    Alignment(loaded.table, {**loaded.run, "note": 1}, loaded.draws).save_run(tmp_path)
    assert Alignment.load(tmp_path).run["note"] == 1 and check(tmp_path) == []


# --- tiles and what lies beside them -------------------------------------------------------------


def test_a_tile_of_another_pair_under_this_name_is_not_taken(tmp_path, caplog):
    first = go(tmp_path / "a")
    go(tmp_path / "b", X[::-1].copy())
    mine, theirs = (next((tmp_path / name / "tiles").iterdir()) for name in "ab")
    shutil.copy(theirs, mine)
    assert [p.path for p in check(tmp_path / "a")] == [str(mine)]
    (tmp_path / "a/run.json").unlink()  # a finished result asks for no tile
    again = go(tmp_path / "a")
    pd.testing.assert_frame_equal(again.table, first.table, check_exact=True)
    assert "is not this tile" in caplog.text and "computed again" in caplog.text
    assert check(tmp_path) == []


@pytest.mark.parametrize("folder", ["tiles", "findings", "ceilings"])
@pytest.mark.parametrize("data", [b"", b"\0" * 99, b"{}", b"[" * 99999, b"PAR1" * 9, b'{"key": 1, "value": ' + b"9" * 5000 + b"}"])
def test_whatever_lies_among_the_kept_files_the_result_is_the_same(folder, data, tmp_path):
    go(tmp_path)
    before = tree(tmp_path)
    next((tmp_path / folder).iterdir()).write_bytes(data)
    check(tmp_path)
    (tmp_path / "run.json").unlink()
    go(tmp_path)
    assert tree(tmp_path) == before


def test_half_written_files_of_killed_runs_are_told_and_swept(tmp_path):
    go(tmp_path)
    before = tree(tmp_path)
    names = ("tiles/.a.parquet.tmp-7-0a1b2c3d", ".run.json.tmp-0a1b2c3d", "findings/.x.tmp-1-00000000")
    left = [tmp_path / name for name in names]
    for path in left:
        path.write_bytes(b"half")
    assert {p.path for p in check(tmp_path)} == set(map(str, left))
    go(tmp_path)
    assert tree(tmp_path) == before


# --- a disk that fails ---------------------------------------------------------------------------

STEPS = {"fsync": os, "open": Path, "replace": Path, "mkdir": Path}
FAULTS = [("fsync", errno.EIO), ("open", errno.ENOSPC), ("replace", errno.EIO), ("mkdir", errno.EACCES)]


@pytest.mark.parametrize(("step", "number"), FAULTS)
def test_whichever_write_fails_it_is_told_and_leaves_no_litter(step, number, tmp_path, monkeypatch):
    """The k-th call of a step fails, for every k that a run comes to; the next run ends with the bytes of a first."""
    want = tmp_path / "want"
    go(want)
    for k in range(100):
        folder, calls = tmp_path / f"{k}", [k]
        real = getattr(STEPS[step], step)

        def failing(*args, real=real, calls=calls, **kwargs):
            calls[0] -= step != "open" or args[1:] == ("r+b",)  # as a temporary file is opened to be filled
            if calls[0] == -1:
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        monkeypatch.setattr(STEPS[step], step, failing)
        try:
            go(folder)
        except RepalignError as error:
            assert "cannot be written" in str(error) and "  do: " in str(error)
        monkeypatch.undo()
        assert not [name for name in tree(folder) if ".tmp-" in name]
        go(folder)
        assert tree(folder) == tree(want)
        if calls[0] >= 0:  # there was no k-th call
            break
    assert k > 3


# --- tables as text ------------------------------------------------------------------------------

CELLS = {
    "=1+1": "'=1+1", '=HYPERLINK("http://x";"y")': '\'=HYPERLINK("http://x";"y")', "+cmd|' /C calc'!A0": "'+cmd|' /C calc'!A0",
    "-2+3+cmd": "'-2+3+cmd", "@SUM(1)": "'@SUM(1)", "\t=1": "'\t=1", "\r=1": "'\r=1", "'=1": "''=1", "-": "'-", "-0x10": "'-0x10",
    "-1": "-1", "+2.5e-3": "+2.5e-3", "-.5": "-.5", "plain": "plain", "": "", "'quoted'": "'quoted'", "a=b": "a=b", "'-1": "''-1",
}  # fmt: skip


def test_text_that_begins_like_a_formula_does_not_run_and_comes_back():
    frame = pd.DataFrame({"text": list(CELLS), "x": np.arange(len(CELLS)) - 3.5, "=head": [-1] * len(CELLS)})
    read = pd.read_csv(io.StringIO(csv_text(frame)), dtype={"text": str}, keep_default_na=False)
    assert list(read["text"]) == list(CELLS.values()) and list(read.columns) == ["text", "x", "'=head"]
    assert list(read["x"]) == list(frame["x"])
    assert [from_csv_cell(cell) for cell in CELLS.values()] == list(CELLS)
    mixed = pd.DataFrame({"m": ["=1", None, 2.5, -3, True], "c": pd.Categorical(["=a", "b", "b", "=a", "b"])})
    assert csv_text(mixed).splitlines() == ["m,c", "'=1,'=a", ",b", "2.5,b", "-3,'=a", "True,b"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's script")
def test_the_page_writes_cells_as_we_do():
    script = REPORT.joinpath("app.js").read_text("utf-8")
    start = script.index("const isFormula")
    line = script[start : script.index("const lines", start)]
    code = f"{line}; console.log(JSON.stringify({json.dumps(list(CELLS))}.map(quoted)));"
    told = json.loads(subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout)
    plain = [next(iter(pd.read_csv(io.StringIO(f"h\n{cell}\n"), dtype=str, keep_default_na=False)["h"]), "") for cell in told]
    assert plain == list(CELLS.values())


def test_a_colour_result_is_held_to_its_digests(tmp_path):
    frame = pd.DataFrame({"space": ["=a", "b"], "id": ["'=1", "-"], "statistic": [0.25, -1.5]})
    ColourResult(frame, frame, frame, {"what": "colour experiment"}).save(tmp_path)
    pd.testing.assert_frame_equal(ColourResult.load(tmp_path).scores, frame)
    assert check(tmp_path) == []
    path = tmp_path / "controls.csv"
    path.write_text(path.read_text("utf-8").replace("0.25", "0.35"), "utf-8")
    with pytest.raises(RepalignError, match=r"controls\.csv is not the file of which run\.json speaks"):
        ColourResult.load(tmp_path)
    assert [p.path for p in check(tmp_path)] == [str(path)]
