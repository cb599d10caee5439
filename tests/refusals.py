"""A machine that says no: a small program around a pool, run while some system call is refused.

As a script this is a server: for each line of JSON that it reads it forks a process of its own, which runs
:func:`trial`, waits for it, looks whether anything is left, and writes a line of JSON. A fork, because a process with
Python, numpy and fastpool in it takes much longer to start than a trial. :class:`Server` is its client.

What is refused is a dict with one of the keys

``call``
    A function of libc, of which csrc/tests/refuse.c, preloaded, refuses the call number ``first``, or all from there
    ``onwards``, of the pool's owner or ``of_workers``, with the errno ``error``; only calls that fastpool's extensions
    make, or ``anyones``.
``limit``
    A resource limit, set to ``value``; ``above``: to that much more than the process uses.
``group``
    More memory than that, by a control group of its own.
``shm``
    A place in /dev/shm of that size, as mount(8) takes it; "": there is no /dev/shm.

Besides, ``warm`` has steps that are run before, ``environment`` variables, ``without`` the mask of ``_native.refuse``,
``as_nobody`` is a user whose processes are counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import gc
import json
import mmap
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy
from leftovers import leftovers, settle, shared_files, snapshot

import fastpool
from fastpool import FastpoolError, WorkerPool, _native, arrays

CONTROL = struct.Struct("32s8q")  # csrc/tests/refuse.c
DEADLINE = 30.0  # seconds a trial may take
SETTLE = 2.0  # seconds that what is ending may take
SOURCE = Path(__file__).parent.parent / "csrc/tests/refuse.c"
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36

Refusal = dict[str, Any]
Outcome = dict[str, Any]

# ---------------------------------------------------------------- what is tried


def double(x: Any) -> Any:
    return x * 2


def weigh(*texts: str) -> tuple[int, dict[str, list[int]]]:
    return sum(map(len, texts)), {text[:8]: [len(text)] * 3 for text in texts}


def repeat(n: int) -> bytes:
    return bytes([n % 251]) * n


def scale(shared: Any, x: int) -> float:
    return float(shared[x])


def twice(parts: list[list[int]]) -> list[list[list[int]]]:
    return [parts, parts[:]]


def hunger(_: int) -> int:
    return len(bytearray(b"x") * (1 << 28))


def elements(values: Any) -> Iterator[Any]:
    yield from values


NUMBERS = numpy.arange(300_000, dtype=float)
TEXTS = [(f"{n:08}" * (1 + 9000 * (n % 7 == 0)), f"{n:09}" * 3) for n in range(60)]
PARTS = [[n] for n in range(12_000)]  # so that an encoder has to remember them
MANY = [PARTS[:], PARTS[:], PARTS[:6000]]
SIZES = [10, 100_000, 40, 1_500_000, 3]

# Function, input, other arguments, results.
STEPS: dict[str, tuple[Callable[..., Any], Any, dict[str, Any], Any]] = {
    "range": (double, range(200), {}, [double(x) for x in range(200)]),
    "list": (double, list(range(300)), {"chunk_size": 40}, [double(x) for x in range(300)]),
    "generator": (double, [1.5, "x", 7] * 30, {}, [double(x) for x in [1.5, "x", 7] * 30]),
    "texts": (weigh, TEXTS, {}, [weigh(*texts) for texts in TEXTS]),
    "many": (twice, [(value,) for value in MANY], {"chunk_size": 1}, [[value, value] for value in MANY]),
    "numbers": (double, range(600_000), {}, [double(x) for x in range(600_000)]),
    "large": (repeat, SIZES, {}, [repeat(n) for n in SIZES]),
    "array": (double, NUMBERS, {}, double(NUMBERS)),
    "array again": (numpy.sqrt, NUMBERS, {}, numpy.sqrt(NUMBERS)),
    "shared": (scale, range(50), {}, [float(x) for x in range(50)]),
    "huge": (repeat, [150 << 20], {}, [repeat(150 << 20)] if __name__ == "__main__" else []),
    "hungry": (hunger, range(4), {}, [1 << 28] * 4),
    "lifespan": (double, range(100), {"worker_lifespan": 30, "chunk_size": 10}, [double(x) for x in range(100)]),
}


def run_step(pool: WorkerPool, step: str) -> Any:
    function, values, options, _ = STEPS[step]
    if step == "generator":
        values = elements(values)
    elif step == "array again":  # in pages that no fork shares
        values = values.copy()
    return pool.map(function, values, **options)


def is_right(step: str, results: Any) -> bool:
    expected = STEPS[step][3]
    if isinstance(expected, numpy.ndarray):
        return isinstance(results, numpy.ndarray) and numpy.array_equal(results, expected)
    return type(results) is list and results == expected


# ---------------------------------------------------------------- what refuses


class Call:
    """Calls of libc's functions, refused by the preloaded library."""

    def __init__(self, plan: Refusal) -> None:
        with open(os.environ["REFUSE_CONTROL"], "r+b") as file:
            self.shared = mmap.mmap(file.fileno(), CONTROL.size)
        self.values = [int(plan[key]) for key in ("of_workers", "first", "onwards")]
        self.anyones = int(plan.get("anyones", False))
        self.function = plan["call"].encode()
        self.error = getattr(errno, plan["error"])

    def arm(self) -> None:
        self.shared[:] = CONTROL.pack(self.function, os.getpid(), *self.values, self.error, self.anyones, 0, 0)

    def disarm(self) -> None:
        self.shared[:32] = bytes(32)

    @property
    def refused(self) -> int:
        return int(CONTROL.unpack(self.shared)[-1])

    @property
    def calls(self) -> int:
        return int(CONTROL.unpack(self.shared)[-2])


