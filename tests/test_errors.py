"""Exceptions from tasks, init and exit; what cannot be pickled; bad arguments."""

from __future__ import annotations

import math
import os
import pickle
import select
import signal
import sys
import threading
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy
import pytest
from conftest import processes

import fastpool
from fastpool import RemoteError, SerializationError, WorkerPool

needs_dill = pytest.mark.skipif(find_spec("dill") is None, reason="dill is not installed")


class Plain(Exception):
    pass


class WithState(Exception):
    """Its constructor does not take what ``args`` holds."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail


class Silent(Exception):
    def __bool__(self) -> bool:
        return False


class NoTruth(Exception):
    def __bool__(self) -> bool:
        raise ValueError("no truth for you")

    __eq__ = __bool__  # type: ignore[assignment]
    __hash__ = Exception.__hash__


class NoTraceback(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name in ("__cause__", "__traceback__"):
            raise ValueError(f"no {name} for you")
        return super().__getattribute__(name)


class Hostile(Exception):
    def __str__(self) -> str:
        raise ValueError("no str for you")

    __repr__ = __str__


def fail_at_13(x: int) -> int:
    if x == 13:
        raise Plain("unlucky", x)
    return x


@pytest.mark.parametrize("kind", [range, lambda n: list(range(n)), lambda n: iter(range(n))])
def test_a_task_that_raises(kind: Any, start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(Plain) as caught:
            pool.map(fail_at_13, kind(50))
        error = caught.value
        assert error.args == ("unlucky", 13)
        cause = error.__cause__
        assert isinstance(cause, RemoteError)
        assert cause.task == 13
        assert cause.phase == "task"
        assert cause.worker_id in (0, 1)
        assert cause.arguments == "13"
        assert 'raise Plain("unlucky", x)' in cause.traceback
        assert "_worker.pyx" not in cause.traceback
        assert "task 13 in worker" in str(cause)
        assert pool.map(fail_at_13, range(5)) == list(range(5))


def raise_this(make: Any) -> None:
    raise make()


class Rewriting(Exception):
    """Called again with its arguments, its constructor would succeed, and say something else."""

    def __init__(self, code: Any) -> None:
        super().__init__(f"code {code}")
        self.code = code


class RewritingTwice(Rewriting, OSError):
    def __init__(self, path: str) -> None:
        OSError.__init__(self, 2, "nothing there", path)
        self.path = path
        self.code = 3


class New(Exception):
    def __new__(cls, a: int, b: int) -> New:
        return super().__new__(cls, a)

    def __init__(self, a: int, b: int) -> None:
        self.b = b


class Slotted(Exception):
    __slots__ = ("__private", "q", "unset")

    def __init__(self, q: int) -> None:
        super().__init__("slots")
        self.q = self.__private = q


class Holding(Exception):
    """Has another exception, which has it."""

    def __init__(self) -> None:
        super().__init__("holding")
        self.inner = Rewriting(7)
        self.inner.outer = self  # type: ignore[attr-defined]


class NamedImport(ImportError):
    def __init__(self, module: str) -> None:
        super().__init__(f"no {module}", name=module, path="/there")


class OwnWay(Exception):
    """Says itself how it is pickled."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.calls = 1

    def __reduce__(self) -> Any:
        return OwnWay, (self.code,)


class BrokenReduce(Exception):
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt("reduce")


def noted() -> Exception:
    error = Rewriting(5)
    error.__notes__ = ["a note"]  # type: ignore[attr-defined]  # as add_note does, since 3.11
    return error


EXCEPTIONS = [
    partial(WithState, 7, detail="x"),
    partial(Rewriting, 5),
    partial(RewritingTwice, "/x"),
    partial(New, 1, 2),
    partial(Slotted, 4),
    Holding,
    partial(NamedImport, "module"),
    partial(OwnWay, 3),
    partial(BrokenReduce, 1, 2),
    noted,
]


@pytest.mark.parametrize("make", EXCEPTIONS)
@pytest.mark.parametrize("use_dill", [False, pytest.param(True, marks=needs_dill)])
def test_exceptions_come_back_as_they_were(make: Any, use_dill: bool, start_method: str) -> None:
    with WorkerPool(n_jobs=1, start_method=start_method, use_dill=use_dill) as pool:
        with pytest.raises(BaseException) as caught:
            pool.map(raise_this, [make])
        assert look(caught.value) == look(make())
        assert isinstance(caught.value.__cause__, RemoteError)


