"""Maps over a numpy array: cut along axis 0, joined again."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import own_segment, write_word
from test_arrays import identical, reading  # noqa: F401  (a fixture)

import fastpool
from fastpool import WorkerPool, _native
from fastpool.arrays import cut
from fastpool.supervisor import SLOW_READS

LARGE = 1_000_003  # rows of 8 bytes: more than fit into one chunk each, and no multiple of anything
REFUSE_READ = 32

by_default = pytest.mark.usefixtures("by_default")


def same(chunk: Any) -> Any:
    return chunk


def overwrite(chunk: Any) -> Any:
    result = chunk * 2
    chunk[...] = chunk[:0].dtype.type(0)
    return result


def length(chunk: Any) -> int:
    return len(chunk)


def in_one_row(chunk: Any) -> Any:
    return chunk.sum(axis=0, keepdims=True)


def even_rows(chunk: Any) -> Any:
    return chunk[chunk.astype(int) % 2 == 0]


def by_size(chunk: Any) -> Any:
    return chunk.astype(np.float32 if chunk[0] < LARGE / 2 else np.float64)


INPUTS: dict[str, Any] = {
    "large": np.arange(LARGE) + 0.5,
    "small": np.arange(100),
    "one row": np.arange(1),
    "no rows": np.zeros((0, 3)),
    "two dimensions": np.arange(3_000_000.0).reshape(-1, 3),
    "Fortran order": np.asfortranarray(np.arange(600_000.0).reshape(-1, 3)),
    "strided": np.arange(2_000_000)[::2],
    "backwards": np.arange(2_000_000)[::-1],
    "records": np.zeros(300_000, dtype=[("a", "i4"), ("b", "f8")]),
    "dates": np.arange(300_000).astype("M8[s]"),
    "text": np.arange(100_000).astype("U7"),
    "big endian": np.arange(300_000, dtype=">i4"),
    "bool": np.arange(3_000_000) % 3 == 0,
    "objects": np.array([1, "x", None, (1, 2)] * 50, dtype=object),
    "masked": np.ma.masked_greater(np.arange(1000), 500),
}


@by_default
@pytest.mark.parametrize("array", INPUTS.values(), ids=INPUTS.keys())
@pytest.mark.parametrize("keep_alive", [False, True], ids=["fresh", "kept"])
def test_chunks_come_back_joined(array: Any, keep_alive: bool) -> None:
    with WorkerPool(n_jobs=2, keep_alive=keep_alive) as pool:
        for _ in range(3 if keep_alive else 1):
            result = pool.map(same, array)
            assert type(result) is type(array)
            assert result.dtype == array.dtype
            assert result.shape == array.shape
            assert result.tolist() == array.tolist() if array.size < 10_000 else (result == array).all()


@pytest.mark.parametrize(
    ("rows", "options", "lengths"),
    [
        (16, {}, [2] * 8),
        (5, {}, [1] * 5),
        (10, {"n_splits": 3}, [3, 3, 4]),
        (10, {"chunk_size": 4}, [4, 4, 2]),
        (10, {"chunk_size": 2.5}, [3, 2, 3, 2]),
        (10, {"chunk_size": 4, "n_splits": 7}, [4, 4, 2]),
        (10, {"iterable_len": 6, "chunk_size": 4}, [4, 2]),
        (10, {"n_splits": 100}, [1] * 10),
        (0, {}, [0]),
    ],
)
def test_how_an_array_is_cut(rows: int, options: dict[str, Any], lengths: list[int]) -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(length, np.zeros(rows), **options) == lengths


def test_chunks_are_a_few_megabytes_at_most() -> None:
    starts = cut(10_000_000, 80_000_000, 2, None, None)
    assert max(np.diff(starts)) * 8 <= 2 << 20
    assert starts == cut(10_000_000, 80_000_000, 2, None, None)


def test_an_array_without_dimensions_is_refused() -> None:
    with WorkerPool(n_jobs=2) as pool, pytest.raises(TypeError, match="has no dimensions"):
        pool.map(same, np.array(5))


@by_default
def test_the_caller_does_not_see_that_a_chunk_was_overwritten(reading: str) -> None:  # noqa: F811
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        array = np.arange(LARGE)
        for _ in range(3):
            result = pool.map(overwrite, array)
            assert (array == np.arange(LARGE)).all()
            assert (result == 2 * array).all()
        assert (pool.map(overwrite, result) == 4 * array).all()  # an earlier result as input
        assert (result == 2 * array).all()


@by_default
def test_a_memory_map_on_a_file_is_not_written_to(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(LARGE))
    array = np.load(tmp_path / "a.npy", mmap_mode="r+")
    with WorkerPool(n_jobs=2) as pool:
        assert (pool.map(overwrite, array) == 2 * np.arange(LARGE)).all()
    assert (array == np.arange(LARGE)).all()


@by_default
def test_a_shared_input_is_written_to() -> None:
    shared = fastpool.asshared(np.arange(LARGE))
    with WorkerPool(n_jobs=2) as pool:
        assert (pool.map(overwrite, shared) == 2 * np.arange(LARGE)).all()
        assert not shared.any()


@pytest.mark.parametrize("keep_alive", [False, True], ids=["fresh", "kept"])
def test_large_results_are_written_in_place_by_workers(reading: str, keep_alive: bool) -> None:  # noqa: F811
    """Workers that come back write into warm shared memory, others into the caller's own, where they can."""
    array = np.arange(3.0 * LARGE)
    results = []
    with WorkerPool(n_jobs=2, keep_alive=keep_alive) as pool:
        for _ in range(4):
            results.append(pool.map(np.sqrt, array))
        assert pool._supervisor.collector.placed == len(cut(3 * LARGE, array.nbytes, 2, None, None)) - 1
        reaches = pool._supervisor.reach()
    assert reaches == (reading == "read by workers" and not _native.is_posix())
    assert (results[0].base is None) == reaches
    assert (results[-1].base is None) == (reaches and not keep_alive)
    for result in results:  # the pool is gone
        assert (result == np.sqrt(array)).all()
        result += 1


