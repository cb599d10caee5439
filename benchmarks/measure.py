"""Interleaved measurement: every repeat runs each peer once, in turn, so that a slow moment hits all alike.

Each peer gets a new pool in each repeat, and only one pool is there at a time. The untimed first map warms
it and is verified against the plain loop before anything is timed.
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .cases import Case
from .peers import Loop, Peer, version_of


class WrongResult(Exception):
    """A peer's results are not those of the plain loop."""


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat of one peer in one case."""

    peer: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def low(self) -> float:
        return min(self.seconds)

    @property
    def high(self) -> float:
        return max(self.seconds)


@dataclass(frozen=True)
class CaseResult:
    case: Case
    n_tasks: int
    n_jobs: int
    timings: tuple[Timing, ...]

    def timing(self, peer: str) -> Timing | None:
        return next((timing for timing in self.timings if timing.peer == peer), None)

    def ratio(self, slower: str, faster: str) -> float | None:
        """How many times `faster` is as fast as `slower`."""
        one, other = self.timing(slower), self.timing(faster)
        return one.median / other.median if one and other else None

    def efficiency(self, peer: str) -> float | None:
        """The serial time, shared out over the workers, as a part of the time taken: 1.0 is ideal."""
        ratio = self.ratio(Loop.name, peer)
        return ratio / self.n_jobs if ratio is not None else None


def measure(
    case: Case,
    peers: Sequence[type[Peer]],
    n_jobs: int,
    repeats: int,
    quick: bool,
    progress: Callable[[str], None],
) -> CaseResult:
    n_tasks = case.tasks(quick)
    items = case.items(n_tasks)
    expected = [case.function(item) for item in items]
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for repeat in range(repeats):
        for peer_type in peers:
            if repeat < repeats_of(peer_type, case, repeats):
                progress(f"{case.name}: repeat {repeat + 1} of {repeats}, {peer_type.name}")
                seconds[peer_type.name].append(time_once(case, peer_type(n_jobs), items, expected))
    timings = tuple(Timing(name, tuple(taken)) for name, taken in seconds.items())
    return CaseResult(case, n_tasks, n_jobs, timings)


def repeats_of(peer: type[Peer], case: Case, repeats: int) -> int:
    if peer.many_tasks_repeats is None or not case.many_tasks:
        return repeats
    return min(repeats, peer.many_tasks_repeats)


def time_once(case: Case, peer: Peer, items: Sequence[Any], expected: list[Any]) -> float:
    warm_results = case.prepare(peer, case.function, items)
    try:
        verify(case, peer, warm_results, expected)
        del warm_results  # or every peer's timed results would need memory the process never had before
        gc.collect()
        start = time.perf_counter()
        results = case.run(peer, case.function, items)
        taken = time.perf_counter() - start
        verify(case, peer, results, expected)
        return taken
    finally:
        case.finish(peer)


def verify(case: Case, peer: Peer, results: list[Any], expected: list[Any]) -> None:
    if type(results) is not list or results != expected:
        raise WrongResult(f"{case.name}: the results of {peer.name} are not those of the plain loop")
    if list(map(type, results)) != list(map(type, expected)):
        raise WrongResult(f"{case.name}: the results of {peer.name} have other types than those of the loop")


# What the figures were taken on


def environment(peers: Sequence[type[Peer]]) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "numpy": version_of("numpy"),
        "peers": {peer.name: peer.version() for peer in peers if peer.package},
        "cpu_count": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "model": machine_model(),
        "system": f"{platform.system()} {platform.release()}",
    }


def machine_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model", "cpu model"):
                return value.strip()
    return platform.processor() or platform.machine()
