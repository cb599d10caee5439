"""apply and apply_async: single calls, alone and beside maps."""

from __future__ import annotations

import gc
import logging
import operator
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import kill_self, processes
from leftovers import all_end

import fastpool
from fastpool import AsyncResult, RemoteError, SerializationError, WorkerDiedError, WorkerPool, WorkerTimeoutError
from fastpool.engine import Engine

HANG = 60  # seconds after which something that should end has not


def same(x: Any) -> Any:
    return x


def add(x: int, y: int = 100) -> int:
    return x + y


def raise_value_error(x: Any) -> None:
    raise ValueError(x, "one more")


def everything(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def pid_or_thread(_: Any = None) -> int:
    return threading.get_ident() ^ os.getpid()


def wait_for_file(path: str) -> str:
    deadline = time.monotonic() + HANG
    while not os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return path


# ---------------------------------------------------------------- one call


def test_arguments(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        assert pool.apply(add, (1, 2)) == 3
        assert pool.apply(add, 1) == 101
        assert pool.apply(add, (1,), {"y": 2}) == 3
        assert pool.apply(add, kwargs={"x": 1, "y": 2}) == 3
        assert pool.apply(everything) == ((), {})
        assert pool.apply(everything, [1, 2]) == (([1, 2],), {})
        assert pool.apply(everything, None) == ((None,), {})
        assert pool.apply(everything, ((1, 2),)) == (((1, 2),), {})
        assert pool.apply(everything, {"a": 1}) == (({"a": 1},), {})
        assert pool.apply(operator.methodcaller("upper"), "abc") == "ABC"


def state_of(worker_id: int, shared: Any, state: dict[str, Any], x: int) -> Any:
    state["sum"] = state.get("sum", 0) + x
    return worker_id, shared, state["sum"]


def test_functions_get_what_the_pool_was_told_to_pass(start_method: str) -> None:
    options: Any = {"pass_worker_id": True, "shared_objects": {"a": 1}, "use_worker_state": True}
    with WorkerPool(n_jobs=1, start_method=start_method, **options) as pool:
        assert [pool.apply(state_of, x) for x in (1, 2, 3)] == [(0, {"a": 1}, s) for s in (1, 3, 6)]
        assert pool.map(state_of, [4]) == [(0, {"a": 1}, 10)]  # the same worker


CONTROL = ["\0", None, b"", (), [], {}, 0, False, NotImplemented, Ellipsis, 2**80, -0.0, "x" * 100_000]


def test_values(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        for value in CONTROL:
            back = pool.apply(same, (value,))
            assert type(back) is type(value)
            assert back == value
        for error in (StopIteration(3), ValueError("returned"), KeyboardInterrupt()):
            back = pool.apply(same, error)
            assert (type(back), back.args) == (type(error), error.args)


def overwrite(array: Any) -> Any:
    array[...] = array * 2
    return array


@pytest.mark.parametrize("size", [1, 20, 1000, 500_000])
def test_arrays(size: int, start_method: str) -> None:
    array = np.arange(size, dtype=float)
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = [pool.apply(overwrite, array.copy()) for _ in range(3)]
        shared = fastpool.asshared(array)
        results.append(pool.apply(overwrite, shared))
    for result in results:
        assert np.array_equal(result, array * 2)
    assert np.array_equal(shared, array * 2)  # the array itself


# ---------------------------------------------------------------- what goes wrong


def test_an_exception_is_raised_and_the_worker_goes_on(start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        who = pool.apply(pid_or_thread)
        with pytest.raises(ValueError, match="one more") as caught:
            pool.apply(raise_value_error, ([1, 2],))
        assert caught.value.args == ([1, 2], "one more")
        cause = caught.value.__cause__
        assert isinstance(cause, RemoteError)
        assert (cause.worker_id, cause.phase, cause.arguments) == (0, "task", "([1, 2],)")
        assert "raise_value_error" in cause.traceback
        assert pool.apply(pid_or_thread) == who


@processes
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_worker_fails_its_apply_alone(signum: int, start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = [pool.apply_async(add, (i, i)) for i in range(100)]
        dead = pool.apply_async(kill_self, int(signum))
        results += [pool.apply_async(add, (i, i)) for i in range(100, 200)]
        assert [result.get() for result in results] == [2 * i for i in range(200)]
        with pytest.raises(WorkerDiedError) as caught:
            dead.get()
        assert (caught.value.exitcode, caught.value.tasks) == (-signum, range(100, 101))
        assert pool.map(same, range(10)) == list(range(10))


@processes
def test_each_apply_that_a_worker_dies_in_fails(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        for _ in range(5):
            with pytest.raises(WorkerDiedError):
                pool.apply(os._exit, 3)
            assert pool.apply(same, 1) == 1


@processes
def test_killed_at_random(start_method: str) -> None:
    """Whatever a worker was at: each apply has its result, or says that its worker died."""
    stop = threading.Event()
    most = 100 if start_method == "fork" else 4  # others take their time to come up
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:

        def shoot() -> None:
            supervisor, shots = pool._supervisor, 0
            while not stop.is_set() and shots < most:
                for worker_id in supervisor.worker_ids:
                    if supervisor.segment.state(worker_id) == "running":
                        supervisor.segment.kill(worker_id, signal.SIGKILL)
                        shots += 1
                stop.wait(0.01)

        shooter = threading.Thread(target=shoot)
        shooter.start()
        died = 0
        for i in range(10):
            results = [pool.apply_async(add_slowly, (i, j)) for j in range(50)]
            for j, result in enumerate(results):
                try:
                    assert result.get(HANG) == i + j
                except WorkerDiedError as error:
                    died += len(error.tasks) == 1
        stop.set()
        shooter.join()
        assert pool.apply(add, (1, 2)) == 3
    assert died > 0


def add_slowly(x: int, y: int) -> int:
    time.sleep(0.001)
    return x + y


def test_a_time_limit_fails_its_apply_alone(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        late = pool.apply_async(sleep_in_pieces, HANG, task_timeout=0.1)
        quick = [pool.apply_async(add, (i, 0), task_timeout=HANG) for i in range(50)]
        slow = pool.apply_async(sleep_in_pieces, 0.3)
        with pytest.raises(WorkerTimeoutError) as caught:
            late.get()
        assert (caught.value.phase, caught.value.limit, caught.value.task) == ("task", 0.1, 0)
        assert caught.value.function.endswith("sleep_in_pieces")
        assert [result.get() for result in quick] == list(range(50))
        assert slow.get() == 0.3


def sleep_in_pieces(seconds: float) -> float:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.005)
    return seconds


class Unsendable:
    def __reduce__(self) -> Any:
        raise TypeError("not this")


class Unreadable:
    def __reduce__(self) -> Any:
        return raise_value_error, ("unreadable",)


def make_unsendable() -> Any:
    return Unsendable()


def make_unreadable() -> Any:
    return Unreadable()


@processes
def test_what_cannot_be_sent_fails_its_apply_alone(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        cases: list[tuple[AsyncResult, str]] = [
            (pool.apply_async(same, Unsendable()), "argument"),
            (pool.apply_async(lambda: 1), "function"),
            (pool.apply_async(make_unsendable), "result"),
            (pool.apply_async(make_unreadable), "result"),
            (pool.apply_async(same, Unreadable()), "argument"),
        ]
        good = pool.apply_async(same, 1)
        for result, what in cases:
            with pytest.raises(SerializationError) as caught:
                result.get()
            assert caught.value.what == what
        assert good.get() == 1


def test_threads_take_anything() -> None:
    thing = Unsendable()
    with WorkerPool(n_jobs=2, start_method="threading") as pool:
        assert pool.apply(lambda x: x, thing) is thing
        assert pool.apply(same, [thing])[0] is thing


@processes
def test_dill_sends_lambdas(start_method: str) -> None:
    pytest.importorskip("dill", reason="use_dill needs dill: pip install fastpool[dill]")
    factor = 3
    with WorkerPool(n_jobs=2, start_method=start_method, use_dill=True) as pool:
        assert pool.apply(lambda x: factor * x, 5) == 15


class Counting:
    """State that a call changes: each apply has its own copy."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


@processes
def test_callables_with_state_travel_as_they_are_now(start_method: str) -> None:
    counting = Counting()
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        assert [pool.apply(counting) for _ in range(3)] == [1, 1, 1]
        counting.calls = 7
        assert pool.apply(counting) == 8


def test_a_redefined_function_is_never_run_in_its_old_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def old() -> str:
        return "old"

    def new() -> str:
        return "new"

    for function in (old, new):
        function.__qualname__ = function.__name__ = "redefined"
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "redefined", old, raising=False)
    with WorkerPool(n_jobs=2, start_method="fork") as pool:
        assert [pool.apply(old) for _ in range(4)] == ["old"] * 4
        monkeypatch.setattr(module, "redefined", new)
        assert [pool.apply(new) for _ in range(4)] == ["new"] * 4
        results = [pool.apply_async(new) for _ in range(100)]
        assert {result.get() for result in results} == {"new"}


# ---------------------------------------------------------------- results to come


def test_async_result(start_method: str, tmp_path: Path) -> None:
    path = tmp_path / "go"
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        result = pool.apply_async(wait_for_file, str(path))
        assert not result.ready()
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        result.wait(0.01)
        with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
            result.get(0.01)
        assert "waiting" in repr(result)
        path.touch()
        result.wait()
        assert result.ready()
        assert result.successful()
        assert result.get() == result.get(0) == str(path)
        failed = pool.apply_async(raise_value_error, 1)
        failed.wait()
        assert failed.ready()
        assert not failed.successful()
        assert "returned" in repr(result)
        assert "raised" in repr(failed)


def test_results_come_while_nobody_waits(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = [pool.apply_async(add, (i, 0)) for i in range(10_000)]  # more than there are slots
        deadline = time.monotonic() + HANG
        while not all(result.ready() for result in results):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert [result.get() for result in results] == list(range(10_000))


def test_one_that_takes_long_does_not_hold_up_the_others(start_method: str, tmp_path: Path) -> None:
    path = tmp_path / "go"
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        long = pool.apply_async(wait_for_file, str(path))
        results = [pool.apply_async(add, (i, 0)) for i in range(10_000)]  # more than there are slots
        assert [result.get(HANG) for result in results] == list(range(10_000))
        assert not long.ready()
        path.touch()
        assert long.get() == str(path)


def test_small_arguments_outlive_their_slot(tmp_path: Path) -> None:
    path = tmp_path / "go"
    with WorkerPool(n_jobs=2) as pool:
        long = pool.apply_async(wait_and_sum, (str(path), np.arange(8.0), b"bytes", [1, 2]))
        for i in range(5):
            assert [pool.apply_async(add, (i, j)).get() for j in range(1000)] == [i + j for j in range(1000)]
        path.touch()
        assert long.get() == (28.0, b"bytes", [1, 2])


def wait_and_sum(path: str, array: Any, data: bytes, items: list[int]) -> Any:
    wait_for_file(path)
    return float(array.sum()), data, items


def test_callbacks(start_method: str) -> None:
    got: list[Any] = []
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:

        def note(value: Any) -> None:
            got.append((value, threading.current_thread().name))

        for i in range(100):
            pool.apply_async(add, (i, 0), callback=note, error_callback=note)
        failed = pool.apply_async(raise_value_error, 7, callback=note, error_callback=note)
        pool.stop_and_join()
        deadline = time.monotonic() + HANG
        while len(got) < 101:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    values, names = zip(*got, strict=True)
    [error] = [value for value in values if isinstance(value, ValueError)]
    with pytest.raises(ValueError, match="7"):
        failed.get()
    assert error.args == (7, "one more")
    assert sorted(value for value in values if value is not error) == list(range(100))
    assert set(names) == {"fastpool-housekeeper"}


def test_a_callback_that_raises_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    got: list[int] = []
    with WorkerPool(n_jobs=2) as pool:
        pool.apply_async(add, (1, 1), callback=raise_value_error)
        pool.apply_async(add, (2, 2), callback=got.append)
        assert pool.apply(add, (3, 3)) == 6
        pool.stop_and_join()
    assert got == [4]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "raise_value_error" in record.getMessage()
    assert record.exc_info is not None


def test_a_callback_may_use_the_pool() -> None:
    got: list[Any] = []
    done = threading.Event()
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        results = [pool.apply_async(add, (i, 0)) for i in range(100)]

        def use(value: int) -> None:
            got.append(results[-1].get())
            got.append(pool.apply(add, (value, 1)))
            got.append(pool.map(same, range(3)))
            done.set()

        pool.apply_async(add, (20, 0), callback=use)
        assert done.wait(HANG)
    assert got == [99, 21, [0, 1, 2]]


def slow_note(got: list[int]) -> Callable[[int], None]:
    def note(value: int) -> None:
        time.sleep(0.005)
        got.append(value)

    return note


@pytest.mark.parametrize("keep_alive", [False, True])
def test_stop_and_join_waits_for_callbacks(keep_alive: bool, start_method: str) -> None:
    got: list[int] = []
    with WorkerPool(2, start_method=start_method) as pool:
        for i in range(20):
            pool.apply_async(same, i, callback=slow_note(got))
        pool.stop_and_join(keep_alive=keep_alive)
        assert sorted(got) == list(range(20))


def test_stop_and_join_waits_for_what_callbacks_hand_in() -> None:
    got: list[int] = []
    with WorkerPool(2) as pool:

        def again(value: int) -> None:
            got.append(value)
            if value < 5:
                pool.apply_async(add, (value, 1), callback=again)

        pool.apply_async(same, 0, callback=again)
        pool.stop_and_join()
        assert got == [0, 1, 2, 3, 4, 5]


def test_a_result_is_waited_for_until_its_callback_has_run() -> None:
    got: list[int] = []
    with WorkerPool(2) as pool:
        for i in range(10):
            assert pool.apply_async(same, i, callback=slow_note(got)).get() == i
            assert got[-1] == i
        pool.apply_async(raise_value_error, 0, error_callback=lambda _: got.append(-1)).wait()
        assert got[-1] == -1
        event = threading.Event()
        late = pool.apply_async(same, 7, callback=lambda _: event.wait(HANG))
        assert late.get(timeout=0.05) == 7  # not later than that
        event.set()


class Owner:
    """Has a pool, gives it a method as callback, and ends the pool when nobody needs it any more."""

    def __init__(self) -> None:
        self.pool = WorkerPool(1, keep_alive=True)
        self.got = threading.Event()

    def note(self, _: int) -> None:
        self.got.set()

    def __del__(self) -> None:
        self.pool.terminate()


def test_what_a_callback_belongs_to_is_not_kept() -> None:
    owner = Owner()
    gone = weakref.ref(owner)
    [pid] = [owner.pool.apply(os.getpid)]
    owner.pool.apply_async(same, 1, callback=owner.note)
    assert owner.got.wait(HANG)
    del owner  # here, or in the pool's own thread, which then ends its own pool
    deadline = time.monotonic() + HANG
    while gone() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert all_end([pid])


def test_a_callback_that_lasts_keeps_nobody_waiting() -> None:
    begun, go = threading.Event(), threading.Event()

    def last(_: Any) -> None:
        begun.set()
        go.wait(HANG)

    with WorkerPool(n_jobs=2) as pool:
        pool.apply_async(same, 1, callback=last)
        assert begun.wait(HANG)
        assert pool.apply_async(add, (1, 1)).get() == 2
        assert pool.map(same, range(5)) == list(range(5))
    go.set()
    for thread in threading.enumerate():
        if thread.name == "fastpool-housekeeper":
            thread.join()


# ---------------------------------------------------------------- beside maps


def test_applies_are_served_between_the_chunks_of_a_map(start_method: str) -> None:
    """From another thread, while a map runs: the results are there before the map ends."""
    done = threading.Event()
    got: list[int] = []

    def use() -> None:
        for i in range(50):
            got.append(pool.apply(add, (i, 1)))
        done.set()

    def input_() -> Iterator[int]:
        thread.start()
        i = 0
        while not done.is_set():
            yield i
            i += 1

    thread = threading.Thread(target=use)
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = pool.map(same, input_(), chunk_size=1)
    thread.join()
    assert got == [i + 1 for i in range(50)]
    assert results == list(range(len(results)))


def test_many_threads_beside_maps(start_method: str) -> None:
    wrong: list[Any] = []

    def use(n: int) -> None:
        for i in range(50):
            results = [pool.apply_async(add, (n, i)) for _ in range(5)]
            wrong.extend(result for result in results if result.get() != n + i)

    with WorkerPool(n_jobs=2, start_method=start_method, keep_alive=True) as pool:
        threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert pool.map(same, range(500)) == list(range(500))
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("keep_alive", [False, True])
def test_results_outlive_the_end_of_a_map(keep_alive: bool, start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method, keep_alive=keep_alive) as pool:
        results = [pool.apply_async(add, (i, 0)) for i in range(3000)]
        assert pool.map(same, range(100)) == list(range(100))
        results += [pool.apply_async(add, (i, 0)) for i in range(3000, 6000)]
        assert [result.get() for result in results] == list(range(6000))


def test_beside_a_lazy_map(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        seen = []
        for x in pool.imap(same, range(200), max_tasks_active=10):
            seen.append(x)
            assert pool.apply(add, (x, 1)) == x + 1
        assert seen == list(range(200))
        for x in pool.imap_unordered(same, range(1000), chunk_size=1):
            result = pool.apply_async(add, (x, 1))
            break
        assert result.get() == x + 1
        assert pool.map(same, [1, 2]) == [1, 2]


def test_a_maps_input_may_wait_for_applies(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        inputs = (pool.apply(add, (i, 1)) for i in range(50))
        assert pool.map(same, inputs, chunk_size=3) == list(range(1, 51))


def test_a_map_that_fails_takes_applies_with_it(start_method: str, tmp_path: Path) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        result = pool.apply_async(wait_for_file, str(tmp_path / "never"))
        with pytest.raises(ValueError, match="one more"):
            pool.map(raise_value_error, [1])
        (tmp_path / "never").touch()  # a thread is about to end
        with pytest.raises(RuntimeError, match="because a map on the same pool failed") as caught:
            result.get()
        assert isinstance(caught.value.__cause__, ValueError)
        assert pool.apply(add, (1, 2)) == 3


@processes
def test_a_death_in_an_apply_does_not_end_a_map(start_method: str) -> None:
    dead: list[AsyncResult] = []

    def input_() -> Iterator[int]:
        for i in range(100):
            if i == 20:
                dead.append(pool.apply_async(kill_self, int(signal.SIGKILL)))
            if i == 60:
                dead[0].wait(HANG)
            yield i

    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        assert pool.map(same, input_(), chunk_size=1) == list(range(100))
        with pytest.raises(WorkerDiedError):
            dead[0].get()


def test_an_error_between_two_steps_of_a_lazy_map_is_its_own(start_method: str) -> None:
    """Whoever collects meanwhile: the map's exception is the map's."""
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        lazy = pool.imap(inverse, [1, 1, 0, 1], chunk_size=1)
        assert next(lazy) == 1
        results = [pool.apply_async(add, (i, 1)) for i in range(100)]
        for result in results:
            result.wait(HANG)
        with pytest.raises(ZeroDivisionError):
            list(lazy)
        assert pool.apply(add, (1, 2)) == 3


def inverse(x: int) -> float:
    return 1 / x


# ---------------------------------------------------------------- the life of workers


def init(path: Path) -> None:
    with open(path, "a") as file:
        file.write("i")


def leave(path: Path) -> str:
    return "left"


def shared_same(path: Path, x: Any) -> Any:
    return x


def test_init_and_exit(start_method: str, tmp_path: Path) -> None:
    path = tmp_path / "inits"
    with WorkerPool(n_jobs=2, start_method=start_method, shared_objects=path) as pool:
        results = [pool.apply_async(shared_same, i, worker_init=init, worker_exit=leave) for i in range(20)]
        assert [result.get() for result in results] == list(range(20))
        assert pool.get_exit_results() == []
        pool.stop_and_join()
        exits = pool.get_exit_results()
        assert exits == ["left"] * len(path.read_text())
        assert 1 <= len(exits) <= 2
        assert pool.apply(shared_same, 1) == 1
        with pytest.warns(RuntimeWarning, match="worker_init"):
            pool.apply(shared_same, 1, worker_init=init)


def test_a_failing_init_fails_the_applies(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = [pool.apply_async(add, (i, 1), worker_init=fail) for i in range(5)]
        for result in results:
            with pytest.raises(ZeroDivisionError):
                result.get()
        assert pool.apply(add, (1, 1)) == 2


def fail() -> None:
    1 / 0  # noqa: B018


def sleep_long() -> None:
    sleep_in_pieces(HANG)


def test_an_init_that_takes_too_long_fails_the_applies(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        given: Any = {"worker_init": sleep_long, "worker_init_timeout": 0.1}
        results = [pool.apply_async(add, (i, 1), **given) for i in range(5)]
        for result in results:
            with pytest.raises(WorkerTimeoutError, match="worker_init_timeout"):
                result.get()
        assert pool.apply(add, (1, 1)) == 2


def test_limits_of_init_and_exit_have_their_timer(start_method: str) -> None:
    """Not the end of the longest sleep there is."""
    for limit in ("worker_init_timeout", "worker_exit_timeout"):
        with WorkerPool(n_jobs=1, start_method=start_method) as pool:
            pool.apply(add, (1, 1), **{limit: HANG})  # type: ignore[arg-type]
            late, look_again = pool._supervisor.segment.late_calls()
            assert late == []
            assert look_again is not None
            assert look_again <= time.monotonic_ns() + HANG * 10**9


def begin_at_one(state: dict[str, int]) -> None:
    state["count"] = 1


def begin_at_ten(state: dict[str, int]) -> None:
    state["count"] = 10


def count(state: dict[str, int]) -> int:
    state["count"] = state.get("count", 0) + 1
    return state["count"]


def last_count(state: dict[str, int]) -> int:
    return state["count"]


def die(state: dict[str, int]) -> None:
    os._exit(1)


@processes
def test_who_comes_after_the_last_worker_died(start_method: str, recwarn: pytest.WarningsRecorder) -> None:
    """A worker like it, if nothing else is asked for."""
    with WorkerPool(n_jobs=1, start_method=start_method, use_worker_state=True) as pool:
        assert pool.apply(count, worker_init=begin_at_one) == 2
        for given, first in (({}, 2), ({"worker_init": begin_at_ten, "worker_exit": last_count}, 11)):
            with pytest.raises(WorkerDiedError):
                pool.apply(die)
            assert pool.apply(count, **given) == first  # type: ignore[arg-type]
        pool.stop_and_join()
        assert pool.get_exit_results() == [11]
    assert list(recwarn) == []


def test_join_waits_for_applies(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = [pool.apply_async(sleep_in_pieces, 0.01) for _ in range(10)]
        pool.stop_and_join()
        assert all(result.successful() for result in results)


def test_join_can_keep_workers(start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        who = pool.apply_async(pid_or_thread)
        pool.stop_and_join(keep_alive=True)
        assert who.ready()
        assert pool.apply(pid_or_thread) == who.get()


def test_an_unfinished_result_raises_when_the_pool_is_gone(start_method: str, tmp_path: Path) -> None:
    path = tmp_path / "never"
    waited: list[BaseException] = []

    def wait() -> None:
        try:
            results[-1].get()
        except RuntimeError as error:
            waited.append(error)

    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = [pool.apply_async(wait_for_file, str(path)) for _ in range(5)]
        thread = threading.Thread(target=wait)
        thread.start()
        path.touch() if start_method == "threading" else None
        pool.terminate()
    thread.join(HANG)
    for result in results:
        if start_method == "threading" and result.successful():
            continue
        with pytest.raises(RuntimeError, match="stopped before this apply had a result"):
            result.get()
    if start_method != "threading":
        assert len(waited) == 1
    assert [thread for thread in threading.enumerate() if thread.name == "fastpool-housekeeper"] == []


def test_a_pool_that_is_collected(start_method: str, tmp_path: Path) -> None:
    path = tmp_path / "go"
    pool = WorkerPool(n_jobs=2, start_method=start_method)
    result = pool.apply_async(wait_for_file, str(path))
    del pool
    gc.collect()
    path.touch()
    with pytest.raises(RuntimeError, match="stopped before this apply"):
        result.get()


def test_a_pool_is_used_again(start_method: str) -> None:
    pool = WorkerPool(n_jobs=2, start_method=start_method)
    for _ in range(3):
        with pool:
            assert pool.apply_async(add, (1, 2)).get() == 3
            assert pool.map(same, [1]) == [1]
            assert pool.apply(add, (1, 2)) == 3


def test_setters_restart_workers(start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        assert pool.apply(everything, 1) == ((1,), {})
        pool.pass_on_worker_id()
        pool.set_shared_objects("shared")
        assert pool.apply(everything, 1) == ((0, "shared", 1), {})


def test_fork_of_the_owner() -> None:
    with WorkerPool(n_jobs=2) as pool:
        result = pool.apply_async(sleep_in_pieces, 0.5)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                result.get()
            except RuntimeError as error:
                status = 0 if "belongs to process" in str(error) else 2
            try:
                pool.apply(add, 1)
                status = 3
            except RuntimeError:
                pass
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert result.get() == 0.5


def run(tmp_path: Path, script: str, *args: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(script))
    return subprocess.run([sys.executable, path, *args], capture_output=True, text=True, timeout=HANG)


def test_the_interpreter_ends_with_unfinished_applies(start_method: str, tmp_path: Path) -> None:
    script = """
        import sys, time
        from fastpool import WorkerPool
        if __name__ == "__main__":
            pool = WorkerPool(2, start_method=sys.argv[1])
            results = [pool.apply_async(time.sleep, 0.5) for _ in range(10)]
            print(pool.apply(abs, -1) if len(sys.argv) > 2 else "end")
        """
    done = run(tmp_path, script, start_method)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@processes
def test_ctrl_c_in_get(start_method: str, tmp_path: Path) -> None:
    script = """
        import os, signal, sys, threading, time
        from fastpool import WorkerPool
        if __name__ == "__main__":
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
            for wait in ("apply", "get"):
                try:
                    with WorkerPool(2, start_method=sys.argv[1]) as pool:
                        pool.apply(abs, -1)
                        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
                        if wait == "apply":
                            pool.apply(time.sleep, 1000)
                        else:
                            pool.apply_async(time.sleep, 1000).get()
                except KeyboardInterrupt:
                    print("interrupted")
        """
    done = run(tmp_path, script, start_method)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n" * 2, "")


def test_insights_count_applies(start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method, keep_alive=True, enable_insights=True) as pool:
        pool.map(same, range(10))  # after this they have the module
        for i in range(10):
            pool.apply(sleep_in_pieces, 0.1 if i == 3 else 0.0)
        pool.stop_and_join()
        insights = pool.get_insights()
    assert sum(insights["n_completed_tasks"]) == 20
    assert insights["top_5_max_task_args"][0] == "Arg 0: 0.1"


def apply_in_worker(x: int) -> int:
    with WorkerPool(n_jobs=2) as pool:
        return int(pool.apply(add, (x, 1)))


def test_nested(start_method: str) -> None:
    with WorkerPool(n_jobs=2, daemon=False, start_method=start_method) as pool:
        results = [pool.apply_async(apply_in_worker, i) for i in range(4)]
        assert [result.get() for result in results] == [1, 2, 3, 4]


@processes
def test_memory_limit(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method, memory_limit=4 << 20) as pool:
        big = b"x" * (16 << 20)
        with pytest.raises(MemoryError, match="memory_limit"):
            pool.apply(len, big)
        many = [pool.apply_async(len, big[: 1 << 20]) for _ in range(40)]
        assert [result.get() for result in many] == [1 << 20] * 40
        assert len(pool.apply(operator.mul, (b"x", 16 << 20))) == 16 << 20


def sleep_a_little(x: int) -> int:
    time.sleep(0.002)
    return x


def test_beside_an_ordered_map(start_method: str) -> None:
    """A worker that is started for an apply takes the chunks of its lane, no others."""
    with WorkerPool(n_jobs=3, order_tasks=True, start_method=start_method) as pool:
        inputs = (pool.apply(add, (i, 0)) for i in range(30))  # the first worker is started for an apply
        assert pool.map(sleep_a_little, inputs, chunk_size=1, worker_lifespan=4) == list(range(30))


@processes
def test_beside_an_ordered_map_whose_workers_die(start_method: str) -> None:
    def inputs() -> Iterator[int]:
        for i in range(30):
            if i in (7, 15):
                with pytest.raises(WorkerDiedError):
                    pool.apply(kill_self, int(signal.SIGKILL))
            yield pool.apply(add, (i, 0))

    with WorkerPool(n_jobs=3, order_tasks=True, start_method=start_method) as pool:
        assert pool.map(sleep_a_little, inputs(), chunk_size=1, retries=1) == list(range(30))


def test_beside_time_limits_retries_and_lifespans(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method, keep_alive=True) as pool:
        for options in ({"task_timeout": HANG}, {"retries": 2}, {"worker_lifespan": 300}, {"return_exceptions": True}):
            results = [pool.apply_async(add, (i, 0), task_timeout=HANG if i % 2 else None) for i in range(200)]
            assert pool.map(same, range(500), **options) == list(range(500))
            assert [result.get() for result in results] == list(range(200))


# ---------------------------------------------------------------- found by a hostile review


class DiesBehindItsResult:
    """A result whose worker ends when it lets go of it, which is after the commit."""

    def __reduce__(self) -> Any:
        return same, (1,)

    def __del__(self) -> None:
        os._exit(3)


def make_deadly() -> Any:
    return DiesBehindItsResult()


@processes
def test_a_worker_that_dies_behind_a_result(start_method: str) -> None:
    """Its line still shows the apply, whose result counts."""
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = [pool.apply_async(make_deadly) for _ in range(4)]
        assert [result.get(HANG) for result in results] == [1] * 4
        assert pool.apply(add, (1, 2)) == 3


def end_badly() -> None:
    os._exit(4)


@processes
def test_a_death_in_an_exit_function_is_an_error_of_the_end(start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        assert pool.apply(add, (1, 2), worker_exit=end_badly) == 3
        with pytest.raises(WorkerDiedError):
            pool.stop_and_join()
    with WorkerPool(n_jobs=1, start_method=start_method, keep_alive=True) as pool:
        assert pool.map(same, [1], worker_exit=end_badly) == [1]
        with pytest.raises(WorkerDiedError):
            pool.stop_and_join()


def test_a_housekeeper_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with WorkerPool(n_jobs=2) as pool:
        assert pool.apply(add, (1, 2)) == 3
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                pool.apply_async(add, (1, 2))
        assert pool.apply_async(add, (1, 2)).get() == 3


def test_a_fork_of_the_owner_may_leave_the_pool(tmp_path: Path) -> None:
    """Whatever other threads had at the fork: there, nobody has it."""
    script = """
        import os, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's, of forks beside threads
        from fastpool import WorkerPool
        with WorkerPool(2) as pool:
            result = pool.apply_async(time.sleep, 0.5)
            while not pool._engine._owner:
                time.sleep(0.001)
            child = os.fork()
            if child == 0:
                try:
                    pool.map(abs, [1])
                except RuntimeError as error:
                    print(str(error).split(";")[0].rstrip("0123456789"), flush=True)
                pool.stop_and_join(keep_alive=True)
            else:
                print(os.waitpid(child, 0)[1], result.get(), flush=True)
        """
    done = run(tmp_path, script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "this pool belongs to process \n0 None\n", "")


def applies_and_elements(pool: WorkerPool, function: Any, results: list[AsyncResult]) -> Iterator[int]:
    for i in range(60):
        results.append(pool.apply_async(function, i))
        yield i


def test_beside_an_ordered_map_whose_workers_are_replaced(start_method: str) -> None:
    results: list[AsyncResult] = []
    with WorkerPool(n_jobs=2, start_method=start_method, order_tasks=True) as pool:
        elements = applies_and_elements(pool, same, results)
        lifespan = 3 if start_method in ("fork", "threading") else 20
        assert pool.map(same, elements, chunk_size=1, worker_lifespan=lifespan) == list(range(60))
        assert [result.get() for result in results] == list(range(60))


def dies_at_25(x: int) -> int:
    if x == 25:
        os._exit(3)
    return x


@processes
def test_beside_an_ordered_map_a_worker_dies_in_an_apply(start_method: str) -> None:
    results: list[AsyncResult] = []
    with WorkerPool(n_jobs=2, start_method=start_method, order_tasks=True) as pool:
        elements = applies_and_elements(pool, dies_at_25, results)
        assert pool.map(same, elements, chunk_size=1) == list(range(60))
        with pytest.raises(WorkerDiedError):
            results.pop(25).get()
        assert [result.get() for result in results] == [i for i in range(60) if i != 25]


def wait_and_tell(shared: str, path: str | None = None) -> str:
    if path is not None:
        wait_for_file(path)
    return shared


def test_setters_count_also_while_applies_run(start_method: str, tmp_path: Path) -> None:
    path = tmp_path / "go"
    with WorkerPool(n_jobs=1, start_method=start_method, shared_objects="old") as pool:
        before = pool.apply_async(wait_and_tell, str(path))
        pool.set_shared_objects("new")
        after = pool.apply_async(wait_and_tell)
        path.touch()
        assert (before.get(), after.get()) == ("old", "new")


def fail_among_others(x: int) -> int:
    time.sleep(0.05)
    if x == 0:
        raise ValueError(x)
    time.sleep(0.02)
    return x


def leave_quietly() -> str:
    return "left"


@pytest.mark.parametrize("number", [254, 255])
def test_results_of_a_map_that_ends_are_not_taken_for_applies(number: int) -> None:
    """Records show the low bits of their job's number, which are all 0 in one of 256."""
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        assert pool.apply(same, 1) == 1
        while pool._supervisor.segment.number != number:
            pool.map(same, range(2))
        with pytest.raises(ValueError, match="0"):
            pool.map(fail_among_others, list(range(4)), chunk_size=1, worker_exit=leave_quietly, always_exit=True)
        assert pool.get_exit_results() == ["left"] * 2


@pytest.mark.parametrize("turned_off", [False, True])
def test_a_map_after_a_lazy_one_that_was_left(turned_off: bool, start_method: str) -> None:
    """Workers that an apply needed meanwhile do not end by themselves; nor do those that were to be kept."""
    with WorkerPool(n_jobs=2, start_method=start_method, keep_alive=turned_off) as pool:
        lazy: Any = pool.imap(same, range(100), chunk_size=1)
        assert next(lazy) == 0
        lazy.close()
        pool.set_keep_alive(False)
        for i in range(5):
            assert pool.apply(add, (i, 1)) == i + 1
            time.sleep(0.02)
        assert pool.map(same, range(10)) == list(range(10))


class Gate:
    """An argument that can be encoded when somebody says so."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        self.begun.set()
        self.go.wait(HANG)
        return same, (1,)


@processes
def test_the_pool_ends_while_an_apply_is_encoded(start_method: str) -> None:
    gate = Gate()
    handed_in: list[Any] = []

    def hand_in() -> None:
        try:
            handed_in.append(pool.apply_async(same, gate))
        except BaseException as error:
            handed_in.append(error)

    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        assert pool.apply(same, 1) == 1
        supervisor = pool._supervisor
        see_out, thread = supervisor._see_out, threading.Thread(target=hand_in)

        def begin_to_encode() -> None:
            see_out()
            thread.start()
            assert gate.begun.wait(HANG)
            threading.Timer(0.2, gate.go.set).start()

        supervisor._see_out = begin_to_encode  # type: ignore[method-assign]
        pool.stop_and_join()
        thread.join()
        with pytest.raises(RuntimeError, match="stopped before this apply"):
            handed_in[0].get(HANG)


class UsesThePool:
    """Its pickling uses the pool, in the same thread."""

    pool: WorkerPool

    def __init__(self, use: str) -> None:
        self.use = use

    def __reduce__(self) -> Any:
        if self.use == "get":
            return same, (self.pool.apply_async(add, (1, 1)).get(),)
        self.pool.terminate()
        return same, (1,)


@processes
@pytest.mark.parametrize("use", ["get", "terminate"])
def test_pickling_may_not_wait_for_the_pool(use: str, start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        UsesThePool.pool = pool
        assert pool.apply(same, 1) == 1
        with pytest.raises(SerializationError, match=r"while an argument|being pickled"):
            pool.apply(same, UsesThePool(use))
        assert pool.apply(same, 1) == 1


def dies_once(flag: Path, x: int) -> int:
    if x == 5 and not flag.exists():
        flag.touch()
        os._exit(3)
    return x


def answer(flag: Path, x: int) -> int:
    return x


def test_in_the_input_of_an_ordered_map_a_lost_worker_is_replaced(tmp_path: Path) -> None:
    def elements() -> Iterator[int]:
        for i in range(20):
            yield i
            assert pool.apply(answer, i) == i

    with WorkerPool(n_jobs=1, order_tasks=True, shared_objects=tmp_path / "died") as pool:
        assert pool.map(dies_once, elements(), chunk_size=1, retries=1) == list(range(20))


def test_who_gives_up_the_engine_wakes_who_gave_way() -> None:
    engine = Engine()
    engine.take()
    gave_way = threading.Event()
    looks: list[bool] = []

    def give_way() -> None:
        with engine.changed:
            while not engine.is_free:
                looks.append(False)
                engine.changed.wait(HANG)
            gave_way.set()

    def want() -> None:
        with pytest.raises(KeyboardInterrupt):
            engine.take()

    wait = engine.changed.wait

    def interrupted_wait(timeout: float | None = None) -> bool:
        there = wait(timeout)
        if threading.current_thread() is wanting:
            while len(looks) < 2:  # the other one has been woken, too
                wait(0.001)
            raise KeyboardInterrupt
        return there

    engine.changed.wait = interrupted_wait  # type: ignore[method-assign]
    wanting = threading.Thread(target=want)
    wanting.start()
    while not engine.is_wanted:
        time.sleep(0.001)
    giving = threading.Thread(target=give_way)
    giving.start()
    while not looks:
        time.sleep(0.001)
    engine.let_go()
    wanting.join()
    giving.join(HANG / 4)
    assert gave_way.is_set()
