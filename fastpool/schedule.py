"""How large the next chunk of fed input is, and how far the input may be read ahead."""

from __future__ import annotations

import math

from fastpool.job import MapJob

CHUNK_NS = 2_000_000  # a chunk lasts about this long: claiming shows below 50 µs, imbalance above some ms
MOST_TASKS = 1 << 17  # of a chunk by measured speed
FIRST_TASKS = 64  # most of a chunk while no task has been timed
AHEAD = 4  # chunks a worker that may wait, unclaimed
MOST_GRAIN = 8192  # results of one worker that a list builder sleeps for: a tenth of a ring of numbers


class Schedule:
    """Chunk sizes for input that the parent feeds.

    With a given chunk size, chunks end at multiples of it (rounded up, so that sizes average to a fraction). Otherwise
    they last about CHUNK_NS by the workers' own clocks and shrink towards the end (guided self-scheduling:
    Polychronopoulos and Kuck, 1987).

    Parameters
    ----------
    job : MapJob
    n_workers : int
    most_active : int or None
        Tasks that may be handed out and not done with.
    """

    def __init__(self, job: MapJob, n_workers: int, most_active: int | None) -> None:
        self.job = job
        self.most_active = most_active
        self.n_workers = n_workers
        self.chunks = 0
        self.ahead = AHEAD * n_workers  # chunks that may wait, unclaimed
        self.even: int | None = None  # a size that divides the lifespan, so that no worker outlives it
        if job.worker_lifespan is not None and job.chunk_size is None:
            most = FIRST_TASKS if job.length is None else max(1, job.length // (4 * n_workers))
            self.even = largest_divisor(job.worker_lifespan, min(FIRST_TASKS, most))

    @property
    def is_exact(self) -> bool:
        """Does every chunk have the given size? In an ordered job, where the chunk decides which worker has a task;
        elsewhere one is cut short rather than held back."""
        return self.job.in_turn and self.job.chunk_size is not None

    def next_size(self, fed: int, done_with: int, unclaimed: int, task_ns: float | None) -> int:
        """Tasks of the next chunk, when `fed` tasks went before it; 0 while the window is full."""
        if unclaimed >= self.ahead:
            return 0
        size = self._wanted(fed, task_ns)
        if self.most_active is None:
            return size
        size = min(size, self.most_active)
        room = self.most_active - (fed - done_with)
        if room < size and self.is_exact:
            return 0
        return max(0, min(size, room))

    def _wanted(self, fed: int, task_ns: float | None) -> int:
        if self.job.chunk_size is not None:
            return next_multiple(self.job.chunk_size, fed) - fed
        if self.even is not None:
            return self.even
        if task_ns is None:
            size = min(FIRST_TASKS, 1 << min(30, self.chunks // self.n_workers))
        else:
            size = min(MOST_TASKS, int(CHUNK_NS / max(task_ns, 1)))
        if self.job.length is not None:
            size = min(size, max(0, self.job.length - fed) // (4 * self.n_workers))
        if self.most_active is not None:
            size = min(size, self.most_active // (2 * self.n_workers))
        return max(1, size)


def next_multiple(size: float, after: int) -> int:
    """The least multiple of a chunk size, rounded up, that is more than `after`."""
    k = int(after / size)
    while math.ceil(k * size) <= after:
        k += 1
    return math.ceil(k * size)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)


def collect_grain(left: int | None, n_workers: int, window: int | None) -> int:
    """How many more results of one worker are worth waking the parent for, in a map that only builds a list.

    Many while much is left, few towards the end, never more than the window of active tasks lets pile up.
    """
    return bounded_grain(MOST_GRAIN if left is None else left // (4 * n_workers), n_workers, window)


def bounded_grain(wanted: float, n_workers: int, window: int | None) -> int:
    """So many results, or fewer where the ring or the window of active tasks would be full before."""
    bounds = [wanted, MOST_GRAIN] if window is None else [wanted, MOST_GRAIN, window // (2 * n_workers)]
    return max(1, int(min(bounds)))
