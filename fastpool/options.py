"""What a pool was made with, checked."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

from fastpool.machine import cpu_count, memory_bytes

DEFAULT_START_METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


CHUNK_BYTES = 4 << 20


@dataclass
class PoolOptions:
    """The parameters of :class:`fastpool.WorkerPool`, which documents them."""

    n_jobs: int
    daemon: bool
    shared_objects: Any
    pass_worker_id: bool
    use_worker_state: bool
    start_method: str
    keep_alive: bool
    use_dill: bool
    memory_limit: int

    @property
    def context(self) -> BaseContext:
        """``multiprocessing``'s context of the start method."""
        return multiprocessing.get_context(self.start_method)

    @property
    def chunk_bytes(self) -> int:
        """Most bytes of a chunk whose size was left to us: several for every worker fit into the memory limit."""
        return max(1, min(CHUNK_BYTES, self.memory_limit // (4 * self.n_jobs + 4)))


def make_options(
    n_jobs: int | None,
    daemon: bool,
    shared_objects: Any,
    pass_worker_id: bool,
    use_worker_state: bool,
    start_method: str,
    keep_alive: bool,
    use_dill: bool,
    memory_limit: int | None,
) -> PoolOptions:
    """Check the arguments of a pool.

    Raises
    ------
    TypeError, ValueError
        Naming the parameter, what was given and what is allowed.
    """
    flags = {
        "daemon": daemon,
        "pass_worker_id": pass_worker_id,
        "use_worker_state": use_worker_state,
        "keep_alive": keep_alive,
        "use_dill": use_dill,
    }
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    _check_start_method(start_method)
    return PoolOptions(
        n_jobs=_whole("n_jobs", n_jobs, cpu_count()),
        daemon=daemon,
        shared_objects=shared_objects,
        pass_worker_id=pass_worker_id,
        use_worker_state=use_worker_state,
        start_method=start_method,
        keep_alive=keep_alive,
        use_dill=use_dill,
        memory_limit=_whole("memory_limit", memory_limit, memory_bytes() // 2),
    )


def _whole(name: str, value: Any, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int or None, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return int(value)


def _check_start_method(start_method: Any) -> None:
    if not isinstance(start_method, str):
        raise TypeError(f"start_method must be a str, not {type(start_method).__name__}")
    if start_method == "threading":
        raise ValueError("start_method 'threading' is not there yet: use 'fork', 'spawn' or 'forkserver'")
    available = multiprocessing.get_all_start_methods()
    if start_method not in available:
        raise ValueError(f"start_method must be one of {', '.join(map(repr, available))}, not {start_method!r}")
