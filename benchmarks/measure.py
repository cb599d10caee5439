"""Interleaved measurement: every repeat runs each peer once, in turn, so that a slow moment hits all alike.

Each peer gets a new pool in each repeat, and only one pool is there at a time. The results of a map that is not timed
are compared with the plain loop's before anything is timed; those of the timed one are, too.
"""

from __future__ import annotations

import gc
import marshal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import functions
from .cases import Call, Case, Sweep
from .functions import Function
from .peers import Loop, Peer
from .results import CaseResult, Timing

Progress = Callable[[str], None]

HOPELESS = 0.05  # a peer whose efficiency is below this gets no shorter tasks


class WrongResult(Exception):
    """A peer's results are not those of the plain loop."""


@dataclass(frozen=True)
class Settings:
    """`repeats` of the loop and of each peer; of a slow one what it does in `patience` seconds, at least `at_least`."""

    n_jobs: int = 2
    repeats: int = 5
    quick: bool = False

    def warm_seconds(self, case: Case) -> float:
        """Of untimed calls before the timed one, where the pool is to be warm. On an array a pool settles in five calls
        (where the results lie, how workers reach the input: docs/architecture.md), which take a second."""
        return (0.03 if self.quick else 0.8) * (2 if case.array else 1)

    @property
    def patience(self) -> float:
        return 0.8 if self.quick else 15.0

    @property
    def at_least(self) -> int:
        return min(self.repeats, 2)


def measure(
    case: Case | Sweep, peers: Sequence[type[Peer]], settings: Settings, progress: Progress
) -> list[CaseResult]:
    """One result of a case, one for each length of a sweep."""
    if isinstance(case, Sweep):
        return measure_sweep(case, peers, settings, progress)
    return [measure_case(case, peers, settings, progress)]


def turns(name: str, peers: Sequence[type[Peer]], settings: Settings, progress: Progress) -> Iterator[type[Peer]]:
    """Whose turn it is. All that is done until the next turn is asked for counts against this one's patience."""
    spent = dict.fromkeys(peers, 0.0)
    for repeat in range(settings.repeats):
        if repeat >= settings.at_least:
            allowed = settings.patience * repeat / (repeat + 1)
            peers = [peer for peer in peers if peer is Loop or spent[peer] <= allowed]
        for peer in peers:
            progress(f"{name}: repeat {repeat + 1} of {settings.repeats}, {peer.name}")
            start = time.perf_counter()
            yield peer
            spent[peer] += time.perf_counter() - start


# One case


def measure_case(case: Case, peers: Sequence[type[Peer]], settings: Settings, progress: Progress) -> CaseResult:
    n_tasks = case.n_quick if settings.quick else case.n_tasks
    function, items = case.prepare(n_tasks)
    peers = [peer for peer in (*peers, *variants_of(case, peers)) if peer.offers(case.way)]
    loop = Loop(settings.n_jobs)
    expected = canonical(loop.map_array(function, items, 1) if case.array else loop.map(function, items))
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for peer in turns(case.name, peers, settings, progress):
        seconds[peer.name].append(
            time_once(case, peer(settings.n_jobs), function, items, expected, settings.warm_seconds(case))
        )
    return CaseResult(case.name, n_tasks, settings.n_jobs, timings(seconds))


def variants_of(case: Case, peers: Sequence[type[Peer]]) -> list[type[Peer]]:
    """What takes part in this case alone, where what it is a variant of does."""
    return [one for one in case.variants if one.missing() is None and any(issubclass(one, peer) for peer in peers)]


def time_once(case: Case, peer: Peer, function: Function, items: Any, expected: Any, warm_seconds: float) -> float:
    with case.session(peer, function, items) as call:
        verify(case.name, peer, call(), expected)
        if case.warm:
            warm_up(call, warm_seconds)
            return timed(case.name, peer, call, expected)
    with case.session(peer, function, items) as call:
        return timed(case.name, peer, call, expected)


def warm_up(call: Call, seconds: float) -> None:
    """Call until so much time has been spent in calls: all peers get the same, fast ones more calls."""
    spent = 0.0
    while spent < seconds:
        start = time.perf_counter()
        call()
        spent += time.perf_counter() - start


def timed(case: str, peer: Peer, call: Call, expected: Any) -> float:
    gc.collect()
    start = time.perf_counter()
    results = call()
    taken = time.perf_counter() - start
    verify(case, peer, results, expected)
    return taken


def timings(seconds: dict[str, list[float]]) -> tuple[Timing, ...]:
    return tuple(Timing(peer, tuple(taken)) for peer, taken in seconds.items() if taken)


# Tasks of every length


@dataclass(frozen=True)
class Point:
    """The work at one length of a sweep, and what it took."""

    function: Function
    items: range
    expected: Any
    seconds: dict[str, list[float]]

    def efficiency(self, peer: str, n_jobs: int) -> float:
        return self.seconds[Loop.name][-1] / self.seconds[peer][-1] / n_jobs


def measure_sweep(
    sweep: Sweep, peers: Sequence[type[Peer]], settings: Settings, progress: Progress
) -> list[CaseResult]:
    """The loop always takes part: it says how long the tasks are."""
    peers = [Loop, *(peer for peer in peers if peer is not Loop)]
    points = make_points(sweep, peers, settings.quick)
    for peer in turns(sweep.name, peers, settings, progress):
        descend(sweep.name, peer(settings.n_jobs), points)
    return [CaseResult(sweep.name, len(point.items), settings.n_jobs, timings(point.seconds)) for point in points]


def make_points(sweep: Sweep, peers: Sequence[type[Peer]], quick: bool) -> list[Point]:
    targets = sweep.quick_lengths if quick else sweep.lengths
    serial = sweep.quick_seconds if quick else sweep.seconds
    points = []
    for target, function in zip(targets, functions.busy_for(*targets), strict=True):
        items = range(min(sweep.most_tasks, round(serial / target)))
        expected = canonical(Loop(1).map(function, items))
        points.append(Point(function, items, expected, {peer.name: [] for peer in peers}))
    return points


def descend(name: str, peer: Peer, points: Sequence[Point]) -> None:
    """From the longest tasks to the shortest, on one pool."""
    with peer:
        for point in reversed(points):

            def call(point: Point = point) -> list[Any]:
                return peer.map(point.function, point.items)

            verify(name, peer, call(), point.expected)
            point.seconds[peer.name].append(timed(name, peer, call, point.expected))
            if point.efficiency(peer.name, peer.n_jobs) < HOPELESS:
                break


# What comes out must be what the loop yields


def verify(case: str, peer: Peer, results: Any, expected: Any) -> None:
    """`expected` is canonical."""
    if not is_same(canonical(results), expected):
        raise WrongResult(f"{case}: the results of {peer.name} are not those of the plain loop, in value or in type")


def canonical(results: Any) -> Any:
    """Arrays and lists of them as they are; else bytes that say every value and every type, nested ones too."""
    if isinstance(results, np.ndarray) or (type(results) is list and results and isinstance(results[0], np.ndarray)):
        return results
    try:
        return marshal.dumps(
            results, 2
        )  # the last version that writes the same object twice as it writes two equal ones
    except ValueError:  # something that none of the cases yields
        return None


def is_same(found: Any, expected: Any) -> bool:
    if type(found) is not type(expected):
        return False
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(is_same, found, expected))
    if isinstance(expected, np.ndarray):
        return found.dtype == expected.dtype and np.array_equal(found, expected)
    return bool(found == expected)
