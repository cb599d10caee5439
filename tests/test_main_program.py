"""The main program's names and classes with `use_dill`: one namespace in a worker, and the same types on both sides."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import PROCESSES, processes
from test_start_methods import run

from fastpool import SerializationError, WorkerPool

pytest.importorskip("dill", reason="dill is not installed: pip install fastpool[dill]")

WAYS = ["file", "command"]  # workers import the program; they cannot
not_fork = pytest.mark.parametrize("start_method", PROCESSES[1:])
either_way = pytest.mark.parametrize("how", WAYS)

HEAD = """
import threading
from functools import partial
from fastpool import SerializationError, WorkerPool

def pool(n_jobs=1, **options):
    return WorkerPool(n_jobs, start_method="METHOD", use_dill=True, **options)
"""


def lines_of(tmp_path: Path, start_method: str, how: str, definitions: str, body: str) -> list[str]:
    """What a guarded main program prints."""
    script = HEAD.replace("METHOD", start_method) + definitions
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    done: subprocess.CompletedProcess[str] = run(tmp_path, f"{script}\nif __name__ == '__main__':\n{indented}", how)
    assert done.stderr == ""
    return done.stdout.splitlines()


# ---------------------------------------------------------------- one namespace


STATEFUL = """
model = None
counter = 0

def init():
    global model, counter, only_in_workers
    model, counter, only_in_workers = 5, 100, 7

def read(x):
    return model + only_in_workers + x

def count(x):
    global counter
    counter += 1
    return counter

def finish():
    return counter

class Reader:
    def __init__(self, x):
        self.x = x
    def read(self, _=0):
        return self.x + only_in_workers + extra
    def __call__(self, _):
        return self.read()
"""


@pytest.mark.parametrize("how", [*WAYS, "module", "package"])
@not_fork
def test_functions_share_what_init_sets(tmp_path: Path, start_method: str, how: str) -> None:
    body = """
with pool() as p:
    print(p.map(read, [1, 2], worker_init=init))
    print(p.map(count, range(3), worker_init=init, worker_exit=finish), p.get_exit_results())
extra = 1000
with pool(keep_alive=True) as p:
    print(p.map(read, [1], worker_init=init))
    print(p.map(lambda x: x * model, [1, 2]))
    print(p.map(partial(lambda k, x: k + model + x, 1), [1]))
    print(p.map(Reader(1).read, [0]), p.map(Reader(2), [0]), p.map(lambda r: r.read(), [Reader(3)]))
    print(p.map(lambda f: f(), [lambda: model + only_in_workers]))
    print(p.map(count, [0]), p.map(lambda _: counter, [0]))
    extra = 2000
    print(p.map(lambda r: r.read(), [Reader(3)]), p.map(read, [1]))
    model = 50
    print(p.map(read, [1]))
with pool(shared_objects=Reader(4)) as p:
    print(p.map(lambda shared, x: shared.read(), [0], worker_init=lambda shared: init()))
print(model, counter, "only_in_workers" in globals())
"""
    assert lines_of(tmp_path, start_method, how, STATEFUL, body) == [
        "[13, 14]",
        "[101, 102, 103] [103]",
        "[13]",
        "[5, 10]",
        "[7]",
        "[1008] [1009] [1010]",
        "[12]",
        "[101] [101]",
        "[2010] [13]",
        "[58]",
        "[2011]",
        "50 0 False",
    ]


HELPERS = """
def even(n):
    return True if n == 0 else odd(n - 1)

def odd(n):
    return False if n == 0 else even(n - 1)

def make_counter():
    n = 0
    def step(_):
        nonlocal n
        n += 1
        return n
    return step

def make_factorial():
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)
    return factorial

def helper(x):
    return x + 1

def task(x):
    return [helper(y) for y in [x]][0]

one = {"n": 0}
other = [one]

def same(_):
    return other[0] is one

def where(_):
    return sorted(name for name in ("unused", "helper") if name in globals())

unused = threading.local  # what nobody refers to does not travel
"""


@either_way
@not_fork
def test_functions_of_every_kind(tmp_path: Path, start_method: str, how: str) -> None:
    body = """
unsendable = (x for x in ())
with pool(keep_alive=True) as p:
    print(p.map(even, [4, 5]), p.map(make_counter(), range(3), chunk_size=3), p.map(make_factorial(), [5]))
    print(p.map(same, [0]), p.map(task, [1]))
    def helper(x):  # as when a notebook's cell is run again
        return x + 2
    print(p.map(task, [1]))
    def task(x):
        return -helper(x)
    print(p.map(task, [1]))
    made = p.map(lambda k: lambda x: helper(x) * k, [3])[0]
    print(made(1))
