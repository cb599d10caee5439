from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef struct Entry:
    const void *key
    uint32_t number
    uint32_t age  # of the memo when it was written: entries of another age are empty

cdef struct Memo:  # numbers by address: open addressing, at most half full, emptied by one addition
    Entry *entries
    uint64_t mask   # places - 1
    uint64_t count
    uint32_t age


cdef class TagWriter:
    """Turns values into tagged bytes, one item after another."""
    cdef bytearray buffer         # the item, from its start to `at`
    cdef unsigned char *start
    cdef unsigned char *at
    cdef unsigned char *end
    cdef readonly bint alone      # the last item needs no item before it
    cdef bint fresh               # nothing that came before may be referred to
    # of the item
    cdef Memo objects             # those that may be met again
    cdef uint32_t n_objects
    # of all items since `fresh`
    cdef Memo strings
    cdef uint32_t n_strings
    cdef list held                # keeps alive what `strings` has the address of
    cdef dict shapes              # number by keys
    cdef list shape_keys          # by number: the keys, as the very objects that were last met
    cdef unsigned char recent[64]  # by hash of the first key's address and the size: the shape to try

    cdef void forget(self)
    cdef bint write(self, object value) except -1
    cdef uint64_t size(self)

    cdef int renew(self) except -1
    cdef unsigned char *room(self, uint64_t size) except NULL
    cdef unsigned char *grow(self, uint64_t size) except NULL
    cdef int write_head(self, int tag, uint64_t number) except -1
    cdef int write_data(self, int tag, uint64_t count, const void *data, uint64_t size) except -1
    cdef int memoize(self, PyObject *value, Py_ssize_t owners=*) except -1
    cdef bint write_value(self, PyObject *value, int depth) except -1
    cdef bint write_integer(self, object value) except -1
    cdef bint write_big(self, object value) except -1
    cdef bint write_text(self, PyObject *value, bint shared) except -1
    cdef bint write_bytes(self, PyObject *value) except -1
    cdef bint write_tuple(self, tuple value, int memo, int depth) except -1
    cdef bint write_list(self, list value, int memo, int depth) except -1
    cdef bint write_set(self, object value, int tag, int depth) except -1
    cdef bint write_dict(self, dict value, int memo, int depth) except -1
    cdef bint write_pairs(self, dict value, int memo, int depth) except -1
    cdef bint write_values(self, dict value, Py_ssize_t size, int depth) except -1
    cdef int known_shape(self, dict value) except -2
    cdef int shape_by_value(self, tuple keys) except -2
    cdef int new_shape(self, tuple keys) except -1
    cdef bint write_scalar(self, PyObject *value) except -1


cdef class TagReader:
    """Turns tagged bytes back into values, one item after another."""
    cdef const unsigned char *at
    cdef const unsigned char *end
    cdef uint64_t owed     # values that the open containers still wait for: each takes at least a byte
    cdef list objects      # of the item, those that may be met again
    cdef list strings      # of all items since the last one that was alone
    cdef list shapes       # likewise, tuples of keys

    cdef void forget(self)
    cdef object read(self, const unsigned char *data, uint64_t size)

    cdef object read_value(self, int depth)
    cdef object read_owed(self, int depth)
    cdef const unsigned char *take(self, uint64_t size) except NULL
    cdef uint64_t read_number(self) except? 0
    cdef uint64_t expect(self, uint64_t count, uint64_t each) except? 0
    cdef object read_text(self, int width)
    cdef object read_bytes(self, int tag)
    cdef object read_scalar(self)
    cdef object read_tuple(self, int memo, int depth)
    cdef object read_list(self, int memo, int depth)
    cdef object read_set(self, bint frozen, int memo, int depth)
    cdef object read_pairs(self, int memo, int depth)
    cdef object read_shaped(self, bint new, int memo, int depth)
    cdef object read_shape(self, int depth)
