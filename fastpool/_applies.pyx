"""Applies: encoded one by one, published for workers to claim, beside a map.

Small arguments lie in the apply's slot, others in blocks, until its result is there. A slot is free again as soon as
its worker shows that it has begun, so that those which take long do not hold up others.
"""

from libc.stdint cimport uint64_t

from fastpool._feed cimport BufferEncoder, ListEncoder, free_blocks
from fastpool._native cimport (
    FP_APPLY, FP_APPLY_BYTES, FP_APPLY_SLOTS, Segment, fp_apply_of, fp_apply_slot, store,
)

from fastpool.errors import DamagedMemoryError


cdef class Applies:
    """
    Parameters
    ----------
    segment : Segment
    serializer : Serializer
        For arguments that have no record of their own kind.
    """

    def __cinit__(self, Segment segment, serializer):
        self.segment = segment
        self.encoder = BufferEncoder(segment) if segment.exchange is None else ListEncoder(segment)
        self.encoder.dumps = serializer.dumps
        self.encoder.make_pickler = serializer.pickler
        self.out = {}
        if segment.exchange is not None:
            segment.exchange.applies = {}

    def __len__(self) -> int:
        """Applies that are published and not collected."""
        return len(self.out)

    def __iter__(self):
        """What their results are to be put into."""
        return iter([result for _, _, result in self.out.values()])

    @property
    def oldest(self) -> int | None:
        """The first unit that is not collected."""
        return next(iter(self.out), None)

    def get(self, unit):
        """What the result of an apply is to be put into; None: it is not out."""
        cdef tuple entry = self.out.get(unit)
        return None if entry is None else entry[2]

    cdef bint has_slot(self) except -1:
        """Is there a slot for one more, perhaps that of one which has begun meanwhile?"""
        if self.users[self.published % FP_APPLY_SLOTS] == 0:
            return True
        for worker in range(self.segment.lanes):
            begun = self.segment.begun_apply(worker)
            if begun is not None:
                self.give_slot_back(begun)
        return self.users[self.published % FP_APPLY_SLOTS] == 0

    cdef int give_slot_back(self, uint64_t unit) except -1:
        if self.users[unit % FP_APPLY_SLOTS] == unit + 1:
            self.users[unit % FP_APPLY_SLOTS] = 0
        return 0

    def publish(self, function, tuple args, dict keywords, uint64_t limit_ns, result) -> bool:
        """Hand an apply to the workers. False: there is no room until others are done.

        Whole: no handler of a signal runs between what the workers see and what is noted here.

        Parameters
        ----------
        function : callable or bytes
            As the worker's host takes it.
        args, keywords : tuple, dict
            What it is called with.
        limit_ns : int
            How long it may take; 0: any time.
        result : AsyncResult
            Comes back with what becomes of it; its ``unit`` is set.
        """
        cdef uint64_t unit = self.published
        cdef uint64_t slot = unit % FP_APPLY_SLOTS
        cdef uint64_t offset = 0
        cdef BufferEncoder encoder = self.encoder
        cdef fp_apply_slot *entry = fp_apply_of(self.segment.at, unit)
        cdef tuple element = (function, args, keywords, limit_ns)
        cdef list blocks = []
        if not self.has_slot():
            return False
        encoder.number = unit
        try:
            encoder.put(element)
            encoder.close()
            if not encoder.lay_down(&offset, blocks, entry.data, FP_APPLY_BYTES):
                return False
            entry.slot.offset = offset
            entry.slot.bytes = encoder.writer.position
            blocks += encoder.placed
            self.out[unit] = blocks, encoder.kept, result
            encoder.placed = []
        finally:
            free_blocks(self.segment, encoder.placed)
            encoder.clear()
        entry.slot.first = unit
        entry.slot.count = 1
        entry.slot.skip = 0
        if self.segment.exchange is not None:
            self.segment.exchange.applies[unit] = element
        self.users[slot] = unit + 1
        result.unit = unit
        self.published += 1
        store(self.segment.at.jobs[FP_APPLY].avail, self.published)
        return True

    cdef tuple entry_of(self, uint64_t unit):
        cdef tuple entry = self.out.get(unit)
        if entry is None:
            raise DamagedMemoryError("a result of an apply that was not handed out")
        return entry

    cdef int forget(self, uint64_t unit, tuple entry) except -1:
        """The result of an apply is there, or will never be."""
        self.out.pop(unit)
        free_blocks(self.segment, entry[0])
        self.give_slot_back(unit)
        if self.segment.exchange is not None:
            self.segment.exchange.applies.pop(unit, None)
        return 0

    def drop(self, uint64_t unit) -> None:
        """No result of this apply will come."""
        self.forget(unit, self.entry_of(unit))
