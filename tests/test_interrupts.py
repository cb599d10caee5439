"""Signals of the process that uses a pool: Ctrl-C at any moment, and handlers that run, or raise, at any moment."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PROCESSES, processes
from leftovers import descendants

from fastpool import WorkerPool, process
from fastpool._native import Segment

LONG = os.environ.get("FASTPOOL_LONG") == "1"
SOON = 1.0  # seconds that an end may take
DEADLINE = 60.0  # seconds after which what should have ended hangs

# ---------------------------------------------------------------- Ctrl-C at any moment

HAMMERED = """
import dataclasses, os, random, signal, sys, threading, time
import numpy
from pathlib import Path
from fastpool import WorkerPool

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
tests, seed, rounds, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sys.path.insert(0, tests)
from leftovers import leftovers, snapshot

def now():
    return dataclasses.replace(snapshot(), shared_files=frozenset())  # other programs may have some

def init():
    pass

def leave():
    return os.getpid()

def brief(x):
    return x

def long(x):
    time.sleep(0.002)
    return x

def endless(x):
    time.sleep(1000)

KINDS = [range, lambda n: list(range(n)), lambda n: iter(range(n)), lambda n: numpy.arange(float(n)),
         lambda n: (str(i) for i in range(n))]

def use(rng):
    task = rng.choice([brief, brief, long, endless])
    source, n = rng.choice(KINDS), rng.choice([1, 30, 300])
    init_, exit_ = rng.choice([None, init]), rng.choice([None, leave])
    with WorkerPool(rng.choice([1, 2, 3]), keep_alive=rng.random() < 0.5) as pool:
        for _ in range(rng.choice([1, 2, 100])):
            pool.map(task, source(n), worker_init=init_, worker_exit=exit_,
                     worker_lifespan=rng.choice([None, None, 5]))

for _ in range(threads):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
rng = random.Random(seed)
with WorkerPool(2) as pool:  # what stays for the life of the process is there now
    pool.map(brief, numpy.arange(10.0))
before = now()
for _ in range(rounds):
    ended = None
    try:
        print("ready", flush=True)
        while True:
            use(rng)
    except KeyboardInterrupt:
        ended = time.monotonic()
    left = leftovers(before, now())  # nobody has collected anything
    print(ended, left, flush=True)
    if sys.stdin.readline() == "":
        break
