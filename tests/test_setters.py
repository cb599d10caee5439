"""Options that are set between two calls, and workers that were started with others."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastpool import WorkerPool


def arguments(*given: Any) -> tuple[int, tuple[Any, ...]]:
    return threading.get_native_id(), given


def goodbye(*given: Any) -> tuple[str, tuple[Any, ...]]:
    return "goodbye", given


def other_goodbye(*given: Any) -> str:
    return "another"


def other_init(*given: Any) -> None:
    return None


def restarts(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if "workers are restarted" in record.getMessage()]
    caplog.clear()
    return found


def pids_and_arguments(pool: WorkerPool, **options: Any) -> tuple[set[int], list[tuple[Any, ...]]]:
    results = pool.map(arguments, [7, 8, 9], chunk_size=1, **options)
    return {pid for pid, _ in results}, [given for _, given in results]


SETTERS: list[tuple[str, Any, str, tuple[Any, ...]]] = [
    ("pass_on_worker_id", True, "pass_worker_id", (0,)),
    ("set_shared_objects", "shared", "shared_objects", ("shared",)),
    ("set_use_worker_state", True, "use_worker_state", ({},)),
]


@pytest.mark.parametrize(("setter", "value", "option", "leading"), SETTERS, ids=[name for name, *_ in SETTERS])
def test_what_workers_depend_on_restarts_them(
    setter: str, value: Any, option: str, leading: tuple[Any, ...], start_method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastpool")
    with WorkerPool(1, keep_alive=True, start_method=start_method) as pool:
        change: Callable[[Any], None] = getattr(pool, setter)
        before, given = pids_and_arguments(pool, worker_exit=goodbye)
        assert given == [(7,), (8,), (9,)]
        change(value)
        assert restarts(caplog) == []  # not before the next call
        after, given = pids_and_arguments(pool, worker_exit=goodbye)
        assert given == [(*leading, 7), (*leading, 8), (*leading, 9)]
        assert not before & after
        assert restarts(caplog) == [f"workers are restarted: {option} has been set anew"]
        assert pool.get_exit_results() == [("goodbye", ())]  # of the first worker
        change(value)
        assert pids_and_arguments(pool, worker_exit=goodbye)[0] == after
        assert restarts(caplog) == []
        pool.stop_and_join()
        assert pool.get_exit_results() == [("goodbye", ()), ("goodbye", leading)]


def test_all_together_are_one_restart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastpool")
    with WorkerPool(1, keep_alive=True) as pool:
        pids_and_arguments(pool)
        pool.pass_on_worker_id()
        pool.set_use_worker_state()
        pool.set_shared_objects([1])
        assert pids_and_arguments(pool)[1][0] == (0, [1], {}, 7)
        [line] = restarts(caplog)
        assert "shared_objects, pass_worker_id, use_worker_state" in line
        pool.pass_on_worker_id(False)
        pool.set_use_worker_state(False)
        pool.set_shared_objects()
        assert pids_and_arguments(pool)[1][0] == (7,)


def test_set_and_set_back_restarts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastpool")
    with WorkerPool(1, keep_alive=True) as pool:
        before, _ = pids_and_arguments(pool)
        pool.pass_on_worker_id()
        pool.pass_on_worker_id(False)
        assert pids_and_arguments(pool)[0] == before
    assert restarts(caplog) == []


def test_the_same_object_restarts_nothing_and_is_what_it_was(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastpool")
    shared = [1]
    with WorkerPool(1, keep_alive=True, shared_objects=shared) as pool:
        before, _ = pids_and_arguments(pool)
        shared.append(2)
        pool.set_shared_objects(shared)
        assert pids_and_arguments(pool) == (before, [([1], 7), ([1], 8), ([1], 9)])
        pool.set_shared_objects([1, 2])
        assert pids_and_arguments(pool)[1][0] == ([1, 2], 7)


def test_without_workers_nothing_is_restarted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastpool")
    with WorkerPool(1) as pool:
        pids_and_arguments(pool)
        pool.pass_on_worker_id()
        assert pids_and_arguments(pool)[1][0] == (0, 7)
    assert restarts(caplog) == []


def test_restarted_workers_run_the_new_init_without_a_warning() -> None:
    with WorkerPool(1, keep_alive=True) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        pids_and_arguments(pool, worker_exit=goodbye)
        pool.pass_on_worker_id()
        pids_and_arguments(pool, worker_init=other_init, worker_exit=other_goodbye)
        pool.stop_and_join()
        assert pool.get_exit_results() == [("goodbye", ()), "another"]


def fail(*given: Any) -> None:
    raise ValueError("in exit")


def test_an_exit_function_that_fails_at_the_restart() -> None:
    with WorkerPool(1, keep_alive=True) as pool:
        pids_and_arguments(pool, worker_exit=fail)
        pool.pass_on_worker_id()
        with pytest.raises(ValueError, match="in exit"):
            pids_and_arguments(pool)
        assert pids_and_arguments(pool)[1][0] == (0, 7)


def test_keep_alive_takes_effect_at_the_next_map() -> None:
    with WorkerPool(1) as pool:
        pids_and_arguments(pool, worker_exit=goodbye)
        assert len(pool.get_exit_results()) == 1
        pool.set_keep_alive()
        first, _ = pids_and_arguments(pool, worker_exit=goodbye)
        assert pool.get_exit_results() == []
        pool.set_keep_alive(False)
        second, _ = pids_and_arguments(pool, worker_exit=goodbye)
        assert first == second
        assert len(pool.get_exit_results()) == 1
        assert pids_and_arguments(pool)[0] != first


@pytest.mark.parametrize(
    "setter", ["pass_on_worker_id", "set_shared_objects", "set_use_worker_state", "set_keep_alive", "set_order_tasks"]
)
def test_not_while_a_map_runs(setter: str) -> None:
    with WorkerPool(1) as pool:

        def numbers() -> Iterator[int]:
            yield 1
            with pytest.raises(RuntimeError, match="busy"):
                getattr(pool, setter)()
            yield 2

        assert pool.map(abs, numbers()) == [1, 2]
