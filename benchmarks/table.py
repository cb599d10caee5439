"""How results are shown on a terminal: no line is wider than 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from .bars import Judged
from .cases import Case, Sweep
from .measure import HOPELESS
from .peers import Fastpool, Loop
from .results import CaseResult, Metg, Timing, curve_of, metg

COLUMNS = 100

HEADINGS = ("peer", "runs", "median", "min - max", "loop / peer", "efficiency", "peer / fastpool")
WIDTHS = (10, 5, 13, 25, 14, 12, 17)


def render_environment(environment: dict[str, Any], n_jobs: int) -> str:
    peers = ", ".join(f"{name} {version}" for name, version in environment["peers"].items())
    machine = (
        f"{environment['model']}, {environment['cpus_usable']} of {environment['cpu_count']} cores usable, "
        f"{environment['memory'] / 2**30:.0f} GB, {environment['system']}, {n_jobs} workers"
    )
    versions = f"Python {environment['python']}, numpy {environment['numpy']}, {peers}"
    return "\n".join(map(wrap, (machine, versions)))


def render(case: Case | Sweep, results: Sequence[CaseResult]) -> str:
    if isinstance(case, Sweep):
        return render_sweep(case, results)
    [result] = results
    return render_case(case, result)


# One case


def render_case(case: Case, result: CaseResult) -> str:
    things = "items" if case.array else "tasks"
    title = wrap(f"{case.name}: {case.work}; {result.n_tasks:,} {things}, {result.n_jobs} workers")
    rows = [HEADINGS, *(row(case, result, timing) for timing in result.timings)]
    return "\n".join([title, *(line(cells, WIDTHS) for cells in rows), *footnotes(case, result)])


def row(case: Case, result: CaseResult, timing: Timing) -> tuple[str, ...]:
    is_loop, parallel = timing.peer == Loop.name, case.baseline is not None
    against_fastpool = timing.peer != Fastpool.name and (parallel or not is_loop)
    return (
        timing.peer,
        str(len(timing.seconds)),
        milliseconds(timing.median),
        f"{milliseconds(timing.low)} - {milliseconds(timing.high)}",
        times(result.ratio(Loop.name, timing.peer)) if parallel and not is_loop else "-",
        percent(result.efficiency(timing.peer)) if parallel and not is_loop else "-",
        times(result.ratio(timing.peer, Fastpool.name)) if against_fastpool else "-",
    )


def footnotes(case: Case, result: CaseResult) -> list[str]:
    notes = []
    if slow := slow_peers(result.timings):
        notes.append(slow)
    if case.baseline is None:
        notes.append("the loop starts nothing, so no ratio against it is given")
    else:
        notes.append(f"loop: {case.baseline}")
    return [wrap(note, "  ") for note in notes]


def slow_peers(timings: Sequence[Timing]) -> str:
    most = max((len(timing.seconds) for timing in timings), default=0)
    fewer = [timing.peer for timing in timings if len(timing.seconds) < most]
    return f"fewer runs than {most}, being slow: {', '.join(fewer)}" if fewer else ""


# Efficiency over the length of a task


def render_sweep(sweep: Sweep, points: Sequence[CaseResult]) -> str:
    title = wrap(f"{sweep.name}: {sweep.work}; {points[0].n_jobs} workers")
    widths = (10, *(7 for _ in points), 11)
    headings = ("µs", *(microseconds(point.task_seconds) for point in points), "METG(50 %)")
    rows = [headings, *(sweep_row(points, peer) for peer in peers_of(points))]
    notes = []
    if any("-" in cells for cells in rows[1:]):
        notes.append(f"- : not measured, being below {HOPELESS:.0%} already at longer tasks")
    if slow := slow_peers(points[-1].timings):
        notes.append(slow)
    return "\n".join([title, *(line(cells, widths) for cells in rows), *(wrap(note, "  ") for note in notes)])


def peers_of(points: Sequence[CaseResult]) -> list[str]:
    return [timing.peer for timing in points[-1].timings if timing.peer != Loop.name]


def sweep_row(points: Sequence[CaseResult], peer: str) -> tuple[str, ...]:
    efficiencies = (percent(point.efficiency(peer)) for point in points)
    return (peer, *efficiencies, granularity(metg(curve_of(points, peer))))


def granularity(found: Metg | None) -> str:
    return "-" if found is None else f"{found.bound} {microseconds(found.seconds)} µs".strip()


# The bars


def render_bars(judged: Sequence[Judged], quick: bool) -> str:
    widths = (14, 22, 12, 12, 10)
    rows = [("case", "figure", "measured", "bar", "")]
    for record in (one.to_json() for one in judged):
        verdict = "met" if record["met"] else "MISSED"
        rows.append((record["case"], record["figure"], figure(record["value"]), record["bar"], verdict))
    title = "The bars: medians of this run" + ("; they are meant for the full sizes, not for --quick" if quick else "")
    return "\n".join([title, *(line(cells, widths) for cells in rows)])


# Cells


def wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, COLUMNS, initial_indent=indent, subsequent_indent=indent or "  ")


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *others = cells
    aligned = [name.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
    return "  " + "".join(aligned).rstrip()


def milliseconds(seconds: float) -> str:
    return f"{figure(seconds * 1000)} ms"


def microseconds(seconds: float) -> str:
    return figure(seconds * 1e6, 2)


def figure(value: float, digits: int = 3) -> str:
    """With so many digits that say something, and never fewer than the integer has."""
    places = 0
    while places < 5 and value * 10**places < 10 ** (digits - 1):
        places += 1
    return f"{value:,.{places}f}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{figure(ratio)}x"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
