"""When the handlers of signals run."""


cdef class Wakeup:
    """A descriptor that ends the main thread's sleep when a signal comes."""
    cdef int fd        # readable when a signal has come since listen()
    cdef int inlet
    cdef int users     # the descriptor that the program has set, or -1
    cdef bint listening

    cdef void close(self) noexcept
    cdef int listen(self) except -2
    cdef int cease(self) except -1
    cdef void drain(self) noexcept nogil


cdef bint is_main() noexcept nogil
cdef object hold_signals()
cdef object release_signals()
