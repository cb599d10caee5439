"""Arrays as arguments and results, and arrays in shared memory."""

from __future__ import annotations

import functools
import gc
import os
import weakref
from collections.abc import Iterator
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from conftest import START_METHODS
from hypothesis import given, settings
from hypothesis import strategies as st

import fastpool
from fastpool import WorkerPool, _native
from fastpool._codec import Decoder
from fastpool._native import Segment, SharedBlock
from fastpool._packed import Packer
from fastpool.errors import DamagedMemoryError

FUZZES = int(os.environ.get("FASTPOOL_FUZZ", "5000"))
MEGABYTE = 1 << 20
REFUSE_READ = 32


def identical(one: Any, other: Any) -> bool:
    """Are these arrays the same in everything but the address?"""
    return (
        type(one) is type(other)
        and one.dtype == other.dtype
        and one.shape == other.shape
        and one.flags.f_contiguous == other.flags.f_contiguous
        and (one.dtype.hasobject or one.tobytes() == other.tobytes())
    )


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


def same(value: Any) -> Any:
    return value


def wrapped(value: Any) -> Any:
    return {"holder": Holder(value), "again": value}


def doubled(value: Any) -> Any:
    return value * 2


def megabyte(number: int) -> Any:
    return np.full(MEGABYTE // 8, float(number))


def overwrite(chunk: Any) -> float:
    total = float(chunk.sum())
    chunk[...] = -1
    return total


ARRAYS = {
    "one dimension": np.arange(10),
    "Fortran order": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "no dimension": np.array(5),
    "no rows": np.zeros((0, 3)),
    "strided": np.arange(40)[::4],
    "backwards": np.arange(40)[::-1],
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "text": np.array(["a", "bcd", ""]),
    "bytes": np.array([b"a", b"bcd"]),
    "dates": np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    "durations": np.array([1, -2], dtype="m8[25us]"),
    "records": np.zeros(3, dtype=[("a", "i4"), ("b", "f8", (2,))]),
    "aligned records": np.zeros(3, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "big endian": np.arange(5, dtype=">i4"),
    "half": np.array([1, np.nan, -0.0], dtype=np.float16),
    "long double": np.array([1, 2], dtype=np.longdouble),
    "complex": np.array([1 + 2j, np.inf], dtype=np.complex64),
    "bool": np.array([True, False]),
    "large": np.arange(300_000.0),
    "large, Fortran order": np.asfortranarray(np.arange(600_000.0).reshape(600, 1000)),
    "large, strided": np.arange(600_000.0)[::2],
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_comes_back_as_it_was(array: np.ndarray) -> None:
    expected = array if array.flags.f_contiguous or array.flags.c_contiguous else array.copy()
    with WorkerPool(n_jobs=1) as pool:
        [alone] = pool.map(same, [array])
        [inside] = pool.map(wrapped, [(array,)])
    assert identical(alone, expected)
    assert alone.flags.writeable
    assert identical(inside["holder"].value, expected)
    assert inside["holder"].value is inside["again"]


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, "x", None], dtype=object),
        np.ma.array([1, 2, 3], mask=[0, 1, 0]),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ],
    ids=["objects", "masked", "recarray"],
)
def test_arrays_that_are_pickled(array: np.ndarray) -> None:
    with WorkerPool(n_jobs=1) as pool:
        [result] = pool.map(same, [array])
    assert identical(result, array)
    assert repr(result) == repr(array)


def test_any_array() -> None:
    with WorkerPool(n_jobs=1, keep_alive=True) as pool:

        @settings(max_examples=150, deadline=None)
        @given(
            hnp.arrays(
                dtype=st.one_of(
                    hnp.scalar_dtypes(), hnp.array_dtypes(), hnp.nested_dtypes(), hnp.unicode_string_dtypes()
                ),
                shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
            )
        )
        def check(array: np.ndarray) -> None:
            assert identical(pool.map(same, [array])[0], array)

        check()


