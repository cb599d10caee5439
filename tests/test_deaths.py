"""Workers that die, in every state; and workers whose owner dies."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import PROCESSES, kill_self, processes
from leftovers import yield_until

from fastpool import WorkerDiedError, WorkerPool, _native

SIGNALS = [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT]


def die_at_7(signum: int, x: int) -> int:
    if x == 7:
        kill_self(signum)
    return x


def generated(n: int) -> Iterator[int]:
    yield from range(n)


KINDS = [range, lambda n: list(range(n)), generated]


@pytest.mark.parametrize(
    ("method", "signum", "kind"),
    [("fork", signum, kind) for signum in SIGNALS for kind in KINDS]
    + [(method, signum, range) for method in PROCESSES[1:] for signum in SIGNALS[:2]],
)
def test_killed_in_a_task(method: str, signum: int, kind: Any) -> None:
    with WorkerPool(n_jobs=2, start_method=method) as pool:
        with pytest.raises(WorkerDiedError) as caught:
            pool.map(partial(die_at_7, signum), kind(50), chunk_size=5)
        error = caught.value
        assert error.exitcode == -signum
        assert error.state == "running"
        # A chunk does not wait for slow elements: under load, a generator's may have been cut elsewhere.
        end = 10 if kind is not generated else error.tasks.stop
        assert error.tasks == range(7, end)
        assert len(error.tasks) <= 5
        assert signal.Signals(signum).name in str(error)
        assert (f"tasks 7 to {end - 1}" if end > 8 else "held task 7") in str(error)
        assert isinstance(error, RuntimeError)
        assert pool.map(abs, [-1]) == [1]


def exit_at_once(_: Any) -> None:
    os._exit(3)


@processes
def test_os_exit_in_a_task(start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        with pytest.raises(WorkerDiedError, match=r"exited with status 3 while running; it held task 0\.") as caught:
            pool.map(exit_at_once, [0])
        assert caught.value.exitcode == 3


def exit_without_arguments() -> None:
    os._exit(4)


@processes
def test_death_in_init_and_in_exit(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(WorkerDiedError, match="while initializing"):
            pool.map(abs, range(10), worker_init=exit_without_arguments)
        with pytest.raises(WorkerDiedError, match="while exiting; it held no task"):
            pool.map(abs, range(10), worker_exit=exit_without_arguments)
        assert pool.map(abs, [-1]) == [1]


@processes
def test_a_kept_worker_that_dies_between_maps(start_method: str) -> None:
    with WorkerPool(n_jobs=2, keep_alive=True, start_method=start_method) as pool:
        pid = pool.map(getpid, range(4))[0]
        os.kill(pid, signal.SIGKILL)
        wait_until_ended(pid)
        with pytest.raises(WorkerDiedError, match=r"was killed by SIGKILL while (idle|running); it held no task"):
            pool.map(abs, range(10))
        assert pool.map(abs, [-1]) == [1]
        pid = pool.map(getpid, range(4))[0]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError):
            pool.stop_and_join()
        assert pool.get_exit_results() == []


def getpid(_: Any = None) -> int:
    return os.getpid()


def wait_until_ended(pid: int) -> None:
    """Until the process is gone or a zombie."""
    handle = os.pidfd_open(pid)
    assert select.select([handle], [], [], 10)[0]
    os.close(handle)


@processes
def test_a_worker_killed_while_it_sleeps_for_input(start_method: str) -> None:
    pids: list[int] = []

    def source() -> Iterator[int]:
        yield 0
        pids.extend(child.pid or 0 for child in __import__("multiprocessing").active_children())
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        yield from range(1, 5)

    with WorkerPool(n_jobs=2, start_method=start_method) as pool, pytest.raises(WorkerDiedError, match="SIGKILL"):
        pool.map(abs, source(), chunk_size=1)
    assert pids


def test_a_worker_killed_while_it_waits_for_room() -> None:
    """Its ring is full, because the parent is busy in the input."""

    def source() -> Iterator[int]:
        yield from range(4)
        time.sleep(0.3)
        for child in __import__("multiprocessing").active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        yield 4

    def large(_: int) -> list[str]:
        return ["x" * 20_000] * 1

    with WorkerPool(n_jobs=1) as pool, pytest.raises(WorkerDiedError):
        pool.map(large, source(), chunk_size=2)


def stop_and_die_at_3(x: int) -> int:
    if x == 3:
        subprocess.Popen(["sh", "-c", f"kill -STOP {os.getpid()}; kill -KILL {os.getpid()}"]).wait()
    return x


@processes
def test_stopped_then_killed(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool, pytest.raises(WorkerDiedError, match="SIGKILL"):
        pool.map(stop_and_die_at_3, range(10))


def die_at_0(x: int) -> None:
    if x == 0:
        os._exit(1)
    time.sleep(30)


@processes
def test_the_error_comes_at_once(start_method: str) -> None:
    """Other workers are in the middle of long tasks."""
    began = time.monotonic()
    with WorkerPool(n_jobs=3, start_method=start_method) as pool, pytest.raises(WorkerDiedError):
        pool.map(die_at_0, range(3), chunk_size=1)
    assert time.monotonic() - began < 15


def test_a_worker_that_never_comes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastpool.worker

    def broken(*_: Any) -> None:
        os._exit(9)

    monkeypatch.setattr(fastpool.worker, "Loop", broken)
    with WorkerPool(n_jobs=2) as pool, pytest.raises(WorkerDiedError, match="while starting") as caught:
        pool.map(abs, range(10))
    assert caught.value.state == "starting"


# ---------------------------------------------------------------- the owner dies

STATES = {  # what the owner does, until two workers have reported and are in this state
    "starting": "os.register_at_fork(after_in_child=asleep)\npool.map(report, range(1000))",
    "initializing": "pool.map(nap, range(8), chunk_size=1, worker_init=asleep)",
    "idle": "until_both_report(pool)\nprint('ready', flush=True)\ntime.sleep(60)",
    "in python": "pool.map(spin, range(8), chunk_size=1)",
    "in a C call that holds the GIL": "pool.map(in_c, range(8), chunk_size=1)",
    "asleep in a task": "pool.map(asleep, range(8), chunk_size=1)",
    "stopped": "pool.map(asleep, range(8), chunk_size=1)",
    "signals blocked": "pool.map(blocked, range(8), chunk_size=1)",
    "waiting for input": "pool.map(report, slow(40), chunk_size=1)",  # so many that both workers get some
    "waiting for room": "pool.map(large, slow(400), chunk_size=100)",
    "in the exit function": "pool.map(nap, range(8), chunk_size=1, worker_exit=asleep)\npool.stop_and_join()",
    "with workers of their own": "pool.map(have_workers, range(2), chunk_size=1)",
}
ASLEEP = ["idle", "waiting for input", "waiting for room"]  # the report comes before the sleep

SCRIPT = """
import os, re, signal, sys, threading, time
from fastpool import WorkerPool

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

