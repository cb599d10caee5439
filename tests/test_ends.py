"""How workers and pools end where something is in the way: threads, exit handlers, other threads' calls, the exit of
the interpreter."""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
import time
from multiprocessing import util
from pathlib import Path
from typing import Any

import pytest

from fastpool import WorkerPool

HANG = 60  # seconds after which a program that should end has not


def leave_thread(x: int) -> int:
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return x


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
    return subprocess.run(
        [sys.executable, "-c", text, *given], capture_output=True, text=True, timeout=HANG, **options
    )


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
    ignore = "__import__('functools').partial(signal.signal, signal.SIGTERM, signal.SIG_IGN)"
    text = ENDS_OF_THE_INTERPRETER[what].replace("METHOD", repr(start_method)).replace("IGNORE", ignore)
    script = tmp_path / "main.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=HANG)
    assert (done.stdout, done.stderr) == ("[1, 2]\nfinalized\n", "")
