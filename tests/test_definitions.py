"""Kept workers: which function they run when one was defined again, and when they are left alone."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from fastpool import WorkerPool
from fastpool.definition import Definition

REDEFINED = {
    "function": ("def t(x): return {0!r}", "t"),
    "wrapped": ("@wrapping\ndef t(x): return {0!r}", "t"),
    "cached": ("@functools.lru_cache\ndef t(x): return {0!r}", "t"),
    "single dispatch": ("@functools.singledispatch\ndef t(x): return {0!r}", "t"),
    "another method of a callable object": (
        "class K:\n def __call__(self, x): return self.help()\n def help(self): return {0!r}\nt = K()",
        "t",
    ),
    "another method of a bound method's class": (
        "class K:\n def run(self, x): return self.help()\n @staticmethod\n def help(): return {0!r}\nt = K().run",
        "t",
    ),
    "method of a base class": (
        "class B:\n def run(self, x): return {0!r}\nclass K(B): pass\nt = K().run",
        "t",
    ),
    "__new__": ("class K:\n def __new__(cls, x): return {0!r}\nt = K", "t"),
    "argument of a partial": (
        "def f(x): return {0!r}\ndef apply(f, x): return f(x)\nt = functools.partial(apply, f)",
        "t",
    ),
    "helper": ("def help(): return {0!r}\ndef t(x): return help()", "t"),
    "helper of a helper, in a comprehension": (
        "def two(): return {0!r}\ndef one(): return [two() for _ in range(1)][0]\ndef t(x): return one()",
        "t",
    ),
    "default": ("def t(x, y={0!r}): return y", "t"),
    "default that can change": ("def t(x, y=[{0!r}]): return y[0]", "t"),
    "keyword default": ("def t(x, *, y=({0!r}, 1)): return y[0]", "t"),
}
PRELUDE = """
import functools
def wrapping(f):
    @functools.wraps(f)
    def wrapper(*args): return f(*args)
    return wrapper
"""


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """A module whose code is run again, as a notebook's cells are."""
    module = types.ModuleType("cells")
    sys.modules["cells"] = module
    exec(PRELUDE, vars(module))
    yield module
    del sys.modules["cells"]


@pytest.mark.parametrize("which", REDEFINED)
def test_what_was_defined_again_runs_in_its_new_form(which: str, module: types.ModuleType) -> None:
    source, name = REDEFINED[which]
    with WorkerPool(n_jobs=1, keep_alive=True) as pool:
        for text in ("old", "new", "newer", "old"):
            exec(source.format(text), vars(module))
            assert pool.map(vars(module)[name], [1]) == [text]


def test_code_that_was_replaced_in_place(module: types.ModuleType) -> None:
    exec("def t(x): return 'old'\ndef u(x): return 'new'", vars(module))
    with WorkerPool(n_jobs=1, keep_alive=True) as pool:
        assert pool.map(module.t, [1]) == ["old"]
        module.t.__code__ = module.u.__code__
        assert pool.map(module.t, [1]) == ["new"]


@pytest.mark.parametrize("which", REDEFINED)
def test_what_was_defined_again_in_the_same_way_is_the_same(which: str, module: types.ModuleType) -> None:
    source, name = REDEFINED[which]
    exec(source.format("same"), vars(module))
    first = Definition(vars(module)[name])
    assert first.is_current
    exec(source.format("same"), vars(module))
    assert Definition(vars(module)[name]).digest == first.digest
    exec(source.format("other"), vars(module))
    if "can change" not in which:
        assert Definition(vars(module)[name]).digest != first.digest


# ---------------------------------------------------------------- workers that are left alone


def count(worker_state: dict[str, int], x: int = 0, cache: dict[int, int] = {}) -> int:  # noqa: B006
    cache[x] = 1
    worker_state["n"] = worker_state.get("n", 0) + 1
    return worker_state["n"]


def count_too(worker_state: dict[str, int], x: int) -> int:
    return count(worker_state, x)


class Locked:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, worker_state: dict[str, int], x: int) -> int:
        with self.lock:
            return count(worker_state, x)


def with_attribute(worker_state: dict[str, int], x: int) -> int:
    return count(worker_state, x)


with_attribute.note = threading.Lock()  # type: ignore[attr-defined]


def make_closure(value: int) -> Any:
    return lambda worker_state, x: count(worker_state, x) + value


@pytest.mark.parametrize(
    "function",
    [
        count,
        make_closure(0),
        lambda worker_state, x, y=threading.Lock(): count(worker_state, x),  # noqa: B008
        partial(make_closure(0)),
        with_attribute,
        Locked(),
        partial(count, x=1),
    ],
    ids=["function", "closure", "lambda with a default", "partial of a lambda", "attribute", "object", "partial"],
)
def test_the_same_function_finds_its_workers_again(function: Any) -> None:
    elements: list[Any] = [{}] if isinstance(function, partial) and function.keywords else [1]
    with WorkerPool(n_jobs=1, keep_alive=True, use_worker_state=True) as pool:
        assert [pool.map(function, elements)[0] for _ in range(4)] == [1, 2, 3, 4]


def test_functions_in_turn_find_the_same_workers() -> None:
    with WorkerPool(n_jobs=1, keep_alive=True, use_worker_state=True) as pool:
        assert [pool.map(function, [n])[0] for n in range(3) for function in (count, count_too)] == [1, 2, 3, 4, 5, 6]


def test_a_closure_over_something_else_is_another() -> None:
    with WorkerPool(n_jobs=1, keep_alive=True, use_worker_state=True) as pool:
        assert pool.map(make_closure(100), [1]) == [101]
        assert pool.map(make_closure(200), [1]) == [201]
