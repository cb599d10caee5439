"""The comparison of tallies can fail; and in a build that has them it does not, after every test."""

from __future__ import annotations

from typing import Any

import pytest
from tallies import wrongs

from fastpool import WorkerPool, _native


def whole() -> dict[str, Any]:
    """Of a pool of two whose first worker was killed in a record."""
    return {
        "heaps": [(9, 4, 5, 1), (3, 3, 0, 0), (7, 5, 2, 2)],
        "lanes": [(1, 20, 19, (3, 3, 2)), (0, 8, 8, (0, 0, 0))],
        "bell": (4, 8, 4),
        "silences": 0,
        "functions": False,
        "finished": False,
    }


def test_what_is_right() -> None:
    assert wrongs(whole()) == []


def ended() -> dict[str, Any]:
    tally = {**whole(), "finished": True}
    tally["lanes"] = [(0, 20, 20, (3, 3, 3)), (0, 8, 8, (0, 0, 0))]
    return tally


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("heaps", [(9, 4, 4, 1), (3, 3, 0, 0), (7, 5, 2, 2)]),
        ("heaps", [(9, 4, 5, 1), (3, 3, 1, 0), (7, 5, 2, 2)]),
        ("heaps", [(9, 4, 5, 1), (3, 3, 0, 0), (7, 5, 2, 1)]),
        ("lanes", [(0, 20, 19, (3, 3, 3)), (0, 8, 8, (0, 0, 0))]),
        ("lanes", [(0, 20, 20, (3, 4, 3)), (0, 8, 8, (0, 0, 0))]),
        ("lanes", [(0, 20, 20, (3, 2, 3)), (0, 8, 8, (0, 0, 0))]),
        ("bell", (4, 9, 4)),
        ("functions", True),
        ("damaged", True),
    ],
)
def test_what_is_wrong(key: str, value: Any) -> None:
    assert wrongs(ended()) == []
    assert len(wrongs({**ended(), key: value})) == 1


@pytest.mark.skipif(_native.tallies is None, reason="a build without tallies")
def test_a_pool_is_tallied() -> None:
    assert _native.tallies is not None
    before = len(_native.tallies)
    with WorkerPool(n_jobs=2) as pool:
        pool.map(str, range(1000))
    [tally] = _native.tallies[before:]
    assert sum(opened for _, opened, _, _ in tally["lanes"]) > 0
