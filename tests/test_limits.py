"""Memory limits, large values, descriptors, threads, and every Linux call refused."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from refusals import Group, Outcome, Server

from fastpool import WorkerPool, _native
from fastpool.process import WorkerProcess
from fastpool.supervisor import Supervisor

# Bits of `fastpool._native.refuse` (csrc/platform.h).
REFUSED = {"memfd": 1, "eventfd": 2, "pidfd": 4, "sigio": 8, "barrier": 16, "all": 31}


def identity(x: Any) -> Any:
    return x


def make_bytes(n: int) -> bytes:
    return bytes([n % 251]) * n


SIZES = [0, 1, 7, 8, 9, 1000, 16_383, 16_384, 32_760, 32_768, 65_535, 65_536, 65_537, 300_000, 3_000_000]


@pytest.mark.parametrize("memory_limit", [None, 1, 1 << 20, 64 << 20])
def test_values_of_every_size(memory_limit: int | None) -> None:
    """Within and beyond the memory limit: large results travel in pieces then."""
    with WorkerPool(n_jobs=2, memory_limit=memory_limit) as pool:
        assert pool.map(make_bytes, SIZES if memory_limit != 1 else range(100_000, 2_000_000, 200_000)) == [
            make_bytes(n) for n in (SIZES if memory_limit != 1 else range(100_000, 2_000_000, 200_000))
        ]


def test_large_arguments_and_pickles() -> None:
    values = [{"k": list(range(n))} for n in (1, 100, 10_000, 200_000)] + [
        "ü" * 100_000,
        "\U0001f600" * 70_000,
    ]
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(identity, [(value,) for value in values]) == values


def test_input_larger_than_the_memory_limit_is_fed_chunk_by_chunk() -> None:
    def source() -> Iterator[bytes]:
        for i in range(200):
            yield make_bytes(100_000 + i)

    with WorkerPool(n_jobs=2, memory_limit=2 << 20) as pool:
        assert pool.map(len, source()) == [100_000 + i for i in range(200)]


def test_an_element_that_cannot_fit_is_an_error() -> None:
    with WorkerPool(n_jobs=2, memory_limit=1 << 20) as pool:
        with pytest.raises(MemoryError, match="memory_limit"):
            pool.map(len, [b"x", bytes(50 << 20)])
        assert pool.map(len, [b"x"]) == [1]


def test_descriptors_and_threads_of_the_parent() -> None:
    before = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    seen: list[tuple[int, int]] = []

    def source() -> Iterator[int]:
        for i in range(100):
            if i == 90:
                seen.append((len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
            yield i

    with WorkerPool(n_jobs=10) as pool:
        assert pool.map(abs, source(), max_tasks_active=40, chunk_size=2) == list(range(100))
    [(descriptors, tasks)] = seen
    # the bell's and the process handle's for each worker; without Linux's own calls a bell is a pipe
    assert descriptors - before <= (37 if _native.is_posix() else 27)
    assert tasks == threads


@pytest.mark.parametrize("what", REFUSED)
def test_without_a_facility_of_the_system(what: str) -> None:
    """In a process of its own, since what is refused stays refused."""
    script = f"""
import os, signal
from fastpool import WorkerDiedError, WorkerPool, _native
_native.refuse({REFUSED[what]})
def task(x):
    if x == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * 2
with WorkerPool(n_jobs=2, keep_alive=True) as pool:
    for _ in range(20):
        assert pool.map(task, range(3000)) == [2 * i for i in range(3000)]
        assert pool.map(task, list(range(3000)), chunk_size=7) == [2 * i for i in range(3000)]
    pool.stop_and_join()
    try:
        pool.map(task, [-1])
    except WorkerDiedError as error:
        assert error.exitcode == -9
    else:
        raise SystemExit("no error")
    assert pool.map(len, ["x" * 500_000] * 20) == [500_000] * 20
assert not [name for name in os.listdir("/dev/shm") if "fastpool" in name]
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("limit", "value"),
    [(resource.RLIMIT_AS, 1 << 30), (resource.RLIMIT_FSIZE, 64 << 20), (resource.RLIMIT_NOFILE, 64)],
)
def test_under_resource_limits(limit: int, value: int) -> None:
    script = f"""
import resource
import numpy
from fastpool import WorkerPool
resource.setrlimit({limit}, ({value}, {value}))
with WorkerPool(n_jobs=2) as pool:
    assert pool.map(abs, range(-1000, 0)) == list(range(1000, 0, -1))
    assert pool.map(len, ["x" * 500_000] * 20) == [500_000] * 20
"""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr


def test_too_few_descriptors_is_a_clear_error() -> None:
    script = """
import resource
from fastpool import WorkerPool
resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
try:
    with WorkerPool(n_jobs=6) as pool:
        pool.map(abs, range(1000))
except OSError as error:
    assert "descriptor" in str(error) or "open" in str(error), error
else:
    raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def fail_at_seven(x: int) -> int:
    return 1 // (x - 7)


@pytest.mark.parametrize("step", ["kill", "_take_exit_results", "_drop_shared_objects", "reap"])
def test_no_memory_to_end_the_pool(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """What ends a failed map may fail itself: it is finished before the next one, not forgotten."""
    owner = WorkerProcess if step == "reap" else Supervisor
    real = getattr(owner, step)
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        pool.map(identity, range(10))
        with monkeypatch.context() as patch:

            def fail(*given: Any, **named: Any) -> Any:
                if pool._supervisor._is_ending:
                    raise MemoryError("none left")
                return real(*given, **named)

            patch.setattr(owner, step, fail)
            with pytest.raises(MemoryError, match="none left"):
                pool.map(fail_at_seven, list(range(1000)), chunk_size=3)
        assert pool.map(identity, range(100)) == list(range(100))


# ---------------------------------------------------------------- on a pool that lives (refusals.py)

KEPT = {"keep_alive": True}
STEPS = ["range", "list", "generator", "texts", "many", "large", "array", "array again", "array", "lifespan"]


def try_limit(server: Server, **plan: Any) -> Outcome:
    outcome = server.run({"steps": STEPS, "options": KEPT, **plan})
    assert not outcome["problems"], "\n".join([*outcome["problems"], outcome["text"]])
    return outcome


def test_descriptors_run_out(server: Server) -> None:
    """At any number of them an error that says for what, until there are enough."""
    steps = ["range", "texts", "array"]
    for above in range(60):
        if not try_limit(server, limit="RLIMIT_NOFILE", above=above, steps=steps)["errors"]:
            break
    assert 4 < above < 30


def test_descriptors_run_out_where_workers_are_spawned(server: Server) -> None:
    options = {**KEPT, "start_method": "spawn"}
    for above in range(4, 100, 8):
        if not try_limit(server, limit="RLIMIT_NOFILE", above=above, steps=["shared"], options=options)["errors"]:
            break
    assert 4 < above < 60


def test_processes_run_out(server: Server) -> None:
    plan = {"limit": "RLIMIT_NPROC", "as_nobody": True, "steps": ["range", "texts", "array", "range"]}
    assert "cannot fork a worker" in try_limit(server, **plan, above=0)["errors"][0][2]
    assert try_limit(server, **plan, above=1)["errors"]
    enough = 4 if _native.is_posix() else 2  # there each worker has a thread that watches its owner
    assert not try_limit(server, **plan, above=enough)["errors"]


def test_address_space_runs_out(server: Server) -> None:
    """What the pool reserves leaves room for what the program needs."""
    for megabytes in (0, 2, 8, 16, 24):
        try_limit(server, limit="RLIMIT_AS", above=megabytes << 20)
    for megabytes in (64, 256):
        assert not try_limit(server, limit="RLIMIT_AS", above=megabytes << 20)["errors"]


@pytest.mark.long
def test_address_space_runs_out_at_every_megabyte(server: Server) -> None:
    for megabytes in range(128):
        try_limit(server, limit="RLIMIT_AS", above=megabytes << 20)


@pytest.mark.parametrize("results", ["many", "numbers"])
def test_small_results_take_the_last_byte(server: Server, results: str) -> None:
    """Memory ends in the midst of one: nothing is left to raise an exception in, unless it is kept."""
    errors = set()
    for kilobytes in range(11_000, 17_000, 421):
        outcome = try_limit(server, limit="RLIMIT_AS", above=kilobytes << 10, steps=[results] * 3)
        errors |= {error[2] for error in outcome["errors"]}
    assert any("no memory to send the result of task" in error for error in errors), errors


def test_files_may_not_be_large(server: Server) -> None:
    for megabytes in (0, 1, 5):
        error = try_limit(server, limit="RLIMIT_FSIZE", value=megabytes << 20)["errors"][0]
        assert "cannot reserve shared memory: File too large" in error[2]
    assert not try_limit(server, limit="RLIMIT_FSIZE", value=8 << 20)["errors"]


def test_a_result_larger_than_the_parents_memory(server: Server) -> None:
    plan = {"limit": "RLIMIT_AS", "above": 100 << 20, "warm": ["range"], "steps": ["huge", "range"]}
    [error] = try_limit(server, **plan)["errors"]
    assert error == ["huge", "MemoryError", "fastpool: no memory to send the result of task 0 (in the parent)"]


@pytest.mark.parametrize("step", ["hungry", "huge"])
def test_more_than_a_control_group_has(server: Server, step: str) -> None:
    """The system kills a worker; the pool says so and goes on."""
    if not may_make_groups():
        pytest.skip("control groups cannot be made here: that takes root, and a writable /sys/fs/cgroup")
    [error] = try_limit(server, group=100 << 20, steps=["range", step, "range"])["errors"]
    assert error[:2] == [step, "WorkerDiedError"]
    assert "SIGKILL usually means that memory ran out" in error[2]


def may_make_groups() -> bool:
    folder = Group.own_folder(os.getpid())
    try:
        folder.mkdir()
        return any((folder / name).exists() for name in ("memory.limit_in_bytes", "memory.max"))
    except OSError:
        return False
    finally:
        Group.remove(os.getpid())


@pytest.mark.parametrize("size", ["", "4k", "1m", "8m", "16m"])
def test_no_room_in_dev_shm(server: Server, size: str) -> None:
    """It is not needed, where there are memfds; where there are none, too little of it is an error."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("another /dev/shm cannot be mounted here: that takes root (unshare --mount)")
    errors = try_limit(server, shm=size, without=REFUSED["memfd"])["errors"]
    if size in ("8m", "16m"):
        assert not errors
    else:
        assert "cannot reserve shared memory" in errors[0][2]
    if not _native.is_posix():
        assert not try_limit(server, shm=size)["errors"]


