"""`python -m benchmarks.counts`: the figures that hold still from run to run, each beside its bar.

Each count is taken in a child process of its own, so that nothing else is in it:

    syscalls     system calls per task in steady state, of the parent and its workers: strace counts one run
                 with N tasks and one with 2 N, and the difference belongs to N tasks
    descriptors  what a pool of ten workers adds to the parent's open file descriptors
    threads      what a plain map adds to the parent's threads, seen by its workers while it runs
    memory       what the pool's peak grows by, results aside, when ten times as many items stream through map
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import functions
from .machine import environment
from .peers import Fastpool

NOT_RUN = 77  # exit status: no bar was missed, but a count could not be taken
MIB = 1 << 20

busy = partial(functions.busy, 32)  # about 1 µs


@dataclass(frozen=True)
class Count:
    """A figure and its bar. `figure` is None where it could not be taken; `note` then says why."""

    name: str
    figure: float | None
    bar: float
    strict: bool  # the figure must be below the bar, not at it
    unit: str
    note: str

    @property
    def met(self) -> bool:
        if self.figure is None:
            return False
        return self.figure < self.bar if self.strict else self.figure <= self.bar


@dataclass(frozen=True)
class Sizes:
    """How much work the counts are taken over."""

    syscall_tasks: int = 200_000
    few_items: int = 1_000_000
    many_items: int = 10_000_000


QUICK = Sizes(syscall_tasks=100_000, few_items=200_000, many_items=2_000_000)


# In the parent: the counts


def count_syscalls(sizes: Sizes) -> Count:
    def count(figure: float | None, note: str) -> Count:
        return Count("syscalls", figure, 0.001, True, "per task", note)

    if not shutil.which("strace"):
        return count(None, "strace is missing (apt-get install strace)")
    n_tasks = sizes.syscall_tasks
    try:
        fewer = traced_calls("syscalls", n_tasks)
        more = traced_calls("syscalls", 2 * n_tasks)
    except (subprocess.CalledProcessError, NoSummary) as error:
        return count(None, f"strace cannot trace here: {error}")
    figure = (more - fewer) / n_tasks
    return count(figure, f"{more:,} calls with {2 * n_tasks:,} tasks, {fewer:,} with {n_tasks:,}")


class NoSummary(Exception):
    """strace wrote no totals."""


def traced_calls(probe: str, *arguments: int) -> int:
    """All system calls of a probe, its workers included."""
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder, "summary")
        run_probe(probe, *arguments, wrapper=("strace", "-f", "-c", "-o", str(summary)))
        return total_calls(summary.read_text())


def total_calls(summary: str) -> int:
    """From the last line of `strace -c`: percentage, seconds, µs per call, calls, perhaps errors, 'total'."""
    for line in reversed(summary.splitlines()):
        cells = line.split()
        if cells and cells[-1] == "total":
            return int(cells[3])
    raise NoSummary("its summary has no total")


def count_descriptors(sizes: Sizes) -> Count:
    found = run_probe("descriptors")
    note = f"{found['before']} before the pool, {found['with_pool']} with it"
    return Count("descriptors", found["with_pool"] - found["before"], 30, False, "for 10 workers", note)


def count_threads(sizes: Sizes) -> Count:
    found = run_probe("threads")
    note = f"{found['before']} before the map, at most {found['during']} while it ran"
    return Count("threads", found["during"] - found["before"], 0, False, "in a plain map", note)


def count_memory(sizes: Sizes) -> Count:
    """The bar allows a hundredth of what the items of the long run would take if they were all held."""
    few = run_probe("memory", sizes.few_items)
    many = run_probe("memory", sizes.many_items)
    grown = many["peak"] - few["peak"] - (many["results"] - few["results"])
    note = (
        f"peaks of {few['peak'] / MIB:.0f} and {many['peak'] / MIB:.0f} MiB, of them results "
        f"{few['results'] / MIB:.0f} and {many['results'] / MIB:.0f}; "
        f"{sizes.few_items:,} and {sizes.many_items:,} items"
    )
    return Count("memory", grown / MIB, 16, False, "MiB more", note)


COUNTS: dict[str, Callable[[Sizes], Count]] = {
    "syscalls": count_syscalls,
    "descriptors": count_descriptors,
    "threads": count_threads,
    "memory": count_memory,
}


def run_probe(probe: str, *arguments: int, wrapper: Sequence[str] = ()) -> dict[str, Any]:
    """Run one probe in a process of its own and read the line of JSON it prints."""
    command = [*wrapper, sys.executable, "-m", "benchmarks.counts", "--probe", probe, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# In the child: the probes


def probe_syscalls(n_tasks: int) -> dict[str, Any]:
    """What is counted grows with the number of tasks only by the tasks: the pool is warm before the map."""
    from fastpool import WorkerPool

    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        pool.map(busy, range(10_000))
        done = len(pool.map(busy, range(n_tasks)))
    return {"tasks": done}


def probe_descriptors() -> dict[str, Any]:
    from fastpool import WorkerPool

    before = entries("/proc/self/fd")
    with WorkerPool(n_jobs=10, keep_alive=True) as pool:
        pool.map(functions.square, range(1000))
        return {"before": before, "with_pool": entries("/proc/self/fd")}


def probe_threads() -> dict[str, Any]:
    from fastpool import WorkerPool

    before = entries("/proc/self/task")
    with WorkerPool(n_jobs=2) as pool:
        return {"before": before, "during": max(pool.map(threads_of, [os.getpid()] * 1000))}


def threads_of(pid: int) -> int:
    return entries(f"/proc/{pid}/task")


def entries(folder: str) -> int:
    return len(os.listdir(folder))


def probe_memory(n_items: int) -> dict[str, Any]:
    """Results are True and False, so that all they take is the list itself."""
    from fastpool import WorkerPool

    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(
            is_even, stream(n_items), iterable_len=n_items, max_tasks_active=100_000, worker_exit=peak_memory
        )
        peaks = pool.get_exit_results()
    if sum(results) != n_items // 2:
        raise AssertionError("the streamed results are wrong")
    return {"peak": peak_memory() + sum(peaks), "results": sys.getsizeof(results)}


def stream(n_items: int) -> Iterator[int]:
    yield from range(n_items)


def is_even(x: int) -> bool:
    return x % 2 == 0


def peak_memory() -> int:
    """The peak resident size of this process, in bytes. Pages shared with others count too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "syscalls": probe_syscalls,
    "descriptors": probe_descriptors,
    "threads": probe_threads,
    "memory": probe_memory,
}


