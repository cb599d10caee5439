"""The machine says no: every call by which the core asks the system for something is refused in its turn.

After a refusal the results are right, because there was another way, or there is an error that says what was refused;
nothing hangs, crashes or is left; and the same pool works when the refusal is over (:mod:`refusals`). A few of the
calls are tried with each row of the table, every one with FASTPOOL_LONG=1.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from refusals import Outcome, Server

import fastpool
from fastpool import _native

EXTENSIONS = sorted(Path(fastpool.__file__).parent.glob("_*.so"))
MOST_CALLS = 150  # of the first that a sweep refuses


class Row(NamedTuple):
    """A function that the core calls, and how it is refused.

    Attributes
    ----------
    call : str
        Its name, or what it is asked for.
    errors : str
        Each errno that it is refused with.
    by : str
        In whom: ``owner``, ``worker``.
    then : str
        ``right``: there is another way, and no error; ``error``: there is none; ``either``: as the case may be.
    lasts : bool
        Besides a single call, all calls from one on are refused.
    without : int
        Mask of what Linux refuses besides (csrc/platform.h).
    steps, options
        Of the trial, see :mod:`refusals`.
    """

    call: str
    errors: str
    by: str
    then: str = "either"
    lasts: bool = True
    without: int = 0
    steps: str = "range,list,generator,texts,many,large,array,array again,array,lifespan"
    options: tuple[tuple[str, Any], ...] = (("keep_alive", True),)
    anyones: bool = False

    def __str__(self) -> str:
        way = "" if self.forks else f"-{dict(self.options)['start_method']}"
        return f"{self.call}-{self.errors.replace(' ', '-')}{way}{'-without' * bool(self.without)}".replace(" ", "_")

    @property
    def forks(self) -> bool:
        return "start_method" not in dict(self.options)


LINUX = 31  # what csrc/platform.h lets be refused, but for reading other processes' memory
SPAWN = (("start_method", "spawn"), ("keep_alive", True))
FORKSERVER = (("start_method", "forkserver"), ("keep_alive", True))

ROWS = [
    # memory
    Row("memfd_create", "EMFILE ENFILE ENOMEM", "owner"),
    Row("memfd_create", "ENOSYS EPERM", "owner", "right"),
    Row("shm_open", "EMFILE ENOENT EACCES ENOSPC", "owner", without=LINUX),
    Row("shm_open", "EEXIST", "owner", "right", lasts=False, without=LINUX),
    Row("fstatvfs", "ENOSYS EACCES", "owner", "right", without=LINUX),
    Row("ftruncate", "EFBIG ENOSPC EPERM", "owner"),
    Row("ftruncate", "EINTR", "owner", "right", lasts=False),
    Row("mmap", "ENOMEM EAGAIN EPERM", "owner"),
    Row("mprotect", "ENOMEM", "owner worker", "error"),
    Row("madvise", "ENOMEM EINVAL", "owner worker", "right"),
    Row("getrlimit", "EPERM", "owner", "right"),
    Row("sysconf", "EINVAL", "owner worker", "right"),
    Row("malloc", "ENOMEM", "owner", "error", steps="range", options=(("n_jobs", 64), ("keep_alive", True))),
    Row("calloc", "ENOMEM", "owner worker"),
    Row("realloc", "ENOMEM", "owner worker"),
    Row("aligned_alloc", "ENOMEM", "owner", "error"),
    # bells
    Row("eventfd", "EMFILE ENFILE ENOMEM", "owner", "error"),
    Row("eventfd", "ENODEV ENOSYS", "owner", "right"),
    Row("pipe2", "EMFILE ENFILE", "owner", "error"),
    Row("pipe2", "EMFILE", "owner", "error", without=LINUX),
    Row("pipe", "EMFILE", "owner", "error"),
    Row("fcntl", "EMFILE", "owner worker", "either" if _native.is_posix() else "error", without=LINUX),
    Row("ppoll", "EINTR", "owner worker", "right", lasts=False),
    Row("poll", "EINTR", "owner worker", "right", lasts=False),
    Row("ppoll", "ENOMEM", "owner worker"),
    Row("poll", "ENOMEM", "owner worker"),
    Row("read", "EINTR", "owner worker", "right", lasts=False),
    Row("write", "EINTR", "owner worker", "right", lasts=False),
    Row("membarrier query", "ENOSYS EPERM", "owner", "right"),
    Row("membarrier register", "ENOMEM EPERM", "worker", "error"),
    Row("membarrier all", "ENOMEM EPERM", "owner", "error"),
    # processes
    Row("fork", "EAGAIN ENOMEM", "owner", "error"),
    Row("__register_atfork", "ENOMEM", "owner", "error"),
    Row("pidfd_open", "EMFILE ENFILE ENOMEM", "owner", "error"),
    Row("pidfd_open", "ENOSYS EPERM", "owner"),
    Row("pidfd_send_signal", "ENOSYS EPERM", "owner", "right"),
    Row("pthread_create", "EAGAIN", "worker", "error", without=LINUX),
    Row("fcntl", "EINVAL EPERM", "worker", "either" if _native.is_posix() else "right", lasts=False),
    # both of it
    Row("open", "EMFILE ENOENT EACCES", "owner worker", "right"),
    Row("close", "EINTR EIO", "owner worker", "right"),
    Row("pread", "EIO EPERM", "owner", "right"),
    Row("pread", "EIO EPERM", "worker"),
    Row("process_vm_readv", "EPERM ENOSYS ENOMEM", "worker"),
    Row(
        "process_vm_writev",
        "EPERM ENOSYS ENOMEM EFAULT",
        "worker",
        "right",
        steps="array,array",
        options=(("n_jobs", 2),),
    ),
    # what Python and multiprocessing call for workers that are no forks
    Row("memfd_create", "EMFILE", "owner", "error", False, 0, "shared", SPAWN),
    Row("pwrite64", "ENOSPC", "owner", "error", False, 0, "shared", SPAWN, True),
    Row("pipe2", "EMFILE", "owner", "error", False, 0, "shared", SPAWN, True),
    Row("pidfd_open", "EMFILE", "owner", "error", False, 0, "shared", FORKSERVER),
    Row("fcntl64", "EMFILE", "owner", "either", False, 0, "shared", FORKSERVER, True),
    # what such workers call
    Row("mmap", "ENOMEM", "worker", "error", True, 0, "shared", SPAWN),
    Row("mmap", "ENOMEM", "worker", "error", True, 0, "shared", FORKSERVER),
    Row("mprotect", "ENOMEM", "worker", "error", True, 0, "range,array", SPAWN),
    Row("fcntl", "EMFILE EPERM", "worker", "either", True, 0, "range", SPAWN),
    Row("pread", "EIO", "worker", "either", True, 0, "range,array", SPAWN),
    Row("calloc", "ENOMEM", "worker", "either", True, 0, "texts", SPAWN),
    Row("membarrier register", "ENOMEM EPERM", "worker", "error", True, 0, "range", SPAWN),
]

# Tried with FASTPOOL_LONG=1 only: these workers take long to start.
LONG_ROWS = [
    Row("mmap", "ENOMEM", "worker", "error", True, 0, "range,texts,array", SPAWN),
    Row("madvise", "ENOMEM EINVAL", "worker", "right", True, 0, "array", SPAWN),
    Row("open", "EMFILE", "worker", "right", True, 0, "shared", SPAWN),
    Row("close", "EIO", "worker", "right", True, 0, "shared", SPAWN),
    Row("read", "EINTR", "worker", "right", False, 0, "range,array", SPAWN),
    Row("realloc", "ENOMEM", "worker", "either", True, 0, "texts", SPAWN),
    Row("mprotect", "ENOMEM", "worker", "error", True, 0, "range,array", FORKSERVER),
    Row("calloc", "ENOMEM", "worker", "either", True, 0, "texts", FORKSERVER),
    Row("membarrier register", "ENOMEM EPERM", "worker", "error", True, 0, "range", FORKSERVER),
]

# Functions of libc that the extensions call and that cannot fail as they are called, or whose failure leaves nothing to
# be done.
NOT_REFUSED = {
    "arithmetic": "memcmp memcpy memmove memset strlen strrchr strncmp snprintf vsnprintf __errno_location",
    "never fail": "getpid clock_gettime free _exit sched_yield pthread_self sigaddset sigdelset sigemptyset sigfillset",
    "fail for wrong arguments only": "pthread_sigmask sigaction pthread_mutex_lock pthread_mutex_unlock pthread_once "
    "pthread_attr_destroy pthread_attr_init pthread_attr_setdetachstate pthread_attr_setstacksize",
    "nothing else can be done": "munmap shm_unlink kill",
    "of the linker": "_ITM_deregisterTMCloneTable _ITM_registerTMCloneTable __cxa_finalize __gmon_start__ "
    "__stack_chk_fail",
}
SYSCALLS = {"membarrier query", "membarrier register", "membarrier all", "pidfd_open", "pidfd_send_signal"}


def symbol(call: str) -> str:
    return "syscall" if call in SYSCALLS else call


@functools.cache
def imported() -> set[str]:
    """Every function that the extensions call."""
    listed = [
        subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True)
        for path in EXTENSIONS
    ]
    return set(re.findall(r"^ +[Uw] (\w+)", "".join(one.stdout for one in listed), re.M))


def try_row(server: Server, row: Row, by: str, error: str, first: int, onwards: bool) -> Outcome:
    outcome = server.run(
        {
            "call": row.call,
            "error": error,
            "of_workers": by == "worker",
            "first": first,
            "onwards": onwards,
            "anyones": row.anyones,
            "without": row.without,
            "steps": row.steps.split(","),
            "options": dict(row.options),
        }
    )
    what = f"{row.call} of the {by} refused with {error}, call {first}{' and all after it' if onwards else ''}"
    problems = list(outcome["problems"])
    if row.then == "right" and outcome["errors"]:
        problems.append("there is another way, and it was not taken")
    if row.then == "error" and outcome["refused"] and not outcome["errors"]:
        problems.append("the refusal was not noticed")
    if row.call in ("malloc", "calloc", "realloc") and any(
        kind == "SerializationError" for _, kind, _ in outcome["errors"]
    ):
        problems.append("a want of memory is called something else")
    if problems:
        raise AssertionError("\n".join([what, *problems, *map(str, outcome["errors"]), outcome["text"]]))
    return outcome


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_few_calls_refused(server: Server, row: Row) -> None:
    if not row.anyones and symbol(row.call) not in imported():
        pytest.skip(f"this build does not call {row.call}")
    error = row.errors.split()[0]
    calls = {by: min(try_row(server, row, by, error, 10**9, False)["calls"], MOST_CALLS) for by in row.by.split()}
    assert any(calls.values()), f"nobody calls {row.call}: the trial does not try it"
    for by in filter(calls.get, calls):  # some calls of workers depend on whether they came to rest
        some = random.Random(f"{row} {by}").randint(1, calls[by])
        try_row(server, row, by, error, some, row.lasts)
        if row.forks:  # the others take long
            try_row(server, row, by, error, 1, False)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", [*ROWS, *LONG_ROWS], ids=str)
def test_every_call_refused(server: Server, row: Row) -> None:
    if not row.anyones and symbol(row.call) not in imported():
        pytest.skip(f"this build does not call {row.call}")
    for by in row.by.split():
        for error in row.errors.split():
            for onwards in (False, True) if row.lasts else (False,):
                first = 1
                while try_row(server, row, by, error, first, onwards)["refused"] and first < MOST_CALLS:
                    first += 1


def test_the_table_is_complete() -> None:
    """Every function of libc that the extensions call is in it, or among those that need not be refused."""
    called = {name for name in imported() if not re.match("_?Py", name)}
    known = {symbol(row.call) for row in ROWS} | set(" ".join(NOT_REFUSED.values()).split())
    assert called <= known
    assert called & known, "nm lists nothing"


def test_the_server_notices() -> None:
    """What :mod:`refusals` calls a right result is the whole result, of the same type; the system's own text for an
    error does not tell what was refused."""
    from refusals import NUMBERS, is_right, names_what

    assert is_right("range", [2 * x for x in range(200)])
    assert not is_right("range", [2 * x for x in range(199)])
    assert is_right("array", 2 * NUMBERS)
    assert not is_right("array", list(2 * NUMBERS))
    for number in errno.errorcode:
        bare = OSError(number, os.strerror(number))
        for text in (bare.strerror, str(bare), f"{bare.strerror}: None", ""):
            assert not names_what(OSError(number, text))
            assert not names_what(MemoryError(text))
        assert names_what(OSError(number, f"cannot open it: {bare.strerror}"))
