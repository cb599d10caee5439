"""The soak, for a few seconds: `python -m benchmarks.soak --minutes 30` is the real one."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastpool
from benchmarks.soak import Book, Plan, Soak, arrive, equal, growth, leave, main

ROOT = Path(fastpool.__file__).parent.parent


@pytest.mark.timeout(120)
def test_a_short_soak() -> None:
    """In a process of its own: what other tests have left of their memory is used again now and then."""
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.1", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"\d+ maps, \d+ pools", done.stdout)
    assert "WRONG" not in done.stdout


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


def test_an_orphan_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A process whose parent has ended is no child that multiprocessing knows."""
    orphans: list[int] = []

    def leave_one(soak: Soak) -> None:
        if not orphans:
            script = "sleep 100 > /dev/null 2>&1 & echo $!"
            orphans.append(int(subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout))
        soak.counts["pools"] += 1

    monkeypatch.setattr(Soak, "round", leave_one)
    try:
        assert main(["--minutes", "0.001"]) == 1
    finally:
        os.kill(orphans[0], signal.SIGKILL)
        os.waitpid(orphans[0], 0)
    assert f"WRONG: process {orphans[0]} is left: sleep 100" in capsys.readouterr().out


def test_exit_results_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "book"
    path.write_text("")
    book = Book(str(path))
    arrive(book.path)
    name = leave()
    path.write_text(f"{name}\nanother\n")
    assert book.look([name], False) is None
    assert book.look(["another"], True) is None
    assert book.look(["another"], True) is None  # nobody has come since
    path.write_text(f"{name}\nanother\nlate\n")
    book.whole = False
    assert book.look([], True) is None
    path.write_text(f"{name}\nanother\nlate\nlater\n")
    assert book.look([], False) is None
    assert book.look(["another"], True) == "1 workers have no exit result"
    assert book.look([name, name], False) == "worker_exit ran twice in a worker"
    assert book.look(["nobody"], False) == "worker_exit ran without worker_init"
    with pytest.raises(AttributeError):
        leave()


def test_a_worker_comes_up_once(tmp_path: Path) -> None:
    arrive(str(tmp_path / "book"))
    with pytest.raises(RuntimeError, match="ran twice"):
        arrive(str(tmp_path / "book"))
    leave()
