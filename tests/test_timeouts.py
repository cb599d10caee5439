"""Time limits of tasks, init and exit functions: what is late is killed, whatever it does; nothing else is."""

from __future__ import annotations

import copy
import ctypes
import logging
import math
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy
import pytest
from conftest import processes
from damage import memory_of, own_worker, write_word

from fastpool import (
    DamagedMemoryError,
    FastpoolError,
    RemoteError,
    WorkerDiedError,
    WorkerPool,
    WorkerTimeoutError,
    empty,
)
from fastpool._native import Segment

LIMITS = ("task_timeout", "worker_init_timeout", "worker_exit_timeout")
SHORT = 0.2  # seconds, of what is stuck for good
LONG = 60.0  # as good as none, to what ends

INPUTS: dict[str, Callable[[int], Iterable[int]]] = {
    "range": range,
    "list": lambda n: list(range(n)),
    "generator": lambda n: (x for x in range(n)),
}
inputs = pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)


@pytest.fixture
def runs() -> Any:
    """How often each task was begun, as workers count it."""
    counts = empty(1000, numpy.int64)
    counts[:] = 0
    return counts


# ---------------------------------------------------------------- what is stuck


def sleep_in_c() -> None:
    ctypes.PyDLL(None).sleep(100)  # with the GIL: no handler of Python's runs


def sleep_without_signals() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(100)


def sleep_in_python() -> None:
    while True:
        time.sleep(1)


def swallow_everything() -> None:
    while True:
        try:
            time.sleep(100)
        except BaseException:
            continue


STUCK = [sleep_in_c, sleep_without_signals, sleep_in_python, swallow_everything]


class StuckAt:
    """A task that is stuck at one element."""

    def __init__(self, at: int, how: Callable[[], None] = sleep_in_python) -> None:
        self.at, self.how = at, how

    def __call__(self, x: Any) -> Any:
        if x == self.at:
            self.how()
        return x


