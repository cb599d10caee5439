"""`python -m benchmarks.soak --minutes N`: random maps against a plain-Python oracle, for as long as you like.

Pools of every kind run maps of every kind; tasks raise, kill their workers, return what is large; somebody shoots
workers. Each outcome is compared with what a plain loop says, and what exit functions return with who has come up. In
the end memory, descriptors, threads and processes are compared with what they were after the first tenth of the time:
growth fails the run, and so does a process that is left, orphans too.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import logging
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import numpy

from fastpool import WorkerDiedError, WorkerPool, asshared

MOST_GROWTH = {"memory": 32 << 20, "shared memory": 16 << 20, "descriptors": 2, "threads": 0, "processes": 0}
PAGE = os.sysconf("SC_PAGE_SIZE")
LAZY = ["imap", "imap_unordered"]
METHODS = ["map", "map", "map_unordered", *LAZY]
STARTS = {"fork": 60, "threading": 15, "spawn": 1, "forkserver": 1}  # how often
PR_SET_CHILD_SUBREAPER = 36
libc = ctypes.CDLL(None)


# ---------------------------------------------------------------- tasks; importable, for spawned workers


def square(x: Any) -> Any:
    return x * x


def same(*x: Any) -> Any:
    return x[0] if len(x) == 1 else x


def nested(*x: Any) -> Any:
    return {"value": x, "text": str(x[-1]), "parts": [x, (x[0], None, True)]}


def large(x: Any) -> Any:
    return str(x) * 20_000


def array_of(x: Any) -> Any:
    return numpy.full(40_000, float(x))


def root(chunk: Any) -> Any:
    return numpy.sqrt(chunk)


def summed(chunk: Any) -> Any:
    return float(chunk.sum())


def fail_at_some(x: Any) -> Any:
    if x % 17 == 5:
        raise LookupError(x)
    return x


def die_at_some(x: Any) -> Any:
    if x % 41 == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def seldom_slow(x: Any) -> Any:
    if x % 13 == 3:
        time.sleep(0.001)
    return -x


_own = threading.local()


def arrive(book: str) -> None:
    """A worker's name, in the book of those that have come up."""
    if hasattr(_own, "name"):
        raise RuntimeError("worker_init ran twice in a worker")
    _own.name = uuid.uuid4().hex
    with open(book, "a") as file:
        file.write(f"{_own.name}\n")


def leave() -> str:
    """The same name, once."""
    name: str = _own.name
    del _own.name
    return name


NUMBERS: list[Callable[[Any], Any]] = [square, same, nested, large, array_of, fail_at_some, die_at_some, seldom_slow]


# ---------------------------------------------------------------- one map and its oracle


@dataclass
class Plan:
    """One map: what is called with what, and what a plain loop makes of it."""

    function: Callable[..., Any]
    make: Callable[[], Any]
    options: dict[str, Any]
    expected: Any  # the results; an exception's type where one ends the map
    method: str = "map"
    most: int | None = None  # results after which a lazy map is left

    def run(self, pool: WorkerPool) -> Any:
        results = getattr(pool, self.method)(self.function, self.make(), **self.options)
        if self.most is None:
            return results if self.method == "map" else list(results)
        first = list(itertools.islice(results, self.most))
        results.close()
        return first

    @property
    def kills_nobody(self) -> bool:
        """Each of its workers ends by itself: no error stops them, and none dies."""
        if self.most is not None or isinstance(self.expected, type):
            return False
        return self.function is not die_at_some or not any(isinstance(x, WorkerDiedError) for x in self.expected)

    def check(self, pool: WorkerPool) -> str | None:
        """What is wrong, or None."""
        try:
            results = self.run(pool)
        except Exception as error:
            if isinstance(self.expected, type) and isinstance(error, self.expected):
                return None
            return f"{type(error).__name__}: {error}"
        if isinstance(self.expected, type):
            return None if self.most is not None else f"no {self.expected.__name__}"
        return None if self.is_right(results) else "the results are wrong"

    def is_right(self, results: Any) -> bool:
        if self.most is not None and len(results) != min(self.most, len(self.expected)):
            return False
        if self.method.endswith("unordered"):
            return Counter(map(looks, results)) <= Counter(map(looks, self.expected)) and (
                self.most is not None or len(results) == len(self.expected)
            )
        return equal(results, self.expected if self.most is None else self.expected[: self.most])


def looks(value: Any) -> str:
    """Something to tell results apart by, whatever their order."""
    if isinstance(value, numpy.ndarray):
        return f"{value.dtype} {value.tobytes().hex()}" if value.nbytes < 1000 else f"{value.dtype} {value.sum()!r}"
    return f"{type(value).__name__} {'' if isinstance(value, BaseException) else repr(value)}"


def equal(one: Any, other: Any) -> bool:
    if isinstance(other, BaseException):
        return isinstance(one, type(other))
    if isinstance(one, numpy.ndarray) or isinstance(other, numpy.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and numpy.array_equal(one, other)
    if isinstance(other, list):
        return type(one) is list and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)


