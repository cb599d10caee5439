"""What a pool was made with, checked."""

from __future__ import annotations

import multiprocessing
import operator
import resource
from dataclasses import dataclass
from multiprocessing import dummy
from multiprocessing.context import BaseContext
from typing import Any

from fastpool.machine import cpu_count, memory_bytes

MOST_JOBS = 65535  # lanes of a segment
MOST_BYTES = 2**62  # of memory_limit: as good as none
CHUNK_BYTES = 4 << 20  # most of a chunk whose size was left to us
DESCRIPTORS = 2  # that a worker takes: its bell and its process handle

DEFAULT_START_METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


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
    enable_insights: bool
    memory_limit: int

    @property
    def context(self) -> BaseContext:
        """``multiprocessing``'s context of the start method; of threads, its module of the same interface."""
        if self.start_method == "threading":
            return dummy  # type: ignore[return-value]
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
    enable_insights: bool,
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
        "enable_insights": enable_insights,
    }
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    _check_start_method(start_method)
    jobs = check_int("n_jobs", n_jobs, least=1)
    _check_descriptors(jobs)
    limit = check_int("memory_limit", memory_limit, least=1)
    return PoolOptions(
        n_jobs=cpu_count() if jobs is None else jobs,
        daemon=daemon,
        shared_objects=shared_objects,
        pass_worker_id=pass_worker_id,
        use_worker_state=use_worker_state,
        start_method=start_method,
        keep_alive=keep_alive,
        use_dill=use_dill,
        enable_insights=enable_insights,
        memory_limit=memory_bytes() // 2 if limit is None else min(limit, MOST_BYTES),
    )


def check_int(name: str, value: Any, least: int) -> int | None:
    """An optional whole number: anything that has ``__index__``, but no bool.

    Raises
    ------
    TypeError, ValueError
    """
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int or None, not {type(value).__name__}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {shorten(number)}")
    return number


def shorten(number: int) -> str:
    """A number that may have more digits than Python likes to print."""
    return str(number) if abs(number) < 10**30 else f"a number of {number.bit_length()} bits"


def _check_descriptors(n_jobs: int | None) -> None:
    if n_jobs is None:
        return
    may_open = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = MOST_JOBS if may_open == resource.RLIM_INFINITY else min(MOST_JOBS, may_open // DESCRIPTORS)
    if n_jobs > most:
        why = "" if most == MOST_JOBS else f": each takes {DESCRIPTORS} of the {may_open} descriptors of `ulimit -n`"
        raise ValueError(f"n_jobs must be at most {most}, not {shorten(n_jobs)}{why}")


def _check_start_method(start_method: Any) -> None:
    if not isinstance(start_method, str):
        raise TypeError(f"start_method must be a str, not {type(start_method).__name__}")
    available = [*multiprocessing.get_all_start_methods(), "threading"]
    if start_method not in available:
        raise ValueError(f"start_method must be one of {', '.join(map(repr, available))}, not {start_method!r}")