def report(x=0):
    os.write(1, b"worker %d\\n" % os.getpid())  # one write: prints of two workers may mix
    time.sleep(0.05)
    return os.getpid()

def until_both_report(pool):
    while len(set(pool.map(report, range(8), chunk_size=1))) < 2:
        pass  # one was so slow to start that the other did all

def spin(x):
    report()
    while True:
        pass

def in_c(x):
    report()
    re.match("(a+)+$", "a" * 60 + "b")

def asleep(x=0):
    report()
    time.sleep(60)

def nap(x):
    time.sleep(0.05)

def large(x):
    report()
    return "x" * 30_000

def have_workers(x):
    report()
    with WorkerPool(n_jobs=2) as inner:
        inner.map(asleep, range(4), chunk_size=1)

def blocked(x):
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
    report()
    while True:
        pass

def slow(n=4):
    yield from range(n)
    time.sleep(60)

def leave_a_fork(*_):
    if pid := os.fork():
        os.write(1, b"fork %d\\n" % pid)
    else:
        time.sleep(60)

def main():
    with WorkerPool(n_jobs=2, daemon=False, keep_alive=True, start_method="METHOD") as pool:
        RUN

if __name__ == "__main__":
    END
"""


Owner = subprocess.Popen[str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Owner]]:
    """Starts scripts, and ends them whatever the test does."""
    owners: list[Owner] = []

    def start_script(script: str, **options: Any) -> Owner:
        path = tmp_path / f"owner_{len(owners)}.py"
        path.write_text(script)
        owner = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, **options)
        owners.append(owner)
        return owner

    yield start_script
    for owner in owners:
        owner.kill()
        owner.wait()
        for stream in (owner.stdin, owner.stdout, owner.stderr):
            if stream is not None:
                stream.close()


def script_of(run: str, end: str = "main()", method: str = "fork") -> str:
    script = SCRIPT.replace("RUN", textwrap.indent(run, "        ").strip()).replace("METHOD", method)
    return script.replace("END", textwrap.indent(end, "    ").strip())


def read_workers(owner: Owner, n: int) -> list[int]:
    """Pids of the first n workers that report."""
    assert owner.stdout is not None
    pids: list[int] = []
    while len(pids) < n:
        line = owner.stdout.readline()
        assert line, "the script ended early"
        if (found := re.match(r"worker (\d+)", line)) and int(found[1]) not in pids:
            pids.append(int(found[1]))
    return pids


def read_until(owner: Owner, pattern: str) -> str:
    assert owner.stdout is not None
    while not (found := re.match(pattern, line := owner.stdout.readline())):
        assert line, "the script ended early"
    return found[1]


def all_end(handles: list[int]) -> bool:
    """Do the processes of these handles end soon? Closes the handles."""
    ended = [bool(select.select([handle], [], [], 5)[0]) for handle in handles]
    for handle in handles:
        os.close(handle)
    return all(ended)


IN_THREAD = "t = threading.Thread(target=main); t.start(); t.join()"


A_FORK_LIVES_ON = "signal.signal(signal.SIGUSR1, leave_a_fork)\nmain()"

WAYS = {  # where the pool is made, the start method, and the states that there are
    "main thread": ("main()", "fork", list(STATES)),
    "other thread": (IN_THREAD, "fork", list(STATES)),
    "a fork lives on": (A_FORK_LIVES_ON, "fork", list(STATES)),
    "spawn": ("main()", "spawn", list(STATES)[1:]),
    "forkserver": ("main()", "forkserver", list(STATES)[1:]),
}


@pytest.mark.parametrize(("way", "state"), [(way, state) for way in WAYS for state in WAYS[way][2]])
def test_workers_are_gone_when_the_owner_is_killed(start: Callable[..., Owner], way: str, state: str) -> None:
    if state == "stopped" and _native.is_posix():
        pytest.skip("a stopped worker ends when it is continued (docs/architecture.md, portability)")
    end, method, _ = WAYS[way]
    owner = start(script_of(STATES[state], end, method))
    pids = read_workers(owner, 6 if state == "with workers of their own" else 2)
    handles = [os.pidfd_open(pid) for pid in pids]
    if state == "idle":
        read_until(owner, "(ready)")
    for pid in pids:
        if state in ASLEEP:
            wait_until(pid, "S")
        elif state == "stopped":
            os.kill(pid, signal.SIGSTOP)
            wait_until(pid, "T")
    fork = None
    if end == A_FORK_LIVES_ON:
        owner.send_signal(signal.SIGUSR1)
        fork = int(read_until(owner, r"fork (\d+)"))
    owner.kill()
    assert all_end(handles)
    if fork is not None:
        os.kill(fork, signal.SIGKILL)


def wait_until(pid: int, state: str) -> None:
    """Until the process is in this state of ps(1)."""
    stat = Path(f"/proc/{pid}/stat")
    yield_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == state, time.monotonic() + 60)


@processes
def test_a_fork_of_the_owner_does_not_keep_workers_alive(start: Callable[..., Owner], start_method: str) -> None:
    owner = start(
        script_of(
            "until_both_report(pool)\nleave_a_fork()\ntime.sleep(60)",
            method=start_method,
        )
    )
    handles = [os.pidfd_open(pid) for pid in read_workers(owner, 2)]
    fork = int(read_until(owner, r"fork (\d+)"))
    owner.kill()
    assert all_end(handles)
    os.kill(fork, signal.SIGKILL)


ENDS = {
    "the end of the program": "pass",
    "exit": "sys.exit(0)",
    "exception": "raise ValueError",
    "_exit": "os._exit(5)",
    "segmentation fault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "exception at the exit": "import atexit; atexit.register(lambda: 1 / 0)",
    "_exit at the exit": "import atexit; atexit.register(os._exit, 3)",
    "another program": "os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)'])",
    "a thread that stays": "threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(60)",
}


@pytest.mark.parametrize("how", ENDS)
def test_workers_are_gone_however_the_owner_ends(start: Callable[..., Owner], how: str) -> None:
    end = f"""
