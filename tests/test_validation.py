"""Every parameter of every public function, with wrong types and values: the error names the parameter, what was given
and what is allowed, and no worker was started."""

from __future__ import annotations

import inspect
import logging
from typing import Any, NamedTuple

import numpy
import pytest

import fastpool
from fastpool import WorkerPool

MAPS = ("map", "map_unordered", "imap", "imap_unordered")
FUNCTIONS = ("chunk_tasks", "make_single_arguments", "empty", "asshared", "cpu_count")


class Wrong(NamedTuple):
    """A value that is refused; the error has, besides the parameter's name, these words."""

    value: Any
    kind: type[Exception]
    words: tuple[str, ...]


def wrong_types(allowed: str, *values: Any) -> list[Wrong]:
    return [Wrong(value, TypeError, (allowed, type(value).__name__)) for value in values]


class Index:
    def __index__(self) -> int:
        return 0


FLAG = wrong_types("must be a bool", 1, 0, None, "yes", numpy.True_)
NO_COUNT = (1.0, "1", [1], True, 1 + 0j, numpy.array([1, 2]), int)
COUNT_FROM_1 = wrong_types("must be an int or None", *NO_COUNT) + [
    Wrong(0, ValueError, ("at least 1", "not 0")),
    Wrong(-(10**40), ValueError, ("at least 1", "a number of 133 bits")),
    Wrong(Index(), ValueError, ("at least 1", "not 0")),
]
COUNT_FROM_0 = wrong_types("must be an int or None", *NO_COUNT) + [Wrong(-1, ValueError, ("at least 0", "not -1"))]
FUNCTION = wrong_types("must be callable", 1, "abs", [abs])
WRONG_NAN = Wrong(float("nan"), ValueError, ("not nan",))
CHUNK_SIZE = wrong_types("must be an int, a float or None", "1", True, [1], 1j, numpy.array([1, 2]), int) + [
    Wrong(value, ValueError, ("at least 1 and finite", f"not {value}"))
    for value in (0, 0.5, -3, float("inf"), float("nan"))
]
ITERABLE = [
    *wrong_types("must be an iterable", 5, None, abs, numpy.float64(5), list),
    Wrong(numpy.array(5), TypeError, ("must have an axis", "no dimensions")),
]

POOL = {
    "n_jobs": [*COUNT_FROM_1, Wrong(10**9, ValueError, ("at most", "not 1000000000"))],
    "daemon": FLAG,
    "cpu_ids": [
        *wrong_types(
            "must be an int, a list of ints and lists of ints, or None", "0", 1.5, {0}, True, numpy.array([0, 1]), int
        ),
        Wrong([None], TypeError, ("list of ints", "NoneType")),
        Wrong(-1, ValueError, ("must not be negative", "-1")),
        Wrong([0, 0, 0], ValueError, ("one entry, or one for each of the 2 workers", "not 3")),
        Wrong([[]], ValueError, ("at least one core", "an empty list")),
        Wrong(10**6, ValueError, ("core that this process may use", "1000000")),
    ],
    "pass_worker_id": FLAG,
    "use_worker_state": FLAG,
    "start_method": [
        *wrong_types("must be a str", None, 1, b"fork"),
        Wrong("frok", ValueError, ("must be one of 'fork', 'spawn'", "not 'frok'")),
    ],
    "keep_alive": FLAG,
    "use_dill": FLAG,
    "enable_insights": FLAG,
    "order_tasks": FLAG,
    "memory_limit": COUNT_FROM_1,
}

