"""What this process may use of the machine: cores and memory, as affinity, control groups and the system allow."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CAN_PIN = hasattr(os, "sched_setaffinity")


def cpu_count() -> int:
    """Number of cores this process may use: those of its affinity mask, fewer where a control group sets a quota.

    Control groups are read at the first call and remembered.

    Returns
    -------
    int
        At least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return cores if quota is None else max(1, min(cores, quota))


def can_run_on(cores: frozenset[int]) -> frozenset[int]:
    """Those of these cores that the system would let this process, or its children, be pinned to.

    Only an attempt can tell, and a thread that is over before this returns makes it: it changes nobody else's affinity.
    """
    ids = 1 + max(os.sysconf("SC_NPROCESSORS_CONF") - 1, *os.sched_getaffinity(0))  # of more, nobody has heard
    granted: set[int] = set()
    asked = {core for core in cores if core < ids}
    if asked:
        trial = threading.Thread(target=_try_cores, args=(asked, granted))
        trial.start()
        trial.join()
    return frozenset(granted)


def _try_cores(asked: set[int], granted: set[int]) -> None:
    try:
        os.sched_setaffinity(0, asked)
    except OSError:  # none of them
        return
    granted.update(os.sched_getaffinity(0))


def pin(cores: frozenset[int]) -> None:
    """Pin this process to cores: all threads it has (numpy's, where the program was imported), and what they start."""
    tasks = Path("/proc/self/task")
    threads = [int(task.name) for task in tasks.iterdir()] if tasks.exists() else [0]
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread, cores)


def memory_bytes() -> int:
    """Bytes of memory this process may use: the machine's, or a control group's limit where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _memory_limit()
    return machine if limit is None else min(machine, limit)


def _own_groups() -> Iterator[Path]:
    """The control groups of this process and their parents, version 2 and then version 1's cpu and memory."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = CGROUP if not controllers else CGROUP / controllers
        group = root / path.lstrip("/")
        while True:
            yield group
            if group in (root, group.parent):
                break
            group = group.parent


def _read(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


@functools.cache  # reading the files takes as long as starting a worker; once per process is enough
def _cpu_quota() -> int | None:
    return min(_cpu_quotas(), default=None)


@functools.cache
def _memory_limit() -> int | None:
    return min(_memory_limits(), default=None)


def _cpu_quotas() -> Iterator[int]:
    for group in _own_groups():
        match _read(group / "cpu.max"):
            case [quota, period] if quota != "max":
                yield max(1, math.ceil(int(quota) / int(period)))
        quota_v1, period_v1 = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota_v1 and period_v1 and int(quota_v1[0]) > 0:
            yield max(1, math.ceil(int(quota_v1[0]) / int(period_v1[0])))


def _memory_limits() -> Iterator[int]:
    for group in _own_groups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            match _read(group / name):
                case [limit] if limit != "max":
                    yield int(limit)
