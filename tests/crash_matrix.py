"""The crash matrix: a worker meets its fate at each place of its life, under each kind of map.

Runs against a build with ``FASTPOOL_POINTS=1`` (tools/test_crashes.sh). What must come of a cell is written down in
:func:`expected`; the rest holds for all cells: the outcome comes soon, nothing is left behind, the pool can be used
again. `make test` runs a sample in which each pair of values of two dimensions occurs, `make test-full` all cells.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
from leftovers import read_process

from fastpool import RemoteError, SerializationError, WorkerDiedError, WorkerPool, _native, options

N = 40  # tasks
CHUNK = 5
VICTIM = 17
SOON = 0.5  # seconds for all of a cell: less than what ends a sleep that nothing else ends
TRIES = 3
FORKS = 60  # a machine on which so many take longer is slow
ARRAY = numpy.arange(100.0 * N)

core = ctypes.CDLL(_native.__file__)  # type: ignore[attr-defined]


# ---------------------------------------------------------------- the dimensions


class Place(NamedTuple):
    """Where a worker is: a point of csrc/points.h, or (from 100 on) in the functions below; what its line may say."""

    point: int
    states: set[str]


PLACES = {
    "starting": Place(1, {"starting"}),
    "before the first hello": Place(2, {"starting"}),
    "init": Place(100, {"initializing"}),
    "idle and spinning": Place(3, {"idle", "running"}),
    "idle and asleep": Place(4, {"idle", "running"}),
    "intent written": Place(5, {"idle", "running"}),
    "claimed": Place(6, {"idle", "running"}),
    "in the task": Place(101, {"running"}),
    "encoding": Place(102, {"running"}),
    "a record without items": Place(7, {"running", "exiting"}),
    "a record with items": Place(8, {"running", "exiting"}),
    "allocating": Place(9, {"running"}),
    "between commit and bell": Place(10, {"idle", "running", "exiting", "exited"}),
    "exit function": Place(103, {"exiting"}),
    "after it": Place(11, {"exiting"}),
}


class Fate(NamedTuple):
    """What happens: an action of csrc/points.h, and the exit code; or the exception of a signal handler."""

    action: int
    exitcode: int
    raises: type[BaseException] | None = None


FATES = {
    "exception": Fate(signal.SIGUSR1, 1, LookupError),
    "sys.exit": Fate(signal.SIGUSR1, 1, SystemExit),
    "MemoryError": Fate(signal.SIGUSR1, 1, MemoryError),
    "os._exit": Fate(-1, 3),
    "SIGSEGV": Fate(signal.SIGSEGV, -signal.SIGSEGV),
    "SIGKILL": Fate(signal.SIGKILL, -signal.SIGKILL),
    "SIGTERM": Fate(signal.SIGTERM, -signal.SIGTERM),
    "SIGSTOP, SIGKILL": Fate(-2, -signal.SIGKILL),
}

# The last stands for two options: order_tasks, and always_exit, which must change nothing that is looked at here.
INPUTS = ("range", "list", "generator", "array", "list in turn")
METHODS = ("map", "map_unordered", "imap", "imap_unordered")
DIMENSIONS = (tuple(PLACES), tuple(FATES), INPUTS, METHODS, (False, True), (None, 10), (0, 3))


class Cell(NamedTuple):
    place: str
    fate: str
    input: str
    method: str
    keep_alive: bool
    lifespan: int | None
    retries: int

    def __str__(self) -> str:
        kept = "kept" if self.keep_alive else "not kept"
        work = f"{self.method} of a {self.input}, {kept}, lifespan {self.lifespan}, {self.retries} retries"
        return f"{self.place}, {self.fate}, {work}"


def all_pairs(seed: int) -> list[Cell]:
    """Cells in which every pair of values of two dimensions occurs."""
    pick = random.Random(seed)
    open_pairs = {
        (i, a, j, b)
        for i, j in itertools.combinations(range(len(DIMENSIONS)), 2)
        for a in range(len(DIMENSIONS[i]))
        for b in range(len(DIMENSIONS[j]))
    }
    cells = []
    while open_pairs:
        i, a, j, b = pick.choice(sorted(open_pairs))
        tried = []
        for _ in range(20):
            row = [pick.randrange(len(values)) for values in DIMENSIONS]
            row[i], row[j] = a, b
            covered = {
                pair
                for pair in itertools.combinations(range(len(row)), 2)
                if (pair[0], row[pair[0]], pair[1], row[pair[1]]) in open_pairs
            }
            tried.append((len(covered), row))
        row = max(tried)[1]
        open_pairs -= {(x, row[x], y, row[y]) for x, y in itertools.combinations(range(len(row)), 2)}
        cells.append(Cell(*(values[k] for values, k in zip(DIMENSIONS, row, strict=True))))
    return cells


def all_cells() -> list[Cell]:
    """Each with `map`, and with one of the others in turn."""
    first, others = METHODS[0], itertools.cycle(METHODS[1:])
    rest = itertools.product(*(values for values in DIMENSIONS if values is not METHODS))
    return [Cell(*values[:3], method, *values[3:]) for values in rest for method in (first, next(others))]


CELLS = all_cells() if os.environ.get("FASTPOOL_LONG") == "1" else all_pairs(seed=4)


# ---------------------------------------------------------------- what must come of it


@dataclass(frozen=True)
class Outcome:
    """How maps, and the end of the pool, went: an error, or none."""

    error: BaseException | None
    struck: bool  # the fate


def expected(cell: Cell, outcome: Outcome) -> str | None:
    """What is wrong with an outcome, or None."""
    error, place, fate = outcome.error, PLACES[cell.place], FATES[cell.fate]
    if not outcome.struck:
        return "nothing had happened to any worker" if error is not None else must_strike(cell)
    if fate.raises is not None:
        return expected_of_exception(cell, error, fate.raises)
    if error is None:
        return None if survives(cell) else "the death of a worker went unnoticed"
    if not isinstance(error, WorkerDiedError):
        return "not the error for a death"
    if cell.retries and (not ends_at_stop(cell) or error.tasks):
        return "it should have been tried again"
    if error.exitcode != fate.exitcode:
        return f"exit code {error.exitcode}, not {fate.exitcode}"
    if error.state not in place.states:
        return f"state {error.state}, not {place.states}"
    return wrong_tasks(cell, error)


def wrong_tasks(cell: Cell, error: WorkerDiedError) -> str | None:
    """The tasks that the error names: those of the victim's chunk from the victim on; in other places, some or none."""
    tasks = error.tasks
    if cell.place in ("in the task", "encoding"):
        end = VICTIM + 1 if cell.input == "array" else VICTIM - VICTIM % CHUNK + CHUNK
        if cell.input == "generator":  # a chunk does not wait for slow elements
            end = tasks.stop
        return None if tasks and tasks == range(VICTIM, end) else f"it names {tasks}"
    if cell.place in ("starting", "before the first hello", "exit function", "after it"):
        return None if not tasks else f"it names {tasks}"
    return None if len(tasks) <= CHUNK else f"it names {tasks}"


