"""What is measured. Each case is data: the work in words, the function, its items, and how a peer runs it.

Functions are module-level so that every peer can send them to its workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .peers import Function, Peer

QUICK = 10  # --quick divides the number of tasks by this


@dataclass(frozen=True)
class Case:
    """`run` is what is timed; `prepare` and `finish` stand before and after it, untimed."""

    name: str
    work: str
    function: Function
    items: Callable[[int], Sequence[Any]]  # from the number of tasks
    n_tasks: int
    prepare: Callable[[Peer, Function, Iterable[Any]], list[Any]]
    run: Callable[[Peer, Function, Iterable[Any]], list[Any]]
    finish: Callable[[Peer], None]
    parallel: bool = True  # the loop does the same work, so a ratio against it says something

    @property
    def many_tasks(self) -> bool:
        return self.n_tasks > 10_000

    def tasks(self, quick: bool) -> int:
        return self.n_tasks // QUICK if quick and self.many_tasks else self.n_tasks


def open_and_warm(peer: Peer, function: Function, items: Iterable[Any]) -> list[Any]:
    peer.open()
    return peer.warm(function, items)


def map_warm(peer: Peer, function: Function, items: Iterable[Any]) -> list[Any]:
    return peer.map(function, items)


def close(peer: Peer) -> None:
    peer.close()


def once(peer: Peer, function: Function, items: Iterable[Any]) -> list[Any]:
    return peer.once(function, items)


def nothing_to_finish(peer: Peer) -> None:
    pass


# The functions


def square(x: int) -> int:
    return x * x


def halve_and_add(x: float) -> float:
    return x * 0.5 + 1.0


spins = 20  # how often the loop of `busy` turns; set by `calibrate` before any worker is forked


def busy(x: int) -> int:
    for _ in range(spins):
        x ^= 1
    return x


def calibrate(target: float = 1e-6, n_calls: int = 20_000) -> int:
    """Set and return `spins`, so that one call of `busy` in a list comprehension takes `target` seconds."""
    global spins

    def seconds_per_call(n_spins: int) -> float:
        global spins
        spins = n_spins
        start = time.perf_counter()
        [busy(x) for x in range(n_calls)]
        return (time.perf_counter() - start) / n_calls

    low, high = 10, 110
    at_low = min(seconds_per_call(low) for _ in range(5))
    at_high = min(seconds_per_call(high) for _ in range(5))
    per_spin = (at_high - at_low) / (high - low)
    spins = max(0, round(low + (target - at_low) / per_spin))
    return spins


# The cases


def floats(n_tasks: int) -> list[float]:
    return [i * 0.25 for i in range(n_tasks)]


CASES: tuple[Case, ...] = (
    # First, while this process is small: a fork costs more the larger the heap is.
    Case(
        name="start_stop",
        work="a new pool, 8 tiny tasks, the pool gone",
        function=square,
        items=range,
        n_tasks=8,
        prepare=once,
        run=once,
        finish=nothing_to_finish,
        parallel=False,
    ),
    Case(
        name="range_square",
        work="x*x over a range, results to a list, warm pool",
        function=square,
        items=range,
        n_tasks=1_000_000,
        prepare=open_and_warm,
        run=map_warm,
        finish=close,
    ),
    Case(
        name="float_list",
        work="x*0.5 + 1.0 over a list of floats, warm pool",
        function=halve_and_add,
        items=floats,
        n_tasks=1_000_000,
        prepare=open_and_warm,
        run=map_warm,
        finish=close,
    ),
    Case(
        name="busy_1us",
        work="tasks of about 1 µs each over a range, warm pool",
        function=busy,
        items=range,
        n_tasks=500_000,
        prepare=open_and_warm,
        run=map_warm,
        finish=close,
    ),
)
