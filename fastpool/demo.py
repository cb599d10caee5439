"""The demo: four kinds of work, each by the pool and without it, with the same answers."""

from __future__ import annotations

import ast
import os
import platform
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from . import WorkerPool, cpu_count

SUMMARY = "four kinds of work, each by the pool and without it"

T = TypeVar("T")
WorkerState = dict[str, Any]


def main(n_jobs: int | None = None) -> int:
    """Run all parts with `n_jobs` workers (default: one a core); 1 if any answer differs from that without the pool."""
    workers = n_jobs or cpu_count()
    machine = f"Python {platform.python_version()}, {workers} workers on {cpu_count()} cores"
    print(f"fastpool beside a plain loop: {machine}")
    print("Times of the pool include starting and stopping its workers.")
    agreed = [part(workers) for part in (even_numbers, standard_library, million_tasks, big_array)]
    print()
    print("Every answer is the one without the pool." if all(agreed) else "ANSWERS DIFFER from those without the pool.")
    return 0 if all(agreed) else 1


# What each part shows


@dataclass(frozen=True)
class Timed:
    """An answer and the seconds it took."""

    answer: Any
    seconds: float


def timed(work: Callable[[], T]) -> Timed:
    start = time.perf_counter()
    answer = work()
    return Timed(answer, time.perf_counter() - start)


def heading(number: int, text: str) -> None:
    print(f"\n{number}. {text}\n")


def compare(loop: Timed, pool: Timed, alone: str = "plain loop") -> bool:
    """Print both times and whether the answers are the same, and return that."""
    same = is_same(loop.answer, pool.answer)
    ratio = loop.seconds / pool.seconds
    remark = "" if ratio >= 0.1 else ": starting workers costs more than this work"
    print(f"   {alone:10} {milliseconds(loop.seconds):>13}")
    print(f"   fastpool   {milliseconds(pool.seconds):>13}   {ratio:.2g} times as fast{remark}")
    print(f"   answers    {'the same' if same else 'DIFFERENT':>13}")
    return same


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


def milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:,.1f} ms" if value >= 1 else f"{value:.3f} ms"


# 1. State that lives in each worker


def start_count(worker_state: WorkerState) -> None:
    worker_state["even"] = 0


def square_and_count(worker_state: WorkerState, x: int) -> int:
    worker_state["even"] += x % 2 == 0
    return x * x


def finish_count(worker_state: WorkerState) -> int:
    even: int = worker_state["even"]
    return even


def even_numbers(workers: int) -> bool:
    heading(1, "Squares of 0 to 99; each worker counts the even numbers it met.")
    numbers = range(100)
    per_worker: list[int] = []

    def by_loop() -> tuple[list[int], int]:
        state: WorkerState = {}
        start_count(state)
        return [square_and_count(state, x) for x in numbers], finish_count(state)

    def by_pool() -> tuple[list[int], int]:
        with WorkerPool(n_jobs=workers, use_worker_state=True) as pool:
            squares = pool.map(square_and_count, numbers, worker_init=start_count, worker_exit=finish_count)
            per_worker.extend(pool.get_exit_results())
        return squares, sum(per_worker)

    loop, pool = timed(by_loop), timed(by_pool)
    print(f"   even numbers: {' + '.join(map(str, per_worker))} = {pool.answer[1]} (one number a worker)")
    return compare(loop, pool)


# 2. Files


BYTES_AT_MOST = 40_000_000  # of source; the loop takes 10 to 20 seconds for that
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # ValueError: null bytes, wrong encoding


class Module(NamedTuple):
    """What one file holds."""

    path: str
    lines: int
    functions: int
    classes: int


def start_totals(worker_state: WorkerState) -> None:
    warnings.simplefilter("ignore")  # the library's tests hold what the compiler warns of
    worker_state["totals"] = Counter()


def finish_totals(worker_state: WorkerState) -> dict[str, int]:
    return dict(worker_state["totals"])


def parse_module(worker_state: WorkerState, path: str) -> Module | None:
    """Count what is in a file and add it to the worker's totals; None if it is not valid Python."""
    source = Path(path).read_bytes()
    try:
        tree = ast.parse(source)
    except UNPARSABLE:
        worker_state["totals"]["not parsed"] += 1
        return None
    kinds = Counter(map(type, ast.walk(tree)))
    functions = kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef]
    module = Module(path, source.count(b"\n"), functions, kinds[ast.ClassDef])
    worker_state["totals"].update(files=1, lines=module.lines, functions=functions, classes=module.classes)
    return module