def must_strike(cell: Cell) -> str | None:
    """Places that every map passes."""
    seldom = {"idle and spinning", "idle and asleep"}  # only with workers that find nothing to do
    if cell.place in seldom and (not cell.keep_alive or cell.lifespan is not None):
        return None
    return "it was not reached"


def survives(cell: Cell) -> bool:
    """May the death be without consequences?"""
    if cell.retries:
        return True
    return cell.place == "between commit and bell"  # the last ring comes after the last word


def ends_at_stop(cell: Cell) -> bool:
    """May it happen, or be noticed, when there is no map any more? Not of a worker that holds a task."""
    return cell.keep_alive and cell.place not in ("init", "claimed", "in the task", "encoding", "allocating")


def expected_of_exception(cell: Cell, error: BaseException | None, kind: type[BaseException]) -> str | None:
    if cell.place in ("starting", "before the first hello"):  # there is nobody yet who could report it
        if error is None:  # Python reports and drops what at-fork hooks raise
            return None if cell.retries or cell.place == "starting" else "it went unnoticed"
        if isinstance(error, WorkerDiedError):
            return None if error.exitcode == 1 and not cell.retries else "another death"
    if cell.place in ("after it", "between commit and bell") and error is None:  # after the last word
        return None
    if cell.place in ("encoding", "a record without items", "allocating") and isinstance(error, SerializationError):
        return None
    if type(error) is not kind:
        return f"not a {kind.__name__}"
    if not isinstance(error.__cause__, RemoteError):
        return "it does not say where it comes from"
    return None


# ---------------------------------------------------------------- running a cell


def reach(point: int) -> None:
    core.fp_points_reach(point)


