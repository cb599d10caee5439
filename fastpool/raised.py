"""A raised exception to bytes, so that it comes back as it was, whatever its class's constructor does.

``BaseException`` pickles as a call of its class with ``args``. That is wrong where a constructor written in Python
passes other arguments on than it was given: the call fails, or, worse, succeeds and makes another message. Such an
exception is rebuilt without its constructor: the base that is not written in Python makes it, as that base would pickle
it, and then it gets its arguments, attributes and slots. The rule holds wherever an exception lies in what is sent: in
a group, in an attribute. A class that says itself how it is pickled is left to that.
"""

from __future__ import annotations

import copyreg
import io
import types
from collections.abc import Callable
from typing import Any

from fastpool.serializer import Serializer

NATIVE = (types.WrapperDescriptorType, types.MethodDescriptorType, types.BuiltinFunctionType)


def dumps(error: BaseException, serializer: Serializer) -> bytes:
    """Pickle an exception so that it comes back with its type, arguments and attributes.

    Raises
    ------
    BaseException
        Whatever keeps it from that: a reducer may raise anything.
    """
    try:
        return _dumps(error, serializer, _reduce)
    except BaseException as reason:
        try:
            return _dumps(error, serializer, _rebuild_any)
        except BaseException:
            raise reason from None


def _dumps(error: BaseException, serializer: Serializer, reduce: Callable[[BaseException], Any]) -> bytes:
    stream = io.BytesIO()
    serializer.pickler(
        stream, lambda value: reduce(value) if issubclass(type(value), BaseException) else NotImplemented
    ).dump(error)
    blob = stream.getvalue()
    back = type(serializer.loads(blob))
    if (back.__module__, back.__qualname__) != (type(error).__module__, type(error).__qualname__):
        raise TypeError(f"it comes back as {back.__qualname__}")
    return blob


def _reduce(error: BaseException) -> Any:
    kind = type(error)
    own_way = kind in copyreg.dispatch_table or not _are_native(kind, "__reduce__", "__reduce_ex__", "__setstate__")
    return NotImplemented if own_way or _are_native(kind, "__init__", "__new__") else _rebuild_any(error)


def _are_native(kind: type[BaseException], *methods: str) -> bool:
    return all(isinstance(getattr(kind, method), NATIVE) for method in methods)


def _rebuild_any(error: BaseException) -> Any:
    kind = type(error)
    base = kind
    while not _are_native(base, "__init__", "__new__", "__reduce__"):
        assert base.__base__ is not None
        base = base.__base__
    reduced: tuple[Any, ...] = base.__reduce__(error)  # type: ignore[assignment]
    _, arguments, *state = reduced  # of OSError and others, these are not simply args
    fields = {name: value for name, value in (state[0] if state else {}).items() if name not in error.__dict__}
    fields |= {name: getattr(error, name) for name in _slots(kind) if hasattr(error, name)}
    return _make, (kind, base, arguments), (error.args, fields, error.__dict__), None, None, _restore


def _slots(kind: type[BaseException]) -> list[str]:
    return [
        name
        for base in kind.__mro__
        if "__slots__" in vars(base)
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    ]


def _make(kind: type[BaseException], base: type[BaseException], arguments: tuple[Any, ...]) -> BaseException:
    error: BaseException = base.__new__(kind, *arguments)
    base.__init__(error, *arguments)
    return error


def _restore(error: BaseException, state: tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]) -> None:
    args, fields, attributes = state
    error.args = args
    for name, value in fields.items():
        setattr(error, name, value)
    error.__dict__.update(attributes)
