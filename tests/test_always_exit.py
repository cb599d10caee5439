"""always_exit: exit functions run also in workers that end because of an error, or of terminate()."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
from conftest import processes

from fastpool import WorkerDiedError, WorkerPool

LONG = 600  # seconds; a test that waits for this has failed


class Boom(Exception):
    pass


def meet(worker_id: int, barrier: Any, state: dict[str, Any], fate: str) -> str:
    """One task for each worker, and none goes on before all are at theirs."""
    state["fate"] = fate
    barrier.wait(LONG)
    if fate == "raises":
        raise Boom(worker_id)
    if fate == "dies":
        os._exit(3)
    if fate == "never ends":
        time.sleep(LONG)
    return fate


def fate_of(worker_id: int, barrier: Any, state: dict[str, Any]) -> str:
    return str(state["fate"])


@pytest.fixture(autouse=True)
def interrupts_are_heard() -> Iterator[None]:
    """Where the tests run in the background, they are ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def make_pool(n_jobs: int, start_method: str = "fork", **options: Any) -> WorkerPool:
    pool = WorkerPool(n_jobs, pass_worker_id=True, use_worker_state=True, start_method=start_method, **options)
    pool.set_shared_objects(pool.ctx.Barrier(n_jobs))
    return pool


def run(pool: WorkerPool, fates: list[str], **options: Any) -> Any:
    options = {"worker_exit": fate_of, "always_exit": True, "chunk_size": 1, "worker_exit_timeout": LONG, **options}
    return pool.map(meet, fates, **options)


@pytest.mark.parametrize("keep_alive", [False, True])
def test_after_an_exception_all_workers_that_ran_a_task_run_it(start_method: str, keep_alive: bool) -> None:
    with make_pool(3, start_method, keep_alive=keep_alive) as pool:
        with pytest.raises(Boom):
            run(pool, ["returns", "raises", "returns"])
        assert sorted(pool.get_exit_results()) == ["raises", "returns", "returns"]
        pool.set_shared_objects(pool.ctx.Barrier(3))
        assert run(pool, ["returns"] * 3) == ["returns"] * 3


def test_without_it_nobody_does() -> None:
    with make_pool(3, keep_alive=True) as pool:
        with pytest.raises(Boom):
            run(pool, ["returns", "raises", "returns"], always_exit=False)
        assert pool.get_exit_results() == []


@processes
def test_after_a_death_the_others_run_it(start_method: str) -> None:
    with make_pool(3, start_method) as pool:
        with pytest.raises(WorkerDiedError):
            run(pool, ["returns", "dies", "returns"])
        assert pool.get_exit_results() == ["returns", "returns"]


def test_a_task_that_does_not_end_is_killed_at_the_bound(caplog: pytest.LogCaptureFixture) -> None:
    with make_pool(3) as pool:
        with pytest.raises(Boom):
            run(pool, ["never ends", "raises", "returns"], worker_exit_timeout=0.3)
        assert sorted(pool.get_exit_results()) == ["raises", "returns"]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.endswith("did not come to its end within 0.3 s and is killed")


def hang(*_: Any) -> None:
    time.sleep(LONG)


def test_an_exit_function_that_does_not_end_is_killed_at_the_bound(caplog: pytest.LogCaptureFixture) -> None:
    with make_pool(2) as pool:
        with pytest.raises(Boom):
            run(pool, ["raises", "returns"], worker_exit=hang, worker_exit_timeout=0.3)
        assert pool.get_exit_results() == []
    assert len(caplog.records) == 2


def fail_unless_raised(worker_id: int, barrier: Any, state: dict[str, Any]) -> str:
    if state["fate"] != "raises":
        raise ValueError("in exit")
    return "fine"


def test_an_exit_function_that_fails_is_logged_and_the_error_is_the_first(caplog: pytest.LogCaptureFixture) -> None:
    with make_pool(2, keep_alive=True) as pool:
        with pytest.raises(Boom):
            run(pool, ["raises", "returns"], worker_exit=fail_unless_raised)
        assert pool.get_exit_results() == ["fine"]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


def test_where_one_exit_function_fails_the_others_run_to_their_end() -> None:
    with make_pool(3) as pool:
        with pytest.raises(ValueError, match="in exit"):
            run(pool, ["raises", "returns", "raises"], worker_exit=fail_unless_raised, return_exceptions=True)
        assert pool.get_exit_results() == ["fine", "fine"]


# ---------------------------------------------------------------- terminate()