def move_the_plan(chunk: Any) -> Any:
    """Damage: results belong far behind the whole."""
    if "plan" in own_segment().areas():
        write_word("plan", 16, 1 << 40)  # row_bytes
    return np.sqrt(chunk)


@pytest.mark.skipif(_native.is_posix(), reason="in this build no process writes into another's private memory")
def test_workers_write_nowhere_but_into_the_result() -> None:
    array = np.arange(3.0 * LARGE)
    with WorkerPool(n_jobs=2) as pool:
        for _ in range(2):
            assert (pool.map(move_the_plan, array) == np.sqrt(array)).all()


def test_an_array_that_workers_share_since_their_fork_is_made_the_callers_alone() -> None:
    """When it was read in the slow way some times. Whatever the caller writes between maps is seen."""
    array = np.arange(float(LARGE))
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        pool.map(len, ["ab"] * 100)  # forks, which share the array's pages
        supervisor = pool._supervisor
        for turn in range(2 * SLOW_READS):
            array[turn] = -1
            assert (pool.map(np.negative, array) == -array).all()
            times = turn + 1 if supervisor.reach() and turn < SLOW_READS else 0  # then it is read at full speed
            assert supervisor._forked[1] == times


def test_the_memory_of_results_is_used_again() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        tops = []
        for _ in range(10):
            pool.map(np.sqrt, np.arange(float(LARGE)))
            tops.append(pool._supervisor.segment.heap(2)["top"])
    assert tops[-1] - tops[3] < 4 * LARGE, "half of a result"


CASES: list[tuple[Callable[[Any], Any], Callable[[Any], Any]]] = [
    (even_rows, even_rows),
    (lambda chunk: np.stack([chunk, chunk], axis=1), lambda a: np.stack([a, a], axis=1)),
    (lambda chunk: chunk.astype(np.int8), lambda a: a.astype(np.int8)),
    (lambda chunk: np.asfortranarray(np.stack([chunk, chunk], axis=1)), lambda a: np.stack([a, a], axis=1)),
    (lambda chunk: chunk[::-1][::-1], lambda a: a),
    (lambda chunk: (chunk + 1).reshape(-1, 1), lambda a: (a + 1).reshape(-1, 1)),
    (lambda chunk: np.zeros_like(chunk) + chunk, lambda a: a),
    (lambda chunk: (chunk + 1)[::-1], None),
    (by_size, None),
]


