"""What is compared: one adapter per peer, all with the same life: open, warm, map, close.

A loop is a peer too, the serial twin of every case. All pools fork: the fastest start each of them has, and
what fastpool uses by default.
"""

from __future__ import annotations

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from importlib import metadata, util
from multiprocessing.pool import Pool
from typing import Any, ClassVar

Function = Callable[[Any], Any]


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Peer(ABC):
    """One way to map a function, and the pool it holds between `open` and `close`."""

    name: ClassVar[str]
    package: ClassVar[str | None] = None  # what must be installed
    many_tasks_repeats: ClassVar[int | None] = None  # at most so many repeats of cases with many tasks

    def __init__(self, n_jobs: int) -> None:
        self.n_jobs = n_jobs

    @classmethod
    def missing(cls) -> str | None:
        """Why this peer cannot take part, None if it can."""
        if cls.package is None or util.find_spec(cls.package) is not None:
            return None
        return f"{cls.package} is not installed"

    @classmethod
    def version(cls) -> str | None:
        return None if cls.package is None else version_of(cls.package)

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def map(self, function: Function, items: Iterable[Any]) -> list[Any]: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def once(self, function: Function, items: Iterable[Any]) -> list[Any]:
        """A map on a pool that is made for it and gone after it, as a user would write it."""

    def warm(self, function: Function, items: Iterable[Any]) -> list[Any]:
        """One untimed map: the workers run, and the memory that the timed one needs is touched."""
        return self.map(function, items)


class Loop(Peer):
    name = "loop"

    def open(self) -> None:
        pass

    def map(self, function: Function, items: Iterable[Any]) -> list[Any]:
        return [function(item) for item in items]

    def close(self) -> None:
        pass

    def once(self, function: Function, items: Iterable[Any]) -> list[Any]:
        return self.map(function, items)


class MultiprocessingPool(Peer):
    name = "mp.Pool"

    def open(self) -> None:
        self.pool: Pool = multiprocessing.get_context("fork").Pool(self.n_jobs)

    def map(self, function: Function, items: Iterable[Any]) -> list[Any]:
        return self.pool.map(function, items)

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()

    def once(self, function: Function, items: Iterable[Any]) -> list[Any]:
        with multiprocessing.get_context("fork").Pool(self.n_jobs) as pool:
            return pool.map(function, items)


class Mpire(Peer):
    name = "mpire"
    package = "mpire"
    many_tasks_repeats = 2  # seconds for a million tasks

    def open(self) -> None:
        from mpire.pool import WorkerPool

        self.pool: Any = WorkerPool(n_jobs=self.n_jobs, keep_alive=True, start_method="fork")

    def map(self, function: Function, items: Iterable[Any]) -> list[Any]:
        results: list[Any] = self.pool.map(function, items)
        return results

    def close(self) -> None:
        self.pool.terminate()

    def once(self, function: Function, items: Iterable[Any]) -> list[Any]:
        from mpire.pool import WorkerPool

        with WorkerPool(n_jobs=self.n_jobs, start_method="fork") as pool:
            results: list[Any] = pool.map(function, items)
        return results


class Fastpool(Peer):
    name = "fastpool"
    package = "fastpool"

    def open(self) -> None:
        from fastpool import WorkerPool

        self.pool = WorkerPool(n_jobs=self.n_jobs, keep_alive=True)

    def map(self, function: Function, items: Iterable[Any]) -> list[Any]:
        results: list[Any] = self.pool.map(function, items)
        return results

    def close(self) -> None:
        self.pool.terminate()

    def once(self, function: Function, items: Iterable[Any]) -> list[Any]:
        from fastpool import WorkerPool

        with WorkerPool(n_jobs=self.n_jobs) as pool:
            results: list[Any] = pool.map(function, items)
        return results


PEERS: tuple[type[Peer], ...] = (Loop, MultiprocessingPool, Mpire, Fastpool)
