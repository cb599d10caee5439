"""dill, and what of the main program goes along. Imported only where a pool was told ``use_dill``.

dill alone would send each function with globals of its own, and each class of the main program as a new class. Here
the main program is one namespace in every process. Its classes travel as their names, and are the receiver's own. To
a worker they go by value too: it need not be able to import the program, and may have an older definition. In a worker
that is no fork its functions have that namespace as globals, and the names they refer to go along, with the values of
its classes. A worker binds a name again only if the owner's value is another than the owner gave before: what
``worker_init`` and tasks have set stays.

The name of this module is dill's condition for treating a pickler as its own.
"""

from __future__ import annotations

import abc
import contextlib
import dis
import functools
import hashlib
import io
import itertools
import os
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dill

from fastpool.definition import Definition

Reduce = Callable[[Any], Any]
BufferCallback = Callable[[pickle.PickleBuffer], object]
Tail = Callable[[set[str]], Iterator[tuple[Any, ...]]]

MAIN, IMPORTED = "__main__", "__mp_main__"  # what the main program is called where it runs, and in spawned workers

loads: Callable[..., Any] = functools.partial(dill.loads, ignore=True)  # types are what they are made as


# ---------------------------------------------------------------- the main program in this process


_main: tuple[types.ModuleType | None, dict[str, Any]] = (None, {})


def main_names() -> dict[str, Any]:
    """The globals of the main program's functions. Where ``multiprocessing`` imported it, not those of the module."""
    global _main
    main = sys.modules[MAIN]
    if _main[0] is not main:
        imported = functions_of(main) if main.__name__ == IMPORTED else ()
        _main = main, next((one.__globals__ for one in imported if one.__globals__["__name__"] == IMPORTED), vars(main))
    return _main[1]


def functions_of(module: types.ModuleType) -> Iterator[types.FunctionType]:
    """Functions at a module's top level, in its classes, and under their decorators."""
    for value in vars(module).values():
        for member in vars(value).values() if isinstance(value, type) else (value,):
            function = getattr(member, "__func__", None) if isinstance(member, (staticmethod, classmethod)) else member
            function = member.fget if isinstance(member, property) else function
            while isinstance(function, types.FunctionType):
                yield function
                function = vars(function).get("__wrapped__")


def find(qualname: str) -> Any:
    """What the main program has under a name, with dots in it; None: nothing."""
    first, *rest = qualname.split(".")
    found = main_names().get(first)
    for name in rest:
        found = getattr(found, name, None)
    return found


def bind(qualname: str, value: Any) -> None:
    kind, _, name = qualname.rpartition(".")
    if kind:
        setattr(find(kind), name, value)
        return
    for names in (main_names(), vars(sys.modules[MAIN])):
        names[name] = value


def is_of_main(kind: type) -> bool:
    """Is it a class that the main program has under its qualified name?"""
    return kind.__module__ in (MAIN, IMPORTED) and find(kind.__qualname__) is kind


def values_in(kind: type) -> Iterator[str]:
    """Qualified names of a class's own attributes that are no part of its definition, and may be set."""
    if type(kind).__setattr__ is type.__setattr__:  # no Enum
        for name, value in vars(kind).items():
            if not (name.startswith(("__", "_abc_")) or callable(value) or hasattr(type(value), "__get__")):
                yield f"{kind.__qualname__}.{name}"


@functools.lru_cache(1000)
def global_names(code: types.CodeType) -> frozenset[str]:
    """Globals that code, and code inside it, reads or sets."""
    own = {step.argval for step in dis.get_instructions(code) if "GLOBAL" in step.opname or step.opname == "LOAD_NAME"}
    return frozenset(own).union(*(global_names(part) for part in code.co_consts if isinstance(part, types.CodeType)))


# ---------------------------------------------------------------- what arrives: pickles call these


_versions: dict[str, tuple[type, bytes]] = {}  # the main program's classes by name, and which definition each is
_parcels: dict[bytes, bytes | str] = {}  # classes by value, by version; or why there is none
_given: dict[str, bytes] = {}  # digests of what the owner gave for a name
_bundles: set[int] = set()  # that were opened


