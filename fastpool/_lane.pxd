from libc.stdint cimport uint32_t, uint64_t

from fastpool._codec cimport Encoder
from fastpool._native cimport fp_line


cdef class LaneEncoder(Encoder):
    """Encodes into the lane of a worker, in that worker."""
    cdef uint32_t worker
    cdef fp_line *line
    cdef bint blocks         # it has allocated large blocks since the loop last set this
    cdef uint64_t rung_for   # the last wake_at the parent was rung for
    cdef uint64_t waited_ns  # for room, since the loop last set it to 0

    cdef void tell_parent(self) noexcept nogil
    cdef int put_fragments(self, int kind, uint32_t tag, const unsigned char *data, uint64_t size,
                           uint64_t sum) except -1