@processes
@pytest.mark.parametrize("how", STUCK, ids=lambda how: how.__name__)
def test_a_task(start_method: str, how: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fastpool")
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            pool.map(StuckAt(5, how), range(20), task_timeout=SHORT)
        error = caught.value
        assert (error.phase, error.task, error.limit) == ("task", 5, SHORT)
        assert error.function.endswith("test_timeouts.StuckAt")
        assert error.worker_id in (0, 1)
        assert multiprocessing.active_children() == []
        assert pool.map(abs, range(-3, 3)) == [3, 2, 1, 0, 1, 2]
    assert "SIGKILL" not in caplog.text  # nobody has died


@processes
def test_init(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            pool.map(abs, range(20), worker_init=sleep_in_c, worker_init_timeout=SHORT)
        assert (caught.value.phase, caught.value.task, caught.value.limit) == ("worker_init", None, SHORT)
        assert caught.value.function.endswith("sleep_in_c")
        assert pool.map(abs, [-1], worker_init=os.getpid, worker_init_timeout=LONG) == [1]


@processes
def test_exit(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(WorkerTimeoutError) as caught:
            pool.map(abs, range(20), worker_exit=sleep_in_c, worker_exit_timeout=SHORT)
        assert (caught.value.phase, caught.value.task, caught.value.limit) == ("worker_exit", None, SHORT)
        assert pool.map(abs, [-1], worker_exit=os.getpid, worker_exit_timeout=LONG) == [1]
        assert len(pool.get_exit_results()) == 1


@processes
def test_exit_of_kept_workers(start_method: str) -> None:
    """The last map says how long it may take."""
    with WorkerPool(n_jobs=2, start_method=start_method, keep_alive=True) as pool:
        pool.map(abs, range(20), worker_exit=sleep_in_c, worker_exit_timeout=LONG)
        assert pool.map(abs, [-2], worker_exit=sleep_in_c, worker_exit_timeout=SHORT) == [2]
        with pytest.raises(WorkerTimeoutError, match=f"worker_exit_timeout={SHORT} "):
            pool.stop_and_join()
        assert multiprocessing.active_children() == []
        assert pool.map(abs, [-1]) == [1]


@processes
def test_a_kept_worker(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method, keep_alive=True) as pool:
        assert pool.map(StuckAt(-1), range(20), task_timeout=LONG) == list(range(20))
        with pytest.raises(WorkerTimeoutError, match="task 7"):
            pool.map(StuckAt(7), range(20), task_timeout=SHORT)
        assert pool.map(StuckAt(-1), range(20), task_timeout=LONG) == list(range(20))


def exit_slowly_after(counts: Any, at: int) -> Callable[[], int]:
    def leave() -> int:
        counts[0] += 1
        if counts[0] == at:
            time.sleep(100)
        return os.getpid()

    return leave


def test_exit_of_replaced_workers(runs: Any) -> None:
    with WorkerPool(n_jobs=1) as pool, pytest.raises(WorkerTimeoutError, match="worker_exit"):
        pool.map(
            abs,
            range(50),
            chunk_size=1,
            worker_lifespan=1,
            worker_exit=exit_slowly_after(runs, 10),
            worker_exit_timeout=SHORT,
            return_exceptions=True,
            retries=3,
        )
    assert runs[0] == 10


# ---------------------------------------------------------------- maps that go on


@inputs
@pytest.mark.parametrize(
    "options", [{}, {"chunk_size": 20}, {"max_tasks_active": 8}, {"worker_lifespan": 5}, {"retries": 3}]
)
def test_the_error_takes_the_place_of_the_result(
    make: Callable[[int], Any], options: dict[str, Any], runs: Any
) -> None:
    def task(x: int) -> int:
        runs[x] += 1
        if x in (3, 30):
            sleep_in_c()
        return x * x

    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(task, make(60), task_timeout=SHORT, return_exceptions=True, **options)
        assert pool.map(abs, [-1]) == [1]
    for x, result in enumerate(results):
        if x in (3, 30):
            assert isinstance(result, WorkerTimeoutError)
            assert result.task == x
        else:
            assert result == x * x
    assert (runs[:60] == 1).all()  # what was late is not tried again, what came after it in its chunk was not begun


def test_chunks_of_an_array(runs: Any) -> None:
    def task(rows: Any) -> Any:
        if rows[0] == 300:
            sleep_in_c()
        return numpy.sqrt(rows)

    given = numpy.arange(1000.0)
    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(task, given, chunk_size=100, task_timeout=SHORT, return_exceptions=True)
        with pytest.raises(WorkerTimeoutError, match="task 3"):
            pool.map(task, given, chunk_size=100, task_timeout=SHORT)
    assert isinstance(results.pop(3), WorkerTimeoutError)
    assert (numpy.concatenate(results) == numpy.sqrt(numpy.delete(given, slice(300, 400)))).all()


@processes
@pytest.mark.parametrize("keep_alive", [False, True])
def test_going_on_with_every_start_method(start_method: str, keep_alive: bool) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method, keep_alive=keep_alive) as pool:
        for _ in range(2):
            results = pool.map(StuckAt(4, sleep_without_signals), range(9), task_timeout=SHORT, return_exceptions=True)
            assert isinstance(results[4], WorkerTimeoutError)
            assert [result for x, result in enumerate(results) if x != 4] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_all_tasks_are_late() -> None:
    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(time.sleep, [100] * 8, task_timeout=0.05, return_exceptions=True)
    assert [(type(result), result.task) for result in results] == [(WorkerTimeoutError, x) for x in range(8)]


def test_retries_are_for_deaths(runs: Any) -> None:
    """Of a task that took too long another worker would not have the result earlier."""

    def task(x: int) -> int:
        runs[x] += 1
        if x == 2 and runs[x] == 1:
            os._exit(3)
        if x == 5:
            sleep_in_c()
        return x

    with WorkerPool(n_jobs=2) as pool, pytest.raises(WorkerTimeoutError, match="task 5"):
        pool.map(task, range(10), chunk_size=1, task_timeout=SHORT, retries=3)
    assert runs[2] == 2
    assert runs[5] == 1


@pytest.mark.parametrize("options", [{"return_exceptions": True}, {"retries": 3}])
def test_init_ends_every_map(options: dict[str, Any]) -> None:
    with WorkerPool(n_jobs=2) as pool, pytest.raises(WorkerTimeoutError, match="worker_init"):
        pool.map(abs, range(10), worker_init=sleep_in_python, worker_init_timeout=SHORT, **options)


# ---------------------------------------------------------------- what is not late


def test_each_task_has_its_own_time() -> None:
    def task(x: int) -> int:
        time.sleep(0.03)
        return x

    with WorkerPool(n_jobs=1) as pool:
        assert pool.map(task, range(50), chunk_size=50, task_timeout=1.0) == list(range(50))


@inputs
def test_many_short_tasks(make: Callable[[int], Any]) -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(3):
            assert pool.map(StuckAt(-1), make(30_000), task_timeout=LONG) == list(range(30_000))


def test_each_phase_has_its_own_limit() -> None:
    def slowly(*args: Any) -> None:
        time.sleep(2 * SHORT)

    with WorkerPool(n_jobs=2) as pool:
        pool.map(abs, range(4), worker_init=slowly, worker_exit=slowly, task_timeout=SHORT)
        pool.map(slowly, range(2), chunk_size=1, worker_init_timeout=SHORT, worker_exit_timeout=SHORT)


def test_waiting_for_room_is_no_tasks_time() -> None:
    """The lane is full while the input keeps the parent waiting."""

    def given() -> Iterator[int]:
        yield from range(200)
        time.sleep(4 * SHORT)
        yield from range(200)

    def task(x: int) -> bytes:
        return bytes(30_000)  # below what gets a block of its own: 6 MB into a ring of one

    with WorkerPool(n_jobs=1) as pool:
        assert pool.map(task, given(), chunk_size=200, task_timeout=2 * SHORT) == [bytes(30_000)] * 400


class SlowToPickle:
    def __reduce__(self) -> Any:
        time.sleep(3 * SHORT)
        return int, (7,)


def test_encoding_is_no_tasks_time() -> None:
    with WorkerPool(n_jobs=1) as pool:
        assert pool.map(lambda x: SlowToPickle(), range(2), task_timeout=SHORT) == [7, 7]


def test_pool_that_rests_is_not_watched() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(3):
            assert pool.map(abs, range(10), task_timeout=0.5, worker_init_timeout=0.5) == list(range(10))
            time.sleep(0.6)


def test_limits_end_with_their_map() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        pool.map(abs, range(10), task_timeout=SHORT)
        assert pool.map(time.sleep, [2 * SHORT], task_timeout=None) == [None]


# ---------------------------------------------------------------- other ends, meanwhile


def test_exceptions_and_deaths_are_what_they_are() -> None:
    def task(x: int) -> int:
        if x == 1:
            raise LookupError("no", x)
        if x == 2:
            os._exit(3)
        return x

    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(LookupError) as caught:
            pool.map(task, [0, 1], task_timeout=LONG)
        assert isinstance(caught.value.__cause__, RemoteError)
        with pytest.raises(WorkerDiedError):
            pool.map(task, [0, 2], task_timeout=LONG)
        results = pool.map(task, [0, 1, 2, 3], chunk_size=4, task_timeout=LONG, return_exceptions=True)
    assert [type(result) for result in results] == [int, LookupError, WorkerDiedError, int]


def test_after_an_exception_the_next_task_is_timed() -> None:
    def task(x: int) -> None:
        if x == 0:
            raise LookupError
        sleep_in_c()

    with WorkerPool(n_jobs=1) as pool:
        results = pool.map(task, range(2), chunk_size=2, task_timeout=SHORT, return_exceptions=True)
    assert [type(result) for result in results] == [LookupError, WorkerTimeoutError]


def test_a_fork_that_leaves_a_task_does_not_end_it() -> None:
    def task(x: int) -> int:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            sleep_in_c()
        return x

    with WorkerPool(n_jobs=1) as pool, pytest.raises(WorkerTimeoutError, match="task 0"):
        pool.map(task, range(3), task_timeout=SHORT)


def test_the_input_is_slow() -> None:
    """The caller looks between two elements."""
    taken = []

    def given() -> Iterator[int]:
        for x in range(500):
            taken.append(x)
            yield x
            time.sleep(0.02)

    with WorkerPool(n_jobs=2) as pool, pytest.raises(WorkerTimeoutError, match="task 0"):
        pool.map(StuckAt(0), given(), chunk_size=1, task_timeout=SHORT)
    assert len(taken) < 500


def test_within_a_pool() -> None:
    """The error travels like any other."""

    def outer(x: int) -> Any:
        with WorkerPool(n_jobs=1) as pool:
            return pool.map(StuckAt(1), range(3), task_timeout=SHORT)

    with WorkerPool(n_jobs=2, daemon=False) as pool, pytest.raises(WorkerTimeoutError) as caught:
        pool.map(outer, range(2))
    assert (caught.value.task, caught.value.limit) == (1, SHORT)


# ---------------------------------------------------------------- lazy maps


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_lazy_maps(name: str) -> None:
    with WorkerPool(n_jobs=2) as pool:
        lazy = getattr(pool, name)(StuckAt(5, sleep_in_c), range(20), chunk_size=1, task_timeout=SHORT)
        found = []
        with pytest.raises(WorkerTimeoutError, match="task 5"):
            found.extend(lazy)
        results = list(getattr(pool, name)(StuckAt(5), range(20), task_timeout=SHORT, return_exceptions=True))
    errors = [result for result in results if isinstance(result, WorkerTimeoutError)]
    assert [error.task for error in errors] == [5]
    rest = [result for result in results if result not in errors]
    assert sorted(rest) == [x for x in range(20) if x != 5]
    if name == "imap":
        assert results[5] is errors[0]


def test_map_unordered() -> None:
    with WorkerPool(n_jobs=2) as pool, pytest.raises(WorkerTimeoutError, match="task 5"):
        pool.map_unordered(StuckAt(5), range(20), task_timeout=SHORT)


def test_the_consumers_time_is_no_tasks_time() -> None:
    with WorkerPool(n_jobs=2) as pool:
        for x, result in enumerate(pool.imap(StuckAt(-1), range(6), chunk_size=1, task_timeout=SHORT)):
            assert result == x
            time.sleep(1.5 * SHORT)


@pytest.mark.parametrize("keep_alive", [False, True])
@pytest.mark.parametrize("options", [{}, {"return_exceptions": True}])
def test_a_late_task_of_a_map_that_was_left(keep_alive: bool, options: dict[str, Any]) -> None:
    """Nobody waits for its result, but the next map does for its end: the limit holds, and nobody is told."""
    with WorkerPool(n_jobs=2, keep_alive=keep_alive) as pool:
        for _ in range(2):
            lazy = pool.imap(StuckAt(3, sleep_in_c), range(20), chunk_size=1, task_timeout=SHORT, **options)
            assert [next(lazy), next(lazy), next(lazy)] == [0, 1, 2]
            lazy.close()  # type: ignore[attr-defined]
            assert pool.map(abs, range(-9, 0)) == list(range(9, 0, -1))


# ---------------------------------------------------------------- the sentence


class Running:
    """A map of one task that waits to be let go, in a thread of its own."""

    def __init__(self, pool: WorkerPool) -> None:
        self.gate = gate = empty(2, numpy.int64)
        gate[:] = 0

        def task(x: int) -> str:
            gate[0] = 1
            while not gate[1]:
                time.sleep(0.001)
            return "done"

        self.results: Any = None
        self.thread = threading.Thread(target=self._run, args=(pool, task))
        self.thread.start()
        wait_until(lambda: self.gate[0] == 1)
        self.segment: Segment = pool._supervisor.segment

    def _run(self, pool: WorkerPool, task: Any) -> None:
        self.results = pool.map(task, [0], task_timeout=LONG)

    @property
    def until(self) -> int:
        return self._word("line 0", CALL_UNTIL)

    @property
    def sleeping(self) -> bool:
        return self._word("lane 0", 64) & 0xFFFFFFFF != 0

    @property
    def committed(self) -> int:
        return self._word("lane 0", 0)

    def _word(self, area: str, at: int) -> int:
        offset = self.segment.areas()[area][0] + at
        return int.from_bytes(memory_of(self.segment, offset + 8)[offset:], "little")

    def let_go(self) -> None:
        self.gate[1] = 1

    def finish(self) -> Any:
        self.thread.join()
        return self.results


def wait_until(happens: Callable[[], bool]) -> None:
    while not happens():
        time.sleep(0.001)


def test_nothing_comes_of_a_condemned_task() -> None:
    with WorkerPool(n_jobs=1) as pool:
        running = Running(pool)
        until = running.until
        assert running.segment.condemn(0, until)
        running.let_go()
        wait_until(lambda: running.until == 0 and running.sleeping)  # the function has returned
        assert running.committed == 0
        assert not running.segment.condemn(0, until)  # as if the look had come too late: the worker goes on
        assert running.finish() == ["done"]


def test_a_task_that_is_over_cannot_be_condemned() -> None:
    with WorkerPool(n_jobs=1) as pool:
        running = Running(pool)
        assert not running.segment.condemn(0, running.until - 1)
        running.let_go()
        assert running.finish() == ["done"]


@pytest.mark.parametrize("task_timeout", [0.001, 0.002])
def test_tasks_about_as_long_as_the_limit(task_timeout: float) -> None:
    """Whichever way each of them ends: once, and all others are done."""
    given = [task_timeout * share / 10 for share in range(6, 14) for _ in range(10)]
    given[::20] = [100] * 4
    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(time.sleep, given, chunk_size=5, task_timeout=task_timeout, return_exceptions=True)
    for x, (seconds, result) in enumerate(zip(given, results, strict=True)):
        if result is None:
            assert seconds < 1
        else:
            assert isinstance(result, WorkerTimeoutError)
            assert result.task == x


# ---------------------------------------------------------------- damage

CALL_UNTIL = 32  # in a line


def test_a_deadline_that_no_limit_allows() -> None:
    def task(x: int) -> int:
        write_word(f"line {own_worker()}", CALL_UNTIL, 2**63)
        time.sleep(100)
        return x

    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(DamagedMemoryError, match="time limit of worker"):
            pool.map(task, range(3), task_timeout=SHORT)
        assert pool.map(abs, [-1]) == [1]


def test_a_deadline_long_ago() -> None:
    def task(x: int) -> int:
        write_word(f"line {own_worker()}", CALL_UNTIL, 1)
        time.sleep(100)
        return x

    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(WorkerTimeoutError):
            pool.map(task, range(3), task_timeout=LONG)
        assert pool.map(abs, [-1]) == [1]


def test_deadlines_do_not_keep_the_parent_from_ringing_everybody() -> None:
    """A sleep that ends at a deadline, again and again, is part of one silence (csrc/README.md, Damage)."""

    def task(x: int) -> int:
        time.sleep(0.01)  # the others are asleep by then
        for worker in range(2):
            write_word(f"lane {worker}", 64, 0, 4)
        return x

    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(3):
            results = pool.map(task, list(range(6)), max_tasks_active=2, chunk_size=1, task_timeout=SHORT)
            assert results == list(range(6))


# ---------------------------------------------------------------- the error, and the parameters


def test_the_error() -> None:
    error = WorkerTimeoutError(1, 4711, "task", "app.fetch", 2.5, 17)
    assert isinstance(error, FastpoolError)
    assert isinstance(error, TimeoutError)
    assert error.errno is None
    text = str(error)
    for part in ("task 17 (app.fetch)", "task_timeout=2.5 seconds", "worker 1 (pid 4711) was ended", "faulthandler"):
        assert part in text
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(other), other.args, vars(other), str(other)) == (type(error), error.args, vars(error), text)
    assert str(WorkerTimeoutError(0, 1, "worker_init", "app.load", 3, None)).startswith("worker_init (app.load) ran")


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [True, False, "1", b"1", [1], (), 1j, object(), abs])
def test_wrong_types(name: str, value: Any) -> None:
    with WorkerPool(n_jobs=1) as pool:
        with pytest.raises(TypeError, match=f"^{name} must be an int, a float or None, not {type(value).__name__}$"):
            pool.map(abs, [1], **{name: value})
        assert multiprocessing.active_children() == []


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", [0, 0.0, -0.0, -1, -0.5, math.nan, -math.inf, -(10**5000)], ids=lambda _: "")
def test_wrong_values(name: str, value: Any) -> None:
    with WorkerPool(n_jobs=1) as pool:
        with pytest.raises(ValueError, match=f"^{name} must be more than 0 seconds, not "):
            pool.map(abs, [1], **{name: value})
        assert multiprocessing.active_children() == []


@pytest.mark.parametrize("value", [None, 60, 60.5, math.inf, 10**400, 1e300, numpy.float64(60), numpy.int32(60)])
def test_right_values(value: Any) -> None:
    with WorkerPool(n_jobs=1) as pool:
        limits = dict.fromkeys(LIMITS, value)
        assert pool.map(abs, [-1], worker_init=os.getpid, worker_exit=os.getpid, **limits) == [1]


@pytest.mark.parametrize("value", [None, 60, math.inf, 10**400, numpy.float64(60), Fraction(60), Decimal(60)])
def test_how_long_a_result_is_waited_for(value: Any) -> None:
    with WorkerPool(n_jobs=1) as pool:
        assert pool.apply_async(abs, -1).get(value) == 1


@pytest.mark.parametrize("value", [0, -1, -math.inf, -(10**400)])
def test_a_result_that_is_not_waited_for(value: Any) -> None:
    with WorkerPool(n_jobs=1) as pool:
        result = pool.apply_async(time.sleep, 60)
        with pytest.raises(TimeoutError):
            result.get(value)
