"""Datasets of the hub: through a small hub served here, without network, and from local folders.

Every call runs in a process of its own, since the hub's libraries read their settings on import.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

FIRST, SECOND = "1" * 40, "2" * 40
README = b"---\nlicense: cc0-1.0\n---\nA tiny dataset.\n"


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(prefix: str) -> bytes:
    """Three rows as the hub's `image` feature and a list of texts."""
    rows = [
        {
            "image": {"bytes": png(50 * i), "path": None},
            "text": [f"{prefix} {i}", None, "more"],
            "key": f"k{i}",
        }
        for i in range(3)
    ]
    features = {
        "image": {"_type": "Image"},
        "text": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
        "key": {"dtype": "string", "_type": "Value"},
    }
    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as reading one public dataset takes."""

    revisions: ClassVar = {"v1": FIRST, "v2": SECOND, "main": SECOND, FIRST: FIRST, SECOND: SECOND}
    files: ClassVar = {
        commit: {"README.md": README, "data/train-00000-of-00001.parquet": parquet(prefix)}
        for commit, prefix in ((FIRST, "old"), (SECOND, "new"))
    }

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if not path.startswith(("/api/datasets/org/tiny", "/datasets/org/tiny")):
            return self.answer(404, X_Error_Code="RepoNotFound")
        found = re.fullmatch(r"(?:/api)?/datasets/org/tiny(?:/(revision|tree|resolve)/([^/]+)/?(.*))?", path)
        if found is None:
            return self.answer(404)
        what, revision, rest = found[1] or "revision", found[2] or "main", found[3] or ""
        commit = self.revisions.get(revision)
        if commit is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        files = self.files[commit]
        if what == "resolve":
            if rest not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            etag = f'"{hashlib.sha1(files[rest]).hexdigest()}"'
            return self.answer(200, files[rest], ETag=etag, X_Repo_Commit=commit, Accept_Ranges="none")
        if what == "tree":
            return self.answer_json(self.entries(files, rest))
        siblings = [{"rfilename": name} for name in files]
        return self.answer_json({"id": "org/tiny", "sha": commit, "siblings": siblings, "tags": []})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """paths-info: what the named paths are."""
        path = unquote(urlsplit(self.path).path)
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        found = re.fullmatch(r"/api/datasets/org/tiny/paths-info/([^/]+)", path)
        commit = self.revisions.get(found[1]) if found else None
        if commit is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        every = self.entries(self.files[commit], "", recursive=True)
        names = (
            json.loads(asked)["paths"]
            if asked.startswith("{")
            else re.findall(r"paths=([^&]+)", unquote(asked))
        )
        return self.answer_json([e for e in every if e["path"] in names])

    def entries(self, files: dict[str, bytes], folder: str, recursive: bool = False) -> list[dict[str, Any]]:
        recursive = recursive or "recursive=true" in self.path.lower()
        found = []
        for name, data in files.items():
            oid = hashlib.sha1(data).hexdigest()
            if name.startswith(f"{folder}/" if folder else "") and (
                recursive or "/" not in name[len(folder) + 1 :]
            ):
                found.append({"type": "file", "path": name, "size": len(data), "oid": oid})
        folders = {name.rpartition("/")[0] for name in files} - {"", folder}
        return [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in sorted(folders)] + found


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import json, sys
from repalign.dataset import Dataset
from repalign.errors import RepalignError
results = []
for path, options in json.load(sys.stdin):
    try:
        d = Dataset.from_hub(path, **options)
        first = d.stimuli("text", [0])[0] if "text" in d.modalities else None
        levels = [i.getpixel((0, 0))[0] for i in d.stimuli("image", range(d.n))]
        results.append({"ids": d.ids, "first": first, "levels": levels, **d.describe()})
    except RepalignError as error:
        results.append(str(error))
print(json.dumps(results))
"""