SECONDS = [
    *wrong_types("must be an int, a float or None", "1", True, [1], numpy.array([1, 2]), int),
    *[Wrong(v, ValueError, ("must be more than 0 seconds", f"not {v}")) for v in (0, -1.5, float("nan"))],
]
MAP = {
    "func": [*FUNCTION, *wrong_types("must be callable", None)],
    "iterable_of_args": ITERABLE,
    "iterable_len": COUNT_FROM_0,
    "max_tasks_active": COUNT_FROM_1,
    "chunk_size": CHUNK_SIZE,
    "n_splits": COUNT_FROM_1,
    "worker_lifespan": COUNT_FROM_1,
    "worker_init": FUNCTION,
    "worker_exit": FUNCTION,
    "task_timeout": SECONDS,
    "worker_init_timeout": SECONDS,
    "worker_exit_timeout": SECONDS,
    "return_exceptions": FLAG,
    "retries": wrong_types("must be an int", *NO_COUNT, None) + [Wrong(-1, ValueError, ("at least 0", "not -1"))],
    "always_exit": FLAG,
}

LIST_MAP = {  # that returns a list
    "iterable_of_args": [Wrong(range(10**30), ValueError, ("give iterable_len", "more elements than a list"))],
}

ARRAY_MAP = {
    "concatenate_numpy_output": FLAG,
    "out": [
        *wrong_types("must be a numpy array or None", [1.0], 5),
        Wrong(numpy.zeros(3), ValueError, ("for maps over a numpy array", "not over a list")),
    ],
}

SETTERS = {
    "pass_on_worker_id": {"pass_on": FLAG},
    "set_use_worker_state": {"flag": FLAG},
    "set_keep_alive": {"flag": FLAG},
    "set_order_tasks": {"flag": FLAG},
}

APPLY = {
    "func": [*FUNCTION, *wrong_types("must be callable", None)],
    "kwargs": [
        *wrong_types("must be a dict or None", [("x", 1)], "x", 1),
        Wrong({1: 2}, TypeError, ("strings as keys", "int")),
    ],
    "callback": FUNCTION,
    "error_callback": FUNCTION,
    **{name: MAP[name] for name in MAP if name.startswith("worker_") and name != "worker_lifespan"},
    "task_timeout": MAP["task_timeout"],
}

METHODS = {
    **SETTERS,
    "apply": APPLY,
    "apply_async": APPLY,
    "stop_and_join": {"keep_alive": FLAG},
    "join": {"keep_alive": FLAG},
}

HELPERS = {
    "chunk_tasks": {
        "iterable": ITERABLE,
        "iterable_len": COUNT_FROM_0,
        "chunk_size": CHUNK_SIZE,
        "n_splits": COUNT_FROM_1,
    },
    "make_single_arguments": {"iterable": ITERABLE, "generator": FLAG},
    "empty": {
        "shape": [
            *wrong_types("must be an int or a sequence of ints", "3", None, 1.5, True, int),
            Wrong((2, "3"), TypeError, ("sequence of ints", "str")),
            Wrong((2, -1), ValueError, ("must not be negative", "-1")),
            Wrong((2**40,) * 3, ValueError, ("that a numpy array can have", "1099511627776")),
        ],
        "dtype": [
            Wrong("nope", TypeError, ("must be a data-type", "'nope'")),
            Wrong(object, TypeError, ("must not hold Python objects", "object")),
        ],
    },
    "asshared": {"array": [Wrong([object()], TypeError, ("must not hold Python objects", "object"))]},
    "cpu_count": {},
}

ANYTHING_GOES = {"shared_objects", "obj", "args"}
CHECKED_ELSEWHERE = {
    "progress_bar",
    "progress_bar_options",
    "progress_bar_style",
}


def tables_of(method: str) -> list[dict[str, list[Wrong]]]:
    return [MAP] + [LIST_MAP] * (method in ("map", "map_unordered")) + [ARRAY_MAP] * (method == "map")


def cases() -> list[Any]:
    found = [("WorkerPool", POOL), *METHODS.items(), *HELPERS.items()]
    found += [(method, table) for method in MAPS for table in tables_of(method)]
    return [
        pytest.param(where, parameter, wrongs, id=f"{where}-{parameter}")
        for where, table in found
        for parameter, wrongs in table.items()
    ]


