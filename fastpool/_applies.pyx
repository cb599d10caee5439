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

    @property
    def unfinished(self) -> int:
        """Applies that are published and not collected."""
        return len(self.out)

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

    def publish(self, function, tuple args, dict keywords, uint64_t limit_ns) -> int | None:
        """Hand an apply to the workers. Returns its number; None: there is no room until others are done.

        Parameters
        ----------
        function : callable or bytes
            As the worker's host takes it.
        args, keywords : tuple, dict
            What it is called with.
        limit_ns : int
            How long it may take; 0: any time.
        """
        cdef uint64_t unit = self.published
        cdef uint64_t slot = unit % FP_APPLY_SLOTS
        cdef uint64_t offset = 0
        cdef BufferEncoder encoder = self.encoder
        cdef fp_apply_slot *entry = fp_apply_of(self.segment.at, unit)
        cdef tuple element = (function, args, keywords, limit_ns)
        cdef list blocks = []
        if not self.has_slot():
            return None
        encoder.number = unit
        try:
            encoder.put(element)
            encoder.close()
            if not encoder.lay_down(&offset, blocks, entry.data, FP_APPLY_BYTES):
                return None
            entry.slot.offset = offset
            entry.slot.bytes = encoder.writer.position
            blocks += encoder.placed
            self.out[unit] = blocks, encoder.kept
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
        self.published += 1
        store(self.segment.at.jobs[FP_APPLY].avail, self.published)
        return unit

    cdef int collected(self, uint64_t unit) except -1:
        """The result of an apply is there, or will never be."""
        if unit not in self.out:
            raise DamagedMemoryError("a result of an apply that was not handed out")
        free_blocks(self.segment, self.out.pop(unit)[0])
        self.give_slot_back(unit)
        if self.segment.exchange is not None:
            self.segment.exchange.applies.pop(unit, None)
        return 0

    def drop(self, uint64_t unit) -> None:
        """No result of this apply will come."""
        self.collected(unit)