class Limit:
    """A resource limit of this process and of the workers it starts."""

    refused = calls = 1  # nobody counts

    def __init__(self, plan: Refusal) -> None:
        self.plan = plan
        self.limit = getattr(resource, plan["limit"])

    def arm(self) -> None:
        _, hard = resource.getrlimit(self.limit)
        value = self.plan["value"] if "value" in self.plan else in_use(self.plan["limit"]) + self.plan["above"]
        resource.setrlimit(self.limit, (value, hard))

    def disarm(self) -> None:
        _, hard = resource.getrlimit(self.limit)
        resource.setrlimit(self.limit, (hard, hard))


def in_use(limit: str) -> int:
    """How much of a limited resource this process has already."""
    if limit == "RLIMIT_AS":
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if limit == "RLIMIT_NOFILE":
        return 1 + max(int(entry) for entry in os.listdir("/proc/self/fd"))
    assert limit == "RLIMIT_NPROC"
    own = f"Uid:\t{os.getuid()}\t"
    tasks = Path("/proc").glob("[0-9]*/task/[0-9]*/status")
    return sum(own in read_if_there(status) for status in tasks)


def read_if_there(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


class Group:
    """A control group with little memory, for this process and what it starts."""

    refused = calls = 1
    roots = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # version 1, version 2

    def __init__(self, plan: Refusal) -> None:
        self.bytes = plan["group"]
        self.folder = self.own_folder(os.getpid())

    @classmethod
    def own_folder(cls, pid: int) -> Path:
        root = cls.roots[0] if cls.roots[0].is_dir() else cls.roots[1]
        return root / f"fastpool-test-{pid}"

    @property
    def limit(self) -> Path:
        old = self.folder / "memory.limit_in_bytes"
        return old if old.exists() else self.folder / "memory.max"

    def arm(self) -> None:
        self.folder.mkdir()
        self.limit.write_text(str(self.bytes))
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def disarm(self) -> None:
        if self.folder.exists():
            self.limit.write_text(str(1 << 40))

    @classmethod
    def remove(cls, pid: int) -> None:
        """The group of a process that is gone."""
        with contextlib.suppress(FileNotFoundError):
            cls.own_folder(pid).rmdir()


class SharedMemory:
    """Another /dev/shm, in a mount name space of this process."""

    refused = calls = 1

    def __init__(self, plan: Refusal) -> None:
        self.size = plan["shm"]
        self.libc = ctypes.CDLL(None, use_errno=True)

    def arm(self) -> None:
        self.check(self.libc.unshare(0x00020000))  # CLONE_NEWNS
        self.check(self.libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None))  # MS_PRIVATE, MS_REC
        if self.size:
            self.check(self.libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={self.size}".encode()))
        else:
            self.check(self.libc.mount(b"/proc", b"/dev/shm", None, 1 << 12, None))  # MS_BIND: nobody writes there

    def disarm(self) -> None:
        self.libc.umount2(b"/dev/shm", 2)  # MNT_DETACH

    @staticmethod
    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


Refuser = Call | Limit | Group | SharedMemory
REFUSERS: dict[str, type[Refuser]] = {"call": Call, "limit": Limit, "group": Group, "shm": SharedMemory}


def refuser_of(plan: Refusal) -> Refuser:
    [kind] = REFUSERS.keys() & plan.keys()
    return REFUSERS[kind](plan)


# ---------------------------------------------------------------- a trial


class Trial:
    """Runs the steps on one pool while something is refused, and tells what was not as it must be.

    Parameters
    ----------
    plan : dict
        What is refused, ``steps`` to run, and the ``options`` of the pool.
    """

    def __init__(self, plan: Refusal) -> None:
        self.plan = plan
        self.refuser = refuser_of(plan)
        self.errors: list[tuple[str, str, str]] = []  # the step, the error's type, its text
        self.problems: list[str] = []
        self.kept: list[tuple[str, Any]] = []  # results that are looked at when the pool is gone
        self.reserve = bytes(1 << 18)  # to look at an error in, where results have taken all other memory

    def run(self) -> None:
        options = {"n_jobs": 2, **self.plan["options"]}
        if "shared" in self.plan["steps"]:
            options["shared_objects"] = NUMBERS
        last = self.plan["steps"][-1]
        pool = WorkerPool(**options)
        for step in self.plan.get("warm", ()):
            self.map(pool, step)
        self.refuser.arm()
        for step in self.plan["steps"]:
            self.attempt(step, partial(self.map, pool, step))
        self.attempt("stop", pool.stop_and_join)
        self.attempt(last, partial(self.map, pool, last))
        self.attempt("terminate", pool.terminate)
        self.refuser.disarm()
        with WorkerPool(**options) as another:
            self.map(another, last)
        for step, results in self.kept:
            if not is_right(step, results):
                self.problems.append(f"{step}: the results became wrong")

    def map(self, pool: WorkerPool, step: str) -> None:
        results = run_step(pool, step)
        if not is_right(step, results):
            self.problems.append(f"{step}: wrong results")
        self.kept.append((step, results))

    def attempt(self, step: str, action: Callable[[], None]) -> None:
        """Errors that tell what was refused are allowed. After one the same must succeed at the second try: a single
        refusal is over then, and a lasting one is ended."""
        try:
            action()
        except (MemoryError, OSError, FastpoolError) as error:
            self.reserve = b""
            self.errors.append((step, type(error).__qualname__, str(error)))
            ours = "call" in self.plan or not isinstance(error, MemoryError)  # else it may be Python's own
            if ours and not names_what(error):
                self.problems.append(f"{step}: an error that does not tell what was refused\n{traceback.format_exc()}")
        else:
            return
        if self.plan.get("onwards", True):
            self.refuser.disarm()
        action()


def names_what(error: BaseException) -> bool:
    """Does an error's text say more than the system's own?"""
    if isinstance(error, FastpoolError):
        return True
    text = (error.strerror or "") if isinstance(error, OSError) else str(error)
    text = re.sub(r"\[Errno \d+\]", "", text)
    for bare in sorted(map(os.strerror, errno.errorcode), key=len, reverse=True):  # some begin with others
        text = text.replace(bare, "")
    return len(re.findall(r"\w+", text)) > 1


def trial(plan: Refusal) -> Outcome:
    """In a process of its own."""
    faulthandler.register(signal.SIGALRM)  # no thread, which would take address space of its own
    signal.alarm(int(DEADLINE) - 5)
    os.environ.update(plan.get("environment", {}))
    tempfile.tempdir = None
    if "without" in plan:
        _native.refuse(plan["without"])
    attempt = Trial(plan)
    before = snapshot()
    try:
        attempt.run()
    except BaseException:
        attempt.reserve = b""
        attempt.refuser.disarm()
        attempt.problems.append(f"an error that must not be\n{traceback.format_exc()}")
    attempt.refuser.disarm()
    if not attempt.problems:  # else a traceback keeps alive what it used
        attempt.kept.clear()
        arrays._arenas.clear()
        gc.collect()
        settle(before, SETTLE)
        attempt.problems += [f"left behind: {what}" for what in leftovers(before, snapshot())]
    return {
        "refused": attempt.refuser.refused,
        "calls": attempt.refuser.calls,
        "errors": attempt.errors,
        "problems": attempt.problems,
    }


def become_nobody() -> None:
    """A user whose processes are counted (RLIMIT_NPROC), but with the rights of a debugger on itself."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


# ---------------------------------------------------------------- the server


def serve() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    for line in sys.stdin:
        print(json.dumps(serve_one(json.loads(line))), flush=True)


def serve_one(plan: Refusal) -> Outcome:
    files_before = shared_files()
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as said:
        pid = os.fork()
        if pid == 0:
            be_trial(plan, told.fileno(), said.fileno())
        status = wait_for(pid, DEADLINE)
        left = "" if status is None else others_left()
        told.seek(0)
        said.seek(0)
        text = said.read().decode(errors="replace")
        outcome: Outcome = json.loads(told.read() or b'{"refused": 1, "calls": 1, "errors": [], "problems": []}')
    problems = outcome["problems"]
    if status is None:
        problems.append("it hangs")
        others_left()
    elif status != 0:
        problems.append(f"its process ended with {os.waitstatus_to_exitcode(status)}")
    Group.remove(pid)
    if left:
        problems.append(f"left behind: {left}")
    if new := shared_files() - files_before:
        problems.append(f"left behind: {sorted(new)} in /dev/shm")
    if "Exception ignored" in text:
        problems.append("an error was ignored")
    if any("while starting" in error for _, _, error in outcome["errors"]) and "Error" not in text:
        problems.append("a worker died without telling why")
    return {**outcome, "text": text}


def be_trial(plan: Refusal, told: int, said: int) -> None:
    """In the fork: never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(said, 2)
        os.dup2(said, 1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        if plan.get("as_nobody"):
            become_nobody()
        outcome = json.dumps(trial(plan)).encode()
        while outcome:
            outcome = outcome[os.write(told, outcome) :]
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for(pid: int, seconds: float) -> int | None:
    """Wait status of a child, and reap whatever else ends meanwhile; None, and it is killed, after `seconds`."""
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == pid:
            return status
        if not ended and signal.sigtimedwait([signal.SIGCHLD], max(0.0, until - time.monotonic())) is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None


def others_left() -> str:
    """Processes that a trial has left behind: this process is their parent now. They are killed."""
    until = time.monotonic() + SETTLE
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, _ = os.waitpid(-1, os.WNOHANG)
            if not ended and signal.sigtimedwait([signal.SIGCHLD], max(0.0, until - time.monotonic())) is None:
                break
        own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        names = [f"process {pid} {Path(f'/proc/{pid}/cmdline').read_text()}" for pid in own]
        for pid in own:
            os.kill(int(pid), signal.SIGKILL)
            os.waitpid(int(pid), 0)
        return ", ".join(names)
    return ""


class Server:
    """The client's end: builds the library, starts the server, has trials run.

    Parameters
    ----------
    folder : Path
        For the library and the file that controls it.
    """

    def __init__(self, folder: Path) -> None:
        library, control, options = folder / "refuse.so", folder / "control", ["-shared", "-fPIC", "-O2"]
        compiler = os.environ.get("CC", "cc").split()
        subprocess.run([*compiler, *options, "-fno-builtin", "-o", library, SOURCE, "-ldl"], check=True)
        control.write_bytes(bytes(CONTROL.size))
        control.chmod(0o666)
        folder.chmod(0o755)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "REFUSE_CONTROL": str(control),
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(fastpool.__file__).parent.parent),
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, plan: Refusal) -> Outcome:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(plan) + "\n")
        self.process.stdin.flush()
        outcome: Outcome = json.loads(self.process.stdout.readline())
        return outcome

    def close(self) -> None:
        self.process.communicate()


if __name__ == "__main__":
    serve()
