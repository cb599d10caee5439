"""The parameters of WorkerPool: their order, and cpu_ids."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastpool import WorkerPool, machine, options
from fastpool.options import crowd

CORES = sorted(os.sched_getaffinity(0))
FIRST, LAST = CORES[0], CORES[-1]  # the same on a machine with one core
NO_CORE = max(os.sysconf("SC_NPROCESSORS_CONF"), LAST + 1)


def test_parameters_in_the_order_of_mpire() -> None:
    mpire = pytest.importorskip("mpire")
    theirs = list(inspect.signature(mpire.WorkerPool.__init__).parameters)
    ours = inspect.signature(WorkerPool.__init__).parameters
    assert list(ours)[: len(theirs)] == theirs
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in list(ours.values())[len(theirs) :])


def test_all_but_the_last_by_position() -> None:
    shared = object()
    pool = WorkerPool(2, False, [FIRST], shared, True, True, "fork", True, False, True, False)
    given = pool._supervisor.options
    assert (given.n_jobs, given.daemon, given.cpu_ids, given.shared_objects) == (2, False, [{FIRST}] * 2, shared)
    assert (given.pass_worker_id, given.use_worker_state, given.start_method, given.keep_alive) == (
        True,
        True,
        "fork",
        True,
    )
    assert (given.use_dill, given.enable_insights, given.order_tasks) == (False, True, False)


# ---------------------------------------------------------------- cpu_ids


def where(worker_id: int, _: Any) -> tuple[int, int, frozenset[int]]:
    return worker_id, os.getpid(), frozenset(os.sched_getaffinity(0))


def where_in_init(worker_id: int, state: dict[str, Any]) -> None:
    state["cores"] = frozenset(os.sched_getaffinity(0))


def where_was_init(worker_id: int, state: dict[str, Any], _: Any) -> frozenset[int]:
    found: frozenset[int] = state["cores"]
    return found


FORMS: list[tuple[Any, list[set[int]]]] = [
    (None, [set(CORES)] * 3),
    ([], [set(CORES)] * 3),
    (LAST, [{LAST}] * 3),
    ([LAST], [{LAST}] * 3),
    ([[FIRST, LAST]], [{FIRST, LAST}] * 3),
    ([LAST, FIRST, [FIRST, LAST]], [{LAST}, {FIRST}, {FIRST, LAST}]),
    ((LAST, (FIRST, LAST), [FIRST]), [{LAST}, {FIRST, LAST}, {FIRST}]),
]


@pytest.mark.parametrize(("cpu_ids", "expected"), FORMS, ids=[str(form) for form, _ in FORMS])
def test_forms_of_cpu_ids(cpu_ids: Any, expected: list[set[int]]) -> None:
    with WorkerPool(3, cpu_ids=cpu_ids, pass_worker_id=True) as pool:
        found = pool.map(where, range(60), chunk_size=1)
    assert {(worker_id, cores) for worker_id, _, cores in found} <= {
        (worker_id, frozenset(cores)) for worker_id, cores in enumerate(expected)
    }
    assert os.sched_getaffinity(0) == set(CORES)


def test_workers_are_pinned_however_they_start(start_method: str) -> None:
    with WorkerPool(1, cpu_ids=[LAST], pass_worker_id=True, use_worker_state=True, start_method=start_method) as pool:
        assert pool.map(where_was_init, range(3), worker_init=where_in_init) == [{LAST}] * 3


def test_successors_are_pinned() -> None:
    with WorkerPool(2, cpu_ids=[FIRST, LAST], pass_worker_id=True) as pool:
        found = pool.map(where, range(12), worker_lifespan=1, chunk_size=1)
    assert len({pid for _, pid, _ in found}) == 12
    assert all(cores == {[FIRST, LAST][worker_id]} for worker_id, _, cores in found)


PROGRAM = """
import os, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()  # in workers too, before they are any

def cores(_):
    return [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]

if __name__ == "__main__":
    from fastpool import WorkerPool
    with WorkerPool(1, cpu_ids=LAST, start_method="spawn") as pool:
        [found] = pool.map(cores, [0])
    assert len(found) > 1, found
    assert all(one == {LAST} for one in found), found
"""


def test_threads_that_were_there_before_are_pinned_too(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("LAST", str(LAST)))
    subprocess.run([sys.executable, program], check=True)


class Index:
    def __index__(self) -> int:
        return FIRST


def test_anything_that_is_an_index_is_an_id() -> None:
    assert WorkerPool(2, cpu_ids=[Index(), FIRST])._supervisor.options.cpu_ids == [{FIRST}] * 2


WRONG = [
    ([FIRST, FIRST], ValueError, "one entry, or one for each of the 3 workers.*not 2"),
    ([FIRST] * 4, ValueError, "not 4"),
    (-1, ValueError, "negative: it has -1"),
    ([[FIRST, -2]], ValueError, "it has -2"),
    (NO_CORE, ValueError, f"cpu_ids has {NO_CORE}, which is no core"),
    ([FIRST, [FIRST, NO_CORE], FIRST], ValueError, f"cpu_ids has {NO_CORE}"),
    (10**30, ValueError, "cpu_ids has a number of 100 bits"),
    ([[]], ValueError, "cpu_ids has an empty list"),
    (True, TypeError, "cpu_ids must be an int, .* not of bool"),
    (1.0, TypeError, "not of float"),
    ("0", TypeError, "not of str"),
    ({FIRST}, TypeError, "not of set"),
    ([None], TypeError, "not of NoneType"),
    ([[[FIRST]]], TypeError, "not of list"),
]


@pytest.mark.parametrize(("cpu_ids", "kind", "message"), WRONG, ids=[str(wrong[0]) for wrong in WRONG])
def test_wrong_cpu_ids(cpu_ids: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        WorkerPool(3, cpu_ids=cpu_ids)


def test_a_core_the_system_does_not_let_us_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, cores: set[int]) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(machine.os, "sched_setaffinity", refuse)
    with pytest.raises(ValueError, match=f"cpu_ids has {FIRST}, which is no core that this process may use"):
        WorkerPool(1, cpu_ids=FIRST)


def test_a_system_that_cannot_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "CAN_PIN", False)
    with pytest.raises(ValueError, match="cpu_ids: this system has no way to pin"):
        WorkerPool(1, cpu_ids=FIRST)
    assert WorkerPool(1).map(abs, [-1]) == [1]


@pytest.mark.parametrize(
    ("pinned", "crowded"),
    [
        ([{0}, {0}], True),
        ([{0}, {1}], False),
        ([{0, 1}] * 2, False),
        ([{0, 1}] * 3, True),
        ([{0}, {0}, {1, 2, 3}], True),
        ([{0}, {1, 2}, {1, 2}], False),
    ],
)
def test_who_has_to_share_a_core(pinned: list[set[int]], crowded: bool) -> None:
    assert crowd([frozenset(cores) for cores in pinned]) is crowded


@pytest.mark.parametrize(("cpu_ids", "spins"), [(None, True), ([[FIRST, LAST]], len(CORES) > 1), (FIRST, False)])
def test_nobody_spins_on_a_core_that_others_need(monkeypatch: pytest.MonkeyPatch, cpu_ids: Any, spins: bool) -> None:
    monkeypatch.setattr(options, "cpu_count", lambda: 8)
    with WorkerPool(2, cpu_ids=cpu_ids, keep_alive=True) as pool:
        assert pool.map(abs, range(-9, 0)) == list(range(9, 0, -1))
        _, spin_ns = pool._supervisor.segment.shape
        assert (spin_ns > 0) is spins
