"""The soak, for a few seconds: `python -m benchmarks.soak --minutes 30` is the real one."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.soak import Plan, Soak, equal, growth, main


@pytest.mark.timeout(120)
def test_a_short_soak(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--minutes", "0.1", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\d+ maps, \d+ pools", out)
    assert "WRONG" not in out


class Pretended:
    """A pool whose maps come to this."""

    def __init__(self, outcome: Callable[[], Any]) -> None:
        self.outcome = outcome

    def map(self, *_: Any) -> Any:
        return self.outcome()

    imap = imap_unordered = lambda self, *_: (x for x in self.outcome())


def check(plan: Plan, outcome: Callable[[], Any]) -> str | None:
    return plan.check(Pretended(outcome))  # type: ignore[arg-type]


def test_wrong_outcomes_are_told() -> None:
    plan = Plan(abs, lambda: [1], {}, [1])
    assert check(plan, lambda: [1]) is None
    assert check(plan, lambda: [2]) == "the results are wrong"
    assert check(plan, lambda: [1.0]) == "the results are wrong"
    assert check(plan, lambda: int("x")) == "ValueError: invalid literal for int() with base 10: 'x'"
    plan = Plan(abs, lambda: [1], {}, KeyError)
    assert check(plan, lambda: [1]) == "no KeyError"
    assert check(plan, lambda: {}[0]) is None  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "most", "results", "right"),
    [
        ("imap", None, [1, 2, 3], True),
        ("imap", None, [1, 3, 2], False),
        ("imap", 2, [1, 2, 3], True),
        ("imap", 2, [2, 1], False),
        ("imap", 2, [1], False),
        ("imap_unordered", None, [3, 1, 2], True),
        ("imap_unordered", None, [3, 1, 1], False),
        ("imap_unordered", None, [3, 1], False),
        ("imap_unordered", 2, [3, 1, 2], True),
        ("imap_unordered", 2, [3, 3], False),
        ("imap_unordered", 2, [3, 1.0], False),
    ],
)
def test_lazy_maps_are_checked(method: str, most: int | None, results: list[Any], right: bool) -> None:
    plan = Plan(abs, lambda: [1], {}, [1, 2, 3], method, most)
    assert check(plan, lambda: results) == (None if right else "the results are wrong")


def test_equal_is_about_types_too() -> None:
    assert equal([1, "a"], [1, "a"])
    assert not equal([True], [1])
    assert not equal((1,), [1])
    assert equal([KeyError(1)], [KeyError(2)])


def test_growth_is_seen() -> None:
    steady = {"memory": 100, "shared memory": 0, "descriptors": 5, "threads": 1, "processes": 0}
    samples = [steady] * 20 + [steady | {"descriptors": 9}] * 5
    assert growth(samples) == dict.fromkeys(steady, 0) | {"descriptors": 4}


def test_a_round_runs_maps() -> None:
    soak = Soak(random.Random(3))
    soak.round()
    assert soak.counts["pools"] == 1
    assert soak.counts["maps"] >= 1
    assert not soak.faults
