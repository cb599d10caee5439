"""How workers and pools end where something is in the way: threads, exit handlers, other threads' calls, the exit of
the interpreter."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest
from conftest import processes

from fastpool import WorkerPool

HANG = 60  # seconds after which a program that should end has not


def leave_thread(x: int) -> int:
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return x


@processes
@pytest.mark.parametrize("keep_alive", [False, True])
def test_threads_that_tasks_left_keep_nobody_waiting(keep_alive: bool, start_method: str) -> None:
    with WorkerPool(n_jobs=2, keep_alive=keep_alive, start_method=start_method) as pool:
        assert pool.map(leave_thread, range(4), chunk_size=1) == [0, 1, 2, 3]
        pool.stop_and_join()
        assert pool.map(leave_thread, range(40), worker_lifespan=10) == list(range(40))


def note(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")


def register(path: Path, x: int) -> int:
    util.Finalize(None, note, args=(f"{path}.util",), exitpriority=5)
    print("printed by a task", end=f" {x}\n")
    return x


def register_and_leave_thread(path: Path, x: int) -> int:
    return leave_thread(register(path, x))


@processes
@pytest.mark.parametrize("task", [register, register_and_leave_thread])
def test_exit_handlers_of_multiprocessing_run_once(
    task: Any, start_method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "handled"
    with WorkerPool(n_jobs=1, shared_objects=path, start_method=start_method) as pool:
        assert pool.map(task, [7]) == [7]
    assert Path(f"{path}.util").read_text() == "x"
    if start_method != "forkserver":  # whose output is where the server's was when it started
        assert capfd.readouterr().out == "printed by a task 7\n"


def register_with_atexit(path: Path, x: int) -> int:
    atexit.register(note, str(path))
    return x


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_a_task_registers_with_atexit_runs_once(method: str, tmp_path: Path) -> None:
    path = tmp_path / "handled"
    with WorkerPool(n_jobs=1, shared_objects=path, start_method=method) as pool:
        assert pool.map(register_with_atexit, [7]) == [7]
    assert path.read_text() == "x"


def program(text: str, *given: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text, *given], capture_output=True, text=True, timeout=HANG, **options)


def test_ctrl_c_while_a_worker_is_on_its_way_out() -> None:
    script = """
import os, signal, time
from multiprocessing import util
from fastpool import WorkerPool
signal.signal(signal.SIGINT, signal.default_int_handler)
def linger():
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(1000)
def task(x):
    util.Finalize(None, linger, exitpriority=5)
    return x
try:
    with WorkerPool(1) as pool:
        pool.map(task, [1])
except KeyboardInterrupt:
    print("interrupted")
"""
    done = program(script)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


ENDS_OF_THE_INTERPRETER = {
    "workers that multiprocessing would join": """
import weakref
class Thing: pass
thing = Thing()
weakref.finalize(thing, print, "finalized")  # weakref's exit handler is older than multiprocessing's, and runs later
from fastpool import WorkerPool
pool = WorkerPool(2, daemon=False, keep_alive=True, start_method=METHOD)
if __name__ == "__main__":
    print(pool.map(abs, [-1, -2]), flush=True)
""",
    "workers that ignore SIGTERM": """
import signal, weakref
class Thing: pass
thing = Thing()
weakref.finalize(thing, print, "finalized")
from fastpool import WorkerPool
pool = WorkerPool(2, keep_alive=True, start_method=METHOD)
if __name__ == "__main__":
    print(pool.map(abs, [-1, -2], worker_init=IGNORE), flush=True)
""",
    "a pool in a worker": """
from fastpool import WorkerPool
def task(x):
    global inner
    inner = WorkerPool(2, daemon=False, keep_alive=True)
    return inner.map(abs, [x])[0]
if __name__ == "__main__":
    with WorkerPool(1, daemon=False, start_method=METHOD) as pool:
        print(pool.map(task, [-1, -2]), flush=True)
    print("finalized")
