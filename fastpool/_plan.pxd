from libc.stdint cimport uint64_t

from fastpool._native cimport Segment, fp_plan


cdef class Plan:
    """A worker's view of an fp_plan."""
    cdef fp_plan *at
    cdef unsigned char *data     # of the whole array; NULL: it lies in the owner's private memory
    cdef const uint64_t *starts  # row with which each task's result begins
    cdef object dtype
    cdef tuple row_shape
    cdef Segment segment

    cdef uint64_t rows_of(self, uint64_t task) noexcept
    cdef bint takes(self, uint64_t task, object array) except -1
    cdef bint put(self, uint64_t task, object array) except -1
    cdef bint send(self, uint64_t first, object array) except -1
