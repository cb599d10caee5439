from libc.stdint cimport uint64_t

from fastpool._feed cimport BufferEncoder
from fastpool._native cimport FP_APPLY_SLOTS, Segment


cdef class Applies:
    """Applies on their way to whoever claims them: each is a unit of its own."""
    cdef Segment segment
    cdef BufferEncoder encoder
    cdef readonly uint64_t published
    cdef uint64_t users[FP_APPLY_SLOTS]  # by unit modulo FP_APPLY_SLOTS: 1 + the unit whose slot it is, 0: free
    cdef dict out                        # by unit, until collected: (offsets of blocks, what they refer to, result)

    cdef bint has_slot(self) except -1
    cdef int give_slot_back(self, uint64_t unit) except -1
    cdef tuple entry_of(self, uint64_t unit)
    cdef int forget(self, uint64_t unit, tuple entry) except -1