def leave(pool: WorkerPool) -> None:
    pool.__exit__(None, None, None)


@pytest.mark.parametrize("end", [WorkerPool.terminate, leave])
def test_terminate_and_leaving_with_run_it_in_kept_workers(
    end: Callable[[WorkerPool], None], start_method: str
) -> None:
    pool = make_pool(2, start_method, keep_alive=True)
    run(pool, ["returns"] * 2)
    assert pool.get_exit_results() == []
    end(pool)
    assert pool.get_exit_results() == ["returns"] * 2


def test_that_of_the_last_map_counts() -> None:
    with make_pool(2, keep_alive=True) as pool:
        run(pool, ["returns"] * 2)
        run(pool, ["returns"] * 2, always_exit=False)
    assert pool.get_exit_results() == []


def test_a_worker_that_ran_no_task_does_not_run_it() -> None:
    with WorkerPool(2, keep_alive=True, pass_worker_id=True) as pool:
        pool.map(lambda worker_id, _: None, [0], worker_exit=lambda worker_id: worker_id, always_exit=True)
    assert len(pool.get_exit_results()) == 1


def break_init(state: dict[str, Any]) -> None:
    raise Boom


def test_nor_does_one_whose_init_failed() -> None:
    with WorkerPool(1, use_worker_state=True) as pool:
        with pytest.raises(Boom):
            pool.map(lambda state, x: x, [1], worker_init=break_init, worker_exit=lambda state: 1, always_exit=True)
        assert pool.get_exit_results() == []


def test_terminate_in_another_thread_while_the_input_keeps_us_waiting() -> None:
    with make_pool(2) as pool:
        barrier = pool.ctx.Barrier(3)
        pool.set_shared_objects(barrier)
        terminating = threading.Event()

        def fates() -> Iterator[str]:
            yield "returns"
            yield "returns"
            barrier.wait(LONG)
            thread.start()
            terminating.wait(LONG)
            yield "returns"

        def terminate() -> None:
            threading.Timer(0.3, terminating.set).start()
            pool.terminate()

        thread = threading.Thread(target=terminate)
        with pytest.raises(RuntimeError, match="terminated by another thread"):
            run(pool, fates())  # type: ignore[arg-type]
        thread.join()
        assert pool.get_exit_results() == ["returns"] * 2


def test_terminate_in_another_thread_while_tasks_run() -> None:
    with make_pool(3) as pool:  # the third party at the barrier is this test
        barrier = pool._supervisor.options.shared_objects
        outcome: list[BaseException] = []

        def work() -> None:
            try:
                run(pool, ["never ends", "returns"] + ["returns"] * 9, worker_exit_timeout=0.5)
            except RuntimeError as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        barrier.wait(LONG)
        pool.terminate()
        thread.join()
        [error] = outcome
        assert "terminated by another thread" in str(error)


# ---------------------------------------------------------------- Ctrl-C


def interrupt_parent(*_: Any) -> None:
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(LONG)


@pytest.mark.parametrize("end", [WorkerPool.terminate, leave])
def test_an_interrupt_ends_the_waiting(end: Callable[[WorkerPool], None]) -> None:
    pool = make_pool(1, keep_alive=True)
    run(pool, ["returns"], worker_exit=interrupt_parent, worker_exit_timeout=LONG)
    with pytest.raises(KeyboardInterrupt):
        end(pool)
    assert pool._supervisor.living == 0


def interrupt_parent_if(x: int) -> None:
    if x:
        os.kill(os.getppid(), signal.SIGINT)


def test_after_an_interrupt_in_the_map_exit_functions_run() -> None:
    options: dict[str, Any] = {"worker_exit": lambda: "closed", "always_exit": True, "worker_exit_timeout": LONG}
    with WorkerPool(1, keep_alive=True) as pool:
        pool.map(interrupt_parent_if, [0], **options)  # an interrupt while a worker is being started ends that worker
        with pytest.raises(KeyboardInterrupt):
            pool.map(interrupt_parent_if, [1], **options)
        assert pool.get_exit_results() == ["closed"]


# ---------------------------------------------------------------- what is still on its way


def input_that_fails(n: int) -> Iterator[int]:
    yield from range(n)
    raise Boom


def numbers(x: int) -> int:
    return x


def floats(x: int) -> float:
    return x / 2


def texts(x: int) -> str:
    return "x" * 1000


def dicts(x: int) -> dict[str, Any]:
    return {"x": x, "list": [x] * 100}


