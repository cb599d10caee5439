"""What reaches a worker that is no fork of its owner: descriptors, and the pool's shared objects.

Everything goes by descriptor, through ``multiprocessing``'s own machinery (``multiprocessing.reduction.DupFd``), which
knows how to give descriptors to a spawned process and to one of the fork server's. Inside what is sent, a descriptor
is named by its number in the owner; :func:`take` finds the worker's own.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
from collections.abc import Iterable, Iterator
from multiprocessing import context, reduction
from typing import Any, NamedTuple

from fastpool._native import create_memory
from fastpool._packed import reduce_array
from fastpool.errors import unsendable
from fastpool.serializer import Serializer

ALIGNMENT = 64  # of arrays

_received: dict[int, int] = {}  # in a worker: its own descriptors by their numbers in the owner


class Descriptors:
    """Descriptors that go to the process that is being started. Unpickling this makes them known to :func:`take`.

    Parameters
    ----------
    numbers : iterable of int
        May have a number twice (it is sent once), and -1, which stands for none.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers = sorted({number for number in numbers if number >= 0})

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, ({number: reduction.DupFd(number) for number in self.numbers},)


def _receive(given: dict[int, Any]) -> None:
    for number, there in given.items():
        _received[number] = there.detach()
        os.set_inheritable(_received[number], False)


def take(numbers: Iterable[int]) -> list[int]:
    """This process's own descriptors for numbers of the owner (-1 stays -1). They belong to the caller from now on."""
    numbers = list(numbers)
    own = {number: _received.pop(number) for number in set(numbers) if number >= 0}
    return [own.get(number, -1) for number in numbers]


class Forwarded:
    """A descriptor inside the shared objects: of a pipe, a queue, shared memory."""

    def __init__(self, number: int) -> None:
        self.number = number

    def detach(self) -> int:
        return os.dup(_received[self.number])


class Recorder:
    """Stands for a process being started while objects are pickled that travel only then; notes their descriptors."""

    DupFd = Forwarded

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def duplicate_for_child(self, number: int) -> int:
        self.numbers.append(number)
        return number


class Packed(NamedTuple):
    """Shared objects on their way to workers: where they are. Made by :func:`pack`.

    Attributes
    ----------
    fd : int
        Of the memory that holds the pickle and, out of band, its buffers.
    places : list of (int, int)
        Begin and end of each in the memory.
    forwarded : list of int
        Descriptors that the objects hold.
    """

    fd: int
    places: list[tuple[int, int]]
    forwarded: list[int]

    @property
    def descriptors(self) -> list[int]:
        """Everything a worker must be given for :func:`unpack`."""
        return [self.fd, *self.forwarded]


def pack(shared_objects: Any, serializer: Serializer) -> Packed:
    """Pickle shared objects into memory of their own. The caller closes ``fd`` when no more workers will be started.

    Raises
    ------
    SerializationError
        They cannot be pickled.
    """
    recorder = Recorder()
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    context.set_spawning_popen(recorder)  # type: ignore[arg-type]
    try:
        pickler = serializer.pickler(stream, reduce_array, buffers.append)  # public arrays stay where they are
        pickler.dispatch_table = reduction.ForkingPickler(stream).dispatch_table  # what travels only at a start
        pickler.dump(shared_objects)
        # No view of the stream: in a cycle of garbage, as errors make them, it makes Python 3.12 crash (gh-111049).
        parts = [memoryview(stream.getvalue()), *(buffer.raw() for buffer in buffers)]
    except Exception as error:
        raise unsendable(error, "shared_objects", None, None, f"{type(error).__qualname__}: {error}") from error
    finally:
        context.set_spawning_popen(None)
    places: list[tuple[int, int]] = []
    end = 0
    for part in parts:
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        end = begin + part.nbytes
        places.append((begin, end))
    fd = create_memory(end)
    try:
        with refusals_named(f"cannot share {end} bytes of shared objects"):
            for part, (begin, _) in zip(parts, places, strict=True):
                _write(fd, part, begin)
    except BaseException:
        os.close(fd)
        raise
    return Packed(fd, places, recorder.numbers)


@contextlib.contextmanager
def refusals_named(what: str) -> Iterator[None]:
    """Where Python's own calls are refused, say for what they were made."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}") from error


def _write(fd: int, part: memoryview, at: int) -> None:
    """By system calls: where memory runs out they fail, and a store through a mapping would be a signal."""
    while part.nbytes:
        written = os.pwrite(fd, part, at)
        part, at = part[written:], at + written


def unpack(packed: Packed, serializer: Serializer, worker_id: int) -> Any:
    """In a worker: the objects. Arrays lie in the shared memory, copied page by page where this worker writes.

    Raises
    ------
    SerializationError
        They cannot be unpickled here.
    """
    [fd] = take([packed.fd])
    try:
        with refusals_named("cannot map the shared objects"):
            whole = memoryview(mmap.mmap(fd, packed.places[-1][1], access=mmap.ACCESS_COPY))
    finally:
        os.close(fd)
    pickled, *buffers = (whole[begin:end] for begin, end in packed.places)
    try:
        return serializer.loads(pickled, buffers=buffers)
    except Exception as error:
        detail = f"unpickling failed with {type(error).__qualname__}: {error}"
        raise unsendable(error, "shared_objects", None, worker_id, detail) from error
    finally:
        for number in take(packed.forwarded):
            os.close(number)
