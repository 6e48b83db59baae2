"""Groups of tiles: how they are made, and how each tile is found again, whatever lies in the folder."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from repalign import null as nulls
from repalign.comparison import Tile, compare, doctor
from repalign.comparison import tiles as tiling
from repalign.comparison.alignment import DRAWS, TILE_SCHEMA, Alignment
from repalign.comparison.check import check
from repalign.comparison.kept import ABOUT, KEY, MEMBERS, Kept, opened, table_of
from repalign.comparison.tiles import Settings, groups_of, pairs_of
from repalign.errors import RepalignError
from repalign.files import LocalFiles, open_files, read_parquet, seal_parquet
from repalign.measures import parse_measure
from test_compare import model

engine = importlib.import_module("repalign.comparison.work")
NULL, MEASURES = nulls.Permutations(19), ["CKA()", "MutualKNN(k=5)"]
MODELS = [model(f"m{i}", 40 + i, (3 + i % 4,)) for i in range(7)]  # 21 pairs, 42 tiles
FEW = 6  # groups, in these tests


def listed(count: int, measures: int = 1, sides: int = 0) -> list[Tile]:
    """Tiles of many models of which nothing is read: all with each other, or `sides` of them with the others."""
    models = [model(f"{i:03d}", 1, (2,)) for i in range(count)]
    x, y = (models[:sides], models[sides:]) if sides else (models, None)
    settings = Settings(NULL, "studentised max", 0.05)
    some = [parse_measure(f"MutualKNN(k={k})") for k in range(1, measures + 1)]
    return [Tile(a, b, m, settings, streams) for m in some for a, b, streams in pairs_of(x, y, m)]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Six groups at most; counts the tiles that are judged, by the names of their models."""
    judged: Counter[str] = Counter()
    real = engine.judged_tile
    monkeypatch.setattr(engine, "groups_of", partial(groups_of, most=FEW))

    def counted(tile, *rest):
        judged[tile.x.name + tile.y.name] += 1
        return real(tile, *rest)

    monkeypatch.setattr(engine, "judged_tile", counted)
    return judged


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "tiles").iterdir())}


def run(folder: Path | None, models=MODELS, null: nulls.Null = NULL, **options: object):
    return compare(models, None, MEASURES, null, results=folder, **options)


@pytest.mark.parametrize("made", [(40,), (40, 3), (41, 2, 40), (60, 1, 30), (5, 100), (2, 300)], ids=str)
def test_tiles_are_in_few_groups_of_few_models(made):
    tiles = listed(*made)
    groups = groups_of(tiles)
    assert sorted(i for group in groups for i in group) == list(range(len(tiles))) and groups == groups_of(tiles)
    assert 64 <= len(groups) <= tiling.GROUPS
    assert all(group == sorted(group) for group in groups)
    largest = max(map(len, groups))
    assert largest <= 4 * len(tiles) / len(groups) + 1
    # A group of m pairs prepares some 2 sqrt(m) models, not m of them.
    prepared = [len({r.name for i in group for r in (tiles[i].x, tiles[i].y)}) for group in groups]
    pairs = [len({(tiles[i].x.name, tiles[i].y.name) for i in group}) for group in groups]
    assert made[2:] == (40,) or all(p <= 2 * (m**0.5 + 1) for p, m in zip(prepared, pairs, strict=True))


def test_up_to_256_tiles_are_a_file_each():
    assert groups_of(listed(23)) == [[i] for i in range(253)] and len(groups_of(listed(24))) < 256