"""
    assert lines_of(tmp_path, start_method, how, HELPERS, body) == [
        "[True, False] [1, 2, 3] [120]",
        "[True] [2]",
        "[3]",
        "[-3]",
        "9",
    ]


@not_fork
def test_a_namespace_that_is_no_module_s(start_method: str) -> None:
    namespace: dict[str, object] = {"__name__": "cells"}
    exec("offset = 1\ndef helper(x): return x + offset\ndef task(x): return helper(x)", namespace)
    with WorkerPool(1, start_method=start_method, use_dill=True, keep_alive=True) as pool:
        assert pool.map(namespace["task"], [1]) == [2]  # type: ignore[arg-type]
        namespace["offset"] = 2
        assert pool.map(namespace["task"], [1]) == [3]  # type: ignore[arg-type]


# ---------------------------------------------------------------- classes


TYPES = """
from typing import NamedTuple

class Bad(Exception):
    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code

class Worse(Bad):
    pass

class Th:
    class Inner:
        pass
    limit = 10
    def __init__(self, x):
        self.x = x
    def twin(self):
        return Th(self.x + limit())

class Sub(Th):
    pass

class Pair(NamedTuple):
    a: int
    b: int = 2

def limit():
    return Th.limit

def fail(x):
    raise (Bad if x % 2 else Worse)(x)
"""


@either_way
@pytest.mark.parametrize("start_method", PROCESSES)
def test_exceptions_of_the_program(tmp_path: Path, start_method: str, how: str) -> None:
    body = """
for x in (0, 1):
    with pool() as p:
        try:
            p.map(fail, [x])
        except Worse as error:
            print("Worse", error, error.code)
        except Bad as error:
            print("Bad", error, error.code)
with pool() as p:
    print([type(e) is Bad for e in p.map(lambda _: [Bad(1), ValueError(1)][0], [0, 1])])
def local():
    class Local(Exception):
        pass
    def raising(_):
        raise Local("from inside")
    return raising
with pool() as p:
    try:
        p.map(local(), [0])
    except Exception as error:
        print(type(error).__qualname__, error)
"""
    assert lines_of(tmp_path, start_method, how, TYPES, body) == [
        "Worse code 0 0",
        "Bad code 1 1",
        "[True, True]",
        "local.<locals>.Local from inside",
    ]


@either_way
@pytest.mark.parametrize("start_method", PROCESSES)
def test_types_are_the_same_on_both_sides(tmp_path: Path, start_method: str, how: str) -> None:
    body = """
def check(x):
    return isinstance(x, Th), type(x) is Sub, type(x.twin()) is Th, x.twin().x
with pool(keep_alive=True) as p:
    print([type(t[0]) is Th for t in p.map(lambda i: [Th(i)], [1, 2])])
    print(p.map(check, [Th(1), Sub(2)]))
    print(p.map(lambda x: (isinstance(x, Th), x.twin().x), [Th(1)]))
    back = p.map(lambda x: [x, Th.Inner(), Pair(1), Th], [Th.Inner()])[0]
    print([type(x) is Th.Inner for x in back[:2]], type(back[2]) is Pair, back[3] is Th)
    print(p.map(lambda pair: type(pair) is Pair and pair.b, [(Pair(1),)]))
"""
    assert lines_of(tmp_path, start_method, how, TYPES, body) == [
        "[True, True]",
        "[(True, False, True, 11), (True, True, True, 12)]",
        "[(True, 11)]",
        "[True, True] True True",
        "[2]",
    ]


@either_way
@pytest.mark.parametrize("start_method", PROCESSES)
def test_a_class_that_dill_cannot_send(tmp_path: Path, start_method: str, how: str) -> None:
    """It is no matter to workers that have it."""
    definitions = """
import enum

class Color(enum.Enum):
    RED = 1

def task(x):
    return x is Color.RED, Color.RED
"""
    body = """
with pool() as p:
    try:
        [(same, color)] = p.map(task, [Color.RED])
        print(same, color is Color.RED)
    except SerializationError as error:
        print(error)
"""
    [line] = lines_of(tmp_path, start_method, how, definitions, body)
    if start_method == "fork" or how == "file":
        assert line == "True True"
    else:
        assert "the worker has no class Color, which cannot be sent: " in line


@either_way
@pytest.mark.parametrize("start_method", PROCESSES)
def test_classes_that_workers_do_not_have_or_have_in_an_older_form(tmp_path: Path, start_method: str, how: str) -> None:
    body = """