def main_class(qualname: str) -> type:
    """A class of this process's main program."""
    found = find(qualname)
    if not isinstance(found, type):
        raise AttributeError(f"the main program has no class {qualname}")
    return found


def given_class(
    name: str, version: bytes, parcels: dict[bytes, bytes | str] | None = None, digest: bytes | None = None
) -> type:
    """The worker's own class for one of its owner's, if it has this version of it; else it is made, once.

    A worker that has imported the program takes its own class for the version that it hears of first; a fork, whose
    owner may have defined it again since, if it has the digest.
    """
    _parcels.update(parcels or {})
    own = find(name)
    if isinstance(own, type):
        if own is not _versions.get(name, (None,))[0] and (digest is None or Definition(own).digest == digest):
            _versions[name] = own, version
        if _versions.get(name) == (own, version):
            return own
    parcel = _parcels[version]
    if isinstance(parcel, str):
        raise pickle.UnpicklingError(f"the worker has no class {name}, which cannot be sent: {parcel}")
    made: type = loads(parcel)
    _versions[name] = made, version
    bind(name, made)
    return made


def give(values: dict[str, Any], digests: dict[str, bytes]) -> None:
    """Bind the owner's names that are new."""
    names = main_names()
    for name, value in values.items():
        kept = name in names and name.startswith("__")  # the worker's module is another
        if _given.get(name) != digests[name] and not kept:
            _given[name] = digests[name]
            bind(name, value)


def open_bundle(number: int, bundle: bytes) -> None:
    """Bind the names of a bundle, once."""
    if number not in _bundles:
        _bundles.add(number)
        loads(bundle)


# ---------------------------------------------------------------- what is sent


class _Whole(NamedTuple):
    """The value of a pickle, which may be followed by what it needs."""

    value: Any


@dill.register(_Whole)  # type: ignore[untyped-decorator]
def _save_whole(pickler: _Pickler, whole: _Whole) -> None:
    pickler.save(whole.value)
    for reduction in pickler.tail():
        pickler.save_reduce(*reduction)
        pickler.write(pickle.POP)


class _Pickler(dill.Pickler, abc.ABC):  # type: ignore[misc]
    """A dill pickler that asks first how an object is reduced. Subclasses know whom it goes to."""

    def __init__(self, file: Any, reduce: Reduce | None = None, buffer_callback: BufferCallback | None = None) -> None:
        # recurse: what a function refers to goes along
        super().__init__(file, 5, recurse=True, buffer_callback=buffer_callback)
        self.reduce = reduce

    def reducer_override(self, value: Any) -> Any:
        if issubclass(type(value), type) and is_of_main(value):
            reduced = self.reduce_class(value)
            if reduced is not NotImplemented:
                return reduced
        return NotImplemented if self.reduce is None else self.reduce(value)

    @abc.abstractmethod
    def reduce_class(self, kind: type) -> Any:
        """As ``reducer_override``, of a class of the main program."""

    def tail(self) -> Iterator[tuple[Any, ...]]:
        return iter(())

    def dump(self, value: Any) -> None:
        super().dump(_Whole(value))


class _Sender(abc.ABC):
    """One direction of a pool's pickles."""

    loads = staticmethod(loads)

    @abc.abstractmethod
    def pickler(self, file: Any, reduce: Reduce | None, buffer_callback: BufferCallback | None = None) -> _Pickler:
        """As :class:`fastpool.serializer.Serializer` has it."""

    def dumps(self, value: Any, protocol: int, buffer_callback: BufferCallback | None = None) -> bytes:
        file = io.BytesIO()
        self.pickler(file, None, buffer_callback).dump(value)
        return file.getvalue()

    def dumps_functions(self, functions: Any, reduce: Reduce) -> bytes:
        """As :class:`fastpool.serializer.Serializer` has it."""
        file = io.BytesIO()
        self.pickler(file, reduce).dump(functions)
        return file.getvalue()

    def begin_job(self) -> None:  # noqa: B027 (most have nothing to do)
        """Names are looked at anew."""