""",
}


@pytest.mark.parametrize("what", ENDS_OF_THE_INTERPRETER)
def test_the_interpreter_ends_though_a_pool_is_open(what: str, start_method: str, tmp_path: Path) -> None:
    if (what, start_method) == ("workers that ignore SIGTERM", "threading"):
        pytest.skip("threads have no signals")
    ignore = "__import__('functools').partial(signal.signal, signal.SIGTERM, signal.SIG_IGN)"
    text = ENDS_OF_THE_INTERPRETER[what].replace("METHOD", repr(start_method)).replace("IGNORE", ignore)
    script = tmp_path / "main.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=HANG)
    assert (done.stdout, done.stderr) == ("[1, 2]\nfinalized\n", "")


def say_and_sleep(path: Path, x: int) -> int:
    note(str(path))
    time.sleep(1000)
    return x


def note_and_return(path: Path, x: int) -> int:
    if x < 100:  # more could fill the pipe, and a thread that waits in the system cannot be interrupted
        note(str(path))
    return x


def forever(wait: Any) -> Iterator[int]:
    for x in itertools.count():
        wait()
        yield x


SOURCES: dict[str, Any] = {
    "tasks that last": (say_and_sleep, lambda: range(2)),
    "many short tasks": (note_and_return, lambda: range(10**9)),
    "input without end": (note_and_return, lambda: forever(lambda: None)),
    "replaced workers": (note_and_return, lambda: range(10**9)),
}


@pytest.mark.parametrize("what", SOURCES)
@pytest.mark.parametrize("leave", [False, True])
def test_terminate_in_another_thread_ends_the_map(what: str, leave: bool, start_method: str, tmp_path: Path) -> None:
    task, source = SOURCES[what]
    if (what, start_method) == ("tasks that last", "threading"):
        pytest.skip("tests/test_threads.py has this")
    path = tmp_path / "begun"
    os.mkfifo(path)
    raised: list[BaseException] = []

    def use() -> None:
        try:
            pool.map(task, source(), worker_lifespan=3 if what == "replaced workers" else None)
        except RuntimeError as error:
            raised.append(error)

    pool = WorkerPool(n_jobs=2, shared_objects=path, keep_alive=True, start_method=start_method)
    with pool if leave else contextlib.nullcontext():
        thread = threading.Thread(target=use)
        thread.start()
        reader = open(path)  # noqa: SIM115 (open until the map has ended: who writes waits for a reader)
        assert reader.read(1) == "x"  # a task has begun
        if not leave:
            pool.terminate()
    thread.join()
    reader.close()
    assert [str(error) for error in raised] == ["the pool was terminated by another thread"]
    path.unlink()
    assert pool.map(note_and_return, [3, 4]) == [3, 4]
    pool.terminate()


def test_terminate_at_any_moment_of_maps_in_another_thread() -> None:
    """No order of the two threads' steps hangs, leaves a worker, or is taken for a death."""
    pool = WorkerPool(n_jobs=2)
    errors: set[str] = set()
    stop = threading.Event()

    def use() -> None:
        while not stop.is_set():
            try:
                assert pool.map(abs, range(-20, 0), worker_lifespan=7) == list(range(20, 0, -1))
            except RuntimeError as error:
                errors.add(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    for _ in range(300):
        pool.terminate()
    stop.set()
    thread.join()
    pool.terminate()
    busy = "this pool is busy: another map of it is running"  # in the moment in which the other thread cleans up
    assert errors <= {"the pool was terminated by another thread", busy}


WITHIN = "the pool was terminated in the middle of this call, by a signal's handler or by the input"


@pytest.mark.parametrize("keep_alive", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_the_input_terminates_the_pool(lazy: bool, keep_alive: bool, start_method: str) -> None:
    def source() -> Iterator[int]:
        yield 1
        pool.terminate()
        yield from range(1_000_000_000)

    with WorkerPool(n_jobs=1, keep_alive=keep_alive, start_method=start_method) as pool:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=WITHIN):
                list(pool.imap(abs, source())) if lazy else pool.map(abs, source())
            assert pool.map(abs, [-1]) == [1]


def note_and_sleep(path: Path, x: int) -> int:
    note(str(path))
    time.sleep(0.5)
    return x


def one(_: Path) -> int:
    return 1


@pytest.mark.parametrize("always_exit", [False, True])
def test_a_handler_terminates_the_pool(always_exit: bool, start_method: str, tmp_path: Path) -> None:
    """Though nothing but a task that lasts is awaited; the tasks' results that were there are lost, the pool is not."""
    path = tmp_path / "begun"
    os.mkfifo(path)

    def knock() -> None:
        with open(path) as reader:
            reader.read(1)
        os.kill(os.getpid(), signal.SIGUSR1)

    pool = WorkerPool(n_jobs=2, shared_objects=path, keep_alive=True, start_method=start_method)
    before = signal.signal(signal.SIGUSR1, lambda *_: pool.terminate())
    thread = threading.Thread(target=knock)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match=WITHIN):
            pool.map(note_and_sleep, [0], worker_exit=one, always_exit=always_exit)
        assert pool.get_exit_results() == ([1] if always_exit else [])
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    path.unlink()
    assert pool.map(note_and_return, [3, 4]) == [3, 4]
    pool.terminate()


def test_a_handler_terminates_the_pool_at_any_moment() -> None:
    pool = WorkerPool(n_jobs=2)
    errors: set[str] = set()
    before = signal.signal(signal.SIGALRM, lambda *_: pool.terminate())
    try:
        for k in range(300):
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + k * 0.00005)
            try:
                while signal.getitimer(signal.ITIMER_REAL)[0]:
                    assert pool.map(abs, range(-20, 0), worker_lifespan=7) == list(range(20, 0, -1))
            except RuntimeError as error:
                errors.add(str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert errors == {WITHIN}
    assert pool.map(abs, [-1]) == [1]
    pool.terminate()
