"""Where work is done: here, by threads, by processes, by a cluster, or by several runs that know nothing of one another.

Nothing is scheduled by hand: an engine is a `concurrent.futures.Executor`, of the standard library or of Dask. What is here
shares out threads and memory among its workers, and names the worker where something goes wrong. Two runs on one folder do not do
the same work, by their claims (`files/claims.py`).

Work is made of tasks that are pure functions and that leave whole files or none. So nothing depends on who does a task.
"""

from __future__ import annotations

import contextvars
import os
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from repalign.errors import RepalignError, Unavailable, blas, first_line, require
from repalign.files.claims import Claims

QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}  # of dask-jobqueue
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MEMORY = "REPALIGN_MEMORY"  # in the environment of a worker: the bytes of the machine that are its own
SIMULTANEOUS = 2  # tasks that are sent for every worker: one to do, and one to go on with


# --- a share -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Share `index` of `count` equal shares of some work, counted from 1; `Share(0, 1)` takes nothing, and only looks.

    >>> [list(Share(i, 3).of(7)) for i in (1, 2, 3)]
    [[0, 1], [2, 3], [4, 5, 6]]
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that "2/8" says; "join" takes nothing."""
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if text.strip() == "join":
            return cls(0, 1)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise RepalignError(
                f"--part {text!r} is no part", expected="I/N with I from 1 to N, such as 3/8; or join", got=text,
                remedy="an array job says --part $SLURM_ARRAY_TASK_ID/8, with tasks from 1 to 8",
            )  # fmt: skip
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}" if self.index else "join"

    def of(self, total: int) -> range:
        """Its items of `total`: neighbours, so that one share meets few models."""
        if not self.index:
            return range(0)
        return range(total * (self.index - 1) // self.count, total * self.index // self.count)

    def owners(self, items: Iterable[int], total: int) -> tuple[int, ...]:
        """The shares in which items of `total` are; none where this one only looks."""
        if not self.index:
            return ()
        return tuple(sorted({next(i for i in range(1, self.count + 1) if k in Share(i, self.count).of(total)) for k in items}))


# --- engines -------------------------------------------------------------------------------------


def count_of(executor: Executor | None) -> int:
    """How many tasks an executor does at once."""
    if executor is None:
        return 1
    return getattr(executor, "_max_workers", None) or getattr(executor, "count", None) or os.cpu_count() or 1


def threads_of(executor: Executor | None) -> int:
    """The threads of each worker, as far as the executor says them; else those of this process."""
    import torch

    return getattr(executor, "threads", None) or torch.get_num_threads()


def computing(device: str) -> dict[str, Any]:
    """What moves the last digits of what this process computes on a CPU, beside versions; on a GPU nothing that is known here."""
    import torch

    if device != "cpu":
        return {}
    return {"threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability()}


def memory_of(executor: Executor | None, memory: int) -> int:
    """The bytes that each worker may use, where `memory` is for all of a machine."""
    return getattr(executor, "memory", None) or max(1, memory // count_of(executor))


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """An executor of `count` processes, which share the threads and the memory of this one.

    Left by an error or a signal, it ends its processes at once: what they have finished is kept.
    """
    import torch

    if count < 1:
        raise RepalignError("there are no workers", expected="--jobs of 1 or more", got=count)
    threads = max(1, torch.get_num_threads() // count)
    share = {**dict.fromkeys(THREADS, str(threads)), MEMORY: str(machine_memory() // count)}
    with _environment(share):
        pool = _Processes(count, threads)
        try:
            yield pool
        except BaseException:
            pool.end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


class _Processes(ProcessPoolExecutor):
    """New processes (spawn: no thread or lock of this one is copied into them)."""

    def __init__(self, count: int, threads: int) -> None:
        import multiprocessing

        super().__init__(count, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,))
        self.threads = threads

    def end(self) -> None:
        for process in list((self._processes or {}).values()):
            process.terminate()


def _begin(threads: int) -> None:
    """In a new process: its threads, and that it ends with the one that it works for, which alone heeds an interrupt."""
    import multiprocessing

    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def dask(address: str, cluster: Mapping[str, Any] | None = None, jobs: int | None = None) -> Iterator[Executor]:
    """The executor of a Dask cluster.

    address : of a scheduler, such as tcp://host:8786; "local" starts `jobs` processes here; "slurm", "pbs" and "lsf" submit the
        jobs that `cluster` describes, by the fields of the block of a study file.

    A worker does one task at a time: workers of an address are to be started with `--nthreads 1`.
    """
    require(f"--dask {address}", "cluster" if address in QUEUES else "dask", "distributed",
            *(["dask_jobqueue"] if address in QUEUES else []))  # fmt: skip
    from distributed import Client, LocalCluster

    with ExitStack() as opened:
        threads = 1
        if address == "local":
            count = jobs or os.cpu_count() or 1
            opened.enter_context(_environment({MEMORY: str(machine_memory() // count)}))
            local = {"threads_per_worker": 1, "processes": True, "dashboard_address": None, "memory_limit": 0}
            place: Any = opened.enter_context(LocalCluster(n_workers=count, **local))
        elif address in QUEUES:
            if cluster is None:
                raise RepalignError(
                    f"--dask {address}: the study does not say what its jobs ask for", expected="a block `cluster` in the study",
                    remedy="for instance cluster: {workers: 8, cores: 4, memory: 16GB, walltime: 02:00:00}",
                )  # fmt: skip
            place, count, threads = opened.enter_context(queue(address, **cluster)), cluster["workers"], cluster["cores"]
            place.scale(jobs=count)
        else:
            place, count = address, None
        try:
            client = opened.enter_context(Client(place, timeout=20))
        except (OSError, ValueError, ImportError) as error:  # a timeout is an OSError
            raise RepalignError(
                f"no Dask scheduler answers at {address}", got=first_line(error),
                expected="an address such as tcp://host:8786; or local, slurm, pbs, lsf",
                remedy="start one with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`",
            ) from error  # fmt: skip
        if count is None:
            there = client.scheduler_info(n_workers=-1)["workers"].values()
            count = sum(worker["nthreads"] for worker in there)
            if not count:
                raise RepalignError(f"the Dask scheduler at {address} has no workers", expected="one at least", got="none",
                                    remedy=f"start some: dask worker {address} --nthreads 1")  # fmt: skip
        executor = client.get_executor(pure=False)
        executor.count, executor.threads = count, threads
        yield executor


def queue(
    kind: str, *, cores: int, memory: str, walltime: str, queue: str | None, account: str | None, options: Sequence[str],
    setup: Sequence[str], workers: int = 0,  # noqa: ARG001  (how many jobs, which is asked later)
) -> Any:  # fmt: skip
    """The cluster of dask-jobqueue: each job is one worker, which does one task at a time with all the cores of the job."""
    import dask_jobqueue

    given: dict[str, Any] = {
        "cores": 1, "processes": 1, "memory": memory, "walltime": walltime, "queue": queue, "job_extra_directives": list(options),
        "job_script_prologue": [*(f"export {name}={cores}" for name in THREADS), *setup],
    }  # fmt: skip
    if kind == "slurm":
        given |= {"job_cpu": cores, "account": account}
    elif kind == "pbs":
        given |= {"resource_spec": f"select=1:ncpus={cores}:mem={memory}", "account": account}
    else:
        given |= {"ncpus": cores, "project": account}
    return getattr(dask_jobqueue, QUEUES[kind])(**given)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables as long as it lasts: a process that is begun meanwhile has them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def machine_memory() -> int:
    """The bytes of memory that this process may count on: of its share, of its container or job, of the machine."""
    found = [int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    with suppress(KeyError, ValueError):
        found.append(int(os.environ[MEMORY]))
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(place, encoding="ascii") as limit:  # noqa: PTH123  (read at import)
            found.append(int(limit.read()))
    return min(one for one in found if one > 0)


# --- tasks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """A call that leaves whole files or none. `what` names it for people; `keys` are what it makes, for claims.

    is_here : it cannot be sent away. about : whatever the caller wants to find again.
    """

    what: str
    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    keys: tuple[str, ...] = ()
    is_here: bool = False
    about: Any = None


def work(
    tasks: Sequence[Task], executor: Executor | None = None, claims: Claims | None = None,
    needless: Callable[[Task], bool] = lambda task: False,  # noqa: ARG005
) -> Iterator[tuple[Task, Future[Any] | None]]:  # fmt: skip
    """Do tasks, here or in workers: each with its future once that is done, or with None where it was `needless`.

    Tasks are done in order, but those that another run has claimed come last: they are needless when it has done them, and done
    here when its claim is void. Closed early, it cancels what has not begun.

    Raises RepalignError where a worker is lost for good.
    """
    waiting, running, claims = list(tasks), dict[Future[Any], Task](), claims or Claims(None)
    room = SIMULTANEOUS * count_of(executor)
    try:
        while waiting or running:
            held = []
            while waiting and len(running) < room:
                task = waiting.pop(0)
                if needless(task):
                    yield task, None
                elif not claims.take(task.keys):
                    held.append(task)
                elif claims.others and needless(task):  # another run has made it since we looked
                    claims.give(task.keys)
                    yield task, None
                elif executor is None or task.is_here:
                    future: Future[Any] = Future()
                    try:
                        future.set_result(task.call(*task.args))
                    except Exception as error:
                        future.set_exception(error)
                    claims.give(task.keys)
                    yield task, future
                else:
                    running[_submitted(executor, task)] = task
            waiting = held + waiting
            if not running and held:
                time.sleep(claims.beat / 2)
                claims.look()
            some = wait(running, timeout=claims.beat if waiting else None, return_when=FIRST_COMPLETED).done if running else ()
            for future in some:
                task = running.pop(future)
                claims.give(task.keys)
                if _is_lost(error := future.exception()):
                    raise _lost(task, error)
                yield task, future
    finally:
        for future, task in running.items():
            future.cancel()
            claims.give(task.keys)


def sent_bytes(value: Any) -> int:
    """The bytes of a value on its way to another process."""
    from multiprocessing.reduction import ForkingPickler

    return len(ForkingPickler.dumps(value))


def _submitted(executor: Executor, task: Task) -> Future[Any]:
    try:
        return executor.submit(_done_there, task.what, task.call, *task.args)
    except BrokenExecutor as error:
        raise _lost(task, error) from error


def _is_lost(error: BaseException | None) -> bool:
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


def _lost(task: Task, error: BaseException | None) -> RepalignError:
    return RepalignError(
        f"a worker was lost, whose process ended from outside; {task.what} was at work, or waited for it",
        got=first_line(error),
        remedy="run the same command again: what is finished is kept. Where memory ran out, take fewer workers",
    )  # fmt: skip


def _done_there(what: str, call: Callable[..., Any], *args: Any) -> Any:
    """A task in a worker. An error says where it was raised, and is of a kind that any process can read."""
    try:
        return call(*args)
    except RepalignError as error:
        kind = Unavailable if isinstance(error, Unavailable) else RepalignError
        raise kind(f"{error}\n  in: {what}, {_place()}") from None
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}; in {what}, {_place()}") from error


def _place() -> str:
    return f"worker {os.getpid()} on {socket.gethostname()}"


# --- threads of this process ---------------------------------------------------------------------

T, R = TypeVar("T"), TypeVar("R")

_lock = threading.Lock()
_depth = 0
_restore: Callable[[], None] | None = None


@contextmanager
def _threads_each(count: int) -> Iterator[None]:
    """Operations of torch, numpy and scipy on a CPU take `count` threads each, in this thread and in those that ask for it within.

    Their settings are partly of the process, so uses are counted: the first one in saves them, the last one out restores them.
    Threads of numpy's products that wait for more would take the time of those that work.
    """
    import torch

    global _depth, _restore
    with _lock:
        if _depth == 0:
            threads, of_numpy = torch.get_num_threads(), blas().limit(limits=count)

            def restore() -> None:
                of_numpy.restore_original_limits()
                torch.set_num_threads(threads)

            _restore = restore
        _depth += 1
    torch.set_num_threads(count)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0 and _restore is not None:
                _restore()


def at_once(count: int, nbytes: int, device: str) -> int:
    """How many of `count` layers are best worked on at once, each of which takes `nbytes`: on a CPU all that fit the memory."""
    return min(count, max(1, machine_memory() // 8 // max(1, nbytes))) if device == "cpu" else 1


def each(work: Callable[[T], R], layers: Iterable[T], most: int) -> Iterator[R]:
    """`work` of every layer, in their order, `most` at a time but not more than torch has threads.

    A layer has many passes over few megabytes, which one core does as soon as two, and few products. So a thread for a layer
    is sooner done than all threads for each operation. Layers are taken from their iterator as they are needed, in the calling
    thread.
    """
    import torch

    threads = torch.get_num_threads()
    most = min(most, threads)
    if most < 2:
        with _threads_each(threads):  # of numpy too, so that one thread gives what several with a layer each do
            yield from map(work, layers)
        return
    own = threads // most
    waiting: deque[Future[R]] = deque()
    with _threads_each(own), _pool(most, own) as pool:
        try:
            for layer in layers:
                waiting.append(pool.submit(contextvars.copy_context().run, work, layer))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # what has begun ends before the threads are given back
            wait([future for future in waiting if not future.cancel()])


_idle: dict[tuple[int, int], ThreadPoolExecutor] = {}  # the threads of the last use, by their number and what each takes
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # a forked process has none of the threads


@contextmanager
def _pool(most: int, own: int) -> Iterator[ThreadPoolExecutor]:
    """`most` threads, whose operations of torch take `own` each, for one use at a time; they stay for the next that is alike.

    A comparison has dozens of uses, and to start a thread beside others at work takes up to a millisecond.
    """
    import torch

    pool = _idle.pop((most, own), None) or ThreadPoolExecutor(most, initializer=torch.set_num_threads, initargs=(own,))
    try:
        yield pool
    finally:
        _idle.clear()  # the threads of a pool end with it
        _idle[most, own] = pool


def in_parts(work: Callable[[slice], object], count: int, size: int | None = None) -> None:
    """`work` of `count` things in parts of `size`, several parts at a time; without a size a part for each thread."""
    import torch

    size = size or max(1, -(-count // torch.get_num_threads()))
    parts = [slice(start, start + size) for start in range(0, count, size)]
    for _ in each(work, parts, len(parts)):
        pass
