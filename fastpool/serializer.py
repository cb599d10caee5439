"""Objects to bytes and back where no typed record fits: pickle, or dill where the pool was told so."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
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
    """

    dumps: Callable[..., bytes]
    loads: Callable[..., Any]
    pickler: Callable[..., Any]


def make_serializer(use_dill: bool) -> Serializer:
    """Pickle, or dill.

    Raises
    ------
    ImportError
        dill is not installed.
    """
    if not use_dill:
        return Serializer(pickle.dumps, pickle.loads, _make_pickler)
    try:
        import dill
    except ImportError as error:
        raise ImportError("use_dill=True needs dill, which is not installed: pip install fastpool[dill]") from error
    # recurse: what a function of the main program refers to goes along, since workers need not have that program
    return Serializer(partial(dill.dumps, recurse=True), dill.loads, _make_dill_pickler)


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, reduce: Reduce, buffer_callback: BufferCallback | None) -> None:
        super().__init__(file, 5, buffer_callback=buffer_callback)
        self.reducer_override = reduce  # type: ignore[method-assign]


def _make_pickler(file: Any, reduce: Reduce, buffer_callback: BufferCallback | None = None) -> Any:
    return _Pickler(file, reduce, buffer_callback)


def _make_dill_pickler(file: Any, reduce: Reduce, buffer_callback: BufferCallback | None = None) -> Any:
    import dill

    pickler = dill.Pickler(file, 5, recurse=True, buffer_callback=buffer_callback)
    pickler.reducer_override = reduce
    return pickler
