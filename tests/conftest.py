"""Around every test: nothing may be left behind. And which tests are long."""

from __future__ import annotations

import faulthandler
import inspect
import multiprocessing.dummy
import os
import shutil
import signal
import zlib

# A BLAS with threads of its own starts them again when it likes, which would look like a leak.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Generator, Iterator
from typing import Any

import numpy  # noqa: F401  (what it opens and starts for good is there before the first test)
import pytest
from hypothesis import HealthCheck, settings
from leftovers import leftovers, settle, snapshot
from refusals import Server
from tallies import wrongs

from fastpool import WorkerPool, _native
from fastpool.arrays import shared_memory

shared_memory()  # for the life of the process

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # machines are shared: no test fails for its time

PROCESSES = ["fork", "spawn", "forkserver"]
START_METHODS = [*PROCESSES, "threading"]
AFRESH = ["spawn", "forkserver"]  # workers import the program
OF_STARTING = {"test_start_methods", "test_nested"}  # modules
processes = pytest.mark.parametrize("start_method", PROCESSES)  # of what has no meaning for threads

# Of what forks in a program with threads, which Python 3.12 warns of.
fork_beside_threads = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

failed_in_call = pytest.StashKey[bool]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In `make test-full` only run tests marked `long` (with FASTPOOL_LONG=1) and, of those of all start methods,
    the other of `spawn` and `forkserver`, which differ in how workers start alone (with that or FASTPOOL_FULL=1)."""
    long = os.environ.get("FASTPOOL_LONG") == "1"
    both = long or os.environ.get("FASTPOOL_FULL") == "1"
    left_out = {
        item for item in items if (not long and item.get_closest_marker("long")) or (not both and is_other_of_two(item))
    }
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def is_other_of_two(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or item.path.stem in OF_STARTING:
        return False
    callspec = getattr(item, "callspec", None)
    method = callspec.params.get("start_method") if callspec else None
    chosen = AFRESH[zlib.crc32(item.originalname.encode()) % 2]
    return method in AFRESH and method != chosen


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    if call.when == "call":
        item.stash[failed_in_call] = outcome.get_result().failed


def kill_self(signum: int) -> None:
    """A task that ends its worker by a signal, without a report of pytest's faulthandler: the death is meant."""
    faulthandler.disable()
    os.kill(os.getpid(), signum)
    signal.pause()


def context_of(start_method: str) -> Any:
    """What makes locks and queues that its workers share."""
    return multiprocessing.dummy if start_method == "threading" else multiprocessing.get_context(start_method)


@pytest.fixture(params=START_METHODS)
def start_method(request: pytest.FixtureRequest) -> str:
    """For what must hold however workers are started. Functions must be importable then."""
    return str(request.param)


@pytest.fixture(params=["fork", "threading"])
def by_default(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what must hold of a map, with what functions there are: pools have this start method if none is given."""
    make = WorkerPool.__init__
    defaults = list(make.__defaults__ or ())
    defaults[list(inspect.signature(make).parameters).index("start_method") - 1] = request.param
    monkeypatch.setattr(make, "__defaults__", tuple(defaults))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs trials of a pool on a machine that says no."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler to build csrc/tests/refuse.c")
    server = Server(tmp_path_factory.mktemp("refusals"))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves processes, descriptors, threads or shared memory behind, or whose pools did not end what
    they began (in a build that counts; not where memory was damaged on purpose).

    A test that has failed already is not checked: its traceback keeps alive what it used.
    """
    before = snapshot()
    counted = _native.tallies if _native.tallies is not None else []
    counted.clear()
    yield
    if request.node.stash.get(failed_in_call, False):
        return
    settle(before)
    if left := leftovers(before, snapshot()):
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)
    if request.module.__name__ != "test_damage" and (wrong := [line for tally in counted for line in wrongs(tally)]):
        pytest.fail("tallies:\n  " + "\n  ".join(wrong), pytrace=False)
