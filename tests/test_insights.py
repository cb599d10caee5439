"""Where workers spend their time, and their longest tasks."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from fastpool import WorkerDiedError, WorkerPool
from fastpool.insights import OFF, Times, as_table, as_text, summary
from fastpool.worker import MOST_BYTES

PARTS = ["start_up", "init", "waiting", "working", "exit"]
KEYS = {  # mpire's
    *("n_completed_tasks", "total_time", "top_5_max_task_durations", "top_5_max_task_args"),
    *(f"{part}_time" for part in PARTS),
    *(f"total_{part}_time" for part in PARTS),
    *(f"{part}_ratio" for part in PARTS),
    *(f"{part}_time_mean" for part in PARTS),
    *(f"{part}_time_std" for part in PARTS),
}
DURATION = re.compile(r"\d+:[0-5]\d:[0-5]\d\.\d{3}")


def double(x: int) -> int:
    return 2 * x


def nap(*_: Any) -> None:
    time.sleep(0.005)


def fail_on_odd(x: int) -> int:
    if x % 2:
        raise ValueError(x)
    return x


def sleep_if_large(x: int) -> int:
    time.sleep(0.1 if x >= 95 else 0)
    return x


def nothing(*_: Any, **__: Any) -> None:
    pass


def done(insights: dict[str, Any]) -> int:
    return sum(insights["n_completed_tasks"])


def arguments_of(element: Any, **options: Any) -> str:
    with WorkerPool(n_jobs=1, enable_insights=True, **options) as pool:
        pool.map(nothing, [element], chunk_size=1)
        [text] = pool.get_insights()["top_5_max_task_args"]
        return str(text)


# ---------------------------------------------------------------- counting


def test_what_there_is(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method, enable_insights=True) as pool:
        pool.map(double, range(1000), worker_init=nap, worker_exit=nap)
        insights = pool.get_insights()
    assert set(insights) == KEYS
    assert done(insights) == 1000
    assert insights["total_init_time"] > "0:00:00.004"
    assert insights["total_exit_time"] > "0:00:00.004"
    assert sum(insights[f"{part}_ratio"] for part in PARTS) == pytest.approx(1)
    for part in PARTS:
        assert len(insights[f"{part}_time"]) == 2
        texts = [*insights[f"{part}_time"], *(insights[f"{name}_{part}_time"] for name in ("total",))]
        texts += [insights[f"{part}_time_mean"], insights[f"{part}_time_std"], insights["total_time"]]
        assert all(map(DURATION.fullmatch, texts))
    assert len(insights["top_5_max_task_durations"]) == len(insights["top_5_max_task_args"]) == 5
    assert all(map(DURATION.fullmatch, insights["top_5_max_task_durations"]))
    assert insights["top_5_max_task_durations"] == sorted(insights["top_5_max_task_durations"], reverse=True)
    assert all(re.fullmatch(r"Arg 0: \d+", text) for text in insights["top_5_max_task_args"])


def test_they_remain_when_the_pool_has_ended_and_begin_anew_with_new_workers(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method, enable_insights=True) as pool:
        assert pool.get_insights() == {}
        pool.map(double, range(100))
        assert done(pool.get_insights()) == 100
        pool.map(double, range(7))
    assert done(pool.get_insights()) == 7
    pool.map(double, [])
    assert done(pool.get_insights()) == 7


def test_kept_workers_go_on_counting_and_a_task_whose_result_is_there_is_counted(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method, keep_alive=True, enable_insights=True) as pool:
        for total in range(50, 1050, 50):
            pool.map(double, range(50))
            assert done(pool.get_insights()) == total
        pool.stop_and_join()
        assert done(pool.get_insights()) == 1000


def test_what_replaced_workers_did_counts(start_method: str) -> None:
    lifespan = 1 if start_method == "fork" else 10
    with WorkerPool(n_jobs=2, start_method=start_method, enable_insights=True) as pool:
        pool.map(double, [*range(30)], worker_lifespan=lifespan, chunk_size=1, worker_init=nap)
        insights = pool.get_insights()
    assert done(insights) == 30
    assert insights["total_init_time"] > as_text(30 / lifespan * 4e6)


def kill_once(path: str, x: int) -> int:
    if x == 5 and not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_what_dead_workers_did_counts(tmp_path: Path) -> None:
    with WorkerPool(n_jobs=2, enable_insights=True) as pool:
        pool.map(kill_once, [(str(tmp_path / "killed"), x) for x in range(20)], retries=1, chunk_size=2)
        assert done(pool.get_insights()) == 20


def test_after_an_error_the_insights_are_there(tmp_path: Path) -> None:
    with WorkerPool(n_jobs=1, enable_insights=True) as pool:
        with pytest.raises(ValueError, match="3"):
            pool.map(fail_on_odd, [0, 2, 4, 3, 6, 8], chunk_size=1)
        assert done(pool.get_insights()) == 4
        with pytest.raises(WorkerDiedError):
            pool.map(kill_once, [(str(tmp_path / "killed"), x) for x in range(8)], chunk_size=8)
        assert done(pool.get_insights()) == 5


@pytest.mark.parametrize("chunk_size", [1, 10, None])
def test_failed_tasks_are_counted_once(start_method: str, chunk_size: int | None) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method, enable_insights=True) as pool:
        pool.map(fail_on_odd, [*range(100)], chunk_size=chunk_size, return_exceptions=True)
        assert done(pool.get_insights()) == 100


def unsendable(x: int) -> Any:
    return (lambda: x) if x % 2 else x


def test_tasks_whose_results_cannot_be_sent_are_counted_once() -> None:
    with WorkerPool(n_jobs=2, enable_insights=True) as pool:
        pool.map(unsendable, range(10), return_exceptions=True)
        assert done(pool.get_insights()) == 10


def test_maps_over_arrays() -> None:
    with WorkerPool(n_jobs=2, enable_insights=True) as pool:
        pool.map(numpy.sqrt, numpy.ones((80, 3)), n_splits=8)
        insights = pool.get_insights()
    assert done(insights) == 8
    assert set(insights["top_5_max_task_args"]) == {"Arg 0: array of shape (10, 3) and type float64"}


def test_while_a_map_runs() -> None:
    found: list[dict[str, Any]] = []
    pool = WorkerPool(n_jobs=2, enable_insights=True)

    def look() -> None:
        found.append(pool.get_insights())

    def elements() -> Iterator[int]:
        for x in range(3000):
            if x % 500 == 499:
                look()
                asker = threading.Thread(target=look)
                asker.start()
                asker.join()
            yield x

    with pool:
        pool.map(double, elements(), chunk_size=10)
    counts = [done(insights) for insights in found if insights]
    assert counts == sorted(counts)
    assert 0 < counts[-1] < 3000
    assert done(pool.get_insights()) == 3000


def test_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(n_jobs=1) as pool:
        pool.map(double, range(3))
        assert pool.get_insights() == {}
        pool.print_insights()
    assert capsys.readouterr().out == OFF + "\n"


def test_enable_insights_is_a_bool() -> None:
    with pytest.raises(TypeError, match="enable_insights must be a bool, not int"):
        WorkerPool(enable_insights=1)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the longest tasks


@pytest.mark.parametrize("options", [{}, {"keep_alive": True}])
@pytest.mark.parametrize(
    "make", [range, lambda n: [*range(n)], lambda n: iter(range(n))], ids=["range", "list", "iterator"]
)
def test_the_longest_tasks(make: Any, options: dict[str, Any]) -> None:
    with WorkerPool(n_jobs=2, enable_insights=True, **options) as pool:
        pool.map(sleep_if_large, make(100), iterable_len=100)
        insights = pool.get_insights()
    assert sorted(insights["top_5_max_task_args"]) == [f"Arg 0: {x}" for x in range(95, 100)]
    assert all(text >= "0:00:00.100" for text in insights["top_5_max_task_durations"])


def test_the_longest_tasks_of_replaced_workers() -> None:
    with WorkerPool(n_jobs=2, enable_insights=True) as pool:
        pool.map(sleep_if_large, range(99, 69, -1), worker_lifespan=1, chunk_size=1)
        assert sorted(pool.get_insights()["top_5_max_task_args"]) == [f"Arg 0: {x}" for x in range(95, 100)]


def test_a_failed_task_may_be_one_of_the_longest() -> None:
    def task(x: int) -> int:
        time.sleep(0.1)
        raise ValueError(x)

    with WorkerPool(n_jobs=1, enable_insights=True) as pool:
        pool.map(task, [8, 9], return_exceptions=True)
        assert sorted(pool.get_insights()["top_5_max_task_args"]) == ["Arg 0: 8", "Arg 0: 9"]


class Unshowable:
    def __repr__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    ("element", "shown"),
    [
        (7, "Arg 0: 7"),
        (None, "Arg 0: None"),
        ("text", "Arg 0: 'text'"),
        ((1, [2, 3]), "Arg 0: 1 | Arg 1: [2, 3]"),
        ([1.5, "x"], "Arg 0: 1.5 | Arg 1: 'x'"),
        ({"a": 1, "b": None}, "Arg a: 1 | Arg b: None"),
        ((), ""),
        ({1, 2}, "Arg 0: {1, 2}"),
        (Unshowable(), "Arg 0: <its __repr__ raised SystemExit>"),
        (numpy.ones((2, 3), "f4"), "Arg 0: array of shape (2, 3) and type float32"),
        ("\ud800", "Arg 0: '\\ud800'"),
    ],
)
def test_how_arguments_are_shown(element: Any, shown: str) -> None:
    assert arguments_of(element) == shown


@pytest.mark.parametrize("character", ["x", "é", "\U0001f40d"])
def test_long_arguments_are_shortened(character: str) -> None:
    shown = arguments_of((character * 5000, character * 60, character * 60, character * 60))
    assert shown.startswith("Arg 0: '" + character * 20)
    assert MOST_BYTES - 8 < len(shown.encode()) <= MOST_BYTES
    assert shown.endswith("...")


def test_what_a_fresh_worker_shows(start_method: str) -> None:
    assert arguments_of((1, "two"), start_method=start_method) == "Arg 0: 1 | Arg 1: 'two'"


class Counted:
    alive = 0

    def __init__(self, size: int = 0) -> None:
        self.size = size
        Counted.alive += 1

    def __del__(self) -> None:
        Counted.alive -= 1

    def __reduce__(self) -> Any:
        return Counted, (self.size,)


def alive_now(thing: Counted) -> int:
    return Counted.alive


def test_no_argument_is_kept_alive() -> None:
    with WorkerPool(n_jobs=1, enable_insights=True, start_method="spawn", keep_alive=True) as pool:
        pool.map(alive_now, [Counted(x) for x in range(50)], chunk_size=50)
        assert pool.map(alive_now, [Counted(x) for x in range(3)], chunk_size=1) == [1, 1, 1]


# ---------------------------------------------------------------- figures and print-out


def test_figures() -> None:
    second = 1_000_000_000
    workers = [Times(3, 1 * second, 0, second, 6 * second, 0), Times(1, second, 0, 3 * second, 3600 * second, 0)]
    found = summary(workers, [(2 * second, b"Arg 0: \xff"), (5, b"")])
    assert set(found) == KEYS
    assert found["n_completed_tasks"] == [3, 1]
    assert found["working_time"] == ["0:00:06.000", "1:00:00.000"]
    assert found["total_waiting_time"] == "0:00:04.000"
    assert (found["waiting_time_mean"], found["waiting_time_std"]) == ("0:00:02.000", "0:00:01.000")
    assert found["total_time"] == "1:00:12.000"
    assert found["start_up_ratio"] == pytest.approx(2 / 3612)
    assert found["top_5_max_task_durations"] == ["0:00:02.000", "0:00:00.000"]
    assert found["top_5_max_task_args"] == ["Arg 0: \ufffd", ""]


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0:00:00.000"), (999_999, "0:00:00.000"), (61_001_000_000, "0:01:01.001"), (10**15, "277:46:40.000")],
)
def test_durations(ns: int, text: str) -> None:
    assert as_text(ns) == text


def test_the_print_out(capsys: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(n_jobs=2, enable_insights=True) as pool:
        pool.map(double, range(1000))
        pool.print_insights()
        insights = pool.get_insights()
    printed = capsys.readouterr().out
    assert printed == as_table(insights) + "\n"
    lines = printed.splitlines()
    for worker, count in enumerate(insights["n_completed_tasks"]):
        [line] = [line for line in lines if line.startswith(f"worker {worker}")]
        assert line.split()[2:] == [str(count), *(insights[f"{part}_time"][worker] for part in PARTS)]
    assert sum(line.endswith(text) for text in insights["top_5_max_task_args"] for line in lines[-5:]) >= 5


def test_a_print_out_says_when_workers_mostly_wait() -> None:
    assert "less than 80%" in as_table(summary([Times(1, 0, 0, 30, 70, 0)], []))
    assert "less than" not in as_table(summary([Times(1, 0, 0, 10, 90, 0)], []))
