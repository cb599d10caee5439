from libc.stdint cimport uint64_t

from fastpool._native cimport Segment, fp_plan


cdef class Plan:
    """A worker's view of an fp_plan."""
    cdef fp_plan *at
    cdef unsigned char *data     # of the whole array
    cdef const uint64_t *starts  # row with which each task's result begins
    cdef object dtype
    cdef tuple row_shape

    cdef object array_of(self, uint64_t task)
