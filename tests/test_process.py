"""The process that a pool lives in is the user's: its forks, threads, locks, children and crash reports."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import processes
from leftovers import all_end

from fastpool import WorkerPool

DEADLINE = 60  # seconds after which what should have ended hangs


def program(folder: Path, text: str, **replaced: str) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(text)
    for name, value in replaced.items():
        text = text.replace(name, value)
    path = folder / "program.py"
    path.write_text(text)
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=DEADLINE)


# ---------------------------------------------------------------- forks of the user's

FORKS = {
    "runs to its end": "",
    "exits": "sys.exit(0)",
    "raises": "sys.excepthook = lambda *_: None; raise ValueError",
    "is another program": "os.execv(sys.executable, [sys.executable, '-c', ''])",
    "uses a new pool": "with WorkerPool(2) as new: assert new.map(abs, range(-9, 0)) == list(range(9, 0, -1))",
    "leaves a new pool open": "new = WorkerPool(2, keep_alive=True); assert new.map(abs, [-1]) == [1]",
    "drops the pool": "del pool; gc.collect()",
    "cannot use the pool": """
        for use in (lambda: pool.map(abs, [1]), pool.stop_and_join, pool.terminate):
            try:
                use()
            except RuntimeError as error:
                assert 'belongs to process' in str(error) or 'is busy' in str(error)
    """,
    "is killed": "os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("during", ["between maps", "during a map"])
@pytest.mark.parametrize("what", FORKS)
def test_a_fork_hurts_nothing(what: str, during: str, tmp_path: Path) -> None:
    """Whatever a fork of the owner does: the workers work on, and end with the owner."""
    script = """
    import gc, os, sys, time
    from fastpool import WorkerPool
    def task(x):
        time.sleep(0.01)
        return os.getpid(), x
    def in_fork():
        global pool
        WHAT
    def fork():
        if os.fork() == 0:
            in_fork()
            sys.exit(0)
    def source(forks):
        for x in range(20):
            if forks and x == 10:
                fork()
            yield x
    if __name__ == "__main__":
        pool = WorkerPool(2, keep_alive=True)
        pids = {pid for pid, _ in pool.map(task, source(False), chunk_size=1)}
        if DURING:
            results = pool.map(task, source(True), chunk_size=1)
        else:
            fork()
            os.wait()
            results = pool.map(task, source(False), chunk_size=1)
        assert [x for _, x in results] == list(range(20))
        assert {pid for pid, _ in results} <= pids
        pool.stop_and_join()
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
        print("whole")
    """
    body = textwrap.indent(textwrap.dedent(FORKS[what]).strip() or "pass", " " * 8).strip()
    text = textwrap.dedent(script).replace("    WHAT", "    " + body.replace("\n" + " " * 8, "\n    "))
    done = program(tmp_path, text, DURING=str(during == "during a map"))
    assert (done.stdout, done.stderr) == ("whole\n", "")


# ---------------------------------------------------------------- locks that threads hold

lock = threading.Lock()


def can_lock(_: Any) -> bool:
    if lock.acquire(timeout=0.2):
        lock.release()
        return True
    return False


@pytest.mark.parametrize(("method", "expected"), [("fork", False), ("forkserver", True), ("spawn", True)])
def test_a_lock_that_another_thread_holds(method: str, expected: bool) -> None:
    """A forked worker finds it locked for ever (docs/architecture.md); one that is no fork has its own."""
    release, locked = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            locked.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    try:
        with WorkerPool(n_jobs=1, start_method=method) as pool:
            assert pool.map(can_lock, range(2)) == [expected] * 2
    finally:
        release.set()
        thread.join()


@processes
def test_a_thread_that_reads_stdin(start_method: str, tmp_path: Path) -> None:
    """It holds the lock of `sys.stdin`, which `multiprocessing` closes in each process it starts."""
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(f"""
        import os, sys, threading
        from fastpool import WorkerPool
        def read(begun):
            begun.set()
            sys.stdin.readline()
        if __name__ == "__main__":
            begun = threading.Event()
            reader = threading.Thread(target=read, args=(begun,))
            reader.start()
            begun.wait()
            stat = f"/proc/self/task/{{reader.native_id}}/stat"
            while open(stat).read().rpartition(")")[2].split()[0] != "S":
                pass
            with WorkerPool(2, start_method={start_method!r}) as pool:
                print(pool.map(abs, [-1, -2]), flush=True)
            os._exit(0)
        """)
    )
    stdin, nobody_writes = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, str(path)], stdin=stdin, capture_output=True, text=True, timeout=DEADLINE
        )
    finally:
        os.close(stdin)
        os.close(nobody_writes)
    assert (done.stdout, done.stderr) == ("[1, 2]\n", "")


# ---------------------------------------------------------------- who waits for children

REAPERS = {
    "ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "a handler": """
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
""",
    "a thread": """
def reap():
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.001)
threading.Thread(target=reap, daemon=True).start()
""",
}


@processes
@pytest.mark.parametrize("reaper", REAPERS)
def test_somebody_else_waits_for_the_workers(reaper: str, start_method: str, tmp_path: Path) -> None:
    script = """
import os, signal, sys, threading, time
from fastpool import WorkerDiedError, WorkerPool
def leave():
    return os.getpid()