def load(home: Path, calls: list[tuple[str, dict[str, Any]]], **env: str) -> list[Any]:
    """Load datasets in a new process whose caches are under `home`; an error comes back as its text."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=False,
        env={
            **inherited,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **env,
        },
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


BOTH = {"image": "image", "text": "text"}


OFFLINE = {"HF_HUB_OFFLINE": "1"}
UNREACHED = "no network or hub not reachable, and not in the cache"


def test_a_revision_is_resolved_to_a_commit_and_recorded(hub: str, tmp_path: Path) -> None:
    old, new, keyed, pinned, default = load(
        tmp_path,
        [
            ("org/tiny", {"revision": "v1", **BOTH}),
            ("org/tiny", {"revision": "v2", **BOTH}),
            ("org/tiny", {"revision": "v2", "id": "key", **BOTH}),
            ("org/tiny", {"revision": FIRST, **BOTH}),
            ("org/tiny", BOTH),
        ],
        HF_ENDPOINT=hub,
    )
    assert old["revision"] == pinned["revision"] == FIRST
    assert new["revision"] == default["revision"] == SECOND
    assert (old["name"], old["source"]) == ("tiny", "hub org/tiny@v1 (split=train, image=image, text=text)")
    assert old["ids"] == ["00000", "00001", "00002"] and keyed["ids"] == ["k0", "k1", "k2"]
    assert old["first"] == ["old 0", "", "more"] and new["first"] == ["new 0", "", "more"]
    assert old["levels"] == [0, 50, 100]
    # the fingerprint knows the commit, not the name it was asked for by
    assert old["fingerprint"] == pinned["fingerprint"]
    assert new["fingerprint"] == default["fingerprint"]
    assert len({d["fingerprint"] for d in (old, new, keyed)}) == 3


def test_what_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    _, revision, dataset, split, column, config = load(
        tmp_path,
        [
            ("org/tiny", {"revision": "v1", **BOTH}),
            ("org/tiny", {"revision": "v3", **BOTH}),  # `datasets` would give the cached v1 here
            ("org/other", {"revision": "v1", **BOTH}),
            ("org/tiny", {"revision": "v1", "split": "test", **BOTH}),
            ("org/tiny", {"revision": "v1", "image": "picture"}),
            ("org/tiny", {"revision": "v1", "config": "big", **BOTH}),
        ],
        HF_ENDPOINT=hub,
    )
    assert "dataset org/tiny has no revision 'v3'" in revision
    assert "the hub has no dataset 'org/other'" in dataset and "hf auth login" in dataset
    assert "org/tiny has no split 'test'" in split and "expected: train" in split
    assert "org/tiny has no column 'picture'" in column
    assert "dataset org/tiny at revision v1 cannot be loaded" in config and "'big' not found" in config


def test_without_network_the_cache_serves_the_commit_that_was_asked_for(hub: str, tmp_path: Path) -> None:
    v2, v1 = ("org/tiny", {"revision": "v2", **BOTH}), ("org/tiny", {"revision": "v1", **BOTH})
    online = load(tmp_path, [v1, v2], HF_ENDPOINT=hub)[1]
    cached, other, unknown, commit = load(
        tmp_path,
        [v2, v1, ("org/tiny", {"revision": "v9", **BOTH}), ("org/tiny", {"revision": SECOND, **BOTH})],
        **OFFLINE,
    )
    assert cached["fingerprint"] == commit["fingerprint"] == online["fingerprint"]
    assert cached["revision"] == SECOND
    # the libraries fall back to the latest commit in the cache, whatever was asked for
    assert "another commit than the one asked for" in other
    assert f"revision v1, commit {FIRST}" in other and f"got: commit {SECOND}" in other
    assert UNREACHED in unknown and "at revision v9" in unknown


@pytest.mark.parametrize("env", [OFFLINE, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=["offline", "refused"])
def test_without_network_and_cache(tmp_path: Path, env: dict[str, str]) -> None:
    (message,) = load(tmp_path, [("minhuh/prh", {"revision": "wit_1024", **BOTH})], **env)
    assert f"dataset minhuh/prh at revision wit_1024: {UNREACHED}" in message
    assert "expected: a connection to the Hugging Face hub, or an earlier download" in message
    assert "save_to_disk" in message


def save_local(folder: Path) -> None:
    """The same three rows in every form that is loadable without a hub."""
    import datasets

    datasets.disable_progress_bars()
    rows = pq.read_table(io.BytesIO(parquet("local"))).to_pylist()
    features = datasets.Features(
        image=datasets.Image(), text=[datasets.Value("string")], key=datasets.Value("string")
    )
    data = datasets.Dataset.from_list(rows, features=features)
    data.save_to_disk(folder / "saved")
    data.select([2, 1, 0]).save_to_disk(folder / "reversed")
    datasets.DatasetDict({"train": data}).save_to_disk(folder / "splits")
    (folder / "folder").mkdir()
    (folder / "folder" / "train-00000-of-00001.parquet").write_bytes(parquet("local"))
    (folder / "one.parquet").write_bytes(parquet("local"))
    rows[1]["image"] = None
    rows[2]["text"] = [None, "second"]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder / "gaps")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("x")


def test_local_datasets_load_through_the_same_code(tmp_path: Path) -> None:
    save_local(tmp_path)
    forms = ["saved", "splits", "folder", "one.parquet"]
    calls = [(str(tmp_path / form), BOTH) for form in [*forms, "reversed"]]
    calls.append((str(tmp_path / "one.parquet"), {"image": "image", "text": "key", "id": "key"}))
    *same, backwards, keyed = load(tmp_path / "home", calls, **OFFLINE)
    for form, d in zip(forms, same, strict=True):
        assert d["first"] == ["local 0", "", "more"] and d["levels"] == [0, 50, 100], form
        assert (d["revision"], d["ids"]) == (None, ["00000", "00001", "00002"])
        assert d["source"] == f"local {form} (split=train, image=image, text=text)"
    assert len({d["fingerprint"] for d in same}) == 1
    assert backwards["levels"] == [100, 50, 0]
    assert (keyed["ids"], keyed["first"]) == (["k0", "k1", "k2"], ["k0"])


def test_local_datasets_that_cannot_be_used(tmp_path: Path) -> None:
    save_local(tmp_path)
    drop = {"on_missing": "drop"}
    calls = [
        ("gaps", BOTH),
        ("gaps", {"image": "image"}),
        ("gaps", {**BOTH, **drop}),
        ("saved", {**BOTH, "revision": "v1"}),
        ("splits", {**BOTH, "split": "tran"}),
        ("folder", {**BOTH, "split": "tran"}),
        ("folder", {**BOTH, "split": "train[:x]"}),
        ("saved", {"image": "key"}),
        ("saved", {"split": "train"}),
        ("empty", BOTH),
        ("notes.txt", BOTH),
        ("not here/at all/x", BOTH),
    ]
    answers = load(tmp_path / "home", [(str(tmp_path / p), o) for p, o in calls[:-1]] + calls[-1:], **OFFLINE)
    assert "row 2 (id '00002'): caption missing: None" in answers[0]
    assert "row 1 (id '00001'): image file cannot be read: 'image of 00001' (the cell is empty)" in answers[1]
    assert answers[2]["ids"] == ["00000"] and answers[2]["levels"] == [0]
    assert [x["row"] for x in answers[2]["left_out"]] == [1, 2]
    assert "is on this machine, where there are no revisions" in answers[3]
    for answer in answers[4:6]:
        assert "has no split 'tran'" in answer and "did you mean 'train'" in answer
    assert "the split 'train[:x]' cannot be read" in answers[6]
    assert "column 'key' holds no images" in answers[7] and "feature type Image" in answers[7]
    assert "no column of stimuli is named" in answers[8]
    assert "empty is no dataset that the `datasets` library can load" in answers[9]
    assert "notes.txt: a file of unknown format" in answers[10]
    assert "'not here/at all/x' is neither a dataset of the hub nor on this machine" in answers[11]


def test_a_dataset_of_the_hub_goes_to_another_process_by_reference(tmp_path: Path) -> None:
    """What is sent names the files on disk and holds no image."""
    import datasets

    from repalign.dataset import Dataset

    datasets.disable_progress_bars()
    noise = [{"image": {"bytes": noisy_png(i), "path": None}} for i in range(4)]
    data = datasets.Dataset.from_list(noise, features=datasets.Features(image=datasets.Image()))
    data.save_to_disk(tmp_path / "saved")
    d = Dataset.from_hub(tmp_path / "saved", image="image")
    sent = pickle.dumps(d)
    assert len(sent) < len(noise[0]["image"]["bytes"])
    again = pickle.loads(sent).stimuli("image", [3])[0]
    assert again.tobytes() == d.stimuli("image", [3])[0].tobytes()


def noisy_png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (60, 60), random.Random(seed).randbytes(10800)).save(buffer, "PNG")
    return buffer.getvalue()
