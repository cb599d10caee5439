"""What a worker does in Python: functions, errors, output."""

from __future__ import annotations

import os
import pickle
import reprlib
import sys
import traceback
import types
from typing import Any, NamedTuple

import numpy

from fastpool import functions, raised
from fastpool._native import Place, Segment
from fastpool._references import Exchange
from fastpool._worker import Loop
from fastpool.arrays import attach_spaces
from fastpool.errors import FastpoolError, SerializationError, StaleFunctionError, unsendable
from fastpool.functions import Function, Functions
from fastpool.serializer import PICKLE, Serializer, make_worker_serializer
from fastpool.spawning import Packed, take, unpack

NO_FUNCTIONS = Functions(None, None, None)  # type: ignore[arg-type]  # before the first job

MOST_FUNCTIONS = 256  # of applies, that a worker keeps

HEADING = "Traceback (most recent call last):\n"

_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 200
_shorten.maxlong = 80
MOST_BYTES = 248  # of a task's arguments among the longest tasks: FP_TEXT_BYTES


class Host:
    """What the worker's loop asks Python for; see :class:`fastpool._worker.Loop`.

    Parameters
    ----------
    worker_id : int
    leading : tuple
        Arguments that every function gets first: worker id, shared objects, worker state, as the pool was told.
    version : int
        Of the functions this worker was forked with.
    inherited : Functions
    serializer : Serializer
    """

    given: dict[str, bytes | None] | None = None  # see functions.loads

    def __init__(
        self, worker_id: int, leading: tuple[Any, ...], version: int, inherited: Functions, serializer: Serializer
    ) -> None:
        self.worker_id = worker_id
        self.leading = leading
        self.version = version
        self.functions = inherited
        self.serializer = serializer
        self._applied: dict[bytes, Function] = {}

    @property
    def dumps(self) -> Any:
        return self.serializer.dumps

    @property
    def loads(self) -> Any:
        return self.serializer.loads

    def dump_exception(self, error: BaseException) -> bytes:
        return raised.dumps(error, self.serializer)

    def adopt(self, version: int, blob: bytes | None) -> tuple[Function, tuple[Any, ...]] | None:
        """The task function of a job and its leading arguments; None if this worker cannot have it."""
        if version != self.version:
            if blob is None:
                return None
            try:
                self.functions = functions.loads(blob, self.serializer, self.worker_id, self.given)
            except (StaleFunctionError, SerializationError):  # this process was started before
                return None
            self.version = version
        return self.functions.task, self.leading

    def adopt_first(self, version: int, blob: bytes | None) -> tuple[Any, ...]:
        """The leading arguments, for applies. Init and exit function are those of the map that this worker was started
        for, or has joined, if there is one."""
        return self.leading

    def resolve(self, given: Any) -> Function:
        """The function of an apply.

        Raises
        ------
        StaleFunctionError
            This process has an older definition of it.
        SerializationError
            It cannot be unpickled here.
        """
        known = self._applied.get(given)
        if known is not None:
            return known
        loaded = functions.loads(given, self.serializer, self.worker_id, self.given)
        if functions.is_plain(loaded):  # others may have changed by what they were called with
            if len(self._applied) == MOST_FUNCTIONS:
                self._applied.clear()
            self._applied[given] = loaded.task
        return loaded.task

    def has_init(self) -> bool:
        return self.functions.init is not None

    def initialize(self) -> None:
        assert self.functions.init is not None
        self.functions.init(*self.leading)

    def has_exit(self) -> bool:
        return self.functions.exit is not None

    def finalize(self) -> Any:
        assert self.functions.exit is not None
        return self.functions.exit(*self.leading)

    def flush(self) -> None:
        """What tasks have printed should be seen when the map returns, whatever happens to this worker later."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:  # no stream, closed by a task, nobody reads it, or whatever a task has put there
                continue

    def end_fork(self, error: BaseException) -> None:
        """End a fork that a task made and that has left the task: it is not the worker."""
        self.flush()
        code = error.code if isinstance(error, SystemExit) else 1
        os._exit(code if isinstance(code, int) else int(code is not None))

    def describe(self, error: BaseException, what: str, task: int | None, element: Any) -> Any:
        """The description of an exception, as it is sent: see :func:`fastpool.remote.revive`."""
        text = show_traceback(error)
        if what == "function" and not isinstance(error, FastpoolError):
            what = "worker"  # a signal handler raised it
        if what in ("argument", "result", "exit result") and not isinstance(error, FastpoolError):
            error = self.not_sent(error, what, task)
        phase = what if what in ("worker_init", "worker_exit", "worker") else "task"
        arguments = "" if what == "argument" or phase != "task" or task is None else shorten(element)
        return self.pack(error, phase, arguments, text)

    def not_sent(self, error: BaseException, what: str, task: int | None) -> BaseException:
        """What is raised where this kept an argument or a result from being sent."""
        detail = f"{type(error).__qualname__}: {error}"
        named = unsendable(error, what, task, self.worker_id, detail)
        named.__cause__ = error
        return named

    def pack(self, error: BaseException, phase: str, arguments: str, text: str) -> Any:
        """Everything that is known of an exception, as it is sent."""
        summary = f"{type(error).__qualname__}: {shorten_str(error)}"
        blob: bytes | None = None
        reason = ""
        try:
            blob = self.dump_exception(error)
        except BaseException as broken:
            reason = f"{type(broken).__qualname__}: {shorten_str(broken)}"
        return pickle.dumps((blob, reason, summary, phase, arguments, text), 5)

    def describe_arguments(self, element: Any) -> bytes:
        """A task's arguments, shortened, for insights."""
        named: Any = enumerate((element,))
        if isinstance(element, (tuple, list)):
            named = enumerate(element)
        elif isinstance(element, dict):
            named = element.items()
        text = " | ".join(f"Arg {name}: {summarize(argument)}" for name, argument in named)
        whole = text.encode(errors="backslashreplace")
        return whole if len(whole) <= MOST_BYTES else whole[: MOST_BYTES - 3].decode(errors="ignore").encode() + b"..."