class Result:
    """Travels as a pickle, and arrives as a number."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __reduce__(self) -> Any:
        if self.x == VICTIM:
            reach(102)
        return int, (self.x,)


def value(cell: Cell, x: int) -> Any:
    if cell.place == "encoding":
        return Result(x)
    if cell.place == "allocating":
        return bytes([x]) * 100_000
    return x * x


def init() -> None:
    reach(100)


def finish() -> int:
    reach(103)
    return 1


def right(cell: Cell, results: Any) -> bool:
    """Is this what the map should have come to?"""
    if cell.input == "array" and cell.place not in ("encoding", "allocating"):
        if cell.method != "map":
            results = numpy.concatenate(sorted(results, key=lambda chunk: chunk[0]))
        return bool(numpy.array_equal(results, ARRAY * 2))
    results = sorted(results) if cell.method.endswith("unordered") else list(results)
    return bool(results == (list(range(N)) if cell.place == "encoding" else [value(cell, x) for x in range(N)]))


def run(cell: Cell) -> Outcome:
    fate = FATES[cell.fate]

    def task(x: int) -> Any:
        if x == VICTIM:
            reach(101)
        return value(cell, x)

    def task_of_array(chunk: Any) -> Any:
        x = int(chunk[0]) // 100
        if x == VICTIM:
            reach(101)
        return chunk * 2.0 if cell.place not in ("encoding", "allocating") else value(cell, x)

    make = {"range": range, "generator": lambda n: (x for x in range(n))}
    given = {"chunk_size": CHUNK, "worker_lifespan": cell.lifespan, "worker_init": init, "worker_exit": finish}
    in_turn = given["always_exit"] = cell.input == "list in turn"

    def call(pool: WorkerPool, retries: int) -> None:
        method: Any = getattr(pool, cell.method)
        if cell.input == "array":
            given["chunk_size"] = 100
            results = method(task_of_array, ARRAY, retries=retries, **given)
        else:
            values = make.get(cell.input, lambda n: list(range(n)))(N)
            results = method(task, values, retries=retries, **given)
        assert right(cell, results)

    core.fp_points_arm(PLACES[cell.place].point, fate.action, 1, 1)
    error: BaseException | None = None
    with WorkerPool(n_jobs=2, keep_alive=cell.keep_alive, order_tasks=in_turn) as pool:
        try:
            call(pool, cell.retries)
            call(pool, cell.retries)
            pool.stop_and_join()
        except AssertionError:
            raise
        except BaseException as caught:
            error = caught
        struck = core.fp_points_left() < 1
        core.fp_points_arm(0, 0, 0, 0)
        if error is not None:
            error = error.with_traceback(None)
        call(pool, 0)
    return Outcome(error, struck)


@pytest.fixture(autouse=True, scope="module")
def surroundings() -> Iterator[None]:
    """SIGUSR1 raises; whoever stops is killed; workers may spin; no news of deaths."""
    ended = threading.Event()

    def kill_the_stopped() -> None:
        while not ended.wait(0.002):
            process = read_process(core.fp_points_stopped())
            if process is not None and process.state == "T":
                os.kill(process.pid, signal.SIGKILL)

    assert core.fp_points_arm(0, 0, 0, 0) == 0, "not built with FASTPOOL_POINTS=1"
    logging.getLogger("fastpool").setLevel(logging.ERROR)
    killer = threading.Thread(target=kill_the_stopped, daemon=True)
    killer.start()
    yield
    ended.set()
    killer.join()


# ---------------------------------------------------------------- applies


class ApplyCell(NamedTuple):
    place: str
    fate: str
    beside: bool  # a map on the same pool
    keep_alive: bool

    def __str__(self) -> str:
        where = "beside a map" if self.beside else "alone"
        return f"{self.place}, {self.fate}, apply {where}, {'kept' if self.keep_alive else 'not kept'}"


def apply_cells() -> list[ApplyCell]:
    """All; or each place with each fate, the rest in turn."""
    every = itertools.product(PLACES, FATES, (False, True), (False, True))
    if os.environ.get("FASTPOOL_LONG") == "1":
        return [ApplyCell(*values) for values in every]
    rest = itertools.cycle(itertools.product((False, True), (False, True)))
    return [ApplyCell(place, fate, *next(rest)) for place in PLACES for fate in FATES]


def single_task(place: str, x: int) -> Any:
    if x == VICTIM:
        reach(101)
    if place == "encoding":
        return Result(x)
    return bytes([x]) * 100_000 if place == "allocating" else x * x


def wrong_apply(cell: ApplyCell, x: int, unit: int | None, error: BaseException) -> str | None:
    """What is wrong with one apply's exception, or None."""
    fate, place = FATES[cell.fate], PLACES[cell.place]
    if isinstance(error, RuntimeError) and "because a map" in str(error):
        return None if cell.beside else "there was no map"
    if fate.raises is not None:
        fits = type(error) is fate.raises or isinstance(error, SerializationError)
        early = isinstance(error, WorkerDiedError) and error.state == "starting"
        return None if fits or early else "another exception"
    if not isinstance(error, WorkerDiedError):
        return "not the error for a death"
    if (error.exitcode, error.state in place.states) != (fate.exitcode, True):
        return "another death"
    if cell.place in ("in the task", "encoding") and (x != VICTIM or error.tasks != range(unit or 0, (unit or 0) + 1)):
        return "another apply failed"
    return None


