"""What callables are defined by, followed through decorators, partials, methods, classes and helpers of their module.

Two questions are answered: has a definition changed since it was looked at (by identity, in a microsecond or two, for
the next map), and is another process's definition of the same name the same (by digest)?
"""

from __future__ import annotations

import functools
import hashlib
import marshal
import pickle
import types
from collections.abc import Callable, Iterator
from typing import Any

MOST_PARTS = 500  # of one definition; what lies beyond is taken to be the same
WITHOUT_REFERENCES = 2  # version of marshal's format in which equal code has equal bytes
CONSTANTS = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis))


class Definition:
    """What a callable is defined by, as it is now.

    Parameters
    ----------
    function : callable or None

    Attributes
    ----------
    digest : bytes or None
        Equal for equal definitions; None where nothing is written in Python. Of defaults and captured values that can
        change, only the types count: a worker's own may have changed by its own doing.
    """

    def __init__(self, function: Callable[..., Any] | None) -> None:
        self._checks: list[Callable[[], bool]] = []
        self._seen: dict[int, Any] = {}  # by id, and kept, so that no id is another's meanwhile
        self._parts: list[bytes] = []
        self._module = module_of(function)
        self._add(function)
        joined = b"".join(len(part).to_bytes(8, "little") + part for part in self._parts)
        self.digest = hashlib.blake2b(joined, digest_size=16).digest() if self._checks else None

    @property
    def is_current(self) -> bool:
        """Is everything still the very objects it was?"""
        return all(check() for check in self._checks)

    def _add(self, value: Any) -> None:
        if id(value) in self._seen or len(self._seen) >= MOST_PARTS:
            return
        self._seen[id(value)] = value
        if isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self._add(part)
        elif isinstance(value, types.MethodType):
            self._add(value.__func__)
            self._add(type(value.__self__) if not isinstance(value.__self__, type) else value.__self__)
        elif isinstance(value, (staticmethod, classmethod)):
            self._add(value.__func__)
        elif isinstance(value, property):
            for part in (value.fget, value.fset, value.fdel):
                self._add(part)
        elif isinstance(value, type):
            self._add_class(value)
        elif callable(value) and hasattr(value, "__wrapped__"):  # functools.lru_cache, singledispatch and their like
            self._add(value.__wrapped__)
        elif callable(value) and self._is_near(type(value)):
            self._add(type(value))
            attributes = dict(getattr(value, "__dict__", {}))
            self._checks.append(lambda: same_objects(attributes, getattr(value, "__dict__", {})))

    def _add_function(self, function: types.FunctionType) -> None:
        code, defaults, keyword = function.__code__, function.__defaults__, function.__kwdefaults__
        cells = function.__closure__ or ()
        self._parts.append(marshal.dumps(code, WITHOUT_REFERENCES))
        self._checks.append(lambda: function.__code__ is code)
        self._checks.append(lambda: function.__defaults__ is defaults and function.__kwdefaults__ is keyword)
        for value in (*(defaults or ()), *(keyword or {}).items()):
            self._add_value(value)
        for cell in cells:
            value = contents(cell)
            self._checks.append(lambda cell=cell, value=value: contents(cell) is value)  # type: ignore[misc]
            self._add_value(value)
        if wrapped := getattr(function, "__wrapped__", None):
            self._add(wrapped)
        for name in names_in(code):
            self._add_global(function.__globals__, name)

    def _add_global(self, names: dict[str, Any], name: str) -> None:
        """A helper that the function refers to, of the same module."""
        value = names.get(name)
        if callable(value) and self._is_near(value):
            self._checks.append(lambda: names.get(name) is value)
            self._add(value)

    def _add_class(self, kind: type) -> None:
        for base in kind.__mro__:
            if not self._is_near(base):
                continue
            members = {name: value for name, value in vars(base).items() if callable(value) or is_descriptor(value)}
            for name, value in members.items():
                self._parts.append(name.encode())
                self._checks.append(lambda base=base, name=name, value=value: vars(base).get(name) is value)  # type: ignore[misc]
                self._add(value)

    def _add_value(self, value: Any) -> None:
        """A default, or a captured value."""
        constant = constant_bytes(value)
        self._parts.append(constant if constant is not None else type(value).__qualname__.encode())
        if callable(value):
            self._add(value)

    def _is_near(self, value: Any) -> bool:
        """Is it defined where the callable is? Other modules do not change."""
        return self._module is not None and getattr(value, "__module__", None) == self._module


def same_objects(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(other[name] is value for name, value in one.items())


def module_of(function: Any) -> str | None:
    while isinstance(function, functools.partial):
        function = function.func
    named = function if getattr(function, "__module__", None) else type(function)
    return getattr(named, "__module__", None)


def names_in(code: types.CodeType) -> Iterator[str]:
    """Global names and attributes that code, and code inside it, uses."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def is_descriptor(value: Any) -> bool:
    return isinstance(value, (staticmethod, classmethod, property))


def constant_bytes(value: Any) -> bytes | None:
    """The bytes of a value that cannot change; None for others."""
    if type(value) in (tuple, frozenset):
        parts = [constant_bytes(part) for part in value]
        if any(part is None for part in parts):
            return None
        return pickle.dumps((type(value).__name__, parts if type(value) is tuple else sorted(parts)), 5)  # type: ignore[type-var]
    return pickle.dumps(value, 5) if type(value) in CONSTANTS else None


def variable_defaults(function: Any) -> list[Any]:
    """A Python function's defaults that can change."""
    if not isinstance(function, types.FunctionType):
        return []
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [value for value in values if constant_bytes(value) is None]


def same_defaults(one: Any, other: Any) -> bool:
    """Do two definitions of a function, equal in everything else, have equal defaults?"""
    if one is other:
        return True
    mine, its = variable_defaults(one), variable_defaults(other)
    try:
        return pickle.dumps(mine, 5) == pickle.dumps(its, 5)
    except Exception:  # what cannot be pickled is the same if it is the same object
        return all(a is b for a, b in zip(mine, its, strict=False))
