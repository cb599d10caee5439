from libc.stdint cimport uint64_t


cdef class Outbox:
    """What one worker has sent and the parent has not taken, in order."""
    cdef list items
    cdef Py_ssize_t taken  # of the items: their places hold None

    cdef uint64_t put(self, object value) except 0
    cdef object take(self, uint64_t address)
    cdef void clear(self) noexcept


cdef class Places:
    """Where array results of a map belong: the whole, which is ordinary memory."""
    cdef object whole
    cdef list starts  # row with which each task's result begins, and the number of rows
    cdef tuple row_shape

    cdef bint put(self, uint64_t task, object value) except -1


cdef class Exchange:
    """What a pool's parent and its threads give each other."""
    cdef list outboxes             # by lane
    cdef readonly dict workers     # by lane: the threads, as they can be stopped
    cdef public object functions   # of the current job
    cdef list chunks               # of its input, by chunk modulo FP_FEED_SLOTS: the elements
    cdef bint copied               # these are arrays of the caller's, of which a task gets a copy
    cdef public dict applies       # elements of the applies that are out, by unit
    cdef public Places places      # of its results, or None

    cdef int offer(self, list chunks, bint copied) except -1
    cdef list chunk(self, uint64_t slot)
    cdef Outbox outbox(self, int lane)
    cdef int replace_outbox(self, int lane) except -1
    cdef void end_job(self) noexcept
