"""One frozen description of a map, made and checked once, before any worker starts."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy

from fastpool.arrays import Array, Slices, cut
from fastpool.functions import Function, Functions
from fastpool.options import PoolOptions, as_index, check_flag, check_int, shorten
from fastpool.progress import BarOptions, make_bar_options
from fastpool.timeouts import NO_LIMITS, Limits, check_limits

JOB_LAST, JOB_KEEP_GOING, JOB_INSIGHTS, JOB_ALWAYS_EXIT, JOB_ORDERED = 1, 4, 8, 16, 32
INT64 = range(-(2**63), 2**63)
EXIT_SECONDS = 5.0  # for the task that a worker is at and its exit function, where no worker_exit_timeout is given
MOST_PATIENCE = 1e6  # seconds; the system's calls take no more
MOST_RESULTS = sys.maxsize // 8
CALLER = 4  # frames up from here: who called the pool's method
MOST_UNITS = 2**40 - 2  # of the claim word; longer ranges are iterated


@dataclass(frozen=True)
class MapJob:
    """What a map call was asked to do.

    Attributes
    ----------
    functions : Functions
    iterable : iterable
        The input; not touched yet.
    length : int or None
        Number of tasks as far as it is known: exact for ranges, else what ``len`` said, bounded by ``iterable_len``.
    limit : int or None
        The most elements to take.
    chunk_size : float or None
        Tasks a chunk (on average); None: by measured speed.
    max_tasks_active : int or None
        The most tasks that are handed out and not collected.
    worker_lifespan : int or None
        Tasks after which a worker is replaced.
    join : bool
        The input is an array in `Slices`, and array results are to be joined.
    out : numpy.ndarray or None
        What they are to be written into.
    return_exceptions : bool
        A failed task's exception is its result, and the map goes on.
    retries : int
        How often a task whose worker died is given to another one.
    limits : Limits
        How long a call of each function may take.
    always_exit : bool
        Exit functions run also in workers that end because of an error, or of `terminate`.
    in_turn : bool
        Chunk i goes to worker i modulo the number of workers.
    lazy : bool
        Results are handed out one by one while the map runs.
    bar : BarOptions or None
        The progress bar, if there is to be one.
    ordered : bool
        In the order of the input, not as they come.
    """

    functions: Functions
    iterable: Iterable[Any]
    length: int | None
    limit: int | None
    chunk_size: float | None
    max_tasks_active: int | None
    worker_lifespan: int | None
    join: bool = False
    out: Array | None = None
    return_exceptions: bool = False
    retries: int = 0
    limits: Limits = NO_LIMITS
    bar: BarOptions | None = None
    always_exit: bool = False
    in_turn: bool = False
    lazy: bool = False
    ordered: bool = True

    @property
    def outlives_workers(self) -> bool:
        """Does it go on when a worker dies?"""
        return self.return_exceptions or self.retries > 0

    @property
    def patience(self) -> float | None:
        """Seconds in which workers come to their end, with their exit functions, when the map fails. None: they are
        killed."""
        if not self.always_exit:
            return None
        limit = self.limits.worker_exit
        return EXIT_SECONDS if limit is None else min(limit, MOST_PATIENCE)

    @property
    def as_range(self) -> range | None:
        """The input as a range whose tasks workers claim and compute from three 64-bit integers, or None."""
        if type(self.iterable) is not range or self.in_turn:
            return None
        whole = self.iterable if self.limit is None else self.iterable[: self.limit]
        if not whole:
            return whole
        fits = whole[0] in INT64 and whole[-1] in INT64 and whole.step in INT64
        short = whole[MOST_UNITS:] == range(0)
        even = self.chunk_size is None or self.chunk_size == int(self.chunk_size)
        return whole if fits and short and even else None


class ApplyJob(NamedTuple):
    """What an apply was asked to do.

    Attributes
    ----------
    function : callable
    args : tuple
    keywords : dict
    callback, error_callback : callable or None
        What wants the result, or the exception.
    init, exit : callable or None
        Of workers that are started for it.
    limits : Limits
        How long a call of each function may take.
    """

    function: Function
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    callback: Callable[[Any], Any] | None
    error_callback: Callable[[BaseException], Any] | None
    init: Function | None
    exit: Function | None
    limits: Limits

    @property
    def limit_ns(self) -> int:
        """That the call may take; 0: any."""
        return 0 if self.limits.task is None else self.limits.ns[0]


def make_apply_job(
    func: Function,
    args: Any,
    kwargs: dict[str, Any] | None,
    callback: Callable[[Any], Any] | None,
    error_callback: Callable[[BaseException], Any] | None,
    worker_init: Function | None,
    worker_exit: Function | None,
    task_timeout: float | None,
    worker_init_timeout: float | None,
    worker_exit_timeout: float | None,
) -> ApplyJob:
    """Check the arguments of an apply, which :class:`fastpool.WorkerPool` documents.

    Raises
    ------
    TypeError, ValueError
        Naming the parameter, what was given and what is allowed.
    """
    _check_callable("func", func, optional=False)
    for name, value in (
        ("callback", callback),
        ("error_callback", error_callback),
        ("worker_init", worker_init),
        ("worker_exit", worker_exit),
    ):
        _check_callable(name, value)
    if kwargs is not None and not isinstance(kwargs, dict):
        raise TypeError(f"kwargs must be a dict or None, not {type(kwargs).__name__}")
    for name in kwargs or ():
        if not isinstance(name, str):
            raise TypeError(f"kwargs must have strings as keys, not {type(name).__name__}")
    return ApplyJob(
        function=func,
        args=args if type(args) is tuple else tuple(args) if isinstance(args, tuple) else (args,),
        keywords=dict(kwargs) if kwargs else {},
        callback=callback,
        error_callback=error_callback,
        init=worker_init,
        exit=worker_exit,
        limits=check_limits(task_timeout, worker_init_timeout, worker_exit_timeout),
    )


def make_map_job(
    options: PoolOptions,
    func: Function,
    iterable_of_args: Iterable[Any],
    iterable_len: int | None,
    max_tasks_active: int | None,
    chunk_size: float | None,
    n_splits: int | None,
    worker_lifespan: int | None,
    worker_init: Function | None,
    worker_exit: Function | None,
    progress_bar: bool,
    task_timeout: float | None,
    worker_init_timeout: float | None,
    worker_exit_timeout: float | None,
    progress_bar_options: dict[str, Any] | None,
    progress_bar_style: str | None,
    return_exceptions: bool,
    retries: int,
    always_exit: bool,
    concatenate_numpy_output: bool = False,
    out: Array | None = None,
    *,
    lazy: bool,
    ordered: bool,
) -> MapJob:
    """Check the arguments of a map, which :class:`fastpool.WorkerPool` documents.

    Raises
    ------
    TypeError, ValueError
        Naming the parameter, what was given and what is allowed.
    """
    _check_callable("func", func, optional=False)
    _check_callable("worker_init", worker_init)
    _check_callable("worker_exit", worker_exit)
    check_iterable("iterable_of_args", iterable_of_args)
    iterable_len = check_int("iterable_len", iterable_len, least=0)
    n_splits = check_int("n_splits", n_splits, least=1)
    worker_lifespan = check_int("worker_lifespan", worker_lifespan, least=1)
    chunk_size = check_chunk_size(chunk_size)
    check_flag("concatenate_numpy_output", concatenate_numpy_output)
    check_flag("return_exceptions", return_exceptions)
    check_flag("always_exit", always_exit)
    _check_out(out, iterable_of_args, concatenate_numpy_output, return_exceptions)
    job = MapJob(
        functions=Functions(func, worker_init, worker_exit),
        iterable=iterable_of_args,
        length=None,
        limit=iterable_len,
        chunk_size=chunk_size,
        max_tasks_active=check_int("max_tasks_active", max_tasks_active, least=1),
        worker_lifespan=None if worker_lifespan is None else min(worker_lifespan, MOST_UNITS),
        return_exceptions=return_exceptions,
        retries=check_int("retries", retries, least=0, optional=False) or 0,
        limits=check_limits(task_timeout, worker_init_timeout, worker_exit_timeout),
        bar=make_bar_options(progress_bar, progress_bar_options, progress_bar_style, CALLER),
        always_exit=always_exit,
        in_turn=options.order_tasks,
        lazy=lazy,
        ordered=ordered,
    )
    if isinstance(iterable_of_args, numpy.ndarray):
        slices = _slices(iterable_of_args[:iterable_len], options, chunk_size, n_splits)
        return replace(
            job,
            iterable=slices,
            length=len(slices),
            limit=None,
            chunk_size=1.0,
            join=concatenate_numpy_output,
            out=out,
        )
    length = _length(iterable_of_args, iterable_len)
    if not lazy and type(iterable_of_args) is range and length is not None and length > MOST_RESULTS:
        raise ValueError(
            f"iterable_of_args has more elements than a list has places ({MOST_RESULTS}): give iterable_len"
        )
    if chunk_size is None and n_splits is not None:
        chunk_size = _split_size(length, n_splits)
    return replace(job, length=length, chunk_size=chunk_size)


def _split_size(length: int | None, n_splits: int) -> float | None:
    if length is None:
        message = "n_splits is ignored: the number of tasks is not known. Give iterable_len, or chunk_size"
        warnings.warn(message, RuntimeWarning, stacklevel=CALLER + 1)
        return None
    return MOST_UNITS if length // n_splits > MOST_UNITS else max(1.0, length / n_splits)


def _slices(array: Array, options: PoolOptions, chunk_size: float | None, n_splits: int | None) -> Slices:
    if isinstance(array, numpy.memmap):
        array = array.view(numpy.ndarray)  # its slices are arrays like any other
    return Slices(array, cut(len(array), array.nbytes, options.n_jobs, chunk_size, n_splits, options.chunk_bytes))


def _check_out(out: Any, iterable: Any, join: bool, return_exceptions: bool) -> None:
    if out is None:
        return
    if not isinstance(out, numpy.ndarray):
        raise TypeError(f"out must be a numpy array or None, not {type(out).__name__}")
    if not isinstance(iterable, numpy.ndarray):
        raise ValueError(f"out is for maps over a numpy array, not over a {type(iterable).__name__}")
    if not join:
        raise ValueError("out and concatenate_numpy_output=False exclude each other")
    if return_exceptions:
        raise ValueError("out and return_exceptions=True exclude each other: an exception has no place in an array")
    if not out.flags.writeable:
        raise ValueError("out must be writeable, not a read-only array")


def _length(iterable: Iterable[Any], limit: int | None) -> int | None:
    if type(iterable) is range:  # len() refuses more than sys.maxsize
        step = iterable.step
        length: int | None = max(0, (iterable.stop - iterable.start + step - (1 if step > 0 else -1)) // step)
    else:
        length = said_length(iterable)
    if limit is None:
        return length
    return limit if length is None else min(length, limit)


def said_length(iterable: Iterable[Any]) -> int | None:
    """What ``len`` says, if it can: some classes have it and raise, and it refuses more than sys.maxsize."""
    if not isinstance(iterable, Sized):
        return None
    try:
        return len(iterable)
    except (TypeError, OverflowError):
        return None


def check_iterable(name: str, value: Any) -> None:
    """Anything that can be iterated, also by index alone.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, Iterable) and not _has_elements(value):
        raise TypeError(f"{name} must be an iterable, not {type(value).__name__}")
    if isinstance(value, numpy.ndarray) and value.ndim == 0:
        raise TypeError(f"{name} must have an axis to be cut along; this array has no dimensions")


def _has_elements(value: Any) -> bool:
    """By index alone. (numpy's scalars have indices, and no elements; classes have the methods of their instances.)"""
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _check_callable(name: str, value: Any, optional: bool = True) -> None:
    if callable(value) or (optional and value is None):
        return
    raise TypeError(f"{name} must be callable{' or None' if optional else ''}, not {type(value).__name__}")


def check_chunk_size(value: Any) -> float | None:
    """An optional number of tasks, on average.

    Raises
    ------
    TypeError, ValueError
    """
    if value is None:
        return None
    size = value if isinstance(value, float) else as_index(value)
    if size is None:
        raise TypeError(f"chunk_size must be an int, a float or None, not {type(value).__name__}")
    if not 1 <= size < math.inf:
        raise ValueError(
            f"chunk_size must be at least 1 and finite, not {value if isinstance(size, float) else shorten(size)}"
        )
    return min(size, MOST_UNITS)
