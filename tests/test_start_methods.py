"""What differs between start methods: how functions, shared objects, descriptors and settings reach a worker, and
every usual kind of main program. What must be the same is tested where it belongs, for each method."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import queue as queues
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import leftovers
import numpy as np
import pytest
from conftest import PROCESSES, context_of, processes

import fastpool
from fastpool import RemoteError, SerializationError, WorkerDiedError, WorkerPool, _native, process

NOT_FORK = PROCESSES[1:]
not_fork = pytest.mark.parametrize("start_method", NOT_FORK)


@pytest.fixture
def with_dill() -> None:
    pytest.importorskip("dill", reason="dill is not installed: pip install fastpool[dill]")


def test_the_context_is_that_of_multiprocessing(start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        assert pool.ctx is context_of(start_method)
    assert WorkerPool().ctx is multiprocessing.get_context("fork")


# ---------------------------------------------------------------- functions


def double(x: int) -> int:
    return 2 * x


def make_nested(name: str) -> Callable[[int], int]:
    def nested(x: int) -> int:
        return x

    nested.__qualname__ = name
    return nested


@not_fork
@pytest.mark.parametrize("function", [lambda x: x, make_nested("a_closure"), partial(make_nested("in_partial"), 1)])
def test_a_function_that_cannot_be_pickled_is_an_error_at_once(start_method: str, function: Any) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(SerializationError, match=r"test_start_methods\.\S+|in_partial") as caught:
            pool.map(function, range(3))
        assert caught.value.what == "function"
        assert "use_dill=True" in str(caught.value)
        assert multiprocessing.active_children() == []
        assert pool.map(double, range(3)) == [0, 2, 4]


@not_fork
def test_the_function_that_cannot_be_pickled_is_named(start_method: str) -> None:
    with (
        WorkerPool(n_jobs=2, start_method=start_method) as pool,
        pytest.raises(SerializationError, match="an_exit_of_mine"),
    ):
        pool.map(double, range(3), worker_init=os.getpid, worker_exit=make_nested("an_exit_of_mine"))


@not_fork
def test_a_function_that_a_fresh_worker_lacks(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exists in this process only. No worker is started again and again for it."""
    only_here = make_nested("only_here")
    monkeypatch.setitem(globals(), "only_here", only_here)
    with WorkerPool(n_jobs=2, start_method=start_method, keep_alive=True) as pool:
        for _ in range(2):  # new workers; then workers that have had another function
            with pytest.raises(SerializationError, match=r"test_start_methods\.only_here: AttributeError") as caught:
                pool.map(only_here, range(3))
            assert caught.value.worker_id in (0, 1)
            assert isinstance(caught.value.__cause__, RemoteError)
            assert pool.map(double, range(3)) == [0, 2, 4]


@processes
@pytest.mark.usefixtures("with_dill")
def test_dill_sends_what_pickle_cannot(start_method: str) -> None:
    k = 5
    with WorkerPool(n_jobs=2, start_method=start_method, use_dill=True, keep_alive=True) as pool:
        assert pool.map(lambda x: x + k, range(5)) == list(range(5, 10))
        k = 7
        assert pool.map(lambda x: x + k, range(5)) == list(range(7, 12))
        functions = pool.map(lambda f: lambda x: 2 * f(x), [lambda x: x + 1, lambda x: x + k])
        assert [function(1) for function in functions] == [4, 16]
        with pytest.raises(SerializationError, match="result of task"):
            pool.map(lambda x: iter(i for i in range(x)), [1])


class OnlyForDill(Exception):
    def __reduce__(self) -> Any:
        return (lambda: OnlyForDill("from dill")), ()


def raise_only_for_dill(_: Any) -> None:
    raise OnlyForDill


@processes
@pytest.mark.usefixtures("with_dill")
def test_dill_sends_exceptions_and_shared_objects_too(start_method: str) -> None:
    shared = {"f": lambda x: 3 * x, "array": np.arange(5)}
    options: dict[str, Any] = {"n_jobs": 1, "start_method": start_method, "use_dill": True}
    with WorkerPool(**options, shared_objects=shared) as pool:
        assert pool.map(lambda shared, x: shared["f"](x) + int(shared["array"].sum()), [1, 2]) == [13, 16]
    with WorkerPool(**options) as pool, pytest.raises(OnlyForDill, match="from dill"):
        pool.map(raise_only_for_dill, [0])