def look(error: BaseException) -> Any:
    """Everything to be seen of an exception."""
    fields = ("q", "_Slotted__private", "unset", "errno", "filename", "name", "path", "code")
    attributes = {name: value for name, value in vars(error).items() if not isinstance(value, BaseException)}
    inner = getattr(error, "inner", None)
    return (type(error), error.args, str(error), attributes, [getattr(error, name, "unset") for name in fields]) + (
        (look(inner), inner.outer is error) if inner is not None else ()
    )


def make_group() -> Any:
    return ExceptionGroup("several", [Rewriting(3), ExceptionGroup("more", [Slotted(4), ValueError(5)])])  # noqa: F821


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no groups before")
@pytest.mark.parametrize("use_dill", [False, pytest.param(True, marks=needs_dill)])
def test_exceptions_in_a_group_come_back_as_they_were(use_dill: bool) -> None:
    with WorkerPool(n_jobs=1, use_dill=use_dill) as pool, pytest.raises(ExceptionGroup) as caught:  # noqa: F821
        pool.map(raise_this, [make_group])
    first, more = caught.value.exceptions
    assert (caught.value.message, more.message) == ("several", "more")
    assert [look(e) for e in (first, *more.exceptions)] == [look(e) for e in (Rewriting(3), Slotted(4), ValueError(5))]


class Unsendable(Exception):
    def __init__(self) -> None:
        super().__init__("has a lock")
        self.lock = threading.Lock()


def test_why_an_exception_cannot_be_sent() -> None:
    reason = r"TypeError: cannot pickle '_thread.lock' object; it was Unsendable: has a lock"
    with WorkerPool(n_jobs=1) as pool, pytest.raises(SerializationError, match=reason) as caught:
        pool.map(raise_this, [Unsendable])
    assert caught.value.what == "exception"


@pytest.mark.parametrize(
    "kind", [Silent, NoTruth, Hostile, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, MemoryError]
)
@pytest.mark.usefixtures("by_default")
def test_awkward_exceptions(kind: type[BaseException]) -> None:
    with WorkerPool(n_jobs=1) as pool:
        with pytest.raises(kind):
            pool.map(raise_this, [kind])
        assert pool.map(abs, [-1]) == [1]


@pytest.mark.parametrize("kind", [NoTruth, NoTraceback])
def test_an_exception_that_python_cannot_show(kind: type[BaseException]) -> None:
    with WorkerPool(n_jobs=1) as pool:
        (error,) = pool.map(raise_this, [kind], return_exceptions=True)
    assert type(error) is kind
    cause = BaseException.__getattribute__(error, "__cause__")
    assert isinstance(cause, RemoteError)
    assert (cause.task, cause.phase) == (0, "task")
    assert "in raise_this" in cause.traceback
    assert "_worker.pyx" not in cause.traceback


def raise_os_error(_: Any) -> None:
    os.stat("/no/such/file")


def raise_unicode_error(_: Any) -> None:
    b"\xff".decode()


def test_builtin_exceptions_keep_their_fields() -> None:
    with WorkerPool(n_jobs=1) as pool:
        with pytest.raises(FileNotFoundError) as missing:
            pool.map(raise_os_error, [0])
        assert missing.value.filename == "/no/such/file"
        with pytest.raises(UnicodeDecodeError) as undecodable:
            pool.map(raise_unicode_error, [0])
        assert undecodable.value.start == 0


def test_a_local_exception_class_is_named() -> None:
    class Local(Exception):
        pass

    def fail(_: Any) -> None:
        raise Local("from inside")

    with (
        WorkerPool(n_jobs=1) as pool,
        pytest.raises(SerializationError, match=r"Local: from inside") as caught,
    ):
        pool.map(fail, [0])
    assert caught.value.what == "exception"
    assert isinstance(caught.value.__cause__, RemoteError)


class UnloadableError(Exception):
    def __reduce__(self) -> Any:
        return _only_in, (os.getpid(),)


def _only_in(pid: int) -> Exception:
    if os.getpid() == pid:
        return UnloadableError()
    raise RuntimeError("not in this process")


def test_an_exception_that_cannot_be_unpickled_in_the_parent() -> None:
    with (
        WorkerPool(n_jobs=1) as pool,
        pytest.raises(SerializationError, match="not in this process") as caught,
    ):
        pool.map(raise_this, [UnloadableError])
    assert caught.value.what == "exception"


def exceptions_returned(x: int) -> Exception:
    return ValueError(x)