def plan_numbers(pick: random.Random, retries: int) -> Plan:
    n = pick.choice([0, 1, 3, 50, 300, 2000])
    function = pick.choice(NUMBERS)
    if function in (large, array_of):
        n = min(n, 200)
    offset = pick.choice([0, 1, 2**62])
    kind = pick.choice(["range", "list", "tuple", "generator", "floats", "mixed"])
    values: list[Any] = list(range(offset, offset + n))
    if function is array_of or function is same:
        values = [x % 1000 for x in values]
    if kind == "floats":
        values = [float(x) for x in values]
    if kind == "mixed" and function in (same, nested):
        values = [pick.choice([x, float(x), str(x), None, True, (x, str(x)), b"x" * (x % 100)]) for x in values]
    make: Callable[[], Any] = {
        "tuple": lambda: tuple(values),
        "generator": lambda: (x for x in values),
    }.get(kind, lambda: list(values))
    if kind == "range" and function not in (array_of, same):
        make = lambda: range(offset, offset + n)  # noqa: E731
    keep_going = pick.random() < 0.5
    options: dict[str, Any] = {"return_exceptions": keep_going, "retries": retries}
    expected: list[Any] = []
    for x in values:
        arguments = x if isinstance(x, tuple) else (x,)
        if function is die_at_some and x % 41 == 7:
            expected.append(WorkerDiedError(0, 0, 0, "", range(0)))
            continue
        try:
            expected.append(function(*arguments))
        except LookupError as error:
            expected.append(error)
    errors = [result for result in expected if isinstance(result, BaseException)]
    return Plan(
        function, make, options, type(errors[0]) if errors and not keep_going else expected, pick.choice(METHODS)
    )


