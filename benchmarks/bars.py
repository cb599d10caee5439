"""The bars that fastpool has set itself: what must be how many times as fast as what, in which case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .peers import Fastpool, FastpoolBar, FastpoolInsights, Loop
from .results import CaseResult

INSIGHTS, PROGRESS = FastpoolInsights.name, FastpoolBar.name
LOOP, POOL, MPIRE, FASTPOOL = Loop.name, "mp.Pool", "mpire", Fastpool.name


@dataclass(frozen=True)
class Bar:
    """In `case` the time of `over`, as a multiple of the time of `under`, is at most or at least `limit`."""

    case: str
    over: str
    under: str
    limit: float
    at_most: bool = False
    per_worker: bool = False  # the multiple is divided by the number of workers: an efficiency

    @property
    def figure(self) -> str:
        return "efficiency" if self.per_worker else f"{self.over} / {self.under}"


@dataclass(frozen=True)
class Judged:
    bar: Bar
    value: float

    @property
    def met(self) -> bool:
        return self.value <= self.bar.limit if self.bar.at_most else self.value >= self.bar.limit

    def to_json(self) -> dict[str, Any]:
        bar = self.bar
        relation = "<=" if bar.at_most else ">="
        return {
            "case": bar.case,
            "figure": bar.figure,
            "value": self.value,
            "bar": f"{relation} {bar.limit:.3g}",
            "met": self.met,
        }


def at_most(case: str, limit: float, over: str = FASTPOOL, under: str = LOOP) -> Bar:
    return Bar(case, over, under, limit, at_most=True)


def faster(case: str, limit: float, peer: str = POOL) -> Bar:
    return Bar(case, peer, FASTPOOL, limit)


BARS: tuple[Bar, ...] = (
    at_most("start_stop", 0.6, under=POOL),
    faster("start_stop", 15, MPIRE),
    at_most("range_square", 0.8),
    faster("range_square", 3),
    faster("range_square", 50, MPIRE),
    at_most("float_list", 0.85),
    faster("float_list", 2.5),
    Bar("busy_1us", LOOP, FASTPOOL, 0.85, per_worker=True),
    at_most("watched_1us", 1.05, over=INSIGHTS, under=FASTPOOL),
    at_most("watched_1us", 1.02, over=PROGRESS, under=FASTPOOL),
    faster("small_dicts", 1.6),
    faster("small_tuples", 1.6),
    faster("alternating", 1),
    faster("strings_in", 2),
    at_most("results_1mb", 0.5),
    faster("results_1mb", 15),
    at_most("sqrt_shared", 0.5),
    faster("sqrt_shared", 30),
    faster("sqrt_shared", 30, MPIRE),
    at_most("sqrt_plain", 0.9),
    faster("sqrt_plain", 30),
    faster("sqrt_plain", 30, MPIRE),
    at_most("sqrt_later", 0.9),
    faster("sqrt_later", 30),
    faster("sqrt_later", 30, MPIRE),
    at_most("sqrt_first", 2.8),
    faster("sqrt_first", 12),
)


def judge(results: Sequence[CaseResult], bars: Sequence[Bar] = BARS) -> list[Judged]:
    """Each bar whose case and peers were measured."""
    by_case = {result.case: result for result in results}
    judged = []
    for bar in bars:
        result = by_case.get(bar.case)
        value = result.ratio(bar.over, bar.under) if result else None
        if result is not None and value is not None:
            judged.append(Judged(bar, value / result.n_jobs if bar.per_worker else value))
    return judged
