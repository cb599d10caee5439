"""How results are shown: a table a case, no wider than 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .measure import CaseResult, Timing
from .peers import Fastpool, Loop

HEADINGS = ("peer", "runs", "median", "min - max", "loop / peer", "efficiency", "peer / fastpool")
WIDTHS = (10, 5, 11, 25, 12, 11, 16)


def render_environment(environment: dict[str, Any], n_jobs: int) -> str:
    peers = ", ".join(f"{name} {version}" for name, version in environment["peers"].items())
    return (
        f"{environment['model']}, {environment['cpus_usable']} of {environment['cpu_count']} cores usable, "
        f"{n_jobs} workers\n"
        f"Python {environment['python']}, numpy {environment['numpy']}, {peers}"
    )


def render_case(result: CaseResult) -> str:
    title = f"{result.case.name}: {result.case.work}; {result.n_tasks:,} tasks, {result.n_jobs} workers"
    rows = [HEADINGS, *(row(result, timing) for timing in result.timings)]
    return "\n".join([title, *(line(cells) for cells in rows), *footnotes(result)])


def row(result: CaseResult, timing: Timing) -> tuple[str, ...]:
    against_loop = timing.peer != Loop.name and result.case.parallel
    against_fastpool = timing.peer != Fastpool.name and (timing.peer != Loop.name or result.case.parallel)
    return (
        timing.peer,
        str(len(timing.seconds)),
        milliseconds(timing.median),
        f"{milliseconds(timing.low)} - {milliseconds(timing.high)}",
        times(result.ratio(Loop.name, timing.peer)) if against_loop else "-",
        percent(result.efficiency(timing.peer)) if against_loop else "-",
        times(result.ratio(timing.peer, Fastpool.name)) if against_fastpool else "-",
    )


def line(cells: Sequence[str]) -> str:
    name, *others = cells
    aligned = [name.ljust(WIDTHS[0]), *map(str.rjust, others, WIDTHS[1:])]
    return "  " + "".join(aligned)


def footnotes(result: CaseResult) -> list[str]:
    most = max(len(timing.seconds) for timing in result.timings)
    fewer = [timing for timing in result.timings if len(timing.seconds) < most]
    notes = [f"  {timing.peer}: {len(timing.seconds)} runs, not {most}: it is slow" for timing in fewer]
    if not result.case.parallel:
        notes.append("  the loop starts nothing, so no ratio against it is given")
    return notes


def milliseconds(seconds: float) -> str:
    value = seconds * 1000
    digits = 1 if value >= 10 else 2 if value >= 1 else 4
    return f"{value:,.{digits}f} ms"


def times(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:,.2f}x" if ratio < 100 else f"{ratio:,.0f}x"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
