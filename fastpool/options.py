"""What a pool was made with, checked."""

from __future__ import annotations

import multiprocessing
import operator
import resource
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import dummy
from multiprocessing.context import BaseContext
from typing import Any

from fastpool.machine import CAN_PIN, can_run_on, cpu_count, memory_bytes

MOST_JOBS = 65535  # lanes of a segment
MOST_BYTES = 2**62  # of memory_limit: as good as none
CHUNK_BYTES = 4 << 20  # most of a chunk whose size was left to us
DESCRIPTORS = 2  # that a worker takes: its bell and its process handle

CpuIds = int | Sequence[int | Sequence[int]]  # as users give them

DEFAULT_START_METHOD = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


@dataclass
class PoolOptions:
    """The parameters of :class:`fastpool.WorkerPool`, which documents them."""

    n_jobs: int
    daemon: bool
    cpu_ids: list[frozenset[int]] | None  # of each worker
    shared_objects: Any
    pass_worker_id: bool
    use_worker_state: bool
    start_method: str
    keep_alive: bool
    use_dill: bool
    enable_insights: bool
    order_tasks: bool
    memory_limit: int

    @property
    def given_to_workers(self) -> dict[str, Any]:
        """What a worker is given when it starts, for as long as it lives, and can be changed in between."""
        return {
            "shared_objects": self.shared_objects,
            "pass_worker_id": self.pass_worker_id,
            "use_worker_state": self.use_worker_state,
        }

    @property
    def cores(self) -> int:
        """Cores that the pool's processes may spread over; 1 if its pinned workers have to share some."""
        return 1 if self.cpu_ids is not None and crowd(self.cpu_ids) else cpu_count()

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
    cpu_ids: CpuIds | None,
    shared_objects: Any,
    pass_worker_id: bool,
    use_worker_state: bool,
    start_method: str,
    keep_alive: bool,
    use_dill: bool,
    enable_insights: bool,
    order_tasks: bool,
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
        "order_tasks": order_tasks,
    }
    for name, value in flags.items():
        check_flag(name, value)
    _check_start_method(start_method)
    jobs = check_int("n_jobs", n_jobs, least=1)
    _check_descriptors(jobs)
    limit = check_int("memory_limit", memory_limit, least=1)
    jobs = cpu_count() if jobs is None else jobs
    return PoolOptions(
        n_jobs=jobs,
        daemon=daemon,
        cpu_ids=check_cpu_ids(cpu_ids, jobs),
        shared_objects=shared_objects,
        pass_worker_id=pass_worker_id,
        use_worker_state=use_worker_state,
        start_method=start_method,
        keep_alive=keep_alive,
        use_dill=use_dill,
        enable_insights=enable_insights,
        order_tasks=order_tasks,
        memory_limit=memory_bytes() // 2 if limit is None else min(limit, MOST_BYTES),
    )


def type_name(value: Any) -> str:
    """With its module, where that is not Python's: numpy has a bool, too."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def check_flag(name: str, value: Any) -> bool:
    """True or False, nothing that is only like it.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type_name(value)}")
    return value


def as_index(value: Any) -> int | None:
    """The whole number that this is, by its ``__index__``; None if it is a bool, or none.

    (To have an ``__index__`` says little: arrays of several numbers have one, and so do classes of numbers.)
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_int(name: str, value: Any, least: int, optional: bool = True) -> int | None:
    """A whole number, None where it is optional: anything that has ``__index__``, but no bool.

    Raises
    ------
    TypeError, ValueError
    """
    if value is None and optional:
        return None
    number = as_index(value)
    if number is None:
        raise TypeError(f"{name} must be an int{' or None' if optional else ''}, not {type_name(value)}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {shorten(number)}")
    return number


def check_cpu_ids(cpu_ids: Any, n_jobs: int) -> list[frozenset[int]] | None:
    """The cores of each worker: of one entry for all of them, or of one for each. An entry is an id or a list of ids.

    Raises
    ------
    TypeError, ValueError
    """
    entries = cpu_ids if isinstance(cpu_ids, (list, tuple)) else [cpu_ids]
    if cpu_ids is None or not entries:  # an empty list is none, as in mpire
        return None
    if len(entries) not in (1, n_jobs):
        raise ValueError(
            f"cpu_ids must have one entry, or one for each of the {n_jobs} workers (n_jobs), not {len(entries)}"
        )
    pinned = [_cores_of(entry) for entry in entries]
    if not CAN_PIN:
        raise ValueError("cpu_ids: this system has no way to pin a process to cores (sched_setaffinity)")
    known = can_run_on(frozenset().union(*pinned))
    for core in sorted(frozenset().union(*pinned) - known):
        raise ValueError(f"cpu_ids has {shorten(core)}, which is no core that this process may use")
    return pinned if len(pinned) == n_jobs else pinned * n_jobs


def _cores_of(entry: Any) -> frozenset[int]:
    cores = set()
    for given in entry if isinstance(entry, (list, tuple)) else [entry]:
        core = as_index(given)
        if core is None:
            raise TypeError(
                f"cpu_ids must be an int, a list of ints and lists of ints, or None; not of {type(given).__name__}"
            )
        if core < 0:
            raise ValueError(f"cpu_ids must not be negative: it has {shorten(core)}")
        cores.add(core)
    if not cores:
        raise ValueError("cpu_ids has an empty list for a worker, which must have at least one core")
    return frozenset(cores)


def crowd(pinned: list[frozenset[int]]) -> bool:
    """May workers have to share a core? Not if each can divide itself evenly among its cores, and none is overfull
    (then there is also a way to give each a core of its own: Hall's theorem)."""
    load: defaultdict[int, Fraction] = defaultdict(Fraction)
    for cores in pinned:
        for core in cores:
            load[core] += Fraction(1, len(cores))
    return max(load.values()) > 1


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
