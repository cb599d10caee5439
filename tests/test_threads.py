"""Workers that are threads: what is passed are references, and who cannot be stopped is abandoned."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from conftest import fork_beside_threads
from leftovers import shared_mappings, wait_for_end

import fastpool
from fastpool import DamagedMemoryError, RemoteError, WorkerPool, WorkerTimeoutError, supervisor, threads
from fastpool._collect import Collector
from fastpool._native import Segment
from fastpool._references import Exchange
from fastpool._worker import thread_loops
from fastpool.errors import Interruption
from fastpool.functions import Functions
from fastpool.mapping import JOB_KEEP_GOING, JOB_LAST
from fastpool.worker import ThreadHost, make_loop

HANG = 60


def pool_of(n_jobs: int = 2, **options: Any) -> WorkerPool:
    return WorkerPool(n_jobs=n_jobs, start_method="threading", **options)


class Thing:
    """Can be told from its copies, and be seen to go."""


def same(x: Any) -> Any:
    return x


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """For tasks that nothing interrupts: they end with the test."""
    event = threading.Event()
    yield event
    event.set()


# ---------------------------------------------------------------- references


@pytest.mark.parametrize("make", [list, tuple, iter, dict.fromkeys], ids=["list", "tuple", "iterator", "dict"])
def test_arguments_and_results_are_the_very_objects(make: Callable[..., Any]) -> None:
    things = [Thing() for _ in range(5000)]
    with pool_of() as pool:
        results = pool.map(same, make(things))
    assert all(result is thing for result, thing in zip(results, things, strict=True))


def test_what_cannot_be_pickled() -> None:
    lock = threading.Lock()
    with pool_of(shared_objects=lock, use_worker_state=True, keep_alive=True) as pool:
        assert pool.map(lambda shared, state, x: shared is lock and x is lock, [(lock,), lock]) == [True, True]
        numbers = pool.map(lambda *_: (i for i in range(3)), [1])[0]
        assert list(numbers) == [0, 1, 2]


def test_exit_results_and_worker_states() -> None:
    made: list[dict[str, Any]] = []

    def init(state: dict[str, Any]) -> None:
        state["n"] = 0
        made.append(state)

    def count(state: dict[str, Any], _: int) -> threading.Thread:
        state["n"] += 1
        return threading.current_thread()

    with pool_of(use_worker_state=True, keep_alive=True) as pool:
        used = set(pool.map(count, range(1000), worker_init=init, worker_exit=same))
        assert used == set(pool.map(count, range(1000), worker_init=init, worker_exit=same)) or len(made) == 2
        pool.stop_and_join()
        assert {id(state) for state in pool.get_exit_results()} == {id(state) for state in made}
    assert sum(state["n"] for state in made) == 2000
    assert threading.main_thread() not in used


@pytest.mark.parametrize("kind", [ValueError, SystemExit, StopIteration, KeyboardInterrupt])
def test_exceptions_are_the_very_objects(kind: type[BaseException]) -> None:
    error = kind("mine")

    def task(x: int) -> None:
        if x == 3:
            raise error from LookupError("the cause")

    with pool_of() as pool:
        for _ in range(2):  # what was raised before can be raised again
            with pytest.raises(kind) as caught:
                pool.map(task, range(5))
            assert caught.value is error
            cause = caught.value.__cause__
            assert isinstance(cause, RemoteError)
            assert (cause.phase, cause.task, cause.arguments) == ("task", 3, "3")
            assert isinstance(cause.__cause__, LookupError)
        results = pool.map(task, range(5), return_exceptions=True)
        assert results == [None, None, None, error, None]


def test_the_traceback_is_that_of_the_task() -> None:
    def inner() -> None:
        raise ValueError

    with pool_of(1) as pool, pytest.raises(ValueError) as caught:
        pool.map(lambda _: inner(), [1])
    names = [entry.name for entry in caught.traceback]
    assert names[-2:] == ["<lambda>", "inner"]
    assert "run_until_failure" not in names


def test_retries_are_taken_and_never_needed() -> None:
    with pool_of() as pool:
        for given in (range(1000), list(range(1000)), iter(range(1000))):
            assert pool.map(abs, given, retries=3) == list(range(1000))


# ---------------------------------------------------------------- nothing is kept


def test_references_are_given_back() -> None:
    things = [Thing() for _ in range(1000)]
    counts = [sys.getrefcount(thing) for thing in things]
    with pool_of(keep_alive=True) as pool:
        for give in (list, iter):
            for options in ({}, {"retries": 1}, {"return_exceptions": True}, {"worker_lifespan": 100}):
                pool.map(same, give(things), **options)
                assert [sys.getrefcount(thing) for thing in things] == counts


@pytest.mark.parametrize("keep_going", [False, True])
def test_references_are_given_back_when_tasks_fail(keep_going: bool) -> None:
    things = [Thing() for _ in range(1000)]
    made: list[weakref.ref[Thing]] = []

    def task(thing: Thing) -> Thing:
        if thing is things[900]:
            raise ValueError
        result = Thing()
        made.append(weakref.ref(result))
        return result

    counts = [sys.getrefcount(thing) for thing in things]
    with pool_of(keep_alive=True) as pool:
        if keep_going:
            assert len(pool.map(task, things, return_exceptions=True)) == 1000
        else:
            with pytest.raises(ValueError):
                pool.map(task, things)
        gc.collect()  # tracebacks
        assert [sys.getrefcount(thing) for thing in things] == counts
        assert not any(ref() for ref in made)


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
@pytest.mark.parametrize("keep_alive", [False, True])
@pytest.mark.parametrize("give", [list, iter])
@pytest.mark.parametrize("options", [{}, {"retries": 1}, {"max_tasks_active": 10}])
def test_references_are_given_back_when_a_map_was_left(
    method: str, keep_alive: bool, give: Callable[..., Any], options: dict[str, Any]
) -> None:
    made: list[weakref.ref[Thing]] = []

    def task(_: Thing) -> Thing:
        result = Thing()
        made.append(weakref.ref(result))
        return result

    things = [Thing() for _ in range(1000)]
    counts = [sys.getrefcount(thing) for thing in things]
    with pool_of(keep_alive=keep_alive) as pool:
        for use_again in (lambda: pool.map(abs, range(3)), pool.stop_and_join, pool.terminate):
            results = getattr(pool, method)(task, give(things), chunk_size=3, **options)
            assert type(next(results)) is Thing
            results.close()
            use_again()
            assert not any(ref() for ref in made)
            assert [sys.getrefcount(thing) for thing in things] == counts


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_references_are_given_back_when_the_pool_ends_before_the_map(method: str) -> None:
    things = [Thing() for _ in range(1000)]
    counts = [sys.getrefcount(thing) for thing in things]
    with pool_of() as pool:
        results = getattr(pool, method)(same, iter(things), chunk_size=3)
        assert next(results) in things
    del results
    gc.collect()
    assert [sys.getrefcount(thing) for thing in things] == counts


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_results_go_with_whoever_takes_them(method: str) -> None:
    made: list[weakref.ref[Thing]] = []
    alive: list[int] = []

    def task(_: int) -> Thing:
        result = Thing()
        made.append(weakref.ref(result))
        return result

    with pool_of() as pool:
        for _ in getattr(pool, method)(task, range(2000), max_tasks_active=20):
            alive.append(sum(ref() is not None for ref in made[-200:]))
    assert len(made) == 2000
    assert max(alive) <= 50


def test_input_goes_as_soon_as_its_results_are_there() -> None:
    alive: list[int] = []
    given: list[weakref.ref[Thing]] = []

    def source() -> Iterator[Thing]:
        for _ in range(2000):
            thing = Thing()
            given.append(weakref.ref(thing))
            alive.append(sum(ref() is not None for ref in given[-200:]))
            yield thing

    with pool_of() as pool:
        assert pool.map(lambda thing: type(thing).__name__, source(), max_tasks_active=20) == ["Thing"] * 2000
        assert max(alive) <= 30
        assert not any(ref() for ref in given)


def test_classes_of_elements_are_not_kept() -> None:
    kind = type("Passing", (), {})
    known = weakref.ref(kind)
    with pool_of(keep_alive=True) as pool:
        pool.map(id, [kind()])
        pool.stop_and_join()
        del kind
        gc.collect()
        assert known() is None


def test_functions_are_not_kept() -> None:
    things = [Thing()]
    known = weakref.ref(things[0])

    def task(_: Any, held: Any = things) -> int:
        return len(held)

    with pool_of() as pool:
        assert pool.map(task, range(3), worker_init=lambda: None) == [1, 1, 1]
    del task, things, pool
    gc.collect()
    assert known() is None
    assert not thread_loops()


def test_no_hook_and_no_lock_piles_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "register_at_fork", pytest.fail)
    with pool_of() as pool:
        pool.map(same, range(100), worker_lifespan=1, chunk_size=1)
    assert not thread_loops()


def test_no_interrupt_comes_in_the_hooks_of_a_fork() -> None:
    """It would be lost there, and with it a lock that a hook holds over the fork; it comes after them.

    Without warnings: in the one of a fork beside threads, which Python 3.13 gives after the hooks, it would be lost
    again, though no lock would be: the thread is abandoned then.
    """
    script = textwrap.dedent("""
        import os, threading, time
        lock, entered, ended = threading.Lock(), threading.Event(), threading.Event()

        def spend(seconds):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                pass

        def before():
            lock.acquire()
            entered.set()
            spend(0.3)

        def after():
            spend(0.1)
            lock.release()

        os.register_at_fork(before=before, after_in_parent=after)
        from fastpool import WorkerPool

        def task(x):
            try:
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)
                while True:
                    pass
            finally:
                ended.set()

        for _ in range(5):
            entered.clear()
            ended.clear()
            with WorkerPool(n_jobs=1, start_method="threading") as pool:
                pool.apply_async(task, (0,))
                assert entered.wait(30)
            assert ended.wait(30), "the interrupt was lost"
            assert lock.acquire(timeout=30), "the lock was lost"
            lock.release()
    """)
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "ignored" not in done.stderr, done.stderr


# ---------------------------------------------------------------- arrays


def test_a_chunk_of_a_plain_array_is_the_tasks_own() -> None:
    array = np.arange(300_000.0)

    def overwrite(chunk: Any) -> Any:
        chunk *= 2
        return chunk

    with pool_of() as pool:
        assert (pool.map(overwrite, array) == 2 * np.arange(300_000.0)).all()
        assert (array == np.arange(300_000.0)).all()
        shared = fastpool.asshared(array)
        assert (pool.map(overwrite, shared) == 2 * array).all()
        assert (shared == 2 * array).all()


def test_joined_results_lie_in_private_memory() -> None:
    array = np.arange(600_000.0)
    with pool_of(keep_alive=True) as pool:
        for _ in range(2):
            joined = pool.map(np.sqrt, array)
            assert joined.base is None
            assert (joined == np.sqrt(array)).all()
        assert pool._supervisor.segment.exchange.places is None  # type: ignore[union-attr]


@pytest.mark.parametrize("keep", [False, True])
def test_a_plain_out_is_written_by_workers(keep: bool) -> None:
    array = np.arange(600_000.0)
    out = np.zeros(600_000)
    writers: set[bool] = set()

    def task(chunk: Any) -> Any:
        writers.add(threading.current_thread() is threading.main_thread())
        return chunk + 1

    with pool_of(keep_alive=keep) as pool:
        assert pool.map(task, array, out=out) is out
        assert (out == array + 1).all()
        assert pool.map(task, out, out=out) is out  # each row over itself
        assert (out == array + 2).all()
        turned = out[::-1]
        assert pool.map(task, out, out=turned) is turned
        assert (turned == array + 3).all()
    assert writers == {False}


def test_numpy_allocates_as_ever_in_threads() -> None:
    multiarray = importlib.import_module("numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray")
    with pool_of() as pool:
        names = pool.map(lambda chunk: [multiarray.get_handler_name()], np.zeros(8), concatenate_numpy_output=False)
        assert set(map(tuple, names)) == {("default_allocator",)}


# ---------------------------------------------------------------- the end of a thread


def test_python_code_of_a_task_is_interrupted() -> None:
    """And may clean up. Whatever it does then: nobody waits for it."""
    ended: list[str] = []

    def task(x: int) -> None:
        if x == 0:
            begun.wait(HANG)
            raise KeyError(x)
        begun.set()
        try:
            while True:
                pass
        except Interruption:
            ended.append("interrupted")
            raise
        finally:
            ended.append("cleaned up")

    begun = threading.Event()
    with pool_of() as pool, pytest.raises(KeyError):
        pool.map(task, range(2), chunk_size=1)
    assert ended == ["interrupted", "cleaned up"]


def test_a_task_that_takes_no_notice_of_it() -> None:
    begun = threading.Event()

    def task(x: int) -> int:
        if x == 0:
            begun.wait(HANG)
            raise KeyError(x)
        begun.set()
        try:
            while True:
                pass
        except BaseException:
            return x

    with pool_of() as pool:
        with pytest.raises(KeyError):
            pool.map(task, range(2), chunk_size=1)
        assert pool.map(abs, range(3)) == [0, 1, 2]


def stuck_map(pool: WorkerPool, gate: threading.Event) -> Callable[[], None]:
    """A map that fails while another task of it cannot be interrupted."""
    begun = threading.Event()

    def task(x: int) -> Any:
        if x == 0:
            begun.wait(HANG)
            raise KeyError(x)
        begun.set()
        gate.wait(HANG)
        return Thing()

    return lambda: pool.map(task, range(2), chunk_size=1)


def test_a_thread_that_cannot_be_stopped_is_abandoned(gate: threading.Event) -> None:
    before, mapped = set(threading.enumerate()), set(shared_mappings())
    with pool_of() as pool:
        with pytest.warns(ResourceWarning, match="abandoned"), pytest.raises(KeyError):
            stuck_map(pool, gate)()
        assert set(shared_mappings()) == mapped
        assert pool.map(same, range(10)) == list(range(10))  # others have its place
        [left] = set(threading.enumerate()) - before
        gate.set()
        left.join()
        assert pool.map(same, range(10)) == list(range(10))


def test_the_warning_may_be_an_error(gate: threading.Event) -> None:
    with pool_of() as pool:
        with pytest.raises(ResourceWarning):
            stuck_map(pool, gate)()
        gate.set()
        assert pool.map(same, range(10)) == list(range(10))


def test_an_abandoned_thread_is_as_good_as_dead(gate: threading.Event) -> None:
    """What a timeout will do: its task is another's, its lane its successor's, and what it returns nobody's."""
    tries: list[int] = []
    stuck = threading.Event()

    def task(x: int) -> int:
        if x == 5:
            tries.append(x)
            if len(tries) == 1:
                stuck.set()
                gate.wait(HANG)
                return -1
        return x

    def abandon() -> None:
        assert stuck.wait(HANG)
        worker = pool._supervisor.segment.exchange.workers[0]  # type: ignore[union-attr]
        assert isinstance(worker, threads.WorkerThread)
        worker.kill()
        assert worker.abandon()

    for make in (range, lambda n: list(range(n))):
        gate.clear(), stuck.clear(), tries.clear()
        with pool_of(1, keep_alive=True) as pool:
            other = threading.Thread(target=abandon)
            other.start()
            before = set(threading.enumerate())
            assert pool.map(task, make(20), retries=1, chunk_size=4) == list(range(20))
            other.join()
            assert tries == [5, 5]
            gate.set()
            assert pool.map(same, range(10_000)) == list(range(10_000))
        assert len(before) >= 2


