"""`imap`, `imap_unordered` and `map_unordered`: what comes when, and every way to leave."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

import fastpool
from fastpool import WorkerPool

METHODS = ["map", "map_unordered", "imap", "imap_unordered"]
LAZY = ["imap", "imap_unordered"]


def identity(x: Any) -> Any:
    return x


def double(x: Any) -> Any:
    return x * 2


def counted(n: int, read: list[int]) -> Iterator[int]:
    """So many numbers; `read` has those that were asked for."""
    for i in range(n):
        read.append(i)
        yield i


INPUTS: dict[str, Callable[[int], Any]] = {
    "range": range,
    "list": lambda n: list(range(n)),
    "tuple": lambda n: tuple(range(n)),
    "generator": lambda n: (i for i in range(n)),
    "backwards": lambda n: range(n, 0, -1),
    "texts": lambda n: [str(i) for i in range(n)],
    "mixed": lambda n: [None if i % 3 == 0 else i * 0.5 if i % 3 == 1 else i for i in range(n)],
}
SIZES = [0, 1, 7, 50_000]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("options", [{}, {"max_tasks_active": 10}, {"chunk_size": 3}], ids=["", "window", "chunks"])
def test_every_result_comes_once(method: str, make: Callable[[int], Any], options: dict[str, Any]) -> None:
    with WorkerPool(2, keep_alive=True) as pool:
        for n in SIZES:
            n = min(n, 2000) if options else n
            expected = list(make(n))
            results = list(getattr(pool, method)(identity, make(n), **options))
            if method.endswith("unordered"):
                assert sorted(map(repr, results)) == sorted(map(repr, expected))
            else:
                assert results == expected


@pytest.mark.parametrize("method", METHODS)
def test_start_methods(method: str, start_method: str) -> None:
    with WorkerPool(2, start_method=start_method) as pool:
        assert sorted(getattr(pool, method)(double, range(100))) == list(range(0, 200, 2))


@pytest.mark.parametrize("method", LAZY)
def test_chunks_of_an_array_are_not_joined(method: str) -> None:
    array = np.arange(1_000_000.0)
    with WorkerPool(2) as pool:
        parts = sorted(getattr(pool, method)(np.sqrt, array), key=lambda part: part[0])
    assert len(parts) == 8
    assert (np.concatenate(parts) == np.sqrt(array)).all()


@pytest.mark.parametrize("method", LAZY)
def test_nothing_starts_before_the_first_next(method: str) -> None:
    read: list[int] = []
    with WorkerPool(2) as pool:
        results = getattr(pool, method)(identity, counted(3, read))
        assert (read, pool._supervisor._segment) == ([], None)
        assert pool.map(identity, range(3)) == [0, 1, 2]  # it is not running yet
        assert sorted(results) == [0, 1, 2]
        assert next(results, "the end") == "the end"


@pytest.mark.parametrize("method", LAZY)
def test_parameters_are_checked_at_the_call(method: str) -> None:
    with WorkerPool(2) as pool:
        with pytest.raises(TypeError, match="func must be callable"):
            getattr(pool, method)(1, [1])
        with pytest.raises(ValueError, match="max_tasks_active must be at least 1, not 0"):
            getattr(pool, method)(identity, [1], max_tasks_active=0)


@pytest.mark.parametrize("method", LAZY)
@pytest.mark.parametrize("window", [1, 2, 7, 100])
def test_how_far_the_input_is_read_ahead(method: str, window: int) -> None:
    read: list[int] = []
    with WorkerPool(2) as pool:
        for k, _ in enumerate(getattr(pool, method)(identity, counted(1000, read), max_tasks_active=window)):
            assert len(read) - k <= window + window, "handed out, and collected with them"


@pytest.mark.parametrize("method", LAZY)
@pytest.mark.parametrize("chunk_size", [None, 1, 50])
def test_results_do_not_wait_for_the_end_of_a_slow_input(method: str, chunk_size: int | None) -> None:
    read: list[int] = []
    with WorkerPool(2, keep_alive=True) as pool:
        assert pool.map(identity, [1, 2]) == [1, 2]  # the workers are there
        results = getattr(pool, method)(identity, slowly(range(100), read), chunk_size=chunk_size)
        first = [next(results) for _ in range(10)]
        assert len(read) < 100
        assert sorted([*first, *results]) == list(range(100))


def slowly(values: Iterable[Any], read: list[Any]) -> Iterator[Any]:
    """Values one by one; no chunk waits so long for the next. `read` has those that were asked for."""
    for value in values:
        time.sleep(0.02)
        read.append(value)
        yield value


def test_an_ordered_map_does_not_pile_up_results() -> None:
    """While the first task runs, the others are done up to the window, and no further."""
    read: list[int] = []
    with WorkerPool(2, shared_objects=(event := fastpool_event())) as pool:
        results = pool.imap(wait_if_first, counted(10_000, read), max_tasks_active=50)
        threading.Timer(0.3, event.set).start()
        assert next(results) == 0
        assert len(read) <= 100
        assert list(results) == list(range(1, 10_000))


def fastpool_event() -> Any:
    import multiprocessing

    return multiprocessing.get_context("fork").Event()


def wait_if_first(event: Any, x: int) -> int:
    if x == 0:
        assert event.wait(60)
    return x


def wait_if_third(event: Any, x: int) -> int:
    if x == 3:
        assert event.wait(60)
    return x


@pytest.mark.parametrize("tasks", [range(10), list(range(10)), range(100_000)], ids=["range", "list", "many"])
def test_a_slow_task_does_not_hold_back_those_before_it(tasks: Any) -> None:
    """They are in one chunk with it, and the workers ring for nothing else."""
    with WorkerPool(1, shared_objects=(event := fastpool_event())) as pool:
        results = pool.imap(wait_if_third, tasks, chunk_size=len(tasks))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        event.set()
        assert list(results) == list(range(3, len(tasks)))


def test_quick_results_are_not_held_back_by_a_slow_one_that_comes_later() -> None:
    """So many quick tasks come first that results are collected by the thousand."""
    with WorkerPool(1, shared_objects=(event := fastpool_event())) as pool:
        results = pool.imap(wait_for_last, range(300_001), chunk_size=100_000)
        assert [next(results) for _ in range(300_000)] == list(range(300_000))
        event.set()
        assert list(results) == [300_000]


def wait_for_last(event: Any, x: int) -> int:
    if x == 300_000:
        assert event.wait(60)
    return x


def test_unordered_results_come_as_soon_as_they_are_there() -> None:
    with WorkerPool(2, shared_objects=(event := fastpool_event())) as pool:
        results = pool.imap_unordered(wait_if_first, range(100), chunk_size=1)
        assert sorted(next(results) for _ in range(99)) == list(range(1, 100))
        event.set()
        assert list(results) == [0]
        event.clear()
        threading.Timer(0.3, event.set).start()
        assert pool.map_unordered(wait_if_first, range(100), chunk_size=1)[-1] == 0


# ---------------------------------------------------------------- leaving


def by_break(results: Iterator[Any]) -> None:
    for _ in results:
        break


def by_close(results: Any) -> None:
    next(results)
    results.close()


def by_throw(results: Any) -> None:
    next(results)
    with pytest.raises(KeyError):
        results.throw(KeyError("the user's"))


def by_an_exception(results: Iterator[Any]) -> None:
    def body() -> None:
        for _ in results:
            raise KeyError("the user's")

    with pytest.raises(KeyError):
        body()
    gc.collect()


def by_garbage(results: Any) -> None:
    next(results)
    cycle = [results]
    cycle.append(cycle)
    del results, cycle
    gc.collect()


WAYS = [by_break, by_close, by_throw, by_an_exception, by_garbage]


def worker_pids(pool: WorkerPool) -> set[int]:
    segment = pool._supervisor.segment
    return {segment.pid(i) for i in range(segment.lanes)} - {0}


@pytest.mark.usefixtures("by_default")
@pytest.mark.parametrize("leave", WAYS)
@pytest.mark.parametrize("method", LAZY)
@pytest.mark.parametrize("keep_alive", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("make", [range, lambda n: list(range(n)), lambda n: iter(range(n))], ids=["r", "l", "g"])
def test_leaving_early(leave: Any, method: str, keep_alive: bool, make: Any) -> None:
    with WorkerPool(2, keep_alive=keep_alive) as pool:
        pool.map(identity, range(1000), chunk_size=1)
        before = worker_pids(pool)
        for _ in range(3):
            leave(getattr(pool, method)(identity, make(100_000)))
            assert pool.map(double, range(10)) == list(range(0, 20, 2))
        assert before <= worker_pids(pool)
        leave(getattr(pool, method)(identity, make(100_000)))  # and out of `with`


@pytest.mark.usefixtures("by_default")
@pytest.mark.parametrize("method", LAZY)
def test_exit_functions_run_in_workers_of_a_map_that_was_left(method: str) -> None:
    with WorkerPool(2) as pool:
        by_break(getattr(pool, method)(identity, iter(range(10**9)), worker_exit=lambda: "left"))
        pool.stop_and_join()
        assert pool.get_exit_results() in (["left"], ["left", "left"])


def test_large_arguments_and_results_of_a_map_that_was_left() -> None:
    """Their memory is used again."""
    blocks = []
    with WorkerPool(2, keep_alive=True) as pool:
        for _ in range(4):
            by_break(pool.imap(double, ["x" * 100_000 for _ in range(200)]))
            by_break(pool.imap_unordered(np.copy, (np.zeros(300_000) for _ in range(50))))
            assert pool.map(len, ["x" * 100_000] * 3) == [100_000] * 3
            segment = pool._supervisor.segment
            gc.collect()
            blocks.append([segment.heap(i)["blocks_used"] for i in range(segment.lanes + 1)])
    assert blocks[-1][:2] == [0, 0]
    assert blocks[-1] == blocks[0]


@pytest.mark.usefixtures("by_default")
@pytest.mark.parametrize("method", LAZY)
def test_an_endless_input(method: str) -> None:
    def numbers() -> Iterator[int]:
        i = 0
        while True:
            yield i
            i += 1

    with WorkerPool(2) as pool:
        for result in getattr(pool, method)(identity, numbers()):
            if result > 10_000:
                break
        for result in getattr(pool, method)(identity, range(10**11)):
            if result > 10_000:
                break


def test_a_second_map_while_one_is_unfinished() -> None:
    with WorkerPool(2) as pool:
        results = pool.imap(identity, range(10**6))
        assert next(results) == 0
        for method in METHODS:
            with pytest.raises(RuntimeError, match="a lazy map of it is unfinished"):
                list(getattr(pool, method)(identity, range(3)))
        assert next(results) == 1
        results.close()  # type: ignore[attr-defined]
        assert pool.map(identity, range(3)) == [0, 1, 2]


@pytest.mark.parametrize("end", ["stop_and_join", "terminate", "__exit__"])
def test_the_pool_ends_before_the_map(end: str) -> None:
    with WorkerPool(2) as pool:
        results = pool.imap(identity, iter(range(10**6)))
        next(results)
        getattr(pool, end)(*[None] * 3 if end == "__exit__" else [])
        with pytest.raises(RuntimeError, match="the pool was stopped before this lazy map was exhausted"):
            list(results)
        assert list(results) == []
        assert pool.map(identity, range(3)) == [0, 1, 2]


def test_it_is_terminated_by_another_thread() -> None:
    with WorkerPool(2) as pool:
        results = pool.imap(wait_for_nothing, range(10))
        other = threading.Timer(0.3, pool.terminate)
        other.start()
        with pytest.raises(RuntimeError, match="terminated by another thread"):
            next(results)
        other.join()
        assert pool.map(identity, range(3)) == [0, 1, 2]


def wait_for_nothing(_: Any) -> None:
    time.sleep(100)


def test_steps_in_several_threads() -> None:
    found: list[int] = []
    with WorkerPool(2) as pool:
        results = pool.imap(identity, range(1000), max_tasks_active=10)
        lock = threading.Lock()

        def take() -> None:
            while True:
                with lock:
                    result = next(results, None)
                if result is None:
                    return
                found.append(result)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(range(1000))


def test_a_fork_of_the_program_leaves_the_map_alone() -> None:
    with WorkerPool(2, keep_alive=True) as pool:
        results = pool.imap(identity, iter(range(100_000)))
        assert next(results) == 0
        pid = os.fork()
        if pid == 0:
            try:
                list(results)
            except RuntimeError:
                results.close()  # type: ignore[attr-defined]
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = os.fork()
        if pid == 0:
            results.close()  # type: ignore[attr-defined]
            os._exit(0)
        os.waitpid(pid, 0)
        assert list(results) == list(range(1, 100_000))


# ---------------------------------------------------------------- errors


def fail_at_seven(x: int) -> int:
    if x == 7:
        raise KeyError("seven")
    return x


def leave_at_seven(x: int) -> int:
    if x == 7:
        os._exit(3)
    return x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep_alive", [False, True], ids=["fresh", "kept"])
def test_a_failing_task(method: str, keep_alive: bool) -> None:
    with WorkerPool(2, keep_alive=keep_alive) as pool:
        with pytest.raises(KeyError, match="seven") as caught:
            list(getattr(pool, method)(fail_at_seven, range(100)))
        assert isinstance(caught.value.__cause__, fastpool.RemoteError)
        results = list(getattr(pool, method)(fail_at_seven, range(10), return_exceptions=True))
        assert sum(isinstance(result, KeyError) for result in results) == 1
        assert sorted(result for result in results if isinstance(result, int)) == [0, 1, 2, 3, 4, 5, 6, 8, 9]


@pytest.mark.parametrize("task", [fail_at_seven, leave_at_seven])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 1}, {"chunk_size": 7}, {"max_tasks_active": 1}])
def test_results_before_the_one_that_failed(task: Any, options: dict[str, Any]) -> None:
    got = []
    with WorkerPool(1) as pool:
        results = pool.imap(task, iter(range(100)), **options)
        with pytest.raises((KeyError, fastpool.WorkerDiedError)):
            for result in results:
                got.append(result)
        assert got == list(range(7))
        assert pool.map(identity, range(3)) == [0, 1, 2]
        assert list(results) == []


@pytest.mark.parametrize("method", LAZY)
def test_leaving_while_what_was_there_before_a_failure_is_handed_out(method: str) -> None:
    with WorkerPool(1) as pool:
        results = getattr(pool, method)(fail_at_seven, range(100), chunk_size=100)
        assert next(results) == 0
        results.close()
        assert pool.map(identity, range(3)) == [0, 1, 2]


def stop_iteration(_: Any) -> None:
    raise StopIteration("the user's")


@pytest.mark.parametrize("method", LAZY)
def test_a_stop_iteration_of_a_task(method: str) -> None:
    with WorkerPool(2) as pool:
        with pytest.raises(RuntimeError) as caught:
            list(getattr(pool, method)(stop_iteration, range(3)))
        assert isinstance(caught.value.__cause__, StopIteration)
        assert pool.map(identity, range(3)) == [0, 1, 2]


@pytest.mark.parametrize("value", [None, StopIteration(), ValueError("x"), "\0", NotImplemented, ..., GeneratorExit()])
@pytest.mark.parametrize("method", METHODS)
def test_results_that_look_like_control_values(method: str, value: Any) -> None:
    with WorkerPool(2) as pool:
        results = list(getattr(pool, method)(identity, [[value]] * 5))
        assert [repr(result) for result in results] == [repr(value)] * 5


def test_the_input_raises() -> None:
    def numbers() -> Iterator[int]:
        yield from range(100)
        raise KeyError("the input")

    got = []
    with WorkerPool(2) as pool:
        with pytest.raises(KeyError, match="the input"):
            for result in pool.imap(identity, numbers(), max_tasks_active=5):
                got.append(result)
        assert got == list(range(len(got)))
        assert pool.map(identity, range(3)) == [0, 1, 2]


def die_once(path: str, x: int) -> int:
    if x % 500 == 7 and not os.path.exists(f"{path}/{x}"):
        open(f"{path}/{x}", "w").close()
        os.kill(os.getpid(), 9)
    return x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS.keys())
def test_retries(method: str, make: Any, tmp_path: Any) -> None:
    if "texts" in repr(make) or list(make(1)) in (["0"], [None]):
        make = range
    expected = sorted(make(2000))
    with WorkerPool(2, shared_objects=str(tmp_path)) as pool:
        for options in ({}, {"max_tasks_active": 20}, {"chunk_size": 50}):
            results = list(getattr(pool, method)(die_once, make(2000), retries=2, **options))
            assert results == list(make(2000)) or method.endswith("unordered")
            assert sorted(results) == expected
            for path in tmp_path.iterdir():
                path.unlink()


@pytest.mark.parametrize("method", METHODS)
def test_a_death(method: str) -> None:
    with WorkerPool(2) as pool:
        with pytest.raises(fastpool.WorkerDiedError, match="exited with status 3"):
            list(getattr(pool, method)(leave_at_seven, range(100)))
        assert pool.map(identity, range(3)) == [0, 1, 2]


def test_a_worker_that_dies_while_nobody_asks() -> None:
    with WorkerPool(1) as pool:
        results = pool.imap(leave_at_seven, iter(range(100)), chunk_size=5)
        assert next(results) == 0
        time.sleep(0.3)
        with pytest.raises(fastpool.WorkerDiedError):
            list(results)


def test_a_worker_that_dies_after_the_map_was_left(caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool(1, keep_alive=True) as pool:
        by_break(pool.imap(die_in_a_while, range(10), chunk_size=1))
        assert pool.map(identity, range(3)) == [0, 1, 2]
        assert "exited with status 3 while running" in caplog.text


def die_in_a_while(x: int) -> int:
    if x == 1:
        time.sleep(0.2)
        os._exit(3)
    return x


# ---------------------------------------------------------------- with other features


@pytest.mark.parametrize("method", METHODS)
def test_init_exit_and_lifespan(method: str) -> None:
    with WorkerPool(2, use_worker_state=True) as pool:
        results = list(
            getattr(pool, method)(
                lambda state, x: (state["began"], x),
                range(100),
                worker_init=lambda state: state.update(began=os.getpid()),
                worker_exit=lambda state: state["began"],
                worker_lifespan=10,
                chunk_size=5,
            )
        )
        assert {x for _, x in results} == set(range(100))
        assert sorted(pool.get_exit_results()) == sorted({pid for pid, _ in results})
        assert len(pool.get_exit_results()) in (10, 11)  # the last of both workers may have a chunk each


def test_exit_results_are_there_after_the_last_result() -> None:
    with WorkerPool(2) as pool:
        assert list(pool.imap(identity, range(10), worker_exit=lambda: "left")) == list(range(10))
        assert set(pool.get_exit_results()) == {"left"}


def test_a_warning_shows_where_the_map_is_asked(recwarn: pytest.WarningsRecorder) -> None:
    with WorkerPool(1, keep_alive=True) as pool:
        list(pool.imap(identity, range(3), worker_init=int))
        list(pool.imap(identity, range(3), worker_init=float))
    assert [(str(w.filename), w.category) for w in recwarn] == [(__file__, RuntimeWarning)]