def die(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x
if __name__ == "__main__":
    with WorkerPool(1, start_method="METHOD") as pool:  # the helpers of multiprocessing are there now
        pool.map(abs, [1])
    REAPER
    for keep_alive in (False, True):
        with WorkerPool(2, keep_alive=keep_alive, start_method="METHOD") as pool:
            for lifespan in (None, 20):
                results = pool.map(abs, range(-50, 0), worker_lifespan=lifespan, worker_exit=leave, chunk_size=5)
                assert results == list(range(50, 0, -1))
            try:
                pool.map(die, range(10), chunk_size=1, worker_exit=leave)
            except WorkerDiedError as error:
                print(error.state)
            pool.map(abs, range(-50, 0), worker_exit=leave)
            pool.stop_and_join()
            pids = pool.get_exit_results()
            assert pids and not any(os.path.exists(f"/proc/{pid}") for pid in pids), pids
"""
    body = textwrap.indent(REAPERS[reaper].strip(), "    ").strip()
    done = program(tmp_path, script, METHOD=start_method, REAPER=body)
    assert (done.stdout, done.stderr) == ("running\nrunning\n", "")


# ---------------------------------------------------------------- crash reports


def test_faulthandler(tmp_path: Path) -> None:
    """It writes all threads' tracebacks after a while, and on a signal; a worker that crashes writes its own.

    Not again and again while Python code runs: it reads frames without the GIL then, and crashes programs by itself.
    """
    script = """
    import faulthandler, os, signal, time
    from fastpool import WorkerDiedError, WorkerPool
    report = open("REPORT", "w")
    faulthandler.enable(report)
    faulthandler.register(signal.SIGUSR1, report)
    def task(x):
        if x == 7:
            os.kill(os.getpid(), signal.SIGUSR1)
        return x
    def crash(x):
        faulthandler._sigsegv()
    for keep_alive in (False, True):
        with WorkerPool(2, keep_alive=keep_alive) as pool:
            faulthandler.dump_traceback_later(0.1, file=report)
            pool.map(time.sleep, [0.3, 0.3])
            for _ in range(5):
                assert pool.map(task, range(20_000)) == list(range(20_000))
                os.kill(os.getpid(), signal.SIGUSR1)
            try:
                pool.map(crash, range(4))
            except WorkerDiedError as error:
                print(error.exitcode)
    """
    report = tmp_path / "report"
    done = program(tmp_path, script, REPORT=str(report))
    assert (done.stdout, done.stderr) == ("-11\n-11\n", "")
    text = report.read_text()
    assert text.count("Timeout (0:00:00.100000)!") == 2
    assert "Fatal Python error: Segmentation fault" in text
    assert "in task" in text


# ---------------------------------------------------------------- collected, and used, in other threads


def getpid(_: Any) -> int:
    """Of a process; of a thread, its own."""
    return threading.get_native_id()


def run_in_thread(function: Any) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_a_pool_in_a_cycle_is_collected_by_another_thread(start_method: str) -> None:
    gc.disable()
    try:
        pool: Any = WorkerPool(n_jobs=2, keep_alive=True, start_method=start_method)
        pids = pool.map(getpid, range(4))
        pool.myself = pool
        del pool
        run_in_thread(gc.collect)
    finally:
        gc.enable()
    assert all_end(pids)


def test_pools_in_one_cycle_are_collected_together() -> None:
    pools: list[Any] = [WorkerPool(n_jobs=1, keep_alive=True) for _ in range(3)]
    pids = [pool.map(getpid, [0])[0] for pool in pools]
    for pool, other in zip(pools, [*pools[1:], pools[0]], strict=True):
        pool.other = other
    pools.clear()
    del pool, other
    gc.collect()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_one_pool_in_many_threads_by_turns(start_method: str) -> None:
    turns = threading.Lock()
    results: list[Any] = []
    with WorkerPool(n_jobs=2, keep_alive=True, start_method=start_method) as pool:

        def use() -> None:
            for _ in range(3):
                with turns:
                    results.append(pool.map(abs, range(-100, 0)))

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run_in_thread(pool.stop_and_join)
    assert results == [list(range(100, 0, -1))] * 12


def test_one_pool_in_many_threads_at_once() -> None:
    """Each call is done, or refused."""
    outcomes: list[Any] = []
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:

        def use() -> None:
            for _ in range(50):
                try:
                    outcomes.append(pool.map(abs, range(-100, 0)))
                except RuntimeError as error:
                    outcomes.append(str(error))

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    done = list(range(100, 0, -1))
    assert len(outcomes) == 200
    assert done in outcomes
    assert all(outcome in (done, "this pool is busy: another map of it is running") for outcome in outcomes)


# ---------------------------------------------------------------- programs that tasks start


def interrupt_a_program(_: int) -> int:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as helper:
        assert helper.stdout is not None
        helper.stdout.readline()
        helper.send_signal(signal.SIGINT)
        return helper.wait(DEADLINE)


@processes
def test_programs_that_a_task_starts_can_be_interrupted(start_method: str) -> None:
    """A worker leaves Ctrl-C to its owner; what is ignored would be ignored in its programs, too."""
    with WorkerPool(1, start_method=start_method) as pool:
        assert pool.map(interrupt_a_program, [0]) == [-signal.SIGINT]


def test_forks_of_a_thread_of_an_executor_end_without_a_word(tmp_path: Path) -> None:
    done = program(
        tmp_path,
        """
        from concurrent.futures import ThreadPoolExecutor
        from fastpool import WorkerPool

        def last():
            return "bye"

        def run():
            with WorkerPool(2) as pool:
                return pool.map(abs, [-1, -2], worker_exit=last), set(pool.get_exit_results())

        with ThreadPoolExecutor(1) as executor:
            print(executor.submit(run).result())
        """,
    )
    assert (done.stdout, done.stderr) == ("([1, 2], {'bye'})\n", "")