# ---------------------------------------------------------------- time limits


def spin() -> None:
    while True:
        pass


def test_a_late_task_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LATE_GRACE_SECONDS", HANG)  # its end is waited for, however slow the machine is
    cleaned_up: list[int] = []

    def task(x: int) -> int:
        try:
            if x == 5:
                spin()  # no loop here: Python 3.13 leaves a loop's jump back out of the block that it is in
        finally:
            cleaned_up.append(x)
        return x

    with pool_of() as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            pool.map(task, range(9), chunk_size=1, task_timeout=1)
        assert (caught.value.phase, caught.value.task, caught.value.limit) == ("task", 5, 1)
        assert 5 in cleaned_up
        results = pool.map(task, list(range(9)), task_timeout=0.2, return_exceptions=True)
        assert isinstance(results.pop(5), WorkerTimeoutError)
        assert results == [0, 1, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("insights", [False, True])
@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
@pytest.mark.parametrize("give", [range, lambda n: list(range(n))], ids=["range", "list"])
def test_a_late_task_that_nothing_interrupts_is_abandoned(
    gate: threading.Event, method: str, give: Callable[[int], Any], insights: bool
) -> None:
    def task(x: int) -> int:
        if x == 50:
            gate.wait(HANG)
        return x

    before, mapped = set(threading.enumerate()), set(shared_mappings())
    with pool_of(keep_alive=True, enable_insights=insights) as pool:
        with pytest.warns(ResourceWarning, match="abandoned") as warned:
            results = list(getattr(pool, method)(task, give(100), task_timeout=0.2, return_exceptions=True))
        assert len(warned) == 1
        [error] = [result for result in results if isinstance(result, WorkerTimeoutError)]
        assert error.task == 50
        assert sorted(result for result in results if result is not error) == [*range(50), *range(51, 100)]
        [stuck] = [thread for thread in set(threading.enumerate()) - before if is_stuck(thread)]
        gate.set()
        stuck.join()  # while a successor has its lane
        assert pool.map(same, range(1000)) == list(range(1000))
    assert set(shared_mappings()) == mapped


def is_stuck(thread: threading.Thread) -> bool:
    return all(worker._thread is not thread for worker in threads_of_pools())


def threads_of_pools() -> list[threads.WorkerThread]:
    return [thing for thing in gc.get_objects() if type(thing) is threads.WorkerThread and not thing.is_abandoned]


@pytest.mark.parametrize("phase", ["task", "worker_init", "worker_exit"])
def test_the_map_ends_when_all_are_late(gate: threading.Event, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "GRACE_SECONDS", 100 * HANG)  # nobody waits for the other one for that long
    waited: list[bool] = []

    def wait(*_: Any) -> None:
        waited.append(gate.wait(HANG))

    mapped = set(shared_mappings())
    functions: dict[str, Any] = {} if phase == "task" else {phase: wait}
    with pool_of() as pool:
        with (
            pytest.warns(ResourceWarning, match="abandoned") as warned,
            pytest.raises(WorkerTimeoutError) as caught,
        ):
            pool.map(wait if phase == "task" else same, range(9), **functions, **{f"{phase}_timeout": 0.2})
        assert len(warned) <= 2  # of each thread once
        assert caught.value.phase == phase
        assert not waited
        assert set(shared_mappings()) == mapped
        gate.set()
        assert pool.map(same, range(10)) == list(range(10))


def test_a_late_task_of_a_map_that_was_left(gate: threading.Event) -> None:
    def task(x: int) -> int:
        if x == 3:
            gate.wait(HANG)
        return x

    with pool_of(keep_alive=True) as pool:
        results = pool.imap(task, iter(range(20)), chunk_size=1, task_timeout=0.2)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        results.close()  # type: ignore[attr-defined]
        with pytest.warns(ResourceWarning, match="abandoned"):
            assert pool.map(same, range(10)) == list(range(10))
        gate.set()


@pytest.mark.filterwarnings("ignore:worker:ResourceWarning")
@pytest.mark.parametrize("seconds", [0.001, 0.002])
def test_tasks_about_as_long_as_the_limit(seconds: float) -> None:
    """Each has a result, or was late; whoever is abandoned, or interrupted at any instruction, touches nothing."""

    def task(x: int) -> int:
        end = time.monotonic() + seconds * (0.8 + x % 5 * 0.1)
        while time.monotonic() < end:
            pass
        return x

    with pool_of(enable_insights=True) as pool:
        results = pool.map(task, list(range(300)), task_timeout=seconds, return_exceptions=True)
    for x, result in enumerate(results):
        assert result == x or (isinstance(result, WorkerTimeoutError) and result.task == x)


PROFILED = """
import sys, time
from fastpool import WorkerPool, WorkerTimeoutError

seconds = float(sys.argv[2])

def spin(_):
    while True:
        pass

def sleep(_):
    time.sleep(seconds)

with WorkerPool(2, start_method="threading") as pool:
    try:
        pool.map(globals()[sys.argv[1]], range(2), task_timeout=0.1)
    except WorkerTimeoutError:
        sys.setprofile(lambda *_: None)
        sum(map(lambda x: x, range(1000)))
        time.sleep(min(seconds, 1))  # a task that was abandoned comes back meanwhile
        sum(map(lambda x: x, range(1000)))
        print("done", flush=True)
"""


@pytest.mark.parametrize(("task", "seconds"), [("spin", "0"), ("sleep", "0.3"), ("sleep", "60")])
def test_no_other_thread_looks_for_an_interruption(task: str, seconds: str) -> None:
    """One that is profiled, traced or debugged would do nothing else, for ever, with Python 3.11."""
    command = [sys.executable, "-W", "ignore:worker:ResourceWarning", "-c", PROFILED, task, seconds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_terminate_in_another_thread_while_tasks_last(gate: threading.Event) -> None:
    begun = threading.Event()
    raised: list[str] = []

    def task(_: int) -> None:
        begun.set()
        gate.wait(HANG)

    def use() -> None:
        with pytest.warns(ResourceWarning), pytest.raises(RuntimeError) as caught:
            pool.map(task, range(2))
        raised.append(str(caught.value))

    pool = pool_of()
    user = threading.Thread(target=use)
    user.start()
    begun.wait(HANG)
    pool.terminate()
    user.join()
    assert raised == ["the pool was terminated by another thread"]


def test_a_worker_that_waits_for_room_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent is in the input, and takes no results."""
    monkeypatch.setattr(supervisor, "RING_BYTES", 4096)
    states: list[str] = []

    def source() -> Iterator[int]:
        yield from range(2000)
        segment = pool._supervisor.segment
        while not segment.held_units(0)[1] or states.count(segment.state(0)) < 1000:
            states.append(segment.state(0))
            os.sched_yield()
        raise KeyError("the input's")

    with pool_of(1) as pool, pytest.raises(KeyError, match="the input's"):
        pool.map(same, source(), chunk_size=1000)


def make_worker(task: Callable[..., Any]) -> tuple[Segment, threads.WorkerThread]:
    """Without a pool, for a job over ``range(1)``, after which it ends."""
    exchange = Exchange(1)
    exchange.functions = Functions(task, None, None)
    segment = Segment(1, 4096, 1 << 20, 1, exchange)
    none = dict.fromkeys(("range_start", "range_step", "chunk_fixed", "chunk_ns", "lifespan"), 0)
    segment.publish(
        **none, flags=JOB_LAST | JOB_KEEP_GOING, range_units=1, n_workers=1, spec=1, spec_blob=None, avail=1, total=1
    )
    return segment, threads.WorkerThread(segment, 0, partial(make_loop, ThreadHost(0, (), exchange)), True)


def test_a_thread_may_end_its_own_pool() -> None:
    """In a finalizer, which the garbage collector runs in any thread."""
    reaped: list[bool] = []

    def task(_: int) -> None:
        worker.kill()
        reaped.append(worker.reap(block=True))
        segment.close()
        reaped.append(True)

    segment, worker = make_worker(task)
    worker.start()
    worker._thread.join(HANG)
    assert reaped == [True, True]
    assert segment.closed


def test_ctrl_c(gate: threading.Event) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pool_of(keep_alive=True) as pool:
            for task in (lambda _: interrupt_and_spin(), lambda _: os.kill(os.getpid(), signal.SIGINT)):
                with pytest.raises(KeyboardInterrupt):
                    pool.map(task, range(4), chunk_size=1)
            assert pool.map(same, range(10)) == list(range(10))
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_and_spin() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    spin()


EXITS = {
    "idle": "print(pool.map(abs, [-1]), flush=True)",
    "in a task": """
        print(pool.map(abs, [-1]), flush=True)
        user = threading.Thread(target=pool.map, args=(time.sleep, [1000, 1000]), daemon=True)
        user.start()
        while pool._supervisor.segment.state(0) != "running":
            time.sleep(0.001)""",
    "in Python": """
        print(pool.map(abs, [-1]), flush=True)
        def spin(_):
            begun.set()
            while True:
                pass
        begun = threading.Event()
        user = threading.Thread(target=pool.map, args=(spin, [1000, 1000]), daemon=True)
        user.start()
        begun.wait()""",
}


@pytest.mark.parametrize("what", EXITS)
def test_the_interpreter_ends_whatever_threads_do(what: str) -> None:
    script = textwrap.dedent("""
        import threading, time
        from fastpool import WorkerPool
        threading.excepthook = lambda _: None  # of the map that is ended
        pool = WorkerPool(2, start_method="threading", keep_alive=True)
    """) + textwrap.dedent("        " + EXITS[what].strip())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1]\n", "")


# ---------------------------------------------------------------- the process belongs to the program


def test_signal_masks_are_left_alone() -> None:
    def mask(x: int) -> Any:
        if x % 3 == 0:
            raise ValueError(x)
        return signal.pthread_sigmask(signal.SIG_BLOCK, ())

    before = mask(1)
    with pool_of() as pool:
        results = pool.map(mask, range(20), return_exceptions=True)
    assert {type(result) for result in results[::3]} == {ValueError}
    assert all(result == before for k, result in enumerate(results) if k % 3)
    assert mask(1) == before
    assert signal.set_wakeup_fd(-1) == -1


def fork_and_leave(how: Callable[[], Any]) -> tuple[int, int]:
    child = os.fork()
    if child == 0:
        how()
        return -1, -1  # must end this process, and not become a result
    return child, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@fork_beside_threads
@pytest.mark.parametrize(("how", "code"), [(int, 0), (lambda: sys.exit(3), 3), (lambda: 1 // 0, 1)])
def test_a_fork_of_a_task_is_nobodys_worker(how: Callable[[], Any], code: int) -> None:
    with pool_of(keep_alive=True) as pool:
        for _ in range(3):
            assert [status for _, status in pool.map(fork_and_leave, [(how,)] * 4)] == [code] * 4
        assert pool.map(same, range(100)) == list(range(100))


@fork_beside_threads
def test_a_fork_beside_threads_uses_pools_of_its_own() -> None:
    with pool_of(keep_alive=True) as pool:
        pool.map(same, range(10))
        child = os.fork()
        if child == 0:
            try:
                with pool_of() as mine, WorkerPool(1) as forked:
                    good = mine.map(same, range(10)) == forked.map(same, range(10)) == list(range(10))
                    os._exit(0 if good else 1)
            finally:
                os._exit(2)
        wait_for_end(child, time.monotonic() + HANG)
        assert os.waitpid(child, 0)[1] == 0
        assert pool.map(same, range(10)) == list(range(10))


@pytest.mark.parametrize("inner", ["threading", "fork"])
@pytest.mark.parametrize("outer", ["threading", "fork"])
def test_pools_in_pools(outer: str, inner: str) -> None:
    def task(x: int) -> list[int]:
        with WorkerPool(n_jobs=2, start_method=inner) as pool:
            return pool.map(abs, range(-x, 0))

    with WorkerPool(n_jobs=2, start_method=outer, daemon=outer == "threading") as pool:
        assert pool.map(task, range(20), chunk_size=1) == [list(range(x, 0, -1)) for x in range(20)]


def test_many_pools_at_once() -> None:
    results: list[Any] = []

    def use() -> None:
        with pool_of() as pool:
            for n in range(20):
                results.append(pool.map(same, range(n)) == list(range(n)))

    users = [threading.Thread(target=use) for _ in range(8)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert results == [True] * 160


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with pool_of() as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start"):
                pool.map(same, range(10))
        assert pool.map(same, range(10)) == list(range(10))


# ---------------------------------------------------------------- damage


def write_over(pool: WorkerPool, area: str, of: int, by: int) -> None:
    """Replace each word of an area that has a value."""
    segment = pool._supervisor.segment
    offset, size = segment.areas()[area]
    words = (ctypes.c_uint64 * (size // 8)).from_address(segment.address + offset)
    for k, word in enumerate(words):
        if word == of:
            words[k] = by


@pytest.mark.parametrize("by", [0, 8, 1 << 63])
def test_an_address_in_shared_memory_is_never_followed(by: int) -> None:
    thing = Thing()
    first = threading.Event()

    def task(x: int) -> Any:
        if x == 1:
            first.wait(HANG)
        return thing

    def source() -> Iterator[int]:
        yield 0
        while pool._supervisor.segment.totals()[0] < 1:
            os.sched_yield()
        write_over(pool, "ring 0", id(thing), by)
        first.set()
        yield 1

    with pool_of(1) as pool:
        with pytest.raises(DamagedMemoryError, match="another object"):
            pool.map(task, source(), chunk_size=1)
        assert pool.map(task, [0]) == [thing]


def fail(_: Any) -> None:
    raise ValueError


@pytest.mark.parametrize("task", [same, fail])
def test_a_reference_from_a_process_is_damage(task: Callable[..., Any]) -> None:
    there, worker = make_worker(task)
    worker.start()
    assert worker.reap(block=True)
    here = Segment(1, 4096, 1 << 20, 1)
    for offset, size in (there.areas()["lane 0"], there.areas()["ring 0"]):
        ctypes.memmove(here.address + offset, there.address + offset, size)
    for segment, expected in ((there, None), (here, "a worker that is a process sent a reference")):
        collector = Collector(segment, pickle.loads)
        collector.begin(there.number, 1, None)
        with pytest.raises(DamagedMemoryError, match=expected) if expected else contextlib.nullcontext():
            collector.drain(0)
        assert len(collector.failures) == (segment is there and task is fail)
        collector.abandon()
        segment.close()
