cimport cython
from libc.stdint cimport uint64_t


@cython.final
cdef class TagReader:
    """Turns tagged bytes back into values, one item after another."""
    cdef const unsigned char *at
    cdef const unsigned char *end
    cdef uint64_t owed     # values that the open containers still wait for: each takes at least a byte
    cdef list objects      # of the item, those that may be met again
    cdef list strings      # of all items since the last one that was alone
    cdef list shapes       # likewise, tuples of keys
    cdef list templates    # of dicts with these keys; None: there is none
    cdef dict known        # by keys: the same keys and their template, or None

    cdef void forget(self) noexcept
    cdef object read(self, const unsigned char *data, uint64_t size)

    cdef object read_value(self, int depth)
    cdef object read_other(self, int depth)
    cdef object read_owed(self, int depth)
    cdef const unsigned char *take(self, uint64_t size) except NULL
    cdef uint64_t read_number(self) except? 0
    cdef uint64_t read_digits(self, uint64_t number) except? 0
    cdef uint64_t expect(self, uint64_t count, uint64_t each) except? 0
    cdef object read_text(self, int width)
    cdef object read_bytes(self, int tag)
    cdef object read_scalar(self)
    cdef object read_tuple(self, int memo, int depth)
    cdef object read_list(self, int memo, int depth)
    cdef object read_set(self, bint frozen, int memo, int depth)
    cdef object read_pairs(self, int memo, int depth)
    cdef object read_shaped(self, bint new, int memo, int depth)
    cdef uint64_t read_shape(self, int depth) except? 0
    cdef tuple met_before(self, tuple keys)
