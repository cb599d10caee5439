"""What the workers run: functions of a module, so that every peer can send them, whatever way it starts its workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Function = Callable[[Any], Any]
MEGABYTE = 1 << 20


def shortest(x: int) -> int:
    return (x * 5 + 3) & 1023


def square(x: int) -> int:
    return x * x


def halve_and_add(x: float) -> float:
    return x * 0.5 + 1.0


def length(text: str) -> int:
    return len(text)


def small_dict(x: int) -> dict[str, Any]:
    return {"id": x, "half": x * 0.5, "even": x % 2 == 0, "kind": "row"}


def small_tuple(x: int) -> tuple[int, float, str]:
    return x, x * 0.5, str(x)


def alternate(x: int) -> int | float | str | None:
    """An int, a float, None and a str in turn."""
    turn = x % 4
    return x if turn == 0 else x * 0.5 if turn == 1 else None if turn == 2 else str(x)


def megabyte(x: int) -> npt.NDArray[np.float64]:
    return np.full(MEGABYTE // 8, x, dtype=np.float64)


def busy(turns: int, x: int) -> int:
    for _ in range(turns):
        x ^= 1
    return x


# Tasks of a given length


def seconds_per_call(function: Function, n_calls: int = 5_000, repeats: int = 30) -> float:
    """The least of many short measurements: one at least should be undisturbed."""

    def measured() -> float:
        start = time.perf_counter()
        [function(x) for x in range(n_calls)]
        return (time.perf_counter() - start) / n_calls

    return min(measured() for _ in range(repeats))


def seconds_per_turn(low: int = 10, high: int = 110) -> tuple[float, float]:
    """What a call of `busy` takes without any turn, and what each turn adds."""
    at_low, at_high = seconds_per_call(partial(busy, low)), seconds_per_call(partial(busy, high))
    per_turn = (at_high - at_low) / (high - low)
    return at_low - low * per_turn, per_turn


def busy_for(*targets: float) -> Iterator[Function]:
    """For each target (in seconds) a function of one argument that takes about that long in a list comprehension."""
    call, per_turn = seconds_per_turn()
    for target in targets:
        turns = max(0, round((target - call) / per_turn))
        yield partial(busy, turns) if target > 0.7 * call else shortest
