from libc.stdint cimport uint64_t

from fastpool._native cimport FP_LONGEST, fp_line, fp_longest


cdef class Timing:
    """Counts and times the tasks of one worker, and keeps the longest, on that worker's line."""
    cdef fp_line *line
    cdef object describe
    cdef uint64_t since   # when the current task began
    cdef uint64_t waited  # for room, by then
    cdef uint64_t least   # a task that takes longer is one of the longest
    cdef fp_longest longest[FP_LONGEST]
    cdef list elements    # of these, in a tuple each: to be described; None: has been
    cdef bint behind      # the line shows older ones

    cdef int begin(self, uint64_t waited) except -1
    cdef int end(self, object element, uint64_t waited, bint last) except -1
    cdef int keep(self, uint64_t took, object element) except -1
    cdef int show(self) except -1
    cdef int put_text(self, int i) except -1