def test_without_dill_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dill", None)
    with pytest.raises(ImportError, match=r"pip install fastpool\[dill\]"):
        WorkerPool(use_dill=True)


# ---------------------------------------------------------------- shared objects


class Counted:
    """Counts how often it is pickled, and says in which process it was unpickled."""

    pickled = 0

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __reduce__(self) -> Any:
        Counted.pickled += 1
        return Counted, ()


def pids_of(barrier: Any, unpickled: Counted, _: Any) -> tuple[int, int]:
    barrier.wait(60)
    return unpickled.pid, os.getpid()


@not_fork
def test_shared_objects_are_pickled_once_for_all_workers(start_method: str) -> None:
    Counted.pickled = 0
    barrier = multiprocessing.get_context(start_method).Barrier(2)
    options: dict[str, Any] = {"shared_objects": (barrier, Counted()), "start_method": start_method}
    with WorkerPool(n_jobs=2, keep_alive=True, **options) as pool:
        for _ in range(2):
            found = pool.map(unpacked_pids, range(4), chunk_size=1)
            assert len(set(found)) == 2
            assert all(theirs == worker for theirs, worker in found)
        assert Counted.pickled == 1


def unpacked_pids(shared: tuple[Any, Counted], x: Any) -> tuple[int, int]:
    return pids_of(*shared, x)


def scribble(shared: dict[str, Any], x: int) -> tuple[float, bool, bool]:
    array = shared["array"]
    before = float(array[0])
    array[0] += 1
    return before, not shared["fixed"].flags.writeable, shared["same"] is array


@processes
def test_arrays_in_shared_objects_can_be_written_and_stay_the_workers_own(start_method: str) -> None:
    array = np.zeros(100_000)
    fixed = np.arange(3.0)
    fixed.flags.writeable = False
    shared = {"array": array, "fixed": fixed, "same": array, "matrix": np.arange(6).reshape(2, 3).T}
    with WorkerPool(n_jobs=1, shared_objects=shared, start_method=start_method) as pool:
        for _ in range(2):  # each map has new workers
            assert pool.map(scribble, range(3)) == [(0, True, True), (1, True, True), (2, True, True)]
        assert array[0] == 0


def memory_of_arrays(shared: list[Any], _: Any) -> tuple[float, bool]:
    return float(sum(array.sum() for array in shared)), all(array.base is not None for array in shared)


@not_fork
def test_arrays_in_shared_objects_are_not_copied(start_method: str) -> None:
    shared = [np.full(n, 1.0) for n in (1, 7, 1000, 2_000_000)]
    with WorkerPool(n_jobs=2, shared_objects=shared, start_method=start_method) as pool:
        assert pool.map(memory_of_arrays, range(4)) == [(2_001_008.0, True)] * 4


def use_context(shared: tuple[Any, ...], x: int) -> int:
    lock, value, queue, pipe, event = shared
    with lock:
        value.value += x
    queue.put(x)
    pipe.send(x)
    return bool(event.is_set())


def test_locks_queues_and_pipes_of_the_context_are_shared(start_method: str) -> None:
    context = context_of(start_method)
    queue = getattr(context, "SimpleQueue", queues.SimpleQueue)()
    ours, theirs = context.Pipe()
    event = context.Event()
    value = context.Value("q", 0)
    event.set()
    shared = (context.Lock(), value, queue, theirs, event)
    with WorkerPool(n_jobs=2, shared_objects=shared, start_method=start_method) as pool:
        assert pool.map(use_context, range(20)) == [True] * 20
    assert value.value == sum(range(20))
    assert sorted(queue.get() for _ in range(20)) == list(range(20))
    assert sorted(ours.recv() for _ in range(20)) == list(range(20))
    getattr(queue, "close", int)()
    for end in (ours, theirs):
        end.close()