def run_applies(cell: ApplyCell) -> list[str]:
    """What is wrong."""
    fate, wrongs, failed = FATES[cell.fate], [], []
    core.fp_points_arm(PLACES[cell.place].point, fate.action, 1, 1)
    with WorkerPool(n_jobs=2, keep_alive=cell.keep_alive) as pool:
        given = {"worker_init": init, "worker_exit": finish}
        results = [pool.apply_async(single_task, (cell.place, x), **given) for x in range(N)]
        if cell.beside:
            try:
                assert pool.map(abs, range(N), chunk_size=1, **given) == list(range(N))
            except (WorkerDiedError, *filter(None, [fate.raises])):
                pass
        for x, result in enumerate(results):
            try:
                value = result.get(60)
            except BaseException as error:
                failed.append(x)
                if wrong := wrong_apply(cell, x, result.unit, error):
                    wrongs.append(f"{x}: {wrong}: {error!r}")
            else:
                right_value = {"encoding": x, "allocating": bytes([x]) * 100_000}.get(cell.place, x * x)
                wrongs += [] if value == right_value else [f"{x}: {value!r:.80}"]
        try:
            pool.stop_and_join()
        except (WorkerDiedError, *filter(None, [fate.raises])):
            pass
        struck = core.fp_points_left() < 1
        core.fp_points_arm(0, 0, 0, 0)
        if failed and not struck:
            wrongs.append(f"nothing had happened to any worker, but {failed} failed")
        if cell.place == "in the task" and failed != [VICTIM]:
            wrongs.append(f"{failed} failed")
        deaths_of_all = cell.place in ("starting", "before the first hello") or cell.beside
        if fate.raises is None and len(failed) > 1 and not deaths_of_all:
            wrongs.append(f"{failed} failed, not one")
        assert pool.apply(single_task, ("", 3)) == 9
        assert pool.map(abs, range(N)) == list(range(N))
    return wrongs


took: list[tuple[float, str]] = []


@pytest.fixture(autouse=True, scope="session")
def report() -> Iterator[None]:
    yield
    took.sort(reverse=True)
    path = Path("build/crash_matrix.txt")
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{seconds:.3f} s  {cell}\n" for seconds, cell in took))
    late = sum(seconds > SOON for seconds, _ in took)
    print(f"\n{len(took)} cells, the slowest {took[0][0]:.3f} s, {late} over {SOON} s: {path}")


def timed(attempt: Callable[[], None]) -> float:
    since = time.monotonic()
    attempt()
    return time.monotonic() - since


def fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def check(cell: Cell | ApplyCell, attempt: Callable[[], None]) -> None:
    """Try a cell. It must go right, and soon: a busy machine may delay it, but not each time; a sleep that nothing
    ends, does."""
    for _ in range(TRIES):
        seconds = timed(attempt)
        took.append((seconds, str(cell)))
        if seconds <= SOON or seconds <= FORKS * min(timed(fork) for _ in range(5)):
            return
    pytest.fail(f"it takes more than {SOON} s, {TRIES} times")


@pytest.fixture
def struck_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes ready for a cell: SIGUSR1 raises what its fate says; workers may spin where they are to."""
    before = signal.getsignal(signal.SIGUSR1)

    def prepare(cell: Cell | ApplyCell) -> None:
        kind = FATES[cell.fate].raises

        def strike(signum: int, frame: Any) -> None:
            assert kind is not None
            raise kind(1)

        if cell.place == "idle and spinning":
            monkeypatch.setattr(options, "cpu_count", lambda: 8)
        signal.signal(signal.SIGUSR1, strike)

    yield prepare
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell: Cell, struck_by: Any) -> None:
    def attempt() -> None:
        outcome = run(cell)
        wrong = expected(cell, outcome)
        assert wrong is None, f"{wrong}: {outcome.error!r}, {'struck' if outcome.struck else 'not struck'}"

    struck_by(cell)
    check(cell, attempt)


@pytest.mark.parametrize("cell", apply_cells(), ids=str)
def test_apply_cell(cell: ApplyCell, struck_by: Any) -> None:
    def attempt() -> None:
        assert run_applies(cell) == []

    struck_by(cell)
    check(cell, attempt)
