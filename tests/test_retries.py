"""Maps that go on: failed tasks as results, and tasks of dead workers that are given to others."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy
import pytest
from conftest import PROCESSES
from hypothesis import given
from hypothesis import strategies as st

from fastpool import RemoteError, SerializationError, WorkerDiedError, WorkerPool, empty
from fastpool.errors import ordinal
from fastpool.recovery import overlap, without

Make = Callable[[int], Iterable[int]]

INPUTS: dict[str, Make] = {
    "range": range,
    "list": lambda n: list(range(n)),
    "generator": lambda n: (x for x in range(n)),
}
inputs = pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "fastpool")


@pytest.fixture
def runs() -> Any:
    """How often each task was begun, as workers count it."""
    counts = empty(1000, numpy.int64)
    counts[:] = 0
    return counts


# ---------------------------------------------------------------- exceptions in their places


def fail_at_threes(x: int) -> int:
    if x % 3 == 0:
        raise LookupError("no", x)
    return x * x


@inputs
@pytest.mark.parametrize("options", [{}, {"chunk_size": 4}, {"max_tasks_active": 3}, {"worker_lifespan": 5}])
def test_exceptions_take_the_places_of_results(make: Make, options: dict[str, Any]) -> None:
    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(fail_at_threes, make(100), return_exceptions=True, **options)
    for x, result in enumerate(results):
        if x % 3:
            assert result == x * x
            continue
        assert type(result) is LookupError
        assert result.args == ("no", x)
        assert isinstance(result.__cause__, RemoteError)
        assert result.__cause__.task == x


def test_exceptions_of_every_start_method(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = pool.map(fail_at_threes, range(5), return_exceptions=True)
    assert [type(result) for result in results] == [LookupError, int, int, LookupError, int]


def test_what_leaves_a_task_is_its_result_whatever_it_is() -> None:
    raised = [SystemExit(3), KeyboardInterrupt(), StopIteration(7), GeneratorExit(), MemoryError("m"), Exception()]

    def raise_it(k: int) -> None:
        raise raised[k]

    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(raise_it, range(6), return_exceptions=True)
    assert [(type(result), result.args) for result in results] == [(type(error), error.args) for error in raised]


class OnlyInto:
    """Can be pickled, and not be unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_values_that_cannot_travel_fail_alone() -> None:
    def result_of(x: Any) -> Any:
        if x == 2:
            return threading.Lock()
        return OnlyInto() if x == 5 else str(x) if isinstance(x, int) else x

    given: list[Any] = [0, "a", 2, (3,), 4, 5, OnlyInto(), 7, 1.5, OnlyInto(), "end"]
    with WorkerPool(n_jobs=1) as pool:
        results = pool.map(result_of, given, return_exceptions=True, chunk_size=len(given))
        with pytest.raises(SerializationError, match="result of task 5") as raised:
            pool.map(result_of, [0, 1, 3, 4, 6, 5], chunk_size=6)
    errors = {2: ("result", 0), 5: ("result", None), 6: ("argument", 0), 9: ("argument", 0)}
    for k, place in errors.items():
        assert isinstance(results[k], SerializationError)
        assert (results[k].what, results[k].worker_id) == place
    expected = ["0", "a", None, "3", "4", None, None, "7", 1.5, None, "end"]
    assert [None if k in errors else result for k, result in enumerate(results)] == expected
    assert isinstance(raised.value.__cause__, ValueError)


class LargeOnlyInto:
    """The same, in a block of its own, or in pieces."""

    def __reduce__(self) -> Any:
        return int, ("no number" * 100_000,)


@pytest.mark.parametrize("memory_limit", [None, 300_000])
@pytest.mark.parametrize("method", ["map", "map_unordered", "imap", "imap_unordered"])
def test_results_that_cannot_be_unpickled_fail_alone(method: str, memory_limit: int | None) -> None:
    def result_of(x: int) -> Any:
        return LargeOnlyInto() if x % 3 == 1 else OnlyInto() if x % 3 == 2 else x

    with WorkerPool(n_jobs=2, memory_limit=memory_limit) as pool:
        results = list(getattr(pool, method)(result_of, range(60), return_exceptions=True, chunk_size=5))
    failed = [result for result in results if isinstance(result, SerializationError)]
    assert sorted(error.task for error in failed) == [x for x in range(60) if x % 3]
    assert sorted(result for result in results if isinstance(result, int)) == list(range(0, 60, 3))
    if method in ("map", "imap"):
        assert results[::3] == list(range(0, 60, 3))