@by_default
@pytest.mark.parametrize("which", range(len(CASES)))
@pytest.mark.parametrize("memory_limit", [None, 1 << 20], ids=["", "little memory"])
def test_whatever_the_results_are_like(which: int, memory_limit: int | None) -> None:
    function, whole = CASES[which]
    array = np.arange(float(LARGE))
    starts = cut(LARGE, array.nbytes, 2, None, None, (memory_limit or 1 << 40) // 12)
    parts = [function(array[i:j]) for i, j in itertools.pairwise(starts)]
    expected = np.concatenate(parts) if whole is None else whole(array)
    with WorkerPool(n_jobs=2, keep_alive=True, memory_limit=memory_limit) as pool:
        for _ in range(2):
            result = pool.map(function, array)
            assert result.dtype == expected.dtype
            assert result.shape == expected.shape
            assert (result == expected).all()


@by_default
def test_the_list_without_joining() -> None:
    array = np.arange(float(LARGE))
    with WorkerPool(n_jobs=2) as pool:
        parts = pool.map(np.sqrt, array, concatenate_numpy_output=False)
    assert isinstance(parts, list)
    assert (np.concatenate(parts) == np.sqrt(array)).all()


@by_default
def test_results_that_are_no_arrays_come_as_a_list() -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(np.sum, np.arange(8), n_splits=2) == [6, 22]
        mixed = pool.map(lambda chunk: chunk if chunk[0] else "first", np.arange(8), n_splits=2)
    assert mixed[0] == "first"
    assert mixed[1].tolist() == [4, 5, 6, 7]


def large_or_none(chunk: Any) -> Any:
    return chunk + 1 if chunk[0] < LARGE * 0.8 else None


@by_default
def test_one_result_of_many_is_no_array() -> None:
    with WorkerPool(n_jobs=2) as pool:
        parts = pool.map(large_or_none, np.arange(float(LARGE)))
    starts = cut(LARGE, LARGE * 8, 2, None, None)
    for part, first in zip(parts, starts, strict=False):
        assert part is None if first >= LARGE * 0.8 else part[0] == first + 1


@by_default
def test_results_that_cannot_be_joined() -> None:
    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(ValueError, match="concatenate_numpy_output=False returns the list"):
            pool.map(lambda chunk: np.zeros((2, int(chunk[0]) + 1)), np.arange(8))
        assert pool.map(in_one_row, np.arange(8)).sum() == 28


# ---------------------------------------------------------------- results that workers keep


def keep_result(worker_state: dict[str, Any], chunk: Any) -> Any:
    result = chunk + 1
    for former in worker_state.setdefault("kept", []):
        former[...] = -1
    worker_state["kept"].append(result)
    return result


def keep_intermediate(worker_state: dict[str, Any], chunk: Any) -> Any:
    intermediate = chunk + 1
    for former in worker_state.setdefault("kept", []):
        former[...] = -1
    worker_state["kept"].append(intermediate)
    return intermediate + 0


def keep_and_check(worker_state: dict[str, Any], chunk: Any) -> Any:
    for value, former in worker_state.setdefault("kept", []):
        assert (former == value).all(), "an object of the worker's was overwritten"
    intermediate = np.full(chunk.shape, chunk[0])
    worker_state["kept"].append((chunk[0], intermediate))
    return chunk + 1


@pytest.mark.parametrize("function", [keep_result, keep_intermediate, keep_and_check])
@pytest.mark.parametrize("keep_alive", [False, True], ids=["fresh", "kept"])
def test_what_a_worker_keeps_and_what_the_caller_gets_are_apart(function: Callable[..., Any], keep_alive: bool) -> None:
    array = np.arange(2.0 * LARGE)
    results = []
    with WorkerPool(n_jobs=2, use_worker_state=True, keep_alive=keep_alive) as pool:
        for _ in range(3):
            results.append(pool.map(function, array, chunk_size=60_000))
            assert all((result == array + 1).all() for result in results)


# ---------------------------------------------------------------- out


@by_default
def test_out(reading: str) -> None:  # noqa: F811
    array = np.arange(float(LARGE))
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for out in (np.empty(LARGE), fastpool.empty(LARGE), np.empty(2 * LARGE)[::2], np.empty(LARGE, np.complex128)):
            for source in (array, fastpool.asshared(array)):
                out[...] = -1
                assert pool.map(np.sqrt, source, out=out) is out
                assert (out == np.sqrt(array)).all()


def test_a_shared_out_is_written_by_workers() -> None:
    out = fastpool.empty(LARGE)
    with WorkerPool(n_jobs=2) as pool:
        pool.map(np.sqrt, np.arange(float(LARGE)), out=out)
        assert pool._supervisor.collector.placed == 8


@by_default
def test_input_and_out_may_be_the_same_shared_array() -> None:
    array = fastpool.asshared(np.arange(float(LARGE)))
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(np.sqrt, array, out=array) is array
    assert (array == np.sqrt(np.arange(float(LARGE)))).all()


def five_times(chunk: Any) -> Any:
    return chunk * 2 + chunk * 3


def twice_in_place(chunk: Any) -> Any:
    chunk *= 2
    return chunk


def five_times_at_the_second_try(counter: Any, chunk: Any) -> Any:
    result = chunk * 2
    if counter[0] == 0:
        counter[0] = 1
        os.kill(os.getpid(), signal.SIGKILL)
    result += chunk * 3
    return result


@by_default
@pytest.mark.parametrize("rows", [8, 300_000, LARGE])
@pytest.mark.parametrize(("task", "factor"), [(five_times, 5), (twice_in_place, 2)])
def test_what_a_task_computes_on_its_way_does_not_lie_in_its_input(task: Any, factor: int, rows: int) -> None:
    numbers = np.arange(float(rows))
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(3):
            array = fastpool.asshared(numbers)
            assert pool.map(task, array, out=array) is array
            assert (array == factor * numbers).all()


def test_a_task_that_is_tried_again_finds_its_input_as_it_was() -> None:
    numbers = np.arange(float(LARGE))
    array, counter = fastpool.asshared(numbers), fastpool.asshared(np.zeros(1))
    with WorkerPool(n_jobs=2, shared_objects=counter) as pool:
        pool.map(five_times_at_the_second_try, array, out=array, retries=1)
    assert counter[0] == 1
    assert (array == 5 * numbers).all()


@by_default
@pytest.mark.parametrize("rows", [10, LARGE])
def test_the_whole_has_the_type_of_its_parts(rows: int) -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(same, np.arange(rows).astype(">i4")).dtype.byteorder == ">"
        assert pool.map(by_size, np.arange(float(LARGE))).dtype == np.float64


@pytest.mark.parametrize(
    ("array", "options", "error", "match"),
    [
        (np.arange(8), {"out": [0] * 8}, TypeError, "out must be a numpy array or None, not list"),
        ([1, 2], {"out": np.zeros(2)}, ValueError, "out is for maps over a numpy array"),
        (np.arange(8), {"out": np.zeros(8), "concatenate_numpy_output": False}, ValueError, "exclude each other"),
        (np.arange(8), {"out": np.broadcast_to(0.0, 8)}, ValueError, "out must be writeable"),
        (np.arange(8), {"concatenate_numpy_output": 1}, TypeError, "concatenate_numpy_output must be a bool, not int"),
    ],
)
def test_bad_options(array: Any, options: dict[str, Any], error: type[Exception], match: str) -> None:
    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(error, match=match):
            pool.map(same, array, **options)
        assert pool._supervisor._segment is None, "something was started"


@by_default
def test_an_out_that_does_not_fit() -> None:
    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(ValueError, match=r"out has shape \(9,\), but the results together have \(8,\)"):
            pool.map(same, np.arange(8), out=np.zeros(9, int))
        with pytest.raises(TypeError, match="Cannot cast"):
            pool.map(same, np.arange(8.0), out=np.zeros(8, int))
        with pytest.raises(TypeError, match="out needs results that are arrays, and one is int"):
            pool.map(length, np.arange(8), out=np.zeros(8, int))


# ---------------------------------------------------------------- deaths


def die_at_the_end(chunk: Any) -> Any:
    if chunk[-1] == LARGE - 1:
        import os

        os._exit(3)
    return chunk + 1


def test_a_death_in_a_map_over_an_array() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        with pytest.raises(fastpool.WorkerDiedError, match="exited with status 3"):
            pool.map(die_at_the_end, np.arange(LARGE))
        assert (pool.map(np.negative, np.arange(LARGE)) == -np.arange(LARGE)).all()


@by_default
def test_workers_with_a_lifespan() -> None:
    array = np.arange(float(LARGE))
    with WorkerPool(n_jobs=2) as pool:
        assert (pool.map(np.sqrt, array, worker_lifespan=1) == np.sqrt(array)).all()


def test_without_a_way_to_read_the_parents_memory() -> None:
    _native.refuse(REFUSE_READ)
    try:
        array = np.arange(float(LARGE))
        with WorkerPool(n_jobs=2, keep_alive=True) as pool:
            for _ in range(3):
                assert (pool.map(np.sqrt, array) == np.sqrt(array)).all()
            assert pool._supervisor.can_read is False
    finally:
        _native.refuse(0)


# ---------------------------------------------------------------- results that lie in their places in other ways


def in_columns(chunk: Any) -> Any:
    made = np.empty(chunk.shape, order="F")
    made[...] = chunk
    return made


def turned_over(chunk: Any) -> Any:
    made = np.empty_like(chunk, order="C")
    made[::-1] = chunk
    return made[::-1]


def as_one_column(chunk: Any) -> Any:
    return (chunk[:, :1] * 1.0).reshape(-1, 1)


@by_default
@pytest.mark.parametrize("function", [np.asfortranarray, in_columns, turned_over, np.copy])
@pytest.mark.parametrize("keep_alive", [False, True], ids=["fresh", "kept"])
def test_results_of_another_order(function: Callable[..., Any], keep_alive: bool) -> None:
    plain = np.arange(2.0 * LARGE).reshape(-1, 2)
    shared = fastpool.asshared(np.arange(2.0 * LARGE).reshape(2, -1)).T
    out = fastpool.empty(plain.shape, plain.dtype)
    with WorkerPool(n_jobs=2, keep_alive=keep_alive) as pool:
        for array in (plain, shared, plain):
            assert identical(pool.map(function, array), np.ascontiguousarray(array))
            pool.map(function, array, out=out)
            assert (out == array).all()


@pytest.mark.parametrize("function", [as_one_column, turned_over])
def test_a_view_of_a_fresh_array_is_born_in_place(function: Callable[..., Any]) -> None:
    array = np.arange(2.0 * LARGE).reshape(-1, 2)
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(6):
            pool.map(function, array)
        segment = pool._supervisor.segment
        assert segment.heap(segment.lanes)["bytes_used"] < array.nbytes


kept: Any = None


def keep_the_latest(chunk: Any) -> Any:
    global kept
    kept = chunk * 2
    return kept


def test_what_workers_keep_costs_memory_once() -> None:
    array = np.arange(float(LARGE))
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(6):
            assert (pool.map(keep_the_latest, array) == array * 2).all()
        segment = pool._supervisor.segment
        assert segment.heap(segment.lanes)["bytes_used"] < 2 * array.nbytes


def test_kept_results_leave_room_for_arguments() -> None:
    array = np.arange(500_000.0)
    with WorkerPool(n_jobs=2, keep_alive=True, memory_limit=64 << 20) as pool:
        results = [pool.map(np.negative, array) for _ in range(40)]
        assert pool.map(len, ["x" * 1_000_000] * 3) == [1_000_000] * 3
        assert sum(pool.map(len, ["x" * 1000] * 10_000)) == 10_000_000
        assert all((result == -array).all() for result in results)


@pytest.mark.parametrize(
    ("given", "into"),
    [(slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1)), (slice(None, None, -1), slice(None))],
)
@by_default
def test_an_out_over_other_rows_of_the_input(given: slice, into: slice) -> None:
    shared = fastpool.asshared(np.arange(float(LARGE)))
    expected = shared[given] * 2
    with WorkerPool(n_jobs=2) as pool:
        pool.map(double, shared[given], out=shared[into])
    assert (shared[into] == expected).all()


def double(chunk: Any) -> Any:
    return chunk * 2


def masked_threes(chunk: Any) -> Any:
    return np.ma.masked_equal(chunk, 3)


@by_default
def test_masks_and_out() -> None:
    array = np.arange(6.0)
    with WorkerPool(n_jobs=2) as pool:
        out = np.ma.masked_all(6)
        assert pool.map(masked_threes, array, out=out) is out
        assert out.mask.tolist() == [False, False, False, True, False, False]
        assert out.compressed().tolist() == [0, 1, 2, 4, 5]
        out = np.ma.masked_all(6)
        pool.map(double, array, out=out)
        assert not np.ma.is_masked(out)
        assert (out == array * 2).all()
        with pytest.raises(TypeError, match="out must be a masked array"):
            pool.map(masked_threes, array, out=np.empty(6))
        with pytest.raises(TypeError, match="float64 cannot be put into an out of type int64"):
            pool.map(double, array, out=np.ma.zeros(6, dtype="i8"))
