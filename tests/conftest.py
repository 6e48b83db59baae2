"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import logging
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Several processes side by side take a thread each. Said before they start: a plugin may import NumPy before this file."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Nothing that is imported here goes away again: who looks for garbage among a million objects needs a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()  # not looked through in any test either
        gc.set_threshold(20_000, 10, 10)  # what a test imports stays too, and to look through that again and again costs
        gc.enable()
        for logger in logging.getLogger().manager.loggerDict.values():
            logger.propagate = True  # pytest hangs its handlers, in every phase of every test, on each that does not: 60 of torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared test data (a folder `shared` beside the checkout) is not here")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk():
    """Power cuts are not tested: a rename is seen by other processes without the flush before it, which costs most of the
    time of tests that write many small files. Tests of the flush itself put their own in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def trials_are_short():
    """A plan tells its seconds from trials, here as short as they can be; test_needs.py asks how near they come."""
    from repalign.study import needs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needs, "TRIAL_SECONDS", 0.01)
        yield


@pytest.fixture
def plain_pictures(monkeypatch):
    """Pictures that nobody looks at: coarse ones, drawn but not laid out before, which takes longer.

    What pictures look like is asked in test_figures, test_figure_kinds and test_report.
    """
    from repalign.figures import canvas, kinds

    @contextmanager
    def as_they_are(figure, dpi):
        engine = figure.get_layout_engine()
        figure.set_layout_engine(None)
        yield figure.bbox_inches
        figure.set_layout_engine(engine)

    monkeypatch.setattr(kinds, "DPI", 40)
    monkeypatch.setattr(canvas, "laid_out", as_they_are)
    monkeypatch.setattr(canvas, "settle", lambda figure: None)


@pytest.fixture(autouse=True)
def threads_stay():
    """A test that leaves torch with other threads changes the last digits of those that come after it in its process."""
    import torch

    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    if after != before:
        torch.set_num_threads(before)
        pytest.fail(f"left torch with {after} threads, found it with {before}")
