"""Objects to bytes and back where no typed record fits: pickle, or dill where the pool was told so."""

from __future__ import annotations

import copyreg
import pickle
from collections import ChainMap
from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

MakePickler = Callable[[Any, Callable[[pickle.PickleBuffer], object]], Any]


class Serializer(NamedTuple):
    """One way to turn objects into bytes.

    Attributes
    ----------
    dumps : callable
        ``dumps(object, protocol)`` returns bytes.
    loads : callable
        ``loads(bytes, *, buffers=...)`` returns the object.
    pickler : callable
        ``pickler(file, buffer_callback)``: the same as an object, with a ``dispatch_table`` of its own.
    start_pickler : callable
        The same, which writes also what travels only while a process is being started.
    hooked_pickler : callable
        ``hooked_pickler(file, reducer)`` writes, with ``dump(object)``, what `dumps` returns, but asks first how an
        object is reduced: ``reducer(object)`` (NotImplemented: as ever).
    """

    dumps: Callable[..., bytes]
    loads: Callable[..., Any]
    pickler: MakePickler
    start_pickler: MakePickler
    hooked_pickler: Callable[[Any, Callable[[Any], Any]], Any]


def make_serializer(use_dill: bool) -> Serializer:
    """Pickle, or dill.

    Raises
    ------
    ImportError
        dill is not installed.
    """
    if not use_dill:
        return Serializer(pickle.dumps, pickle.loads, _make_pickler, _make_start_pickler, _make_hooked_pickler)
    try:
        import dill
    except ImportError as error:
        raise ImportError("use_dill=True needs dill, which is not installed: pip install fastpool[dill]") from error
    # recurse: what a function of the main program refers to goes along, since workers need not have that program
    dumps = partial(dill.dumps, recurse=True)
    return Serializer(dumps, dill.loads, _make_dill_pickler, _make_dill_start_pickler, _make_hooked_dill_pickler)


def _make_pickler(file: Any, buffer_callback: Callable[[pickle.PickleBuffer], object]) -> Any:
    pickler = pickle.Pickler(file, 5, buffer_callback=buffer_callback)
    pickler.dispatch_table = ChainMap({}, copyreg.dispatch_table)  # type: ignore[arg-type]
    return pickler


def _make_start_pickler(file: Any, buffer_callback: Callable[[pickle.PickleBuffer], object]) -> Any:
    pickler = ForkingPickler(file, 5, True, buffer_callback)
    pickler.dispatch_table = ChainMap({}, pickler.dispatch_table)  # type: ignore
    return pickler


def _make_dill_pickler(file: Any, buffer_callback: Callable[[pickle.PickleBuffer], object]) -> Any:
    import dill

    class Pickler(dill.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            """dill looks at its own table before the dispatch table."""
            reduce = self.dispatch_table.maps[0].get(type(value))
            return NotImplemented if reduce is None else reduce(value)

    pickler = Pickler(file, 5, recurse=True, buffer_callback=buffer_callback)
    pickler.dispatch_table = ChainMap({}, copyreg.dispatch_table)
    return pickler


def _make_dill_start_pickler(file: Any, buffer_callback: Callable[[pickle.PickleBuffer], object]) -> Any:
    pickler = _make_dill_pickler(file, buffer_callback)
    pickler.dispatch_table = ChainMap({}, ForkingPickler(file).dispatch_table)
    return pickler


class _HookedPickler(pickle.Pickler):
    def __init__(self, file: Any, reducer: Callable[[Any], Any]) -> None:
        super().__init__(file, 5)
        self.reducer_override = reducer  # type: ignore[method-assign]


def _make_hooked_pickler(file: Any, reducer: Callable[[Any], Any]) -> Any:
    return _HookedPickler(file, reducer)


def _make_hooked_dill_pickler(file: Any, reducer: Callable[[Any], Any]) -> Any:
    import dill

    pickler = dill.Pickler(file, 5, recurse=True)
    pickler.reducer_override = reducer
    return pickler