print("all came", flush=True)
"""


class Hammer:
    """A program that is interrupted again and again, with its process group, as a terminal does it."""

    def __init__(self, folder: Path, seed: int, rounds: int, threads: int) -> None:
        path = folder / "hammered.py"
        path.write_text(HAMMERED)
        given = [str(Path(__file__).parent), str(seed), str(rounds), str(threads)]
        self.errors = open(folder / "errors", "w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, str(path), *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )
        self.random = random.Random(seed)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def interrupt(self) -> tuple[float, str]:
        """After a moment. Returns the seconds until the program had its exception back, and what was left then."""
        assert self.line() == "ready", self.stderr()
        time.sleep(self.random.choice([0.0, 0.002, 0.01, 0.03]) * self.random.random())
        sent = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        ended, _, left = self.line().partition(" ")
        assert ended, self.stderr()
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(ended) - sent, left

    def stderr(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            assert stream is not None
            stream.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_at_any_moment(threads: int, tmp_path: Path) -> None:
    """Each is one KeyboardInterrupt, within a second, workers say nothing, and all is gone when it is caught.

    (A second one would end the program with a traceback; one that is lost, its rounds.)
    """
    rounds = 1000 if LONG else 100
    hammer = Hammer(tmp_path, 20261123 + threads, rounds, threads)
    try:
        ends = [hammer.interrupt() for _ in range(rounds)]
        assert hammer.line() == "all came"
        assert hammer.stderr() == ""
        assert [left for _, left in ends if left != "[]"] == []
        times = sorted(took for took, _ in ends)
        print(f"{rounds} interrupts, the slowest end took {times[-1] * 1e3:.1f} ms")
        assert times[-1 - rounds // 100] < SOON  # a busy machine may delay one in a hundred
    finally:
        hammer.close()


# ---------------------------------------------------------------- the moment before the sleep

# A signal right before each poll, and so after the last look at signals.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int shim_pid, shim_signal; /* set: the next poll in this process is preceded by this signal */
int shim_breaks;           /* set: the next poll that does not wait is interrupted */

static int breaks(int waits) {
  if (waits || !shim_breaks) return 0;
  shim_breaks = 0;
  errno = EINTR;
  return 1;
}

static void *wait_for_ever(void *nothing) {
  for (;;) pause();
  return nothing;
}

/* A thread that Python does not know, to give signals to. */
static pthread_t other;
void shim_start_thread(void) { pthread_create(&other, NULL, wait_for_ever, NULL); }

static void interfere(void) {
  int signum = shim_signal;
  if (!signum || getpid() != shim_pid) return;
  shim_signal = 0;
  if (!other) {
    raise(signum);
    return;
  }
  pthread_kill(other, signum);
  struct timespec moment = {.tv_nsec = 20000000};
  nanosleep(&moment, NULL); /* its handler has run when the poll begins */
}

int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask) {
  interfere();
  if (breaks(!timeout || timeout->tv_sec || timeout->tv_nsec)) return -1;
  return ((int (*)(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *))dlsym(RTLD_NEXT, "ppoll"))(
      fds, n, timeout, mask);
}

int poll(struct pollfd *fds, nfds_t n, int timeout) {
  if (n > 1) interfere(); /* not Python's own */
  if (n > 1 && breaks(timeout)) return -1;
  return ((int (*)(struct pollfd *, nfds_t, int))dlsym(RTLD_NEXT, "poll"))(fds, n, timeout);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl", "-lpthread"], cwd=folder, check=True
    )
    return folder / "shim.so"


def program(folder: Path, text: str, *given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = folder / "program.py"
    path.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, str(path), *given],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, **environment},
    )


BEFORE_THE_POLL = """
import ctypes, os, signal, sys, time
from fastpool import WorkerPool
signal.signal(signal.SIGINT, signal.default_int_handler)
lib = ctypes.CDLL(None)
def arm():
    ctypes.c_int.in_dll(lib, "shim_pid").value = os.getpid()
    ctypes.c_int.in_dll(lib, "shim_signal").value = signal.SIGINT
if sys.argv[1] == "other thread":
    lib.shim_start_thread()
"""

WAITS = {
    "results": """
def source():
    yield 1
    arm()
try:
    with WorkerPool(1) as pool:
        pool.map(time.sleep, (1000 for _ in source()), chunk_size=1)
except KeyboardInterrupt:
    print("interrupted")
""",
    "the end of a worker": """
def linger():
    time.sleep(1000)
def task(x):
    from multiprocessing import util
    util.Finalize(None, linger, exitpriority=5)
    return x
def source():
    yield 1
try:
    with WorkerPool(1) as pool:
        pool._supervisor._see_out_unarmed = pool._supervisor._see_out
        def see_out():
            arm_at_the_end(pool)
            pool._supervisor._see_out_unarmed()
        def arm_at_the_end(pool):
            while pool._supervisor._workers:
                if pool._supervisor.gather() and pool._supervisor._workers:
                    pool._supervisor.sleep(1)
            arm()
        pool._supervisor._see_out = see_out
        pool.map(task, [1])
except KeyboardInterrupt:
    print("interrupted")
""",
}


@pytest.mark.parametrize("thread", ["this thread", "other thread"])
@pytest.mark.parametrize("wait", WAITS)
def test_a_signal_right_before_the_sleep_ends_it(wait: str, thread: str, shim: Path, tmp_path: Path) -> None:
    done = program(tmp_path, BEFORE_THE_POLL + WAITS[wait], thread, LD_PRELOAD=str(shim))
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_a_signal_right_before_an_idle_worker_sleeps(shim: Path, tmp_path: Path) -> None:
    done = program(
        tmp_path,
        BEFORE_THE_POLL
        + """
def raising(*_):
    raise ValueError("heard")
def task(x):
    signal.signal(signal.SIGINT, raising)
    arm()
    return os.getpid()