pool = WorkerPool(n_jobs=2, keep_alive=True)
until_both_report(pool)
sys.stdin.read()
{ENDS[how]}
"""
    owner = start(script_of("pass", end), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    handles = [os.pidfd_open(pid) for pid in read_workers(owner, 2)]
    assert owner.stdin is not None
    owner.stdin.close()
    assert all_end(handles)


@pytest.mark.parametrize("state", ["idle", "asleep in a task", "signals blocked", "with workers of their own"])
def test_workers_are_gone_when_the_terminal_is_closed(start: Callable[..., Owner], state: str) -> None:
    terminal, its_end = os.openpty()
    take_terminal = (
        "import fcntl, termios\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\nmain()"
    )
    owner = start(script_of(STATES[state], take_terminal), stdin=its_end, start_new_session=True)
    os.close(its_end)
    handles = [os.pidfd_open(pid) for pid in read_workers(owner, 6 if state == "with workers of their own" else 2)]
    os.close(terminal)
    assert all_end([*handles, os.pidfd_open(owner.pid)])
    assert owner.wait() == -signal.SIGHUP


@pytest.mark.parametrize("inherits", [False, True])
def test_a_program_that_the_owner_started_does_not_keep_workers_alive(
    start: Callable[..., Owner], inherits: bool
) -> None:
    owner = start(
        script_of(
            "import subprocess\nuntil_both_report(pool)\n"
            f"other = subprocess.Popen(['sleep', '60'], close_fds={not inherits})\n"
            "print('started', other.pid, flush=True)\ntime.sleep(60)"
        )
    )
    handles = [os.pidfd_open(pid) for pid in read_workers(owner, 2)]
    other = int(read_until(owner, r"started (\d+)"))
    owner.kill()
    assert all_end(handles)
    os.kill(other, signal.SIGKILL)


@processes
def test_ctrl_c_stops_everything_and_raises_once(start: Callable[..., Owner], start_method: str) -> None:
    owner = start(
        script_of(STATES["asleep in a task"], method=start_method), stderr=subprocess.PIPE, start_new_session=True
    )
    handles = [os.pidfd_open(pid) for pid in read_workers(owner, 2)]
    os.killpg(owner.pid, signal.SIGINT)
    _, errors = owner.communicate(timeout=20)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert all_end(handles)