def test_exceptions_that_are_returned_are_results() -> None:
    with WorkerPool(n_jobs=2) as pool:
        results = pool.map(exceptions_returned, range(5))
    assert [(type(e), e.args) for e in results] == [(ValueError, (i,)) for i in range(5)]


def particular_exceptions_returned(x: int) -> Exception:
    return WithState(x, detail="of a constructor with other arguments than args")


def test_an_exception_that_is_returned_comes_back_as_it_was(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        results = [
            *pool.map(particular_exceptions_returned, range(3)),
            pool.apply(particular_exceptions_returned, (3,)),
        ]
    assert [(type(error), str(error), error.code) for error in results] == [
        (WithState, f"code {x}", x) for x in range(4)
    ]
    assert {error.detail for error in results} == {"of a constructor with other arguments than args"}


def fail_now(*_: Any) -> None:
    raise Plain("now")


def test_init_that_raises(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(Plain) as caught:
            pool.map(abs, range(10), worker_init=fail_now)
        assert isinstance(caught.value.__cause__, RemoteError)
        assert caught.value.__cause__.phase == "worker_init"
        assert pool.map(abs, range(3)) == [0, 1, 2]


@pytest.mark.parametrize("keep_alive", [False, True])
def test_exit_that_raises(keep_alive: bool, start_method: str) -> None:
    with WorkerPool(n_jobs=2, keep_alive=keep_alive, start_method=start_method) as pool:
        with pytest.raises(Plain) as caught:
            pool.map(abs, range(10), worker_exit=fail_now)
            pool.stop_and_join()
        assert isinstance(caught.value.__cause__, RemoteError)
        assert caught.value.__cause__.phase == "worker_exit"
        assert pool.map(abs, range(3)) == [0, 1, 2]


def lock_result(_: Any) -> Any:
    return threading.Lock()


@processes
def test_a_result_that_cannot_be_pickled(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(SerializationError, match=r"result of task \d+ .*cannot pickle '_thread.lock'") as caught:
            pool.map(lock_result, range(4))
        assert caught.value.what == "result"
        assert caught.value.task in range(4)
        assert isinstance(caught.value, pickle.PicklingError)
        with pytest.raises(SerializationError, match="exit result"):
            pool.map(abs, [1], worker_exit=threading.Lock)
        assert pool.map(abs, [-1]) == [1]


@pytest.mark.parametrize("bad", [threading.Lock(), lambda: 0, (1, threading.Lock())])
def test_an_argument_that_cannot_be_pickled(bad: Any) -> None:
    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(SerializationError, match=r"argument of task 2 ") as caught:
            pool.map(id, [1, 2, bad, 4])
        assert (caught.value.what, caught.value.task, caught.value.worker_id) == ("argument", 2, None)
        assert caught.value.__cause__ is not None
        assert pool.map(abs, [-1]) == [1]


class OnlyHere:
    """Pickles anywhere, unpickles only in the process that pickled it."""

    def __reduce__(self) -> Any:
        return _must_be, (os.getpid(),)


def _must_be(pid: int) -> OnlyHere:
    if os.getpid() != pid:
        raise RuntimeError("wrong process")
    return OnlyHere()


def make_only_here(_: Any) -> OnlyHere:
    return OnlyHere()


@processes
def test_values_that_cannot_be_unpickled_on_the_other_side(start_method: str) -> None:
    with WorkerPool(n_jobs=2, start_method=start_method) as pool:
        with pytest.raises(SerializationError, match="wrong process") as caught:
            pool.map(id, [1, OnlyHere()])
        assert caught.value.what == "argument"
        assert caught.value.task == 1
        with pytest.raises(SerializationError, match="wrong process") as caught:
            pool.map(make_only_here, [1, 2])
        assert caught.value.what == "result"
        assert pool.map(abs, [-1]) == [1]


def test_a_function_that_cannot_reach_kept_workers_restarts_them() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        pids = set(pool.map(getpid, range(10)))
        k = 5
        assert pool.map(lambda x: x + k, range(10)) == list(range(5, 15))
        assert not pids & set(pool.map(getpid, range(10)))


def getpid(_: Any) -> int:
    return os.getpid()


def test_a_redefined_function_is_not_run_in_its_old_form() -> None:
    namespace: dict[str, Any] = {"__name__": __name__}
    globals()["cell"] = None
    for body in ("x + 1", "x + 2", "x * 10"):
        exec(f"def cell(x):\n    return {body}", namespace)
        globals()["cell"] = namespace["cell"]
        if body == "x + 1":
            pool = WorkerPool(n_jobs=2, keep_alive=True)
        assert pool.map(namespace["cell"], range(20)) == [eval(body) for x in range(20)]
    pool.terminate()


def test_a_function_that_kept_workers_have_never_seen() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        pool.map(getpid, range(4))
        namespace: dict[str, Any] = {"__name__": __name__}
        exec("def born_later(x):\n    return -x", namespace)
        globals()["born_later"] = namespace["born_later"]
        assert pool.map(namespace["born_later"], range(5)) == [0, -1, -2, -3, -4]


class AlwaysEqual:
    """Cannot be pickled, and equals everything."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: int) -> int:
        return self.n


def test_state_of_a_callable_that_cannot_be_pickled() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        assert pool.map(AlwaysEqual(1), range(3)) == [1, 1, 1]
        function = AlwaysEqual(2)
        assert pool.map(function, range(3)) == [2, 2, 2]
        function.n = 3
        assert pool.map(function, range(3)) == [3, 3, 3]


class HostileRepr:
    def __repr__(self) -> str:
        raise SystemExit(4)


def divide(_: Any) -> float:
    return 1 / 0


def test_an_argument_whose_repr_raises_anything() -> None:
    with WorkerPool(n_jobs=1) as pool, pytest.raises(ZeroDivisionError) as caught:
        pool.map(divide, [HostileRepr()])
    assert "__repr__ raised SystemExit" in str(caught.value.__cause__)


def test_huge_numbers_are_as_good_as_no_limit() -> None:
    with WorkerPool(n_jobs=2) as pool:
        assert pool.map(abs, range(5), chunk_size=2**70, worker_lifespan=2**70) == list(range(5))
        assert pool.map(abs, range(5), chunk_size=1e300, max_tasks_active=2**70) == list(range(5))


class Index:
    """A number only by ``__index__``."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __index__(self) -> int:
        return self.n


HUGE = 10**400


def test_numbers_beyond_any_float() -> None:
    with WorkerPool(n_jobs=2, memory_limit=HUGE) as pool:
        for given in (range(5), list(range(5)), iter(range(5))):
            limits = {"chunk_size": HUGE, "max_tasks_active": HUGE, "iterable_len": HUGE, "worker_lifespan": HUGE}
            assert pool.map(abs, given, **limits) == list(range(5))  # type: ignore[arg-type]
        assert pool.map(abs, range(HUGE), iterable_len=3, n_splits=2) == [0, 1, 2]
        assert pool.map(abs, range(HUGE), iterable_len=3, n_splits=HUGE) == [0, 1, 2]
        rows = pool.map(numpy.negative, numpy.arange(4), chunk_size=HUGE, iterable_len=HUGE)
        assert rows.tolist() == [0, -1, -2, -3]
        assert pool.map(numpy.negative, numpy.arange(4), n_splits=HUGE).tolist() == [0, -1, -2, -3]


def test_numbers_by_index_alone() -> None:
    two: Any = Index(2)
    with WorkerPool(n_jobs=two, memory_limit=Index(1 << 24)) as pool:  # type: ignore[arg-type]
        for given in (range(5), list(range(5)), numpy.arange(5)):
            got = pool.map(
                numpy.abs, given, iterable_len=two, max_tasks_active=two, chunk_size=two, worker_lifespan=two
            )
            assert list(got) == [0, 1]
            assert list(pool.map(numpy.abs, given, n_splits=two)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="n_jobs must be at least 1, not 0"):
        WorkerPool(n_jobs=Index(0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk_size must be at least 1"), WorkerPool(n_jobs=1) as pool:
        pool.map(abs, [1], chunk_size=Index(0))  # type: ignore[arg-type]


class Sizeless:
    """Has a length, in its class, and cannot say it."""

    def __init__(self, error: type[Exception] | None) -> None:
        self.error = error

    def __len__(self) -> int:
        if self.error is not None:
            raise self.error("no length")
        return 2**70

    def __iter__(self) -> Any:
        return iter(range(10))


def test_input_whose_length_cannot_be_said() -> None:
    with WorkerPool(n_jobs=2) as pool:
        for error in (TypeError, None):
            assert pool.map(abs, Sizeless(error)) == list(range(10))
            assert pool.map(abs, Sizeless(error), iterable_len=4) == [0, 1, 2, 3]
            assert pool.map(abs, Sizeless(error), iterable_len=4, n_splits=2) == [0, 1, 2, 3]
            with pytest.warns(RuntimeWarning, match="n_splits is ignored"):
                assert pool.map(abs, Sizeless(error), n_splits=2) == list(range(10))
        with pytest.raises(KeyError):
            pool.map(abs, Sizeless(KeyError))


class Callable_:
    def __init__(self) -> None:
        self.k = 0

    def __call__(self, x: int) -> int:
        return x + self.k


def test_a_callable_with_state_is_sent_as_it_is_now(start_method: str) -> None:
    function = Callable_()
    with WorkerPool(n_jobs=2, keep_alive=True, start_method=start_method) as pool:
        for k in range(4):
            function.k = k
            assert pool.map(function, range(5)) == [i + k for i in range(5)]


BAD_MAPS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"func": 3}, TypeError, "func must be callable"),
    ({"func": None}, TypeError, "func must be callable"),
    ({"iterable_of_args": 5}, TypeError, "iterable_of_args must be an iterable"),
    ({"iterable_of_args": None}, TypeError, "iterable_of_args"),
    ({"iterable_len": -1}, ValueError, "iterable_len must be at least 0"),
    ({"iterable_len": 1.5}, TypeError, "iterable_len must be an int"),
    ({"iterable_len": True}, TypeError, "iterable_len must be an int"),
    ({"max_tasks_active": 0}, ValueError, "max_tasks_active must be at least 1"),
    ({"max_tasks_active": "3"}, TypeError, "max_tasks_active"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1"),
    ({"chunk_size": 0.5}, ValueError, "chunk_size"),
    ({"chunk_size": math.nan}, ValueError, "chunk_size"),
    ({"chunk_size": math.inf}, ValueError, "chunk_size"),
    ({"chunk_size": "big"}, TypeError, "chunk_size must be an int, a float"),
    ({"chunk_size": -(10**5000)}, ValueError, "chunk_size"),
    ({"n_splits": 0}, ValueError, "n_splits"),
    ({"n_splits": 2.0}, TypeError, "n_splits"),
    ({"n_splits": 2, "iterable_of_args": range(10**400)}, ValueError, "iterable_of_args has more elements"),
    ({"iterable_of_args": range(10**30)}, ValueError, "iterable_of_args has more elements"),
    ({"worker_lifespan": 0}, ValueError, "worker_lifespan"),
    ({"worker_lifespan": 1.0}, TypeError, "worker_lifespan"),
    ({"worker_init": 1}, TypeError, "worker_init must be callable or None"),
    ({"worker_exit": "x"}, TypeError, "worker_exit must be callable or None"),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD_MAPS)
def test_bad_arguments_of_map(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"func": abs, "iterable_of_args": [1, 2], **given}
    with WorkerPool(n_jobs=2) as pool:
        with pytest.raises(kind, match=message):
            pool.map(**arguments)
        assert pool._supervisor._segment is None, "something was started"


BAD_POOLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"n_jobs": 0}, ValueError, "n_jobs must be at least 1"),
    ({"n_jobs": -2}, ValueError, "n_jobs"),
    ({"n_jobs": 2.0}, TypeError, "n_jobs must be an int"),
    ({"n_jobs": "2"}, TypeError, "n_jobs"),
    ({"n_jobs": True}, TypeError, "n_jobs"),
    ({"n_jobs": 65_536}, ValueError, r"n_jobs must be at most \d+, not 65536"),
    ({"n_jobs": 10**400}, ValueError, r"n_jobs must be at most \d+, not a number of 1329 bits"),
    ({"n_jobs": -(10**5000)}, ValueError, "n_jobs must be at least 1"),
    ({"daemon": 1}, TypeError, "daemon must be a bool"),
    ({"pass_worker_id": "yes"}, TypeError, "pass_worker_id"),
    ({"use_worker_state": None}, TypeError, "use_worker_state"),
    ({"keep_alive": 0}, TypeError, "keep_alive"),
    ({"start_method": "spoon"}, ValueError, "start_method"),
    ({"start_method": 3}, TypeError, "start_method"),
    ({"memory_limit": 0}, ValueError, "memory_limit"),
    ({"memory_limit": 1e9}, TypeError, "memory_limit"),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD_POOLS)
