"""PNG plots: for each case a bar per peer; efficiency over the length of a task.

`python -m benchmarks.plots FILE DIR` draws what an earlier run wrote with `--json FILE`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .cases import BY_NAME, Case, Sweep
from .peers import PEERS, Fastpool, Loop
from .results import CaseResult, Timing, curve_of, how_many, metg
from .table import figure, granularity, milliseconds, peers_of, wrap

OURS, THEIRS, LINE = "#c2410c", "#94a3b8", "#334155"
COLORS = dict(
    zip((peer.name for peer in PEERS), ("", "#2563eb", "#0891b2", "#7c3aed", "#059669", "#a16207", OURS), strict=True)
)
SHARE = 0.5  # of the ideal speed, at which METG is taken


def draw(results: Mapping[str, Sequence[CaseResult]], folder: Path) -> Iterator[Path]:
    """Draw what was measured, one file a case, and yield the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in results.items():
        case = BY_NAME[name]
        chart = draw_sweep(case, found) if isinstance(case, Sweep) else draw_case(case, found[0])
        file = folder / f"{name}.png"
        chart.savefig(file, dpi=130)
        pyplot.close(chart)
        yield file


# One case: times relative to a reference, on a logarithmic axis; what is faster goes left, what is slower right


def draw_case(case: Case, result: CaseResult) -> Any:
    reference = (result.timing(Loop.name) if case.baseline else result.timing(Fastpool.name)) or result.timings[-1]
    bars = [timing for timing in reversed(result.timings) if timing.peer != Loop.name or case.baseline]
    chart, axes = pyplot.subplots(figsize=(9, 1.6 + 0.45 * len(bars)), layout="constrained")
    for place, timing in enumerate(bars):
        draw_bar(axes, place, timing, reference.median)
    axes.axvline(1, color=LINE, linewidth=1)
    axes.set_xscale("log")
    spread = [value / reference.median for timing in bars for value in (timing.low, timing.high)]
    axes.set_xlim(min(*spread, 1) / 1.6, max(*spread, 1) * 8)  # room for the labels on the right
    axes.set_yticks(range(len(bars)), [timing.peer for timing in bars])
    plain_ticks(axes.xaxis)
    runs = how_many([reference, *bars])
    axes.set_xlabel(f"time as a multiple of {reference.peer}'s, median of {runs}; whiskers: min and max")
    axes.set_title(wrap(f"{case.name}: {case.work}"), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return chart


def draw_bar(axes: Any, place: int, timing: Timing, reference: float) -> None:
    low, middle, high = timing.low / reference, timing.median / reference, timing.high / reference
    color = OURS if timing.peer == Fastpool.name else THEIRS
    axes.barh(place, middle - 1, left=1, height=0.6, color=color)
    axes.plot([low, high], [place, place], color=LINE, linewidth=1)
    label = f"{milliseconds(timing.median)}   {figure(middle)}x"
    axes.text(max(high, 1) * 1.1, place, label, va="center", fontsize=9)


# Efficiency over the length of a task


def draw_sweep(sweep: Sweep, points: Sequence[CaseResult]) -> Any:
    chart, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for peer in peers_of(points):
        curve = curve_of(points, peer)
        crossing = metg(curve, SHARE)
        if crossing is None:
            continue
        lengths, efficiencies = zip(*((1e6 * length, efficiency) for length, efficiency in curve), strict=True)
        width = 2.5 if peer == Fastpool.name else 1.5
        label = f"{peer}: METG {granularity(crossing)}"
        axes.plot(lengths, efficiencies, color=COLORS[peer], linewidth=width, marker=".", label=label)
        if not crossing.bound:
            axes.plot(
                1e6 * crossing.seconds, SHARE, color=COLORS[peer], marker="D", markeredgecolor="white", markersize=9
            )
    axes.axhline(SHARE, color=LINE, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    plain_ticks(axes.xaxis)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    axes.set_xlabel("length of a task in µs")
    axes.set_ylabel(f"efficiency: loop's time / {points[0].n_jobs} workers / time")
    axes.set_title(f"{sweep.work}; diamonds: METG(50 %)", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return chart


def plain_ticks(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())


def read_record(file: Path) -> dict[str, list[CaseResult]]:
    results = json.loads(file.read_text())["results"]
    return {name: [CaseResult.from_json(found) for found in case] for name, case in results.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description="Draw what was measured before.")
    parser.add_argument("record", type=Path, metavar="FILE", help="what `python -m benchmarks --json FILE` wrote")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the PNG files go")
    options = parser.parse_args()
    try:
        results = read_record(options.record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{options.record} is no record of a run: {type(error).__name__}: {error}")
    try:
        for file in draw(results, options.folder):
            print(file)
    except OSError as error:
        parser.error(f"nothing can be drawn into {options.folder}: {error}")


if __name__ == "__main__":
    main()