import select
with WorkerPool(1, keep_alive=True) as pool:
    try:
        handle = os.pidfd_open(pool.map(task, [1])[0])
        assert select.select([handle], [], [], 30)[0], "the worker sleeps"
        pool.map(task, [1])
    except ValueError as error:  # in the first map, if the worker was quick
        print(error)
""",
        "this thread",
        LD_PRELOAD=str(shim),
    )
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_a_look_at_the_workers_that_a_signal_interrupts(shim: Path, tmp_path: Path) -> None:
    text = """
    import ctypes
    from fastpool._native import Segment
    breaks = ctypes.c_int.in_dll(ctypes.CDLL(None), "shim_breaks")
    breaks.value = 1
    print(Segment(2, 1 << 16, 1 << 20, 1).look_at_handles(), breaks.value)
    """
    done = program(tmp_path, text, LD_PRELOAD=str(shim))
    assert (done.stdout, done.stderr) == ("[] 0\n", "")


# ---------------------------------------------------------------- the moment of a fork

WHILE_WORKERS_START = """
import os, signal, sys, threading, time
from fastpool import WorkerPool
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=threading.Event().wait, daemon=True).start()  # the system may give a signal to it
done = []
def hook():
    if armed:
        armed.clear()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)  # another thread has it by now
        done.append(1)
armed = []
os.register_at_fork(**{sys.argv[1]: hook})
pool = WorkerPool(2)
try:
    armed.append(1)
    pool.map(abs, range(10))
except KeyboardInterrupt:
    print("interrupted", done)
print(pool.map(abs, range(-3, 0)))
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


@pytest.mark.parametrize("when", ["before", "after_in_parent"])
def test_a_signal_in_an_at_fork_hook_is_heard_after_it(when: str, tmp_path: Path) -> None:
    """An exception in such a hook would be printed and dropped, and the hook not have done its work."""
    done = program(tmp_path, WHILE_WORKERS_START, when)
    assert (done.stdout, done.stderr) == ("interrupted [1]\n[3, 2, 1]\n", "")


# ---------------------------------------------------------------- the moment of a hand-over


class Interrupting:
    """A segment: Ctrl-C comes when it has forgotten a worker."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment

    def __getattr__(self, name: str) -> Any:
        return getattr(self.segment, name)

    def detach(self, worker_id: int) -> Any:
        detached = self.segment.detach(worker_id)
        os.kill(os.getpid(), signal.SIGINT)
        return detached


@processes
def test_ctrl_c_while_a_lane_is_handed_over(monkeypatch: pytest.MonkeyPatch, start_method: str) -> None:
    detach = process.Popen.detach

    def interrupted(self: Any) -> None:
        self.segment = Interrupting(self.segment)
        detach(self)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with WorkerPool(n_jobs=1, start_method=start_method) as pool:
            pool.map(same, [1])
            known = {child.pid for child in descendants()}
            monkeypatch.setattr(process.Popen, "detach", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.map(same, range(20), worker_lifespan=5)
            assert {child.pid for child in descendants()} <= known
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------- the program's own wake-up descriptor


def keep_one(x: int) -> int:
    time.sleep(0.05)
    return x


def test_the_wakeup_descriptor_of_the_program_stays_its_own() -> None:
    """Signals that come during a map are told to it, once each; as asyncio needs it."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    heard: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda signum, _: heard.append(signum))
    before = signal.set_wakeup_fd(writer)
    try:
        with WorkerPool(n_jobs=2) as pool:
            for _ in range(3):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                assert pool.map(keep_one, range(4), chunk_size=1) == [0, 1, 2, 3]
        assert signal.set_wakeup_fd(before) == writer
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGALRM, previous)
    assert heard == [signal.SIGALRM] * 3
    assert os.read(reader, 100) == bytes([signal.SIGALRM] * 3)
    os.close(reader)
    os.close(writer)


# ---------------------------------------------------------------- handlers at any moment


class Alarmed(Exception):
    pass


@pytest.fixture
def alarm() -> Iterator[Any]:
    """`alarm(handler, seconds)`: the handler runs again and again; `alarm(None, 0)`: no more."""
    previous = signal.getsignal(signal.SIGALRM)

    def set_alarm(handler: Any, seconds: float) -> None:
        if handler is None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