class Outfit(NamedTuple):
    """What a worker that is no fork is told at its start. Travels as a pickle.

    Attributes
    ----------
    worker_id : int
    pass_worker_id, use_worker_state, use_dill : bool
    shared_objects : Packed or None
    spaces : list
        As :func:`fastpool.arrays.public_spaces` returns.
    """

    worker_id: int
    pass_worker_id: bool
    use_worker_state: bool
    use_dill: bool
    shared_objects: Packed | None
    spaces: list[tuple[Place, int]]


class FreshHost(Host):
    """The host of a worker that is no fork: functions and shared objects come with its first job.

    What it cannot have then, no successor could have: that is an error.
    """

    def __init__(self, outfit: Outfit) -> None:
        super().__init__(outfit.worker_id, (), 0, NO_FUNCTIONS, make_worker_serializer(outfit.use_dill))
        self.outfit = outfit
        self.given = {}

    def adopt(self, version: int, blob: bytes | None) -> tuple[Function, tuple[Any, ...]] | None:
        if self.version:
            return super().adopt(version, blob)
        assert blob is not None
        packed = self.outfit.shared_objects
        shared = () if packed is None else (unpack(packed, self.serializer, self.worker_id),)
        self.leading = leading_arguments(
            self.worker_id, shared, self.outfit.pass_worker_id, self.outfit.use_worker_state
        )
        self.functions = functions.loads(blob, self.serializer, self.worker_id, self.given)
        self.version = version
        return self.functions.task, self.leading

    def adopt_first(self, version: int, blob: bytes | None) -> tuple[Any, ...]:
        if not self.version:
            self.adopt(version, blob)
        return self.leading


