"""The functions of a job, and how they reach workers.

A worker that was forked after the job was published has them by inheritance. One that lives already, or that is no
fork, gets them as a pickle. A module's function travels in a pickle as its name, and the worker's function of that name
may be an older definition (a notebook cell run again); so a fingerprint of the code goes along. A forked worker whose
own function has another one does not run it. One that imported the function itself may see other code than the parent
without harm (a test runner rewrites what it imports, sets are ordered by the process): it does not run the function
once the fingerprint is another than it was given before.
"""

from __future__ import annotations

import functools
import pickle
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from fastpool._packed import reduce_array
from fastpool.definition import Definition, module_of
from fastpool.errors import StaleFunctionError, unsendable
from fastpool.serializer import Serializer

Function = Callable[..., Any]

NO_NAME = ""  # of no function


def no_task() -> None:
    """Stands for the task function in workers that were started for applies."""


class Functions(NamedTuple):
    """What a job calls in its workers."""

    task: Function
    init: Function | None
    exit: Function | None


def dumps(functions: Functions, definitions: list[Definition], serializer: Serializer) -> bytes:
    """Pickle the functions together with their names and the fingerprints of their definitions.

    Raises
    ------
    SerializationError
        Naming the function that cannot be pickled.
    """
    try:
        pickled = serializer.dumps_functions(tuple(functions), reduce_array)  # public arrays stay where they are
    except Exception as error:
        name = name_of(_first_that_fails(functions, serializer))
        detail = f"{name}: {type(error).__qualname__}: {error}"
        raise unsendable(error, "function", None, None, detail) from error
    names = [name_of(function) for function in functions]
    by_value = [serializer.shares_main and module_of(function) == "__main__" for function in functions]
    digests = [None if value else definition.digest for definition, value in zip(definitions, by_value, strict=True)]
    return pickle.dumps((pickled, names, digests), 5)


def _first_that_fails(functions: Functions, serializer: Serializer) -> Function | None:
    for function in functions:
        try:
            serializer.dumps_functions(function, reduce_array)
        except Exception:  # why is known already
            return function
    return functions.task


def loads(blob: bytes, serializer: Serializer, worker_id: int, given: dict[str, bytes | None] | None) -> Functions:
    """The reverse of :func:`dumps`.

    Parameters
    ----------
    blob : bytes
    serializer : Serializer
    worker_id : int
        Of this process.
    given : dict or None
        In a worker that is no fork, the fingerprints that came with each name; updated. None in a fork.

    Raises
    ------
    StaleFunctionError
        A function of this process is not the one that was pickled.
    SerializationError
        They cannot be unpickled here, naming them.
    """
    pickled, names, fingerprints = pickle.loads(blob)
    try:
        functions = Functions(*serializer.loads(pickled))
    except Exception as error:
        what = ", ".join(name for name in names if name != NO_NAME)
        detail = f"{what}: {type(error).__qualname__}: {error}"
        raise unsendable(error, "function", None, worker_id, detail) from error
    for function, name, sent in zip(functions, names, fingerprints, strict=True):
        if sent is None:  # it travelled by value, or cannot be defined again
            continue
        if Definition(function).digest != sent and (given is None or given.get(name, sent) != sent):
            raise StaleFunctionError(name)
    if given is not None:
        given.update(zip(names, fingerprints, strict=True))
    return functions


def name_of(function: Function | None) -> str:
    """Module and name of a callable, as a user would know it."""
    if function is None:
        return NO_NAME
    while isinstance(function, functools.partial):
        function = function.func
    known = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(known, '__module__', None) or 'builtins'}.{known.__qualname__}"


def is_plain(functions: Functions) -> bool:
    """Are these functions that have no state of their own, other than what they share with their module?"""
    kinds = (types.FunctionType, types.BuiltinFunctionType, type, type(None))
    return all(isinstance(function, kinds) for function in functions)