def test_a_failed_init_ends_the_map() -> None:
    def fail() -> None:
        raise OSError("no model")

    with WorkerPool(n_jobs=2) as pool, pytest.raises(OSError, match="no model"):
        pool.map(abs, range(5), worker_init=fail, return_exceptions=True, retries=3)


def test_exceptions_among_arrays() -> None:
    def root(chunk: Any) -> Any:
        if chunk[0] == 0:
            raise ValueError("zero")
        return numpy.sqrt(chunk)

    array = numpy.arange(1_000_000.0)
    with WorkerPool(n_jobs=2) as pool:
        for _ in range(3):  # later maps know where results belong
            first, *rest = pool.map(root, array, return_exceptions=True)
            assert isinstance(first, ValueError)
            assert (numpy.concatenate(rest) == numpy.sqrt(array[-sum(map(len, rest)) :])).all()
        whole = pool.map(root, array + 1, return_exceptions=True)
        assert (whole == numpy.sqrt(array + 1)).all()


def test_an_array_that_a_failed_task_has_kept_stays_as_it_is(start_method: str) -> None:
    with WorkerPool(n_jobs=1, use_worker_state=True, keep_alive=True, start_method=start_method) as pool:
        array = numpy.arange(400_000.0)
        for _ in range(3):
            pool.map(keep_and_fail, array, return_exceptions=True)
            assert isinstance(pool.map(double, array), numpy.ndarray)
        assert all(pool.map(compare_kept, range(1)))


def keep_and_fail(state: dict[str, Any], chunk: Any) -> Any:
    made = chunk * 2.0
    if chunk[0] == 0:
        state.setdefault("kept", []).append((made, made.tolist()))
        raise ValueError("kept")
    return made


def double(_: dict[str, Any], chunk: Any) -> Any:
    return chunk + chunk


def compare_kept(state: dict[str, Any], _: int) -> bool:
    return all(made.tolist() == values for made, values in state["kept"])


# ---------------------------------------------------------------- deaths


def die_at_13(runs: Any, times: int, signum: int, x: int) -> int:
    runs[x] += 1
    if x % 50 == 13 and runs[x] <= times:
        os.kill(os.getpid(), signum)
    return x * x


@inputs
@pytest.mark.parametrize("keep_alive", [False, True])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 7}, {"max_tasks_active": 4}, {"worker_lifespan": 9}])
def test_tasks_of_dead_workers_are_given_to_others(
    runs: Any, make: Make, keep_alive: bool, options: dict[str, Any]
) -> None:
    def task(x: int) -> int:
        return die_at_13(runs, 2, signal.SIGKILL, x)

    with WorkerPool(n_jobs=2, keep_alive=keep_alive) as pool:
        assert pool.map(task, make(200), retries=2, **options) == [x * x for x in range(200)]
        assert runs[:200].tolist() == [3 if x % 50 == 13 else 1 for x in range(200)]
        assert pool.map(abs, make(3), retries=2) == [0, 1, 2]


@pytest.mark.parametrize("start_method", PROCESSES[1:])
def test_retries_of_other_start_methods(runs: Any, start_method: str) -> None:
    with WorkerPool(n_jobs=2, shared_objects=runs, start_method=start_method) as pool:
        assert pool.map(die_once_at_5, range(10), retries=1) == list(range(10))
    assert runs[:10].tolist() == [2 if x == 5 else 1 for x in range(10)]


def die_once_at_5(runs: Any, x: int) -> int:
    runs[x] += 1
    if x == 5 and runs[x] == 1:
        os._exit(1)
    return x


