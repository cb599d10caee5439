"""Pools in tasks of pools, over and over: none of them hangs, and none leaves anything behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any

import pytest
from conftest import START_METHODS, fork_beside_threads

from fastpool import WorkerPool

HANG = 120  # seconds that no run takes
QUICK = ("fork", "threading")
RUNS, SLOW_RUNS = (1000, 25) if os.environ.get("FASTPOOL_LONG") == "1" else (20, 1)


class HangError(Exception):
    pass


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        raise HangError(f"a run has taken {HANG} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def square(x: int) -> int:
    return x * x


def inverse(x: int) -> float:
    return 1 / x


def by_map(pool: WorkerPool, n: int) -> Any:
    return pool.map(square, range(n))


def by_lazy_map(pool: WorkerPool, n: int) -> Any:
    return sorted(pool.imap_unordered(square, iter(range(n)), chunk_size=1))


def left_early(pool: WorkerPool, n: int) -> Any:
    endless = pool.imap(square, iter(range(10**6)))
    return [next(endless) for _ in range(n)]


def by_applies(pool: WorkerPool, n: int) -> Any:
    return [result.get() for result in [pool.apply_async(square, i) for i in range(n)]]


def after_an_error(pool: WorkerPool, n: int) -> Any:
    with pytest.raises(ZeroDivisionError):
        pool.map(inverse, range(n))
    return pool.map(square, range(n))


WAYS = (by_map, by_lazy_map, left_early, by_applies, after_an_error)


def use_inner(inner: str, run: int, n: int) -> Any:
    with WorkerPool(n_jobs=2, start_method=inner) as pool:
        results = WAYS[run % len(WAYS)](pool, n)
        if run % 2:
            pool.stop_and_join()
    return results


@fork_beside_threads
@pytest.mark.parametrize("inner", START_METHODS)
@pytest.mark.parametrize("outer", START_METHODS)
def test_no_run_hangs(outer: str, inner: str) -> None:
    for run in range(RUNS if outer in QUICK and inner in QUICK else SLOW_RUNS):
        signal.alarm(HANG)
        with WorkerPool(n_jobs=2, start_method=outer, daemon=False) as pool:
            found = pool.map(use_inner, [(inner, run, 2), (inner, run, 5)], chunk_size=1)
        assert found == [[0, 1], [0, 1, 4, 9, 16]]


@fork_beside_threads
def test_forks_of_a_process_that_has_a_fork_server() -> None:
    """`multiprocessing` would wait there for a server that is no child of theirs."""
    with WorkerPool(n_jobs=2, start_method="forkserver") as pool:
        assert pool.map(square, range(3)) == [0, 1, 4]
        with WorkerPool(n_jobs=2, daemon=False) as outer:
            given = [("forkserver", 0, 2), ("forkserver", 1, 5)]
            assert outer.map(use_inner, given, chunk_size=1) == [[0, 1], [0, 1, 4, 9, 16]]
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if use_inner("forkserver", 1, 3) == [0, 1, 4] else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert pool.map(square, range(3)) == [0, 1, 4]


def test_a_fork_server_that_somebody_else_has_reaped() -> None:
    with WorkerPool(n_jobs=1, start_method="forkserver") as pool:
        pool.map(square, range(3))
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    with WorkerPool(n_jobs=1, start_method="forkserver") as pool:
        assert pool.map(square, range(3)) == [0, 1, 4]


@fork_beside_threads
@pytest.mark.parametrize("inner", START_METHODS)
def test_children_of_daemons(inner: str, start_method: str) -> None:
    """Processes that are daemons may have none; threads are no children, and may have some."""
    given = [(inner, 0, 3)]
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        if "threading" in (inner, start_method):
            assert pool.map(use_inner, given) == [[0, 1, 4]]
        else:
            with pytest.raises(AssertionError, match="daemonic processes are not allowed to have children"):
                pool.map(use_inner, given)