def test_dev_shm_fills_up() -> None:
    """Where it is needed and full, that is an error when memory is asked for, and not a signal when it is used."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("another /dev/shm cannot be mounted here: that takes root (unshare --mount)")
    if _native.is_posix():
        pytest.skip("this build has no way to ask for pages (MADV_POPULATE_WRITE)")
    script = """
import contextlib
import fastpool
from fastpool import WorkerPool, _native
from fastpool.process import WorkerProcess
from fastpool.supervisor import Supervisor
_native.refuse(1)
sizes = [700_000 + i for i in range(12)]
def repeat(n):
    return bytes([n % 251]) * n
def use(pool):
    assert pool.map(repeat, sizes) == [repeat(n) for n in sizes]
    assert pool.map(len, [repeat(n) for n in sizes]) == sizes
    return True
held, refused = [], 0
with WorkerPool(n_jobs=2, keep_alive=True) as one, WorkerPool(n_jobs=2, keep_alive=True) as other:
    one.map(abs, range(5))
    other.map(abs, range(5))
    with contextlib.suppress(MemoryError):
        while True:
            held.append(fastpool.empty(1 << 14))
            held[-1][:] = 1
    for pool in (one, other):
        try:
            use(pool)
        except MemoryError:
            refused += 1
    assert refused, "there was room"
    assert all((array == 1).all() for array in held)
    held.clear()
    one.terminate()
    assert use(other)
"""
    mount = 'mount -t tmpfs -o size=12m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", script]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_no_folder_for_temporary_files(server: Server, start_method: str) -> None:
    options = {**KEPT, "start_method": start_method}
    plan = {"limit": "RLIMIT_CORE", "value": 0, "environment": {"TMPDIR": "/proc"}}  # nobody writes there
    assert not try_limit(server, **plan, steps=["shared"], options=options)["errors"]


def test_blocks_are_used_again() -> None:
    """The heaps do not grow from map to map beyond what one map can have in flight."""
    n, size = 50, 200_000
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(10):
            assert pool.map(len, [b"x" * size] * n, chunk_size=1) == [size] * n
            assert pool.map(make_bytes, [size] * n, chunk_size=1) == [make_bytes(size)] * n
        heaps = [pool._supervisor.segment.heap(owner) for owner in range(3)]
    assert [heap["blocks_used"] for heap in heaps[:2]] == [0, 0]
    assert sum(heap["charged"] for heap in heaps) <= 3 * n * (size + 4096)


def test_refuse_is_a_test_hook_that_takes_a_mask() -> None:
    _native.refuse(0)
