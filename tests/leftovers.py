"""What a test may leave behind: processes, descriptors, threads, shared memory. Found by looking into /proc.

`snapshot()` says what there is, `leftovers(before, after)` names what came and did not go. `settle(before)`
lets end what is already ending, with a deadline.
"""

from __future__ import annotations

import gc
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import re
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DEADLINE = 2.0  # seconds that what is already ending may take


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    state: str
    command: str

    def __str__(self) -> str:
        zombie = " (zombie)" if self.state == "Z" else ""
        return f"process {self.pid}{zombie}: {self.command}"


@dataclass(frozen=True)
class Snapshot:
    """Everything that is counted as a leftover if it is there after a test and was not there before."""

    processes: dict[int, Process] = field(default_factory=dict)
    descriptors: dict[int, str] = field(default_factory=dict)
    threads: dict[int, str] = field(default_factory=dict)  # native id to name
    mappings: Counter[str] = field(default_factory=Counter)
    shared_files: frozenset[str] = frozenset()


def snapshot() -> Snapshot:
    return Snapshot(
        processes={process.pid: process for process in descendants()},
        descriptors=descriptors(),
        threads=threads(),
        mappings=Counter(shared_mappings()),
        shared_files=shared_files(),
    )


def leftovers(before: Snapshot, after: Snapshot) -> list[str]:
    """A line for each thing that is in `after` and was not in `before`."""
    return [
        *(str(process) for pid, process in sorted(after.processes.items()) if pid not in before.processes),
        *(f"file descriptor {number}: {target}" for number, target in new_descriptors(before, after)),
        *(f"thread {tid}: {name}" for tid, name in after.threads.items() if tid not in before.threads),
        *(f"{n} shared mapping(s) of {what}" for what, n in (after.mappings - before.mappings).items()),
        *(f"entry of /dev/shm: {name}" for name in sorted(after.shared_files - before.shared_files)),
    ]


def settle(before: Snapshot, deadline: float = DEADLINE) -> None:
    """Let end what is ending already. Children are not waited for: whoever started them has to do that."""
    gc.collect()
    until = time.monotonic() + deadline
    for process in descendants():
        if process.pid not in before.processes and process.parent != os.getpid():
            wait_for_end(process.pid, until)
    known = set(before.threads)
    for thread in threading.enumerate():
        if thread.native_id not in known and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
    # The kernel drops a thread's entry shortly after its end, and nothing tells when.
    yield_until(lambda: set(threads()) <= known, until)
    # Another process's shared memory may have a name for a moment.
    yield_until(lambda: shared_files() <= before.shared_files, until)


def wait_for_end(pid: int, until: float) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        handle = os.pidfd_open(pid)
    except (ProcessLookupError, AttributeError):  # gone; or a system without process handles
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll(max(0.0, until - time.monotonic()) * 1000)
    finally:
        os.close(handle)


def all_end(pids: Iterable[int]) -> bool:
    """Are these processes, or threads, gone soon? A thread that was joined may take a moment to leave the kernel."""
    yield_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), time.monotonic() + DEADLINE)
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def yield_until(condition: Callable[[], bool], until: float) -> None:
    while not condition() and time.monotonic() < until:
        os.sched_yield()


# Processes


def descendants() -> list[Process]:
    """Children of this process and theirs, zombies too, without what multiprocessing keeps for good."""
    children: dict[int, list[Process]] = {}
    for process in all_processes():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    parents = [os.getpid()]
    while parents:
        family = children.get(parents.pop(), [])
        found += family
        parents += [process.pid for process in family]
    return [process for process in found if process.pid not in lasting_processes()]


def lasting_processes() -> set[int]:
    """multiprocessing's own helpers. Not told by their command: what a forkserver forks has the same."""
    tracker = multiprocessing.resource_tracker._resource_tracker
    forkserver = multiprocessing.forkserver._forkserver
    pids = (getattr(tracker, "_pid", None), getattr(forkserver, "_forkserver_pid", None))
    return {pid for pid in pids if pid is not None}


def all_processes() -> Iterator[Process]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := read_process(int(entry))) is not None:
            yield process


def read_process(pid: int) -> Process | None:
    """None if the process went away while it was looked at."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return None
    name = stat[stat.index("(") + 1 : stat.rindex(")")]  # may itself hold blanks and parentheses
    state, parent = stat[stat.rindex(")") + 1 :].split()[:2]
    return Process(pid, int(parent), state, command or name)


# Descriptors


def descriptors() -> dict[int, str]:
    """Open descriptors and what they lead to, without those that multiprocessing keeps for good."""
    found: dict[int, str] = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:  # the one of listdir itself
            continue
    for number in lasting_descriptors():
        found.pop(number, None)
    return {number: target for number, target in found.items() if not LASTING_MEMORY.match(target)}


def lasting_descriptors() -> list[int]:
    tracker = multiprocessing.resource_tracker._resource_tracker
    forkserver = multiprocessing.forkserver._forkserver
    numbers = (getattr(tracker, "_fd", None), getattr(forkserver, "_forkserver_alive_fd", None))
    return [number for number in numbers if number is not None]


def new_descriptors(before: Snapshot, after: Snapshot) -> list[tuple[int, str]]:
    """Those that lead to more of the same than before: a file closed and opened again is no growth."""
    room = Counter(before.descriptors.values())
    new: list[tuple[int, str]] = []
    for number, target in sorted(after.descriptors.items()):
        if room[target] > 0:
            room[target] -= 1
        else:
            new.append((number, target))
    return new


# Threads


def threads() -> dict[int, str]:
    """Every thread of this process, those that Python does not know too."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    return {int(entry): names.get(int(entry), "not Python's") for entry in os.listdir("/proc/self/task")}


# Shared memory

LASTING_MEMORY = re.compile(r"/dev/shm/pym-\d+-\w+ \(deleted\)$")  # what multiprocessing's locks and values lie in
MAPPED_SHARED = re.compile(r"\s(?P<inode>\d+)\s+(?P<path>(?:/memfd:|/dev/shm/).*)$")


def shared_mappings() -> Iterator[str]:
    """A line for each mapping of shared memory; a mapping split in two counts as one piece of it each."""
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        if (match := MAPPED_SHARED.search(line)) and not LASTING_MEMORY.match(match["path"]):
            yield f"{match['path']} (inode {match['inode']})"


OUR_NAME = re.compile(r"fp(?P<pid>[0-9a-f]+)\.")  # csrc/platform.c


def shared_files() -> frozenset[str]:
    """What fastpool has in /dev/shm for this user, where names outlive processes; not what living strangers have."""
    found = set()
    try:
        entries = list(os.scandir("/dev/shm"))
    except OSError:
        return frozenset()
    for entry in entries:
        try:
            name = OUR_NAME.match(entry.name)
            own = entry.stat(follow_symlinks=False).st_uid == os.getuid()
            if name and own and not is_strange(int(name["pid"], 16)):
                found.add(entry.name)
        except OSError:  # gone meanwhile
            continue
    return frozenset(found)


def is_strange(pid: int) -> bool:
    """Is it a living process that this one has not started? Another suite may run beside this one."""
    is_own = pid == os.getpid() or any(process.pid == pid for process in descendants())
    return not is_own and read_process(pid) is not None
