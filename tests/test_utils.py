"""chunk_tasks and make_single_arguments, beside mpire's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastpool
from fastpool import WorkerPool, chunk_tasks, make_single_arguments, utils


def test_they_are_where_mpire_has_them() -> None:
    assert fastpool.chunk_tasks is utils.chunk_tasks
    assert fastpool.make_single_arguments is utils.make_single_arguments


@given(
    kind=st.sampled_from([list, numpy.array, iter]),
    n=st.integers(0, 60),
    limit=st.none() | st.integers(0, 70),
    size=st.none() | st.integers(1, 20) | st.floats(1, 20),
    splits=st.none() | st.integers(1, 70),
)
def test_the_chunks_are_those_of_mpire(kind: Any, n: int, limit: Any, size: Any, splits: Any) -> None:
    theirs = pytest.importorskip("mpire.utils").chunk_tasks
    elements = list(range(n))
    try:  # mpire does not cut an array of more than `limit` rows
        expected = [list(chunk) for chunk in theirs(iter(elements) if kind is iter else elements, limit, size, splits)]
    except ValueError:
        with pytest.raises(ValueError, match="n_splits"):
            chunk_tasks(kind(elements), limit, size, splits)
    else:
        assert [list(chunk) for chunk in chunk_tasks(kind(elements), limit, size, splits)] == expected


@pytest.mark.parametrize(
    ("n", "options", "sizes"),
    [
        (10, {"chunk_size": 3}, [3, 3, 3, 1]),
        (10, {"chunk_size": 2.5}, [3, 2, 3, 2]),
        (10, {"n_splits": 4}, [3, 2, 3, 2]),
        (3, {"n_splits": 5}, [1, 1, 1]),
        (10, {"chunk_size": 4, "n_splits": 10}, [4, 4, 2]),
        (10, {"iterable_len": 5, "n_splits": 2}, [3, 2]),
        (0, {"n_splits": 2}, []),
        (5, {"chunk_size": 10**30}, [5]),
    ],
)
def test_sizes(n: int, options: dict[str, Any], sizes: list[int]) -> None:
    chunks = list(chunk_tasks(range(n), **options))
    assert [len(chunk) for chunk in chunks] == sizes
    assert [element for chunk in chunks for element in chunk] == list(range(sum(sizes)))


def test_slices_of_an_array_are_views() -> None:
    array = numpy.zeros((5, 2))
    chunks = list(chunk_tasks(array, n_splits=2))
    assert [chunk.shape for chunk in chunks] == [(3, 2), (2, 2)]
    assert all(chunk.base is array or chunk.base is array.base for chunk in chunks)
    chunks[1][:] = 7
    assert array[3:].tolist() == [[7, 7], [7, 7]]


def test_the_input_is_read_lazily_and_no_further() -> None:
    read = []

    def numbers() -> Iterator[int]:
        for x in range(100):
            read.append(x)
            yield x

    chunks = chunk_tasks(numbers(), iterable_len=5, chunk_size=2)
    assert read == []
    assert next(chunks) == (0, 1)
    assert read == [0, 1]
    assert list(chunks) == [(2, 3), (4,)]
    assert read == [0, 1, 2, 3, 4]


class ByIndex:
    def __getitem__(self, index: int) -> int:
        if index >= 3:
            raise IndexError
        return index


def test_an_input_that_has_only_indices() -> None:
    assert list(chunk_tasks(ByIndex(), chunk_size=2)) == [(0, 1), (2,)]
    assert list(make_single_arguments(ByIndex())) == [(0,), (1,), (2,)]


def test_single_arguments_are_those_of_mpire() -> None:
    theirs = pytest.importorskip("mpire.utils").make_single_arguments
    for values in ([], [1, (2, 3), {"a": 4}, None, "five"]):
        assert list(make_single_arguments(values)) == list(theirs(values))
        assert make_single_arguments(values, False) == theirs(values, False)
        assert isinstance(make_single_arguments(values), Iterator)
    [(row,), *_] = make_single_arguments(numpy.arange(4).reshape(2, 2))
    assert row.tolist() == [0, 1]


def test_single_arguments_are_not_unpacked() -> None:
    with WorkerPool(1) as pool:
        assert pool.map(repr, make_single_arguments([(1, 2), [3]])) == ["(1, 2)", "[3]"]


def test_a_length_beyond_any() -> None:
    assert list(chunk_tasks(range(5), iterable_len=10**400, n_splits=1)) == [(0, 1, 2, 3, 4)]


WRONG = [
    (chunk_tasks, (5,), TypeError, "iterable must be an iterable, not int"),
    (chunk_tasks, (numpy.array(5), 1, 1), TypeError, "iterable must have an axis"),
    (chunk_tasks, ([], "5"), TypeError, "iterable_len must be an int or None, not str"),
    (chunk_tasks, ([], -1), ValueError, "iterable_len must be at least 0, not -1"),
    (chunk_tasks, ([], 1, "5"), TypeError, "chunk_size must be an int, a float or None, not str"),
    (chunk_tasks, ([], 1, 0), ValueError, "chunk_size must be at least 1 and finite, not 0"),
    (chunk_tasks, ([], 1, None, 1.5), TypeError, "n_splits must be an int or None, not float"),
    (chunk_tasks, ([], 1, None, 0), ValueError, "n_splits must be at least 1, not 0"),
    (chunk_tasks, ([], 1), ValueError, "chunk_size and n_splits must not both be None"),
    (chunk_tasks, (iter([]), None, None, 2), ValueError, "n_splits needs a known number of elements"),
    (make_single_arguments, (5,), TypeError, "iterable must be an iterable, not int"),
    (make_single_arguments, ([], 1), TypeError, "generator must be a bool, not int"),
]


@pytest.mark.parametrize(("function", "given", "kind", "message"), WRONG)
def test_wrong_arguments(function: Any, given: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        function(*given)