def mixed(x: int) -> Any:
    return (None, True, x, "text", b"bytes", 1j, {x}, ValueError(x))[x % 8]


def large(x: int) -> bytes:
    return bytes(1 << 20)


def arrays(x: int) -> Any:
    return numpy.zeros(1 << 18)


@pytest.mark.parametrize("task", [numbers, floats, texts, dicts, mixed, large, arrays])
@pytest.mark.parametrize("memory_limit", [None, 1 << 20])
def test_results_that_nobody_wants_any_more(task: Callable[[int], Any], memory_limit: int | None) -> None:
    n = 60 if task in (large, arrays) else 20_000
    with WorkerPool(2, memory_limit=memory_limit) as pool:
        with pytest.raises(Boom):
            pool.map(task, input_that_fails(n), worker_exit=lambda: bytes(3 << 20), always_exit=True)
        assert pool.get_exit_results() in ([bytes(3 << 20)], [bytes(3 << 20)] * 2)


def unpicklable(x: int) -> Any:
    return numpy.zeros(1 << 17) if x % 2 else BreaksWhenLoaded()


def break_when_loaded() -> None:
    raise Boom


class BreaksWhenLoaded:
    def __init__(self) -> None:
        self.ballast = bytes(4 << 20)

    def __reduce__(self) -> Any:
        return break_when_loaded, (), self.__dict__


@pytest.mark.parametrize("memory_limit", [None, 1 << 20])
def test_a_result_that_the_parent_cannot_read(memory_limit: int | None) -> None:
    with WorkerPool(1, memory_limit=memory_limit) as pool:
        with pytest.raises(Exception, match="unpickling what worker 0 sent failed with Boom"):
            pool.map(unpicklable, range(50), chunk_size=2, worker_exit=lambda: "closed", always_exit=True)
        assert pool.get_exit_results() == ["closed"]


def test_a_map_over_an_array() -> None:
    with WorkerPool(2) as pool:
        with pytest.raises(ZeroDivisionError):
            pool.map(
                lambda part: part / 2 if part[0] < 3e6 else 1 / 0,
                numpy.arange(4_000_000.0),
                worker_exit=lambda: "closed",
                always_exit=True,
            )
        assert "closed" in pool.get_exit_results()


def handle(signum: int, frame: Any) -> None:
    raise Boom("in a handler")


def init_handler() -> None:
    signal.signal(signal.SIGUSR1, handle)


def pid(_: int) -> int:
    return os.getpid()


def test_a_worker_that_ends_by_a_handler_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool(1, keep_alive=True) as pool:
        options: dict[str, Any] = {"worker_init": init_handler, "worker_exit": os.getpid, "always_exit": True}
        [worker] = pool.map(pid, [0], **options)
        os.kill(worker, signal.SIGUSR1)
        with pytest.raises(Boom, match="in a handler"):
            while True:
                pool.map(pid, range(100), **options)
        assert pool.get_exit_results() == [worker]


def stay(barrier: Any, _: int) -> int:
    barrier.wait(LONG)
    return os.getpid()


def pid_at_exit(barrier: Any) -> int:
    return os.getpid()


def init_handler_too(barrier: Any) -> None:
    init_handler()


def test_a_worker_that_had_ended_before_the_map() -> None:
    with WorkerPool(2, keep_alive=True) as pool:
        pool.set_shared_objects(pool.ctx.Barrier(2))
        options: dict[str, Any] = {"worker_init": init_handler_too, "worker_exit": pid_at_exit, "always_exit": True}
        workers = pool.map(stay, [0, 1], chunk_size=1, **options)
        os.kill(workers[0], signal.SIGUSR1)
        os.waitid(os.P_PID, workers[0], os.WEXITED | os.WNOWAIT)
        with pytest.raises(Boom, match="in a handler"):
            pool.map(stay, [0, 1], chunk_size=1, **options)
        assert sorted(pool.get_exit_results()) == sorted(workers)


def test_a_bound_beyond_all_clocks() -> None:
    with make_pool(2) as pool:
        with pytest.raises(Boom):
            run(pool, ["raises", "returns"], worker_exit_timeout=1e300)
        assert sorted(pool.get_exit_results()) == ["raises", "returns"]


def test_it_is_checked() -> None:
    with pytest.raises(TypeError, match="always_exit must be a bool, not int"):
        WorkerPool(1).map(abs, [1], always_exit=1)  # type: ignore[arg-type]
