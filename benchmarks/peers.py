"""What is compared: one adapter per peer, all with the same life: open, map, close.

A loop is a peer too, the serial twin of every case. Pools fork where they can: the fastest start each of them has,
and what fastpool uses by default. Each cuts its input as it does by default; `concurrent.futures`, which would send
tasks one by one, as `multiprocessing.Pool` does.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata, util
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from .functions import Function

Array = npt.NDArray[Any]


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Peer(ABC):
    """One way to map a function, and the pool it holds inside its `with` block."""

    name: ClassVar[str]
    package: ClassVar[str | None] = None  # what must be installed
    starts_fast: ClassVar[bool] = True  # or it has no place in a run of a minute

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
    def map(self, function: Function, items: Sequence[Any]) -> list[Any]: ...

    @abstractmethod
    def map_array(self, function: Function, array: Array, n_pieces: int) -> Array:
        """The function over pieces of an array, and the results joined."""

    @abstractmethod
    def close(self) -> None: ...

    def apply(self, function: Function, items: Sequence[Any]) -> list[Any]:
        """One call after another, each waited for."""
        raise NotImplementedError

    def apply_async(self, function: Function, items: Sequence[Any]) -> list[Any]:
        """All calls handed in, then all waited for."""
        raise NotImplementedError

    def short_lived(self, function: Function, items: Sequence[Any]) -> list[Any]:
        """A map on a new pool whose workers are replaced after each task."""
        raise NotImplementedError

    @classmethod
    def offers(cls, way: str) -> bool:
        """Has it this way of running a case, a method's name?"""
        return getattr(cls, way) is not getattr(Peer, way)

    def once(self, function: Function, items: Sequence[Any]) -> list[Any]:
        """A map on a pool that is made for it and gone after it, as a user would write it."""
        with self:
            return self.map(function, items)

    def shared(self, array: Array) -> Array:
        """The array where workers reach it without a copy, if the peer has such a place."""
        return array

    def __enter__(self) -> None:
        self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.close()