def same(x: Any) -> Any:
    return x


def storm(x: int) -> int:
    if x == 0:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    return x


INPUTS: dict[str, Any] = {"range": range, "list": lambda n: list(range(n)), "generator": lambda n: iter(range(n))}


@pytest.mark.parametrize(
    ("method", "kind"), [("fork", kind) for kind in INPUTS] + [(method, "list") for method in PROCESSES[1:]]
)
def test_storms_of_signals_disturb_no_map(method: str, kind: str, alarm: Any) -> None:
    """In the parent and in the workers, at once, also while these start."""
    count: list[int] = []
    alarm(lambda *_: count.append(1), 0.0005)
    for keep_alive in (False, True):
        with WorkerPool(n_jobs=2, keep_alive=keep_alive, start_method=method) as pool:
            for _ in range(2):
                assert pool.map(storm, INPUTS[kind](20_000), worker_lifespan=8_000) == list(range(20_000))
                assert pool.map(same, [b"x" * 100_000] * 50) == [b"x" * 100_000] * 50
    alarm(None, 0)
    assert count


def test_a_handler_of_the_parent_that_raises_at_any_moment(alarm: Any) -> None:
    """Its exception comes out of the call, once, and all is gone, whatever it interrupts: the start of workers, a
    map, the end of the pool."""
    armed: list[bool] = []

    def raise_alarm(*_: Any) -> None:
        if armed:
            armed.clear()
            raise Alarmed

    rng = random.Random(5)
    before = {process.pid for process in descendants()}
    came = 0
    for i in range(2000 if LONG else 150):
        try:
            alarm(raise_alarm, 0.0002 + 0.006 * rng.random())
            with WorkerPool(n_jobs=2, keep_alive=i % 2 == 0) as pool:
                armed.append(True)
                for _ in range(3):
                    pool.map(same, range(1000))
                pool.map(same, list(range(1000)))
        except Alarmed:
            came += 1
        finally:
            armed.clear()
            alarm(None, 0)
        assert {process.pid for process in descendants()} <= before
        assert pool.map(same, range(3)) == [0, 1, 2]
        pool.terminate()
    assert came > 0


# ---------------------------------------------------------------- wherever Python looks at signals

HELD = 30.0  # seconds after which a thread waits for what nobody lets go of


class Interrupter:
    """Interrupts this thread where it looks at signals for the n-th time in some modules: where a function of theirs
    begins, or one of C's that it has called is done. Not where handlers wait."""

    def __init__(self, n: int, *modules: str) -> None:
        self.left, self.modules = n, modules

    def __enter__(self) -> None:
        sys.setprofile(self.look)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def look(self, frame: Any, event: str, arg: Any) -> None:
        if event not in ("call", "c_return") or Path(frame.f_code.co_filename).name not in self.modules:
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


USES: dict[str, Any] = {
    "map": lambda pool: pool.map(abs, range(3)),
    "imap": lambda pool: list(pool.imap(abs, range(3))),
    "apply": lambda pool: pool.apply(abs, (-1,)),
    "apply_async": lambda pool: pool.apply_async(abs, (-1,)).get(),
    "stop_and_join": lambda pool: pool.stop_and_join(),
    "terminate": lambda pool: pool.terminate(),
}


@pytest.mark.parametrize("use", USES)
def test_an_interrupt_anywhere_leaves_the_pool_to_other_threads(use: str) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with WorkerPool(n_jobs=1, keep_alive=True) as pool:
            for n in range(1, 10_000):
                pool.map(abs, range(3))
                interrupter = Interrupter(n, "engine.py", "pool.py", "applying.py", "results.py", "threading.py")
                with contextlib.suppress(KeyboardInterrupt), interrupter:
                    USES[use](pool)
                got: list[Any] = []
                other = threading.Thread(target=lambda: got.append((pool.apply(abs, (-2,)), pool.map(abs, [-3]))))  # noqa: B023
                other.start()
                other.join(HELD)
                assert got == [(2, [3])], f"interrupted at {n}"
                if interrupter.left > 0:
                    break
            assert n > 10
    finally:
        signal.signal(signal.SIGINT, before)
