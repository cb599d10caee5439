"""What is measured. Each case is data: the work in words, what it is measured against, the work, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import functions
from .functions import Function
from .peers import FastpoolBar, FastpoolInsights, Peer

LOOP = "[f(x) for x in xs]"
NUMPY = "np.sqrt(a), one thread, a new array each time"
PIECE = 4 << 20  # bytes

Call = Callable[[], Any]
Session = Callable[[Peer, Function, Any], AbstractContextManager[Call]]


# How a case is run. What is timed is one call of what a session yields; its beginning and its end are not.


@contextmanager
def kept_pool(peer: Peer, function: Function, items: Any) -> Iterator[Call]:
    with peer:
        yield lambda: peer.map(function, items)


@contextmanager
def new_pool(peer: Peer, function: Function, items: Any) -> Iterator[Call]:
    yield lambda: peer.once(function, items)


@contextmanager
def array_in_workers(peer: Peer, function: Function, array: Any) -> Iterator[Call]:
    """In as many pieces as mpire cuts an array by default."""
    with peer:
        yield lambda: peer.map_array(function, array, 4 * peer.n_jobs)


@contextmanager
def later_array(peer: Peer, function: Function, array: Any) -> Iterator[Call]:
    """An array that was not there when the workers were forked."""
    with array_in_workers(peer, function, array) as call:
        call()
        later = array.copy()
        yield lambda: peer.map_array(function, later, 4 * peer.n_jobs)


@contextmanager
def array_in_fine_pieces(peer: Peer, function: Function, array: Any) -> Iterator[Call]:
    with peer:
        yield lambda: peer.map_array(function, array, max(4 * peer.n_jobs, array.nbytes // PIECE))


@contextmanager
def shared_array(peer: Peer, function: Function, array: Any) -> Iterator[Call]:
    shared = peer.shared(array)
    with array_in_workers(peer, function, shared) as call:
        yield call


@contextmanager
def single_calls(peer: Peer, function: Function, items: Any) -> Iterator[Call]:
    with peer:
        yield lambda: peer.apply(function, items)


@contextmanager
def calls_in_flight(peer: Peer, function: Function, items: Any) -> Iterator[Call]:
    with peer:
        yield lambda: peer.apply_async(function, items)


@contextmanager
def one_task_each(peer: Peer, function: Function, items: Any) -> Iterator[Call]:
    yield lambda: peer.short_lived(function, items)


@dataclass(frozen=True)
class Case:
    name: str
    work: str
    n_tasks: int  # or items of the array
    n_quick: int  # with --quick
    prepare: Callable[[int], tuple[Function, Any]]  # from the number of tasks to the function and its input
    session: Session = kept_pool
    baseline: str | None = LOOP  # what the peer `loop` does; None: something else, no ratio against it says anything
    warm: bool = True  # what is timed is not the first call of its session
    array: bool = False  # the input is an array, the output too
    way: str = "map"  # what a peer must offer to take part
    variants: tuple[type[Peer], ...] = ()  # of fastpool, which take part in this case alone


@dataclass(frozen=True)
class Sweep:
    """The same on a warm pool for tasks of every length, as many of each as the loop does in `seconds`."""

    name: str
    work: str
    lengths: tuple[float, ...]  # seconds of a task, shortest first
    quick_lengths: tuple[float, ...]
    seconds: float
    quick_seconds: float
    most_tasks: int


# The input


def squares(n: int) -> tuple[Function, Any]:
    return functions.square, range(n)


def floats(n: int) -> tuple[Function, Any]:
    return functions.halve_and_add, [i * 0.25 for i in range(n)]


def microseconds(n: int) -> tuple[Function, Any]:
    [busy] = functions.busy_for(1e-6)
    return busy, range(n)


def dicts(n: int) -> tuple[Function, Any]:
    return functions.small_dict, range(n)


def tuples(n: int) -> tuple[Function, Any]:
    return functions.small_tuple, range(n)


def strings(n: int) -> tuple[Function, Any]:
    return functions.length, [f"item {i}" for i in range(n)]


def alternating(n: int) -> tuple[Function, Any]:
    return functions.alternate, range(n)


def megabytes(n: int) -> tuple[Function, Any]:
    return functions.megabyte, range(n)


def roots(n: int) -> tuple[Function, Any]:
    return np.sqrt, np.arange(n, dtype=np.float64)


# The cases

SQRT: dict[str, Any] = {
    "n_tasks": 50_000_000,
    "n_quick": 5_000_000,
    "prepare": roots,
    "baseline": NUMPY,
    "array": True,
}

CASES: tuple[Case, ...] = (
    Case(
        "start_stop",
        "a new pool, 8 tiny tasks, the pool gone",
        8,
        8,
        squares,
        session=new_pool,
        baseline=None,
    ),
    Case("range_square", "x*x over a range, to a list, warm pool", 1_000_000, 100_000, squares),
    Case("float_list", "x*0.5 + 1.0 over a list of floats, warm pool", 1_000_000, 100_000, floats),
    Case("busy_1us", "tasks of about 1 µs each over a range, warm pool", 500_000, 50_000, microseconds),
    Case(
        "watched_1us",
        "the same with enable_insights, and with progress_bar, warm pool",
        500_000,
        50_000,
        microseconds,
        variants=(FastpoolInsights, FastpoolBar),
    ),
    Case(
        "apply",
        "apply, one call after another, warm pool",
        5_000,
        500,
        squares,
        session=single_calls,
        baseline=None,
        way="apply",
    ),
    Case(
        "apply_async",
        "apply_async, all handed in, then all results, warm pool",
        50_000,
        2_000,
        squares,
        session=calls_in_flight,
        baseline=None,
        way="apply_async",
    ),
    Case(
        "lifespan_1",
        "a fresh worker for each task",
        10_000,
        200,
        squares,
        session=one_task_each,
        baseline=None,
        way="short_lived",
    ),
    Case("small_dicts", "a dict of 4 entries from each task, warm pool", 300_000, 30_000, dicts),
    Case("small_tuples", "(int, float, str) from each task, warm pool", 300_000, 30_000, tuples),
    Case("alternating", "int, float, None and str results in turn, warm pool", 300_000, 30_000, alternating),
    Case("strings_in", "short strings in, their lengths out, warm pool", 1_000_000, 100_000, strings),
    Case("results_1mb", "an array of 1 MB from each task, warm pool", 400, 40, megabytes),
    Case(
        "sqrt_shared",
        "np.sqrt of float64, fastpool's from asshared, warm pool",
        session=shared_array,
        **SQRT,
    ),
    Case("sqrt_plain", "np.sqrt of float64, an ordinary array, warm pool", session=array_in_workers, **SQRT),
    Case(
        "sqrt_later",
        "np.sqrt of float64, an ordinary array younger than the workers, warm pool",
        session=later_array,
        **SQRT,
    ),
    Case(
        "sqrt_fine",
        "np.sqrt of float64, pieces of 4 MB for the peers, warm pool",
        session=array_in_fine_pieces,
        **SQRT,
    ),
    Case(
        "sqrt_first",
        "np.sqrt of float64, first map of a new pool",
        session=array_in_workers,
        warm=False,
        **SQRT,
    ),
)

METG = Sweep(
    "metg",
    "efficiency over the length of a task, warm pool",
    lengths=(0.05e-6, 0.1e-6, 0.2e-6, 0.5e-6, 1e-6, 2e-6, 5e-6, 10e-6, 20e-6, 50e-6, 100e-6),
    quick_lengths=(0.05e-6, 0.2e-6, 1e-6, 5e-6, 20e-6, 100e-6),
    seconds=0.1,
    quick_seconds=0.02,
    most_tasks=200_000,
)

SUITE: tuple[Case | Sweep, ...] = (*CASES, METG)
BY_NAME: dict[str, Case | Sweep] = {case.name: case for case in SUITE}
