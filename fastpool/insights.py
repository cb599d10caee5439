"""Where workers spend their time, from what they count on the board."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from fastpool._native import Segment

PARTS = ("start_up", "init", "waiting", "working", "exit")
LONGEST = 5
EFFICIENT = 0.8  # share of working time below which a print-out says so
OFF = "There are no insights: make the pool with WorkerPool(enable_insights=True), and run a map."


@dataclass
class Times:
    """What the workers of one lane, one after another, have done.

    Attributes
    ----------
    tasks : int
    start_up, init, waiting, working, exit : int
        ns.
    """

    tasks: int = 0
    start_up: int = 0
    init: int = 0
    waiting: int = 0
    working: int = 0
    exit: int = 0

    def __add__(self, other: Times) -> Times:
        return Times(self.tasks + other.tasks, *(getattr(self, part) + getattr(other, part) for part in PARTS))


@dataclass
class Insights:
    """The times of one pool's workers since they were last started.

    A worker's line is read whenever somebody asks, and for the last time before it becomes its successor's. Any thread
    may ask.

    Attributes
    ----------
    n_jobs : int
    """

    n_jobs: int
    _ended: list[Times] = field(default_factory=list)  # of workers that are gone, by lane
    _longest: list[tuple[int, bytes]] = field(default_factory=list)  # of these workers' tasks
    _living: dict[int, tuple[int, Segment]] = field(default_factory=dict)  # when each was started; where its line is
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def start_afresh(self) -> None:
        """The first worker is about to be started."""
        with self._lock:
            self._ended = [Times() for _ in range(self.n_jobs)]
            self._longest = []
            self._living.clear()

    def note_start(self, worker_id: int, segment: Segment) -> None:
        """This worker is about to be started."""
        with self._lock:
            self._living[worker_id] = time.monotonic_ns(), segment

    def note_end(self, worker_id: int) -> None:
        """This worker's line is about to be emptied, or to go away with all others."""
        with self._lock:
            if worker_id in self._living:
                times, longest = self._read(worker_id)
                del self._living[worker_id]
                self._ended[worker_id] += times
                self._longest = most(self._longest + longest)

    def _read(self, worker_id: int) -> tuple[Times, list[tuple[int, bytes]]]:
        since, segment = self._living[worker_id]
        tasks, started, init, waiting, working, leaving = segment.times(worker_id)
        start_up = max(0, started - since) if started else 0
        return Times(tasks, start_up, init, waiting, working, leaving), segment.longest(worker_id)

    def collect(self) -> dict[str, Any]:
        """What :meth:`fastpool.WorkerPool.get_insights` returns."""
        with self._lock:
            workers, longest = list(self._ended), list(self._longest)
            for worker_id in self._living:
                times, own = self._read(worker_id)
                workers[worker_id] += times
                longest += own
        return summary(workers, most(longest)) if workers else {}


def most(tasks: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The longest of these tasks, the longest first."""
    return sorted(tasks, reverse=True)[:LONGEST]


def summary(workers: list[Times], longest: list[tuple[int, bytes]]) -> dict[str, Any]:
    """Times as text, with their sums, shares, means and standard deviations."""
    sums = {part: sum(getattr(worker, part) for worker in workers) for part in PARTS}
    whole = sum(sums.values())
    found: dict[str, Any] = {"n_completed_tasks": [worker.tasks for worker in workers]}
    for part in PARTS:
        found[f"{part}_time"] = [as_text(getattr(worker, part)) for worker in workers]
    for part in PARTS:
        found[f"total_{part}_time"] = as_text(sums[part])
    found["top_5_max_task_durations"] = [as_text(took) for took, _ in longest]
    found["top_5_max_task_args"] = [arguments.decode(errors="replace") for _, arguments in longest]
    found["total_time"] = as_text(whole)
    for part in PARTS:
        mean = sums[part] / len(workers)
        spread = math.sqrt(sum((getattr(worker, part) - mean) ** 2 for worker in workers) / len(workers))
        found[f"{part}_ratio"] = sums[part] / whole if whole else 0.0
        found[f"{part}_time_mean"] = as_text(mean)
        found[f"{part}_time_std"] = as_text(spread)
    return found


def as_text(ns: float) -> str:
    """``H:MM:SS.mmm``, rounded down."""
    milliseconds = int(ns) // 1_000_000
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}.{milliseconds:03}"


def as_table(found: dict[str, Any]) -> str:
    """A print-out of a summary."""
    if not found:
        return OFF
    tasks = found["n_completed_tasks"]
    rows = [("", "tasks", *(part.replace("_", "-") for part in PARTS))]
    rows += [
        (f"worker {i}", str(count), *(found[f"{part}_time"][i] for part in PARTS)) for i, count in enumerate(tasks)
    ]
    rows.append(("all", str(sum(tasks)), *(found[f"total_{part}_time"] for part in PARTS)))
    rows.append(("mean", "", *(found[f"{part}_time_mean"] for part in PARTS)))
    rows.append(("std", "", *(found[f"{part}_time_std"] for part in PARTS)))
    rows.append(("share", "", *(f"{found[f'{part}_ratio']:.1%}" for part in PARTS)))
    lines = ["Insights of the pool's workers", ""]
    lines += aligned(rows)
    if found["working_ratio"] < EFFICIENT:
        lines += ["", f"The workers spent less than {EFFICIENT:.0%} of their time on tasks."]
    if found["top_5_max_task_args"]:
        lines += ["", "The longest tasks"]
        lines += map("  ".join, zip(found["top_5_max_task_durations"], found["top_5_max_task_args"], strict=True))
    return "\n".join(lines)


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