def test_every_tile_is_found_when_models_and_measures_are_added(few, tmp_path):
    """Whatever the groups were; and the result is that of all at once, to the byte."""
    for models, measures in ((MODELS[:5], MEASURES[:1]), (MODELS[:5], MEASURES), (MODELS, MEASURES)):
        few.clear()
        compare(models, None, measures, NULL, results=tmp_path / "grown")
    assert few.total() == 42 - 20 and all("m5" in pair or "m6" in pair for pair in few)
    run(tmp_path / "whole")
    for name in ("results.parquet", "draws.parquet"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(files(tmp_path / "whole")) == FEW and check(tmp_path) == []


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(few, tmp_path, monkeypatch):
    run(tmp_path / "whole")
    few.clear()
    real = Kept.write

    def dies(self, *rest):
        if len(list((tmp_path / "killed/tiles").glob("*"))) == 3:
            raise KeyboardInterrupt
        real(self, *rest)

    monkeypatch.setattr(Kept, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.setattr(Kept, "write", real)
    kept = sum(len(json.loads(read_parquet(path)[1][MEMBERS])) for path in (tmp_path / "killed/tiles").iterdir())
    few.clear()
    run(tmp_path / "killed")
    assert few.total() == 42 - kept < 42
    whole, killed = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
                     for f in (tmp_path / "whole", tmp_path / "killed"))  # fmt: skip
    assert whole == killed


@pytest.mark.parametrize("damage", ["cut", "flipped", "footer", "key", "renamed"])
def test_the_tiles_of_a_damaged_group_are_computed_again(damage, few, tmp_path, caplog):
    first = run(tmp_path)
    before = files(tmp_path)
    path = sorted((tmp_path / "tiles").iterdir())[2]
    members = json.loads(read_parquet(path)[1][MEMBERS])
    data = bytearray(path.read_bytes())
    at = {"flipped": 99, "footer": len(data) - 30, "key": data.index(members[0][0].encode())}.get(damage, 0)
    data[at] ^= 1
    path.write_bytes({"cut": data[:-9], "renamed": before[path.name]}.get(damage, data))
    if damage == "renamed":
        path.rename(path.with_name("0" * 24 + ".parquet"))
    (tmp_path / "run.json").unlink()
    assert any("tiles" in problem.path and "delete it" in problem.remedy for problem in check(tmp_path))
    few.clear()
    again = run(tmp_path)
    assert few.total() == len(members) and "what it held is computed again" in caplog.text
    pd.testing.assert_frame_equal(again.table, first.table, check_exact=True)
    assert {name: data for name, data in files(tmp_path).items() if name != "0" * 24 + ".parquet"} == before


def test_files_of_a_single_tile_from_before_there_were_groups_are_read(few, tmp_path):
    first = run(tmp_path)
    for path in list((tmp_path / "tiles").iterdir()):
        table, notes, _ = read_parquet(path)
        start = 0
        for key, rows, about in json.loads(notes[MEMBERS]):
            of_tile = table.slice(start, rows).select(TILE_SCHEMA.names)
            data = seal_parquet(of_tile, {KEY: key, **({ABOUT: json.dumps(about)} if about else {})})
            path.with_name(f"{key}.parquet").write_bytes(data)
            start += rows
        path.unlink()
    (tmp_path / "run.json").unlink()
    few.clear()
    again = run(tmp_path)
    assert not few and len(files(tmp_path)) == 42
    pd.testing.assert_frame_equal(again.table, first.table, check_exact=True)
    assert check(tmp_path) == []


def test_what_is_written_is_what_is_found_by_a_folder_and_by_a_url(few, tmp_path):
    """Rows, draws without any and with nan, and what is said of a tile; the bytes are those of the tiles alone."""
    tiles = listed(4)
    rows = run(None).table.iloc[:9]
    table = pa.Table.from_pandas(rows, TILE_SCHEMA.remove(len(TILE_SCHEMA) - 1), preserve_index=False)
    draws = [np.array([1.0, np.nan]), np.empty(0), np.arange(3.0)]
    places = zip((0, 1, 5), (1, 3, 9), draws, strict=True)
    some = [tiling.Scored(table, a, b, d, {"method": "x"} if a else {}) for a, b, d in places]
    for place in (str(tmp_path), "memory://kept"):
        kept = Kept(open_files(place))
        kept.write(tiles[2:5], some)
        found = dict(kept.find(tiles))
        assert sorted(found) == [2, 3, 4] and kept.holds(tiles[2:5]) and not kept.holds(tiles[2:4])
        for one, was in zip((found[i] for i in (2, 3, 4)), some, strict=True):
            assert np.array_equal(one.draws, was.draws, equal_nan=True) and one.about == was.about
            pd.testing.assert_frame_equal(one.rows, was.rows, check_exact=True)
        assert table_of([found[4], found[2]]).equals(table_of([some[2], some[0]]).cast(found[2].table.schema))
    assert kept.files.read(f"tiles/{next(iter(kept.files.listing('tiles')))}") == next(iter(files(tmp_path).values()))
    with pytest.raises(RepalignError, match="has other rows than it states"):
        data = seal_parquet(table.append_column(DRAWS, pa.array([[1.0]] * 9)), {MEMBERS: json.dumps([[tiles[0].key, 8, {}]])})
        LocalFiles(tmp_path).write(f"tiles/{tiles[0].key}.parquet", data)
        opened(data, "a", f"{tiles[0].key}.parquet")


def test_workers_keep_the_same_files(few, tmp_path):
    run(tmp_path / "loop")
    with ThreadPoolExecutor(2) as pool:
        run(tmp_path / "threads", executor=pool)
    assert files(tmp_path / "loop") == files(tmp_path / "threads")


def test_the_findings_of_many_models_are_some_a_file(few, tmp_path, monkeypatch):
    """Seven models with three files at most, in the loop and by workers; those that are kept are not looked at again."""
    monkeypatch.setattr(doctor, "APART", 3)
    monkeypatch.setattr(engine, "APART", 3)
    looked: list[str] = []
    real = doctor.examine
    monkeypatch.setattr(doctor, "examine", lambda x, **about: looked.append(about["model"]) or real(x, **about))
    first = run(tmp_path / "loop", MODELS[:5])
    assert len(list((tmp_path / "loop/findings").iterdir())) == 3 and sorted(looked) == [r.name for r in MODELS[:5]]
    looked.clear()
    grown = run(tmp_path / "loop")
    assert sorted(looked) == ["m5", "m6"] and grown.run["findings"][: len(first.run["findings"])] == first.run["findings"]
    assert check(tmp_path) == []
    with ThreadPoolExecutor(2) as pool:
        assert run(tmp_path / "threads", executor=pool).run["findings"] == grown.run["findings"]
    assert len(list((tmp_path / "threads/findings").iterdir())) == 3


# --- a result that is finished -------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, or listed, below a results folder."""
    read: list[str] = []
    for kind, name in ((LocalFiles, "read"), (LocalFiles, "listing"), (Path, "read_bytes")):
        real = getattr(kind, name)

        def told(own, *args, real=real):
            read.append(str(own / args[0] if args and isinstance(own, Path) else args[0] if args else own))
            return real(own, *args)

        monkeypatch.setattr(kind, name, told)
    return read


def test_the_same_command_again_reads_the_table_and_no_tile(few, reads, tmp_path):
    told: list[str] = []
    tell = lambda task, done, total, note=None: told.append(note) if note else None  # noqa: E731
    first = run(tmp_path, describe={"name": "one", "study": {"a": 1}})
    before = files(tmp_path)
    reads.clear()
    few.clear()
    again = run(tmp_path, describe={"name": "one", "study": {"a": 1}}, progress=tell)
    assert not few and not any("tiles" in path for path in reads)
    assert told == ["42 of 42 parts were done in an earlier run, and are taken"]
    pd.testing.assert_frame_equal(again.table, first.table, check_exact=True)
    assert json.loads(json.dumps(first.run)) == again.run and "asked" not in again.run
    assert all(np.array_equal(a, b) for a, b in zip(first.draws["draws"], again.draws["draws"], strict=True))
    assert files(tmp_path) == before


def test_what_differs_is_not_taken_from_the_finished_result(few, reads, tmp_path):
    """The text of the study, its warnings, a ceiling, a model's score: the tiles are read then, and the description is new."""
    run(tmp_path)
    better = replace(MODELS[0], record=replace(MODELS[0].record, scores={"top1": 0.5}))
    changes = [
        ({"describe": {"study": {"a": 2}}}, lambda r: r.run["study"] == {"a": 2}),
        ({"describe": {"warnings": ["look here"]}}, lambda r: "look here" in r.run["warnings"]),
        ({"models": [better, *MODELS[1:]]}, lambda r: r.run["models"][0]["scores"] == {"top1": 0.5}),
        ({"replicates": [(MODELS[0], MODELS[1])]}, lambda r: len(r.run["ceilings"]) == len(MEASURES)),
        ({}, lambda r: not r.run["ceilings"] and r.run["study"] is None),
    ]
    few.clear()
    for change, holds in changes:
        reads.clear()
        assert holds(run(tmp_path, **change)) and any("tiles" in path for path in reads)
        assert holds(run(tmp_path, **change))
    assert set(few) <= {"m0m1"}  # the twins are relabelled on one side


def test_a_description_that_was_changed_by_hand_or_a_damaged_table_is_written_anew(few, tmp_path):
    first = run(tmp_path)
    data = (tmp_path / "results.parquet").read_bytes()
    (tmp_path / "results.parquet").write_bytes(data[:-7])
    pd.testing.assert_frame_equal(run(tmp_path).table, first.table, check_exact=True)
    assert (tmp_path / "results.parquet").read_bytes() == data
    loaded = Alignment.load(tmp_path)
    Alignment(loaded.table, {**loaded.run, "name": "added"}, loaded.draws).save_run(tmp_path)
    assert Alignment.load(tmp_path).run["name"] == "added" and run(tmp_path).run["name"] is None
