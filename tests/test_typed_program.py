"""A program with types that uses all of the public interface. `make types` has mypy and pyright check it, strictly."""

# pyright: strict

from __future__ import annotations

import ast
import inspect
import pickle
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fastpool
from fastpool import (
    AsyncResult,
    DamagedMemoryError,
    FastpoolError,
    RemoteError,
    SerializationError,
    WorkerDiedError,
    WorkerPool,
    WorkerTimeoutError,
    asshared,
    chunk_tasks,
    cpu_count,
    empty,
    make_single_arguments,
)

Floats = npt.NDArray[np.float64]


def add(worker_id: int, shared: list[int], state: dict[str, Any], x: int) -> int:
    state["done"] = state.get("done", 0) + 1
    return shared[0] + x


def finish(worker_id: int, shared: list[int], state: dict[str, Any]) -> int:
    done: int = state["done"]
    return done


def double(x: int) -> int:
    return 2 * x


def half(rows: Floats) -> Floats:
    return rows / 2


def inverse(x: int) -> float:
    return 1 / x


def test_a_pool_and_its_options() -> None:
    pool: WorkerPool
    with WorkerPool(
        n_jobs=2,
        daemon=True,
        cpu_ids=None,
        shared_objects=[1],
        pass_worker_id=True,
        use_worker_state=True,
        start_method="fork",
        keep_alive=False,
        use_dill=False,
        enable_insights=True,
        order_tasks=False,
        memory_limit=1 << 28,
    ) as pool:
        context: BaseContext = pool.ctx
        assert context.get_start_method() == "fork"
        results: list[int] = pool.map(add, range(4), worker_exit=finish, chunk_size=1.5, task_timeout=60)
        assert results == [1, 2, 3, 4]
        exits: list[Any] = pool.get_exit_results()
        assert sum(exits) == 4
        insights: dict[str, Any] = pool.get_insights()
        assert sum(insights["n_completed_tasks"]) == 4
        pool.print_insights()
        pool.pass_on_worker_id(False)
        pool.set_shared_objects(None)
        pool.set_use_worker_state(False)
        pool.set_keep_alive(True)
        pool.set_order_tasks(True)
        assert pool.map(double, [1, 2]) == [2, 4]
        pool.stop_and_join()
        pool.join()
        pool.terminate()


def test_maps() -> None:
    with WorkerPool(min(2, cpu_count()), keep_alive=True) as pool:
        unordered: list[int] = pool.map_unordered(double, range(3), retries=1, always_exit=True)
        assert sorted(unordered) == [0, 2, 4]
        ordered: Iterator[int] = pool.imap(double, iter([1, 2]), iterable_len=2, max_tasks_active=2)
        assert next(ordered) == 2
        assert list(ordered) == [4]
        lazy: Iterator[int] = pool.imap_unordered(double, make_single_arguments([1, 2]), n_splits=1, iterable_len=2)
        assert sorted(lazy) == [2, 4]
        mixed: list[float | Exception] = pool.map(inverse, [2, 0], return_exceptions=True)
        assert mixed[0] == 0.5
        assert isinstance(mixed[1], ZeroDivisionError)


def test_single_calls() -> None:
    with WorkerPool(2) as pool:
        assert pool.apply(double, (3,)) == 6
        done: list[int] = []
        coming: AsyncResult = pool.apply_async(double, 4, callback=done.append, task_timeout=60)
        coming.wait(60)
        pool.stop_and_join(keep_alive=True)
        value: int = coming.get(timeout=60)
        states: tuple[bool, bool] = (coming.ready(), coming.successful())
        assert (value, states) == (8, (True, True))


def test_arrays() -> None:
    numbers: Floats = asshared(np.arange(6.0))
    out: Floats = empty((6,), np.float64)
    with WorkerPool(2) as pool:
        joined: Floats = pool.map(half, numbers, out=out)
        parts: list[Floats] = pool.map(half, numbers, concatenate_numpy_output=False, n_splits=3)
    assert joined is out
    assert len(parts) == 3
    chunks: Iterator[Any] = chunk_tasks(range(5), chunk_size=2)
    assert list(chunks) == [(0, 1), (2, 3), (4,)]


def test_errors() -> None:
    with WorkerPool(2) as pool, pytest.raises(ZeroDivisionError) as caught:
        pool.map(inverse, [0])
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteError)
    where: tuple[int, str, int | None, str, str] = (
        cause.worker_id,
        cause.phase,
        cause.task,
        cause.arguments,
        cause.traceback,
    )
    assert where[2] == 0


def caught(error: FastpoolError) -> object:
    """What fields have which types."""
    if isinstance(error, WorkerDiedError):
        died: tuple[int, int, int | None, str, range, str, int] = (
            error.worker_id,
            error.pid,
            error.exitcode,
            error.state,
            error.tasks,
            error.start_method,
            error.tries,
        )
        as_builtin: RuntimeError = error
        return died, as_builtin
    if isinstance(error, WorkerTimeoutError):
        late: tuple[int, int, str, str, float, int | None] = (
            error.worker_id,
            error.pid,
            error.phase,
            error.function,
            error.limit,
            error.task,
        )
        as_timeout: TimeoutError = error
        return late, as_timeout
    if isinstance(error, SerializationError):
        unsent: tuple[str, int | None, int | None, bool] = (error.what, error.task, error.worker_id, error.use_dill)
        as_pickling: pickle.PicklingError = error
        return unsent, as_pickling
    if isinstance(error, DamagedMemoryError):
        damage: str = error.what
        return damage
    return None


def test_fields_of_errors() -> None:
    assert caught(DamagedMemoryError("a ring")) == "a ring"
    assert caught(WorkerTimeoutError(0, 1, "task", "f", 1.5, 3))
    assert caught(WorkerDiedError(0, 1, None, "running", range(2)))
    assert caught(SerializationError("result", 1, None, "no"))


def test_nothing_public_is_missing_here() -> None:
    tree = ast.parse(Path(__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    public = {name for name, _ in inspect.getmembers(WorkerPool) if not name.startswith("_")}
    assert public | set(fastpool.__all__) <= used
