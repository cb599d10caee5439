from libc.stdint cimport uint32_t, uint64_t

from fastpool._codec cimport Encoder
from fastpool._native cimport fp_line
from fastpool._plan cimport Plan
from fastpool._references cimport Exchange, Outbox


cdef class LaneEncoder(Encoder):
    """Encodes into the lane of a worker, in that worker."""
    cdef uint32_t worker
    cdef fp_line *line
    cdef object dump_exception
    cdef bint of_map         # tasks are a map's, else applies
    cdef uint64_t rung_for   # the last wake_at the parent was rung for
    cdef uint64_t waited_ns  # for room, since the loop last set it to 0
    cdef Plan plan           # where the result of the current task goes, or None
    cdef set mapped          # (address, bytes) of shared memory whose pages this worker has mapped
    cdef unsigned char *whole  # array of the job's plan, NULL: no task of it had a place
    cdef uint64_t whole_bytes
    cdef unsigned char *giving  # data of a block that goes to the parent with its array

    cdef int expect(self, uint64_t task) except -1
    cdef bint is_mapped(self, unsigned char *start, uint64_t size) except -1
    cdef void relax(self) noexcept
    cdef void settle(self, object result) noexcept
    cdef bint put_in_place(self, object array) except -1
    cdef void tell_parent(self) noexcept nogil
    cdef int put_fragments(self, int kind, uint32_t tag, const unsigned char *data, uint64_t size,
                           uint64_t sum) except -1


cdef class ReferenceEncoder(LaneEncoder):
    """The same in a thread, whose results are the very objects."""
    cdef Exchange exchange
    cdef Outbox outbox