class _ToOwnerPickler(_Pickler):
    owners: frozenset[str]

    def reduce_class(self, kind: type) -> Any:
        known = kind.__qualname__.partition(".")[0]
        return (main_class, (kind.__qualname__,)) if known in self.owners or known in _versions else NotImplemented


class ToOwner(_Sender):
    """What a worker sends. Made when the worker is: what the main program has then is the owner's."""

    def __init__(self) -> None:
        self._owners = frozenset(name for name, value in main_names().items() if isinstance(value, type))

    def pickler(self, file: Any, reduce: Reduce | None, buffer_callback: BufferCallback | None = None) -> _Pickler:
        pickler = _ToOwnerPickler(file, reduce, buffer_callback)
        pickler.owners = self._owners
        return pickler


class _Parcel(NamedTuple):
    """A class of the main program by value: made once, until it is defined again, or one of its methods is."""

    kind: type
    definition: Definition
    version: bytes
    contents: dict[bytes, bytes | str]  # by version: the class, and those that it is made of
    names: frozenset[str]  # that they refer to


class _ToWorker(_Sender):
    def __init__(self) -> None:
        self._by_value: dict[str, _Parcel] = {}
        self._making: set[str] = set()

    def parcel(self, kind: type) -> _Parcel:
        name = kind.__qualname__
        known = self._by_value.get(name)
        if known is None or known.kind is not kind or not known.definition.is_current:
            if name in self._making:
                raise TypeError(f"the class {name} has itself in it, by another")
            self._making.add(name)
            try:
                known = self._by_value[name] = self._pack(kind, None if known is None else known.version)
            finally:
                self._making.discard(name)
        return known

    def _pack(self, kind: type, before: bytes | None) -> _Parcel:
        of, version = _versions.get(kind.__qualname__, (None, b""))
        if of is not kind or version == before:
            version = os.urandom(8)
            _versions[kind.__qualname__] = kind, version
        contents: dict[bytes, bytes | str] = {}
        names: frozenset[str] = frozenset()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", dill.PicklingWarning)  # of an Enum it would send the name
                contents[version], others, names = self.by_value(kind)
            contents |= others
        except Exception as error:  # it matters to a worker that has no such class
            contents[version] = f"{type(error).__qualname__}: {error}"
        return _Parcel(kind, Definition(kind), version, contents, names)

    @abc.abstractmethod
    def by_value(self, kind: type) -> tuple[bytes, dict[bytes, bytes | str], frozenset[str]]:
        """A class, others that it is made of, and names that they refer to."""


class _ToForkPickler(_Pickler):
    sender: ToFork

    def reduce_class(self, kind: type) -> Any:
        name, _, inner = kind.__qualname__.partition(".")
        if inner:
            return main_part, (find(name), inner)
        parcel = self.sender.parcel(kind)
        return given_class, (name, parcel.version, parcel.contents, parcel.definition.digest)


def main_part(outer: type, qualname: str) -> Any:
    """A class inside a class of the main program."""
    for name in qualname.split("."):
        outer = getattr(outer, name)
    return outer


class ToFork(_ToWorker):
    """What goes to forks, which have the main program's names as they were at the fork. Functions have their own."""

    def pickler(self, file: Any, reduce: Reduce | None, buffer_callback: BufferCallback | None = None) -> _Pickler:
        pickler = _ToForkPickler(file, reduce, buffer_callback)
        pickler.sender = self
        return pickler

    def by_value(self, kind: type) -> tuple[bytes, dict[bytes, bytes | str], frozenset[str]]:
        return dill.dumps(kind, 5, recurse=True), {}, frozenset()


