"""Memory kept back for the moment in which there is none.

Small results can take the last byte of a limit (RLIMIT_AS). Then the exception that says so could not be handled, nor
workers be stopped, which takes a little. CPython up to 3.11 even crashes then: each function that an exception leaves
without memory for its traceback raises another MemoryError, and the seventeenth is one too many.

So some is kept from the first map on. Who finds that something failed for lack of memory uses it, in C: before Python,
or Cython's ``except``, gets to handle the exception. The next map keeps some again.
"""

from libc.stdlib cimport free, malloc

cdef enum:
    RESERVE_BYTES = 1 << 16  # in malloc's own heap: free in small pieces at once

cdef void *reserve = NULL


cdef int keep_reserve() except -1:
    global reserve
    if reserve is NULL:
        reserve = malloc(RESERVE_BYTES)
        if reserve is NULL:
            raise MemoryError("fastpool: no memory to begin a map with")
    return 0


cdef void use_reserve() noexcept:
    global reserve
    free(reserve)
    reserve = NULL


def let_go() -> None:
    """Something failed; if it was for lack of memory, there is some now."""
    use_reserve()
