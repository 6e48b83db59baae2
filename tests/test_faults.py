"""Steps of the file system that fail, a few of every kind: told, mended by the next run, no litter.

`python tests/faults.py` does all of them, to the 200th of every kind.
"""

from __future__ import annotations

import pytest

import faults
from repalign.files import local, remote


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))


def test_a_disk_that_fails(tmp_path):
    with faults.patched(tmp_path):
        found = faults.campaign(["store", "adapter"], faults.numbered(tmp_path), faults.LOCAL, every=5)
        found += faults.campaign(["results"], faults.numbered(tmp_path / "b"), ("write", "rename"), every=10)
    assert not found.is_bad, found.table()
    assert found.cases.total() > 25 and {op for _, op, how in found.cases if how == "told"} >= {"open", "write", "fsync", "rename"}


CASES = {
    "refused": ("objects://bucket", {}), "busy once": ("objects://bucket", {"passing": True}),
    "busy": ("objects://bucket", {"passing": True, "lasts": True}), "a disk": ("elsewhere://{}", {}),
}  # fmt: skip


@pytest.mark.parametrize(("root", "how"), CASES.values(), ids=CASES)
def test_what_lies_behind_a_url_fails(root, how, tmp_path):
    found = faults.campaign(["store"], faults.numbered(root.format(tmp_path)), faults.BEHIND, every=9, **how)
    assert not found.is_bad, found.table()
    told = {what for _, _, what in found.cases}
    assert told == ({"without"} if how == {"passing": True} else {"told"}) and found.cases.total() > 6


def test_the_campaign_can_fail(tmp_path, monkeypatch):
    """A writer that puts half a file in its place, and one that lets the system's errors through, are found."""

    def torn(self: local.LocalFiles, name: str, *chunks: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as handle:
            for chunk in chunks:
                handle.write(chunk)

    monkeypatch.setattr(local.LocalFiles, "write", torn)
    with faults.patched(tmp_path):
        found = faults.campaign(["store"], faults.numbered(tmp_path), ("write",))
    assert found.raw