def test_bad_arguments_of_the_pool(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        WorkerPool(**given)


def test_every_error_pickles_and_says_something() -> None:
    errors = [
        fastpool.WorkerDiedError(1, 23, -9, "running", range(3, 7)),
        fastpool.WorkerDiedError(1, 23, None, "idle", range(0)),
        fastpool.WorkerDiedError(1, 23, 3, "starting", range(4, 5)),
        fastpool.WorkerDiedError(1, 23, 1, "starting", range(0), "spawn"),
        SerializationError("function", None, 1, "a lambda"),
        SerializationError("result", 3, 1, "detail"),
        fastpool.DamagedMemoryError("the ring"),
        RemoteError(0, "task", 3, "(1, 2)", "Traceback"),
    ]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert vars(copy) == vars(error)
        assert str(copy) == str(error)
        assert len(str(error)) > 20


class TooLong(Exception):
    pass


def too_long(*_: Any) -> None:
    raise TooLong("alarm", 50)


def idle_alarm(x: int) -> int:
    """Leaves a handler behind that raises while the worker has nothing to do."""
    signal.signal(signal.SIGALRM, too_long)
    return os.getpid()


def ask_to_exit(*_: Any) -> None:
    raise SystemExit(5)


def idle_exit(x: int) -> int:
    signal.signal(signal.SIGALRM, ask_to_exit)
    return os.getpid()


def interrupt_to_the_end(pid: int) -> None:
    """Send SIGALRM, and wait until that has ended the process."""
    handle = os.pidfd_open(pid)  # before the signal: a fork server reaps at once
    os.kill(pid, signal.SIGALRM)
    assert select.select([handle], [], [], 60)[0]
    os.close(handle)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize(
    ("task", "kind", "args"), [(idle_alarm, TooLong, ("alarm", 50)), (idle_exit, SystemExit, (5,))]
)
@processes
def test_a_signal_handler_that_raises_in_an_idle_worker(
    stop: bool, task: Any, kind: type[BaseException], args: Any, start_method: str
) -> None:
    with WorkerPool(n_jobs=1, keep_alive=True, start_method=start_method) as pool:
        [pid] = pool.map(task, [1], worker_exit=fail_now)
        interrupt_to_the_end(pid)
        with pytest.raises(kind) as caught:
            pool.stop_and_join() if stop else pool.map(task, [1], worker_exit=fail_now)
        assert caught.value.args == args
        cause = caught.value.__cause__
        assert isinstance(cause, RemoteError)
        assert (cause.phase, cause.task) == ("worker", None)
        assert "by a signal handler between tasks in worker 0" in str(cause)
        assert "raise" in cause.traceback
        assert pool.map(abs, [-1]) == [1]


def many_alarms(x: int) -> int:
    if x == 0:
        signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    return x


@pytest.mark.parametrize("keep_alive", [False, True])
def test_a_signal_handler_that_raises_at_any_moment(keep_alive: bool) -> None:
    with WorkerPool(n_jobs=1, keep_alive=keep_alive) as pool:
        for _ in range(20):
            with pytest.raises(TooLong) as caught:
                pool.map(many_alarms, range(5_000_000), chunk_size=100)
            assert caught.value.args == ("alarm", 50)
            assert isinstance(caught.value.__cause__, RemoteError)


class Unflushable:
    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        raise KeyboardInterrupt("flush")


def spoil_output(x: int) -> int:
    sys.stdout = Unflushable()  # type: ignore[assignment]
    return x


def test_an_output_that_cannot_be_flushed_stops_nothing() -> None:
    with WorkerPool(n_jobs=2, keep_alive=True) as pool:
        for _ in range(3):
            assert pool.map(spoil_output, range(10), worker_exit=os.getpid) == list(range(10))
        pool.stop_and_join()
        assert 1 <= len(pool.get_exit_results()) <= 2


class Alarming:
    """Its flush is interrupted by a signal, and fails."""

    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        if not hasattr(self, "alarmed"):
            self.alarmed = True
            os.kill(os.getpid(), signal.SIGALRM)
            raise OSError("flush")


def alarm_in_flush(x: int) -> int:
    signal.signal(signal.SIGALRM, too_long)
    sys.stdout = Alarming()  # type: ignore[assignment]
    return x


@pytest.mark.parametrize("keep_alive", [False, True])
def test_a_signal_handler_that_raises_while_output_is_flushed(keep_alive: bool) -> None:
    with WorkerPool(n_jobs=1, keep_alive=keep_alive) as pool, pytest.raises(TooLong) as caught:
        pool.map(alarm_in_flush, [1])
        pool.stop_and_join()
    assert isinstance(caught.value.__cause__, RemoteError)
    assert caught.value.__cause__.phase == "worker"