@not_fork
def test_shared_objects_that_cannot_be_pickled(start_method: str) -> None:
    shared = [threading.Lock()]
    with WorkerPool(n_jobs=2, shared_objects=shared, start_method=start_method) as pool:
        with pytest.raises(SerializationError, match=r"the shared_objects cannot be sent .*_thread\.lock") as caught:
            pool.map(double, range(3))
        assert caught.value.what == "shared_objects"
        assert pool._supervisor._segment is None
        assert multiprocessing.active_children() == []


@not_fork
def test_an_error_of_shared_objects_can_be_garbage(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what its traceback keeps alive nothing makes Python 3.12 crash, or another complain."""

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    complaints: list[Any] = []
    monkeypatch.setattr(os, "pwrite", refuse)
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with WorkerPool(n_jobs=1, shared_objects="shared", start_method=start_method) as pool:
        try:
            pool.map(double, range(3))
        except OSError as error:
            cycle: list[Any] = [error]
            cycle.append(cycle)
            del cycle
        else:
            pytest.fail("the refusal was not noticed")
    gc.collect()
    assert not complaints


class OnlyHere:
    def __reduce__(self) -> Any:
        return _must_be, (os.getpid(),)


def _must_be(pid: int) -> None:
    if os.getpid() != pid:
        raise RuntimeError("wrong process")


@not_fork
def test_shared_objects_that_cannot_be_unpickled(start_method: str) -> None:
    with (
        WorkerPool(n_jobs=2, shared_objects=OnlyHere(), start_method=start_method) as pool,
        pytest.raises(SerializationError, match=r"in worker \d\): unpickling failed with RuntimeError: wrong process"),
    ):
        pool.map(double, range(3))


# ---------------------------------------------------------------- descriptors and settings


def test_descriptors_of_the_parent(start_method: str) -> None:
    """Few, whoever was started and replaced, and none after the map."""
    counts: list[int] = []

    def source() -> Iterator[int]:
        for x in range(6):
            if x == 5:
                counts.append(len(os.listdir("/proc/self/fd")))
            yield x

    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        pool.map(double, range(2))  # multiprocessing's helpers are there now
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            pool.map(double, source(), chunk_size=1, max_tasks_active=2, worker_lifespan=3)
            assert len(os.listdir("/proc/self/fd")) == before
    # each worker's handle, and where the fork server tells its exit status; also of one that is on its way out
    assert max(counts) - before <= 2 * 3


def test_when_descriptors_run_out(tmp_path: Path, start_method: str) -> None:
    """Wherever that is: an OSError and no leak, or the right results."""
    script = """
    import os, resource
    from fastpool import WorkerPool
    if __name__ == "__main__":
        with WorkerPool(1, start_method="METHOD") as pool:  # the helpers of multiprocessing are there now
            pool.map(abs, range(5))
        before = os.listdir("/proc/self/fd")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        ends = set()
        for limit in range(len(before) + 4, len(before) + 40, 2):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                with WorkerPool(3, start_method="METHOD") as pool:
                    assert pool.map(abs, range(50)) == list(range(50))
                ends.add("results")
            except OSError:
                ends.add("error")
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert os.listdir("/proc/self/fd") == before
        print(sorted(ends))
    """
    done = run(tmp_path, script.replace("METHOD", start_method))
    assert (done.stdout, done.stderr) == ("['error', 'results']\n", "")


@not_fork
def test_a_start_that_fails_half_way_leaves_nothing(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each descriptor that Python makes for it is refused in its turn, and nothing waits for the garbage collector."""
    what = {"spawn": "pipe", "forkserver": "dup"}[start_method]
    make = getattr(os, what)

    def start(refused: int) -> bool:
        """Returns whether so many descriptors were made."""
        numbers = itertools.count()

        def refuse(*args: int) -> Any:
            if next(numbers) == refused:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return make(*args)

        with monkeypatch.context() as patched, WorkerPool(n_jobs=1, start_method=start_method) as pool:
            patched.setattr(os, what, refuse)
            try:
                pool.map(double, range(3))
            except OSError as error:
                assert "Too many open files" in str(error)  # noqa: PT017
                return True
        return False

    start(-1)
    before = leftovers.snapshot()
    gc.disable()
    try:
        for refused in itertools.count():
            more = start(refused)
            assert leftovers.new_descriptors(before, leftovers.snapshot()) == []
            assert leftovers.all_end({process.pid for process in leftovers.descendants()})
            if not more:
                break
    finally:
        gc.enable()
    assert refused > 2


def open_descriptors(barrier: Any, _: Any) -> int:
    barrier.wait(60)
    return len(os.listdir("/proc/self/fd"))


@not_fork
def test_workers_are_given_nothing_of_each_other(start_method: str) -> None:
    counts: set[int] = set()
    for n_jobs in (1, 3):
        barrier = multiprocessing.get_context(start_method).Barrier(n_jobs)
        with WorkerPool(n_jobs=n_jobs, start_method=start_method, shared_objects=barrier) as pool:
            counts |= set(pool.map(open_descriptors, range(n_jobs), chunk_size=1))
    assert len(counts) == 1


def inheritable_descriptors(_: Any) -> list[str]:
    """What programs would get that a task starts, without the standard streams and the resource tracker's."""
    tracker = multiprocessing.resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of listdir itself
            if int(name) > 2 and int(name) != tracker and os.get_inheritable(int(name)):
                found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


@not_fork
def test_workers_hand_no_descriptor_of_the_pool_to_programs(start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        [found] = pool.map(inheritable_descriptors, [0])
    assert not [name for name in found if name.startswith(("anon_inode:[eventfd]", "/memfd:", "/dev/shm"))]
    # multiprocessing leaves a spawned process the end of its sentinel, and a fork server's the pipe of its server
    assert len([name for name in found if name.startswith("pipe:")]) <= 1


def settings(_: Any) -> tuple[str, list[str], list[str]]:
    return os.getcwd(), sys.path, sys.argv


@not_fork
def test_settings_arrive_as_in_multiprocessing(
    start_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "argv", ["program", "--flag"])
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "found_by_path.py").write_text("def triple(x):\n    return 3 * x\n")
    import found_by_path  # type: ignore[import-not-found]

    with WorkerPool(n_jobs=1, start_method=start_method) as pool:
        assert pool.map(found_by_path.triple, [1, 2]) == [3, 6]
        [(cwd, path, argv)] = pool.map(settings, [0])
    assert cwd == str(tmp_path)
    assert path == sys.path
    assert argv == ["program", "--flag"]


def sub_map(n: int) -> list[int]:
    with WorkerPool(n_jobs=2, start_method="spawn") as pool:
        return pool.map(double, range(n))


@not_fork
def test_a_pool_within_a_task(start_method: str) -> None:
    with WorkerPool(n_jobs=1, daemon=False, start_method=start_method) as pool:
        assert pool.map(sub_map, [3]) == [[0, 2, 4]]


def lifespan_pid(x: int) -> int:
    return os.getpid()


@not_fork
def test_lifespan(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        assert len(set(pool.map(lifespan_pid, range(12), worker_lifespan=4))) >= 3


def test_the_end_of_the_fork_server_is_not_the_end_of_its_workers() -> None:
    server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    with WorkerPool(n_jobs=2, start_method="forkserver", keep_alive=True) as pool:
        assert pool.map(double, range(3)) == [0, 2, 4]
        os.kill(server._forkserver_pid, signal.SIGKILL)
        os.waitid(os.P_PID, server._forkserver_pid, os.WEXITED | os.WNOWAIT)
        assert pool.map(double, range(3)) == [0, 2, 4]
        worker = pool.map(lifespan_pid, [0])[0]
        handle = os.pidfd_open(worker)
        os.kill(worker, signal.SIGKILL)
        assert select.select([handle], [], [], 10)[0]
        os.close(handle)
        with pytest.raises(WorkerDiedError, match="with a status that somebody else collected") as caught:
            pool.map(double, range(3))
        assert caught.value.exitcode is None
        assert pool.map(double, range(3)) == [0, 2, 4]  # by a new server


# ---------------------------------------------------------------- main programs


def run(tmp_path: Path, script: str, how: str = "file") -> subprocess.CompletedProcess[str]:
    """Run a main program: as a file, with -m, as a package's __main__, with -c, from stdin."""
    script = textwrap.dedent(script)
    (tmp_path / "program.py").write_text(script)
    (tmp_path / "package").mkdir(exist_ok=True)
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "__main__.py").write_text(script)
    arguments = {
        "file": ["program.py"],
        "module": ["-m", "program"],
        "package": ["-m", "package"],
        "command": ["-c", script],
        "stdin": [],
        "dash": ["-"],
    }[how]
    paths = [str(Path(fastpool.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=env,
        input=script if how in ("stdin", "dash") else "",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


GUARDED = """
from fastpool import WorkerPool

class Box:
    def __init__(self, x):
        self.x = x

def box(x):
    return Box(x * 2)

def init():
    global ready
    ready = True

def finish():
    return ready

if __name__ == "__main__":
    with WorkerPool(2, start_method="METHOD") as pool:
        print([b.x for b in pool.map(box, range(4), worker_init=init, worker_exit=finish)], pool.get_exit_results()[0])
"""


@not_fork
@pytest.mark.parametrize("how", ["file", "module"])
def test_a_guarded_program(tmp_path: Path, start_method: str, how: str) -> None:
    done = run(tmp_path, GUARDED.replace("METHOD", start_method), how)
    assert (done.stdout, done.stderr) == ("[0, 2, 4, 6] True\n", "")


@not_fork
def test_a_program_without_guard(tmp_path: Path, start_method: str) -> None:
    script = GUARDED.replace("METHOD", start_method).replace('if __name__ == "__main__":', "if True:")
    done = run(tmp_path, script)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "An attempt has been made to start a new process" in done.stderr  # multiprocessing's own words
    last = done.stderr.strip().splitlines()[-1]
    assert "WorkerDiedError" in last
    assert "while starting" in last
    assert 'if __name__ == "__main__"' in last


@not_fork
def test_a_program_whose_workers_end_while_they_import_it(tmp_path: Path, start_method: str) -> None:
    script = GUARDED.replace("METHOD", start_method) + "else:\n    import os\n    os._exit(3)\n"
    done = run(tmp_path, script)
    assert done.returncode == 1
    assert "WorkerDiedError: worker" in done.stderr
    assert "exited with status 3 while starting" in done.stderr


UNIMPORTABLE = """
import math
from fastpool import SerializationError, WorkerPool

def root(x):
    return math.sqrt(x)

def task(x):
    return root(x) + offset

offset = 1
with WorkerPool(2, start_method="METHOD") as pool:
    print(pool.map(abs, [-1, -2]))
    try:
        pool.map(task, [4])
    except SerializationError as error:
        print(error)
"""

DILL = """
with WorkerPool(2, start_method="METHOD", use_dill=True, keep_alive=True) as pool:
    print(pool.map(task, [4, 9]))
    offset = 2
    print(pool.map(task, [4, 9]))
    def task(x):  # as when a notebook's cell is run again
        return root(x) + offset + 0.5
    print(pool.map(task, [4, 9]))
"""

OTHER_WAYS = ["package", "command", "stdin", "dash"]


@not_fork
@pytest.mark.parametrize("how", OTHER_WAYS)
def test_a_program_that_workers_cannot_import(tmp_path: Path, start_method: str, how: str) -> None:
    """``-c`` stands for the interactive interpreter and notebooks too: a main module without a file."""
    done = run(tmp_path, UNIMPORTABLE.replace("METHOD", start_method), how)
    assert done.stderr == ""
    assert done.stdout.startswith("[1, 2]\nthe function cannot be sent between processes (in worker ")
    assert "__main__.task: AttributeError" in done.stdout
    assert "use WorkerPool(use_dill=True)" in done.stdout


@not_fork
@pytest.mark.parametrize("how", OTHER_WAYS[1:3])
@pytest.mark.usefixtures("with_dill")
def test_a_program_that_workers_cannot_import_with_dill(tmp_path: Path, start_method: str, how: str) -> None:
    done = run(tmp_path, (UNIMPORTABLE.split("with")[0] + DILL).replace("METHOD", start_method), how)
    assert (done.stdout, done.stderr) == ("[3.0, 4.0]\n[4.0, 5.0]\n[4.5, 5.5]\n", "")


# ---------------------------------------------------------------- interrupted and orphaned starts


@not_fork
def test_an_interrupt_does_not_end_a_worker_that_imports_the_main_program(tmp_path: Path, start_method: str) -> None:
    """Ctrl-C reaches the whole group; what it means, the parent decides."""
    script = """
    import multiprocessing, os, signal
    from fastpool import WorkerPool
    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        multiprocessing.set_forkserver_preload([])  # each worker imports it for itself
        with WorkerPool(2, start_method="METHOD") as pool:
            print(pool.map(abs, range(4)))
    else:
        os.kill(os.getpid(), signal.SIGINT)
    """
    done = run(tmp_path, script.replace("METHOD", start_method))
    assert (done.stdout, done.stderr) == ("[0, 1, 2, 3]\n", "")


def test_ctrl_c_while_workers_start_is_not_lost(tmp_path: Path, start_method: str) -> None:
    script = """
    import gc, multiprocessing, os, signal, subprocess
    from fastpool import WorkerPool
    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        with WorkerPool(1, start_method="METHOD") as pool:  # the helpers of multiprocessing are there now
            pool.map(abs, range(5))
        before = len(os.listdir("/proc/self/fd"))
        for i in range(ROUNDS):
            sender = subprocess.Popen(["sh", "-c", f"sleep 0.{i % 10}3; kill -INT {os.getpid()}"])
            try:
                while True:
                    with WorkerPool(3, start_method="METHOD") as pool:
                        pool.map(abs, range(50))
            except KeyboardInterrupt:
                sender.wait()
        pool = None  # an interrupt at the very end of its `with` block leaves the rest to the finalizer
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        assert multiprocessing.active_children() == []
        print("all came")
    """
    rounds = "50" if os.environ.get("FASTPOOL_LONG") == "1" else "6"
    done = run(tmp_path, script.replace("METHOD", start_method).replace("ROUNDS", rounds))
    assert (done.stdout, done.stderr) == ("all came\n", "")


@pytest.mark.skipif(_native.is_posix(), reason="needs a signal that the owner's end sends")
@not_fork
def test_the_owner_is_killed_while_workers_import_its_program(tmp_path: Path, start_method: str) -> None:
    script = """
    import os, time
    from fastpool import WorkerPool
    if __name__ == "__main__":
        with WorkerPool(2, start_method="METHOD") as pool:
            pool.map(abs, range(4))
    else:
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(60)
    """
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(script).replace("METHOD", start_method))
    owner = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        handles = [os.pidfd_open(int(owner.stdout.readline())) for _ in range(2)]
    finally:
        owner.kill()
        owner.wait()
    for handle in handles:
        assert select.select([handle], [], [], 5)[0]
        os.close(handle)
    owner.stdout.close()


def test_a_start_that_fails_when_the_process_is_there_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fork server's, which alone can wait for it."""
    status_fd = process.ForkServerPopen._status_fd
    ended: list[bool] = []

    def refused(self: Any, started: Any) -> int:
        def refuse(fd: int) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patched:
            patched.setattr(os, "dup", refuse)
            try:
                return status_fd(self, started)
            finally:
                ended.append(not os.path.exists(f"/proc/{started.pid}"))

    with WorkerPool(n_jobs=1, start_method="forkserver") as pool:
        with monkeypatch.context() as patched:
            patched.setattr(process.ForkServerPopen, "_status_fd", refused)
            with pytest.raises(OSError, match="cannot start a worker"):
                pool.map(double, range(3))
        assert ended == [True]
        assert pool.map(double, range(3)) == [0, 2, 4]