with pool(keep_alive=True) as p:
    p.map(abs, [1])
    for name in ("old", "new"):
        class Late:
            what = name
            def __init__(self, x):
                self.x = x
            def get(self):
                return self.what, self.x
        exec(f"def say(self): return {name!r}", namespace := {})
        Late.say = namespace["say"]
        print(p.map(lambda t: (*t.get(), t.say(), type(t) is Late), [[Late(1)], [Late(2)]]))
        print({type(t) is Late for t in p.map(lambda t: t, [[Late(1)]])})
    Late.say = lambda self: "patched"
    print(p.map(lambda t: t.say(), [[Late(1)]]))
    def made_there(x):
        global There
        class There(tuple):
            pass
        return There([x])
    print(p.map(made_there, [3]))
"""
    expected = [
        "[('old', 1, 'old', True), ('old', 2, 'old', True)]",
        "{True}",
        "[('new', 1, 'new', True), ('new', 2, 'new', True)]",
        "{True}",
        "['patched']",
        "[(3,)]",
    ]
    assert lines_of(tmp_path, start_method, how, "", body) == expected


@either_way
@not_fork
def test_values_of_classes(tmp_path: Path, start_method: str, how: str) -> None:
    """They are names like others; of what cannot be sent a worker has its own."""
    definitions = """
class Config:
    rate = 1
    own = (x for x in ())

class Base:
    kinds = {}
    def __init_subclass__(cls):
        Base.kinds[cls.__name__] = cls

class Kind(Base):
    pass

def rate(_):
    return Config.rate

def init():
    Config.rate = 100

def kind(x):
    return type(x) is Base.kinds["Kind"]
"""
    body = """
if HOW == "command":
    del Config.own
Config.rate = 2
with pool(keep_alive=True) as p:
    print(p.map(rate, [0]))
    Config.rate = 3
    print(p.map(rate, [0]), p.map(lambda c: c().rate, [[Config]]))
with pool(keep_alive=True) as p:
    print(p.map(rate, [0], worker_init=init), p.map(lambda _: rate(0), [0]))
    try:
        print(p.map(kind, [Kind()]))
    except SerializationError as error:
        print("cannot be sent" in str(error))
""".replace("HOW", repr(how))
    kinds = "[True]" if how == "file" else "True"  # dill cannot make a class that has itself in it
    assert lines_of(tmp_path, start_method, how, definitions, body) == ["[2]", "[3] [3]", "[100] [100]", kinds]


# ---------------------------------------------------------------- what an error advises


def unsendable(_: int) -> object:
    return iter(i for i in range(3))


@processes
def test_dill_is_not_advised_to_those_who_have_it(start_method: str) -> None:
    options = {"n_jobs": 1, "start_method": start_method, "use_dill": True}
    with WorkerPool(**options) as pool:  # type: ignore[arg-type]
        for task, element in ((unsendable, 1), (abs, unsendable(0))):
            with pytest.raises(SerializationError) as caught:
                pool.map(task, [[element]])
            assert "use_dill" not in str(caught.value)
            assert "inside the worker" in str(caught.value)
        [failed] = pool.map(unsendable, [1], return_exceptions=True)
        assert "use_dill" not in str(failed)
    with WorkerPool(1, start_method=start_method) as pool, pytest.raises(SerializationError, match="use_dill=True"):
        pool.map(abs, [[unsendable(0)]])


@not_fork
def test_dill_is_not_advised_for_functions_either(start_method: str) -> None:
    generator = unsendable(0)
    with (
        WorkerPool(1, start_method=start_method, use_dill=True) as pool,
        pytest.raises(SerializationError, match="function cannot be sent") as caught,
    ):
        pool.map(lambda x: (generator, x), [1])
    assert "use_dill" not in str(caught.value)


@processes
@pytest.mark.parametrize("use_dill", [False, True])
def test_locks_belong_into_the_shared_objects(start_method: str, use_dill: bool) -> None:
    with WorkerPool(1, start_method=start_method, use_dill=use_dill) as pool:
        for element in (pool.ctx.Lock(), pool.ctx.Queue()):
            with pytest.raises(SerializationError, match="shared_objects") as caught:
                pool.map(os.fspath, [[element]])
            assert "use_dill" not in str(caught.value)