def plan_array(pick: random.Random, retries: int) -> Plan:
    n = pick.choice([0, 1, 7, 10_000, 400_000])
    array = numpy.arange(float(n))
    if pick.random() < 0.3:
        array = asshared(array)
    function = pick.choice([root, summed, square])
    join = pick.random() < 0.8
    method = pick.choice(METHODS)
    options: dict[str, Any] = {"retries": retries, "chunk_size": max(1, n // 5)}
    if method == "map":
        options["concatenate_numpy_output"] = join
    chunks = [array[k : k + max(1, n // 5)] for k in range(0, n, max(1, n // 5))] or [array]
    expected: Any = [function(chunk) for chunk in chunks]
    if join and function is not summed and method == "map":
        expected = numpy.concatenate(expected)
    return Plan(function, lambda: array, options, expected, method)


def more_options(pick: random.Random, plan: Plan) -> None:
    if "chunk_size" not in plan.options:
        plan.options |= pick.choice([{}, {}, {"chunk_size": pick.choice([1, 7, 100])}, {"n_splits": 5}])
        if plan.make().__class__.__name__ == "generator":
            plan.options.pop("n_splits", None)
    plan.options |= pick.choice([{}, {}, {"max_tasks_active": pick.choice([1, 10, 500])}])
    plan.options |= pick.choice([{}, {}, {"worker_lifespan": pick.choice([5, 50, 500])}])
    plan.options |= pick.choice([{}, {}, {"task_timeout": 60}])
    if plan.method in LAZY and pick.random() < 0.3:
        plan.most = pick.choice([0, 1, 20])


# ---------------------------------------------------------------- worker_init and worker_exit


@dataclass
class Book:
    """Who has come up, and who has told on leaving.

    Attributes
    ----------
    path : str
        The file that workers write to.
    whole : bool
        No worker has been killed since all had ended: those that came up will tell.
    """

    path: str
    whole: bool = True
    settled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.functions = {"worker_init": partial(arrive, self.path), "worker_exit": leave}

    def look(self, told: list[str], all_ended: bool) -> str | None:
        """What is wrong with exit results, or None."""
        came = set(Path(self.path).read_text().split())
        if len(set(told)) != len(told):
            return "worker_exit ran twice in a worker"
        if not set(told) <= came:
            return "worker_exit ran without worker_init"
        self.settled |= set(told)
        if not all_ended:
            return None
        silent = came - self.settled
        whole, self.whole, self.settled = self.whole, True, came
        return f"{len(silent)} workers have no exit result" if whole and silent else None


# ---------------------------------------------------------------- the run


@dataclass
class Soak:
    """Runs pools until the time is over."""

    pick: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def round(self) -> None:
        """One pool: a few maps."""
        with tempfile.NamedTemporaryFile() as file:
            self.use_pool(Book(file.name) if self.pick.random() < 0.5 else None)
        self.counts["pools"] += 1

    def use_pool(self, book: Book | None) -> None:
        pick = self.pick
        method = pick.choices(list(STARTS), list(STARTS.values()))[0]
        options: dict[str, Any] = {
            "n_jobs": pick.randint(1, 4),
            "start_method": method,
            "keep_alive": pick.random() < 0.5,
            "order_tasks": pick.random() < 0.3,
            "memory_limit": pick.choice([None, None, 8 << 20]),
        }
        shoot = pick.random() < 0.3 and method == "fork"
        with WorkerPool(**options) as pool, self.killer(pool) if shoot else nobody():
            for _ in range(pick.randint(1, 5)):
                plan = (plan_array if pick.random() < 0.3 else plan_numbers)(pick, 200 if shoot else 0)
                if plan.function is die_at_some and (shoot or method == "threading"):
                    continue  # its tasks would be tried too often; it would be this process that dies
                more_options(pick, plan)
                if book is not None:
                    plan.options |= book.functions | pick.choice([{}, {"always_exit": True}])
                    book.whole &= not shoot and plan.kills_nobody
                wrong = plan.check(pool)
                if wrong is None and book is not None:
                    wrong = book.look(pool.get_exit_results(), not options["keep_alive"] and plan.most is None)
                self.counts["maps"] += 1
                if wrong is not None:
                    what = f"{plan.method} {plan.function.__name__} {plan.options}, {plan.most} results"
                    self.faults.append(f"{wrong}: {what} in {options}, shot at: {shoot}")
            if pick.random() < 0.5 and not shoot:
                pool.stop_and_join()
                if book is not None and (wrong := book.look(pool.get_exit_results(), True)):
                    self.faults.append(f"{wrong}: at the end of {options}")

    @contextmanager
    def killer(self, pool: WorkerPool) -> Iterator[None]:
        """Shoot a worker every few milliseconds."""
        ended = threading.Event()
        shots = random.Random(self.pick.random())

        def shoot() -> None:
            while not ended.wait(shots.uniform(0.005, 0.05)):
                segment = pool._supervisor._segment
                worker_id = shots.randrange(pool._supervisor.options.n_jobs)
                if segment is not None and segment.pid(worker_id):
                    segment.kill(worker_id, signal.SIGKILL)
                    self.counts["shots"] += 1

        thread = threading.Thread(target=shoot)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def nobody() -> Iterator[None]:
    yield


def measure() -> dict[str, int]:
    """What this process holds now."""
    gc.collect()
    if hasattr(libc, "malloc_trim"):  # what is free, each thread's arena keeps
        libc.malloc_trim(0)
    shared = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssShmem"))
    private = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE - int(shared.split()[1]) * 1024
    return {
        "memory": private,
        "shared memory": int(shared.split()[1]) * 1024,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "processes": len(processes()),
    }


def processes() -> dict[int, str]:
    """Commands of the processes that come from this one, by their ids: its children, zombies too, and all theirs."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in os.listdir("/proc"):
        with suppress(OSError):  # gone meanwhile
            if entry.isdigit():
                name, _, status = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")
                state, parent = status.split()[:2]
                if state != "Z" or int(parent) == os.getpid():  # else somebody else's, who will see to it
                    command = Path(f"/proc/{entry}/cmdline").read_text(errors="replace").replace("\0", " ")
                    children.setdefault(int(parent), []).append((int(entry), command or f"{name}), a zombie"))
    found: dict[int, str] = {}
    parents = [os.getpid()]
    while parents:
        family = children.get(parents.pop(), [])
        found |= family
        parents += [pid for pid, _ in family]
    return found


@contextmanager
def adopting() -> Iterator[None]:
    """A block in which whoever loses its parent, and comes from this process, is this process's child."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def growth(samples: list[dict[str, int]]) -> dict[str, int]:
    """Medians of the last tenth of the samples, less those of the second tenth: the first is for warming up."""
    tenth = max(1, len(samples) // 10)
    early, late = samples[tenth : 2 * tenth] or samples[:1], samples[-tenth:]
    return {
        name: round(statistics.median(s[name] for s in late) - statistics.median(s[name] for s in early))
        for name in MOST_GROWTH
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N", help="how long (default 1)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random choices (default 1)")
    given = parser.parse_args(arguments)
    logging.getLogger("fastpool").setLevel(logging.ERROR)
    soak, samples = Soak(random.Random(given.seed)), []
    resource_tracker.ensure_running()
    forkserver.ensure_running()  # multiprocessing's own processes are no growth
    before = processes()
    began = time.monotonic()
    with adopting():
        while time.monotonic() - began < given.minutes * 60 and not soak.faults:
            soak.round()
            if soak.counts["pools"] % 10 == 0:
                samples.append(measure())
        samples.append(measure())
        soak.faults += [
            f"process {pid} is left: {command}" for pid, command in processes().items() if pid not in before
        ]
    print(
        f"{time.monotonic() - began:.0f} s, seed {given.seed}: "
        + ", ".join(f"{soak.counts[k]} {k}" for k in ("maps", "pools", "shots"))
    )
    faults = list(soak.faults)
    for name, grown in growth(samples).items():
        amount = f"{grown / (1 << 20):+.1f} MB" if "memory" in name else f"{grown:+d}"
        print(f"  {name:15} {amount}")
        if grown > MOST_GROWTH[name]:
            faults.append(f"{name} has grown")
    for fault in faults:
        print(f"WRONG: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
