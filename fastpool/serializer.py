"""Objects to bytes and back where no typed record fits: pickle, or dill where the pool was told so."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

Reduce = Callable[[Any], Any]
BufferCallback = Callable[[pickle.PickleBuffer], object]


class Serializer(NamedTuple):
    """One way to turn objects into bytes.

    Attributes
    ----------
    dumps : callable
        ``dumps(object, protocol)`` returns bytes.
    loads : callable
        ``loads(bytes, *, buffers=...)`` returns the object.
    pickler : callable
        ``pickler(file, reduce, buffer_callback=None)``: the same as an object, with ``dump(object)``, which asks first
        how an object is reduced: ``reduce(object)`` (NotImplemented: as ever).
    dumps_functions : callable
        ``dumps_functions(functions, reduce)`` returns bytes.
    begin_job : callable
        ``begin_job()``: what functions refer to may have changed.
    shares_main : bool
        The main program's functions travel by value, and find its names in the worker.
    """

    dumps: Callable[..., bytes]
    loads: Callable[..., Any]
    pickler: Callable[..., Any]
    dumps_functions: Callable[[Any, Reduce], bytes]
    begin_job: Callable[[], None]
    shares_main: bool = False


def make_serializer(use_dill: bool, forks: bool) -> Serializer:
    """What the owner of a pool uses: pickle, or dill.

    Parameters
    ----------
    use_dill : bool
    forks : bool
        Workers inherit what this process has.

    Raises
    ------
    ImportError
        dill is not installed.
    """
    if not use_dill:
        return PICKLE
    try:
        import dill  # noqa: F401
    except ImportError as error:
        raise ImportError("use_dill=True needs dill, which is not installed: pip install fastpool[dill]") from error
    from fastpool.dilled import ToFork, ToFresh

    return _serializer_of(ToFork() if forks else ToFresh(), shares_main=not forks)


def make_worker_serializer(use_dill: bool) -> Serializer:
    """What a worker uses. Made in it, or in its owner just before the fork."""
    if not use_dill:
        return PICKLE
    from fastpool.dilled import ToOwner

    return _serializer_of(ToOwner())


def _serializer_of(sender: Any, shares_main: bool = False) -> Serializer:
    return Serializer(sender.dumps, sender.loads, sender.pickler, sender.dumps_functions, sender.begin_job, shares_main)


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, reduce: Reduce, buffer_callback: BufferCallback | None) -> None:
        super().__init__(file, 5, buffer_callback=buffer_callback)
        self.reducer_override = reduce  # type: ignore[method-assign]


def _make_pickler(file: Any, reduce: Reduce, buffer_callback: BufferCallback | None = None) -> Any:
    return _Pickler(file, reduce, buffer_callback)


def _dumps_functions(functions: Any, reduce: Reduce) -> bytes:
    file = io.BytesIO()
    _make_pickler(file, reduce).dump(functions)
    return file.getvalue()


PICKLE = Serializer(pickle.dumps, pickle.loads, _make_pickler, _dumps_functions, lambda: None)