def library_files() -> tuple[list[str], int]:
    """The files to parse, and how many are left out to bound the time this takes.

    Each is read once, so that whoever comes first finds them in the page cache like whoever comes next.
    """
    files: list[str] = []
    taken = left_out = 0
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted(set(folders) - NOT_LIBRARY)
        for path in (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")):
            size = len(Path(path).read_bytes())
            if taken + size > BYTES_AT_MOST:
                left_out += 1
            else:
                taken += size
                files.append(path)
    return files, left_out


def standard_library(workers: int) -> bool:
    files, left_out = library_files()
    heading(2, f"Parse the standard library: {len(files):,} files; each worker adds up what it read.")
    per_worker: list[dict[str, int]] = []

    def by_loop() -> tuple[list[Module | None], Counter[str]]:
        state: WorkerState = {}
        with warnings.catch_warnings():
            start_totals(state)
            modules = [parse_module(state, path) for path in files]
        return modules, Counter(finish_totals(state))

    def by_pool() -> tuple[list[Module | None], Counter[str]]:
        with WorkerPool(n_jobs=workers, use_worker_state=True) as pool:
            modules = pool.map(parse_module, files, worker_init=start_totals, worker_exit=finish_totals)
            per_worker.extend(pool.get_exit_results())
        return modules, sum(map(Counter, per_worker), Counter())

    pool, loop = timed(by_pool), timed(by_loop)
    modules, totals = pool.answer
    print_totals(per_worker, totals)
    print_largest([module for module in modules if module is not None])
    skipped = f"{totals['not parsed']} that are not valid Python, {left_out} to bound the time"
    print(f"\n   skipped: {skipped}, all of site-packages\n")
    return compare(loop, pool)


TOTALS = ("files", "lines", "functions", "classes")


def print_totals(per_worker: Sequence[dict[str, int]], totals: Counter[str]) -> None:
    def line(name: str, cells: Sequence[str]) -> None:
        print(f"   {name:<12}" + "".join(f"{cell:>12}" for cell in cells))

    line("", TOTALS)
    for worker, counted in enumerate(per_worker):
        line(f"worker {worker}", [f"{counted.get(name, 0):,}" for name in TOTALS])
    line("together", [f"{totals[name]:,}" for name in TOTALS])


def print_largest(modules: Sequence[Module], n_shown: int = 5) -> None:
    library = sysconfig.get_path("stdlib")
    print("\n   the largest files")
    for module in sorted(modules, key=lambda module: module.lines, reverse=True)[:n_shown]:
        name = os.path.relpath(module.path, library)
        shown = name if len(name) <= 38 else f"...{name[-35:]}"
        sizes = f"{module.lines:>7,} lines {module.functions:>6,} functions {module.classes:>5,} classes"
        print(f"   {shown:<38} {sizes}")


# 3. Tasks that cost next to nothing


def square(x: int) -> int:
    return x * x


def million_tasks(workers: int) -> bool:
    heading(3, "A million small tasks: x*x over range(1_000_000).")
    numbers = range(1_000_000)

    def by_loop() -> list[int]:
        return [square(x) for x in numbers]

    def by_pool() -> list[int]:
        with WorkerPool(n_jobs=workers) as pool:
            squares: list[int] = pool.map(square, numbers)
        return squares

    return compare(timed(by_loop), timed(by_pool))


# 4. An array


Floats = npt.NDArray[np.float64]


def wave(x: Floats) -> Floats:
    """Only what IEEE 754 rounds exactly, so that the answer is the same to the bit however the array is cut."""
    shifted = np.sqrt(x * x + 1.0)
    return shifted / (x + 2.0) - x / (shifted + 3.0)


def big_array(workers: int) -> bool:
    heading(4, "numpy over 100 MB of floats: the pool cuts the array and joins the results.")
    numbers = np.arange(12_500_000, dtype=np.float64)

    def by_pool() -> Any:
        with WorkerPool(n_jobs=workers) as pool:
            return pool.map(wave, numbers)

    return compare(timed(lambda: wave(numbers)), timed(by_pool), "numpy")
