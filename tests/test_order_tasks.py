"""order_tasks: chunk i goes to worker i modulo n_jobs, from worker 0 in every call."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from fastpool import WorkerDiedError, WorkerPool


def who(worker_id: int, x: Any) -> tuple[int, Any]:
    return worker_id, x


def make_pool(n_jobs: int, **options: Any) -> WorkerPool:
    return WorkerPool(n_jobs, pass_worker_id=True, order_tasks=True, **options)


def in_turn(values: list[Any], n_jobs: int, size: int = 1) -> list[tuple[int, Any]]:
    return [(i // size % n_jobs, value) for i, value in enumerate(values)]


INPUTS = {
    "range": lambda n: range(n),
    "list": lambda n: list(range(n)),
    "iterator": lambda n: iter(range(n)),
    "dicts": lambda n: [{"x": x} for x in range(n)],
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("n_jobs", [1, 2, 3, 5])
@pytest.mark.parametrize("keep_alive", [False, True])
def test_every_chunk_has_its_worker(kind: str, n_jobs: int, keep_alive: bool) -> None:
    with make_pool(n_jobs, keep_alive=keep_alive) as pool:
        for n, size in [(100, 1), (1, 1), (4, 1), (0, 1), (100, 7), (3000, 1)]:  # more than there are slots for chunks
            expected = in_turn(list(range(n)), n_jobs, size)
            assert pool.map(who, INPUTS[kind](n), chunk_size=size) == expected


def test_however_workers_start(start_method: str) -> None:
    with make_pool(2, start_method=start_method, keep_alive=True) as pool:
        for _ in range(2):
            assert pool.map(who, range(20), chunk_size=3) == in_turn(list(range(20)), 2, 3)


def test_splits() -> None:
    with make_pool(2) as pool:
        assert pool.map(who, range(8), n_splits=2) == in_turn(list(range(8)), 2, 4)


def test_sizes_by_measured_speed_are_in_turn_too() -> None:
    with make_pool(3) as pool:
        found = pool.map(who, range(20_000))
    assert [x for _, x in found] == list(range(20_000))
    workers = [worker_id for worker_id, _ in found]
    changes = [worker_id for i, worker_id in enumerate(workers) if i == 0 or workers[i - 1] != worker_id]
    assert changes == [i % 3 for i in range(len(changes))]
    assert len(changes) > 3


def who_of_rows(worker_id: int, rows: Any) -> Any:
    return numpy.full(len(rows), worker_id)


def test_a_map_over_an_array() -> None:
    with make_pool(2) as pool:
        found = pool.map(who_of_rows, numpy.zeros(100), chunk_size=10)
    assert found.tolist() == [i // 10 % 2 for i in range(100)]


def slow_first(worker_id: int, x: int) -> tuple[int, int]:
    if x == 0:
        time.sleep(0.3)
    return worker_id, x


@pytest.mark.parametrize("options", [{}, {"max_tasks_active": 1}, {"max_tasks_active": 4}])
def test_a_slow_worker_gets_its_chunks_all_the_same(options: dict[str, Any]) -> None:
    with make_pool(2) as pool:
        assert pool.map(slow_first, range(200), chunk_size=1, **options) == in_turn(list(range(200)), 2)


@pytest.mark.parametrize("method", ["map", "imap"])
@pytest.mark.parametrize("options", [{}, {"max_tasks_active": 5}, {"retries": 1}])
def test_a_slow_input_changes_no_chunk(method: str, options: dict[str, Any]) -> None:
    """Elsewhere a chunk is cut short for elements that come slowly."""

    def numbers() -> Iterator[int]:
        for x in range(22):
            time.sleep(0.01)
            yield x

    with make_pool(2) as pool:
        found = list(getattr(pool, method)(who, numbers(), chunk_size=3, **options))
    assert found == in_turn(list(range(22)), 2, 3)


def test_an_endless_input_is_read_no_further_than_without() -> None:
    read = []

    def numbers() -> Iterator[int]:
        for x in range(300):
            read.append(x)
            yield x

    def ahead(worker_id: int, x: int) -> int:
        time.sleep(0.001)
        return x

    with make_pool(2) as pool:
        assert pool.map(ahead, numbers(), iterable_len=150, chunk_size=1) == list(range(150))
    assert len(read) == 150


def test_all_workers_that_have_a_chunk_are_started() -> None:
    with make_pool(4, keep_alive=True) as pool:
        assert pool.map(who, [0, 1, 2], chunk_size=1) == in_turn([0, 1, 2], 4)
        assert pool._supervisor.living == 3
        assert pool.map(who, range(8), chunk_size=2) == in_turn(list(range(8)), 4, 2)
        assert pool._supervisor.living == 4


def pid_and_who(worker_id: int, x: int) -> tuple[int, int, int]:
    return os.getpid(), worker_id, x


@pytest.mark.parametrize("lifespan", [1, 3])
def test_successors_go_on_in_the_place_of_their_predecessors(lifespan: int) -> None:
    with make_pool(2) as pool:
        found = pool.map(pid_and_who, range(24), chunk_size=1, worker_lifespan=lifespan)
    assert [rest for _, *rest in found] == [list(one) for one in in_turn(list(range(24)), 2)]
    assert len({pid for pid, *_ in found}) == 24 // lifespan


def test_a_later_map_begins_at_worker_0_and_another_setting_holds_for_the_next_map() -> None:
    with make_pool(2, keep_alive=True) as pool:
        for _ in range(3):
            assert pool.map(who, [7], chunk_size=1) == [(0, 7)]
        pool.set_order_tasks(False)
        assert [x for _, x in pool.map(who, range(50), chunk_size=1)] == list(range(50))
        pool.set_order_tasks()
        assert pool.map(who, range(50), chunk_size=1) == in_turn(list(range(50)), 2)


# ---------------------------------------------------------------- deaths and errors


def die_once(worker_id: int, path: str, x: int) -> tuple[int, int]:
    if x % 20 == 7:
        try:
            with open(f"{path}/{x}", "x"):
                os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
    return worker_id, x


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("keep_alive", [False, True])
def test_retries(tmp_path: Any, size: int, keep_alive: bool) -> None:
    n = 120
    with make_pool(3, shared_objects=str(tmp_path), keep_alive=keep_alive) as pool:
        found = pool.map(die_once, range(n), chunk_size=size, retries=1)
        assert found == in_turn(list(range(n)), 3, size)
        assert len(list(tmp_path.iterdir())) == 6
        assert pool.map(die_once, range(6), chunk_size=1) == in_turn(list(range(6)), 3)


def test_a_death_without_retries_names_the_tasks() -> None:
    with make_pool(2) as pool:
        with pytest.raises(WorkerDiedError) as caught:
            pool.map(lambda worker_id, x: os._exit(1) if x == 5 else x, range(20), chunk_size=2)
        assert caught.value.tasks == range(5, 6)
        assert caught.value.worker_id == 0
        assert pool.map(who, range(6), chunk_size=1) == in_turn(list(range(6)), 2)


def test_exceptions_in_the_place_of_results() -> None:
    with make_pool(2) as pool:
        found = pool.map(lambda worker_id, x: (worker_id, 6 // x), range(4), chunk_size=1, return_exceptions=True)
    assert isinstance(found[0], ZeroDivisionError)
    assert found[1:] == [(1, 6), (0, 3), (1, 2)]
