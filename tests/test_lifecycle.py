"""worker_init, worker_exit, exit results, worker state, keep_alive, worker_lifespan, and how a pool ends."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from typing import Any

import numpy
import pytest
from conftest import context_of, fork_beside_threads, processes
from leftovers import all_end, leftovers, snapshot

from fastpool import WorkerPool


def init_even(state: dict[str, Any]) -> None:
    state["even"] = 0


def square_even(state: dict[str, Any], x: int) -> int:
    state["even"] += x % 2 == 0
    return x * x


def exit_even(state: dict[str, Any]) -> int:
    return int(state["even"])


def test_the_example_of_the_readme(start_method: str) -> None:
    with WorkerPool(n_jobs=4, use_worker_state=True, start_method=start_method) as pool:
        squares = pool.map(square_even, range(100), worker_init=init_even, worker_exit=exit_even)
        counts = pool.get_exit_results()
    assert squares == [x * x for x in range(100)]
    assert sum(counts) == 50
    assert 1 <= len(counts) <= 4


def everything(worker_id: int, shared: Any, state: dict[str, Any], x: int) -> Any:
    return worker_id, shared, dict(state), x


def init_everything(worker_id: int, shared: Any, state: dict[str, Any]) -> None:
    state["id"] = worker_id


def exit_everything(worker_id: int, shared: Any, state: dict[str, Any]) -> Any:
    return worker_id, shared, state["id"]


def test_order_of_leading_arguments(start_method: str) -> None:
    shared = {"k": [1, 2]}
    with WorkerPool(
        n_jobs=2, shared_objects=shared, pass_worker_id=True, use_worker_state=True, start_method=start_method
    ) as pool:
        results = pool.map(everything, range(20), worker_init=init_everything, worker_exit=exit_everything)
        for x, (worker_id, given, state, argument) in enumerate(results):
            assert (given, state, argument) == (shared, {"id": worker_id}, x)
            assert worker_id in (0, 1)
        for worker_id, given, noted in pool.get_exit_results():
            assert given == shared
            assert noted == worker_id


def pid(_: Any = None) -> int:
    """Of a process; of a thread, its own."""
    return threading.get_native_id()


def test_keep_alive_keeps_workers_and_state(start_method: str) -> None:
    with WorkerPool(n_jobs=2, keep_alive=True, use_worker_state=True, start_method=start_method) as pool:
        for _ in range(5):
            pool.map(square_even, range(100), worker_init=init_even_once, worker_exit=exit_even)
            assert pool.get_exit_results() == []
        pool.stop_and_join()
        assert sum(pool.get_exit_results()) == 5 * 50
        assert len(pool.get_exit_results()) <= 2


def init_even_once(state: dict[str, Any]) -> None:
    assert "even" not in state, "init ran twice"
    state["even"] = 0


def meet(barrier: Any, _: Any) -> int:
    """Tasks of two workers: each waits for the other's."""
    barrier.wait(60)
    return pid()


def pool_of_two(start_method: str, **options: Any) -> WorkerPool:
    """A pool whose workers can meet."""
    barrier = context_of(start_method).Barrier(2)
    return WorkerPool(n_jobs=2, shared_objects=barrier, start_method=start_method, **options)


def pids_of(pool: WorkerPool) -> set[int]:
    pids = set(pool.map(meet, range(4), chunk_size=1))
    assert len(pids) == 2
    return pids


def shared_abs(_: Any, x: int) -> int:
    return abs(x)


def shared_str(_: Any, x: int) -> str:
    return str(x)


def test_without_keep_alive_each_map_has_new_workers(start_method: str) -> None:
    with pool_of_two(start_method) as pool:
        first = pids_of(pool)
        second = pids_of(pool)
    assert not first & second
    assert os.getpid() not in first | second


def test_keep_alive_maps_of_different_functions(start_method: str) -> None:
    with pool_of_two(start_method, keep_alive=True) as pool:
        pids = pids_of(pool)
        assert pool.map(shared_abs, [-1, -2]) == [1, 2]
        assert pool.map(shared_str, [1, 2]) == ["1", "2"]
        assert pids_of(pool) == pids


def test_the_last_map_decides_the_exit_function() -> None:
    def first_exit() -> str:
        return "first"

    with WorkerPool(n_jobs=1, keep_alive=True) as pool:
        pool.map(abs, range(3), worker_exit=first_exit)
        with pytest.warns(RuntimeWarning, match="exit_second"):
            pool.map(abs, range(3), worker_exit=exit_second)
        pool.stop_and_join()
        assert pool.get_exit_results() == ["second"]


def exit_second() -> str:
    return "second"