def valid(where: str) -> dict[str, Any]:
    """Arguments without which the function cannot be called."""
    if where in MAPS:
        return {"func": abs, "iterable_of_args": [-1, 2]}
    if where in ("apply", "apply_async"):
        return {"func": abs, "args": -1}
    required = {"chunk_tasks": {"iterable": [], "n_splits": 1}, "make_single_arguments": {"iterable": []}}
    return required.get(where, {"n_jobs": 2} if where == "WorkerPool" else {"shape": 1} if where == "empty" else {})


@pytest.mark.parametrize(("where", "parameter", "wrongs"), cases())
def test_wrong(where: str, parameter: str, wrongs: list[Wrong]) -> None:
    pool = WorkerPool(2)
    owner = pool if hasattr(pool, where) else fastpool
    for case in wrongs:
        with pytest.raises(case.kind) as caught:
            getattr(owner, where)(**{**valid(where), parameter: case.value})
        assert type(caught.value) is case.kind, case
        assert [word for word in (parameter, *case.words) if word not in str(caught.value)] == [], case
    assert pool._supervisor._segment is None


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


def test_the_table_has_every_parameter_of_every_public_function() -> None:
    public = {name for name, member in vars(WorkerPool).items() if callable(member) and not name.startswith("_")}
    checked: dict[Any, set[str]] = {WorkerPool.__init__: set(POOL)}
    for name in public:
        tables = tables_of(name) if name in MAPS else [METHODS.get(name, {})]
        checked[getattr(WorkerPool, name)] = set().union(*tables)
    for name, table in HELPERS.items():
        checked[getattr(fastpool, name)] = set(table)
    for function, names in checked.items():
        assert names <= parameters(function), function
        assert parameters(function) - names <= ANYTHING_GOES | CHECKED_ELSEWHERE, function
    functions = {name for name in fastpool.__all__ if not inspect.isclass(getattr(fastpool, name))}
    assert functions == set(FUNCTIONS) == set(HELPERS)


@pytest.mark.parametrize("method", ["wait", "get"])
def test_timeouts_of_results(method: str) -> None:
    with WorkerPool(1) as pool:
        result = pool.apply_async(abs, -1)
        for case in [*wrong_types("must be an int, a float or None", "1", True, [1], numpy.array([1, 2])), WRONG_NAN]:
            with pytest.raises(case.kind) as caught:
                getattr(result, method)(case.value)
            assert [word for word in ("timeout", *case.words) if word not in str(caught.value)] == [], case
        assert result.get(numpy.float32(60)) == result.get(60) == 1
        assert result.get(-1) == 1


def test_what_does_not_go_together() -> None:
    pool = WorkerPool(2)
    array = numpy.zeros(4)
    together: list[tuple[dict[str, Any], str]] = [
        ({"out": array, "iterable_of_args": array, "concatenate_numpy_output": False}, "out and concatenate_numpy_out"),
        ({"out": array, "iterable_of_args": array, "return_exceptions": True}, "out and return_exceptions=True"),
        ({"out": numpy.broadcast_to(0.0, 4), "iterable_of_args": array}, "out must be writeable, not a read-only"),
    ]
    for given, message in together:
        with pytest.raises(ValueError, match=message):
            pool.map(**{**valid("map"), **given})
    assert pool._supervisor._segment is None


def test_the_smallest_that_is_right(caplog: pytest.LogCaptureFixture) -> None:
    """The table would be worth little if everything were refused."""
    caplog.set_level(logging.INFO, "fastpool")
    with WorkerPool(n_jobs=numpy.int64(1), memory_limit=1 << 20) as pool:
        options: dict[str, Any] = {name: numpy.int32(1) for name in ("max_tasks_active", "n_splits", "worker_lifespan")}
        assert pool.map(abs, [-1, 2], iterable_len=numpy.int8(1), chunk_size=numpy.float64(1), **options) == [1]
        assert pool.map(abs, [-1, 2], iterable_len=Index(), retries=Index()) == []  # type: ignore[arg-type]
    assert caplog.records == []