class ThreadHost(Host):
    """The host of a worker that is a thread of the pool's owner: everything is there already.

    Parameters
    ----------
    worker_id : int
    leading : tuple
    exchange : Exchange
    """

    def __init__(self, worker_id: int, leading: tuple[Any, ...], exchange: Exchange) -> None:
        super().__init__(worker_id, leading, 0, NO_FUNCTIONS, PICKLE)
        self.exchange = exchange

    def adopt(self, version: int, blob: bytes | None) -> tuple[Function, tuple[Any, ...]] | None:
        """Of the current job, which is this one, or one that has followed it: then nothing can be claimed of this."""
        if self.exchange.functions is None:
            return None
        self.functions = self.exchange.functions
        return self.functions.task, self.leading

    def adopt_first(self, version: int, blob: bytes | None) -> tuple[Any, ...]:
        if self.functions is NO_FUNCTIONS and self.exchange.functions is not None:
            self.functions = self.exchange.functions
        return self.leading

    def resolve(self, given: Any) -> Function:
        return given  # type: ignore[no-any-return]

    def flush(self) -> None:
        """The streams are the owner's."""

    def end_fork(self, error: BaseException) -> None:
        super().flush()
        super().end_fork(error)

    def not_sent(self, error: BaseException, what: str, task: int | None) -> BaseException:
        return error

    def pack(self, error: BaseException, phase: str, arguments: str, text: str) -> Any:
        BaseException.with_traceback(error, own_part(error))
        return error, "", "", phase, arguments, text


def leading_arguments(
    worker_id: int, shared: tuple[Any, ...], pass_worker_id: bool, use_worker_state: bool
) -> tuple[Any, ...]:
    """What every function of a worker gets first; `shared` has the shared objects, or nothing."""
    return ((worker_id,) if pass_worker_id else ()) + shared + (({},) if use_worker_state else ())


def shorten_str(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException as broken:
        return f"<its __str__ raised {type(broken).__qualname__}>"


def shorten(value: Any) -> str:
    try:
        return _shorten.repr(value)
    except BaseException as broken:
        return f"<its __repr__ raised {type(broken).__qualname__}>"


def summarize(value: Any) -> str:
    """Shorter than :func:`shorten`: of an array not what is in it."""
    if isinstance(value, numpy.ndarray):
        return f"array of shape {value.shape} and type {value.dtype}"
    return shorten(value)


def own_part(error: BaseException) -> types.TracebackType | None:
    """The traceback without fastpool's own frames at its beginning."""
    frames: types.TracebackType | None = BaseException.__getattribute__(error, "__traceback__")
    while frames is not None and frames.tb_frame.f_code.co_filename.endswith(("_worker.pyx", "fastpool/worker.py")):
        frames = frames.tb_next
    return frames


def show_traceback(error: BaseException) -> str:
    """As Python shows it; of an exception whose class keeps Python from that (by its ``__bool__``, say, or its
    attributes), where it was raised."""
    try:
        return "".join(traceback.format_exception(type(error), error, own_part(error)))
    except BaseException:
        shown = traceback.format_tb(own_part(error))
        return "".join([HEADING, *shown, f"{type(error).__qualname__}: {shorten_str(error)}\n"])


def run(host: Host, segment: Segment) -> None:
    """The main function of a worker process."""
    loop = Loop(segment, host.worker_id, host)
    os.register_at_fork(after_in_child=loop.disown)
    loop.run()


def make_loop(host: ThreadHost, segment: Segment) -> Loop:
    """What a worker thread is to run."""
    return Loop(segment, host.worker_id, host)


def run_fresh(outfit: Outfit, segment: Segment) -> None:
    """The main function of a worker process that is no fork."""
    own = take(fd for _, fd in outfit.spaces)
    attach_spaces([(place, fd) for (place, _), fd in zip(outfit.spaces, own, strict=True)])
    run(FreshHost(outfit), segment)