@inputs
def test_a_task_that_kills_every_worker_fails(runs: Any, make: Make) -> None:
    def task(x: int) -> int:
        return die_at_13(runs, 100, signal.SIGTERM, x)

    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(WorkerDiedError, match="the 3rd to end like this") as caught:
            pool.map(task, make(20), retries=2, chunk_size=5)
        assert caught.value.exitcode == -signal.SIGTERM
        assert caught.value.tasks[0] == 13
        assert caught.value.tries == 3
        assert runs[13] == 3
        assert pool.map(abs, make(3)) == [0, 1, 2]


@inputs
@pytest.mark.parametrize("retries", [0, 2])
def test_the_error_of_a_death_takes_the_place_of_a_result(runs: Any, make: Make, retries: int) -> None:
    def task(x: int) -> int:
        return die_at_13(runs, 100, signal.SIGKILL, x)

    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(task, make(200), retries=retries, return_exceptions=True, chunk_size=10)
    for x, result in enumerate(results):
        if x % 50 != 13:
            assert result == x * x
            continue
        assert isinstance(result, WorkerDiedError)
        assert (result.tasks[0], result.tries, result.exitcode) == (x, retries + 1, -signal.SIGKILL)
    assert runs[:200].tolist() == [retries + 1 if x % 50 == 13 else 1 for x in range(200)]


