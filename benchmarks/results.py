"""What a case yields: the seconds of every repeat of every peer, their statistics, and the way to JSON and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .peers import Fastpool, Loop


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


def how_many(timings: Sequence[Timing]) -> str:
    """The numbers of runs, in words: slow peers have fewer."""
    counts = sorted({len(timing.seconds) for timing in timings})
    return f"{counts[0]} runs" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} runs"


@dataclass(frozen=True)
class CaseResult:
    case: str
    n_tasks: int
    n_jobs: int
    timings: tuple[Timing, ...]

    def timing(self, peer: str) -> Timing | None:
        return next((timing for timing in self.timings if timing.peer == peer), None)

    def ratio(self, slower: str, faster: str) -> float | None:
        """How many times `faster` is as fast as `slower`, by their medians."""
        one, other = self.timing(slower), self.timing(faster)
        return one.median / other.median if one and other else None

    def efficiency(self, peer: str) -> float | None:
        """The loop's time, shared out over the workers, as a part of the time taken: 1.0 is ideal."""
        ratio = self.ratio(Loop.name, peer)
        return ratio / self.n_jobs if ratio is not None else None

    @property
    def task_seconds(self) -> float:
        """The length of one task: what the loop takes for it."""
        loop = self.timing(Loop.name)
        if loop is None:
            raise ValueError(f"{self.case}: the loop took no part")
        return loop.median / self.n_tasks

    def to_json(self) -> dict[str, Any]:
        peers = {
            timing.peer: {
                "seconds": list(timing.seconds),
                "median": timing.median,
                "min": timing.low,
                "max": timing.high,
                "loop_over_peer": self.ratio(Loop.name, timing.peer),
                "peer_over_fastpool": self.ratio(timing.peer, Fastpool.name),
            }
            for timing in self.timings
        }
        return {
            "case": self.case,
            "n_tasks": self.n_tasks,
            "n_jobs": self.n_jobs,
            "peers": peers,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> CaseResult:
        timings = (Timing(peer, tuple(found["seconds"])) for peer, found in record["peers"].items())
        return cls(record["case"], record["n_tasks"], record["n_jobs"], tuple(timings))


# Efficiency over task length

Curve = list[tuple[float, float]]  # seconds of a task, efficiency


def curve_of(points: Sequence[CaseResult], peer: str) -> Curve:
    """A peer's efficiency at each length it was measured at, shortest first."""
    found = ((point.task_seconds, point.efficiency(peer)) for point in points)
    return sorted((length, efficiency) for length, efficiency in found if efficiency is not None)


@dataclass(frozen=True)
class Metg:
    """The minimum effective task granularity: the shortest task of which `share` of the ideal speed is reached.

    `seconds` is exact where the curve crosses `share`; else the end of the curve that `bound` tells of:
    "<" (even the shortest task is long enough) or ">" (even the longest is too short).
    """

    seconds: float
    bound: str = ""


def metg(curve: Curve, share: float = 0.5) -> Metg | None:
    """Slaughter et al., "Task Bench" (SC20), on a curve that is linear over the logarithm of the length.

    Of several crossings the one at the shortest tasks counts. None for a peer that was not measured.
    """
    if not curve:
        return None
    first = next((i for i, (_, efficiency) in enumerate(curve) if efficiency >= share), None)
    if first is None:
        return Metg(curve[-1][0], ">")
    if first == 0:
        return Metg(curve[0][0], "<")
    (short, below), (long, above) = curve[first - 1], curve[first]
    part = (share - below) / (above - below)
    return Metg(math.exp(math.log(short) + part * (math.log(long) - math.log(short))))
