"""Arrays in shared memory; how a map over an array is cut, and its results joined."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy
from numpy.typing import ArrayLike, DTypeLike

from fastpool._codec import is_placed
from fastpool._native import Arena, Place, Segment, SharedBlock
from fastpool._plan import is_public, is_spoiled, make_plan
from fastpool._references import Places
from fastpool.machine import memory_bytes
from fastpool.options import as_index, shorten

Array = numpy.ndarray[Any, Any]

CHUNK_BYTES = 2 << 20  # claiming shows below 256 KB; above malloc's threshold for memory of its own, page faults do
LEAST_PLANNED = 1 << 20  # bytes of a whole result for which planning pays

_arenas: list[Arena] = []  # the last one is this process's, those before it are its ancestors'


def shared_memory() -> Arena:
    """This process's memory for public arrays: address space until it is used, mapped before any worker is forked."""
    if not _arenas or _arenas[-1].owner_pid != os.getpid():
        _arenas.append(Arena(1, 4096, memory_bytes() // 2, public=True))
    return _arenas[-1]


def public_spaces() -> list[tuple[Place, int]]:
    """What a worker that is no fork needs to reach public arrays: where they are, and a descriptor of each memory."""
    return [(arena.place, arena.fd) for arena in _arenas]


def attach_spaces(spaces: list[tuple[Place, int]]) -> None:
    """In such a worker: map them. The descriptors are its own."""
    for place, fd in spaces:
        _arenas.append(Arena.attach(place, fd))


def empty(shape: int | Sequence[int], dtype: DTypeLike = float) -> Array:
    """A new array in shared memory, without initial values, like :func:`numpy.empty`.

    Workers reach it, and slices and views of it, without a copy: as input, inside arguments, in ``shared_objects``, as
    `out` of a map. What a worker writes to it is seen by everybody.

    Parameters
    ----------
    shape : int or sequence of int
    dtype : data-type, default float64
        Any but one with Python objects in it.

    Returns
    -------
    numpy.ndarray
        C-contiguous. Its memory is given back when the array and all views of it are gone. A fork of this process sees
        the same memory for as long as this process holds it.

    Raises
    ------
    TypeError, ValueError
        The dtype holds Python objects; or a parameter has a wrong type or value.
    MemoryError
        Half of the memory this process may use is taken by such arrays.
    """
    kind = _checked_dtype(dtype)
    _refuse_objects("dtype", kind)
    template = _template(_checked_shape(shape), kind)
    block = shared_memory().allocate(template.nbytes)
    if block is None:
        raise MemoryError(f"fastpool: no shared memory left for an array of {template.nbytes} bytes")
    return numpy.ndarray(template.shape, template.dtype, buffer=block)  # type: ignore[arg-type]


def _checked_dtype(dtype: DTypeLike) -> numpy.dtype[Any]:
    try:
        return numpy.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype must be a data-type of numpy's, not {dtype!r}") from error


def _refuse_objects(name: str, dtype: numpy.dtype[Any]) -> None:
    if dtype.hasobject:
        raise TypeError(f"{name} must not hold Python objects, which cannot be shared: {dtype}")


def _checked_shape(shape: Any) -> tuple[int, ...]:
    size = as_index(shape)
    is_one = size is not None or not isinstance(shape, Iterable) or isinstance(shape, (str, bytes))
    sizes = []
    for given in (shape,) if is_one else shape:
        size = as_index(given)
        if size is None:
            raise TypeError(f"shape must be an int or a sequence of ints, not of {type(given).__name__}")
        if size < 0:
            raise ValueError(f"shape must not be negative: it has {shorten(size)}")
        sizes.append(size)
    return tuple(sizes)


def _template(shape: tuple[int, ...], dtype: numpy.dtype[Any]) -> Array:
    """An array of this shape that takes no memory."""
    try:
        return numpy.broadcast_to(numpy.zeros((), dtype), shape)
    except ValueError as error:
        raise ValueError(f"shape must be one that a numpy array can have, not {shape}") from error


def asshared(array: ArrayLike) -> Array:
    """The array in shared memory: a copy, or the very array if it lies there.

    Parameters
    ----------
    array : array_like

    Returns
    -------
    numpy.ndarray
        As from :func:`empty`.

    Raises
    ------
    TypeError, MemoryError
        As :func:`empty`.
    """
    given = numpy.asarray(array)
    if is_public(given):
        return given
    _refuse_objects("array", given.dtype)
    shared = empty(given.shape, given.dtype)
    shared[...] = given
    return shared


# ---------------------------------------------------------------- cutting


def cut(
    rows: int, nbytes: int, n_jobs: int, chunk_size: float | None, n_splits: int | None, most_bytes: int = CHUNK_BYTES
) -> list[int]:
    """Rows with which chunks begin, and the number of rows. Depends on nothing else, so that results do not vary.

    Chunks whose size was left to us have at most `most_bytes` or CHUNK_BYTES.
    """
    if chunk_size is not None:
        n = max(1, math.ceil(rows / chunk_size))
        return [min(rows, math.ceil(k * chunk_size)) for k in range(n)] + [rows]
    n = n_splits if n_splits is not None else max(4 * n_jobs, math.ceil(nbytes / min(most_bytes, CHUNK_BYTES)))
    n = max(1, min(n, rows))
    return [k * rows // n for k in range(n + 1)]


class Slices:
    """An array cut along axis 0: an iterable of its chunks.

    Parameters
    ----------
    array : numpy.ndarray
    starts : list of int
        As :func:`cut` returns.
    """

    def __init__(self, array: Array, starts: list[int]) -> None:
        self.array = array
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[Array]:
        for k in range(len(self)):
            yield self.array[self.starts[k] : self.starts[k + 1]]


# ---------------------------------------------------------------- joining


class RowKind(NamedTuple):
    """What each row of a result is."""

    dtype: numpy.dtype[Any]
    shape: tuple[int, ...]


class Joiner:
    """Joins the results of a map over an array along axis 0.

    As soon as one result shows what they are like, workers are told where theirs belong in the whole, and write them
    there. What does not fit is collected and joined by copying.

    Parameters
    ----------
    segment : Segment
    slices : Slices
    out : numpy.ndarray or None
        What the results are to be written into.
    reach : callable
        Asked when a new array is made: can workers write to this process's private memory, and should they?
    expected : RowKind or None
        What results will probably be like: the plan is made at once.
    in_place : bool
        Results may be written where they belong in a new array; not if the function is known to leave others there.
    """

    def __init__(
        self,
        segment: Segment,
        slices: Slices,
        out: Array | None,
        reach: Callable[[], bool],
        expected: RowKind | None = None,
        in_place: bool = True,
    ) -> None:
        self.segment = segment
        self.slices = slices
        self.out = out
        self.whole: Array | None = None
        self.plan: SharedBlock | None = None
        self.considered = not in_place
        self.reach = reach
        if out is not None and self._takes_results(out):
            self._use(out)
        elif expected is not None and in_place:
            self._plan_for(expected)

    def _takes_results(self, out: Array) -> bool:
        """Can workers write into this array while the map runs? Not over its input: what a task computes on the way to
        its result may lie there, and a task may be run again."""
        if type(out) is not numpy.ndarray or not self._reaches(out) or not out.flags.c_contiguous or not out.ndim:
            return False
        return len(out) == self.rows and not overlap(out, self.slices.array)

    def _reaches(self, out: Array) -> bool:
        return is_public(out)

    @property
    def rows(self) -> int:
        return self.slices.starts[-1]

    def consider(self, sample: tuple[int, Any] | None) -> None:
        """The first result that came in, with its task's number, or None: plan, if it has a row for each row."""
        if self.considered or sample is None:
            return
        self.considered = True
        task, result = sample
        if type(result) is not numpy.ndarray or result.dtype.hasobject or result.ndim == 0:
            return
        if result.dtype.type is numpy.void or len(result) != self._length(task) or not len(result):
            return
        self._plan_for(RowKind(result.dtype, result.shape[1:]))

    def _plan_for(self, kind: RowKind) -> None:
        nbytes = kind.dtype.itemsize * math.prod(kind.shape) * self.rows
        if nbytes < LEAST_PLANNED:
            return
        if self._takes_private():
            self._use(numpy.empty((self.rows, *kind.shape), kind.dtype))
        elif (block := self.segment.allocate(nbytes, keep_reserve=True)) is not None:
            self._use(numpy.ndarray((self.rows, *kind.shape), kind.dtype, buffer=block))  # type: ignore[arg-type]

    def _takes_private(self) -> bool:
        return self.reach()

    @property
    def found(self) -> RowKind | None:
        """What the results were like, if they were written in place."""
        return None if self.whole is None else RowKind(self.whole.dtype, self.whole.shape[1:])

    def _length(self, task: int) -> int:
        return self.slices.starts[task + 1] - self.slices.starts[task]

    def _use(self, whole: Array) -> None:
        self.considered = True
        self.plan = make_plan(self.segment, whole, self.slices.starts)
        self.whole = whole if self.plan is not None else None

    @property
    def is_spoiled(self) -> bool:
        """Is the whole not to be handed out, nor to be freed before the workers end?"""
        return self.plan is not None and is_spoiled(self.plan)

    def join(self, results: list[Any]) -> Any:
        """The whole; or the list as it is, if a result is no array.

        Raises
        ------
        ValueError
            The arrays cannot be joined, or do not fit into `out`.
        TypeError
            There is an `out`, and a result is no array, or not of a type that may be cast to it.
        """
        if not all(is_placed(result) or isinstance(result, numpy.ndarray) for result in results):
            results = self._taken_out(results)
            if self.out is not None:
                kind = next(type(result).__name__ for result in results if not isinstance(result, numpy.ndarray))
                raise TypeError(f"out needs results that are arrays, and one is {kind}")
            return results
        if self.whole is not None and not self.is_spoiled and self._fill_in(results):
            joined = self.whole
        else:
            joined = concatenate(self._taken_out(results))
        return joined if self.out is None else self._into_out(joined)

    def _fill_in(self, results: list[Any]) -> bool:
        """Copy those that are not in their place. False: one does not fit."""
        assert self.whole is not None
        loose = [(task, result) for task, result in enumerate(results) if not is_placed(result)]
        if not all(
            type(result) is numpy.ndarray
            and result.dtype == self.whole.dtype
            and result.shape == (self._length(task), *self.whole.shape[1:])
            for task, result in loose
        ):
            return False
        for task, result in loose:
            self._part(task)[...] = result
        return True

    def _part(self, task: int) -> Array:
        assert self.whole is not None
        return self.whole[self.slices.starts[task] : self.slices.starts[task + 1]]

    def _taken_out(self, results: list[Any]) -> list[Any]:
        return [self._part(task).copy() if is_placed(result) else result for task, result in enumerate(results)]

    def _into_out(self, joined: Array) -> Array:
        assert self.out is not None
        if joined is self.out:
            return joined
        if joined.shape != self.out.shape:
            raise ValueError(f"out has shape {self.out.shape}, but the results together have {joined.shape}")
        if isinstance(self.out, numpy.ma.MaskedArray):
            if not numpy.can_cast(joined.dtype, self.out.dtype, "same_kind"):
                raise TypeError(f"results of type {joined.dtype} cannot be put into an out of type {self.out.dtype}")
            self.out[...] = joined
        elif isinstance(joined, numpy.ma.MaskedArray):
            raise TypeError("out must be a masked array to take masked results")
        else:
            numpy.copyto(self.out, joined, casting="same_kind")
        return self.out


class ThreadJoiner(Joiner):
    """The same where workers are threads: they reach any array, and copy their results to their places."""

    def _reaches(self, out: Array) -> bool:
        return True

    def _takes_private(self) -> bool:
        return True

    def _use(self, whole: Array) -> None:
        assert self.segment.exchange is not None
        self.considered = True
        self.whole = whole
        self.segment.exchange.places = Places(whole, self.slices.starts)


def overlap(a: Array, b: Array) -> bool:
    """May an element of one lie where one of the other does? As numpy sees it without solving for it."""
    return numpy.may_share_memory(a, b)


def concatenate(arrays: list[Array]) -> Array:
    """Join arrays along axis 0. If they are of one type, it is that of the whole, also in its order of bytes."""
    try:
        if any(type(array) is not numpy.ndarray and isinstance(array, numpy.ma.MaskedArray) for array in arrays):
            masked: Any = numpy.ma  # without types in some versions of numpy
            joined: Array = masked.concatenate(arrays)
        else:
            kind = arrays[0].dtype if all(array.dtype == arrays[0].dtype for array in arrays) else None
            joined = numpy.concatenate(arrays, dtype=kind)
    except ValueError as error:
        raise ValueError(
            f"the results cannot be joined along axis 0 ({error}); concatenate_numpy_output=False returns the list"
        ) from error
    return joined
