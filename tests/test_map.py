"""`map`: every kind of input, every way to cut it, and what comes back."""

from __future__ import annotations

import itertools
import operator
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from fastpool import WorkerPool

pytestmark = pytest.mark.usefixtures("by_default")


def identity(x: Any) -> Any:
    return x


def square(x: int) -> int:
    return x * x


def add(a: int, b: int = 100) -> int:
    return a + b


def kind_of(x: Any) -> str:
    return type(x).__name__


def count_arguments(*args: Any, **kwargs: Any) -> tuple[int, tuple[str, ...]]:
    return len(args), tuple(kwargs)


class Squares(Sequence[int]):
    """A user's own sequence."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: Any) -> Any:
        if i >= self.n:
            raise IndexError(i)
        return i * i


class OldSequence:
    """Iterable only by __getitem__."""

    def __getitem__(self, i: int) -> int:
        if i >= 7:
            raise IndexError
        return i


INPUTS: dict[str, Any] = {
    "empty range": range(0),
    "range": range(1000),
    "range down": range(500, -500, -3),
    "range beyond 64 bits": range(2**63 - 5, 2**63 + 5),
    "far range": range(10**30, 10**30 + 50),
    "list of int": list(range(3000)),
    "list of big int": [2**70 + i for i in range(50)],
    "list of float": [i / 7 for i in range(3000)],
    "mixed list": [1, 2.5, None, "x", b"y", True, 2**80, -1, "é", "\U0001f600"] * 20,
    "empty list": [],
    "tuple": (3, 1, 2),
    "str": "fastpool ünïcode",
    "bytes": b"\x00\xff\x10",
    "dict": {"a": 1, "b": 2},
    "dict keys": {"a": 1, "b": 2}.keys(),
    "dict values": {"a": 1, "b": 2}.values(),
    "set": {1, 2, 3},
    "own sequence": Squares(77),
    "old sequence": OldSequence(),
    "None": [None] * 10,
    "bool": [True, False] * 10,
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_kind_of_input(name: str) -> None:
    given = INPUTS[name]
    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(identity, given)
    expected = list(given)
    assert results == expected
    assert [type(x) for x in results] == [type(x) for x in expected]


def test_generators_and_iterators() -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(square, (i for i in range(1000))) == [i * i for i in range(1000)]
        assert pool.map(square, iter([1, 2, 3])) == [1, 4, 9]
        assert pool.map(square, iter([])) == []


def test_iterable_len_bounds_any_input() -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(square, itertools.count(), iterable_len=100) == [i * i for i in range(100)]
        assert pool.map(identity, range(10**30), iterable_len=10) == list(range(10))
        assert pool.map(identity, range(10**30, 0, -1), iterable_len=3) == [10**30 - i for i in range(3)]
        assert pool.map(identity, [1, 2, 3], iterable_len=2) == [1, 2]
        assert pool.map(identity, [1, 2, 3], iterable_len=50) == [1, 2, 3]
        assert pool.map(identity, iter([1, 2, 3]), iterable_len=50) == [1, 2, 3]
        assert pool.map(identity, itertools.count(), iterable_len=0) == []


def test_input_is_not_read_beyond_iterable_len() -> None:
    source = iter(range(100))
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(identity, source, iterable_len=10) == list(range(10))
    assert next(source) == 10


class Broken(Exception):
    pass


def breaking(n: int) -> Iterator[int]:
    yield from range(n)
    raise Broken("in the input")


@pytest.mark.parametrize("n", [0, 1, 10, 5000])
def test_input_that_raises_half_way(n: int) -> None:
    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(Broken, match="in the input"):
            pool.map(square, breaking(n))
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def test_a_length_that_is_wrong() -> None:
    class Liar(Squares):
        def __len__(self) -> int:
            return 5

    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(identity, Liar(20)) == [i * i for i in range(20)]


def test_list_that_changes_while_it_is_mapped() -> None:
    class Shrinking(list[int]):
        pass

    values = list(range(20000))

    def shrink() -> Iterator[int]:
        for i in values:
            yield i
            if i == 10:
                del values[100:]

    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(identity, shrink()) == list(range(100))


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ((1, 2), (2, ())),
        ([1, 2, 3], (3, ())),
        ({"a": 1}, (0, ("a",))),
        ({}, (0, ())),
        ((), (0, ())),
        (5, (1, ())),
        ("text", (1, ())),
        (b"bytes", (1, ())),
        (None, (1, ())),
        ({1, 2}, (2, ())),
        (range(4), (4, ())),
        (np.arange(3), (1, ())),
        (np.float64(2), (1, ())),
    ],
)
def test_elements_become_arguments(element: Any, expected: tuple[int, tuple[str, ...]]) -> None:
    with WorkerPool(n_jobs=1) as pool:
        assert pool.map(count_arguments, [element, element]) == [expected, expected]


def test_unpacking_into_the_function() -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(add, [(1, 2), [3, 4], {"a": 5, "b": 6}, 7]) == [3, 7, 11, 107]
        assert pool.map(divmod, [(i, 7) for i in range(100)]) == [divmod(i, 7) for i in range(100)]
        many = [tuple(range(n)) for n in (0, 1, 50, 1000)]
        assert pool.map(count_arguments, many) == [(len(args), ()) for args in many]


@pytest.mark.parametrize("function", [len, str.upper, "abc".__contains__, operator.itemgetter(0)])
def test_functions_that_are_not_python(function: Any) -> None:
    words = ["a", "bc", "abc", "x"]
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(function, words) == [function(word) for word in words]


def test_lambda_and_closure() -> None:
    k = 3
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(lambda x: x + k, range(10)) == list(range(3, 13))


@pytest.mark.parametrize("jobs", [1, 2, 3, 8])
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 2.5, 100, 10_000])
def test_chunk_sizes(jobs: int, chunk_size: float | None) -> None:
    expected = [i * i for i in range(300)]
    with WorkerPool(n_jobs=jobs, keep_alive=True) as pool:
        assert pool.map(square, range(300), chunk_size=chunk_size) == expected
        assert pool.map(square, list(range(300)), chunk_size=chunk_size) == expected
        assert pool.map(square, iter(range(300)), chunk_size=chunk_size) == expected


@pytest.mark.parametrize("n_splits", [1, 2, 7, 1000])
def test_n_splits(n_splits: int) -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(square, range(300), n_splits=n_splits) == [i * i for i in range(300)]
        assert pool.map(square, iter(range(300)), iterable_len=300, n_splits=n_splits) == [i * i for i in range(300)]


@pytest.mark.parametrize("method", ["map", "map_unordered", "imap", "imap_unordered"])
def test_n_splits_of_an_unknown_number_is_ignored(method: str) -> None:
    with WorkerPool(n_jobs=2) as pool:
        with pytest.warns(RuntimeWarning, match="n_splits is ignored") as caught:
            results = getattr(pool, method)(square, iter(range(300)), n_splits=3)
        assert sorted(results) == [i * i for i in range(300)]
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.filterwarnings("error")
def test_a_chunk_size_counts_rather_than_n_splits() -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(square, iter(range(300)), chunk_size=7, n_splits=3) == [i * i for i in range(300)]


def note_chunk(worker_id: int, x: int) -> tuple[int, int]:
    return worker_id, x


def test_chunk_size_is_what_a_worker_takes_at_a_time() -> None:
    with WorkerPool(n_jobs=2, pass_worker_id=True) as pool:
        for given in (range(60), list(range(60))):
            taken = pool.map(note_chunk, given, chunk_size=10)
            for start in range(0, 60, 10):
                assert len({worker for worker, _ in taken[start : start + 10]}) == 1


def late(values: Iterable[Any], first: int) -> Iterator[Any]:
    """Values of which the first come slowly."""
    for i, value in enumerate(values):
        if i < first:
            time.sleep(0.02)
        yield value


def test_no_chunk_is_larger_than_chunk_size_because_others_were_cut_short() -> None:
    """Elements that came slowly were chunks of their own. Nine arrays at once would not fit into shared memory."""
    arrays = (np.full(200_000, float(i)) for i in range(12))
    with WorkerPool(2, memory_limit=6 << 20) as pool:
        assert pool.map(np.max, late(arrays, 3), chunk_size=3) == [float(i) for i in range(12)]


def fail(x: int) -> int:
    raise LookupError(x)


def test_a_failure_does_not_wait_for_the_end_of_a_slow_input() -> None:
    with WorkerPool(2) as pool, pytest.raises(LookupError):
        pool.map(fail, late(itertools.count(), 10**9))


@pytest.mark.parametrize("active", [1, 2, 3, 10, 1000])
def test_max_tasks_active_bounds_how_far_the_input_is_read(active: int) -> None:
    read = 0
    seen: list[int] = []

    def counting() -> Iterator[int]:
        nonlocal read
        for i in range(500):
            read += 1
            yield i

    with WorkerPool(n_jobs=2) as pool:
        supervisor = pool._supervisor
        original = supervisor.sleep

        def sleep(grain: int, deadline_ns: int | None = None) -> None:
            seen.append(read - supervisor.collector.collected)
            original(grain, deadline_ns)

        supervisor.sleep = sleep  # type: ignore[method-assign]
        assert pool.map(identity, counting(), max_tasks_active=active) == list(range(500))
    assert seen
    assert max(seen) <= active


@pytest.mark.parametrize("active", [1, 2, 5, 64, 10**6])
def test_max_tasks_active_with_a_range(active: int) -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(square, range(2000), max_tasks_active=active) == [i * i for i in range(2000)]


def test_more_results_than_the_rings_hold() -> None:
    """Every ring is filled and read many times over, with items of every length."""
    texts = ["x" * (i % 977) for i in range(20_000)]
    with WorkerPool(n_jobs=3) as pool:
        assert pool.map(identity, texts) == texts


def test_many_maps_on_one_pool() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for n in range(100):
            assert pool.map(square, range(n)) == [i * i for i in range(n)]
    with WorkerPool(n_jobs=2) as pool:
        for n in range(20):
            assert pool.map(identity, list(range(n))) == list(range(n))


def test_results_are_an_ordinary_list() -> None:
    import gc

    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(identity, [(i,) for i in range(10)])
    assert gc.is_tracked(results)
    results.append(results)
    assert results.pop() is results


def test_map_within_a_task_of_a_nondaemonic_pool() -> None:
    def nested(n: int) -> int:
        with WorkerPool(n_jobs=2) as inner:
            return sum(inner.map(square, range(n)))

    with WorkerPool(n_jobs=2, daemon=False) as pool:
        assert pool.map(nested, range(8)) == [sum(i * i for i in range(n)) for n in range(8)]


def test_daemonic_nesting_is_refused_as_in_multiprocessing() -> None:
    def nested(n: int) -> list[int]:
        with WorkerPool(n_jobs=1, start_method="fork") as inner:
            return inner.map(square, range(n))

    with (
        WorkerPool(n_jobs=1, start_method="fork") as pool,
        pytest.raises(AssertionError, match="daemonic processes"),
    ):
        pool.map(nested, [3])