def exit_with(value: Any) -> Any:
    return lambda: value


@pytest.mark.parametrize("value", [None, 0, "", b"", 1.5, {"a": 1}, [1, 2], "x" * 500_000, Exception("returned")])
def test_exit_results_of_every_kind(value: Any) -> None:
    with WorkerPool(n_jobs=1) as pool:
        pool.map(abs, [1], worker_exit=exit_with(value))
        [result] = pool.get_exit_results()
    assert type(result) is type(value)
    assert repr(result) == repr(value)


def test_no_exit_function_no_exit_results(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        pool.map(abs, range(10))
        assert pool.get_exit_results() == []


def test_workers_that_ran_no_task_run_neither_init_nor_exit() -> None:
    with WorkerPool(n_jobs=8, keep_alive=True) as pool:
        pool.map(abs, [1, 2], worker_init=forbidden_after_two, worker_exit=pid)
        pool.stop_and_join()
        assert 1 <= len(pool.get_exit_results()) <= 2
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(abs, [], worker_init=fail, worker_exit=fail) == []
        assert pool.get_exit_results() == []


def forbidden_after_two() -> None:
    """Init of at most two workers; more would be in the exit results."""


def fail() -> None:
    raise AssertionError("must not be called")


def test_exit_results_are_those_since_the_workers_were_last_started(start_method: str) -> None:
    with WorkerPool(n_jobs=2, use_worker_state=True, start_method=start_method) as pool:
        for n in (100, 40):
            pool.map(square_even, range(n), worker_init=init_even, worker_exit=exit_even)
            assert sum(pool.get_exit_results()) == n // 2
        pool.map(square_even, range(3), worker_init=init_even)
        assert pool.get_exit_results() == []


def init_count(state: dict[str, Any]) -> None:
    assert "tasks" not in state
    state["tasks"] = 0


def count(state: dict[str, Any], x: int) -> int:
    state["tasks"] += 1
    return x


def exit_count(state: dict[str, Any]) -> int:
    return int(state["tasks"])


def test_workers_that_all_reach_their_lifespan_at_the_end_of_a_map_end_nothing_else(start_method: str) -> None:
    """The next map starts successors of kept workers, not workers anew: all exit results and insights remain."""
    with WorkerPool(1, start_method=start_method, use_worker_state=True, keep_alive=True, enable_insights=True) as pool:
        for k in range(1, 4):
            pool.map(count, range(10), worker_init=init_count, worker_exit=exit_count, worker_lifespan=5)
            assert pool.get_insights()["n_completed_tasks"] == [10 * k]
        pool.stop_and_join()
        assert pool.get_exit_results() == [5] * 6
        pool.map(count, range(10), worker_init=init_count, worker_exit=exit_count)
        pool.stop_and_join()
        assert pool.get_exit_results() == [10]


@pytest.mark.parametrize("lifespan", [1, 3, 10, 1000])
@pytest.mark.parametrize("kind", [range, lambda n: list(range(n)), lambda n: iter(range(n))])
@pytest.mark.parametrize("keep_alive", [False, True])
def test_worker_lifespan(lifespan: int, kind: Any, keep_alive: bool) -> None:
    n = 40
    with WorkerPool(n_jobs=2, use_worker_state=True, keep_alive=keep_alive) as pool:
        assert pool.map(
            count, kind(n), worker_lifespan=lifespan, worker_init=init_count, worker_exit=exit_count
        ) == list(range(n))
        pool.stop_and_join()
        counts = pool.get_exit_results()
    assert sum(counts) == n
    assert max(counts) <= lifespan
    assert len(counts) >= -(-n // lifespan) if lifespan < n else len(counts) <= 2


def test_worker_lifespan_ends_after_the_chunk_that_reaches_it(start_method: str) -> None:
    with WorkerPool(n_jobs=2, use_worker_state=True, start_method=start_method) as pool:
        for given in (range(60), list(range(60))):
            pool.map(count, given, worker_lifespan=5, chunk_size=4, worker_init=init_count, worker_exit=exit_count)
            assert set(pool.get_exit_results()) <= {8, 4}
            assert sum(pool.get_exit_results()) == 60


def test_terminate_stops_at_once_and_the_pool_can_be_used_again(start_method: str) -> None:
    with WorkerPool(n_jobs=2, keep_alive=True, start_method=start_method) as pool:
        pool.map(abs, range(3), worker_exit=pid)
        pool.terminate()
        assert pool.get_exit_results() == []
        pool.terminate()
        assert pool.map(abs, range(3)) == [0, 1, 2]


def test_stop_and_join_without_workers() -> None:
    pool = WorkerPool(n_jobs=2)
    pool.stop_and_join()
    pool.join()
    pool.terminate()


def test_a_pool_that_nobody_closed_is_collected(start_method: str) -> None:
    pool = WorkerPool(n_jobs=2, keep_alive=True, start_method=start_method)
    pids = pool.map(pid, range(4))
    del pool
    gc.collect()
    assert all_end(pids)


def test_a_pool_in_a_cycle_is_collected() -> None:
    pool: Any = WorkerPool(n_jobs=2, keep_alive=True)
    pids = pool.map(pid, range(4))
    pool.myself = pool
    del pool
    gc.collect()
    assert not any(os.path.exists(f"/proc/{p}") for p in pids)


def test_second_map_while_one_runs_is_refused() -> None:
    with WorkerPool(n_jobs=1) as pool:
        errors: list[BaseException] = []

        def source() -> Any:
            yield 1
            try:
                pool.map(abs, [1])
            except RuntimeError as error:
                errors.append(error)
            yield 2

        assert pool.map(abs, source()) == [1, 2]
    assert "another map" in str(errors[0])


def test_pools_in_threads() -> None:
    results: list[Any] = []

    def use() -> None:
        with WorkerPool(n_jobs=2) as pool:
            results.append(pool.map(abs, range(-50, 50)))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[abs(i) for i in range(-50, 50)]] * 4


def test_pool_made_in_a_thread_that_ended(start_method: str) -> None:
    made: list[WorkerPool] = []

    def make() -> None:
        pool = WorkerPool(n_jobs=2, keep_alive=True, start_method=start_method)
        assert pool.map(abs, [-1]) == [1]
        made.append(pool)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    with made.pop() as pool:
        assert pool.map(abs, range(-5, 0)) == [5, 4, 3, 2, 1]


def about_process(_: Any) -> tuple[str, bool, int]:
    process = multiprocessing.current_process()
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.is_alive()
    return process.name, process.daemon, parent.pid or 0


@processes
def test_workers_are_multiprocessing_processes(start_method: str) -> None:
    with WorkerPool(n_jobs=1, keep_alive=True, start_method=start_method) as pool:
        assert pool.map(about_process, [0]) == [("Worker-0", True, os.getpid())]
        assert [child.name for child in multiprocessing.active_children()] == ["Worker-0"]
    with WorkerPool(n_jobs=1, daemon=False, start_method=start_method) as pool:
        assert pool.map(about_process, [0])[0][1] is False
    assert multiprocessing.active_children() == []


def use_in_fork(pool: WorkerPool) -> str:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        text = "nothing raised"
        try:
            pool.map(abs, [1])
        except RuntimeError as error:
            text = str(error)
        del pool
        gc.collect()
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as pipe:
        return pipe.read().decode()


@fork_beside_threads
def test_a_pool_belongs_to_the_process_that_made_it(start_method: str) -> None:
    with pool_of_two(start_method, keep_alive=True) as pool:
        pids = pids_of(pool)
        assert f"belongs to process {os.getpid()}" in use_in_fork(pool)
        assert pids_of(pool) == pids


def shout(x: int) -> int:
    print(f"task {x}", flush=False)
    return x


def test_what_tasks_print_is_seen_when_the_map_returns(capfd: pytest.CaptureFixture[str]) -> None:
    for keep_alive in (False, True):
        with WorkerPool(n_jobs=1, keep_alive=keep_alive) as pool:  # unbuffered prints of two would mix
            pool.map(shout, range(5))
            assert sorted(capfd.readouterr().out.split("\n"))[1:] == [f"task {i}" for i in range(5)]


@fork_beside_threads
def test_a_fork_of_the_owner_that_exits_leaves_the_workers_alone(start_method: str) -> None:
    with pool_of_two(start_method, keep_alive=True) as pool:
        pids = pids_of(pool)
        child = os.fork()
        if child == 0:
            multiprocessing.util._exit_function()  # type: ignore[attr-defined]
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert pids_of(pool) == pids


def fork_and_return(x: int) -> int:
    child = os.fork()
    if child == 0:
        return -1  # must end this process, and not become a result
    assert os.waitpid(child, 0)[1] == 0
    return x


def fork_and_exit(x: int) -> int:
    child = os.fork()
    if child == 0:
        raise SystemExit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    return x


@pytest.mark.parametrize("task", [fork_and_return, fork_and_exit])
def test_a_fork_that_leaves_its_task_is_not_the_worker(task: Any) -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(task, range(20)) == list(range(20))


def test_interpreter_exit_while_a_daemon_thread_maps() -> None:
    script = """
import threading, time
from fastpool import WorkerPool
def task(x):
    return x
pool = WorkerPool(2)
threading.Thread(target=lambda: pool.map(task, range(10**9)), daemon=True).start()
time.sleep(0.3)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "DamagedMemory" not in done.stderr
    assert "AssertionError" not in done.stderr


def test_ctrl_c_while_workers_are_forked_is_not_lost() -> None:
    script = """
import os, signal, subprocess
from fastpool import WorkerPool
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
for _ in range(ROUNDS):
    sender = subprocess.Popen(["sh", "-c", f"sleep 0.05; kill -INT {os.getpid()}"])
    try:
        while True:
            with WorkerPool(3) as pool:
                pool.map(abs, range(50))
    except KeyboardInterrupt:
        sender.wait()
print("all came")
"""
    script = script.replace("ROUNDS", "500" if os.environ.get("FASTPOOL_LONG") == "1" else "5")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.stdout == "all came\n"
    assert done.stderr == ""


def test_a_map_that_starts_no_worker_keeps_the_exit_results() -> None:
    with WorkerPool(n_jobs=2, use_worker_state=True) as pool:
        pool.map(square_even, range(100), worker_init=init_even, worker_exit=exit_even)
        assert pool.map(square_even, []) == []
        assert sum(pool.get_exit_results()) == 50


def fail_with_state(state: dict[str, Any], x: int) -> None:
    raise ValueError


def test_exit_results_of_replaced_workers_are_there_after_the_map() -> None:
    with WorkerPool(n_jobs=1, use_worker_state=True, keep_alive=True) as pool:
        pool.map(count, range(22), worker_lifespan=5, worker_init=init_count, worker_exit=exit_count)
        assert pool.get_exit_results() == [5] * 4  # the fifth worker is still there
        with pytest.raises(ValueError):
            pool.map(fail_with_state, [1], worker_exit=exit_count)
        assert pool.get_exit_results() == [5] * 4
        pool.terminate()
        pool.map(count, range(3), worker_init=init_count)
        assert pool.get_exit_results() == []


def big(x: int) -> numpy.ndarray[Any, Any]:
    return numpy.full(1 << 18, float(x))


@pytest.mark.parametrize("keep_alive", [False, True])
def test_stop_and_join_gives_everything_back_but_arrays_in_use(keep_alive: bool, start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        pool.map(abs, [1])  # what stays for the life of the process: helpers of the start method
    before = snapshot()
    pool = WorkerPool(n_jobs=2, keep_alive=keep_alive, start_method=start_method)
    assert pool.map(abs, range(-3, 0)) == [3, 2, 1]
    pool.stop_and_join()
    assert leftovers(before, snapshot()) == []
    arrays = pool.map(big, [1, 2, 3])
    pool.stop_and_join()
    assert [(array == x).all() for array, x in zip(arrays, [1, 2, 3], strict=True)] == [True] * 3
    del arrays
    assert leftovers(before, snapshot()) == []
    assert pool.map(abs, range(-3, 0)) == [3, 2, 1]
    pool.stop_and_join()


def init_other(state: dict[str, Any]) -> None:
    raise AssertionError("live workers do not run another init")


def test_another_init_or_exit_for_live_workers_is_warned_of() -> None:
    with WorkerPool(n_jobs=1, use_worker_state=True, keep_alive=True) as pool:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pool.map(count, range(3), worker_init=init_count)
            pool.map(count, range(3), worker_exit=exit_even)  # the first
            pool.map(count, range(3), worker_init=init_count, worker_exit=exit_even)
        with pytest.warns(RuntimeWarning, match="worker_init.*does not run") as warned:
            pool.map(count, range(3), worker_init=init_other, worker_exit=exit_even)
        assert warned[0].filename == __file__
        with pytest.warns(RuntimeWarning, match=r"worker_exit.*instead of .*exit_even"):
            pool.map(count, range(3), worker_exit=exit_count)
        with pytest.warns(RuntimeWarning, match=r"no worker_exit.*instead of .*exit_count"):
            pool.map(count, range(3))
        with pytest.warns(RuntimeWarning, match="worker_init"):
            pool.map(count, range(3), worker_init=init_even, worker_exit=exit_count)
        pool.stop_and_join()
        assert pool.get_exit_results() == [7 * 3]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pool.map(count, range(3), worker_init=init_count, worker_exit=exit_count)  # fresh workers
    with WorkerPool(n_jobs=1, use_worker_state=True) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        pool.map(count, range(3), worker_init=init_count)
        pool.map(count, range(3), worker_init=init_count, worker_exit=exit_count)
