"""Several layers at once: the same numbers in the same order, within bounds, and settings put back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import repalign
from repalign import workers
from repalign.measures.numerics import precision
from repalign.workers import at_once, each


@pytest.fixture(params=[2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_whoever_is_first(threads):
    def work(i: int) -> int:
        time.sleep(0.02 * (i % 3 == 0))
        return i * i

    assert list(each(work, iter(range(11)), 11)) == [i * i for i in range(11)]
    assert torch.get_num_threads() == threads


def test_products_of_two_layers_are_made_at_the_same_time(threads, monkeypatch):
    both, gram = threading.Barrier(2, timeout=20), precision.gram

    def together(x: torch.Tensor) -> torch.Tensor:
        both.wait()  # an error where the other thread waits for this one
        return gram(x)

    monkeypatch.setattr(precision, "gram", together)
    layers = [torch.randn(20, 5) for _ in range(4)]
    for x, found in zip(layers, each(lambda x: precision.layer_of(x).products, layers, 2), strict=True):
        rows = (x - x.mean(dim=0)) / found.unit
        assert torch.allclose(found.gram, rows @ rows.T, atol=1e-6)


def test_so_many_as_fit_the_memory(monkeypatch):
    monkeypatch.setattr("repalign.workers.machine_memory", lambda: 800)
    assert [at_once(5, nbytes, "cpu") for nbytes in (0, 20, 30, 200)] == [5, 5, 3, 1]
    assert at_once(5, 1, "cuda") == 1  # whose memory is another


@pytest.mark.parametrize(("asked", "most"), [(1, 1), (2, 2), (99, None)])
def test_so_many_at_once_and_no_more(threads, asked, most):
    running, peak, lock = 0, 0, threading.Lock()

    def work(_: int) -> int:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return torch.get_num_threads()

    found = list(each(work, range(8), asked))
    assert peak == min(most or threads, threads)
    assert set(found) == {max(1, threads // min(asked, threads))}  # all threads have something to do, and no more
    assert torch.get_num_threads() == threads


def test_layers_are_taken_as_they_are_needed(threads):
    taken = []

    def layers() -> Iterator[int]:
        for i in range(20):
            taken.append(i)
            yield i

    found = each(lambda i: i, layers(), 20)
    assert next(found) == 0
    assert len(taken) <= threads + 1


def test_an_error_comes_out_and_threads_are_put_back(threads):
    def work(i: int) -> float:
        if i == 3:
            raise ValueError("layer 3")
        return i

    with pytest.raises(ValueError, match="layer 3"):
        list(each(work, range(9), 9))
    assert torch.get_num_threads() == threads


def test_products_of_numpy_take_no_more_threads(threads):
    def blas() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}

    with threadpool_limits(2, "blas"):
        assert set().union(*each(lambda _: blas(), range(threads), threads)) == {1}
        assert blas() == {2}


def test_a_run_within_another_does_not_lose_the_setting(threads):
    found = list(each(lambda i: sum(each(lambda j: i * j, range(4), 4)), range(5), 5))
    assert found == [6 * i for i in range(5)]
    assert torch.get_num_threads() == threads


def test_a_table_is_the_same_with_any_number_of_threads(threads):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((300, 12))

    def layers(widths: tuple[int, ...]) -> dict[str, np.ndarray]:
        made = {f"layer {w}": base @ rng.standard_normal((12, w)) + rng.standard_normal((300, w)) for w in widths}
        return {name: x.astype(np.float32) for name, x in made.items()}

    x, y = layers((20, 150, 400, 30)), layers((64, 310, 16))
    measures = ["CKA()", "MutualKNN(k=10)", "RSA()"]
    several = repalign.pair(x, y, measures)
    torch.set_num_threads(1)
    one = repalign.pair(x, y, measures)
    pd.testing.assert_frame_equal(several.table, one.table, rtol=1e-9, atol=1e-12)
    assert several.run["findings"] == one.run["findings"]


def test_threads_stay_for_the_next_use(threads):
    def name(_: int) -> str:
        time.sleep(0.01)  # so that no thread takes all
        return threading.current_thread().name

    first = set(each(name, range(2 * threads), threads))
    assert len(first) == threads
    for _ in range(5):
        assert set(each(name, range(2 * threads), threads)) == first


def test_of_uses_that_differ_only_the_last_keeps_its_threads(threads):
    for most in (2, threads, 2, threads):
        list(each(time.sleep, [0.01] * 2 * most, most))
        assert list(workers._idle) == [(most, threads // most)]


def test_two_uses_at_once_have_threads_of_their_own(threads):
    """A use that waits for another one, in its midst, gets all of its answers."""
    outer = each(lambda i: i, range(3 * threads), threads)
    assert [next(outer), *each(lambda i: i, range(9), threads), *outer] == [0, *range(9), *range(1, 3 * threads)]


def test_what_has_begun_ends_before_its_threads_are_used_again(threads):
    begun, ended = [], []

    def work(i: int) -> int:
        begun.append(i)
        time.sleep(0.05 * (i > 0))
        ended.append(i)
        return i

    some = each(work, range(9), threads)
    next(some)
    some.close()
    assert sorted(begun) == sorted(ended) and len(ended) < 9
    assert list(each(lambda i: i, range(5), threads)) == list(range(5))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(threads):
    list(each(time.sleep, [0.01] * 2 * threads, threads))
    child = os.fork()
    if not child:
        fine = False
        try:
            signal.alarm(20)  # ends it if it waits for threads that it does not have
            fine = list(each(lambda i: i, range(5), threads)) == list(range(5))
        finally:  # whatever happens: the tests go on in the other process alone
            os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