# ---------------------------------------------------------------- damage


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    """Of the results of one worker, which has a large block."""
    segment = Segment(1, 1 << 16, 1 << 22, 1)
    segment.adopt_heap(0)
    yield Decoder(segment, 0, False)
    segment.close()


def test_packed_arrays(decoder: Decoder) -> None:
    for array in ARRAYS.values():
        packed = Packer().pack(array)
        assert packed is not None
        assert identical(decoder.unpack_bytes(packed), array if array.flags.f_contiguous else array.copy())


@pytest.mark.parametrize("length", range(80))
def test_a_packed_array_that_was_cut_off(decoder: Decoder, length: int) -> None:
    packed = Packer().pack(np.arange(6).reshape(2, 3))
    assert packed is not None
    with pytest.raises(DamagedMemoryError):
        decoder.unpack_bytes(packed[: max(1, length)])


def test_damaged_headers_of_packed_arrays(decoder: Decoder) -> None:
    """Whatever the words before the data say (a checksum guards them, too), nothing outside the item is read."""
    random = np.random.default_rng(7)
    words = [0, 1, 2, 3, 5, 6, 8, 24, 48, 64, 65, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
    array = np.arange(6).reshape(2, 3)
    packed = Packer().pack(array)
    assert packed is not None
    header = len(packed) - array.nbytes
    damaged = right = 0
    for _ in range(FUZZES):
        copy = bytearray(packed)
        for _ in range(random.integers(1, 4)):
            at, size = int(random.integers(1, header // 4)) * 4, int(random.choice([4, 8]))
            copy[at : at + size] = (int(random.choice(words)) % 2 ** (8 * size)).to_bytes(size, "little")
        try:
            decoder.unpack_bytes(copy)
            right += 1
        except DamagedMemoryError:
            damaged += 1
    assert damaged > FUZZES / 2
    assert right > 0


# ---------------------------------------------------------------- results in shared memory


def test_large_results_lie_in_shared_memory_and_small_ones_do_not() -> None:
    with WorkerPool(n_jobs=2) as pool:
        large = pool.map(megabyte, range(4))
        [small] = pool.map(same, [np.zeros(1000)])
    assert all(type(array.base) is SharedBlock for array in large)
    assert small.base is None
    assert [float(array[0]) for array in large] == [0, 1, 2, 3]  # the pool is gone


def test_memory_is_used_again_when_results_are_gone() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True, memory_limit=64 * MEGABYTE) as pool:
        for turn in range(20):
            results = pool.map(megabyte, range(20))
            assert [float(array.sum()) for array in results] == [n * MEGABYTE / 8 for n in range(20)], turn
            assert all(type(array.base) is SharedBlock for array in results), turn
            del results


def test_the_user_keeps_every_result() -> None:
    kept = []
    with WorkerPool(n_jobs=2, keep_alive=True, memory_limit=16 * MEGABYTE) as pool:
        for _ in range(5):
            kept += pool.map(megabyte, range(10))
    assert [float(array[-1]) for array in kept] == list(range(10)) * 5
    assert sum(type(array.base) is SharedBlock for array in kept) <= 16


def test_results_outlive_workers_with_a_lifespan() -> None:
    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(megabyte, range(30), worker_lifespan=2, chunk_size=1)
    assert [float(array.sum()) for array in results] == [n * MEGABYTE / 8 for n in range(30)]


def keeps_what_it_returns(worker_state: dict[str, Any], number: int) -> Any:
    mine = worker_state.setdefault("kept", [])
    mine.append(megabyte(number))
    for array in mine:
        array += 1
    return mine[-1]


def test_a_result_that_the_worker_keeps_is_a_copy() -> None:
    with WorkerPool(n_jobs=1, use_worker_state=True) as pool:
        results = pool.map(keeps_what_it_returns, range(10))
    assert [float(array[5]) for array in results] == [n + 1 for n in range(10)]


def test_a_fork_of_the_parent_frees_nothing() -> None:
    with WorkerPool(n_jobs=1, keep_alive=True) as pool:
        [kept] = pool.map(megabyte, [7])
        pid = os.fork()
        if pid == 0:
            del kept
            gc.collect()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        [other] = pool.map(megabyte, [8])
        assert (float(kept.sum()), float(other.sum())) == (7 * MEGABYTE / 8, MEGABYTE)


def test_results_may_be_dropped_anywhere() -> None:
    order = []
    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(megabyte, range(6))
        for array in results:
            weakref.finalize(array, order.append, len(order))
        del array
        results.reverse()
        while results:
            results.pop()
    assert len(order) == 6


# ---------------------------------------------------------------- arguments


@pytest.fixture(params=["read by workers", "copied by the parent"])
def reading(request: pytest.FixtureRequest) -> Iterator[str]:
    """Kept workers read large arguments from the parent's memory, or, refused that, get them copied."""
    if request.param == "copied by the parent":
        _native.refuse(REFUSE_READ)
    yield request.param
    _native.refuse(0)


def test_large_arguments(reading: str) -> None:
    arrays = [np.full((100, 1000), n) for n in range(20)]
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(3):
            assert pool.map(overwrite, arrays) == [n * 100_000 for n in range(20)]
            assert pool.map(overwrite, [(array,) for array in arrays]) == [n * 100_000 for n in range(20)]
    assert all((array == n).all() for n, array in enumerate(arrays))


def test_a_generator_may_use_its_array_again() -> None:
    def reused() -> Iterator[Any]:
        array = np.empty(MEGABYTE)
        for n in range(10):
            array[...] = n
            yield array

    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(2):
            assert pool.map(overwrite, reused(), chunk_size=1) == [n * MEGABYTE for n in range(10)]


def test_arguments_beyond_the_memory_limit(reading: str) -> None:
    arrays = [np.full(MEGABYTE // 8, float(n)) for n in range(30)]
    with WorkerPool(n_jobs=2, keep_alive=True, memory_limit=4 * MEGABYTE) as pool:
        for _ in range(2):
            results = pool.map(doubled, arrays)
            assert [float(array[0]) for array in results] == [2.0 * n for n in range(30)]


# ---------------------------------------------------------------- shared arrays


def test_empty_is_like_numpys() -> None:
    for shape in (5, (2, 3), (), (0,), (4, 0)):
        for dtype in ("f8", "i1", [("a", "i4"), ("b", "U3")], "M8[s]"):
            array = fastpool.empty(shape, dtype)
            like = np.empty(shape, dtype)
            assert (array.shape, array.dtype) == (like.shape, like.dtype)
            assert array.flags.c_contiguous
            assert array.flags.writeable
    assert fastpool.empty(3).dtype == np.float64


def test_bad_requests_for_shared_arrays() -> None:
    with pytest.raises(TypeError, match="must not hold Python objects"):
        fastpool.empty(3, object)
    with pytest.raises(TypeError, match="must not hold Python objects"):
        fastpool.asshared(np.array([None]))
    with pytest.raises(ValueError, match="negative"):
        fastpool.empty(-1)
    with pytest.raises(MemoryError, match="no shared memory left for an array of"):
        fastpool.empty(2**50)


def test_asshared_copies_once() -> None:
    plain = np.arange(10)
    shared = fastpool.asshared(plain)
    assert identical(shared, plain)
    assert not np.shares_memory(shared, plain)
    assert fastpool.asshared(shared) is shared
    assert fastpool.asshared([1, 2]).tolist() == [1, 2]


def add_one(*arrays: Any) -> None:
    for array in arrays:
        array += 1


def add_one_inside(holder: Holder, number: int) -> None:
    holder.value += number


def test_workers_write_to_shared_arrays() -> None:
    for keep_alive in (False, True):
        with WorkerPool(n_jobs=2, keep_alive=keep_alive) as pool:
            pool.map(abs, range(100))  # kept workers are there before the array is
            shared = fastpool.asshared(np.zeros((6, 5)))
            pool.map(add_one, [shared[0], shared[1, ::2], shared[2:4].T])
            pool.map(add_one, [(shared[4], shared[5, ::-1])])
            pool.map(add_one_inside, [(Holder(shared[0]), 10), (Holder(shared[1, ::2]), 20)])
            expected = np.ones((6, 5))
            expected[1, 1::2] = 0
            expected[0] += 10
            expected[1, ::2] += 20
            assert (shared == expected).all()


def mark(shared_objects: Any, n: int) -> Any:
    shared, plain = shared_objects
    shared[n] = n
    plain[n] = n
    return shared[0]


@pytest.mark.parametrize("use_dill", [False, True], ids=["pickle", "dill"])
@pytest.mark.parametrize("start_method", START_METHODS)
def test_shared_arrays_with_every_start_method(start_method: str, use_dill: bool) -> None:
    if use_dill:
        pytest.importorskip("dill", reason="dill is not installed: pip install fastpool[dill]")
    shared, plain = fastpool.asshared(np.zeros(10)), np.zeros(10)
    options: dict[str, Any] = {"start_method": start_method, "use_dill": use_dill, "keep_alive": True}
    with WorkerPool(n_jobs=2, shared_objects=(shared[::1], plain), **options) as pool:
        assert pool.map(mark, range(10)) == [0] * 10
    assert shared.tolist() == list(range(10))
    assert plain.any() == (start_method == "threading")  # whose shared objects are the very ones
    with WorkerPool(n_jobs=2, **options) as pool:
        for _ in range(2):
            later = fastpool.asshared(np.arange(6.0))
            pool.map(add_one, [later[:3], later[3:]])
            pool.map(add_one_inside, [(Holder(later[::2]), 10), (Holder(later[1::2]), 20)])
            assert later.tolist() == [11, 22, 13, 24, 15, 26]
            large = np.arange(300_000.0)
            assert (pool.map(np.sqrt, large) == np.sqrt(large)).all()
            assert (pool.map(doubled, [large, large[::2]])[1] == large[::2] * 2).all()


def in_a_pool_of_its_own(part: Any) -> int:
    with WorkerPool(n_jobs=2) as pool:
        pool.map(add_one, [part[:2], part[2:]])
        own = fastpool.asshared(np.zeros(4))
        pool.map(add_one, [own[:2], own[2:]])
    return int(own.sum())


def test_shared_arrays_in_nested_pools() -> None:
    shared = fastpool.asshared(np.zeros((3, 4)))
    with WorkerPool(n_jobs=2, daemon=False) as pool:
        assert pool.map(in_a_pool_of_its_own, [(shared[n],) for n in range(3)]) == [4, 4, 4]
    assert (shared == 1).all()


def test_shared_memory_is_given_back() -> None:
    arena = fastpool.arrays.shared_memory()
    before = arena.heap(1)["bytes_used"]
    array = fastpool.empty(MEGABYTE)
    view = array[10:20]
    assert arena.heap(1)["bytes_used"] >= before + 8 * MEGABYTE
    del array
    assert arena.heap(1)["bytes_used"] >= before + 8 * MEGABYTE
    del view
    assert arena.heap(1)["bytes_used"] == before


def overwrite_nested(value: Any) -> None:
    (value["array"] if isinstance(value, dict) else value)[...] = -1


def overwrite_three(array: Any) -> None:
    array[...] = 3


def test_a_read_only_view_of_a_shared_array_is_read_only_in_workers(start_method: str) -> None:
    shared = fastpool.asshared(np.arange(8.0).reshape(2, 4))
    closed = shared.view()
    closed.flags.writeable = False
    views = (closed, closed[:, ::2], closed.T, np.broadcast_to(shared[0], (3, 4)))
    with WorkerPool(n_jobs=1, start_method=start_method, keep_alive=True) as pool:
        for view in views:
            for argument in ((view,), ({"array": view},)):
                with pytest.raises(ValueError, match="read-only"):
                    pool.map(overwrite_nested, [argument])
        with pytest.raises(ValueError, match="read-only"):
            pool.map(overwrite_three, closed)
        pool.map(overwrite_nested, [(shared,)])
    assert (closed == -1).all()


class Plain(np.ndarray[Any, Any]):
    """Nothing of its own."""


class Labelled(np.ndarray[Any, Any]):
    """Has something of its own, which its pickle would have to hold."""

    label: str


def test_shared_arrays_of_other_classes_are_shared(start_method: str) -> None:
    records = fastpool.empty(3, [("a", "f8"), ("b", "i4")])
    matrix = fastpool.empty((2, 2), float)
    views = (records.view(np.recarray), matrix.view(Plain), records.view(np.recarray)[::2])
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        assert pool.map(kind_and_fill, [(view,) for view in views]) == ["recarray", "Plain", "recarray"]
    assert records["a"].tolist() == [7, 7, 7]
    assert (matrix == 7).all()
    labelled = matrix.view(Labelled)
    labelled.label = "mine"
    matrix[...] = 0
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        assert pool.map(kind_and_fill, [(labelled,)]) == ["Labelled"]
    assert (matrix == (7 if start_method == "threading" else 0)).all()  # else it travels by value, as numpy pickles it


def kind_and_fill(array: Any) -> str:
    array[...] = 7
    return type(array).__name__


def add_one_at(array: Any, index: int) -> None:
    array[index] += 1


class Adder:
    """A callable with a shared array of its own."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __call__(self, index: int) -> None:
        self.array[index] += 1


@pytest.mark.parametrize("use_dill", [False, True])
def test_shared_arrays_inside_functions_are_shared(start_method: str, use_dill: bool) -> None:
    if use_dill:
        pytest.importorskip("dill", reason="dill is not installed: pip install fastpool[dill]")
    shared = fastpool.asshared(np.zeros(3))
    with WorkerPool(n_jobs=1, start_method=start_method, use_dill=use_dill, keep_alive=True) as pool:
        for k in range(1, 3):
            pool.map(abs, range(4))  # the functions below come later than the workers
            pool.map(functools.partial(add_one_at, shared), range(3))
            pool.map(Adder(shared), range(3))
            assert shared.tolist() == [2 * k] * 3


# ---------------------------------------------------------------- elements that are pickled by code of their own

SCRATCH = np.empty(200_000)


def restored(values: Any) -> Scratched:
    made = Scratched(0)
    made.values = values
    return made


class Scratched:
    """Each puts its values into the same array to be pickled."""

    values: Any

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        SCRATCH[:] = self.value
        return restored, (SCRATCH,)


def first_value(thing: Any, *_: Any) -> float:
    return float((thing.values if isinstance(thing, Scratched) else thing)[0])


@pytest.mark.parametrize("container", [list, tuple])
def test_a_reducer_may_use_its_buffer_again(container: Any, reading: str) -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(3):
            things = container(Scratched(k) for k in range(8))
            assert pool.map(first_value, things, chunk_size=1) == [float(k) for k in range(8)]
            pairs = container((Scratched(k), {"k": k}) for k in range(8))
            assert pool.map(first_value, pairs, chunk_size=1) == [float(k) for k in range(8)]


@pytest.mark.skipif(_native.is_posix(), reason="POSIX has no call that gives a part of shared memory back")
def test_memory_of_shared_arrays_goes_back_to_the_system() -> None:
    def resident() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) >> 10 for line in status if line.startswith("RssShmem"))

    gc.collect()
    before = resident()
    arrays = [fastpool.empty(8 * MEGABYTE) for _ in range(8)]
    for array in arrays:
        array[:] = 1
    assert resident() >= before + 400  # some had been kept
    kept = arrays[1][:5]
    del array
    arrays.clear()
    gc.collect()
    assert resident() <= before + 64 + 64 + 2  # what is kept for the next ones, and what is in use
    assert kept.tolist() == [1.0] * 5