class Loop(Peer):
    name = "loop"

    def open(self) -> None:
        pass

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]

    def map_array(self, function: Function, array: Array, n_pieces: int) -> Array:
        result: Array = function(array)
        return result

    def apply(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return self.map(function, items)

    apply_async = short_lived = apply

    def close(self) -> None:
        pass


class PoolPeer(Peer):
    """One with the interface of `multiprocessing.Pool`, as `pool`."""

    pool: Any

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        results: list[Any] = self.pool.map(function, items)
        return results

    def apply(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return [self.pool.apply(function, (item,)) for item in items]

    def apply_async(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return [result.get() for result in [self.pool.apply_async(function, (item,)) for item in items]]


class MultiprocessingPool(PoolPeer):
    name = "mp.Pool"

    def open(self) -> None:
        self.pool = multiprocessing.get_context("fork").Pool(self.n_jobs)

    def map_array(self, function: Function, array: Array, n_pieces: int) -> Array:
        return np.concatenate(self.pool.map(function, np.array_split(array, n_pieces), chunksize=1))

    def short_lived(self, function: Function, items: Sequence[Any]) -> list[Any]:
        with multiprocessing.get_context("fork").Pool(self.n_jobs, maxtasksperchild=1) as pool:
            return pool.map(function, items, chunksize=1)

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


class Futures(Peer):
    name = "futures"

    def open(self) -> None:
        self.executor = ProcessPoolExecutor(self.n_jobs, multiprocessing.get_context("fork"))

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        like_pool = math.ceil(len(items) / (4 * self.n_jobs))
        return list(self.executor.map(function, items, chunksize=like_pool))

    def map_array(self, function: Function, array: Array, n_pieces: int) -> Array:
        return np.concatenate(list(self.executor.map(function, np.array_split(array, n_pieces))))

    def apply(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return [self.executor.submit(function, item).result() for item in items]

    def apply_async(self, function: Function, items: Sequence[Any]) -> list[Any]:
        return [future.result() for future in [self.executor.submit(function, item) for item in items]]

    def close(self) -> None:
        self.executor.shutdown()


class Joblib(Peer):
    name = "joblib"
    package = "joblib"

    def open(self) -> None:
        import joblib

        self.delayed = joblib.delayed
        self.parallel: Any = joblib.Parallel(n_jobs=self.n_jobs).__enter__()

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        results: list[Any] = self.parallel(self.delayed(function)(item) for item in items)
        return results

    def map_array(self, function: Function, array: Array, n_pieces: int) -> Array:
        return np.concatenate(self.map(function, np.array_split(array, n_pieces)))

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        self.parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


class Mpire(PoolPeer):
    name = "mpire"
    package = "mpire"

    def open(self) -> None:
        from mpire.pool import WorkerPool

        self.pool = WorkerPool(n_jobs=self.n_jobs, keep_alive=True, start_method="fork")

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        results: list[Any] = self.pool.map(function, items, concatenate_numpy_output=False)
        return results

    def map_array(self, function: Function, array: Array, n_pieces: int) -> Array:
        result: Array = self.pool.map(function, array, chunk_size=math.ceil(len(array) / n_pieces))
        return result

    def close(self) -> None:
        self.pool.terminate()

    def once(self, function: Function, items: Sequence[Any]) -> list[Any]:
        from mpire.pool import WorkerPool

        with WorkerPool(n_jobs=self.n_jobs, start_method="fork") as pool:
            results: list[Any] = pool.map(function, items)
        return results


class Ray(Peer):
    """Ray's own drop-in for `multiprocessing.Pool`. Its daemons are started and stopped with each pool: they would
    take time from the others."""

    name = "ray"
    package = "ray"
    starts_fast = False

    def open(self) -> None:
        import ray
        from ray.util.multiprocessing import Pool

        ray.init(num_cpus=self.n_jobs, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        self.pool: Any = Pool(self.n_jobs)

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        results: list[Any] = self.pool.map(function, items)
        return results

    def map_array(self, function: Function, array: Array, n_pieces: int) -> Array:
        return np.concatenate(self.pool.map(function, np.array_split(array, n_pieces), chunksize=1))

    def close(self) -> None:
        import ray

        self.pool.terminate()
        self.pool.join()
        ray.shutdown()


class Fastpool(PoolPeer):
    name = "fastpool"
    package = "fastpool"

    @classmethod
    def version(cls) -> str | None:
        """Of the package that is imported, be it installed or not."""
        import fastpool

        return fastpool.__version__

    def open(self) -> None:
        from fastpool import WorkerPool

        self.pool = WorkerPool(n_jobs=self.n_jobs, keep_alive=True)

    def map_array(self, function: Function, array: Array, n_pieces: int) -> Array:
        """It cuts the array itself."""
        result: Array = self.pool.map(function, array)
        return result

    def short_lived(self, function: Function, items: Sequence[Any]) -> list[Any]:
        from fastpool import WorkerPool

        with WorkerPool(n_jobs=self.n_jobs) as pool:
            results: list[Any] = pool.map(function, items, chunk_size=1, worker_lifespan=1)
        return results

    def close(self) -> None:
        self.pool.terminate()

    def once(self, function: Function, items: Sequence[Any]) -> list[Any]:
        from fastpool import WorkerPool

        with WorkerPool(n_jobs=self.n_jobs) as pool:
            results: list[Any] = pool.map(function, items)
        return results

    def shared(self, array: Array) -> Array:
        import fastpool

        shared: Array = fastpool.asshared(array)
        return shared


class FastpoolInsights(Fastpool):
    name = "with insights"

    def open(self) -> None:
        from fastpool import WorkerPool

        self.pool = WorkerPool(n_jobs=self.n_jobs, keep_alive=True, enable_insights=True)


class FastpoolBar(Fastpool):
    """A bar that is drawn, but not where the table is."""

    name = "with a bar"
    package = "tqdm"

    def open(self) -> None:
        super().open()
        self.sink = open(os.devnull, "w")  # noqa: SIM115

    def map(self, function: Function, items: Sequence[Any]) -> list[Any]:
        options = {"file": self.sink}
        results: list[Any] = self.pool.map(function, items, progress_bar=True, progress_bar_options=options)
        return results

    def close(self) -> None:
        super().close()
        self.sink.close()


PEERS: tuple[type[Peer], ...] = (Loop, MultiprocessingPool, Futures, Joblib, Mpire, Ray, Fastpool)
BY_NAME: dict[str, type[Peer]] = {peer.name: peer for peer in PEERS}
