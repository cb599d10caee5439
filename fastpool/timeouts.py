"""How long the user's functions may take, and what it means when one took longer."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, SupportsFloat, cast

from fastpool.errors import DamagedMemoryError, WorkerTimeoutError
from fastpool.functions import Functions, name_of
from fastpool.options import as_index, shorten

PHASES = {"running": "task", "initializing": "worker_init", "exiting": "worker_exit"}  # by the worker's state
MOST_SECONDS = 10**9  # as good as no limit


class Limits(NamedTuple):
    """Seconds that one call of each of a map's functions may take; None: any."""

    task: float | None = None
    worker_init: float | None = None
    worker_exit: float | None = None

    @property
    def ns(self) -> tuple[int, int, int]:
        """0: no limit."""
        task, worker_init, worker_exit = (
            0 if seconds is None else max(1, int(min(seconds, MOST_SECONDS) * 1e9)) for seconds in self
        )
        return task, worker_init, worker_exit


NO_LIMITS = Limits()


class Late(NamedTuple):
    """A function of the user's ran for longer than its limit: why its worker was killed.

    Attributes
    ----------
    phase : str
        ``"task"``, ``"worker_init"``, ``"worker_exit"``.
    function : str
    limit : float
        Seconds.
    """

    phase: str
    function: str
    limit: float

    def error(self, worker_id: int, pid: int, task: int | None) -> WorkerTimeoutError:
        """The exception that says so."""
        return WorkerTimeoutError(worker_id, pid, self.phase, self.function, self.limit, task)


def make_late(worker_id: int, state: str, functions: Functions, limits: Limits) -> Late:
    """What a worker in this state is late with.

    Raises
    ------
    DamagedMemoryError
        Nothing that has a limit.
    """
    phase = PHASES.get(state, "")
    limit = getattr(limits, phase, None)
    if limit is None:
        raise DamagedMemoryError(f"the time limit of worker {worker_id}")
    return Late(phase, name_of(functions[Limits._fields.index(phase)]), limit)


def check_seconds(name: str, value: Any) -> float | None:
    """An optional number of seconds, more than 0.

    Raises
    ------
    TypeError, ValueError
    """
    if value is None:
        return None
    seconds = value if isinstance(value, float) else as_index(value)
    if seconds is None:
        raise TypeError(f"{name} must be an int, a float or None, not {type(value).__name__}")
    if not seconds > 0:
        given = seconds if isinstance(seconds, float) else shorten(seconds)
        raise ValueError(f"{name} must be more than 0 seconds, not {given}")
    return seconds


def check_limits(task_timeout: Any, worker_init_timeout: Any, worker_exit_timeout: Any) -> Limits:
    """The limits of a call's functions, by the names of its parameters.

    Raises
    ------
    TypeError, ValueError
    """
    if task_timeout is worker_init_timeout is worker_exit_timeout is None:
        return NO_LIMITS
    return Limits(
        check_seconds("task_timeout", task_timeout),
        check_seconds("worker_init_timeout", worker_init_timeout),
        check_seconds("worker_exit_timeout", worker_exit_timeout),
    )


def check_wait(name: str, value: Any) -> float | None:
    """An optional number of seconds to wait; a negative one is like 0.

    Raises
    ------
    TypeError, ValueError
    """
    if value is None:
        return None
    wrong = f"{name} must be an int, a float or None, not {type(value).__name__}"
    if isinstance(value, bool) or not (isinstance(value, SupportsFloat) and hasattr(value, "__abs__")):
        raise TypeError(wrong)
    try:
        seconds = float(value)
    except OverflowError:  # an int too large for a float
        seconds = math.inf if cast(Any, value) > 0 else 0.0
    except TypeError as error:  # an array of several
        raise TypeError(wrong) from error
    if math.isnan(seconds):
        raise ValueError(f"{name} must be a number of seconds, not nan")
    return min(max(0.0, seconds), float(MOST_SECONDS))