def test_retries_are_not_for_exceptions(runs: Any) -> None:
    def task(x: int) -> None:
        runs[x] += 1
        raise ValueError(x)

    with WorkerPool(n_jobs=1) as pool, pytest.raises(ValueError, match="0"):
        pool.map(task, range(3), retries=5)
    assert runs[:3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("deaths", [2, 100])
def test_workers_that_die_before_they_get_to_a_task(runs: Any, deaths: int) -> None:
    def init() -> None:
        runs[0] += 1
        if runs[0] <= deaths:
            os._exit(7)

    with WorkerPool(n_jobs=1) as pool:
        if deaths == 2:
            assert pool.map(abs, range(9), worker_init=init, retries=2) == list(range(9))
            return
        with pytest.raises(WorkerDiedError, match="while initializing") as caught:
            pool.map(abs, range(9), worker_init=init, retries=2, return_exceptions=True)
        assert caught.value.tries == runs[0] == 3


def test_a_kept_worker_that_died_between_maps_is_replaced() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for pid in set(pool.map(pid_of, range(50), chunk_size=1)):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert pool.map(abs, [-1, 2], retries=1) == [1, 2]


def pid_of(_: int) -> int:
    time.sleep(0.001)
    return os.getpid()


def test_a_worker_that_dies_in_its_exit_function_has_no_exit_result(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "fastpool")

    def die() -> None:
        os._exit(2)

    with WorkerPool(n_jobs=1) as pool:
        assert pool.map(abs, range(5), worker_exit=die, retries=1) == list(range(5))
        assert pool.get_exit_results() == []
    assert "exited with status 2 while exiting; it held no task" in caplog.text


def test_a_window_that_dead_workers_had_filled(runs: Any) -> None:
    """Everything that may be active is lost at once."""

    def task(x: int) -> int:
        runs[x] += 1
        if runs[x] == 1:
            os._exit(1)
        return x

    for make in INPUTS.values():
        runs[:] = 0
        with WorkerPool(n_jobs=2) as pool:
            results = pool.map(task, make(12), retries=1, max_tasks_active=2, chunk_size=2)
            assert results == list(range(12))


def test_arrays_of_dead_workers_are_given_again(runs: Any) -> None:
    def root(chunk: Any) -> Any:
        k = int(chunk[0]) // 100_000
        runs[k] += 1
        made = numpy.sqrt(chunk)
        if runs[k] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    array = numpy.arange(1_000_000.0)
    out = empty(array.shape, array.dtype)
    for options in ({}, {"out": out}, {"chunk_size": 100_000}):
        runs[:] = 0
        with WorkerPool(n_jobs=2) as pool:
            results = pool.map(root, array, retries=2, **options)
        assert numpy.array_equal(results, numpy.sqrt(array))
        assert (results is out) == ("out" in options)


def test_what_comes_after_a_failed_argument_is_run_by_another(runs: Any) -> None:
    """Nested values, of which later ones refer to earlier ones in the same chunk."""

    def task(number: int, record: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        runs[number] += 1
        if number % 5 == 2 and runs[number] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number, record

    given = [
        (k, {"name": f"record {k % 3}", "values": [k, str(k)], "large": b"x" * (k % 4 * 40_000)}) for k in range(60)
    ]
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(task, given, retries=1, chunk_size=20) == given


class Killer:
    """Shoots a random one of a pool's workers at random times, or at regular ones."""

    def __init__(self, pool: WorkerPool, seed: int, least: float, most: float) -> None:
        self.pool, self.kills, self._between = pool, 0, (least, most)
        self._source, self._ended = random.Random(seed), threading.Event()
        self._thread = threading.Thread(target=self._shoot)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _shoot(self) -> None:
        while not self._ended.wait(self._source.uniform(*self._between)):
            segment = self.pool._supervisor._segment
            worker_id = self._source.randrange(3)
            if segment is not None and segment.pid(worker_id):
                segment.kill(worker_id, signal.SIGKILL)
                self.kills += 1


def run_under_fire(killer: Killer, runs: Any, kind: int, **options: Any) -> int:
    """One map: nothing is lost, and what the dead had in hand is all that runs again. How many those were."""

    def task(x: int) -> tuple[int, str]:
        runs[x] += 1
        time.sleep(0.0001)
        return x, str(x)

    n = len(runs)
    make = list(INPUTS.values())[kind % 3]
    runs[:] = 0
    before = killer.kills
    assert killer.pool.map(task, make(n), retries=50, **options) == [(x, str(x)) for x in range(n)]
    again = int(runs.sum()) - n
    assert runs.min() == 1
    assert again <= killer.kills - before + 1
    return again


@pytest.mark.parametrize("seed", range(4))
def test_a_killer(runs: Any, seed: int) -> None:
    with WorkerPool(n_jobs=3, keep_alive=seed % 2 == 0) as pool, Killer(pool, seed, 0.002, 0.03) as killer:
        for k in range(6):
            run_under_fire(killer, runs, k, chunk_size=None if k < 3 else 5)


@pytest.mark.long
@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_shot_every_20_ms_for_a_minute(runs: Any, keep_alive: bool) -> None:
    """The time lost is what the killed tasks cost: each shot costs one task at most."""
    again = rounds = 0
    with WorkerPool(n_jobs=3, keep_alive=keep_alive) as pool, Killer(pool, 7, 0.02, 0.02) as killer:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            again += run_under_fire(killer, runs, rounds)
            rounds += 1
    print(f"{rounds} maps of {len(runs)} tasks, {killer.kills} shots, {again} tasks run again")
    assert killer.kills > 500
    assert 0 < again <= killer.kills + 1  # the last may not be counted yet


# ---------------------------------------------------------------- parameters and parts


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"retries": -1}, ValueError, "retries must be at least 0, not -1"),
        ({"retries": 1.5}, TypeError, "retries must be an int"),
        ({"retries": None}, TypeError, "retries must be an int"),
        ({"return_exceptions": 1}, TypeError, "return_exceptions must be a bool, not int"),
    ],
)
def test_bad_parameters(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with WorkerPool(n_jobs=1) as pool, pytest.raises(error, match=text):
        pool.map(abs, range(3), **options)


def test_out_has_no_place_for_exceptions() -> None:
    with WorkerPool(n_jobs=1) as pool, pytest.raises(ValueError, match="out and return_exceptions=True"):
        pool.map(numpy.sqrt, numpy.ones(3), out=numpy.ones(3), return_exceptions=True)


spans = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: range(min(pair), max(pair)))


@given(spans, spans)
def test_what_ranges_have_in_common_and_what_not(a: range, b: range) -> None:
    assert set(overlap(a, b)) == set(a) & set(b)
    rests = without([a], b)
    assert [x for rest in rests for x in rest] == sorted(set(a) - set(b))


def test_ordinals() -> None:
    numbers = (1, 2, 3, 4, 11, 12, 13, 21, 22, 103, 111)
    assert " ".join(map(ordinal, numbers)) == "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 103rd 111th"
