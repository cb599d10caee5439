"""How values travel where workers are threads: by reference.

What is on its way lies in Python lists, which own it: of the input those of the chunks, which the parent holds until
their results are collected; of the results an :class:`Outbox` for each worker. A lane's records only tell in which
order. So nobody follows an address out of memory that a stray write may have hit, and whatever is not taken goes with
its list.
"""

from libc.stdint cimport uint64_t

import numpy

from fastpool.errors import DamagedMemoryError

cdef enum:
    MOST_HOLES = 4096  # at the start of an outbox that is never empty


cdef class Outbox:
    def __cinit__(self):
        self.items = []

    cdef uint64_t put(self, object value) except 0:
        """Append a value. Returns what the record says of it."""
        self.items.append(value)
        return <uint64_t><size_t><void *>value

    cdef object take(self, uint64_t address):
        """The next value, which must be the one that the record speaks of."""
        cdef object value
        cdef Py_ssize_t count = len(self.items)
        if self.taken >= count:
            raise DamagedMemoryError("a record tells of an object that was not sent")
        value = self.items[self.taken]
        if <uint64_t><size_t><void *>value != address:
            raise DamagedMemoryError("a record tells of another object than was sent")
        self.items[self.taken] = None
        self.taken += 1
        if self.taken == count or self.taken > MOST_HOLES and 2 * self.taken > count:
            del self.items[:self.taken]
            self.taken = 0
        return value

    cdef void clear(self) noexcept:
        self.items, self.taken = [], 0


cdef class Places:
    """
    Parameters
    ----------
    whole : numpy.ndarray
    starts : list of int
    """

    def __cinit__(self, whole, list starts):
        self.whole = whole
        self.starts = starts
        self.row_shape = whole.shape[1:]

    cdef bint put(self, uint64_t task, object value) except -1:
        """Copy a task's result to its place. False: it does not belong there as it is."""
        if type(value) is not numpy.ndarray:
            return False
        first, end = self.starts[task], self.starts[task + 1]
        if value.dtype != self.whole.dtype or value.shape != (end - first,) + self.row_shape:
            return False
        self.whole[first:end] = value
        return True


cdef class Exchange:
    """
    Parameters
    ----------
    lanes : int
    """

    def __cinit__(self, int lanes):
        self.outboxes = [Outbox() for _ in range(lanes)]
        self.workers = {}
        self.applies = {}

    cdef int offer(self, list chunks, bint copied) except -1:
        """Elements of a job's input will be in these lists."""
        self.chunks, self.copied = chunks, copied
        return 0

    cdef list chunk(self, uint64_t slot):
        """The elements of a chunk; none, if the job is over."""
        return None if self.chunks is None else <list>self.chunks[slot]

    cdef Outbox outbox(self, int lane):
        return <Outbox>self.outboxes[lane]

    cdef int replace_outbox(self, int lane) except -1:
        """The lane is for another worker: nothing of the last one's is taken any more."""
        (<Outbox>self.outboxes[lane]).clear()
        self.outboxes[lane] = Outbox()
        return 0

    cdef void end_job(self) noexcept:
        self.chunks = self.places = None

    def close(self) -> None:
        """Let go of everything, whoever still holds this."""
        self.end_job()
        self.functions = None
        self.applies = {}
        for outbox in self.outboxes:
            (<Outbox>outbox).clear()