# The command


def render(count: Count) -> str:
    figure = "-" if count.figure is None else f"{count.figure:,.6g}"
    bar = f"{'<' if count.strict else '<='} {count.bar:g}"
    verdict = "met" if count.met else "MISSED" if count.figure is not None else "NOT RUN"
    return f"{count.name:12}{figure:>12}  {count.unit:15}bar {bar:9}{verdict}\n{'':12}({count.note})"


def exit_status(counts: Sequence[Count]) -> int:
    if any(count.figure is not None and not count.met for count in counts):
        return 1
    return NOT_RUN if any(count.figure is None for count in counts) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description="What holds still.")
    parser.add_argument("--quick", action="store_true", help="fewer tasks and items")
    parser.add_argument("--count", action="append", choices=list(COUNTS), help="only this one; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--probe", nargs="+", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.probe:
        name, *sizes = options.probe
        print(json.dumps(PROBES[name](*map(int, sizes))))
        return 0
    counts = []
    for name in options.count or COUNTS:
        counts.append(COUNTS[name](QUICK if options.quick else Sizes()))
        print(render(counts[-1]), flush=True)
    if options.json:
        record = {"environment": environment([Fastpool]), "counts": [asdict(count) for count in counts]}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return exit_status(counts)


if __name__ == "__main__":
    sys.exit(main())