class _ToFreshPickler(_Pickler):
    """Notes which names the main program's functions refer to, and gives these functions the namespace they are in."""

    sender: ToFresh
    made: type | None = None  # this one is sent by value
    follow: Tail | None = None  # what to do about the names
    bare = False  # others do not bring their parcels

    def __init__(self, file: Any, reduce: Reduce | None = None, buffer_callback: BufferCallback | None = None) -> None:
        super().__init__(file, reduce, buffer_callback)
        self.names: set[str] = set()
        self.parcels: dict[bytes, bytes | str] = {}
        self.main = vars(sys.modules[MAIN])

    def reducer_override(self, value: Any) -> Any:
        if value is self.main:
            return main_names, ()
        if type(value) is types.FunctionType:
            shares = value.__globals__ is self.main and value.__module__ == MAIN
            self._recurse = not shares
            if shares:
                self.names |= global_names(value.__code__)
        return super().reducer_override(value)

    def reduce_class(self, kind: type) -> Any:
        name, _, inner = kind.__qualname__.partition(".")
        outer = find(name)
        if outer is self.made:
            return NotImplemented
        if inner:
            return main_part, (outer, inner)
        parcel = self.sender.parcel(kind)
        self.names |= parcel.names.union(values_in(kind))
        self.parcels |= parcel.contents
        return given_class, (name, parcel.version) if self.bare else (name, parcel.version, parcel.contents)

    def tail(self) -> Iterator[tuple[Any, ...]]:
        return iter(()) if self.follow is None else self.follow(self.names)


class ToFresh(_ToWorker):
    """What goes to workers that are no forks."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count()
        self.begin_job()

    def begin_job(self) -> None:
        self._digests: dict[str, bytes] = {}
        self._bundles: dict[frozenset[str], tuple[int, bytes]] = {}

    def _pickler(
        self, file: Any, reduce: Reduce | None, buffer_callback: BufferCallback | None, follow: Tail | None
    ) -> _ToFreshPickler:
        pickler = _ToFreshPickler(file, reduce, buffer_callback)
        pickler.sender = self
        pickler.follow = follow
        return pickler

    def pickler(self, file: Any, reduce: Reduce | None, buffer_callback: BufferCallback | None = None) -> _Pickler:
        return self._pickler(file, reduce, buffer_callback, self._bundled)

    def dumps_functions(self, functions: Any, reduce: Reduce) -> bytes:
        """Together with the names they refer to, so that what is one object there stays one."""
        file = io.BytesIO()
        self._pickler(file, reduce, None, self._inside).dump(functions)
        return file.getvalue()

    def by_value(self, kind: type) -> tuple[bytes, dict[bytes, bytes | str], frozenset[str]]:
        file = io.BytesIO()
        pickler = self._pickler(file, None, None, None)
        pickler.made, pickler.bare = kind, True
        pickler.dump(kind)
        return file.getvalue(), pickler.parcels, frozenset(pickler.names)

    def _inside(self, wanted: set[str]) -> Iterator[tuple[Any, ...]]:
        """The names as they are, and those that are met on the way."""
        seen: set[str] = set()
        while new := sorted(wanted - seen):
            seen |= wanted
            values = {name: value for name in new for value in self._values(name)}
            yield give, (values, {name: self._digest(name, value) for name, value in values.items()})

    def _values(self, name: str) -> Iterator[Any]:
        """What a name stands for; nothing, if that is nothing. A class's value that cannot be sent stays here."""
        main = vars(sys.modules[MAIN])
        if name in main:
            yield main[name]
        kind, _, attribute = name.rpartition(".")
        values = vars(find(kind)) if kind else {}
        if attribute in values:
            with contextlib.suppress(Exception):
                self._digest(name, values[attribute])
                yield values[attribute]

    def _bundled(self, wanted: set[str]) -> Iterator[tuple[Any, ...]]:
        """The names in a pickle of their own, which is made once for a job."""
        if not wanted:
            return
        names = frozenset(wanted)
        if names not in self._bundles:
            file = io.BytesIO()
            pickler = self._pickler(file, None, None, self._inside)
            pickler.names |= names
            pickler.dump(None)
            self._bundles[names] = next(self._numbers), file.getvalue()
        yield open_bundle, self._bundles[names]

    def _digest(self, name: str, value: Any) -> bytes:
        if name not in self._digests:
            digest = _Digest()
            pickler = self._pickler(digest, None, None, None)
            pickler.bare = True
            pickler.dump(value)
            self._digests[name] = digest.hash.digest()
        return self._digests[name]


class _Digest:
    """A file that keeps nothing."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> None:
        self.hash.update(data)
