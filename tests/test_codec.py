"""Values come back as exactly what they were: value, type, bits."""

from __future__ import annotations

import math
import pickle
import struct
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpool import WorkerPool

Point = namedtuple("Point", "x y")


class MyInt(int):
    pass


class MyStr(str):
    __slots__ = ()


def identity(x: Any) -> Any:
    return x


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(n_jobs=1, keep_alive=True) as made:
        made.map(identity, [None])
        yield made


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**63) - 2, max_value=-(2**63) + 2),
    st.integers(min_value=2**63 - 2, max_value=2**63 + 2),
    st.floats(allow_nan=True),
    st.text(st.characters(exclude_categories=[])),
    st.binary(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=4),
        st.frozensets(st.integers(), max_size=4),
    ),
    max_leaves=10,
)


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types all the way down, with the same bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    return bool(a == b)


@given(st.lists(values, max_size=40))
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_values(pool: WorkerPool, given: list[Any]) -> None:
    wrapped = [(value,) for value in given]  # so that they are not unpacked
    assert same(pool.map(identity, wrapped), given)


@given(st.lists(scalars, max_size=200))
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_runs_of_scalars(pool: WorkerPool, given: list[Any]) -> None:
    assert same(pool.map(identity, given), given)


NAN = struct.unpack("d", struct.pack("Q", 0x7FF8_0000_DEAD_BEEF))[0]
SPECIAL = [
    True,
    False,
    0,
    -1,
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    10**400,
    0.0,
    -0.0,
    math.inf,
    -math.inf,
    NAN,
    5e-324,
    "",
    "\0",
    "\ud800",
    "é\U0001f600",
    b"",
    b"\0",
    MyInt(3),
    MyStr("s"),
    OrderedDict(a=1),
    np.float32(1),
    np.float64(-0.0),
    np.int8(-3),
    np.bool_(True),
    1 + 2j,
    range(3),
    bytearray(b"x"),
    ...,
]


@pytest.mark.parametrize("value", SPECIAL, ids=repr)
def test_special_values(pool: WorkerPool, value: Any) -> None:
    [result] = pool.map(identity, [(value,)])
    assert type(result) is type(value)
    if isinstance(value, float):
        assert struct.pack("d", result) == struct.pack("d", value)
    else:
        assert result == value


def test_all_special_values_in_one_map(pool: WorkerPool) -> None:
    given = [(value,) for value in SPECIAL] * 20
    results = pool.map(identity, given)
    assert [type(x) for x in results] == [type(value) for (value,) in given]


def test_arrays(pool: WorkerPool) -> None:
    arrays = [
        np.arange(10),
        np.zeros((0, 3)),
        np.ones((2, 3), order="F"),
        np.array(5.0),
        np.array(["a", "bc"]),
    ]
    for array, result in zip(arrays, pool.map(identity, arrays), strict=True):
        assert type(result) is np.ndarray
        assert (result.dtype, result.shape) == (array.dtype, array.shape)
        assert np.array_equal(result, array)


def shared_twice(_: Any) -> Any:
    inner = [1]
    return [inner, inner]


def recursive(_: Any) -> Any:
    outer: list[Any] = []
    outer.append(outer)
    return outer


def test_identity_within_one_result(pool: WorkerPool) -> None:
    [twice] = pool.map(shared_twice, [0])
    assert twice[0] is twice[1]
    [loop] = pool.map(recursive, [0])
    assert loop[0] is loop


class Awkward:
    """Equality and truth raise: the machinery must not ask."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("no ==")

    def __bool__(self) -> bool:
        raise TypeError("no bool")

    __hash__ = None  # type: ignore[assignment]


def awkward(_: Any) -> Awkward:
    return Awkward()


def test_objects_that_cannot_be_compared(pool: WorkerPool) -> None:
    assert [type(x) for x in pool.map(awkward, range(5))] == [Awkward] * 5
    assert [type(x) for x in pool.map(identity, [Awkward(), Awkward()])] == [Awkward] * 2


def test_results_that_look_like_signals(pool: WorkerPool) -> None:
    given = ["\0", None, StopIteration(), NotImplemented, Ellipsis, pickle.PicklingError("x"), type, b"", ""]
    results = pool.map(identity, [(value,) for value in given])
    assert [repr(x) for x in results] == [repr(x) for x in given]
