"""The functions of a job, and how they reach workers.

A worker that was forked after the job was published has them by inheritance. One that lives already gets them as a
pickle. A module's function travels in a pickle as its name, and the worker's function of that name may be an older
definition (a notebook cell run again); so a fingerprint of the code goes along, and a worker whose own function has
another one does not run it.
"""

from __future__ import annotations

import functools
import hashlib
import marshal
import pickle
import types
from collections.abc import Callable
from typing import Any, NamedTuple

Function = Callable[..., Any]


class Functions(NamedTuple):
    """What a job calls in its workers."""

    task: Function
    init: Function | None
    exit: Function | None


class StaleFunctionError(Exception):
    """This process has an older definition of a function that travelled by name."""


def dumps(functions: Functions) -> bytes:
    """Pickle the functions together with their fingerprints."""
    return pickle.dumps((tuple(functions), [fingerprint(function) for function in functions]), 5)


def loads(blob: bytes) -> Functions:
    """The reverse of :func:`dumps`.

    Raises
    ------
    StaleFunctionError
        A function of this process is not the one that was pickled.
    """
    given, fingerprints = pickle.loads(blob)
    functions = Functions(*given)
    if [fingerprint(function) for function in functions] != fingerprints:
        raise StaleFunctionError
    return functions


def code_of(function: Any) -> types.FunctionType | None:
    """The Python function behind a callable, if there is one."""
    while True:
        if isinstance(function, types.FunctionType):
            return function
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(function, type):
            function = vars(function).get("__init__")
        elif isinstance(getattr(type(function), "__call__", None), types.FunctionType):  # noqa: B004
            function = type(function).__call__
        else:
            return None


def fingerprint(function: Function | None) -> bytes | None:
    """A digest of a function's code and defaults; None for what is not written in Python."""
    python = code_of(function)
    if python is None:
        return None
    defaults = []
    for value in [*(python.__defaults__ or ()), *(python.__kwdefaults__ or {}).items()]:
        try:
            defaults.append(pickle.dumps(value, 5))
        except Exception:  # an object that cannot be pickled: its type has to do
            defaults.append(type(value).__qualname__.encode())
    return hashlib.blake2b(marshal.dumps(python.__code__) + b"\0".join(defaults), digest_size=16).digest()


def is_same(old: Functions, new: Functions) -> bool:
    """Are these the same objects, with nothing in them that can have changed since?"""
    return all(a is b and (a is None or _is_plain(a)) for a, b in zip(old, new, strict=True))


def _is_plain(function: Any) -> bool:
    if isinstance(function, types.BuiltinFunctionType):
        return True
    return (
        isinstance(function, types.FunctionType)
        and not function.__closure__
        and not function.__defaults__
        and not function.__kwdefaults__
        and not function.__dict__
    )
