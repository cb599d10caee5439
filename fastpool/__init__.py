"""fastpool: a worker pool whose own cost is close to nothing.

>>> from fastpool import WorkerPool
>>> with WorkerPool(n_jobs=2) as pool:
...     pool.map(abs, [-1, 2, -3])
[1, 2, 3]
"""

from fastpool.arrays import asshared, empty
from fastpool.errors import (
    DamagedMemoryError,
    FastpoolError,
    RemoteError,
    SerializationError,
    WorkerDiedError,
    WorkerTimeoutError,
)
from fastpool.machine import cpu_count
from fastpool.pool import WorkerPool
from fastpool.results import AsyncResult
from fastpool.utils import chunk_tasks, make_single_arguments

__version__ = "0.1.0"

__all__ = [
    "AsyncResult",
    "DamagedMemoryError",
    "FastpoolError",
    "RemoteError",
    "SerializationError",
    "WorkerDiedError",
    "WorkerPool",
    "WorkerTimeoutError",
    "asshared",
    "chunk_tasks",
    "cpu_count",
    "empty",
    "make_single_arguments",
]
